package disktest

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/vmkeep/vmkeep/vddk"
)

// lent reads into lent memory and writes from it, whole and in parts, while all there is to be had is lent.
func lent(t *testing.T, h Harness) {
	const size, most = 4 << 20, 1 << 14
	x, content := filled(t, h, size)
	d := open(t, h, t.Context(), writable(x.Spec))
	l := d.(vddk.Lender)
	if p, _ := l.Lend(1 << 40); p != nil {
		t.Error("a terabyte is lent")
	}
	var bufs [][]byte
	var back []func()
	for {
		p, giveBack := l.Lend(64 << 10)
		if p == nil {
			break
		}
		if len(p) != 64<<10 || cap(p) != len(p) {
			t.Fatalf("%d bytes with room for %d are lent, not 65536", len(p), cap(p))
		}
		if bufs, back = append(bufs, p), append(back, giveBack); len(bufs) == most {
			t.Fatal("what is lent has no end")
		}
	}
	if len(bufs) < 8 {
		t.Fatalf("only %d pieces are lent", len(bufs))
	}
	for i, p := range bufs { // each is of its own
		at := int64(i) * 64 << 10 % size
		if _, err := d.ReadAt(p, at); err != nil && err != io.EOF {
			t.Fatal(err)
		}
	}
	for i, p := range bufs {
		if at := i * 64 << 10 % size; !bytes.Equal(p, content[at:at+len(p)]) {
			t.Fatalf("piece %d of lent memory holds others", i)
		}
	}
	// Parts, also such as the memory's own alignment forbids; and memory that is not lent, while none is left.
	p := bufs[0]
	for _, at := range []int{0, 512, 4096, 1, 100, 513} {
		clear(p)
		if _, err := d.ReadAt(p[at:at+8192], 1<<20); err != nil || !bytes.Equal(p[at:at+8192], content[1<<20:1<<20+8192]) {
			t.Errorf("reading into a part at %d of lent memory gives others (%v)", at, err)
		}
		if !bytes.Equal(p[:at], make([]byte, at)) || !bytes.Equal(p[at+8192:], make([]byte, len(p)-at-8192)) {
			t.Errorf("reading into a part at %d of lent memory changes the rest", at)
		}
		copy(p[at:], content[at:at+8192])
		if _, err := d.WriteAt(p[at:at+8192], 2<<20); err != nil {
			t.Errorf("writing from a part at %d of lent memory: %v", at, err)
		}
		own := make([]byte, 8192)
		if _, err := d.ReadAt(own, 2<<20); err != nil || !bytes.Equal(own, content[at:at+8192]) {
			t.Errorf("what was written from a part at %d of lent memory is not there (%v)", at, err)
		}
	}
	for _, giveBack := range back {
		giveBack()
	}
	again, giveBack := l.Lend(512)
	if len(again) != 512 {
		t.Error("nothing is lent although all was given back")
	} else {
		giveBack()
	}
	shut(t, d)
	if p, _ := l.Lend(512); p != nil {
		t.Error("a closed disk lends memory")
	}
}

// lentAfterwards keeps lent memory after its disk was closed, and after its connection was lost.
func lentAfterwards(t *testing.T, h Harness) {
	for _, cut := range []bool{false, true} {
		x, content := filled(t, h, 1<<20)
		d := open(t, h, t.Context(), x.Spec)
		p, giveBack := d.(vddk.Lender).Lend(1 << 20)
		if p == nil {
			t.Fatal("nothing is lent")
		}
		if _, err := d.ReadAt(p, 0); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		if _, unable := h.Lacks[Cutting]; cut && !unable {
			x.Cut()
			within(t, "reading into lent memory after a cut", func() {
				if _, err := d.ReadAt(p, 0); !h.Reconnects && !errors.Is(err, vddk.ErrConnectionLost) {
					t.Errorf("reading into lent memory after a cut gives %v", err)
				}
			})
		}
		shut(t, d)
		if !cut && !bytes.Equal(p, content) {
			t.Error("lent memory loses its bytes when the disk is closed")
		}
		for i := range p { // a fault, if it is not there any more
			p[i] = byte(i)
		}
		giveBack()
	}
}
