package engine

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// allocate gives a file the space for size bytes, which read as zeros where nothing was written. An error that wraps
// [errors.ErrUnsupported] means that the file system cannot: write the zeros.
func allocate(f *os.File, size int64) error {
	if size == 0 {
		return nil
	}
	for {
		err := syscall.Fallocate(int(f.Fd()), 0, 0, size)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case errors.Is(err, syscall.EOPNOTSUPP), errors.Is(err, syscall.ENOSYS):
			return fmt.Errorf("%w: %v", errors.ErrUnsupported, err)
		}
		return err
	}
}

// syncFileSystem makes all of the file system durable that a directory lies on: one call instead of one for each of
// many thousand files. It fails where writing failed since the directory was opened (syncfs(2), Linux 5.8).
func syncFileSystem(dir *os.File) error {
	return unix.Syncfs(int(dir.Fd()))
}

// beginWriteback starts sending a range of a file to the storage, and does not wait for it. It makes nothing durable: Sync
// does, and tells of errors.
func beginWriteback(f *os.File, off, n int64) error {
	for {
		err := unix.SyncFileRange(int(f.Fd()), off, n, unix.SYNC_FILE_RANGE_WRITE)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case errors.Is(err, syscall.ESPIPE), errors.Is(err, syscall.ENOSYS), errors.Is(err, syscall.EINVAL):
			return nil // not that kind of file or system: Sync does all of it
		}
		return err
	}
}
