package nfctest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/vddk"
	"github.com/vmkeep/vmkeep/vddk/nfc/internal/wire"
)

// workers serve the reads and writes of one connection.
const workers = 4

// session is what frames change: at most one file, and the operations on it.
type session struct {
	*conn
	ch      *channel
	in      *bufio.Reader
	buffer  int // bytes of data per fragment
	file    File
	handle  uint64
	write   bool
	opened  bool // OPEN_SESSION was accepted
	closed  bool // CLOSE_SESSION came
	stale   extent.Set
	payload [wire.MaxPayload]byte

	jobs    chan job
	pending sync.WaitGroup // jobs not done
	running sync.WaitGroup // workers
	flying  atomic.Int64   // reads not answered
	held    []job
	free    chan []byte // buffers for data written by the client

	wmu     sync.Mutex // order of frames sent; guards the following
	sent    int64
	dropped bool      // by DropAfter
	due     time.Time // when the bandwidth allows the next byte

	amu      sync.Mutex
	acks     map[uint32]*ack // writes of which fragments are missing
	heldAcks []heldAck       // see Scenario.HoldWrites
}

// job is a read, or one fragment of a write.
type job struct {
	id    uint32
	io    wire.IOFrame
	fault FaultKind
	due   time.Time // not to be answered before
	data  []byte    // of a write, borrowed from session.free
}

// ack is what is known of a write so far.
type ack struct {
	first   wire.IOFrame
	got     uint32
	done    uint32
	refused bool
}

// heldAck is an acknowledgement that waits for others.
type heldAck struct {
	id    uint32
	first wire.IOFrame
}

// errStopped ends a session after an error reply that leaves nothing to say.
var errFarewell = errors.New("farewell")

func newSession(c *conn, ch *channel) *session {
	return &session{
		conn: c, ch: ch, in: bufio.NewReaderSize(ch, 32<<10), buffer: wire.DefaultBuffer,
		jobs: make(chan job, 64), acks: map[uint32]*ack{},
	}
}

// run serves frames and returns what the client left undone, nil if nothing, or if the scenario ended it.
func (s *session) run() error {
	s.raw.SetDeadline(time.Time{})
	err := s.frames()
	if err != errFarewell {
		s.cut()
	}
	close(s.jobs)
	s.running.Wait()
	var untidy error
	if s.file != nil {
		untidy = fmt.Errorf("file left open: %w", err)
		s.closeFile()
	} else if s.opened && err != errFarewell {
		untidy = fmt.Errorf("session left open: %w", err)
	}
	s.event("end", err.Error())
	if errors.Is(err, errCut) || s.excused.Load() {
		return nil
	}
	return untidy
}

func (s *session) frames() error {
	for {
		if s.IdleTimeout > 0 {
			s.raw.SetReadDeadline(time.Now().Add(s.IdleTimeout))
		}
		if s.closed {
			var m wire.Message
			if _, err := io.ReadFull(s.in, m[:]); err != nil {
				return err
			}
			s.event("classic", m.Type().String())
			if m.Type() != wire.SessionComplete {
				return fmt.Errorf("%s instead of SESSION_COMPLETE", m.Type())
			}
			return errFarewell
		}
		var head [wire.HeaderSize]byte
		if _, err := io.ReadFull(s.in, head[:]); err != nil {
			return err
		}
		h, err := wire.ParseHeader(head[:])
		if err != nil {
			return err
		}
		p := s.payload[:h.Size]
		if _, err := io.ReadFull(s.in, p); err != nil {
			return err
		}
		if h.Type == wire.IO {
			if s.IdleTimeout > 0 {
				s.raw.SetReadDeadline(time.Time{})
			}
			err = s.io(h, p)
		} else {
			s.told(Event{Stage: "aio", What: h.Type.String(), ID: h.ID, Len: int(h.Size)})
			s.drain()
			err = s.control(h, p)
		}
		if err != nil {
			return err
		}
	}
}

// drain waits until all operations are answered.
func (s *session) drain() {
	s.release()
	s.pending.Wait()
	s.amu.Lock()
	held := s.heldAcks
	s.heldAcks = nil
	s.amu.Unlock()
	if err := s.acknowledgeAll(held); err != nil {
		s.cut()
	}
}

func (s *session) control(h wire.Header, p []byte) error {
	if !s.opened && h.Type != wire.OpenSession {
		return fmt.Errorf("%s before OPEN_SESSION", h.Type)
	}
	switch h.Type {
	case wire.OpenSession:
		return s.open(h, p)
	case wire.SetSockOpts, wire.SetResPool:
		if s.Unfriendly {
			return s.fail(h.ID, Failure{Code: 22, Text: "not supported"})
		}
		return s.reply(h, make([]byte, h.Size), nil)
	case wire.OpenFile:
		return s.openFile(h, p)
	case wire.CloseFile:
		if s.CloseSilent {
			io.Copy(io.Discard, s.in) // until the client has had enough
			return errCut
		}
		if s.file == nil || h.Size < 8 || leUint64(p) != s.handle {
			return s.fail(h.ID, Failure{Code: 9, Text: "invalid handle"})
		}
		err := s.closeFile()
		if s.CloseFails != nil {
			return s.fail(h.ID, *s.CloseFails)
		}
		if err != nil {
			return s.fail(h.ID, *failure(err))
		}
		return s.reply(h, make([]byte, h.Size), nil)
	case wire.CloseSession:
		if s.file != nil {
			return errors.New("CLOSE_SESSION with an open file")
		}
		s.closed = true
		return s.reply(h, make([]byte, h.Size), nil)
	case wire.DDBGet:
		return s.ddb(h, p)
	case wire.QueryAllocated:
		return s.query(h, p)
	}
	return s.fail(h.ID, Failure{Code: 22, Text: fmt.Sprintf("%s is not supported", h.Type)})
}

func (s *session) open(h wire.Header, p []byte) error {
	r, err := wire.ParseSession(p)
	if err != nil {
		return err
	}
	size, count := r.BufSize, r.BufCount
	if size == 0 {
		size = wire.DefaultBuffer
	}
	count = max(count, 1)
	limit := s.MaxBuffer
	if limit == 0 {
		limit = defaultMaxBuffer
	}
	need := int64(size) * int64(count)
	if size > limit || !s.server.allocate(s.conn, need) {
		return s.fail(h.ID, Failure{Code: wire.CodeMemory, Text: fmt.Sprintf(TextMemory, need)})
	}
	s.buffer = int(size)
	if s.free == nil {
		s.free = make(chan []byte, workers)
		for range workers {
			s.running.Add(1)
			go s.work()
			s.free <- nil
		}
		s.server.sessions.Add(1)
	}
	s.opened = true
	return s.reply(h, make([]byte, wire.OpenSessionSize), nil)
}

func (s *session) openFile(h wire.Header, p []byte) error {
	r, err := wire.ParseOpen(p)
	if err != nil {
		return err
	}
	path := make([]byte, r.PathLen)
	if _, err := io.ReadFull(s.in, path); err != nil {
		return err
	}
	s.told(Event{Stage: "aio", What: "path " + string(path), ID: h.ID, Len: len(path)})
	if s.OpenFails != nil {
		return s.fail(h.ID, *s.OpenFails)
	}
	if r.Writable() && !s.grant.Write {
		return s.fail(h.ID, Failure{wire.CodePermission, TextPermission})
	}
	if s.file != nil {
		return s.fail(h.ID, Failure{22, "the session has a file already"})
	}
	f, err := s.server.cfg.Store.Open(s.ctx, OpenRequest{Grant: s.grant, Path: string(path), Writable: r.Writable()})
	if err != nil {
		return s.fail(h.ID, *failure(err))
	}
	s.file, s.write = f, r.Writable()
	s.handle = 0x5600_0000_0000 + uint64(s.serial)<<12
	s.server.files.Add(1)
	s.server.openFiles.Add(1)
	if s.Stale {
		if s.stale, err = f.Allocated(extent.Extent{Len: f.Size()}); err != nil {
			return s.fail(h.ID, *failure(err))
		}
	}
	size := uint64(f.Size() + s.GrowBy)
	reply := wire.File{
		Handle: s.handle, FileType: wire.NFCDisk, Flags: r.Flags, Capacity: size, SectorSize: s.SectorSize,
		Cylinders: uint32(size / (255 * 63 * 512)), Heads: 255, Sectors: 63,
	}
	if s.FileType != 0 {
		reply.FileType = s.FileType
	}
	return s.reply(h, wire.AppendFile(nil, reply), nil)
}

func (s *session) closeFile() error {
	err := s.file.Close()
	s.file = nil
	s.server.openFiles.Add(-1)
	return err
}

func (s *session) ddb(h wire.Header, p []byte) error {
	r, err := wire.ParseDDBRequest(p)
	if err != nil {
		return err
	}
	key := make([]byte, r.Len)
	if _, err := io.ReadFull(s.in, key); err != nil {
		return err
	}
	var value string
	if d, ok := s.file.(Database); ok {
		value, _ = d.DDB(string(key))
	}
	return s.reply(h, wire.AppendDDBReply(nil, wire.DDB{Len: uint32(len(value))}), []byte(value))
}

func (s *session) query(h wire.Header, p []byte) error {
	q, err := wire.ParseQuery(p)
	if err != nil {
		return err
	}
	if s.QueryFails != nil {
		return s.fail(h.ID, *s.QueryFails)
	}
	if s.file == nil || q.Handle != s.handle {
		return s.fail(h.ID, Failure{9, "invalid handle"})
	}
	size := uint64(s.file.Size())
	if q.ChunkSize < 128*vddk.SectorSize || q.ChunkSize%vddk.SectorSize != 0 || q.Start%q.ChunkSize != 0 ||
		q.Start > size || q.Chunks > (size-q.Start)/q.ChunkSize {
		return s.fail(h.ID, Failure{22, "chunks are not aligned"})
	}
	e := extent.Extent{Off: int64(q.Start), Len: int64(q.ChunkSize * q.Chunks)}
	var set extent.Set
	if s.Stale && s.write {
		set = s.stale.Clip(e)
	} else if set, err = s.file.Allocated(e); err != nil {
		return s.fail(h.ID, *failure(err))
	}
	bitmap := make([]byte, wire.BitmapSize(q.Chunks))
	for _, x := range set.Clip(e) {
		for i := (uint64(x.Off) - q.Start) / q.ChunkSize; i*q.ChunkSize+q.Start < uint64(x.End()); i++ {
			bitmap[i/8] |= 1 << (i % 8)
		}
	}
	return s.reply(h, wire.AppendQuery(nil, q), bitmap)
}

// failure is what a host says of an error of the store.
func failure(err error) *Failure {
	switch {
	case errors.Is(err, vddk.ErrLocked):
		return &Failure{1, TextLocked}
	case errors.Is(err, vddk.ErrPermission):
		return &Failure{wire.CodePermission, TextPermission}
	case errors.Is(err, vddk.ErrNotFound):
		return &Failure{1, TextNotFound}
	}
	return &Failure{1, err.Error()}
}

// reply sends one frame.
func (s *session) reply(h wire.Header, payload, extra []byte) error {
	b := wire.AppendHeader(make([]byte, 0, wire.HeaderSize+len(payload)+len(extra)), wire.Header{Type: h.Type, Size: uint32(len(payload)), ID: h.ID})
	return s.send(append(append(b, payload...), extra...), nil)
}

// fail sends ERROR, and what some hosts send after it.
func (s *session) fail(id uint32, f Failure) error {
	s.told(Event{Stage: "aio", What: "ERROR: " + f.Text, ID: id})
	b := wire.AppendHeader(nil, wire.Header{Type: wire.Error, Size: wire.ErrorSize, ID: id})
	b = wire.AppendFailure(b, wire.Failure{Code: f.Code, TextLen: uint32(len(f.Text))})
	b = append(b, f.Text...)
	if s.ZeroReply {
		t, n := wire.OpenFile, uint32(wire.OpenFileSize)
		if s.file != nil {
			t, n = wire.IO, wire.IOSize
		}
		b = wire.AppendHeader(b, wire.Header{Type: t, Size: n, ID: id})
		b = append(b, make([]byte, n)...)
	}
	return s.send(b, nil)
}

// send writes a frame, in up to two pieces, as the scenario's bandwidth allows.
func (s *session) send(head, data []byte) error {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	if s.dropped {
		return errCut
	}
	n := len(head) + len(data)
	if s.Bandwidth > 0 {
		now := time.Now()
		if s.due.Before(now) {
			s.due = now
		}
		s.due = s.due.Add(time.Duration(float64(n) / float64(s.Bandwidth) * float64(time.Second)))
		s.wait(s.due.Sub(now))
	}
	if s.DropAfter > 0 && s.sent+int64(n) > s.DropAfter && s.server.mayDrop(s.conn) {
		keep := s.DropAfter - s.sent
		if keep < int64(len(head)) {
			s.ch.Write(head[:keep])
		} else {
			s.ch.Write(head)
			s.ch.Write(data[:keep-int64(len(head))])
		}
		s.dropped = true
		s.excused.Store(true)
		s.cut()
		return errCut
	}
	s.sent += int64(n)
	if len(data) == 0 {
		_, err := s.ch.Write(head)
		return err
	}
	b := net.Buffers{head, data}
	_, err := b.WriteTo(s.ch.Conn)
	return err
}
