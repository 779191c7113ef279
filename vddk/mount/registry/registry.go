// Package registry reads hives of the Windows registry: the files SYSTEM, SOFTWARE and others of
// \Windows\System32\config, with what their logs hold that they lack.
//
// Vocabulary:
//
//	bins   the part of a hive behind its base block; all offsets in a hive count from there
//	cell   a record in the bins: its length(4, negative where it is in use) and content
//	key    a cell "nk", with lists of cells: of the keys below it and of its values
//	value  a cell "vk", with its bytes in itself, in a cell, or in several ("db")
//
// A hive is a guest's file and as hostile as the rest: every length is bounded, and what is not right is
// [guestfs.ErrDamaged]. Nothing is cached: few cells lead to a value.
//
// Source: the format is not published by Microsoft. M. Suhanov, "Windows registry file format specification", and
// Joachim Metz, "Windows NT Registry File (REGF) format", both found by looking at hives.
package registry

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
)

var le = binary.LittleEndian

// File is a hive or a log; [guestfs.File] is one.
type File interface {
	io.ReaderAt
	Size() int64 // bytes
}

// Hive is a hive opened for reading, safe for concurrent use.
type Hive struct {
	f       File
	bins    int64            // bytes of the bins
	root    uint32           // cell of the key at the top
	patches map[int64][]byte // what a log has newer, by its place in the bins: pieces of pageLen bytes

	// Replayed says that Windows had not written all to the hive, and that its logs were read over it.
	Replayed bool
	// Uncertain says why the newest changes may be missing; empty when they are not.
	Uncertain string
}

const (
	baseLen = 4096
	pageLen = 512      // logs replace pieces of so many bytes
	maxBins = 2 << 30  // what Windows allows a hive
	maxCell = 1 << 20  // bytes read of one cell
	maxKeys = 100_000  // below one key
	maxAll  = 16 << 20 // bytes of all values of one key
)

// Base block, in a hive and, shorter, in its logs:
//
//	0      4    8    12         20      24      28     32       36     40     44 ...  508
//	"regf" seq1 seq2 written(8) major 1 minor   type   format 1 root   bins   ...     checksum
//
// seq1 counts up before Windows writes, seq2 after it. checksum is the exclusive or of the words before it. Types are 0
// for a hive, 1 and 2 for a log of Windows before 8.1, 6 for a newer one.
type base struct {
	seq1, seq2 uint32
	written    uint64 // FILETIME
	minor, typ uint32
	root       uint32
	bins       int64
	sum        bool // the checksum is right; else nothing of the rest is known
}

func readBase(f File) (base, error) {
	b := make([]byte, pageLen)
	if n, err := f.ReadAt(b, 0); n < len(b) {
		return base{}, fmt.Errorf("base block: %w", orDamaged(err))
	}
	if string(b[:4]) != "regf" {
		return base{}, guestfs.Damaged("a hive begins with %q", b[:4])
	}
	s := base{seq1: le.Uint32(b[4:]), seq2: le.Uint32(b[8:]), written: le.Uint64(b[12:]), minor: le.Uint32(b[24:]),
		typ: le.Uint32(b[28:]), root: le.Uint32(b[36:]), bins: int64(le.Uint32(b[40:]))}
	var x uint32
	for k := 0; k < 508; k += 4 {
		x ^= le.Uint32(b[k:])
	}
	switch x { // two sums are not used
	case 0xffffffff:
		x = 0xfffffffe
	case 0:
		x = 1
	}
	s.sum = x == le.Uint32(b[508:])
	if s.sum && (le.Uint32(b[20:]) != 1 || s.minor < 3 || s.minor > 6) {
		return s, fmt.Errorf("a hive of version %d.%d: %w", le.Uint32(b[20:]), s.minor, guestfs.ErrUnsupported)
	}
	return s, nil
}

func orDamaged(err error) error {
	if err == nil || err == io.EOF {
		return guestfs.Damaged("it is too short")
	}
	return err
}

// Open opens a hive. logs are the files beside it whose names end in .LOG, .LOG1 and .LOG2, as far as there are any:
// a hive that Windows did not finish writing is read together with them, in memory.
func Open(hive File, logs ...File) (*Hive, error) {
	s, err := readBase(hive)
	if err != nil {
		return nil, err
	}
	h := &Hive{f: hive, bins: s.bins, root: s.root}
	if !s.sum || s.seq1 != s.seq2 {
		h.recover(s, logs)
	}
	if h.bins < pageLen || h.bins > maxBins {
		return nil, guestfs.Damaged("a hive with %d bytes of bins", h.bins)
	}
	return h, nil
}

// readAt reads bins, newer pages before older ones. It fills p or fails.
func (h *Hive) readAt(p []byte, off int64) error {
	if off < 0 || off > h.bins-int64(len(p)) {
		return guestfs.Damaged("offset %#x is outside the hive", off)
	}
	if n, err := h.f.ReadAt(p, baseLen+off); n < len(p) {
		if len(h.patches) == 0 {
			return fmt.Errorf("hive at %#x: %w", off, orDamaged(err))
		}
		if err != nil && err != io.EOF {
			return err
		}
		clear(p[n:]) // a hive that grew: what no log has is damage that shows
	}
	if len(h.patches) == 0 {
		return nil
	}
	for page := off &^ (pageLen - 1); page < off+int64(len(p)); page += pageLen {
		patch := h.patches[page]
		if patch == nil {
			continue
		}
		if page >= off {
			copy(p[page-off:], patch)
		} else {
			copy(p, patch[off-page:])
		}
	}
	return nil
}

// cell reads the content of a cell, at least atLeast bytes and at most maxCell.
func (h *Hive) cell(at uint32, atLeast int) ([]byte, error) {
	head := make([]byte, 4)
	if err := h.readAt(head, int64(at)); err != nil {
		return nil, err
	}
	size := -int64(int32(le.Uint32(head))) - 4
	if size < int64(atLeast) {
		return nil, guestfs.Damaged("cell %#x has %d bytes, needs %d", at, size, atLeast)
	}
	b := make([]byte, min(size, maxCell, h.bins-int64(at)-4))
	if len(b) < atLeast {
		return nil, guestfs.Damaged("cell %#x reaches over the end of the hive", at)
	}
	return b, h.readAt(b, int64(at)+4)
}
