// Package device is the stack of block devices below a guest's file systems: disks, parts of them, and what
// volume managers build from those.
//
// A [Device] is bytes with a size that also knows where each of its bytes lies on the machine's disks. That is
// the decision the package hides from everybody above: a file system gives extents of its volume, and
// [Device.Locate] turns them into extents of disks, through partitions and logical volumes, so that they can be
// compared with what changed-block tracking reports.
//
// Vocabulary: a disk is a virtual disk of the machine, numbered from 0 in the order given to mount.Open; a piece
// is a byte range of a disk that holds a byte range of a device.
package device

import (
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/vmkeep/vmkeep/chunker/extent"
)

// ErrMissing marks reads of bytes that lie on a disk which was not given.
var ErrMissing = errors.New("a disk of this volume is missing")

// Zeros as [Piece.Disk] says that the bytes are zeros stored nowhere.
const Zeros = -1

// Piece is a byte range of a disk, holding the next bytes of a device.
type Piece struct {
	Disk int   // number of the disk, or [Zeros]
	Off  int64 // bytes from the start of the disk; 0 for Zeros
	Len  int64 // bytes
}

// Device is a range of bytes made of disks.
//
// What a Device guarantees:
//   - ReadAt is safe for concurrent use, fills the buffer or fails, and gives io.EOF only at or beyond Size.
//   - Locate's pieces tile the extent in order. Bytes that exist several times (mirrors) are located where
//     ReadAt reads them, and so is data rebuilt from copies.
type Device interface {
	io.ReaderAt
	Size() int64
	// Locate calls emit with the pieces that hold e, in order, until emit returns false.
	// e must lie inside the device.
	Locate(e extent.Extent, emit func(Piece) bool) error
}

// disk is the bottom of the stack.
type disk struct {
	r    io.ReaderAt
	n    int
	size int64
}

// Disk makes a device of disk number n. r need only serve whole, aligned 512-byte sectors.
func Disk(r io.ReaderAt, n int, size int64) Device { return &disk{r: r, n: n, size: size} }

const sector = 512

func (d *disk) Size() int64 { return d.size }

func (d *disk) ReadAt(p []byte, off int64) (int, error) {
	return inside(p, off, d.size, func(p []byte, off int64) error {
		if off%sector == 0 && len(p)%sector == 0 {
			return full(d.r, p, off)
		}
		// A disk reads whole sectors only: read those around p. Callers above ask for pages, so this is rare
		// and p is small, but bytes of a guest decide over it: go in bounded steps.
		for len(p) > 0 {
			lo := off &^ (sector - 1)
			hi := min((off+int64(len(p))+sector-1)&^(sector-1), lo+maxStep)
			b := make([]byte, min(hi, d.size)-lo)
			if err := full(d.r, b, lo); err != nil {
				return err
			}
			n := copy(p, b[off-lo:])
			p, off = p[n:], off+int64(n)
		}
		return nil
	})
}

const maxStep = 1 << 20

func (d *disk) Locate(e extent.Extent, emit func(Piece) bool) error {
	if err := within(e, d.size); err != nil {
		return err
	}
	emit(Piece{d.n, e.Off, e.Len})
	return nil
}

// slice is a part of a device.
type slice struct {
	d         Device
	off, size int64
}

// Slice is the part e of d. A part that reaches beyond d is cut there.
func Slice(d Device, e extent.Extent) Device {
	off := min(max(e.Off, 0), d.Size())
	return &slice{d, off, min(max(e.Len, 0), d.Size()-off)}
}

func (s *slice) Size() int64 { return s.size }

func (s *slice) ReadAt(p []byte, off int64) (int, error) {
	return inside(p, off, s.size, func(p []byte, off int64) error { return full(s.d, p, s.off+off) })
}

func (s *slice) Locate(e extent.Extent, emit func(Piece) bool) error {
	if err := within(e, s.size); err != nil {
		return err
	}
	return s.d.Locate(extent.Extent{Off: s.off + e.Off, Len: e.Len}, emit)
}

// Target says where a byte of a [Mapped] device lies and how many bytes follow it there.
type Target struct {
	Dev Device // nil: zeros
	Off int64  // bytes into Dev
	Len int64  // bytes that lie together, at least 1
}

// mapped is a device computed from others.
type mapped struct {
	size   int64
	lookup func(off int64) (Target, error)
}

// Mapped makes a device of size bytes from a function that finds each offset in another device: what stripes,
// concatenations and thin volumes have in common. lookup must be safe for concurrent use.
func Mapped(size int64, lookup func(off int64) (Target, error)) Device {
	return &mapped{size, lookup}
}

func (m *mapped) Size() int64 { return m.size }

func (m *mapped) ReadAt(p []byte, off int64) (int, error) {
	return inside(p, off, m.size, func(p []byte, off int64) error {
		return m.each(extent.Extent{Off: off, Len: int64(len(p))}, func(t Target) (bool, error) {
			q := p[:t.Len]
			p = p[t.Len:]
			if t.Dev == nil {
				clear(q)
				return true, nil
			}
			return true, full(t.Dev, q, t.Off)
		})
	})
}

func (m *mapped) Locate(e extent.Extent, emit func(Piece) bool) error {
	if err := within(e, m.size); err != nil {
		return err
	}
	return m.each(e, func(t Target) (bool, error) {
		if t.Dev == nil {
			return emit(Piece{Disk: Zeros, Len: t.Len}), nil
		}
		on := true
		err := t.Dev.Locate(extent.Extent{Off: t.Off, Len: t.Len}, func(p Piece) bool {
			on = emit(p)
			return on
		})
		return on, err
	})
}

// each calls fn with the targets of e, neighbours joined.
func (m *mapped) each(e extent.Extent, fn func(Target) (bool, error)) error {
	var held Target
	for off := e.Off; off < e.End(); {
		t, err := m.lookup(off)
		if err != nil {
			return err
		}
		if t.Len <= 0 {
			return fmt.Errorf("device map is empty at byte %d", off)
		}
		t.Len = min(t.Len, e.End()-off)
		off += t.Len
		if held.Len > 0 && held.Dev == t.Dev && (t.Dev == nil || held.Off+held.Len == t.Off) {
			held.Len += t.Len
			continue
		}
		if held.Len > 0 {
			if on, err := fn(held); err != nil || !on {
				return err
			}
		}
		held = t
	}
	if held.Len == 0 {
		return nil
	}
	_, err := fn(held)
	return err
}

// Absent is a device of size bytes whose disk was not given: every access fails with [ErrMissing] and what.
func Absent(size int64, what string) Device { return absent{size, what} }

type absent struct {
	size int64
	what string
}

func (a absent) Size() int64 { return a.size }

func (a absent) ReadAt([]byte, int64) (int, error) { return 0, a.err() }

func (a absent) Locate(extent.Extent, func(Piece) bool) error { return a.err() }

func (a absent) err() error { return fmt.Errorf("%s: %w", a.what, ErrMissing) }

// inside gives a read the semantics of io.ReaderAt on size bytes; read fills its buffer or fails.
func inside(p []byte, off, size int64, read func([]byte, int64) error) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at negative offset %d", off)
	}
	var end error
	if off >= size {
		if len(p) == 0 {
			return 0, nil
		}
		return 0, io.EOF
	}
	if int64(len(p)) > size-off {
		p, end = p[:size-off], io.EOF
	}
	if err := read(p, off); err != nil {
		return 0, err
	}
	return len(p), end
}

// full reads all of p or fails; io.EOF with a full buffer is success.
func full(r io.ReaderAt, p []byte, off int64) error {
	if off < 0 || off > math.MaxInt64-int64(len(p)) {
		return fmt.Errorf("read at impossible offset %d", off)
	}
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read %d bytes at %d: %w", len(p), off, err)
}

func within(e extent.Extent, size int64) error {
	if !e.Valid() || e.End() > size {
		return fmt.Errorf("extent %v is outside a device of %d bytes", e, size)
	}
	return nil
}
