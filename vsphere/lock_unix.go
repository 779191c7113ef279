//go:build !windows

package vsphere

import (
	"errors"
	"os"
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

// syncDir makes the names in a directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
