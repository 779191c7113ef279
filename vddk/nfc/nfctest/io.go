package nfctest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/vmkeep/vmkeep/vddk/nfc/internal/wire"
)

func leUint64(b []byte) uint64 { return binary.LittleEndian.Uint64(b) }

const ioHead = wire.HeaderSize + wire.IOSize

// io takes one IO frame from the client.
func (s *session) io(h wire.Header, p []byte) error {
	f, err := wire.ParseIO(p)
	if err != nil {
		return err
	}
	if !s.opened {
		return errors.New("IO before OPEN_SESSION")
	}
	if f.Read {
		s.told(Event{Stage: "aio", What: "IO read", ID: h.ID, Len: int(f.Total)})
		s.server.readOps.Add(1)
		if n := s.flying.Add(1); n > s.server.maxInFlight.Load() {
			s.server.maxInFlight.Store(n)
		}
		j := job{id: h.ID, io: f, fault: s.server.fault(s.conn)}
		if late := s.Latency + rand.N(s.Jitter+1); late > 0 {
			j.due = time.Now().Add(late)
		}
		if s.Hold > 0 {
			if s.held = append(s.held, j); len(s.held) == s.Hold {
				s.release()
			}
			return nil
		}
		s.pending.Add(1)
		s.jobs <- j
		return nil
	}
	return s.takeWrite(h, f)
}

// takeWrite reads a fragment's data and hands it to a worker.
func (s *session) takeWrite(h wire.Header, f wire.IOFrame) error {
	s.told(Event{Stage: "aio", What: "IO write", ID: h.ID, Len: int(f.FragLen)})
	if int(f.WireLen) > s.buffer || int(f.FragLen) > s.buffer {
		return fmt.Errorf("write fragment of %d (%d on the wire) bytes, buffers have %d", f.FragLen, f.WireLen, s.buffer)
	}
	buf := <-s.free
	if cap(buf) < s.buffer {
		buf = make([]byte, s.buffer)
	}
	buf = buf[:f.WireLen]
	if _, err := io.ReadFull(s.in, buf); err != nil {
		return err
	}
	s.amu.Lock()
	a := s.acks[h.ID]
	if a == nil {
		a = &ack{first: f}
		s.acks[h.ID] = a
	}
	bad := a.first.Off != f.Off || a.first.Total != f.Total || a.got != f.FragOff
	a.got += f.FragLen
	s.amu.Unlock()
	if bad {
		return fmt.Errorf("write fragment %+v does not follow %+v", f, a.first)
	}
	j := job{id: h.ID, io: f, data: buf}
	s.pending.Add(1)
	s.jobs <- j
	return nil
}

// worker is what one goroutine reuses.
type worker struct {
	*session
	buf    []byte // head and data of a fragment
	packed []byte
	codec  wire.Codec
}

func (s *session) work() {
	defer s.running.Done()
	w := &worker{session: s}
	for j := range s.jobs {
		if !j.due.IsZero() {
			s.wait(time.Until(j.due))
		}
		var err error
		switch {
		case s.ctx.Err() != nil:
		case !j.io.Read:
			err = w.write(j)
		default:
			err = w.read(j)
		}
		if err != nil {
			s.cut()
		}
		if j.data != nil {
			s.free <- j.data
		}
		s.pending.Done()
	}
}

func (w *worker) write(j job) error {
	data := j.data
	var err error
	switch {
	case w.file == nil || j.io.Handle != w.handle:
		err = &Failure{9, "invalid handle"}
	case !w.session.write:
		err = &Failure{wire.CodePermission, TextPermission}
	case w.WriteFails != nil:
		err = w.WriteFails
	default:
		if j.io.Compression != wire.None {
			w.packed = slices.Grow(w.packed[:0], int(j.io.FragLen))
			data = w.packed[:j.io.FragLen]
			err = w.codec.Decode(data, j.data, j.io.Compression)
		} else if j.io.WireLen != j.io.FragLen {
			return errors.New("raw write fragment of another length than stated")
		}
		if err == nil {
			_, err = w.file.WriteAt(data, int64(j.io.Off)+int64(j.io.FragOff))
		}
	}
	w.server.fragments.Add(1)
	w.amu.Lock()
	a := w.acks[j.id]
	a.done += j.io.FragLen
	first := err != nil && !a.refused
	a.refused = a.refused || err != nil
	last, refused := a.done == a.first.Total, a.refused
	if last {
		delete(w.acks, j.id)
	}
	var held []heldAck
	if last && !refused && w.HoldWrites > 0 {
		if w.heldAcks = append(w.heldAcks, heldAck{j.id, a.first}); len(w.heldAcks) == w.HoldWrites {
			held, w.heldAcks = w.heldAcks, nil
		}
	}
	w.amu.Unlock()
	if first {
		var f *Failure
		if !errors.As(err, &f) {
			f = failure(err)
		}
		return w.fail(j.id, *f)
	}
	if !last || refused {
		return nil
	}
	w.server.writes.Add(1)
	w.server.written.Add(int64(a.first.Total))
	if w.HoldWrites > 0 {
		return w.acknowledgeAll(held)
	}
	if late := w.Latency + w.WriteDelay; late > 0 { // the acknowledgement is under way, buffer and worker are free
		w.pending.Add(1)
		w.running.Go(func() {
			defer w.pending.Done()
			w.wait(late)
			if err := w.acknowledge(j.id, a.first); err != nil {
				w.cut()
			}
		})
		return nil
	}
	return w.acknowledge(j.id, a.first)
}

// acknowledgeAll acknowledges writes, newest first.
func (s *session) acknowledgeAll(held []heldAck) error {
	for _, h := range slices.Backward(held) {
		if err := s.acknowledge(h.id, h.first); err != nil {
			return err
		}
	}
	return nil
}

func (s *session) acknowledge(id uint32, f wire.IOFrame) error {
	r := wire.IOFrame{Off: f.Off, Total: f.Total, FragLen: f.Total}
	return s.reply(wire.Header{Type: wire.IO, ID: id}, wire.AppendIO(nil, r), nil)
}

func (f *Failure) Error() string { return f.Text }

// readable checks a read before it is served.
func (s *session) readable(j job) *Failure {
	switch {
	case s.file == nil || j.io.Handle != s.handle:
		return &Failure{9, "invalid handle"}
	case j.io.Off+uint64(j.io.Total) > uint64(s.file.Size()+s.GrowBy):
		return &Failure{22, "read beyond the end of the disk"}
	}
	return nil
}

// load fills p from the file; what the file lacks of its stated capacity is zeros.
func (s *session) load(p []byte, off int64) error {
	n, err := s.file.ReadAt(p, off)
	if err == io.EOF && n == len(p) || err == nil {
		return nil
	}
	if err == io.EOF && s.GrowBy > 0 {
		clear(p[n:])
		return nil
	}
	return err
}

// plain says that fragments are as large as buffers, in order and without faults.
func (s *session) plain(j job) bool {
	return j.fault == 0 && len(s.Fragments) == 0 && !s.OddFirst && !s.Mixed && !s.RawSkipz
}

func (w *worker) read(j job) error {
	defer w.flying.Add(-1)
	if f := w.readable(j); f != nil {
		return w.fail(j.id, *f)
	}
	if !w.plain(j) {
		pieces, err := w.plan(j)
		if err != nil {
			return w.fail(j.id, *failure(err))
		}
		for _, p := range pieces {
			if err := w.emit(p); err != nil {
				return err
			}
		}
		return nil
	}
	view, lend := w.file.(Viewer)
	for at := uint32(0); at < j.io.Total; {
		n := min(uint32(w.buffer), j.io.Total-at)
		off := int64(j.io.Off) + int64(at)
		f := wire.IOFrame{Read: true, Off: j.io.Off, Total: j.io.Total, FragOff: at, FragLen: n, WireLen: n}
		packs := j.io.Compression != wire.None && !w.Uncompress
		if lend && !packs && !w.ch.sealed {
			if data, release, ok := view.View(off, int(n)); ok {
				w.count(n, f.WireLen)
				err := w.send(w.head(j.id, f), data)
				release()
				if err != nil {
					return err
				}
				at += n
				continue
			}
		}
		w.buf = slices.Grow(w.buf[:0], ioHead+int(n))[:ioHead+int(n)]
		data := w.buf[ioHead:]
		if err := w.load(data, off); err != nil {
			return w.fail(j.id, *failure(err))
		}
		frame := w.buf
		if packs {
			w.packed = slices.Grow(w.packed[:0], ioHead+int(n)+int(n)/8)
			if p, c := w.codec.Encode(w.packed[:ioHead], data, j.io.Compression); c != wire.None {
				frame = p
				f.Compression, f.WireLen = c, uint32(len(p)-ioHead)
			}
			w.packed = w.packed[:0]
		}
		wire.AppendIO(wire.AppendHeader(frame[:0], wire.Header{Type: wire.IO, Size: wire.IOSize, ID: j.id}), f)
		w.count(n, f.WireLen)
		if err := w.send(frame, nil); err != nil {
			return err
		}
		at += n
	}
	return nil
}

func (w *worker) head(id uint32, f wire.IOFrame) []byte {
	w.buf = slices.Grow(w.buf[:0], ioHead)
	return wire.AppendIO(wire.AppendHeader(w.buf[:0], wire.Header{Type: wire.IO, Size: wire.IOSize, ID: id}), f)
}

// count counts a fragment before it is sent, so that whoever has it finds it counted.
func (s *session) count(raw, wire uint32) {
	s.server.fragments.Add(1)
	s.server.readBytes.Add(int64(raw))
	s.server.wireBytes.Add(int64(wire))
}
