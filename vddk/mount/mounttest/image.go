package mounttest

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Need ends the test unless it runs as root on Linux with the tools named. Under CI=true that is a failure,
// elsewhere the test is skipped.
func Need(t testing.TB, tools ...string) {
	t.Helper()
	if os.Geteuid() != 0 {
		refuse(t, "root, for loop mounts")
	}
	NeedTools(t, tools...)
}

// NeedTools is Need without root.
func NeedTools(t testing.TB, tools ...string) {
	t.Helper()
	lack := ""
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			lack = tool
		}
	}
	if lack != "" {
		refuse(t, lack)
	}
}

func refuse(t testing.TB, lack string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("this test needs %s, and CI may not go without it", lack)
	}
	t.Skipf("needs %s", lack)
}

// Image is a disk image with a file system.
type Image struct {
	Size int64  // bytes
	Mkfs string // command; the image is its last argument
	// Mount are mount options beside loop.
	Mount string
	// Fill grows the tree; the zero function is Grow(dir, Tree{}).
	Fill func(dir string) error
	// Crash cuts the file system off instead of unmounting it, after Fill returned: what then lies on the disk
	// needs its journal.
	Crash Crash
}

// Crash says how a file system ends.
type Crash int

// How a file system ends: unmounted, or cut off with the journal written (and little else), or as it lies.
const (
	Clean Crash = iota
	JournalFlushed
	AsItLies
)

// Make makes the image in dir and returns its path and what the kernel sees in it; of a file system that was cut
// off, what the kernel sees in a copy after it replayed the journal.
func (i Image) Make(t testing.TB, dir string) (string, Manifest) {
	t.Helper()
	path := filepath.Join(dir, "image")
	if err := Blank(path, i.Size); err != nil {
		t.Fatal(err)
	}
	run(t, append(strings.Fields(i.Mkfs), path)...)
	fill := i.Fill
	if fill == nil {
		fill = func(dir string) error { return Grow(dir, Tree{}) }
	}
	Mounted(t, path, i.Mount, func(mnt string) {
		if err := fill(mnt); err != nil {
			t.Fatalf("grow: %v", err)
		}
		if i.Crash != Clean {
			if err := shutdown(mnt, i.Crash); err != nil {
				t.Fatalf("cut off: %v", err)
			}
		}
	})
	see := path
	if i.Crash != Clean {
		see = filepath.Join(dir, "replayed")
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(see, b, 0o600); err != nil {
			t.Fatal(err)
		}
		defer os.Remove(see)
		// Mounting for reading makes a read-only loop device, which no journal can be replayed to.
		Mounted(t, see, strings.TrimPrefix(i.Mount+",noatime", ","), func(string) {})
	}
	var truth Manifest
	ro := "ro"
	if i.Mount != "" {
		ro += "," + i.Mount
	}
	Mounted(t, see, ro, func(mnt string) {
		var err error
		if truth, err = Truth(mnt); err != nil {
			t.Fatalf("what the kernel sees: %v", err)
		}
	})
	return path, truth
}

// Blank makes a file full of 0xA5: whoever reads what was never written shows it.
func Blank(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	b := bytes.Repeat([]byte{0xa5}, 1<<20)
	for size > 0 && err == nil {
		n := min(size, int64(len(b)))
		_, err = f.Write(b[:n])
		size -= n
	}
	return errors.Join(err, f.Close())
}

// Mounted mounts an image and calls fn with the directory.
func Mounted(t testing.TB, image, options string, fn func(dir string)) {
	t.Helper()
	dir := filepath.Join(filepath.Dir(image), "mnt")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if options != "" {
		options = "," + options
	}
	run(t, "mount", "-o", "loop"+options, image, dir)
	defer run(t, "umount", dir)
	fn(dir)
}

// shutdown cuts a file system off from its disk (EXT4_IOC_SHUTDOWN, XFS_IOC_GOINGDOWN: the same number).
func shutdown(dir string, c Crash) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	flags := uint32(c) // 1: with the log flushed, 2: without
	const request = 0x8004587d
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, d.Fd(), request, uintptr(unsafe.Pointer(&flags))); e != 0 {
		return e
	}
	return nil
}

func run(t testing.TB, argv ...string) {
	t.Helper()
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
}
