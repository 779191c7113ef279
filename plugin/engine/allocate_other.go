//go:build !linux

package engine

import (
	"errors"
	"os"
)

// allocate would give a file the space for size bytes; here the zeros have to be written.
func allocate(*os.File, int64) error { return errors.ErrUnsupported }

// syncFileSystem would make a file system durable; here file after file has to be.
func syncFileSystem(*os.File) error { return errors.ErrUnsupported }

// beginWriteback would start sending a range of a file to the storage; here Sync does all of it.
func beginWriteback(*os.File, int64, int64) error { return nil }
