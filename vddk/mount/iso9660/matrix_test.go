package iso9660_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmkeep/vmkeep/vddk/mount/device"
	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
	"github.com/vmkeep/vmkeep/vddk/mount/iso9660"
	"github.com/vmkeep/vmkeep/vddk/mount/mounttest"
)

func open(t testing.TB, path string) *guestfs.FS {
	t.Helper()
	img, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { img.Close() })
	st, err := img.Stat()
	if err != nil {
		t.Fatal(err)
	}
	f, err := guestfs.Open(iso9660.Format(), []*guestfs.Source{guestfs.NewSource(device.Disk(img, 0, st.Size()))})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// disc writes a tree to a disc and returns its path and what is in the tree.
func disc(t *testing.T, command string, grow func(dir string)) (string, mounttest.Manifest) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "tree")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	grow(dir)
	want, err := mounttest.Truth(dir)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "disc.iso")
	argv := append(strings.Fields(command), "-o", path, dir)
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	return path, want
}

// compare compares what a disc can keep.
func compare(t *testing.T, f *guestfs.FS, want mounttest.Manifest, keeps func(w, g *mounttest.Entry)) {
	t.Helper()
	got, err := mounttest.Read(f)
	if err != nil {
		t.Error(err)
	}
	at := map[string]*mounttest.Entry{}
	for i := range got {
		at[got[i].Path] = &got[i]
	}
	for i := range want {
		w := &want[i]
		w.Atime, w.Ctime, w.Btime, w.Xattrs = "", "", "", nil
		w.Mtime, _, _ = strings.Cut(w.Mtime, ".")
		w.Mtime += ".000000000"
		if g := at[w.Path]; g != nil && keeps != nil {
			keeps(w, g)
		}
	}
	for _, d := range mounttest.Diff(want, got) {
		t.Error(d)
	}
	for _, n := range f.Info().Notes {
		t.Errorf("note: %s", n.Text)
	}
}

// grown is a tree with everything but times that seven bytes do not hold.
func grown(t *testing.T, tree mounttest.Tree) func(dir string) {
	return func(dir string) {
		_ = mounttest.Grow(dir, tree) // attributes that the directory for tests cannot hold do not matter here
		for _, p := range []string{
			"meta/t9000000000", "meta/t15000000000", "links/sym1024", "links/sym2000", "links/sym4000", "links/sym4095", // too much for xorriso
		} {
			if err := os.Remove(filepath.Join(dir, p)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestRockRidgeEqualsItsInput(t *testing.T) {
	mounttest.Need(t, "xorriso")
	for name, c := range map[string]struct {
		command string
		keeps   func(w, g *mounttest.Entry)
	}{
		"xorriso": {"xorrisofs -quiet -R -V RockVolume", func(w, g *mounttest.Entry) {
			w.Link = strings.TrimSuffix(w.Link, "/") // components have no slashes
			switch w.Path {
			case "special/blk": // a device number too large for the way it is written
				w.Dev = g.Dev
			case "xattr/acl": // the group's rights instead of the ACL's mask
				w.Mode = g.Mode
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path, want := disc(t, c.command, grown(t, mounttest.Tree{Files: 1500, Names: 3000}))
			if len(want) < 2000 {
				t.Errorf("the truth has %d entries only", len(want))
			}
			f := open(t, path)
			if i := f.Info(); i.Label != "RockVolume" || i.UUID == "" || i.FoldCase {
				t.Errorf("%+v", i)
			}
			compare(t, f, want, c.keeps)
		})
	}
}

// plain is a tree of names that Joliet holds too.
func plain(t *testing.T) func(dir string) {
	return func(dir string) {
		for i := range 1200 {
			sub := filepath.Join(dir, fmt.Sprintf("directory %d", i%20))
			name := fmt.Sprintf("a long Näme with 日本 %d.tar.gz", i)
			if err := errors.Join(os.MkdirAll(sub, 0o755), os.WriteFile(filepath.Join(sub, name), []byte(strings.Repeat("x", i*7)), 0o644)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestJolietEqualsItsInput(t *testing.T) {
	mounttest.Need(t, "genisoimage")
	path, want := disc(t, "genisoimage -quiet -J -joliet-long -V Joliet-Disc", plain(t))
	f := open(t, path)
	compare(t, f, want, func(w, g *mounttest.Entry) {
		w.Mode, w.UID, w.GID, w.Links = g.Mode, g.UID, g.GID, g.Links // not kept
	})
	if i := f.Info(); i.Label != "Joliet-Disc" || !i.FoldCase {
		t.Errorf("%+v", i)
	}
	if _, err := f.Walk("DIRECTORY 3"); err != nil {
		t.Errorf("names are found without regard to case: %v", err)
	}
}

func TestRockRidgeWinsOverJoliet(t *testing.T) {
	mounttest.Need(t, "genisoimage")
	path, want := disc(t, "genisoimage -quiet -R -J -joliet-long", plain(t))
	compare(t, open(t, path), want, nil)
}

func TestFileOfMoreThan4GiB(t *testing.T) {
	mounttest.Need(t, "genisoimage")
	path, want := disc(t, "xorrisofs -quiet -R -iso-level 3", func(dir string) {
		f, err := os.Create(filepath.Join(dir, "large"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for _, off := range []int64{0, 1<<32 - 2048 - 5, 1<<32 - 5, 1<<32 + 1<<28} {
			if _, err := f.WriteAt([]byte("something at "+fmt.Sprint(off)), off); err != nil {
				t.Fatal(err)
			}
		}
		for i := range 60 { // so that its records may lie in two sectors
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("before%03d", i)), []byte("b"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	})
	compare(t, open(t, path), want, nil)
}
