package vixdisklib

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/vddk"
	"github.com/vmkeep/vmkeep/vddk/vixdisklib/internal/wire"
)

// disk is a disk open in a helper.
//
// Offsets and lengths are bytes here, sectors on the wire. A call is cut into pieces of at most a slot; a piece takes a
// slot, is sent, and gives the slot back when it is answered, also when nobody waits for the answer any more.
type disk struct {
	p        *process
	ctx      context.Context // of Open: governs the disk's life
	spec     vddk.Spec
	number   uint32
	size     int64
	patience time.Duration
	describe string
	slots    *slots // of the shared memory
	leave    func() error

	mu      sync.Mutex
	closed  bool
	lost    error // a write was lost: nothing is certain any more
	calls   sync.WaitGroup
	once    sync.Once
	outcome error // of Close
}

var (
	_ vddk.Disk      = (*disk)(nil)
	_ vddk.Allocator = (*disk)(nil)
	_ vddk.Flusher   = (*disk)(nil)
	_ vddk.Describer = (*disk)(nil)
)

func (d *disk) Size() int64      { return d.size }
func (d *disk) Describe() string { return d.describe }

func (d *disk) wrap(what string, err error) error {
	return fmt.Errorf("%s %s: %w", what, d.spec, err)
}

// enter admits a call; each admitted one ends with calls.Done.
func (d *disk) enter() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.closed:
		return vddk.ErrClosed
	case d.ctx.Err() != nil:
		return context.Cause(d.ctx)
	case d.lost != nil:
		return d.lost
	}
	d.calls.Add(1)
	return nil
}

func aligned(n int, off int64) error {
	if off < 0 || off%vddk.SectorSize != 0 || n%vddk.SectorSize != 0 {
		return fmt.Errorf("%d bytes at %d: %w", n, off, vddk.ErrAlignment)
	}
	return nil
}

// ReadAt fills p, or fails.
func (d *disk) ReadAt(p []byte, off int64) (int, error) {
	if err := aligned(len(p), off); err != nil {
		return 0, d.wrap("read", err)
	}
	if err := d.enter(); err != nil {
		return 0, d.wrap("read", err)
	}
	defer d.calls.Done()
	if off >= d.size {
		return 0, io.EOF
	}
	want := p[:min(int64(len(p)), d.size-off)]
	if err := d.move(wire.Read, want, off); err != nil {
		return 0, d.wrap("read", err)
	}
	if len(want) < len(p) {
		return len(want), io.EOF
	}
	return len(p), nil
}

// WriteAt takes all of p, or fails; then any part of it may have been written.
func (d *disk) WriteAt(p []byte, off int64) (int, error) {
	if err := aligned(len(p), off); err != nil {
		return 0, d.wrap("write", err)
	}
	if err := d.enter(); err != nil {
		return 0, d.wrap("write", err)
	}
	defer d.calls.Done()
	if !d.spec.Write {
		return 0, d.wrap("write", vddk.ErrReadOnly)
	}
	if off > d.size || int64(len(p)) > d.size-off {
		return 0, d.wrap("write", fmt.Errorf("%d bytes at %d, beyond the end at %d: %w", len(p), off, d.size, io.ErrShortWrite))
	}
	if err := d.move(wire.Write, p, off); err != nil {
		if errors.Is(err, vddk.ErrConnectionLost) {
			d.mu.Lock()
			d.lost = err
			d.mu.Unlock()
		}
		return 0, d.wrap("write", err)
	}
	return len(p), nil
}

// slots are the free slots of a disk. The one given back last is taken next: its memory is still in the processor's cache.
type slots struct {
	free chan struct{} // one for each number in the stack
	mu   sync.Mutex
	last []uint32
}

func newSlots() *slots {
	s := &slots{free: make(chan struct{}, wire.Depth)}
	for i := range uint32(wire.Depth) {
		s.put(wire.Depth - 1 - i)
	}
	return s
}

func (s *slots) put(slot uint32) {
	s.mu.Lock()
	s.last = append(s.last, slot)
	s.mu.Unlock()
	s.free <- struct{}{}
}

// take follows a receive from free.
func (s *slots) take() uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.last) - 1
	slot := s.last[n]
	s.last = s.last[:n]
	return slot
}

// piece is one request under way.
type piece struct {
	buf    []byte // of the caller; not touched once the caller is gone
	slot   uint32
	code   uint64
	result []byte
	taken  atomic.Bool // by the answer or by the caller's leaving, whichever is first
}

// move moves p piece by piece, as many at a time as there are slots.
func (d *disk) move(kind wire.Kind, p []byte, off int64) error {
	answers := make(chan *piece, wire.Depth) // never full: there is a slot to each
	under := make(map[*piece]struct{}, wire.Depth)
	defer func() {
		for x := range under { // left behind, by an error or the end of the context
			if !x.taken.CompareAndSwap(false, true) {
				d.slots.put(x.slot) // answered in the same moment
			}
		}
	}()
	timer := time.NewTimer(d.patience)
	defer timer.Stop()
	for len(p) > 0 || len(under) > 0 {
		free := d.slots.free
		if len(p) == 0 {
			free = nil
		}
		select {
		case <-free:
			n := min(len(p), wire.SlotBytes)
			x := &piece{buf: p[:n], slot: d.slots.take()}
			under[x] = struct{}{}
			d.send(kind, x, off, answers)
			p, off = p[n:], off+int64(n)
		case x := <-answers:
			delete(under, x)
			err := d.p.failure(x.code, x.result)
			if err == nil && kind == wire.Read {
				copy(x.buf, wire.Slot(d.p.memory, d.number, x.slot))
			}
			d.slots.put(x.slot)
			if err != nil {
				return err
			}
			timer.Reset(d.patience)
		case <-d.ctx.Done():
			return context.Cause(d.ctx)
		case <-d.p.dead:
			return d.p.why
		case <-timer.C:
			d.p.kill(fmt.Errorf("no %s ended within %s and it was killed", kind, d.patience))
			<-d.p.dead
			return d.p.why
		}
	}
	return nil
}

// send asks for a piece. The answer goes to answers, or, when the caller has left, gives the slot back.
func (d *disk) send(kind wire.Kind, x *piece, off int64, answers chan<- *piece) {
	if kind == wire.Write {
		copy(wire.Slot(d.p.memory, d.number, x.slot), x.buf)
	}
	body := wire.Transfer{Disk: d.number, Slot: x.slot, First: uint64(off / vddk.SectorSize), Sectors: uint64(len(x.buf) / vddk.SectorSize)}.Encode()
	d.p.post(kind, body, func(code uint64, result []byte) {
		if !x.taken.CompareAndSwap(false, true) {
			d.slots.put(x.slot)
			return
		}
		x.code, x.result = code, result
		answers <- x
	})
}

// either is a context that ends with ctx or with the disk's.
func (d *disk) either(ctx context.Context) (context.Context, func()) {
	both, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(d.ctx, func() { cancel(context.Cause(d.ctx)) })
	return both, func() { stop(); cancel(nil) }
}

// Flush makes what was written durable.
func (d *disk) Flush(ctx context.Context) error {
	if err := d.enter(); err != nil {
		return d.wrap("flush", err)
	}
	defer d.calls.Done()
	ctx, cancel := d.either(ctx)
	defer cancel()
	if _, err := d.p.call(ctx, wire.Flush, wire.Encode(wire.One{Disk: d.number}), d.patience); err != nil {
		return d.wrap("flush", err)
	}
	return nil
}

// Allocated asks the library, in units of 64 KiB. What does not fill a unit at the end of the disk cannot be asked
// about and counts as allocated. The library may be unable to tell: [vddk.ErrUnsupported].
func (d *disk) Allocated(ctx context.Context, e extent.Extent) (extent.Set, error) {
	if err := d.enter(); err != nil {
		return nil, d.wrap("allocated of", err)
	}
	defer d.calls.Done()
	ctx, cancel := d.either(ctx)
	defer cancel()
	var found []extent.Extent
	for _, x := range extent.Of(e).Align(wire.ChunkSize, d.size) {
		whole := d.size / wire.ChunkSize * wire.ChunkSize
		if x.End() > whole {
			tail := max(x.Off, whole)
			found = append(found, extent.Extent{Off: tail, Len: x.End() - tail})
		}
		for at := x.Off; at < min(x.End(), whole); {
			n := min(min(x.End(), whole)-at, wire.MaxChunks*wire.ChunkSize)
			got, err := d.blocks(ctx, extent.Extent{Off: at, Len: n})
			if err != nil {
				return nil, d.wrap("allocated of", err)
			}
			found, at = append(found, got...), at+n
		}
	}
	return extent.Of(found...), nil
}

// blocks asks about whole units.
func (d *disk) blocks(ctx context.Context, e extent.Extent) ([]extent.Extent, error) {
	r := wire.Range{Disk: d.number, First: uint64(e.Off / vddk.SectorSize), Sectors: uint64(e.Len / vddk.SectorSize)}
	answer, err := d.p.call(ctx, wire.Blocks, wire.Encode(r), d.patience)
	var failed *Error
	if errors.As(err, &failed) && !errors.Is(err, vddk.ErrConnectionLost) {
		// It rarely matters why: some disks and versions fail, and everything can be read instead.
		return nil, fmt.Errorf("%w: %w", vddk.ErrUnsupported, err)
	}
	if err != nil {
		return nil, err
	}
	pairs, err := wire.ParseBlocks(answer, r.First, r.Sectors)
	if err != nil {
		return nil, err
	}
	out := make([]extent.Extent, len(pairs))
	for i, p := range pairs {
		out[i] = extent.Extent{Off: int64(p[0]) * vddk.SectorSize, Len: int64(p[1]) * vddk.SectorSize}
	}
	return out, nil
}

// Close waits for calls in flight and closes the disk. For a disk that was open for writing nil says that what was
// written is durable.
func (d *disk) Close() error {
	d.once.Do(func() {
		d.mu.Lock()
		d.closed = true
		lost := d.lost
		d.mu.Unlock()
		d.calls.Wait()
		var flushed error
		if d.spec.Write && lost == nil {
			_, flushed = d.p.call(context.Background(), wire.Flush, wire.Encode(wire.One{Disk: d.number}), d.patience)
		}
		left := d.leave()
		if !d.spec.Write && errors.Is(left, vddk.ErrConnectionLost) {
			left = nil // there is nothing to lose
		}
		if err := errors.Join(lost, flushed, left); err != nil {
			d.outcome = d.wrap("close", err)
		}
	})
	return d.outcome
}
