package mounttest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
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
	// Fill grows the tree; nil is Grow(dir, Tree{}).
	Fill func(dir string) error
	// Crash cuts the file system off instead of unmounting it, after Fill returned: what then lies on the disk
	// needs its journal.
	Crash Crash
	// Offline is for file systems that this kernel cannot mount: mkfs itself copies the tree that Fill grew in a
	// directory. It returns further arguments of mkfs. The truth is that directory.
	Offline func(dir string) ([]string, error)
	// Forget blanks in the truth what mkfs does not copy.
	Forget func(*Entry)
}

// Crash says how a file system ends.
type Crash int

// How a file system ends: unmounted, or cut off with the journal written (and little else), or as it lies.
const (
	Clean Crash = iota
	JournalFlushed
	AsItLies
)

// Make is Build in a test.
func (i Image) Make(t testing.TB, dir string) (string, Manifest) {
	t.Helper()
	path, truth, err := i.Build(dir)
	if err != nil {
		t.Fatal(err)
	}
	return path, truth
}

// Build makes the image in dir and returns its path and what the kernel sees in it; of a file system that was cut
// off, what the kernel sees in a copy after it replayed the journal.
func (i Image) Build(dir string) (string, Manifest, error) {
	path := filepath.Join(dir, "image")
	if err := Blank(path, i.Size); err != nil {
		return "", nil, err
	}
	fill := i.Fill
	if fill == nil {
		fill = func(dir string) error { return Grow(dir, Tree{}) }
	}
	if i.Offline != nil {
		truth, err := i.offline(dir, path, fill)
		return path, truth, err
	}
	if err := run(append(strings.Fields(i.Mkfs), path)...); err != nil {
		return "", nil, err
	}
	err := Mounted(path, i.Mount, func(mnt string) error {
		if err := fill(mnt); err != nil {
			return fmt.Errorf("grow: %w", err)
		}
		if i.Crash != Clean {
			return shutdown(mnt, i.Crash)
		}
		return nil
	})
	if err != nil {
		return "", nil, err
	}
	see := path
	if i.Crash != Clean {
		see = filepath.Join(dir, "replayed")
		b, err := os.ReadFile(path)
		if err != nil {
			return "", nil, err
		}
		if err := os.WriteFile(see, b, 0o600); err != nil {
			return "", nil, err
		}
		defer os.Remove(see)
		// Mounting for reading makes a read-only loop device, which no journal can be replayed to.
		if err := Mounted(see, strings.TrimPrefix(i.Mount+",noatime", ","), func(string) error { return nil }); err != nil {
			return "", nil, err
		}
	}
	var truth Manifest
	err = Mounted(see, strings.TrimSuffix("ro,"+i.Mount, ","), func(mnt string) (err error) {
		truth, err = Truth(mnt)
		return err
	})
	return path, truth, err
}

// offline makes an image of a file system that is never mounted.
func (i Image) offline(dir, path string, fill func(string) error) (Manifest, error) {
	src := filepath.Join(dir, "tree")
	if err := os.Mkdir(src, 0o755); err != nil {
		return nil, err
	}
	if err := fill(src); err != nil {
		return nil, fmt.Errorf("grow: %w", err)
	}
	args, err := i.Offline(src)
	if err != nil {
		return nil, err
	}
	truth, err := Truth(src)
	if err != nil {
		return nil, err
	}
	for k := range truth {
		truth[k].Atime, truth[k].Ctime, truth[k].Btime = "", "", ""
		if i.Forget != nil {
			i.Forget(&truth[k])
		}
	}
	return truth, run(slices.Concat(strings.Fields(i.Mkfs), args, []string{path})...)
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
func Mounted(image, options string, fn func(dir string) error) (err error) {
	dir := filepath.Join(filepath.Dir(image), "mnt")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := run("mount", "-o", strings.TrimSuffix("loop,"+options, ","), image, dir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, Unmount(dir)) }()
	return fn(dir)
}

// Unmount unmounts dir. A process that another test starts at the same time holds, from fork to exec, whatever was
// open here (O_CLOEXEC acts at exec only): so EBUSY is tried again, for ten seconds.
func Unmount(dir string) error {
	deadline := time.Now().Add(10 * time.Second)
	for tick := time.NewTicker(10 * time.Millisecond); ; <-tick.C {
		err := unix.Unmount(dir, 0)
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			tick.Stop()
			return os.NewSyscallError("umount "+dir, err)
		}
	}
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

func run(argv ...string) error {
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(argv, " "), err, out)
	}
	return nil
}

// Sync writes everything of a mounted file system to its disk.
func Sync(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(d.Fd())), d.Close())
}
