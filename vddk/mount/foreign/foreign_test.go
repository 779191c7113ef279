package foreign

import (
	"bytes"
	"testing"

	"github.com/vmkeep/vmkeep/vddk/mount/device"
	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
)

// FuzzProbe: whatever lies on a volume, what names it says what to do, and nothing of it is trusted.
func FuzzProbe(f *testing.F) {
	f.Add([]byte("LUKS\xba\xbe\x00\x02"), uint32(0), uint32(1<<20))
	f.Add([]byte("\xfc\x4e\x2b\xa9\x01\x00\x00\x00"), uint32(4096), uint32(1<<20))
	f.Add([]byte("SWAPSPACE2"), uint32(4086), uint32(8192))
	f.Add([]byte("-FVE-FS-"), uint32(3), uint32(511))
	f.Fuzz(func(t *testing.T, what []byte, at, size uint32) {
		b := make([]byte, size%(2<<20))
		if n := uint32(len(b)); n > 0 {
			copy(b[at%n:], what)
		}
		src := guestfs.NewSource(device.Disk(bytes.NewReader(b), 0, int64(len(b))))
		for _, format := range append(Containers(), Rest()...) {
			id, err := format.Probe(src) // not guarded: these must not panic by themselves
			if err == nil && (id.Type == "" || id.Advice == "" || format.Open != nil) {
				t.Errorf("%+v", id)
			}
		}
	})
}

func TestPartitionTypesAreNamed(t *testing.T) {
	if id, ok := ByPartition("E75CAF8F-F680-4CEE-AFA3-B001E56EFC2D"); !ok || id.Type != "storage_spaces" || id.Advice == "" {
		t.Errorf("%+v", id)
	}
	if id, ok := ByPartition("83"); ok {
		t.Errorf("Linux's own type says nothing: %+v", id)
	}
}
