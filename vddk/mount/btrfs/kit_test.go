package btrfs_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmkeep/vmkeep/vddk/mount/btrfs"
	"github.com/vmkeep/vmkeep/vddk/mount/device"
	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
	"github.com/vmkeep/vmkeep/vddk/mount/mounttest"
)

const mib = 1 << 20

func run(t testing.TB, argv ...string) string {
	t.Helper()
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// pool is a Btrfs on several image files.
type pool struct {
	sizes []int64 // bytes
	mkfs  string
	mount string
	fill  func(dir string) error
}

// make makes the images and returns their paths and what the kernel sees.
func (p pool) make(t *testing.T) ([]string, mounttest.Manifest) {
	t.Helper()
	dir := t.TempDir()
	var images []string
	for k, size := range p.sizes {
		path := filepath.Join(dir, fmt.Sprintf("disk%d", k))
		if err := mounttest.Blank(path, size); err != nil {
			t.Fatal(err)
		}
		images = append(images, path)
	}
	loops := attach(t, images, "")
	argv := append(strings.Fields("mkfs.btrfs -q -f -K "+p.mkfs), loops...)
	run(t, argv...)
	mounted(t, loops, p.mount, func(dir string) {
		if err := p.fill(dir); err != nil {
			t.Fatalf("fill: %v", err)
		}
		unix.Sync()
	})
	var want mounttest.Manifest
	mounted(t, loops, "ro", func(dir string) {
		var err error
		if want, err = mounttest.Truth(dir); err != nil {
			t.Fatalf("what the kernel sees: %v", err)
		}
	})
	for _, l := range loops {
		run(t, "losetup", "-d", l)
	}
	return images, want
}

func attach(t *testing.T, images []string, options string) []string {
	t.Helper()
	var loops []string
	for _, i := range images {
		loops = append(loops, run(t, append(append([]string{"losetup"}, strings.Fields(options)...), "-f", "--show", i)...))
	}
	return loops
}

func mounted(t *testing.T, loops []string, options string, fn func(dir string)) {
	t.Helper()
	dir := t.TempDir()
	for _, l := range loops {
		options += ",device=" + l
	}
	run(t, "mount", "-t", "btrfs", "-o", strings.TrimPrefix(options, ","), loops[0], dir)
	defer func() {
		if err := mounttest.Unmount(dir); err != nil {
			t.Error(err)
		}
	}()
	fn(dir)
}

func sources(t testing.TB, images []string) []*guestfs.Source {
	t.Helper()
	var out []*guestfs.Source
	for n, path := range images {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		st, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, guestfs.NewSource(device.Disk(f, n, st.Size())))
	}
	return out
}

func open(t testing.TB, images []string) *guestfs.FS {
	t.Helper()
	f, err := guestfs.Open(btrfs.Format(), sources(t, images))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func equal(t *testing.T, f *guestfs.FS, want mounttest.Manifest) {
	t.Helper()
	got, err := mounttest.Read(f)
	if err != nil {
		t.Error(err)
	}
	for i := range got {
		// What a snapshot shows of a subvolume within is made up by the kernel: it has no times.
		for _, w := range want {
			if w.Path == got[i].Path && w.Type == "directory" && got[i].Mtime == "" {
				got[i].Mtime, got[i].Atime, got[i].Ctime, got[i].Btime = w.Mtime, w.Atime, w.Ctime, w.Btime
			}
		}
	}
	for _, d := range mounttest.Diff(want, got) {
		t.Error(d)
	}
}
