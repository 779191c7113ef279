package ntfs_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
	"github.com/vmkeep/vmkeep/vddk/mount/mounttest"
)

var le = binary.LittleEndian

func units(s string) []byte {
	var b []byte
	for _, u := range utf16.Encode([]rune(s)) {
		b = le.AppendUint16(b, u)
	}
	return b
}

// point is a reparse point.
func point(tag uint32, data ...[]byte) []byte {
	d := bytes.Join(data, nil)
	b := le.AppendUint32(nil, tag)
	b = le.AppendUint16(b, uint16(len(d)))
	return append(append(b, 0, 0), d...)
}

// names are the four numbers before a link's names, and the names.
func names(target string, flags []byte) []byte {
	n := units(target)
	b := le.AppendUint16(nil, 0)
	b = le.AppendUint16(b, uint16(len(n)))
	b = le.AppendUint16(b, uint16(len(n)+2))
	b = le.AppendUint16(b, uint16(len(n)))
	return bytes.Join([][]byte{b, flags, n, {0, 0}, n, {0, 0}}, nil)
}

// xpressed is 300 bytes of "abc" as XPRESS keeps them ([MS-XCA] 3.2).
func xpressed() []byte {
	b := make([]byte, 256)
	b[48], b[49], b[128], b[143] = 0x30, 0x23, 0x02, 0x20
	bits, err := hex.DecodeString("a8dc0000ff2601")
	if err != nil {
		panic(err)
	}
	return append(b, bits...)
}

// overlay is the reparse point of the Windows Overlay Filter.
func overlay(provider, algorithm uint32) []byte {
	var b []byte
	for _, v := range []uint32{1, provider, 1, algorithm} {
		b = le.AppendUint32(b, v)
	}
	return point(0x80000017, b)
}

type special struct {
	reparse []byte
	size    int64
	stream  []byte // WofCompressedData
}

func specials() map[string]special {
	first := make([]byte, 4096)
	for i := range first {
		first[i] = byte(i * 31)
	}
	stored := bytes.Join([][]byte{{0, 0x10, 0, 0}, first, xpressed()}, nil)
	return map[string]special{
		"relative": {reparse: point(0xa000000c, names(`..\sizes\b0000100`, []byte{1, 0, 0, 0}))},
		"absolute": {reparse: point(0xa000000c, names(`\??\C:\Windows`, []byte{0, 0, 0, 0}))},
		"junction": {reparse: point(0xa0000003, names(`\??\C:\Users\All Users`, nil))},
		"wsl":      {reparse: point(0xa000001d, []byte{2, 0, 0, 0}, []byte("../übung"))},
		"appexec":  {reparse: point(0x8000001b, []byte{3, 0, 0, 0}, units("abc"))},
		"dedup":    {reparse: point(0x80000013, make([]byte, 16)), size: 5000},
		"filter":   {reparse: point(0x80000099, make([]byte, 16)), size: 5000},
		"cloud":    {reparse: point(0x9000601a, make([]byte, 16)), size: 5000},
		"wof":      {reparse: overlay(2, 0), size: 300, stream: xpressed()},
		"wof two":  {reparse: overlay(2, 0), size: 4396, stream: stored},
		"wof lzx":  {reparse: overlay(2, 1), size: 4096, stream: first},
		"wim":      {reparse: overlay(1, 0), size: 300},
	}
}

func makeSpecials(dir string) error {
	var all error
	for name, s := range specials() {
		p := filepath.Join(dir, "special-"+name)
		create := func() error { return os.WriteFile(p, nil, 0o644) }
		if name == "junction" || name == "absolute" {
			create = func() error { return os.Mkdir(p, 0o755) }
		}
		err := create()
		if err == nil && s.size > 0 {
			err = os.Truncate(p, s.size)
		}
		if err == nil && s.stream != nil {
			err = unix.Lsetxattr(p, "user.WofCompressedData", s.stream, 0)
		}
		if err == nil {
			err = unix.Lsetxattr(p, "system.ntfs_reparse_data", s.reparse, 0)
		}
		if err != nil {
			all = errors.Join(all, fmt.Errorf("%s: %w", name, err))
		}
	}
	return all
}

func smallTree(dir string) error {
	_ = mounttest.Grow(dir, mounttest.Tree{Tiny: true, Minor: true})
	rnd := rand.New(rand.NewPCG(3, 3))
	comp := filepath.Join(dir, "comp")
	err := errors.Join(os.Mkdir(comp, 0o755), unix.Lsetxattr(comp, "system.ntfs_attrib_be", []byte{0, 0, 8, 0}, 0))
	for _, n := range []int{700, 4097, 70000} {
		err = errors.Join(err, os.WriteFile(filepath.Join(comp, "text"+strings.Repeat("x", n%7)), text(rnd, n), 0o644))
	}
	f := filepath.Join(dir, "streams")
	err = errors.Join(err, os.WriteFile(f, []byte("main"), 0o644))
	for k := range 30 {
		err = errors.Join(err, unix.Lsetxattr(f, "user.stream"+strings.Repeat("y", k), noise(rnd, 20*k+1), 0))
	}
	for _, p := range []string{"meta/t15000000000", "xattr/cap", "xattr/trusted"} {
		err = errors.Join(err, os.Remove(filepath.Join(dir, p)))
	}
	return err
}

// keep writes the golden image of vddk/mount's tests, when VMKEEP_GOLDEN names the directory for it.
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

func TestSmallVolume(t *testing.T) {
	mounttest.Need(t, "mkntfs", "ntfs-3g")
	path, want := image(t, 10*mib, "-c 1024", smallTree)
	got, err := mounttest.Read(open(t, path))
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range mounttest.Diff(want, got) {
		t.Error(d)
	}
	keep(t, "ntfs", path, want)
}

func TestReparsePoints(t *testing.T) {
	mounttest.Need(t, "mkntfs", "ntfs-3g")
	path := filepath.Join(t.TempDir(), "image")
	made, _ := image(t, 16*mib, "-c 4096", func(dir string) error { return makeSpecials(dir) })
	if err := os.Rename(made, path); err != nil {
		t.Fatal(err)
	}
	f := open(t, path)
	all := specials()
	first := all["wof lzx"].stream
	for name, want := range map[string]string{
		"relative": "../sizes/b0000100", "absolute": `C:\Windows`, "junction": `C:\Users\All Users`, "wsl": "../übung",
	} {
		id, err := f.Walk("special-" + name)
		if err != nil {
			t.Fatal(err)
		}
		a, err := f.Stat(id)
		if got, e := f.Readlink(id); e != nil || got != want || err != nil || a.Type != guestfs.Symlink || a.Size != int64(len(want)) {
			t.Errorf("%s: %q, %v; %+v, %v", name, got, e, a, err)
		}
		if _, err := f.Open(id, ""); !errors.Is(err, guestfs.ErrNotRegular) {
			t.Errorf("%s: opened: %v", name, err)
		}
	}
	for name, want := range map[string]string{
		"wof": strings.Repeat("abc", 100), "wof two": string(first) + strings.Repeat("abc", 100), "wof lzx": string(first),
		"cloud": strings.Repeat("\x00", 5000),
	} {
		id, err := f.Walk("special-" + name)
		if err != nil {
			t.Fatal(err)
		}
		file, err := f.Open(id, "")
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got, err := io.ReadAll(guestfs.NewReader(file)); err != nil || string(got) != want {
			t.Errorf("%s: %d bytes of %d, %v", name, len(got), len(want), err)
		}
		if s, err := f.Streams(id); err != nil || len(s) != 0 {
			t.Errorf("%s: streams %v, %v", name, s, err)
		}
	}
	for _, name := range []string{"dedup", "filter", "wim"} {
		id, err := f.Walk("special-" + name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Open(id, ""); !errors.Is(err, guestfs.ErrUnsupported) || !strings.Contains(err.Error(), "restore") {
			t.Errorf("%s: %v", name, err)
		}
	}
	id, err := f.Walk("special-appexec")
	if err != nil {
		t.Fatal(err)
	}
	if a, err := f.Stat(id); err != nil || a.Type != guestfs.Other {
		t.Errorf("appexec: %+v, %v", a, err)
	}
	// A reference to an earlier use of a record leads nowhere.
	if _, err := f.Stat(guestfs.ID{File: id.File + 1<<48}); !errors.Is(err, guestfs.ErrDamaged) || !strings.Contains(err.Error(), "stale") {
		t.Errorf("stale reference: %v", err)
	}
}
