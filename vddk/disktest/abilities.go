package disktest

import (
	"errors"
	"fmt"
	"testing"

	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/vddk"
)

// Ability is what a transport, or the other end of it in a test, may have or not.
type Ability string

// Abilities.
const (
	Cutting    Ability = "cutting"    // Target.Cut is there
	Stalling   Ability = "stalling"   // Target.Stall is there
	Allocation Ability = "allocation" // disks are a [vddk.Allocator], and can tell
	Flushing   Ability = "flushing"   // disks are a [vddk.Flusher]
	Lending    Ability = "lending"    // disks are a [vddk.Lender]
)

// has reports whether a disk that was opened has an ability.
func has(t *testing.T, x Target, d vddk.Disk) map[Ability]bool {
	allocator, ok := d.(vddk.Allocator)
	if ok {
		_, err := allocator.Allocated(t.Context(), extent.Extent{Len: d.Size()})
		ok = !errors.Is(err, vddk.ErrUnsupported)
	}
	_, flusher := d.(vddk.Flusher)
	_, lender := d.(vddk.Lender)
	return map[Ability]bool{Cutting: x.Cut != nil, Stalling: x.Stall != nil, Allocation: ok, Flushing: flusher, Lending: lender}
}

// untrue tells where what a transport has is not what its harness says that it lacks: a case that would be left out.
func (h Harness) untrue(has map[Ability]bool) (out []string) {
	for a, there := range has {
		switch why, lacks := h.Lacks[a]; {
		case lacks == there:
			out = append(out, fmt.Sprintf("%s: is there: %v; is lacking: %v", a, there, lacks))
		case lacks && why == "":
			out = append(out, fmt.Sprintf("%s is lacking without a reason", a))
		}
	}
	for a := range h.Lacks {
		if _, known := has[a]; !known {
			out = append(out, fmt.Sprintf("%s: there is no such ability", a))
		}
	}
	return out
}

func abilities(t *testing.T, h Harness) {
	x := h.New(t, 1<<20)
	d := open(t, h, t.Context(), x.Spec)
	defer shut(t, d)
	for _, what := range h.untrue(has(t, x, d)) {
		t.Error(what)
	}
}
