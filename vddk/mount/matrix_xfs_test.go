package mount_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmkeep/vmkeep/vddk/mount"
	"github.com/vmkeep/vmkeep/vddk/mount/mounttest"
)

// mkfs.xfs refuses what is below 300 MiB unless told that nobody supports it.
func xfs(options string) string { return "mkfs.xfs --unsupported -q -f -K " + options }

func xfsImages() map[string]mounttest.Image {
	return map[string]mounttest.Image{
		"default":       {Size: 128 * mib, Mkfs: xfs(""), Fill: grow(mounttest.Tree{Files: 3000, Names: 12000})},
		"1k nrext64":    {Size: 128 * mib, Mkfs: xfs("-b size=1024 -n size=8192 -i nrext64=1"), Fill: grow(mounttest.Tree{Huge: true})},
		"reflink 64k":   {Size: 128 * mib, Mkfs: xfs("-m reflink=1,rmapbt=1 -n size=65536 -i size=2048"), Fill: reflinked},
		"old times 512": {Size: 128 * mib, Mkfs: xfs("-m bigtime=0,reflink=0,finobt=0 -i size=512,sparse=0 -d agcount=8")},
		"fragments 1k":  {Size: 128 * mib, Mkfs: xfs("-b size=1024 -d agcount=2"), Fill: shattered},
		"attr trees":    {Size: 128 * mib, Mkfs: xfs("-b size=4096"), Fill: attributed},
		"metadata UUID": {Size: 128 * mib, Mkfs: xfs("-m uuid=0d9cc5b4-63a7-4ba2-b0a5-3a1d1dfe2d5b -L label12bytes"), Fill: grow(mounttest.Tree{Names: 2000})},
	}
}

func TestXFSEqualsKernel(t *testing.T) {
	mounttest.Need(t, "mkfs.xfs", "mount")
	for name, image := range xfsImages() {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) { equalsKernel(t, image) })
	}
}

func xfsCrashes() map[string]mounttest.Image {
	return map[string]mounttest.Image{
		"flushed": {Size: 128 * mib, Mkfs: xfs(""), Crash: mounttest.JournalFlushed, Fill: churn(1)},
		"as is":   {Size: 128 * mib, Mkfs: xfs(""), Crash: mounttest.AsItLies, Fill: churn(2)},
		"1k 256k": {Size: 128 * mib, Mkfs: xfs("-b size=1024 -i nrext64=1"), Mount: "logbsize=256k", Crash: mounttest.JournalFlushed, Fill: churn(3)},
		"stripe":  {Size: 128 * mib, Mkfs: xfs("-l su=32k"), Crash: mounttest.JournalFlushed, Fill: churn(4)},
	}
}

func TestXFSLogEqualsKernelsReplay(t *testing.T) {
	mounttest.Need(t, "mkfs.xfs", "mount")
	for name, image := range xfsCrashes() {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) { equalsKernel(t, image) })
	}
}

// reflinked shares extents between files and breaks some of them again.
func reflinked(dir string) error {
	if err := mounttest.Grow(dir, mounttest.Tree{Huge: false}); err != nil {
		return err
	}
	from, err := os.Open(filepath.Join(dir, "big/rand.bin"))
	if err != nil {
		return err
	}
	defer from.Close()
	for k := range 5 {
		to, err := os.Create(filepath.Join(dir, fmt.Sprintf("big/clone%d.bin", k)))
		if err != nil {
			return err
		}
		defer to.Close()
		if err := unix.IoctlFileClone(int(to.Fd()), int(from.Fd())); err != nil {
			return fmt.Errorf("clone: %w", err)
		}
		for i := range int64(20 * k) {
			if _, err := to.WriteAt([]byte("changed after it was cloned"), i*50021); err != nil {
				return err
			}
		}
	}
	return nil
}

// shattered makes files of thousands of extents, whose maps are trees of more than one level.
func shattered(dir string) error {
	if err := mounttest.Grow(dir, mounttest.Tree{Files: 400}); err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(dir, "shattered"))
	if err != nil {
		return err
	}
	defer f.Close()
	for i := range int64(12000) {
		if _, err := f.WriteAt([]byte(fmt.Sprint(i)), i*2048); err != nil {
			return err
		}
	}
	return nil
}

// attributed makes files with so many attributes that they need leaves, nodes and blocks for values.
func attributed(dir string) error {
	if err := mounttest.Grow(dir, mounttest.Tree{Files: 800}); err != nil {
		return err
	}
	for _, n := range []int{30, 200, 3000} {
		p := filepath.Join(dir, fmt.Sprintf("attr%d", n))
		if err := os.WriteFile(p, nil, 0o600); err != nil {
			return err
		}
		for i := range n {
			v := strings.Repeat(fmt.Sprint(i), 1+i%40)
			if i%97 == 0 {
				v = strings.Repeat(fmt.Sprint(i, " "), 3000)
			}
			// The list of names that listxattr can return ends at 64 KiB.
			if err := unix.Lsetxattr(p, fmt.Sprintf("user.%d", i), []byte(v), 0); err != nil {
				return err
			}
		}
	}
	return nil
}

// wrapped writes the log round until its head is close to the end of the ring, and then churns, so that what must
// be replayed lies at both ends.
func wrapped(seed uint64) func(string) error {
	return func(dir string) error {
		f, err := os.Create(filepath.Join(dir, "wrap"))
		if err != nil {
			return err
		}
		defer f.Close()
		for round := range 200 {
			for i := range 20 {
				if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("wrap%d", i)), []byte(fmt.Sprint(round)), 0o600); err != nil {
					return err
				}
				if _, err := f.WriteAt([]byte{1}, int64(round*20+i)*4096); err != nil {
					return err
				}
				if err := f.Sync(); err != nil {
					return err
				}
			}
			// 6 MiB are 12,288 sectors.
			if _, head, err := replayedRange(filepath.Join(dir, "../image")); err != nil || head > 10800 {
				if err != nil {
					return err
				}
				break
			}
		}
		return churn(seed)(dir)
	}
}

// replayedRange tells which sectors of the log would be replayed now.
func replayedRange(image string) (from, to int, err error) {
	img, err := os.Open(image)
	if err != nil {
		return 0, 0, err
	}
	defer img.Close()
	st, err := img.Stat()
	if err != nil {
		return 0, 0, err
	}
	vs := mount.Open([]mount.Disk{{Name: "disk", R: img, Size: st.Size()}}).Volumes()
	if len(vs) != 1 {
		return 0, 0, fmt.Errorf("%d volumes", len(vs))
	}
	f, err := vs[0].Open()
	if err != nil {
		return 0, 0, err
	}
	for _, n := range f.Info().Notes {
		if _, err := fmt.Sscanf(n.Text, "the log was replayed in memory (from sector %d to %d", &from, &to); err == nil {
			return from, to, nil
		}
	}
	return 0, 0, fmt.Errorf("no log was replayed: %v", f.Info().Notes)
}

func TestXFSLogAcrossTheEndOfTheRing(t *testing.T) {
	mounttest.Need(t, "mkfs.xfs", "mount")
	for seed, options := range map[uint64]string{5: "-l size=6m", 6: "-l size=6m -b size=1024"} {
		t.Run(strings.ReplaceAll(options, " ", ""), func(t *testing.T) {
			image := mounttest.Image{Size: 128 * mib, Mkfs: xfs(options), Crash: mounttest.JournalFlushed, Fill: wrapped(seed)}
			path := equalsKernel(t, image)
			if from, to, err := replayedRange(path); err != nil || from <= to {
				t.Errorf("sectors %d to %d of the log were replayed, %v: not across its end", from, to, err)
			}
		})
	}
}
