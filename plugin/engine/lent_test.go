package engine

import (
	"testing"

	"github.com/vmkeep/vmkeep/vddk"
)

// lender is a disk that lends memory.
type lender struct {
	vddk.Disk
	given int
}

func (l *lender) Lend(n int) ([]byte, func()) { return make([]byte, n), func() { l.given++ } }

// What is read for a point is read into the memory of the disk, where it has some.
func TestPartsBorrowTheMemoryOfTheirDisk(t *testing.T) {
	d := &lender{}
	p, giveBack := (&section{disk: d}).Lend(4096)
	if len(p) != 4096 {
		t.Fatalf("%d bytes are lent", len(p))
	}
	if giveBack(); d.given != 1 {
		t.Error("they are not given back to the disk")
	}
	if p, _ := (&section{disk: struct{ vddk.Disk }{d}}).Lend(4096); p != nil {
		t.Error("a disk lends that cannot")
	}
}
