package ntfs_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
	"github.com/vmkeep/vmkeep/vddk/mount/mounttest"
)

func TestEqualsNtfs3g(t *testing.T) {
	mounttest.Need(t, "mkntfs", "ntfs-3g")
	for _, c := range []struct {
		name, mkfs string
		mib        int64
		tree       mounttest.Tree
	}{
		{"4k", "-c 4096 -L Volume-ü", 192, mounttest.Tree{Files: 2000, Names: 6000}},
		{"512", "-c 512", 160, mounttest.Tree{}},
		{"64k", "-c 65536", 320, mounttest.Tree{}},
		{"4Kn", "-s 4096 -c 4096", 160, mounttest.Tree{}},
		{"huge", "-c 2048 -s 1024", 192, mounttest.Tree{Huge: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			path, want := image(t, c.mib*mib, c.mkfs, func(dir string) error {
				// What NTFS cannot hold (names that are no Unicode, some attributes) ntfs-3g refuses; the truth is
				// what it took.
				_ = mounttest.Grow(dir, c.tree)
				// Seconds beyond 2^64 ns do not pass through ntfs-3g, and it keeps attributes that are not the user's in
				// streams that it does not show.
				err := errors.Join(compressed(dir), streams(dir))
				for _, p := range []string{"meta/t15000000000", "xattr/cap", "xattr/trusted"} {
					err = errors.Join(err, os.Remove(filepath.Join(dir, p)))
				}
				return err
			})
			if len(want) < 1700 {
				t.Errorf("the truth has %d entries only", len(want))
			}
			f := open(t, path)
			got, err := mounttest.Read(f)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range mounttest.Diff(want, got) {
				t.Error(d)
			}
			for _, n := range f.Info().Notes {
				t.Errorf("note: %s", n.Text)
			}
			units := 0
			checkRuns(t, f, source(t, path), f.Root(), &units)
			if c.name != "64k" && units == 0 {
				t.Error("no file has compressed runs")
			}
		})
	}
}

// compressed makes files that NTFS compresses, of all kinds of content and around the sizes of units.
func compressed(dir string) error {
	dir = filepath.Join(dir, "comp")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	if err := unix.Lsetxattr(dir, "system.ntfs_attrib_be", []byte{0, 0, 8, 0}, 0); err != nil {
		return fmt.Errorf("compressed directory: %w", err)
	}
	rnd := rand.New(rand.NewPCG(7, 7))
	for _, n := range []int{0, 1, 500, 700, 1000, 4095, 4096, 4097, 65535, 65536, 65537, 100000, 1000000, 3000001} {
		mixed := append(text(rnd, n/2), noise(rnd, n-n/2)...)
		var turns []byte
		for len(turns) < n {
			turns = append(append(turns, noise(rnd, 65536)...), text(rnd, 65536)...)
		}
		for kind, b := range map[string][]byte{
			"text": text(rnd, n), "noise": noise(rnd, n), "zeros": make([]byte, n), "mixed": mixed, "turns": turns[:n],
		} {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%s%07d", kind, n)), b, 0o644); err != nil {
				return err
			}
		}
	}
	f, err := os.Create(filepath.Join(dir, "holes"))
	if err != nil {
		return err
	}
	defer f.Close()
	for off, b := range map[int64][]byte{0: text(rnd, 200000), 3000000: text(rnd, 100000), 9000000: []byte("end")} {
		if _, err := f.WriteAt(b, off); err != nil {
			return err
		}
	}
	return nil
}

// streams makes alternate data streams of files and of a directory.
func streams(dir string) error {
	dir = filepath.Join(dir, "ads")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	rnd := rand.New(rand.NewPCG(8, 8))
	for i, n := range []int{1, 100, 700, 5000, 60000} {
		p := filepath.Join(dir, fmt.Sprintf("f%d", i))
		if err := os.WriteFile(p, text(rnd, 1000*i), 0o644); err != nil {
			return err
		}
		for name, size := range map[string]int{"Zone.Identifier": 26, "big stream": n, "ünï": 10} {
			if err := unix.Lsetxattr(p, "user."+name, noise(rnd, size), 0); err != nil {
				return err
			}
		}
	}
	for i := range 200 { // so many that the file needs an attribute list
		if err := unix.Lsetxattr(filepath.Join(dir, "f0"), fmt.Sprintf("user.stream-%d", i), noise(rnd, 10*i+1), 0); err != nil {
			return err
		}
	}
	return unix.Lsetxattr(dir, "user.dirstream", []byte("on a directory"), 0)
}

// checkRuns checks that runs tile every file and that Data runs lead to its bytes; it counts encoded ones.
func checkRuns(t *testing.T, f *guestfs.FS, src *guestfs.Source, dir guestfs.ID, encoded *int) {
	t.Helper()
	for e, err := range f.ReadDir(dir, 0) {
		if err != nil {
			t.Fatal(err)
		}
		a, err := f.Stat(e.ID)
		if err != nil {
			t.Fatal(err)
		}
		if a.Type == guestfs.Directory {
			checkRuns(t, f, src, e.ID, encoded)
		}
		if a.Type != guestfs.Regular || a.Size > 32*mib {
			continue
		}
		file, err := f.Open(e.ID, "")
		if err != nil {
			t.Fatal(err)
		}
		runs, err := file.Runs()
		if err != nil {
			t.Fatal(err)
		}
		at := int64(0)
		for _, r := range runs {
			if r.File.Off != at || r.File.Len <= 0 {
				t.Fatalf("%s: runs do not tile: %+v", e.Name, runs)
			}
			at = r.File.End()
			got := make([]byte, r.File.Len)
			if _, err := file.ReadAt(got, r.File.Off); err != nil {
				t.Fatal(err)
			}
			want := make([]byte, r.File.Len)
			switch r.Kind {
			case guestfs.Data:
				if err := src.ReadData(want, r.Disk.Off); err != nil {
					t.Fatal(err)
				}
			case guestfs.Encoded:
				*encoded++
				continue
			case guestfs.Inline:
				continue
			}
			if !bytes.Equal(got, want) {
				t.Fatalf("%s: run %+v does not hold its bytes", e.Name, r)
			}
		}
		if at != file.Size() {
			t.Fatalf("%s: runs end at %d of %d", e.Name, at, file.Size())
		}
	}
}
