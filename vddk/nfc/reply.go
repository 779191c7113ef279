package nfc

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/vmkeep/vmkeep/vddk/nfc/internal/wire"
)

var le = binary.LittleEndian

// replies takes frames from the host until there are no more. What it returns ends the session: a lost connection, or
// a violation of the protocol, after which no later byte can be trusted.
func (s *session) replies(in *bufio.Reader) error {
	var head [wire.HeaderSize]byte
	var payload [wire.MaxPayload]byte
	for {
		if _, err := io.ReadFull(in, head[:]); err != nil {
			return err
		}
		h, err := wire.ParseHeader(head[:])
		if err != nil {
			return fmt.Errorf("%w: %w", ErrProtocol, err)
		}
		p := payload[:h.Size]
		if _, err := io.ReadFull(in, p); err != nil {
			return err
		}
		switch h.Type {
		case wire.Error:
			err = s.refused(in, h, p)
		case wire.IO:
			err = s.io(in, h, p)
		default:
			err = s.answered(in, h, p)
		}
		if errors.Is(err, wire.ErrFrame) {
			err = fmt.Errorf("%w: %w", ErrProtocol, err)
		}
		if err != nil {
			return err
		}
	}
}

// find looks an operation up. known: the id is of one that failed before, its reply is to be thrown away.
func (s *session) find(h wire.Header) (o *op, known bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o = s.ops[h.ID]; o != nil {
		if o.typ != h.Type && h.Type != wire.Error {
			return nil, false, fmt.Errorf("%w: %s in answer to %s", ErrProtocol, h.Type, o.typ)
		}
		return o, false, nil
	}
	if _, known = s.late[h.ID]; known {
		return nil, true, nil
	}
	return nil, false, fmt.Errorf("%w: %s for operation %d, which was not asked for", ErrProtocol, h.Type, h.ID)
}

// refused takes an ERROR. Its text must be read in any case. The operation is over for its caller, but some hosts send
// a reply of zeros behind.
func (s *session) refused(in *bufio.Reader, h wire.Header, p []byte) error {
	f, err := wire.ParseFailure(p)
	if err != nil {
		return err
	}
	text := make([]byte, f.TextLen)
	if _, err := io.ReadFull(in, text); err != nil {
		return err
	}
	o, known, err := s.find(h)
	if err != nil || known {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if o.err == nil {
		o.err = newFailure(f.Code, string(text), s.secret)
	}
	return s.lose(o)
}

// lose ends an operation of which replies may still come; s.mu is held.
func (s *session) lose(o *op) error {
	if len(s.late) >= maxLate {
		return fmt.Errorf("%w: more than %d operations failed", ErrProtocol, maxLate)
	}
	s.late[o.id] = struct{}{}
	s.forget(o)
	s.settle(o)
	return nil
}

// answered takes the reply to a call.
func (s *session) answered(in *bufio.Reader, h wire.Header, p []byte) error {
	o, known, err := s.find(h)
	if err != nil {
		return err
	}
	n := 0
	switch h.Type {
	case wire.DDBGet:
		d, err := wire.ParseDDBReply(p)
		if err != nil {
			return err
		}
		n = int(d.Len)
	case wire.QueryAllocated:
		q, err := wire.ParseQuery(p)
		if err != nil {
			return err
		}
		n = wire.BitmapSize(q.Chunks)
	}
	extra := make([]byte, n)
	if _, err := io.ReadFull(in, extra); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if known {
		delete(s.late, h.ID)
		return nil
	}
	o.reply, o.extra, o.missing = slices.Clone(p), extra, 0
	s.forget(o)
	s.settle(o)
	return nil
}

// io takes one fragment of a read, or the acknowledgement of a write.
func (s *session) io(in *bufio.Reader, h wire.Header, p []byte) error {
	f, err := wire.ParseIO(p)
	if err != nil {
		return err
	}
	o, known, err := s.find(h)
	switch {
	case err != nil:
		return err
	case known:
		if err := s.bounded(f); err != nil {
			return err
		}
		_, err := in.Discard(int(f.WireLen))
		return err
	case f.Handle != 0:
		if err := s.bounded(f); err != nil {
			return err
		}
		if _, err := in.Discard(int(f.WireLen)); err != nil {
			return err
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if o.err == nil {
			o.err = newFailure(f.Handle, "the operation failed", "")
		}
		return s.lose(o)
	case !o.read:
		return s.acknowledged(o, f)
	}
	dst, err := s.claim(o, f)
	switch {
	case err != nil:
		return err
	case dst == nil: // nobody waits for it
		if _, err := in.Discard(int(f.WireLen)); err != nil {
			return err
		}
		s.received(o, f)
	case f.Compression == wire.None:
		_, err := io.ReadFull(in, dst)
		if err != nil { // what came is not to be counted
			s.filled(o, 0, lost(err))
			return err
		}
		s.received(o, f)
		s.filled(o, len(dst), nil)
	default:
		if s.tasks == nil {
			s.unpack()
		}
		src := <-s.packs
		if cap(src) < int(f.WireLen) {
			src = make([]byte, max(s.buffers.size, int(f.WireLen)))
		}
		src = src[:f.WireLen]
		if _, err := io.ReadFull(in, src); err != nil {
			s.filled(o, 0, lost(err))
			return err
		}
		s.received(o, f)
		s.tasks <- task{op: o, dst: dst, src: src, c: f.Compression}
	}
	return nil
}

// bounded checks the length of data behind an IO that is thrown away.
func (s *session) bounded(f wire.IOFrame) error {
	if int64(f.WireLen) > int64(s.buffers.size)+wire.DefaultBuffer {
		return fmt.Errorf("%w: %d bytes behind a refused IO", wire.ErrFrame, f.WireLen)
	}
	return nil
}

func (s *session) acknowledged(o *op, f wire.IOFrame) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.Read || f.Off != uint64(o.off) || f.Total != uint32(o.total) {
		return fmt.Errorf("%w: acknowledgement of %d bytes at %d for a write of %d at %d", wire.ErrFrame, f.Total, f.Off, o.total, o.off)
	}
	o.missing = 0
	s.forget(o)
	s.settle(o)
	return nil
}

// claim checks a fragment against its operation and returns where its data go; the operation's buffer is then in use
// until filled is called. nil without an error: the caller left, the data are to be thrown away.
func (s *session) claim(o *op, f wire.IOFrame) ([]byte, error) {
	from, to := int(f.FragOff), int(f.FragOff)+int(f.FragLen)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case !f.Read:
		return nil, fmt.Errorf("%w: acknowledgement of a write in answer to a read", wire.ErrFrame)
	case f.Off != uint64(o.off):
		return nil, fmt.Errorf("%w: fragment of a read at %d in answer to one at %d", wire.ErrFrame, f.Off, o.off)
	case f.Total != uint32(o.total):
		return nil, fmt.Errorf("%w: fragment of a read of %d bytes in answer to one of %d", wire.ErrFrame, f.Total, o.total)
	case f.FragLen == 0:
		return nil, fmt.Errorf("%w: empty fragment", wire.ErrFrame)
	case f.Compression == wire.None && f.WireLen != f.FragLen:
		return nil, fmt.Errorf("%w: %d raw bytes for a fragment of %d", wire.ErrFrame, f.WireLen, f.FragLen)
	case f.WireLen > f.FragLen+f.FragLen/8+64:
		return nil, fmt.Errorf("%w: %d packed bytes for a fragment of %d", wire.ErrFrame, f.WireLen, f.FragLen)
	case !o.take(from, to):
		return nil, fmt.Errorf("%w: fragment %d+%d came before", wire.ErrFrame, f.FragOff, f.FragLen)
	}
	s.extend(time.Now())
	if o.left {
		return nil, nil
	}
	o.users++
	return o.buf[from:to], nil
}

// received says that the data of a fragment are off the wire; behind the last the operation leaves the table.
func (s *session) received(o *op, f wire.IOFrame) {
	s.stats.fragments.Add(1)
	s.stats.raw.Add(int64(f.FragLen))
	s.stats.wire.Add(int64(f.WireLen))
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(o.spans) == 1 && o.spans[0] == (span{0, o.total}) {
		s.forget(o)
	}
}

// take notes that [from, to) came, unless part of it came before.
func (o *op) take(from, to int) bool {
	i := len(o.spans)
	for i > 0 && o.spans[i-1].from >= to {
		i--
	}
	// spans[:i] begin before to, the others behind.
	if i > 0 && o.spans[i-1].to > from {
		return false
	}
	before := i > 0 && o.spans[i-1].to == from
	after := i < len(o.spans) && o.spans[i].from == to
	switch {
	case before && after:
		o.spans[i-1].to = o.spans[i].to
		o.spans = slices.Delete(o.spans, i, i+1)
	case before:
		o.spans[i-1].to = to
	case after:
		o.spans[i].from = from
	default:
		o.spans = slices.Insert(o.spans, i, span{from, to})
	}
	return true
}
