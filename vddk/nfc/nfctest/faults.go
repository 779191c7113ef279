package nfctest

import (
	"errors"
	"fmt"
	"slices"

	"github.com/vmkeep/vmkeep/vddk/nfc/internal/wire"
)

// piece is one frame of an answer as planned, faults included.
type piece struct {
	bytes []byte
	data  int  // bytes of sector data it stands for
	cut   bool // the connection is cut behind it
	count bool
}

// plan makes the frames that answer a read, in the order they go out.
func (w *worker) plan(j job) ([]piece, error) {
	data := make([]byte, j.io.Total)
	if err := w.load(data, int64(j.io.Off)); err != nil {
		return nil, err
	}
	var frames []wire.IOFrame
	for at, i := uint32(0), 0; at < j.io.Total; i++ {
		n := uint32(w.buffer)
		if k := len(w.Fragments); k > 0 {
			n = min(n, uint32(w.Fragments[i%k]))
		}
		n = min(n, j.io.Total-at)
		frames = append(frames, wire.IOFrame{Read: true, Off: j.io.Off, Total: j.io.Total, FragOff: at, FragLen: n})
		at += n
	}
	var out []piece
	for i, f := range frames {
		part, c := data[f.FragOff:f.FragOff+f.FragLen], j.io.Compression
		if w.Uncompress || w.Mixed && i%2 == 1 {
			c = wire.None
		}
		body, used := w.codec.Encode(nil, part, c)
		if used == wire.None {
			body = part
			if w.RawSkipz && c == wire.Skipz {
				used = wire.Skipz
			}
		}
		f.Compression, f.WireLen = used, uint32(len(body))
		out = append(out, frame(j.id, f, body))
	}
	if w.OddFirst {
		var odd, even []piece
		for i, p := range out {
			if i%2 == 1 {
				odd = append(odd, p)
			} else {
				even = append(even, p)
			}
		}
		out = append(odd, even...)
	}
	return w.spoil(j, data, out), nil
}

func frame(id uint32, f wire.IOFrame, body []byte) piece {
	b := wire.AppendHeader(nil, wire.Header{Type: wire.IO, Size: wire.IOSize, ID: id})
	return piece{bytes: append(wire.AppendIO(b, f), body...), data: int(f.FragLen), count: true}
}

func errorPiece(id uint32, f Failure) piece {
	b := wire.AppendHeader(nil, wire.Header{Type: wire.Error, Size: wire.ErrorSize, ID: id})
	b = wire.AppendFailure(b, wire.Failure{Code: f.Code, TextLen: uint32(len(f.Text))})
	return piece{bytes: append(b, f.Text...)}
}

// spoil applies the job's fault to its frames.
func (w *worker) spoil(j job, data []byte, out []piece) []piece {
	whole := wire.IOFrame{Read: true, Off: j.io.Off, Total: j.io.Total, FragLen: j.io.Total, WireLen: j.io.Total}
	half := j.io.Total / 2
	one := func(f wire.IOFrame, body []byte) []piece { return []piece{frame(j.id, f, body)} }
	switch j.fault {
	case BadStatus:
		return one(wire.IOFrame{Handle: 7, Read: true, Off: j.io.Off, Total: j.io.Total}, nil)
	case Refused:
		return []piece{errorPiece(j.id, Failure{1, "DiskLib error 5: I/O error"})}
	case RefusedLate:
		return append([]piece{errorPiece(j.id, Failure{1, "DiskLib error 5: I/O error"})}, one(wire.IOFrame{}, nil)...)
	case NoMemory:
		return []piece{errorPiece(j.id, Failure{wire.CodeMemory, fmt.Sprintf(TextMemory, j.io.Total)})}
	case Overlap:
		a, b := whole, whole
		a.FragLen, a.WireLen = half, half
		b.FragOff, b.FragLen, b.WireLen = half-1, half, half
		return append(one(a, data[:half]), frame(j.id, b, data[half-1:2*half-1]))
	case Duplicate:
		a := whole
		a.FragLen, a.WireLen = half, half
		return append(one(a, data[:half]), frame(j.id, a, data[:half]))
	case Missing:
		return out[:len(out)-1]
	case OutOfRange:
		f := whole
		f.FragOff = 1
		return one(f, data)
	case WrongTotal:
		f := whole
		f.Total++
		return one(f, data)
	case WrongBase:
		f := whole
		f.Off += 512
		return one(f, data)
	case TooLong:
		f := whole
		f.FragLen = half
		return one(f, data)
	case HugeWire:
		f := whole
		f.Compression, f.WireLen = wire.Zlib, 1<<31
		return one(f, data)
	case Cut:
		p := out[0]
		p.bytes, p.cut = p.bytes[:ioHead+(len(p.bytes)-ioHead)/2], true
		return []piece{p}
	case WrongMagic:
		p := out[0]
		p.bytes[0] ^= 1
		return out
	case UnknownID:
		return append([]piece{frame(j.id+1<<20, whole, data)}, out...)
	case HugePayload:
		return []piece{{bytes: wire.AppendHeader(nil, wire.Header{Type: wire.IO, Size: 1 << 30, ID: j.id})}}
	case WrongType:
		b := wire.AppendHeader(nil, wire.Header{Type: wire.DDBGet, Size: wire.DDBSize, ID: j.id})
		return []piece{{bytes: append(b, make([]byte, wire.DDBSize)...)}}
	case Corrupt:
		if j.io.Compression == wire.None {
			return out
		}
		f := whole
		body := slices.Repeat([]byte{0xa5}, int(half))
		f.Compression, f.WireLen = j.io.Compression, half
		return one(f, body)
	case OverrunRecord:
		f := whole
		body := leAppend(nil, j.io.Total, 0, j.io.Total-8, 16)
		body = append(body, make([]byte, 16)...)
		f.Compression, f.WireLen = wire.Skipz, uint32(len(body))
		return one(f, body)
	case Stall:
		return nil
	}
	return out
}

func leAppend(b []byte, vs ...uint32) []byte {
	for _, v := range vs {
		b = append(b, byte(v), byte(v>>8), byte(v>>16), byte(v>>24))
	}
	return b
}

// emit sends a piece.
func (s *session) emit(p piece) error {
	if p.count {
		s.count(uint32(p.data), uint32(len(p.bytes)-ioHead))
	}
	if !p.cut {
		return s.send(p.bytes, nil)
	}
	// No other frame may follow the half one.
	s.wmu.Lock()
	defer s.wmu.Unlock()
	_, err := s.ch.Write(p.bytes)
	s.excused.Store(true)
	s.cut()
	return errors.Join(errCut, err)
}

// release answers the held reads, newest first; interleaved, their frames take turns.
func (s *session) release() {
	held := s.held
	s.held = nil
	slices.Reverse(held)
	w := &worker{session: s}
	var plans [][]piece
	for _, j := range held {
		s.flying.Add(-1)
		if f := s.readable(j); f != nil {
			plans = append(plans, []piece{errorPiece(j.id, *f)})
			continue
		}
		p, err := w.plan(j)
		if err != nil {
			p = []piece{errorPiece(j.id, *failure(err))}
		}
		plans = append(plans, p)
	}
	for {
		done := true
		for k := range plans {
			for len(plans[k]) > 0 {
				done = false
				if err := s.emit(plans[k][0]); err != nil {
					return
				}
				plans[k] = plans[k][1:]
				if s.Interleave {
					break
				}
			}
		}
		if done {
			return
		}
	}
}
