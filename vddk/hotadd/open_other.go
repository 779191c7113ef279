//go:build !linux

package hotadd

import (
	"fmt"

	"github.com/vmkeep/vmkeep/vddk"
)

func gone() []error { return nil }

// open refuses: devices are found the way Linux shows them.
func (t *Transport) open(string, bool) (device, error) {
	return nil, fmt.Errorf("hotadd works on Linux: %w", vddk.ErrUnsupported)
}
