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
// Offsets and lengths are bytes here, sectors on the wire. A call is cut into requests of at most a piece of the shared
// memory. A request in flight has a piece, its own or what was lent to the caller, and lets it go when it is answered,
// also when nobody waits for the answer any more.
type disk struct {
	p        *process
	ctx      context.Context // of Open: governs the disk's life
	spec     vddk.Spec
	number   uint32
	size     int64
	patience time.Duration
	describe string
	free     chan struct{} // one for each request that may be sent now
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
	_ vddk.Lender    = (*disk)(nil)
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

// Lend gives a piece of the memory that is shared with the helper.
func (d *disk) Lend(n int) (p []byte, giveBack func()) {
	if d.enter() != nil {
		return nil, nil
	}
	defer d.calls.Done()
	return d.p.memory.lend(n)
}

// request is one transfer under way.
type request struct {
	buf    []byte // of the caller
	at     int    // offset in the shared memory
	lent   bool   // buf lies there: nothing is copied
	code   uint64
	result []byte
	users  atomic.Int32 // the caller and the answer: the last of them gives everything back
}

// done takes a user of a request away.
func (d *disk) done(x *request) {
	if x.users.Add(-1) == 0 {
		d.p.memory.drop(uint32(x.at / wire.PieceBytes))
		d.free <- struct{}{}
	}
}

// move moves p in requests, as many at a time as may be in flight.
func (d *disk) move(kind wire.Kind, p []byte, off int64) error {
	answers := make(chan *request, wire.Depth) // never full: no more are in flight
	under := make(map[*request]struct{}, wire.Depth)
	defer func() {
		for x := range under { // left behind, by an error or the end of the context
			d.done(x)
		}
	}()
	timer := time.NewTimer(d.patience)
	defer timer.Stop()
	for len(p) > 0 || len(under) > 0 {
		free := d.free
		if len(p) == 0 {
			free = nil
		}
		select {
		case <-free:
			n := min(len(p), wire.PieceBytes)
			x := &request{buf: p[:n]}
			under[x] = struct{}{}
			d.send(kind, x, off, answers)
			p, off = p[n:], off+int64(n)
		case x := <-answers:
			delete(under, x)
			err := d.p.failure(x.code, x.result)
			if err == nil && kind == wire.Read && !x.lent {
				copy(x.buf, d.p.memory.bytes[x.at:])
			}
			d.done(x)
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

// send asks for a transfer. The answer goes to answers, whether or not the caller is still there.
func (d *disk) send(kind wire.Kind, x *request, off int64, answers chan<- *request) {
	m := d.p.memory
	x.users.Store(2)
	if x.at, x.lent = m.find(x.buf); x.lent {
		m.use(uint32(x.at / wire.PieceBytes))
	} else {
		x.at = int(m.take()) * wire.PieceBytes
		if kind == wire.Write {
			copy(m.bytes[x.at:], x.buf)
		}
	}
	t := wire.Transfer{Disk: d.number, Sectors: uint32(len(x.buf) / vddk.SectorSize), At: uint64(x.at), First: uint64(off / vddk.SectorSize)}
	d.p.post(kind, t.Encode(), func(code uint64, result []byte) {
		x.code, x.result = code, result
		answers <- x
		d.done(x)
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
