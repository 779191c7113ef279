//go:build unix

package sftp

import (
	"os/exec"
	"syscall"
)

// detach gives the process a session of its own: no terminal to ask on, and no Ctrl-C meant for us, which would
// cut the connection before locks are removed through it.
func detach(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} }
