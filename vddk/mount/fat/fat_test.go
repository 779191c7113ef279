package fat_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmkeep/vmkeep/vddk/mount/device"
	"github.com/vmkeep/vmkeep/vddk/mount/fat"
	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
	"github.com/vmkeep/vmkeep/vddk/mount/mounttest"
)

const mib = 1 << 20

// need ends a test without the tools; in CI that is a failure.
func need(t testing.TB, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err == nil {
			continue
		}
		if os.Getenv("CI") == "true" {
			t.Fatalf("this test needs %s, and CI may not go without it", tool)
		}
		t.Skipf("needs %s", tool)
	}
}

func run(t testing.TB, argv ...string) {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "TZ=UTC", "MTOOLS_SKIP_CHECK=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
}

func open(t testing.TB, path string, format guestfs.Format) *guestfs.FS {
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
	src := guestfs.NewSource(device.Disk(img, 0, st.Size()))
	if _, err := guestfs.Probe(format, src); err != nil {
		t.Fatalf("not recognised: %v", err)
	}
	f, err := guestfs.Open(format, []*guestfs.Source{src})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// grow fills a directory with what FAT can hold.
func grow(t *testing.T, dir string, files int) {
	t.Helper()
	rnd := rand.New(rand.NewPCG(5, 5))
	write := func(n int, elem ...string) {
		p := filepath.Join(append([]string{dir}, elem...)...)
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		when := time.Unix(1_000_000_000+int64(rnd.IntN(1e8))*2, 0)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, b, 0o644), os.Chtimes(p, when, when)); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []int{0, 1, 511, 512, 513, 1024, 2047, 2048, 2049, 4096, 4097, 32768, 65537, 200001} {
		write(n, "sizes", fmt.Sprintf("size%d.bin", n))
	}
	for _, n := range []string{
		"PLAIN.TXT", "lower.txt", "Mixed.Case", "a", "long name with spaces and more than one record.tar.gz", "ünïcödé é",
		"日本語のファイル名.txt", "русский", strings.Repeat("n", 200), "exactly13char", "exactly26characters.length", ".hidden",
		"semi;colon,comma=plus+[brackets]", "~tilde~1", "LONGFI~1.TXT", "two.dots.in.it",
	} {
		write(100, "names", n)
	}
	deep := []string{"deep"}
	for i := range 15 {
		deep = append(deep, fmt.Sprintf("level number %d", i))
	}
	write(10000, append(deep, "bottom")...)
	for i := range files {
		write(rnd.IntN(3000), "many", fmt.Sprintf("d%d", i%7), fmt.Sprintf("a file with number %04d.dat", i))
	}
}

func TestFATEqualsItsInput(t *testing.T) {
	need(t, "mkfs.vfat", "mcopy", "mdel", "mattrib")
	for _, c := range []struct {
		name, mkfs string
		mib        int64
		files      int
		label      string
	}{
		{"12", "-F 12 -s 16 -n FLOPPY", 28, 700, "FLOPPY"},
		{"16", "-F 16 -s 4", 60, 1500, ""},
		{"32", "-F 32 -s 1 -n BIGGER", 64, 2500, "BIGGER"},
		{"32 4Kn", "-F 32 -S 4096 -s 1", 300, 1500, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			image, tree := filepath.Join(t.TempDir(), "image"), filepath.Join(t.TempDir(), "tree")
			if err := mounttest.Blank(image, c.mib*mib); err != nil {
				t.Fatal(err)
			}
			run(t, append(append([]string{"mkfs.vfat"}, strings.Fields(c.mkfs)...), image)...)
			grow(t, tree, c.files)
			// Files that come and go leave deleted records and break the chains of the others.
			gone := filepath.Join(t.TempDir(), "gone")
			grow(t, gone, 50)
			run(t, "mcopy", "-i", image, "-s", filepath.Join(gone, "many"), "::gone")
			run(t, "mdel", "-i", image, "::gone/d1/*", "::gone/d3/*")
			for _, d := range []string{"sizes", "names", "deep", "many"} {
				run(t, "mcopy", "-i", image, "-s", "-m", filepath.Join(tree, d), "::")
			}
			run(t, "mdeltree", "-i", image, "::gone")
			run(t, "mattrib", "-i", image, "+r", "+h", "::names/PLAIN.TXT")

			want, err := mounttest.Truth(tree)
			if err != nil {
				t.Fatal(err)
			}
			f := open(t, image, fat.Format())
			if i := f.Info(); i.Label != c.label || len(i.UUID) != 9 || !i.FoldCase {
				t.Errorf("%+v", i)
			}
			got, err := mounttest.Read(f)
			if err != nil {
				t.Error(err)
			}
			plain(want, got)
			if len(want) < c.files {
				t.Errorf("the truth has %d entries only", len(want))
			}
			for _, d := range mounttest.Diff(want, got) {
				t.Error(d)
			}
			id, err := f.Walk("NAMES/plain.txt")
			if err != nil {
				t.Fatal(err)
			}
			if a, err := f.Stat(id); err != nil || a.Mode != 0o444 || a.DOS != 0x23 {
				t.Errorf("%+v, %v", a, err)
			}
		})
	}
}

// plain makes a truth of what FAT keeps: neither owners nor links nor the times of directories that mtools makes.
func plain(want, got mounttest.Manifest) {
	at := map[string]mounttest.Entry{}
	for _, g := range got {
		at[g.Path] = g
	}
	for i := range want {
		w := &want[i]
		g := at[w.Path]
		w.Atime, w.Ctime, w.Btime, w.Xattrs = "", "", "", nil
		w.Mode, w.UID, w.GID = g.Mode, 0, 0
		if w.Type == "directory" {
			w.Mtime = g.Mtime
		}
	}
}

func TestLongNameOverRecords(t *testing.T) {
	need(t, "mkfs.vfat", "mcopy")
	image, tree := filepath.Join(t.TempDir(), "image"), t.TempDir()
	if err := mounttest.Blank(image, 4*mib); err != nil {
		t.Fatal(err)
	}
	run(t, "mkfs.vfat", "-F", "12", image)
	// 13 characters fit a record: the last one of the first becomes half of a character outside of the BMP.
	if err := os.WriteFile(filepath.Join(tree, "abcdefghijklXYno"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	run(t, "mcopy", "-i", image, filepath.Join(tree, "abcdefghijklXYno"), "::")
	b, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	first := -1
	for k := 0; k+32 <= len(b); k += 32 {
		r := b[k : k+32]
		switch {
		case r[11] == 0x0f && r[30] == 'X' && r[31] == 0:
			r[30], r[31], first = 0x3d, 0xd8, k
		case r[11] == 0x0f && r[1] == 'Y' && r[2] == 0:
			r[1], r[2] = 0x00, 0xde
		}
	}
	if first < 0 {
		t.Fatal("the record was not found")
	}
	if err := os.WriteFile(image, b, 0o600); err != nil {
		t.Fatal(err)
	}
	f := open(t, image, fat.Format())
	if _, err := f.Walk("abcdefghijkl😀no"); err != nil {
		for e := range f.ReadDir(f.Root(), 0) {
			t.Logf("%q", e.Name)
		}
		t.Error(err)
	}
}

func digest(b []byte) string { return fmt.Sprintf("%x", sha256.Sum256(b)) }
