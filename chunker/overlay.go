package chunker

import (
	"errors"
	"fmt"
	"io"

	"github.com/vmkeep/vmkeep/chunker/extent"
)

// changeGrain is the unit in which VMware's change tracking and its allocated-block queries count, in bytes, and so
// the smallest read worth sending to production storage (VDDK programming guide: VIXDISKLIB_MIN_CHUNK_SIZE is 128 sectors).
const changeGrain = 64 << 10

// Changed is what a reader of the old part cannot know: the dirty bytes and what grew, rounded to 64 KiB.
func (p Plan) Changed() extent.Set {
	var old int64
	for _, n := range p.Old {
		old += int64(n)
	}
	grown := extent.Of(extent.Extent{Len: old}).Complement(p.Size)
	return p.Dirty.Union(grown).Clip(extent.Extent{Len: p.Size}).Align(changeGrain, p.Size)
}

// Overlay reads some bytes from one reader and all others from another.
//
// Re-cutting around a changed extent needs unchanged bytes too, up to a whole chunk on either side. With the previous
// point below and the disk on top, at [Plan.Changed], the disk gives only what changed, and the rest comes from the
// repository. An Overlay is safe for concurrent use if its readers are.
type Overlay struct {
	Base, Top io.ReaderAt
	Extents   extent.Set // read from Top
}

var _ Lender = (*Overlay)(nil)

// Lend lends the memory of Top, where that is a [Lender].
func (o *Overlay) Lend(n int) (p []byte, giveBack func()) {
	if l, ok := o.Top.(Lender); ok {
		return l.Lend(n)
	}
	return nil, nil
}

// ReadAt fills p or fails. A read touches each reader once per run of bytes that it has to give, in ascending order.
func (o *Overlay) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("chunker: read at %d", off)
	}
	from := func(r io.ReaderAt, what string, lo, hi int64) error {
		if lo == hi {
			return nil
		}
		n, err := r.ReadAt(p[lo-off:hi-off], lo)
		switch {
		case int64(n) == hi-lo:
			return nil
		case err == nil || errors.Is(err, io.EOF):
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("%s bytes %d to %d: %w", what, lo, hi, err)
	}
	at, end := off, off+int64(len(p))
	for _, e := range o.Extents.Clip(extent.Extent{Off: off, Len: int64(len(p))}) {
		if err := from(o.Base, "unchanged", at, e.Off); err != nil {
			return int(at - off), err
		}
		if err := from(o.Top, "changed", e.Off, e.End()); err != nil {
			return int(e.Off - off), err
		}
		at = e.End()
	}
	if err := from(o.Base, "unchanged", at, end); err != nil {
		return int(at - off), err
	}
	return len(p), nil
}
