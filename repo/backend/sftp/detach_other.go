//go:build !unix

package sftp

import "os/exec"

// detach is for terminals as Unix has them.
func detach(*exec.Cmd) {}
