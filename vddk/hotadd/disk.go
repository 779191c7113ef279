package hotadd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"unsafe"

	"github.com/vmkeep/vmkeep/vddk"
)

// What is under way at a time, per call: devices behind a virtual controller gain nothing from more.
const (
	pieceSize = 1 << 20 // bytes
	depth     = 4
	page      = 4096 // alignment of memory for reads past the page cache
)

// disk is an attached disk. A read of a device cannot be called back: it goes into memory of its own, and who waits for
// it may leave.
type disk struct {
	ctx     context.Context
	spec    vddk.Spec
	dev     device
	name    string
	size    int64
	release chan struct{} // closed by Close
	done    chan error    // what WithAttached returned

	mu      sync.Mutex
	closed  bool
	lost    error
	calls   sync.WaitGroup // calls, and reads and writes that were left behind
	once    sync.Once
	outcome error
}

var (
	_ vddk.Disk      = (*disk)(nil)
	_ vddk.Flusher   = (*disk)(nil)
	_ vddk.Describer = (*disk)(nil)
)

func (d *disk) Size() int64      { return d.size }
func (d *disk) Describe() string { return "hotadd " + d.name }

func (d *disk) wrap(what string, err error) error {
	return fmt.Errorf("%s %s: %w", what, d.spec, err)
}

// enter admits a call; each admitted one ends with calls.Done.
func (d *disk) enter(n int, off int64) error {
	if off < 0 || off%vddk.SectorSize != 0 || n%vddk.SectorSize != 0 {
		return fmt.Errorf("%d bytes at %d: %w", n, off, vddk.ErrAlignment)
	}
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

// ReadAt fills p, or fails.
func (d *disk) ReadAt(p []byte, off int64) (int, error) {
	if err := d.enter(len(p), off); err != nil {
		return 0, d.wrap("read", err)
	}
	defer d.calls.Done()
	if off >= d.size {
		return 0, io.EOF
	}
	want := p[:min(int64(len(p)), d.size-off)]
	if err := d.move(want, off, false); err != nil {
		return 0, d.wrap("read", err)
	}
	if len(want) < len(p) {
		return len(want), io.EOF
	}
	return len(p), nil
}

// WriteAt takes all of p, or fails; then any part of it may have been written.
func (d *disk) WriteAt(p []byte, off int64) (int, error) {
	if err := d.enter(len(p), off); err != nil {
		return 0, d.wrap("write", err)
	}
	defer d.calls.Done()
	if !d.spec.Write {
		return 0, d.wrap("write", vddk.ErrReadOnly)
	}
	if off > d.size || int64(len(p)) > d.size-off {
		return 0, d.wrap("write", fmt.Errorf("%d bytes at %d, beyond the end at %d: %w", len(p), off, d.size, io.ErrShortWrite))
	}
	if err := d.move(p, off, true); err != nil {
		if errors.Is(err, vddk.ErrConnectionLost) {
			d.mu.Lock()
			d.lost = err
			d.mu.Unlock()
		}
		return 0, d.wrap("write", err)
	}
	return len(p), nil
}

type piece struct {
	into []byte // of the caller
	mem  []byte // of our own
	err  error
}

// move moves p piece by piece, depth at a time.
func (d *disk) move(p []byte, off int64, write bool) error {
	answers := make(chan piece, depth)
	under := 0
	var free [][]byte
	for len(p) > 0 || under > 0 {
		for under < depth && len(p) > 0 {
			x := piece{into: p[:min(len(p), pieceSize)]}
			if len(free) > 0 {
				x.mem, free = free[0], free[1:]
			} else {
				x.mem = alignedMemory(len(x.into))
			}
			x.mem = x.mem[:len(x.into)]
			if write {
				copy(x.mem, x.into)
			}
			at := off
			d.calls.Add(1) // this call still counts, so Close has not passed its waiting
			go func() {
				defer d.calls.Done()
				x.err = d.transfer(x.mem, at, write)
				answers <- x
			}()
			p, off, under = p[len(x.into):], off+int64(len(x.into)), under+1
		}
		select {
		case x := <-answers:
			under--
			if x.err != nil {
				return x.err
			}
			if !write {
				copy(x.into, x.mem)
			}
			free = append(free, x.mem)
		case <-d.ctx.Done():
			return context.Cause(d.ctx)
		}
	}
	return nil
}

func (d *disk) transfer(mem []byte, off int64, write bool) error {
	var err error
	if write {
		_, err = d.dev.WriteAt(mem, off)
	} else if n, e := d.dev.ReadAt(mem, off); n < len(mem) {
		err = e
	}
	return classify(err)
}

// classify tells a device that went away.
func classify(err error) error {
	if err != nil && slices.ContainsFunc(gone(), func(e error) bool { return errors.Is(err, e) }) {
		return fmt.Errorf("%w: %w", vddk.ErrConnectionLost, err)
	}
	return err
}

// alignedMemory is memory of at least n bytes that begins at a page.
func alignedMemory(n int) []byte {
	b := make([]byte, n+page)
	skip := (page - int(uintptr(unsafe.Pointer(&b[0]))%page)) % page
	return b[skip : skip+n]
}

// Flush makes what was written durable.
func (d *disk) Flush(ctx context.Context) error {
	if err := d.enter(0, 0); err != nil {
		return d.wrap("flush", err)
	}
	defer d.calls.Done()
	if err := classify(d.dev.Sync()); err != nil {
		return d.wrap("flush", err)
	}
	return context.Cause(ctx)
}

// Close waits for what is under way, and has the disk detached. An error may be a disk that stays attached.
func (d *disk) Close() error {
	d.once.Do(func() {
		d.mu.Lock()
		d.closed = true
		lost := d.lost
		d.mu.Unlock()
		d.calls.Wait()
		var synced error
		if d.spec.Write && lost == nil {
			synced = classify(d.dev.Sync())
		}
		close(d.release)
		if err := errors.Join(lost, synced, <-d.done); err != nil {
			d.outcome = d.wrap("close", err)
		}
	})
	return d.outcome
}
