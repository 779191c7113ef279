package fat_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/vmkeep/vmkeep/vddk/mount/fat"
	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
	"github.com/vmkeep/vmkeep/vddk/mount/mounttest"
)

// keep writes a golden image of vddk/mount's tests, when VMKEEP_GOLDEN names the directory for it.
func keep(t *testing.T, name, path string, want mounttest.Manifest) {
	t.Helper()
	dir := os.Getenv("VMKEEP_GOLDEN")
	if dir == "" {
		return
	}
	image, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var manifest bytes.Buffer
	if err := want.Write(&manifest); err != nil {
		t.Fatal(err)
	}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression))
	if err != nil {
		t.Fatal(err)
	}
	defer enc.Close()
	for ext, b := range map[string][]byte{".img.zst": image, ".json.zst": manifest.Bytes()} {
		if err := os.WriteFile(filepath.Join(dir, name+ext), enc.EncodeAll(b, nil), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSmallVolumes(t *testing.T) {
	need(t, "mkfs.vfat", "mcopy", "mkfs.exfat")
	tree := t.TempDir()
	for k := range 180 {
		p := filepath.Join(tree, fmt.Sprintf("d%d", k%5), fmt.Sprintf("a file with number %d.txt", k))
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(strings.Repeat(p, k%40)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	check := func(name, path string, format guestfs.Format, want mounttest.Manifest) {
		got, err := mounttest.Read(open(t, path, format))
		if err != nil {
			t.Error(err)
		}
		if want == nil {
			if want, err = mounttest.Truth(tree); err != nil {
				t.Fatal(err)
			}
			plain(want, got)
			for i, g := range got { // mcopy without -m: the times are those of the copying
				if i < len(want) {
					want[i].Mtime = g.Mtime
				}
			}
		}
		for _, d := range mounttest.Diff(want, got) {
			t.Errorf("%s: %s", name, d)
		}
		keep(t, name, path, want)
	}
	for name, mkfs := range map[string]string{"fat12": "-F 12 -s 2", "fat16": "-F 16 -s 1", "fat32": "-F 32 -s 1"} {
		path := filepath.Join(t.TempDir(), "image")
		if err := mounttest.Blank(path, map[string]int64{"fat12": 3, "fat16": 5, "fat32": 35}[name]*mib); err != nil {
			t.Fatal(err)
		}
		run(t, append(append([]string{"mkfs.vfat"}, strings.Fields(mkfs)...), path)...)
		for d := range 5 {
			run(t, "mcopy", "-i", path, "-s", filepath.Join(tree, fmt.Sprintf("d%d", d)), "::")
		}
		check(name, path, fat.Format(), nil)
	}
	path := filepath.Join(t.TempDir(), "image")
	if err := mounttest.Blank(path, 6*mib); err != nil {
		t.Fatal(err)
	}
	run(t, "mkfs.exfat", "-c", "1024", path)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	w := newExWriter(t, b)
	w.gaps = true
	root := w.at(le.Uint32(b[96:]))
	for b[root] != 0 {
		root += 32
	}
	small := exTree()
	small[1].dir = small[1].dir[:150]
	copy(b[root:], w.records(small))
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "fsck.exfat", "-n", path)
	check("exfat", path, fat.ExFAT(), append(exWant("", small), mounttest.Entry{Type: "directory", Mode: 0o755}))
}
