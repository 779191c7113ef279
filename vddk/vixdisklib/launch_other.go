//go:build !linux

package vixdisklib

import (
	"context"
	"fmt"
	"os"

	"github.com/vmkeep/vmkeep/vddk"
)

// launch refuses: the helper runs on Linux.
func (t *Transport) launch(context.Context, redactor, *attaching) (*process, error) {
	return nil, fmt.Errorf("VMware's library is used on x86-64 Linux only: %w", vddk.ErrUnsupported)
}

func (t *Transport) tempDir() (string, error) {
	_, err := t.launch(context.Background(), redactor{}, nil)
	return "", err
}

func tryLock(*os.File, bool) (bool, error) { return true, nil }
