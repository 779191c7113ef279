//go:build !windows

package repo

import (
	"errors"
	"os"
	"syscall"
)

// lockFile locks a file, or fails at once. The kernel frees it when the file is closed, also when the process is killed.
func lockFile(f *os.File, kind lockKind) error {
	how := syscall.LOCK_SH
	if kind == lockAlone {
		how = syscall.LOCK_EX
	}
	for {
		if err := syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB); !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}
