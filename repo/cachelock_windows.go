package repo

import (
	"os"

	"golang.org/x/sys/windows"
)

// lockFile locks a file, or fails at once. The kernel frees it when the file is closed, also when the process is killed.
func lockFile(f *os.File, kind lockKind) error {
	how := uint32(windows.LOCKFILE_FAIL_IMMEDIATELY)
	if kind == lockAlone {
		how |= windows.LOCKFILE_EXCLUSIVE_LOCK
	}
	return windows.LockFileEx(windows.Handle(f.Fd()), how, 0, 1, 0, &windows.Overlapped{})
}
