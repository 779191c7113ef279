//go:build !unix

package plugin

import "os/exec"

// detach has nothing to do here: the plugin ignores interrupts.
func detach(*exec.Cmd) {}
