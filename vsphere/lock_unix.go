//go:build !windows

package vsphere

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
)

// lockFile takes the file's lock or fails with [ErrLive]. The kernel frees it when the last descriptor is closed, also
// when the process is killed.
func lockFile(f *os.File) error {
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case errors.Is(err, syscall.EWOULDBLOCK):
			return &Error{Kind: ErrLive, Object: f.Name(), Summary: "another process runs the operation"}
		}
		return err
	}
}

// createLocked makes a file that appears under its name locked and begun: nobody can take it for a dead operation's.
func createLocked(name string, begin func(*os.File) error) (*os.File, error) {
	f, err := os.CreateTemp(filepath.Dir(name), ".begin-*")
	if err != nil {
		return nil, err
	}
	if err = lockFile(f); err == nil {
		err = begin(f)
	}
	if err == nil {
		err = os.Link(f.Name(), name) // unlike a renaming it does not replace
	}
	os.Remove(f.Name())
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// removeLocked removes a locked file and gives its lock back, in this order.
func removeLocked(f *os.File, name string) error {
	return errors.Join(os.Remove(name), f.Close())
}

// syncDir makes the names in a directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
