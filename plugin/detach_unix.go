//go:build unix

package plugin

import (
	"os/exec"
	"syscall"
)

// detach puts the plugin and what it starts into a process group of their own: Ctrl-C at a terminal then reaches the
// host only, which cancels in good order.
func detach(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }
