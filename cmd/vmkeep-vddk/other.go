//go:build !(linux && amd64)

// vmkeep-vddk is the helper of vmkeep that loads VMware's library, which exists for x86-64 Linux and Windows; here it
// is used on x86-64 Linux only.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "vmkeep-vddk: VMware's library is used on x86-64 Linux only")
	os.Exit(1)
}
