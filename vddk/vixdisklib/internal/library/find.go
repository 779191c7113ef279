package library

import (
	"fmt"
	"os"
	"path/filepath"
)

// Sonames that are known: libvixDiskLib.so.6 (VDDK 6.x) to .9.
const (
	Oldest = 6
	Newest = 9
)

// Find lists the files in dir that may be the library, newest soname first: below lib64, then dir itself.
func Find(dir string) []string {
	var out []string
	for major := Newest; major >= Oldest; major-- {
		for _, sub := range []string{"lib64", "."} {
			p := filepath.Join(dir, sub, fmt.Sprintf("libvixDiskLib.so.%d", major))
			if _, err := os.Stat(p); err == nil {
				out = append(out, p)
			}
		}
	}
	return out
}
