package engine_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// processes lists the processes that run a program.
func processes(program string) (pids []int, err error) {
	exes, err := filepath.Glob("/proc/[0-9]*/exe")
	for _, exe := range exes {
		var pid int
		if at, err := os.Readlink(exe); err != nil || at != program {
			continue // another, or gone
		}
		if _, err := fmt.Sscanf(exe, "/proc/%d/exe", &pid); err != nil {
			return nil, err
		}
		pids = append(pids, pid)
	}
	return pids, err
}

// ended waits until no process runs a program, for a while: one that was asked to end, or whose parent was killed, is
// still ending.
func ended(program string) error {
	pids, err := processes(program)
	if err != nil {
		return err
	}
	for _, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		if errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			return err
		}
		n, err := 0, error(unix.EINTR)
		for errors.Is(err, unix.EINTR) {
			n, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int((30 * time.Second).Milliseconds()))
		}
		if err = errors.Join(err, unix.Close(fd)); err != nil {
			return err
		}
		if n == 0 {
			return fmt.Errorf("process %d is left", pid)
		}
	}
	return nil
}
