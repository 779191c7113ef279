//go:build unix

package main

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// appends reports whether writes to f always go to its end.
func appends(f *os.File) bool {
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	return err != nil || flags&unix.O_APPEND != 0
}

// isFull reports whether err says that a file system has no room.
func isFull(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }
