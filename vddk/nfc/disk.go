package nfc

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
	"github.com/vmkeep/vmkeep/vddk/nfc/internal/wire"
)

// Disk is a disk opened over NFC. Beyond [vddk.Disk] it is a [vddk.Allocator] and a [vddk.Describer], knows the
// disk's database, and counts. It is not a [vddk.Flusher]: NFC has no request for it, writes are durable once Close
// returned nil.
type Disk struct {
	transport *Transport
	spec      vddk.Spec
	ctx       context.Context // of Open: governs the disk
	link      context.Context // of connections being made: ends with ctx, and with Close
	unlink    context.CancelCauseFunc
	left      chan struct{} // closed when ctx ended
	gone      chan struct{} // closed when that was dealt with
	stop      func() bool   // of the watch on ctx
	size      int64
	stats     counters
	rule      rule
	idle      inFlight
	wrote     atomic.Bool // a write was sent: a lost connection cannot be replaced any more
	touched   atomic.Int64
	keeper    sync.WaitGroup

	mu      sync.Mutex
	session *session // the present one, dead or alive
	broken  error    // nothing works any more

	closing sync.Once
	closed  error
}

var (
	_ vddk.Disk      = (*Disk)(nil)
	_ vddk.Allocator = (*Disk)(nil)
	_ vddk.Describer = (*Disk)(nil)
)

// inFlight counts calls, so that Close can wait for them.
type inFlight struct {
	mu     sync.Mutex
	cond   *sync.Cond
	n      int
	closed bool
}

func (f *inFlight) enter() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return false
	}
	f.n++
	return true
}

func (f *inFlight) exit() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.n--; f.n == 0 {
		f.cond.Broadcast()
	}
}

func (f *inFlight) drain() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	for f.n > 0 {
		f.cond.Wait()
	}
}

// adopt makes s the session of the disk; on later sessions the disk must be what it was.
func (d *Disk) adopt(s *session) error {
	if size := int64(s.file.Capacity); d.size == 0 {
		d.size = size
	} else if size != d.size {
		return fmt.Errorf("%s had %d bytes and has %d after reconnecting: %w", d.spec.Path, d.size, size, vddk.ErrConnectionLost)
	}
	d.session = s
	return nil
}

// start watches the context and, if asked to, keeps the connection warm.
func (d *Disk) start() {
	d.touched.Store(time.Now().UnixNano())
	d.stop = context.AfterFunc(d.ctx, func() {
		defer close(d.gone)
		close(d.left)
		d.mu.Lock()
		s := d.session
		d.mu.Unlock()
		s.end(time.Now().Add(d.transport.Options.closeTimeout()))
		s.leave(context.Cause(d.ctx))
	})
	if every := d.transport.Options.KeepAlive; every > 0 {
		d.keeper.Add(1)
		go d.keepAlive(every)
	}
}

// keepAlive reads sector 0 whenever the disk was idle: VMware's advice where hosts have NFC timeouts configured.
func (d *Disk) keepAlive(every time.Duration) {
	defer d.keeper.Done()
	sector := make([]byte, vddk.SectorSize)
	for {
		idle := time.Since(time.Unix(0, d.touched.Load()))
		if idle >= every {
			// A failure shows at the next read, which has somebody to tell it to.
			_, _ = d.ReadAt(sector, 0)
			idle = 0
		}
		if sleep(d.link, every-idle) != nil {
			return
		}
	}
}

// Size is the capacity in bytes.
func (d *Disk) Size() int64 { return d.size }

// Describe is for example "nbdssl esx1:902".
func (d *Disk) Describe() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.transport.Name() + " " + d.session.addr
}

// Stats is what the disk did so far.
func (d *Disk) Stats() Stats { return d.stats.stats() }

// enter admits a call, or says why not.
func (d *Disk) enter(n int, off int64) error {
	if off < 0 || off%vddk.SectorSize != 0 || n%vddk.SectorSize != 0 {
		return fmt.Errorf("%d bytes at %d of %s: %w", n, off, d.spec.Path, vddk.ErrAlignment)
	}
	if !d.idle.enter() {
		return fmt.Errorf("%s: %w", d.spec.Path, vddk.ErrClosed)
	}
	if d.ctx.Err() != nil {
		d.idle.exit()
		return context.Cause(d.ctx)
	}
	return nil
}

// ReadAt reads len(p) bytes at off: split, in flight together, and again on a new connection when one broke.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	if err := d.enter(len(p), off); err != nil {
		return 0, err
	}
	defer d.idle.exit()
	if off >= d.size {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), d.size-off))
	if err := d.transfer(p[:n], off, d.read); err != nil {
		return 0, fmt.Errorf("read %d bytes at %d of %s: %w", n, off, d.spec.Path, err)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt writes p at off. When it fails, nobody knows which of p's sectors were written.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	if err := d.enter(len(p), off); err != nil {
		return 0, err
	}
	defer d.idle.exit()
	if !d.spec.Write {
		return 0, fmt.Errorf("%s: %w", d.spec.Path, vddk.ErrReadOnly)
	}
	if off > d.size-int64(len(p)) {
		return 0, fmt.Errorf("write %d bytes at %d of %s, beyond its end at %d: %w", len(p), off, d.spec.Path, d.size, io.ErrShortWrite)
	}
	if err := d.transfer(p, off, d.write); err != nil {
		return 0, fmt.Errorf("write %d bytes at %d of %s: %w", len(p), off, d.spec.Path, err)
	}
	return len(p), nil
}

// part is one operation of a transfer.
type part struct {
	buf []byte
	off int64
	op  *op
	raw bool  // ask for it without compression
	err error // of the last try
}

// start sends the operation of a part.
type start func(s *session, p *part) error

func (d *Disk) read(s *session, p *part) (err error) {
	c := wire.None
	if !p.raw {
		c = d.rule.read()
	}
	p.op, err = s.get(p.buf, p.off, c, d.left)
	return err
}

func (d *Disk) write(s *session, p *part) (err error) {
	d.wrote.Store(true)
	p.op, err = s.put(p.buf, p.off, d.rule.write(), d.left)
	return err
}

// transfer makes operations of a buffer, and sees each through.
func (d *Disk) transfer(buf []byte, off int64, begin start) error {
	most := d.transport.Options.maxRequest()
	var one [1]part
	todo := one[:0]
	if len(buf) > most {
		todo = make([]part, 0, (len(buf)+most-1)/most)
	}
	for len(buf) > 0 {
		n := min(len(buf), most)
		todo = append(todo, part{buf: buf[:n], off: off})
		buf, off = buf[n:], off+int64(n)
	}
	for n := 1; len(todo) > 0; n++ {
		s, err := d.live()
		if err != nil {
			return err
		}
		var pause bool
		before := len(todo)
		if todo, pause, err = d.round(s, todo, begin); err != nil {
			return err
		}
		if len(todo) < before {
			n = 1 // it goes on
		}
		if len(todo) > 0 && pause {
			if err := sleep(d.link, d.transport.Options.pause(n)); err != nil {
				return err
			}
		}
		if len(todo) > 0 && n > d.transport.Options.retries() {
			return todo[0].err
		}
	}
	d.touched.Store(time.Now().UnixNano())
	return nil
}

// round sends all parts over one session and waits for all. It returns those worth another try, and whether to pause
// before; an error ends the transfer.
func (d *Disk) round(s *session, todo []part, begin start) (again []part, pause bool, err error) {
	sent := 0
	for i := range todo {
		if err = begin(s, &todo[i]); err != nil {
			break
		}
		sent++
	}
	if err != nil {
		err = d.verdict(s, err)
	}
	for i := range todo {
		p := &todo[i]
		if i >= sent {
			p.err = s.failure()
			again = append(again, *p)
			continue
		}
		read := p.op.read
		p.err = s.wait(p.op)
		if p.err == nil {
			d.count(s, read, len(p.buf))
			continue
		}
		switch {
		case errors.Is(p.err, vddk.ErrHostMemory):
			pause = true
			d.transport.limiter().complain(s.addr)
		case errors.Is(p.err, wire.ErrPacked), errors.Is(p.err, wire.ErrAmbiguous):
			if p.raw && err == nil {
				err = p.err
			}
			p.raw = true
			d.transport.log().Debug("NFC fragment cannot be unpacked, reading it again uncompressed", "disk", d.spec.Path, "offset", p.off, "error", p.err)
		default:
			if e := d.verdict(s, p.err); err == nil {
				err = e
			}
		}
		d.stats.retries.Add(1)
		again = append(again, *p)
	}
	return again, pause, err
}

func (d *Disk) count(s *session, read bool, n int) {
	if !read {
		d.stats.writes.Add(1)
		return
	}
	d.stats.reads.Add(1)
	if d.rule.fixed == Auto {
		d.rule.observe(int64(n), s.busyFor())
	}
}

// verdict decides about an operation's failure: nil when it can be tried again on another session.
func (d *Disk) verdict(s *session, err error) error {
	switch {
	case d.ctx.Err() != nil:
		return context.Cause(d.ctx)
	case !errors.Is(err, vddk.ErrConnectionLost) && !errors.Is(err, ErrProtocol):
		return err
	case d.wrote.Load():
		return d.breakDown(fmt.Errorf("%w; what was written since the disk was opened may be lost, write it again", err))
	}
	return nil
}

// breakDown makes the disk fail for good.
func (d *Disk) breakDown(err error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.broken == nil {
		d.broken = err
	}
	return d.broken
}

// live is a session that works, as far as known: a new one where the old one broke.
func (d *Disk) live() (*session, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.broken != nil {
		return nil, d.broken
	}
	why := d.session.failure()
	if why == nil {
		return d.session, nil
	}
	if d.ctx.Err() != nil {
		return nil, context.Cause(d.ctx)
	}
	if d.wrote.Load() {
		d.broken = fmt.Errorf("%w; what was written since the disk was opened may be lost, write it again", why)
		return nil, d.broken
	}
	d.transport.log().Warn("NFC connection lost, reconnecting", "disk", d.spec.Path, "host", d.session.addr, "error", why)
	// Only its share of the host is left to give back.
	_ = d.session.close(time.Now())
	s, err := d.connect()
	if err == nil {
		d.stats.reconnects.Add(1)
		err = d.adopt(s)
		if err != nil {
			_ = s.close(time.Now().Add(d.transport.Options.closeTimeout()))
		}
	}
	if err != nil {
		d.broken = fmt.Errorf("%w; reconnecting failed: %w", why, err)
		if d.ctx.Err() != nil {
			d.broken = context.Cause(d.ctx)
		}
		return nil, d.broken
	}
	return s, nil
}

// chunk is the unit of allocation asked for: the smallest VMware's library uses, 128 sectors.
const chunk = 128 * vddk.SectorSize

// Allocated asks the host which chunks of 64 KiB are allocated. Disks that cannot tell give [vddk.ErrUnsupported];
// so does a disk that was written to, since hosts answer for what it was when it was opened.
func (d *Disk) Allocated(ctx context.Context, e extent.Extent) (extent.Set, error) {
	if !e.Valid() {
		return nil, fmt.Errorf("extent %s: %w", e, vddk.ErrAlignment)
	}
	if err := d.enter(0, 0); err != nil {
		return nil, err
	}
	defer d.idle.exit()
	if d.wrote.Load() {
		return nil, fmt.Errorf("allocated blocks of %s after writing: open it anew: %w", d.spec.Path, vddk.ErrUnsupported)
	}
	all := extent.Set{{Off: 0, Len: d.size}}.Clip(e).Align(chunk, d.size)
	if len(all) == 0 {
		return nil, nil
	}
	// Hosts take whole chunks only: what is behind the last one counts as allocated.
	whole := d.size / chunk * chunk
	var out []extent.Extent
	for _, x := range all.Clip(extent.Extent{Off: 0, Len: whole}) {
		for x.Len > 0 {
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			n := min(x.Len/chunk, wire.MaxQueryChunks)
			part, err := d.query(x.Off, n)
			if err != nil {
				return nil, fmt.Errorf("allocated blocks of %s: %w", d.spec.Path, err)
			}
			out = append(out, part...)
			x = extent.Extent{Off: x.Off + n*chunk, Len: x.Len - n*chunk}
		}
	}
	return extent.Of(append(out, all.Clip(extent.Extent{Off: whole, Len: d.size - whole})...)...), nil
}

// query asks for n chunks from off.
func (d *Disk) query(off, n int64) ([]extent.Extent, error) {
	var bitmap []byte
	err := d.call(func(s *session) (wire.Type, []byte, []byte) {
		return wire.QueryAllocated, wire.AppendQuery(nil, wire.Query{
			Handle: s.file.Handle, ChunkSize: chunk, Start: uint64(off), Chunks: uint64(n),
		}), nil
	}, func(reply, extra []byte) error {
		q, err := wire.ParseQuery(reply)
		if err == nil && q.Chunks != uint64(n) {
			err = fmt.Errorf("%w: %d chunks in answer to %d", ErrProtocol, q.Chunks, n)
		}
		bitmap = extra
		return err
	})
	if f := (*failure)(nil); errors.As(err, &f) {
		return nil, fmt.Errorf("%w: %w", vddk.ErrUnsupported, err)
	}
	if err != nil {
		return nil, err
	}
	return allocatedChunks(bitmap, off, n), nil
}

// allocatedChunks reads the answer of n chunks from off: the lowest bit of the first byte is the first chunk. Nearly all
// of a large disk's bytes are zero or full, so runs are looked for, not bits.
func allocatedChunks(bitmap []byte, off, n int64) (out []extent.Extent) {
	run := func(from int64, wanted byte) int64 { // the first chunk from there whose bit is wanted
		skip := wanted - 1 // a byte without such a bit
		for from < n {
			switch b := bitmap[from/8]; {
			case from%8 == 0 && b == skip:
				from += 8
			case b>>(from%8)&1 == wanted:
				return from
			default:
				from++
			}
		}
		return n
	}
	for i := run(0, 1); i < n; {
		end := run(i, 0)
		out = append(out, extent.Extent{Off: off + i*chunk, Len: (end - i) * chunk})
		i = run(end, 1)
	}
	return out
}

// DDB looks up a key of the disk's database, for example "adapterType"; "" when it is missing.
func (d *Disk) DDB(_ context.Context, key string) (value string, err error) {
	if len(key) == 0 || len(key) > wire.MaxDDB {
		return "", fmt.Errorf("key of %d bytes", len(key))
	}
	if err := d.enter(0, 0); err != nil {
		return "", err
	}
	defer d.idle.exit()
	err = d.call(func(s *session) (wire.Type, []byte, []byte) {
		return wire.DDBGet, wire.AppendDDBRequest(nil, wire.DDB{Handle: s.file.Handle, Len: uint32(len(key))}), []byte(key)
	}, func(_, extra []byte) error { value = string(extra); return nil })
	if err != nil {
		return "", fmt.Errorf("database of %s: %w", d.spec.Path, err)
	}
	return value, nil
}

// call makes a request without sector data, on a new session where the old one broke.
func (d *Disk) call(ask func(*session) (wire.Type, []byte, []byte), take func(reply, extra []byte) error) error {
	for n := 1; ; n++ {
		s, err := d.live()
		if err != nil {
			return err
		}
		t, payload, extra := ask(s)
		reply, more, err := s.call(t, payload, extra)
		if err == nil {
			return take(reply, more)
		}
		if e := d.verdict(s, err); e != nil {
			return e
		}
		if n > d.transport.Options.retries() {
			return err
		}
	}
}

// Close waits for calls in flight, closes the disk on the host and the connection. For a disk that was written to, nil
// means that everything is durable. A second call returns what the first did.
func (d *Disk) Close() error {
	d.closing.Do(func() { d.closed = d.close() })
	return d.closed
}

func (d *Disk) close() error {
	d.unlink(vddk.ErrClosed) // whoever is reconnecting stops
	d.idle.drain()
	d.keeper.Wait()
	o := &d.transport.Options
	until := time.Now().Add(o.ioTimeout())
	if !d.stop() {
		<-d.gone
		until = time.Now().Add(o.closeTimeout())
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	died := d.session.failure()
	err := d.session.close(until)
	switch {
	case d.wrote.Load() && (died != nil || d.broken != nil):
		return fmt.Errorf("close %s: %w", d.spec.Path, errors.Join(d.broken, died))
	case died != nil || err == nil:
		return nil
	case d.ctx.Err() != nil && !d.wrote.Load():
		return nil
	}
	return fmt.Errorf("close %s: %w", d.spec.Path, err)
}
