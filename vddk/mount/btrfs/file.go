package btrfs

import (
	"bytes"
	"compress/zlib"
	"errors"
	"fmt"
	"io"
	"math"
	"sort"
	"sync"

	"github.com/anchore/go-lzo"
	"github.com/klauspost/compress/zstd"

	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
)

// piece is an extent of a file. As an item it is
//
//	generation(8) bytes in memory(8) compression(1) encryption(1) other(2) type(1; 0 inline, 1 regular, 2 unwritten)
//	inline: the bytes;  else: logical address(8) bytes on disk(8) offset into the bytes in memory(8) length(8)
type piece struct {
	off, n   int64 // of the file
	comp     byte
	inline   []byte // not nil: the bytes, compressed or not
	ram      int64  // bytes when decompressed
	disk, dn uint64 // logical; 0: hole or unwritten; of inline ones the leaf
	skip     int64
}

const (
	pieceHead = 21
	pieceLen  = 53

	compZlib = 1
	compLZO  = 2
	compZstd = 3

	// The kernel compresses 128 KiB at a time.
	maxCompressed = 1 << 20
	// maxPieces of 80 bytes are 80 MB: a file of 4 TiB in extents of 4 MiB.
	maxPieces = 1 << 20
)

func parsePiece(off uint64, b []byte) (piece, error) {
	if len(b) < pieceHead {
		return piece{}, guestfs.Damaged("extent of %d bytes", len(b))
	}
	p := piece{off: int64(off), ram: int64(le.Uint64(b[8:])), comp: b[16]}
	if b[17] != 0 || le.Uint16(b[18:]) != 0 {
		return p, fmt.Errorf("encoding %d, %d: %w", b[17], le.Uint16(b[18:]), guestfs.ErrEncrypted)
	}
	if p.comp > compZstd {
		return p, fmt.Errorf("compression %d: %w", p.comp, guestfs.ErrUnsupported)
	}
	if p.comp != 0 && (p.ram < 0 || p.ram > maxCompressed) {
		return p, guestfs.Damaged("compressed extent of %d bytes", p.ram)
	}
	const inline, unwritten = 0, 2
	if b[20] == inline {
		p.inline, p.n = append([]byte{}, b[pieceHead:]...), p.ram
		if p.comp == 0 {
			p.n = int64(len(p.inline))
		}
	} else {
		if len(b) < pieceLen {
			return p, guestfs.Damaged("extent of %d bytes", len(b))
		}
		p.disk, p.dn = le.Uint64(b[21:]), le.Uint64(b[29:])
		p.skip, p.n = int64(le.Uint64(b[37:])), int64(le.Uint64(b[45:]))
		if b[20] == unwritten {
			p.disk, p.comp = 0, 0
		}
	}
	switch {
	case p.off < 0 || p.n < 0 || p.off > math.MaxInt64-p.n || p.skip < 0 || p.skip > math.MaxInt64-p.n || p.disk > 1<<62 || p.dn > 1<<62:
		return p, guestfs.Damaged("extent of %d bytes at %d", p.n, p.off)
	case p.comp != 0 && p.dn > maxCompressed:
		return p, guestfs.Damaged("compressed extent of %d bytes on disk", p.dn)
	case p.comp == 0 && p.disk != 0 && uint64(p.skip)+uint64(p.n) > p.dn:
		return p, guestfs.Damaged("extent of %d bytes has %d on disk", p.skip+p.n, p.dn)
	}
	return p, nil
}

// file is the content of a regular file or link.
type file struct {
	d      *driver
	size   int64
	pieces []piece // by offset, disjoint; gaps are holes

	mu  sync.Mutex
	at  int // piece held in buf, -1: none
	buf []byte
}

func (d *driver) content(i *inode) (*file, error) {
	f := &file{d: d, size: i.size, at: -1}
	lo, hi := key{i.id.File, typeExtent, 0}, key{i.id.File, typeExtent, math.MaxUint64}
	err := d.scanLeaves(i.t, lo, hi, func(k key, b []byte, leaf uint64) error {
		p, err := parsePiece(k.off, b)
		if err != nil {
			return err
		}
		if p.inline != nil {
			p.disk, p.dn = leaf, uint64(d.node)
		}
		if n := len(f.pieces); n > 0 && f.pieces[n-1].off+f.pieces[n-1].n > p.off {
			return guestfs.Damaged("two extents hold byte %d of a file", p.off)
		}
		if len(f.pieces) >= maxPieces {
			return fmt.Errorf("file in more than %d pieces: %w", maxPieces, guestfs.ErrTooLarge)
		}
		f.pieces = append(f.pieces, p)
		return nil
	})
	return f, err
}

func (f *file) Size() int64 { return f.size }

func (f *file) ReadAt(p []byte, off int64) (int, error) {
	return guestfs.ReadAt(p, off, f.size, f.read)
}

func (f *file) find(off int64) int {
	return sort.Search(len(f.pieces), func(k int) bool { return f.pieces[k].off+f.pieces[k].n > off })
}

func (f *file) read(b []byte, off int64) error {
	for k := f.find(off); len(b) > 0; {
		n := int64(len(b))
		if k >= len(f.pieces) || f.pieces[k].off > off {
			if k < len(f.pieces) {
				n = min(n, f.pieces[k].off-off)
			}
			clear(b[:n])
		} else {
			n = min(n, f.pieces[k].n-(off-f.pieces[k].off))
			if err := f.readPiece(b[:n], k, off-f.pieces[k].off); err != nil {
				return err
			}
			k++
		}
		b, off = b[n:], off+n
	}
	return nil
}

// readPiece fills b from byte at of piece k.
func (f *file) readPiece(b []byte, k int, at int64) error {
	p := &f.pieces[k]
	switch {
	case p.comp != 0 && (p.inline != nil || p.disk != 0):
		f.mu.Lock()
		defer f.mu.Unlock()
		if err := f.load(k); err != nil {
			return err
		}
		from := min(p.skip+at, int64(len(f.buf)))
		clear(b[copy(b, f.buf[from:]):])
	case p.inline != nil:
		copy(b, p.inline[at:])
	case p.disk == 0:
		clear(b)
	default:
		return f.d.readData(b, p.disk+uint64(p.skip+at))
	}
	return nil
}

// load decompresses piece k, or finds that it is held, perhaps by another piece of the same extent.
func (f *file) load(k int) error {
	p := &f.pieces[k]
	if f.at >= 0 && (f.at == k || p.inline == nil && f.pieces[f.at].inline == nil && f.pieces[f.at].disk == p.disk) {
		return nil
	}
	f.at = -1
	src := p.inline
	if src == nil {
		src = make([]byte, p.dn)
		if err := f.d.readData(src, p.disk); err != nil {
			return err
		}
	}
	out, err := f.d.decompress(src, p)
	if err != nil {
		return fmt.Errorf("compressed extent at logical address %d: %w", p.disk, err)
	}
	f.at, f.buf = k, out
	return nil
}

func (d *driver) decompress(src []byte, p *piece) ([]byte, error) {
	sector := d.sector
	out := make([]byte, p.ram)
	var r io.Reader
	switch p.comp {
	case compLZO:
		return out, unlzo(out, src, sector)
	case compZlib:
		z, err := zlib.NewReader(bytes.NewReader(src))
		if err != nil {
			return nil, guestfs.Damaged("zlib: %v", err)
		}
		defer z.Close()
		r = z
	default:
		// What follows the frame within the last sector is not part of it.
		z, err := d.zstd()
		if err != nil {
			return nil, err
		}
		defer d.decoders.Put(z)
		if err := z.Reset(bytes.NewReader(src)); err != nil {
			return nil, guestfs.Damaged("zstd: %v", err)
		}
		r = z
	}
	n, err := io.ReadFull(r, out)
	// The last bytes of a file's last sector may be missing: they are zeros.
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && (n == 0 || p.ram-int64(n) >= int64(sector)) {
		return nil, guestfs.Damaged("decompressing: %v", err)
	}
	if p.ram-int64(n) >= int64(sector) {
		return nil, guestfs.Damaged("%d of %d bytes decompressed", n, p.ram)
	}
	return out, nil
}

// zstd is a decoder that works without goroutines, so that the pool may drop it.
func (d *driver) zstd() (*zstd.Decoder, error) {
	if z, ok := d.decoders.Get().(*zstd.Decoder); ok {
		return z, nil
	}
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxCompressed), zstd.WithDecoderLowmem(true))
	if err != nil {
		return nil, fmt.Errorf("zstd: %w", err)
	}
	return z, nil
}

// unlzo: total length(4), then segments of length(4) and LZO1X, each a sector when decompressed. A length does not
// cross a sector's end: the bytes left there are passed over.
func unlzo(out, src []byte, sector int) error {
	if len(src) < 8 {
		return guestfs.Damaged("LZO extent of %d bytes", len(src))
	}
	total := int64(le.Uint32(src))
	if total > int64(len(src)) {
		return guestfs.Damaged("LZO extent of %d bytes says it has %d", len(src), total)
	}
	src = src[:total]
	for at := 4; at+4 <= len(src) && len(out) > 0; {
		if left := sector - at%sector; left < 4 {
			at += left
			continue
		}
		n := int64(le.Uint32(src[at:]))
		at += 4
		if n > int64(len(src)-at) {
			return guestfs.Damaged("LZO segment of %d bytes", n)
		}
		var b [64 << 10]byte
		got, err := lzo.Decompress(src[at:at+int(n)], b[:sector])
		if err != nil {
			return guestfs.Damaged("LZO: %v", err)
		}
		out = out[copy(out, b[:got]):]
		at += int(n)
	}
	if len(out) >= sector {
		return guestfs.Damaged("LZO extent lacks its last %d bytes", len(out))
	}
	return nil
}

// readData fills b with content at a logical address, by whole sectors, so that their checksums can be compared.
func (d *driver) readData(b []byte, logical uint64) error {
	sector := uint64(d.sector)
	const step = 1 << 20
	for len(b) > 0 {
		lo := logical / sector * sector
		hi := min((logical+uint64(len(b))+sector-1)/sector*sector, lo+step)
		n := min(hi-logical, uint64(len(b)))
		part := b[:n]
		if lo != logical || hi != logical+n {
			part = make([]byte, hi-lo)
		}
		sums, err := d.sumsOf(lo, hi-lo)
		if err != nil {
			return err
		}
		if err := d.readSums(part, lo, sums); err != nil {
			return err
		}
		if lo != logical || hi != logical+n {
			copy(b[:n], part[logical-lo:])
		}
		b, logical = b[n:], logical+n
	}
	return nil
}

// readSums reads sectors that must have these sums, all together, and where that fails one by one: a bad sector
// is taken from another copy.
func (d *driver) readSums(b []byte, logical uint64, sums [][]byte) error {
	good := func(b []byte, sums [][]byte) bool {
		for k, want := range sums {
			if want != nil && !bytes.Equal(d.sum(nil, b[k*d.sector:(k+1)*d.sector]), want) {
				return false
			}
		}
		return true
	}
	if _, err := d.read(b, logical, 0); err == nil && good(b, sums) {
		return nil
	}
	for k := range sums {
		b, one := b[k*d.sector:(k+1)*d.sector], sums[k:k+1]
		if err := d.verified(b, logical+uint64(k*d.sector), func(b []byte) bool { return good(b, one) }); err != nil {
			return err
		}
	}
	return nil
}

// sumsOf are the checksums of the sectors of n bytes; nil for those that have none (nodatasum, nodatacow). An item of
// the checksum tree holds those of the sectors from its key's offset on.
func (d *driver) sumsOf(logical, n uint64) ([][]byte, error) {
	sector := uint64(d.sector)
	out := make([][]byte, n/sector)
	if d.sums == (tree{}) {
		return out, nil
	}
	size := uint64(d.sumLen())
	// The item that holds the first one may begin before it, by at most what fits a leaf.
	before := uint64(d.node) / size * sector
	lo := key{sumsObject, typeSum, logical - min(logical, before)}
	err := d.scan(d.sums, lo, key{sumsObject, typeSum, logical + n - 1}, func(k key, b []byte) error {
		for at := k.off; uint64(len(b)) >= size; at, b = at+sector, b[size:] {
			if at >= logical && at < logical+n {
				out[(at-logical)/sector] = append([]byte{}, b[:size]...)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("checksums: %w", err)
	}
	return out, nil
}

func (f *file) Runs() ([]guestfs.Run, error) {
	var out []guestfs.Run
	at := int64(0)
	hole := func(to int64) {
		if k := len(out); to > at && k > 0 && out[k-1].Kind == guestfs.Zero {
			out[k-1].File.Len += to - at
		} else if to > at {
			out = append(out, guestfs.Run{File: extent.Extent{Off: at, Len: to - at}, Kind: guestfs.Zero})
		}
		at = max(at, to)
	}
	for _, p := range f.pieces {
		if p.off >= f.size {
			break
		}
		hole(p.off)
		n := min(p.n, f.size-p.off)
		r := guestfs.Run{File: extent.Extent{Off: p.off, Len: n}}
		switch {
		case n == 0:
			continue
		case p.inline != nil:
			r.Kind, r.Disk = guestfs.Inline, extent.Extent{Off: int64(p.disk), Len: int64(p.dn)}
		case p.disk == 0:
			hole(p.off + n)
			continue
		case p.comp != 0:
			r.Kind, r.Disk = guestfs.Encoded, extent.Extent{Off: int64(p.disk), Len: int64(p.dn)}
		default:
			r.Disk = extent.Extent{Off: int64(p.disk) + p.skip, Len: n}
		}
		out = append(out, r)
		at = p.off + n
	}
	hole(f.size)
	return out, nil
}
