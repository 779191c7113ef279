package vsphere

import (
	"errors"
	"os"

	"golang.org/x/sys/windows"
)

// lockFile takes the file's lock or fails with [ErrLive]. Windows locks are mandatory, so a byte far behind the end
// stands for the file: the lines stay readable.
func lockFile(f *os.File) error {
	at := windows.Overlapped{OffsetHigh: 1 << 16}
	err := windows.LockFileEx(windows.Handle(f.Fd()), windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, &at)
	if errors.Is(err, windows.ERROR_LOCK_VIOLATION) || errors.Is(err, windows.ERROR_IO_PENDING) {
		return &Error{Kind: ErrLive, Object: f.Name(), Summary: "another process runs the operation"}
	}
	return err
}

// syncDir does nothing: NTFS journals names.
func syncDir(string) error { return nil }
