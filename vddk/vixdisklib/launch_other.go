//go:build !linux

package vixdisklib

import (
	"context"
	"fmt"

	"github.com/vmkeep/vmkeep/vddk"
)

// launch refuses: the helper runs on Linux.
func (t *Transport) launch(context.Context, redactor) (*process, error) {
	return nil, fmt.Errorf("VMware's library is used on x86-64 Linux only: %w", vddk.ErrUnsupported)
}
