package engine

import (
	"errors"
	"fmt"
	"os"
	"syscall"
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
