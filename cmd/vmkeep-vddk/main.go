//go:build linux && amd64

// vmkeep-vddk is the helper of vmkeep that loads VMware's library, libvixDiskLib, and the only program of vmkeep that
// does. It is started by vmkeep-plugin: a crash or hang of the library ends this process and nothing else.
package main

import (
	"fmt"
	"os"

	"github.com/vmkeep/vmkeep/cmd/internal/build"
	"github.com/vmkeep/vmkeep/vddk/vixdisklib/helper"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == "--version" {
		fmt.Println("vmkeep-vddk", build.Version())
		return
	}
	if len(os.Args) > 1 {
		fmt.Fprintln(os.Stderr, "vmkeep-vddk: this program is started by vmkeep-plugin, not by hand; \"vmkeep doctor --vddk DIR\" examines VMware's library")
		os.Exit(2)
	}
	if err := helper.Main(); err != nil {
		fmt.Fprintln(os.Stderr, "vmkeep-vddk:", err)
		os.Exit(1)
	}
}
