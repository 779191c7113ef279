package mount_test

import (
	"os"
	"strings"
	"testing"

	"github.com/vmkeep/vmkeep/vddk/mount"
	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
	"github.com/vmkeep/vmkeep/vddk/mount/mounttest"
)

// The matrix: real file systems, made by the real mkfs, filled through the kernel, read back by the kernel and by
// us. Everything must be equal.

const mib = 1 << 20

func ext(options string) string { return "mke2fs -q -F -E nodiscard " + options }

func extImages() map[string]mounttest.Image {
	return map[string]mounttest.Image{
		"ext4":             {Size: 160 * mib, Mkfs: ext("-t ext4"), Fill: grow(mounttest.Tree{Files: 3000, Names: 12000})},
		"ext4 huge":        {Size: 128 * mib, Mkfs: ext("-t ext4"), Fill: grow(mounttest.Tree{Huge: true})},
		"ext4 inline 1k":   {Size: 96 * mib, Mkfs: ext("-t ext4 -b 1024 -O inline_data -I 256")},
		"ext4 64bit meta":  {Size: 128 * mib, Mkfs: ext("-t ext4 -b 1024 -O 64bit,meta_bg,^resize_inode,ea_inode,inline_data,large_dir -I 512")},
		"ext4 128":         {Size: 96 * mib, Mkfs: ext("-t ext4 -b 2048 -I 128"), Fill: grow(mounttest.Tree{Minor: true})},
		"ext4 bigalloc":    {Size: 192 * mib, Mkfs: ext("-t ext4 -O bigalloc -C 16384")},
		"ext4 orphan file": {Size: 96 * mib, Mkfs: ext("-t ext4 -O metadata_csum_seed,orphan_file")},
		"ext4 no csum":     {Size: 96 * mib, Mkfs: ext("-t ext4 -O ^metadata_csum,^64bit,^flex_bg,sparse_super2"), Fill: grow(mounttest.Tree{Minor: true})},
		"ext3":             {Size: 96 * mib, Mkfs: ext("-t ext3"), Fill: grow(mounttest.Tree{Minor: true, Names: 4000})},
		"ext3 1k":          {Size: 96 * mib, Mkfs: ext("-t ext3 -b 1024"), Fill: grow(mounttest.Tree{Minor: true})},
		"ext2 1k":          {Size: 96 * mib, Mkfs: ext("-t ext2 -b 1024"), Fill: grow(mounttest.Tree{Minor: true, Huge: false})},
		"ext2 rev 0":       {Size: 96 * mib, Mkfs: ext("-t ext2 -r 0 -b 4096"), Fill: grow(mounttest.Tree{Minor: true})},
	}
}

// File systems cut off from their disk while in use: what we see without writing must be what the kernel sees after
// it replayed the journal.
func extCrashes() map[string]mounttest.Image {
	return map[string]mounttest.Image{
		"ext4":         {Size: 64 * mib, Mkfs: ext("-t ext4"), Crash: mounttest.JournalFlushed, Fill: churn(1)},
		"ext4 as is":   {Size: 64 * mib, Mkfs: ext("-t ext4"), Crash: mounttest.AsItLies, Fill: churn(2)},
		"ext4 data":    {Size: 96 * mib, Mkfs: ext("-t ext4 -J size=16"), Mount: "data=journal", Crash: mounttest.JournalFlushed, Fill: churn(3)},
		"ext3 1k":      {Size: 64 * mib, Mkfs: ext("-t ext3 -b 1024"), Crash: mounttest.JournalFlushed, Fill: churn(4)},
		"ext4 v1 sums": {Size: 64 * mib, Mkfs: ext("-t ext4 -O ^metadata_csum"), Mount: "journal_checksum", Crash: mounttest.JournalFlushed, Fill: churn(5)},
		"ext4 async":   {Size: 64 * mib, Mkfs: ext("-t ext4 -O ^64bit"), Mount: "journal_async_commit,data=writeback", Crash: mounttest.AsItLies, Fill: churn(6)},
		"ext4 wrapped": {Size: 96 * mib, Mkfs: ext("-t ext4 -J size=4"), Crash: mounttest.JournalFlushed, Fill: churn(7)},
	}
}

func TestExtJournalEqualsKernelsReplay(t *testing.T) {
	mounttest.Need(t, "mke2fs", "mount")
	for name, image := range extCrashes() {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) { equalsKernel(t, image) })
	}
}

// churn grows a tree and then changes it at random, so that metadata was freed and used again within the journal.
func churn(seed uint64) func(string) error {
	return func(dir string) error {
		if err := mounttest.Grow(dir, mounttest.Tree{Files: 300, Names: 300, Fill: 1, Minor: true}); err != nil {
			return err
		}
		return mounttest.Churn(dir, seed, 1500)
	}
}

func grow(t mounttest.Tree) func(string) error {
	return func(dir string) error { return mounttest.Grow(dir, t) }
}

func TestExtEqualsKernel(t *testing.T) {
	mounttest.Need(t, "mke2fs", "mount")
	for name, image := range extImages() {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) { equalsKernel(t, image) })
	}
}

// equalsKernel makes the image, compares, and returns its path.
func equalsKernel(t *testing.T, image mounttest.Image) string {
	t.Parallel()
	path, truth := image.Make(t, t.TempDir())
	f := openOnly(t, path)
	got, err := mounttest.Read(f)
	if err != nil {
		t.Errorf("read: %v", err)
	}
	if len(truth) < 1000 {
		t.Errorf("the truth has %d entries only", len(truth))
	}
	for _, d := range mounttest.Diff(truth, got) {
		t.Error(d)
	}
	replayed := false
	for _, n := range f.Info().Notes {
		replayed = replayed || strings.Contains(n.Text, "was replayed")
		if n.Uncertain {
			t.Errorf("uncertain: %s", n.Text)
		}
	}
	if replayed != (image.Crash != mounttest.Clean) {
		t.Errorf("journal replayed: %v, notes %v", replayed, f.Info().Notes)
	}
	return path
}

// openOnly opens the one file system of an image.
func openOnly(t testing.TB, path string) *guestfs.FS {
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
	m := mount.Open([]mount.Disk{{Name: "disk", R: img, Size: st.Size()}})
	vs := m.Volumes()
	if len(vs) != 1 {
		t.Fatalf("%d volumes, %v", len(vs), m.Problems())
	}
	f, err := vs[0].Open()
	if err != nil {
		t.Fatal(err)
	}
	return f
}
