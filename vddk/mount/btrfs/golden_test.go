package btrfs_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/vmkeep/vmkeep/vddk/mount/mounttest"
)

// TestSmallVolume writes the golden image of vddk/mount's tests, when VMKEEP_GOLDEN names the directory for it.
func TestSmallVolume(t *testing.T) {
	mounttest.Need(t, "mkfs.btrfs", "btrfs", "losetup", "mount")
	p := pool{sizes: []int64{20 * mib}, mkfs: "--mixed -n 4096", mount: "compress=zstd", fill: func(dir string) error {
		return errors.Join(mounttest.Grow(dir, mounttest.Tree{Tiny: true, Minor: true}),
			os.WriteFile(filepath.Join(dir, "zstd"), bytes.Repeat([]byte("compressed content "), 9000), 0o644))
	}}
	images, want := p.make(t)
	f := open(t, images)
	equal(t, f, want)
	dir := os.Getenv("VMKEEP_GOLDEN")
	if dir == "" {
		return
	}
	image, err := os.ReadFile(images[0])
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
		if err := os.WriteFile(filepath.Join(dir, "btrfs"+ext), enc.EncodeAll(b, nil), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
