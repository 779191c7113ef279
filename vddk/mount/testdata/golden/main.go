// Golden makes the golden images of file systems again, with the mkfs and the kernel of the machine it runs on, as
// root: go run ./vddk/mount/testdata/golden
package main

import (
	"fmt"
	"os"

	"github.com/vmkeep/vmkeep/vddk/mount/mounttest"
)

func main() {
	for _, g := range mounttest.Goldens() {
		if err := g.Write("vddk/mount/testdata"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}
