package chunker

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/vmkeep/vmkeep/chunker/extent"
)

const (
	defaultDepth = 4       // hides 4 ms of latency at 1 GB/s
	defaultPiece = 1 << 20 // what an NFC server answers in one message at most
)

// ahead reads a part in ascending order, several pieces ahead of its user.
//
// One goroutine, the user of read, owns all fields. It hands pieces to workers through jobs and gets each back
// through the piece's own done channel; between the two the piece belongs to the worker.
type ahead struct {
	r            io.ReaderAt
	c            *Cutter
	size         int64
	zeros        extent.Set // holes from the current position on
	todo         extent.Set // to be read, not yet handed out
	depth, piece int

	w       *workspace
	list    []*piece // handed out and not used up, in ascending order
	lender  Lender   // nil: r is none
	lent    []*piece // of its memory, not in use
	jobs    chan *piece
	workers int
	join    sync.WaitGroup
	stop    atomic.Bool
}

// piece is one read.
type piece struct {
	extent.Extent
	buf  []byte // of the length ahead.piece; the read fills its start
	err  error
	have bool // the worker is done with it
	done chan struct{}

	giveBack func() // of memory that is lent
}

// workspace is the memory of one run of Chunks.
type workspace struct {
	chunk  []byte   // of MaxSize; what is never touched takes no memory
	pieces []*piece // not in use
}

func newAhead(r io.ReaderAt, l *layout, o Ahead) *ahead {
	a := &ahead{r: r, c: l.c, size: l.size, zeros: l.holes, todo: slices.Clone(l.reads), depth: o.Depth, piece: o.Piece}
	if a.depth == 0 {
		a.depth = defaultDepth
	}
	if a.piece == 0 {
		a.piece = defaultPiece
	}
	a.lender, _ = r.(Lender)
	return a
}

// space is the workspace, taken when first wanted: a part of which nothing is read takes no memory.
func (a *ahead) space() *workspace {
	if a.w == nil {
		w, _ := a.c.spaces.Get().(*workspace)
		if w == nil {
			w = &workspace{chunk: make([]byte, MaxSize)}
		}
		a.w = w
		a.jobs = make(chan *piece, a.depth+1)
	}
	return a.w
}

// close ends reading: what is queued is dropped, what is under way is waited for.
func (a *ahead) close() {
	if a.w == nil {
		return
	}
	a.stop.Store(true)
	close(a.jobs)
	a.join.Wait()
	for _, p := range a.list {
		a.reuse(p)
	}
	for _, p := range a.lent {
		p.giveBack()
	}
	a.c.spaces.Put(a.w)
	a.w, a.list, a.lent = nil, nil, nil
}

// need adds e, which lies at or after the current position, to what is read.
func (a *ahead) need(e extent.Extent) {
	s := extent.Of(e).Align(sector, a.size).Subtract(a.zeros)
	given := make(extent.Set, len(a.list))
	for i, p := range a.list {
		given[i] = p.Extent
	}
	a.todo = a.todo.Union(s.Subtract(extent.Of(given...)))
}

// read fills dst with the bytes at off, which never decreases; the bytes must be needed or in holes.
func (a *ahead) read(dst []byte, off int64) error {
	for len(dst) > 0 {
		for len(a.zeros) > 0 && a.zeros[0].End() <= off {
			a.zeros = a.zeros[1:]
		}
		until := off + int64(len(dst))
		if len(a.zeros) > 0 {
			if h := a.zeros[0]; h.Off <= off {
				n := int(min(until, h.End()) - off)
				clear(dst[:n])
				dst, off = dst[n:], off+int64(n)
				continue
			} else {
				until = min(until, h.Off)
			}
		}
		p, err := a.at(off)
		if err != nil {
			return err
		}
		n := copy(dst[:until-off], p.buf[off-p.Off:p.Len])
		dst, off = dst[n:], off+int64(n)
	}
	a.drop(off)
	return nil
}

// at returns the piece that holds off, read.
func (a *ahead) at(off int64) (*piece, error) {
	a.drop(off)
	if len(a.todo) > 0 && (len(a.list) == 0 || a.list[0].Off > off) {
		a.hand() // the reads ahead are all beyond a keep point where no chunk started: this one overtakes them
	}
	for len(a.list) < a.depth && len(a.todo) > 0 {
		a.hand()
	}
	if len(a.list) == 0 || off < a.list[0].Off {
		return nil, fmt.Errorf("chunker: offset %d was not planned to be read", off)
	}
	p := a.list[0]
	a.wait(p)
	return p, p.err
}

// drop ends the use of pieces before off.
func (a *ahead) drop(off int64) {
	n := 0
	for ; n < len(a.list) && a.list[n].End() <= off; n++ {
		a.wait(a.list[n])
		a.reuse(a.list[n])
	}
	a.list = slices.Delete(a.list, 0, n)
}

func (a *ahead) wait(p *piece) {
	if !p.have {
		<-p.done
		p.have = true
	}
}

// reuse makes a piece free to be used again; its done channel must be empty. The workspace gets none that is lent.
func (a *ahead) reuse(p *piece) {
	if !p.have {
		select {
		case <-p.done:
		default: // dropped before it was read
		}
	}
	if p.giveBack != nil {
		a.lent = append(a.lent, p)
	} else {
		a.w.pieces = append(a.w.pieces, p)
	}
}

// hand gives the first piece of what is to be read to a worker.
func (a *ahead) hand() {
	e := a.todo[0]
	unit := int64(a.piece)
	e.Len = min(e.Len, (e.Off/unit+1)*unit-e.Off)
	if a.todo[0].Len -= e.Len; a.todo[0].Len > 0 {
		a.todo[0].Off += e.Len
	} else {
		a.todo = a.todo[1:]
	}

	p := a.fresh()
	p.Extent = e
	i, _ := slices.BinarySearchFunc(a.list, e.Off, func(p *piece, off int64) int {
		if p.Off < off {
			return -1
		}
		return 1
	})
	a.list = slices.Insert(a.list, i, p)
	if a.workers < min(len(a.list), a.depth) {
		a.workers++
		a.join.Go(a.work)
	}
	a.jobs <- p // has room: at most depth+1 pieces are in use
}

// fresh returns an unused piece, of the reader's memory where it has some.
func (a *ahead) fresh() *piece {
	w := a.space()
	if k := len(a.lent) - 1; k >= 0 {
		p := a.lent[k]
		a.lent = a.lent[:k]
		p.err, p.have = nil, false
		return p
	}
	if a.lender != nil {
		if buf, giveBack := a.lender.Lend(a.piece); buf != nil {
			return &piece{buf: buf, giveBack: giveBack, done: make(chan struct{}, 1)}
		}
	}
	for k := len(w.pieces) - 1; k >= 0; k-- {
		p := w.pieces[k]
		w.pieces = w.pieces[:k]
		if len(p.buf) == a.piece {
			p.err, p.have = nil, false
			return p
		}
	}
	return &piece{buf: make([]byte, a.piece), done: make(chan struct{}, 1)}
}

func (a *ahead) work() {
	for p := range a.jobs {
		if a.stop.Load() {
			continue
		}
		n, err := a.r.ReadAt(p.buf[:p.Len], p.Off)
		switch {
		case n == int(p.Len):
		case err == nil || errors.Is(err, io.EOF):
			p.err = fmt.Errorf("chunker: read %d of %d bytes at %d: %w", n, p.Len, p.Off, io.ErrUnexpectedEOF)
		default:
			p.err = fmt.Errorf("chunker: read %d bytes at %d: %w", p.Len, p.Off, err)
		}
		p.done <- struct{}{}
	}
}
