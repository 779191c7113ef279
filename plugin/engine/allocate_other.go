//go:build !linux

package engine

import (
	"errors"
	"os"
)

// allocate would give a file the space for size bytes; here the zeros have to be written.
func allocate(*os.File, int64) error { return errors.ErrUnsupported }
