package nfc

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"runtime"
	"sync"
	"time"

	"github.com/vmkeep/vmkeep/vddk"
	"github.com/vmkeep/vmkeep/vddk/nfc/internal/wire"
)

// session is one connection with a disk opened on it. Requests are written under wmu by whoever makes them; one
// reader goroutine takes all replies and finds their operations by id. A session that failed once stays failed.
type session struct {
	line    *line
	addr    string
	secret  string // the ticket's, to be kept out of texts of the host
	lease   *lease
	opts    *Options
	stats   *counters
	buffers buffers
	file    wire.File

	ready bool // OPEN_SESSION was accepted

	wmu     sync.Mutex
	scratch []byte // frame being written
	packer  packer

	mu       sync.Mutex
	ops      map[uint32]*op
	late     map[uint32]struct{} // answered with ERROR; a typed reply may follow
	next     uint32              // id
	err      error               // why the session is dead
	ending   bool                // the deadline is final
	deadline time.Time           // for reading, as last set
	spare    []*op
	leaving  error         // the disk's context ended: only the farewell is still said
	busy     time.Duration // sum of times with operations in flight
	since    time.Time     // when the first of those in flight began

	dead  chan struct{} // closed with err
	slots chan struct{} // operations in flight

	reader sync.WaitGroup
	tasks  chan task // fragments to unpack, made by the reader when the first comes
	packs  chan []byte
}

// op is an operation in flight. All fields but buf's bytes belong to session.mu.
type op struct {
	id       uint32
	typ      wire.Type // of the reply
	read     bool
	buf      []byte // filled by a read
	off      int64
	total    int       // bytes of the operation
	missing  int       // bytes not yet in buf
	spans    []span    // received, ascending, disjoint
	users    int       // goroutines using buf right now
	reply    []byte    // payload of what is neither read nor write
	extra    []byte    // and what followed it
	begun    time.Time // for the latency
	err      error
	finished bool
	left     bool       // nobody waits any more, its reply is thrown away
	done     chan error // one value
}

type span struct{ from, to int }

// task is a fragment to be unpacked into its operation.
type task struct {
	op  *op
	dst []byte
	src []byte
	c   wire.Compression
}

// maxLate bounds what is remembered of operations that failed.
const maxLate = 4096

func newSession(l *line, opts *Options, stats *counters) *session {
	s := &session{
		line: l, opts: opts, stats: stats, ops: map[uint32]*op{}, late: map[uint32]struct{}{},
		dead: make(chan struct{}), slots: make(chan struct{}, opts.depth()),
	}
	s.reader.Add(1)
	go s.read()
	return s
}

// fail ends the session: everything in flight and to come fails with err. The reader sweeps up.
func (s *session) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
		close(s.dead)
		s.line.raw.Close()
	}
}

// failure is why the session is dead, nil if it is not.
func (s *session) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// extend moves the reading deadline on; s.mu is held. Setting one is not free, so it is done in steps.
func (s *session) extend(now time.Time) {
	if s.ending {
		return
	}
	if len(s.ops) == 0 {
		if !s.deadline.IsZero() {
			s.deadline = time.Time{}
			s.line.raw.SetReadDeadline(time.Time{})
		}
		return
	}
	timeout := s.opts.ioTimeout()
	if s.deadline.Sub(now) < timeout*7/8 {
		s.deadline = now.Add(timeout)
		s.line.raw.SetReadDeadline(s.deadline)
	}
}

// end bounds the rest of the session's life: it has until the given time to close in good order.
func (s *session) end(at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ending = true
	s.line.raw.SetDeadline(at)
}

// begin registers an operation and gives it an id. It waits for a slot, or for leave.
func (s *session) begin(o op, leave <-chan struct{}) (*op, error) {
	select {
	case s.slots <- struct{}{}:
	case <-s.dead:
		return nil, s.failure()
	case <-leave:
		return nil, errLeft
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil || s.leaving != nil && leave != nil {
		<-s.slots
		return nil, errors.Join(s.err, s.leaving)
	}
	var p *op
	if k := len(s.spare); k > 0 {
		p, s.spare = s.spare[k-1], s.spare[:k-1]
	} else {
		p = &op{done: make(chan error, 1)}
	}
	done, spans := p.done, p.spans[:0]
	*p = o
	p.done, p.spans, p.begun = done, spans, time.Now()
	p.id, p.missing = s.next, p.total
	s.next++
	if len(s.ops) == 0 {
		s.since = p.begun
	}
	s.ops[p.id] = p
	s.extend(p.begun)
	return p, nil
}

// errLeft is what operations get that were given up before they were sent.
var errLeft = errors.New("given up")

// settle tells the waiter of an operation when there is something to tell; s.mu is held.
func (s *session) settle(o *op) {
	if o.finished || o.users > 0 || o.err == nil && o.missing > 0 {
		return
	}
	o.finished = true
	<-s.slots
	o.done <- o.err
}

// forget takes an operation out of the table: all its replies came. s.mu is held.
func (s *session) forget(o *op) {
	delete(s.ops, o.id)
	now := time.Now()
	if len(s.ops) == 0 {
		s.busy += now.Sub(s.since)
	}
	if o.err == nil {
		s.stats.took(now.Sub(o.begun))
	}
	s.extend(now)
}

// busyFor is the time during which operations were in flight.
func (s *session) busyFor() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.ops) == 0 {
		return s.busy
	}
	return s.busy + time.Since(s.since)
}

// wait returns an operation's outcome, once, and recycles it.
func (s *session) wait(o *op) error {
	err := <-o.done
	if err != nil {
		return err // a reply may still come: it is not reused
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	o.buf, o.reply, o.extra = nil, nil, nil
	if len(s.spare) < cap(s.slots) {
		s.spare = append(s.spare, o)
	}
	return nil
}

// leave makes all operations in flight fail with cause. Their replies, when they come, are thrown away.
func (s *session) leave(cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leaving = cause
	for _, o := range s.ops {
		if o.err == nil && !o.finished {
			o.err = cause
		}
		o.left = true
		s.settle(o)
	}
}

// call is an operation without sector data. It returns payload and extra of the reply.
func (s *session) call(t wire.Type, payload, extra []byte) (reply, more []byte, err error) {
	o, err := s.begin(op{typ: t, total: 1}, nil)
	if err != nil {
		return nil, nil, err
	}
	s.wmu.Lock()
	b := wire.AppendHeader(s.scratch[:0], wire.Header{Type: t, Size: uint32(len(payload)), ID: o.id})
	s.scratch = append(append(b, payload...), extra...)
	_, werr := s.line.Write(s.scratch)
	s.wmu.Unlock()
	if werr != nil {
		s.fail(lost(werr))
	}
	if err := <-o.done; err != nil {
		return nil, nil, err
	}
	return o.reply, o.extra, nil
}

// get asks for len(buf) bytes at off. buf is filled when wait returned nil, and touched until wait returned.
func (s *session) get(buf []byte, off int64, c wire.Compression, leave <-chan struct{}) (*op, error) {
	o, err := s.begin(op{typ: wire.IO, read: true, buf: buf, off: off, total: len(buf)}, leave)
	if err != nil {
		return nil, err
	}
	s.wmu.Lock()
	b := wire.AppendHeader(s.scratch[:0], wire.Header{Type: wire.IO, Size: wire.IOSize, ID: o.id})
	s.scratch = wire.AppendIO(b, wire.ReadRequest(s.file.Handle, uint64(off), uint32(len(buf)), c))
	_, werr := s.line.Write(s.scratch)
	s.wmu.Unlock()
	if werr != nil {
		s.fail(lost(werr))
	}
	return o, nil
}

// headRoom is the space left in a TLS record behind the head of an IO frame.
const (
	ioHead   = wire.HeaderSize + wire.IOSize
	headRoom = 16<<10 - ioHead
)

// put writes buf at off, in fragments of one id. It is acknowledged when wait returned nil.
func (s *session) put(buf []byte, off int64, c wire.Compression, leave <-chan struct{}) (*op, error) {
	o, err := s.begin(op{typ: wire.IO, off: off, total: len(buf)}, leave)
	if err != nil {
		return nil, err
	}
	s.wmu.Lock()
	defer s.wmu.Unlock()
	for at := 0; at < len(buf); {
		part := buf[at:min(at+s.buffers.size, len(buf))]
		f := wire.IOFrame{
			Handle: s.file.Handle, Off: uint64(off), Total: uint32(len(buf)),
			FragOff: uint32(at), FragLen: uint32(len(part)), WireLen: uint32(len(part)),
		}
		data, used := s.packer.pack(part, c)
		f.Compression, f.WireLen = used, uint32(len(data))
		head := wire.AppendHeader(s.scratch[:0], wire.Header{Type: wire.IO, Size: wire.IOSize, ID: o.id})
		s.scratch = wire.AppendIO(head, f)
		if err := s.send(data); err != nil {
			s.fail(lost(err))
			break
		}
		at += len(part)
		s.stats.fragments.Add(1)
		s.stats.raw.Add(int64(len(part)))
		s.stats.wire.Add(int64(len(data)))
		s.mu.Lock()
		s.extend(time.Now())
		s.mu.Unlock()
	}
	return o, nil
}

// send writes s.scratch and data as one piece: one system call, or records of which none is small; s.wmu is held.
func (s *session) send(data []byte) error {
	if !s.line.sealed {
		b := net.Buffers{s.scratch, data}
		_, err := b.WriteTo(s.line.Conn)
		return err
	}
	n := min(len(data), headRoom)
	s.scratch = append(s.scratch, data[:n]...)
	if _, err := s.line.Write(s.scratch); err != nil || n == len(data) {
		return err
	}
	_, err := s.line.Write(data[n:])
	return err
}

// packer packs the fragments of writes; it is used under wmu.
type packer struct {
	codec wire.Codec
	buf   []byte
}

func (k *packer) pack(p []byte, c wire.Compression) ([]byte, wire.Compression) {
	out, used := k.codec.Encode(k.buf[:0], p, c)
	if used == wire.None {
		return p, used
	}
	k.buf = out
	return out, used
}

// read is the reader goroutine: it takes replies until the session is dead, then fails what is left.
func (s *session) read() {
	defer s.reader.Done()
	in := bufio.NewReaderSize(s.line, 4<<10) // larger reads pass it by
	err := s.replies(in)
	if s.tasks != nil {
		close(s.tasks)
	}
	s.fail(lost(err))
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.ops {
		if o.err == nil {
			o.err = s.err
		}
		s.settle(o)
	}
	clear(s.ops)
}

// unpack starts what unpacks fragments, so that the reader can go on reading.
func (s *session) unpack() {
	n := min(4, runtime.GOMAXPROCS(0))
	s.tasks, s.packs = make(chan task, n), make(chan []byte, 2*n+1)
	for range cap(s.packs) {
		s.packs <- nil
	}
	s.reader.Add(n)
	for range n {
		go func() {
			defer s.reader.Done()
			var k wire.Codec
			for t := range s.tasks {
				err := k.Decode(t.dst, t.src, t.c)
				s.packs <- t.src
				s.filled(t.op, len(t.dst), err)
			}
		}()
	}
}

// filled says that n bytes of an operation are in place, or that err spoiled it, and that its buffer is let go.
func (s *session) filled(o *op, n int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o.users--
	o.missing -= n
	if err != nil && o.err == nil {
		o.err = err
	}
	s.settle(o)
}

// close leaves in good order, for the host keeps the disk locked until told otherwise, and waits for the session's
// goroutines. It takes no longer than the given time.
func (s *session) close(until time.Time) error {
	s.end(until)
	err := s.farewell()
	s.fail(vddk.ErrClosed)
	s.reader.Wait()
	if s.lease != nil {
		s.lease.release()
		s.lease = nil
	}
	return err
}

// farewell closes file and session, as far as they are open, and says so.
func (s *session) farewell() error {
	if s.file.Handle != 0 {
		var p [8]byte
		le.PutUint64(p[:], s.file.Handle)
		if _, _, err := s.call(wire.CloseFile, p[:], nil); err != nil {
			return fmt.Errorf("close the disk: %w", err)
		}
	}
	if s.ready {
		if _, _, err := s.call(wire.CloseSession, make([]byte, 4), nil); err != nil {
			return fmt.Errorf("close the session: %w", err)
		}
	}
	s.wmu.Lock()
	defer s.wmu.Unlock()
	_, err := s.line.Write(wire.NewMessage(wire.SessionComplete)[:])
	return err
}
