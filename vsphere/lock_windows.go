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

// createLocked makes a locked file. Windows neither links nor renames open files, so there is a moment between making
// and locking; a recovery that looks then takes the empty file away and this call fails, with nothing done.
func createLocked(name string, begin func(*os.File) error) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if err = lockFile(f); err == nil {
		err = begin(f)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// removeLocked gives the lock back and removes the file, in this order: open files cannot be removed. Whoever takes it
// in between finds nothing to undo, and removes it.
func removeLocked(f *os.File, name string) error {
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// syncDir does nothing: NTFS journals names.
func syncDir(string) error { return nil }
