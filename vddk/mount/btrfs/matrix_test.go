package btrfs_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
	"github.com/vmkeep/vmkeep/vddk/mount/mounttest"
)

func tree(t mounttest.Tree) func(string) error {
	return func(dir string) error {
		return errors.Join(mounttest.Grow(dir, t), volumes(dir))
	}
}

// volumes makes subvolumes, snapshots, one subvolume within another and a snapshot of that, clones, and files without
// checksums.
func volumes(dir string) error {
	in := func(p ...string) string { return filepath.Join(append([]string{dir}, p...)...) }
	btrfs := func(argv ...string) error {
		if out, err := exec.Command("btrfs", argv...).CombinedOutput(); err != nil {
			return fmt.Errorf("btrfs %s: %w\n%s", strings.Join(argv, " "), err, out)
		}
		return nil
	}
	write := func(p string, n int) error {
		return os.WriteFile(p, []byte(strings.Repeat(p+" ", n)), 0o644)
	}
	clone := func(from, to string) error {
		f, err := os.Open(from)
		if err != nil {
			return err
		}
		defer f.Close()
		g, err := os.Create(to)
		if err != nil {
			return err
		}
		defer g.Close()
		if err := unix.IoctlFileClone(int(g.Fd()), int(f.Fd())); err != nil {
			return fmt.Errorf("clone: %w", err)
		}
		for i := range int64(30) {
			if _, err := g.WriteAt([]byte("changed after it was cloned"), i*50021); err != nil {
				return err
			}
		}
		return g.Sync()
	}
	return errors.Join(
		btrfs("subvolume", "create", in("sub")), write(in("sub/one"), 1), write(in("sub/two"), 5000),
		btrfs("subvolume", "create", in("sub/inner")), write(in("sub/inner/deep"), 100),
		btrfs("subvolume", "snapshot", "-r", in("sub"), in("snap")),
		write(in("sub/one"), 3), write(in("sub/after"), 7), os.Remove(in("sub/two")),
		btrfs("subvolume", "snapshot", in("snap"), in("snap2")), write(in("snap2/two"), 9),
		btrfs("subvolume", "create", in("gone")), write(in("gone/file"), 9), btrfs("subvolume", "delete", in("gone")),
		clone(in("big/rand.bin"), in("big/clone.bin")), clone(in("big/text.txt"), in("big/clone.txt")),
		os.Mkdir(in("nocow"), 0o755), exec.Command("chattr", "+C", in("nocow")).Run(), write(in("nocow/file"), 20000),
	)
}

var pools = map[string]pool{
	"default":      {sizes: []int64{256 * mib}, fill: tree(mounttest.Tree{Files: 2000, Names: 5000})},
	"huge":         {sizes: []int64{256 * mib}, mkfs: "-O ^no-holes -n 4096", fill: tree(mounttest.Tree{Huge: true})},
	"zlib mixed":   {sizes: []int64{256 * mib}, mkfs: "--mixed", mount: "compress-force=zlib", fill: tree(mounttest.Tree{})},
	"lzo":          {sizes: []int64{256 * mib}, mkfs: "--csum xxhash", mount: "compress-force=lzo", fill: tree(mounttest.Tree{})},
	"zstd 64k":     {sizes: []int64{256 * mib}, mkfs: "-n 65536 --csum blake2", mount: "compress-force=zstd:9", fill: tree(mounttest.Tree{})},
	"sha256":       {sizes: []int64{256 * mib}, mkfs: "--csum sha256", mount: "max_inline=0", fill: tree(mounttest.Tree{})},
	"raid0":        {sizes: []int64{160 * mib, 160 * mib, 160 * mib}, mkfs: "-d raid0 -m raid1", mount: "compress=zstd", fill: tree(mounttest.Tree{})},
	"raid10":       {sizes: []int64{128 * mib, 128 * mib, 128 * mib, 128 * mib}, mkfs: "-d raid10 -m raid10", fill: tree(mounttest.Tree{})},
	"raid1c3":      {sizes: []int64{192 * mib, 192 * mib, 192 * mib}, mkfs: "-d raid1c3 -m raid1c3", fill: tree(mounttest.Tree{})},
	"single three": {sizes: []int64{128 * mib, 160 * mib, 192 * mib}, mkfs: "-d single -m raid1", fill: tree(mounttest.Tree{})},
	"raid6":        {sizes: []int64{160 * mib, 160 * mib, 160 * mib, 160 * mib}, mkfs: "-d raid6 -m raid6", fill: tree(mounttest.Tree{})},
}

func TestEqualsKernel(t *testing.T) {
	mounttest.Need(t, "mkfs.btrfs", "btrfs", "losetup", "mount", "chattr")
	for name, p := range pools {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			t.Parallel()
			images, want := p.make(t)
			if len(want) < 1700 {
				t.Errorf("the truth has %d entries only", len(want))
			}
			f := open(t, images)
			equal(t, f, want)
			for _, n := range f.Info().Notes {
				t.Errorf("note: %s", n.Text)
			}
		})
	}
}

// spoil overwrites everything of a device but its superblock.
func spoil(t *testing.T, path string) {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	junk := make([]byte, mib)
	for i := range junk {
		junk[i] = byte(i * 7)
	}
	for off := int64(mib); off < st.Size(); off += mib {
		if _, err := f.WriteAt(junk[:min(mib, st.Size()-off)], off); err != nil {
			t.Fatal(err)
		}
	}
}

func TestBadAndMissingDevicesAreReadFromOthers(t *testing.T) {
	mounttest.Need(t, "mkfs.btrfs", "btrfs", "losetup", "mount", "chattr")
	// Without checksums a bad copy cannot be told from a good one: no such files here.
	grow := func(dir string) error { return mounttest.Grow(dir, mounttest.Tree{}) }
	for name, p := range map[string]pool{
		"raid1":  {sizes: []int64{192 * mib, 192 * mib}, mkfs: "-d raid1 -m raid1", mount: "compress=zlib", fill: grow},
		"raid5":  {sizes: []int64{160 * mib, 160 * mib, 160 * mib}, mkfs: "-d raid5 -m raid5", fill: grow},
		"raid10": {sizes: []int64{128 * mib, 128 * mib, 128 * mib, 128 * mib}, mkfs: "-d raid10 -m raid1", fill: grow},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			images, want := p.make(t)
			equal(t, open(t, images[1:]), want)
			spoil(t, images[0])
			equal(t, open(t, images), want)
		})
	}
}

func TestSpoiltSingleDeviceIsToldAndNotReadWrongly(t *testing.T) {
	mounttest.Need(t, "mkfs.btrfs", "btrfs", "losetup", "mount", "chattr")
	p := pool{sizes: []int64{256 * mib}, mkfs: "-m single", fill: func(dir string) error {
		return os.WriteFile(filepath.Join(dir, "file"), []byte(strings.Repeat("bytes that are looked for ", 10000)), 0o644)
	}}
	images, _ := p.make(t)
	f := open(t, images)
	id, err := f.Walk("file")
	if err != nil {
		t.Fatal(err)
	}
	file, err := f.Open(id, "")
	if err != nil {
		t.Fatal(err)
	}
	runs, err := file.Runs()
	if err != nil || runs[0].Kind != guestfs.Data {
		t.Fatalf("%v, %v", runs, err)
	}
	b, err := os.ReadFile(images[0])
	if err != nil {
		t.Fatal(err)
	}
	at := strings.Index(string(b), "bytes that are looked for")
	b[at+5000] ^= 1
	if err := os.WriteFile(images[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	if file, err = open(t, images).Open(id, ""); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 100)
	if _, err := file.ReadAt(got, 20000); err != nil {
		t.Errorf("a sound sector: %v", err)
	}
	if _, err := file.ReadAt(got, 4990); !errors.Is(err, guestfs.ErrDamaged) {
		t.Errorf("a bad sector: %v", err)
	}
}
