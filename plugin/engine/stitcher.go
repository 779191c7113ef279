package engine

import (
	"bytes"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/repo"
	"github.com/vmkeep/vmkeep/vddk"
)

// stitcher writes pieces that begin and end at any byte to a target that takes whole sectors.
type stitcher struct {
	target  io.WriterAt
	there   io.ReaderAt // what the target holds where nothing was written yet; needed to patch
	fresh   bool
	patch   bool // only sectors that differ from what is there are written
	written *atomic.Int64

	buffers sync.Pool // of *[]byte: what is there, while it is looked at

	mu      sync.Mutex
	pending map[int64]*sector // by number
}

// sector is being put together from the pieces that share it.
type sector struct {
	data   [vddk.SectorSize]byte
	filled int
}

// zeroRun is the granularity in which zeros are looked for and left out on a fresh target.
const zeroRun = 64 << 10

var zeros [zeroRun]byte // never written

func isZero(p []byte) bool {
	for len(p) > len(zeros) {
		if !bytes.Equal(p[:len(zeros)], zeros[:]) {
			return false
		}
		p = p[len(zeros):]
	}
	return bytes.Equal(p, zeros[:len(p)])
}

// write takes the bytes at off. data is not kept.
func (s *stitcher) write(off int64, data []byte) error {
	if head := int(-off & (vddk.SectorSize - 1)); head > 0 {
		head = min(head, len(data))
		if err := s.edge(off, data[:head], head); err != nil {
			return err
		}
		off, data = off+int64(head), data[head:]
	}
	if tail := len(data) & (vddk.SectorSize - 1); tail > 0 {
		if err := s.edge(off+int64(len(data)-tail), data[len(data)-tail:], tail); err != nil {
			return err
		}
		data = data[:len(data)-tail]
	}
	if !s.fresh {
		return s.put(off, data)
	}
	for len(data) > 0 { // write runs between zeros, cut at multiples of zeroRun
		n := 0
		for n < len(data) {
			step := min(zeroRun-int((off+int64(n))&(zeroRun-1)), len(data)-n)
			if isZero(data[n : n+step]) {
				break
			}
			n += step
		}
		if err := s.put(off, data[:n]); err != nil {
			return err
		}
		off, data = off+int64(n), data[n:]
		if len(data) > 0 {
			skip := min(zeroRun-int(off&(zeroRun-1)), len(data))
			off, data = off+int64(skip), data[skip:]
		}
	}
	return nil
}

// zeros takes a run of zeros.
func (s *stitcher) zeros(e extent.Extent) error {
	for e.Len > 0 {
		n := min(e.Len, zeroRun-e.Off&(zeroRun-1))
		if aligned := e.Off&(vddk.SectorSize-1) == 0; s.fresh && aligned && e.Len >= vddk.SectorSize {
			n = e.Len &^ (vddk.SectorSize - 1) // all whole sectors are zeros already
		} else if err := s.write(e.Off, zeros[:n]); err != nil {
			return err
		}
		e.Off, e.Len = e.Off+n, e.Len-n
	}
	return nil
}

// edge takes a piece of one sector.
func (s *stitcher) edge(off int64, data []byte, n int) error {
	number := off / vddk.SectorSize
	s.mu.Lock()
	x := s.pending[number]
	if x == nil {
		x = &sector{}
		s.pending[number] = x
	}
	copy(x.data[off%vddk.SectorSize:], data)
	x.filled += n
	whole := x.filled == vddk.SectorSize
	if whole {
		delete(s.pending, number)
	}
	s.mu.Unlock()
	if !whole || s.fresh && isZero(x.data[:]) {
		return nil
	}
	return s.put(number*vddk.SectorSize, x.data[:])
}

// put writes whole sectors.
func (s *stitcher) put(off int64, data []byte) error {
	if !s.patch || len(data) == 0 {
		return s.send(off, data)
	}
	buf, _ := s.buffers.Get().(*[]byte)
	if buf == nil || cap(*buf) < len(data) {
		b := make([]byte, len(data))
		buf = &b
	}
	defer s.buffers.Put(buf)
	there := (*buf)[:len(data)]
	n, err := s.there.ReadAt(there, off)
	if err != nil && err != io.EOF {
		return fmt.Errorf("read the disk at %d: %w", off, err)
	}
	clear(there[n:])
	begin, end := 0, 0 // the differing run that is still open
	for at := 0; at < len(data); at += vddk.SectorSize {
		if bytes.Equal(data[at:at+vddk.SectorSize], there[at:at+vddk.SectorSize]) {
			continue
		}
		if at > end+patchGap {
			if err := s.send(off+int64(begin), data[begin:end]); err != nil {
				return err
			}
			begin = at
		}
		if begin == end {
			begin = at
		}
		end = at + vddk.SectorSize
	}
	return s.send(off+int64(begin), data[begin:end])
}

// patchGap is how many bytes between two differing runs are written with them: another request would cost more.
const patchGap = 4 << 10

func (s *stitcher) send(off int64, data []byte) error {
	if len(data) == 0 {
		return nil
	}
	if _, err := s.target.WriteAt(data, off); err != nil {
		return err
	}
	s.written.Add(int64(len(data)))
	return nil
}

// complete makes sure that every sector got all its bytes.
func (s *stitcher) complete() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.pending); n > 0 {
		return fmt.Errorf("%d sectors were written in part: %w", n, repo.ErrDamaged)
	}
	return nil
}
