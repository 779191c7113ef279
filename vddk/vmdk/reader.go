package vmdk

import (
	"bytes"
	"compress/zlib"
	"errors"
	"fmt"
	"io"
)

// Reader is a streamOptimized VMDK as an [io.ReaderAt]. It is safe for concurrent use when the file is.
type Reader struct {
	file      io.ReaderAt
	length    int64 // of the file, bytes
	size      int64
	directory []uint32
	grain     int64 // bytes
	entries   int64 // per table
	text      Descriptor
}

// maxDirectory bounds the directory in entries. A disk of 62 TiB, the largest vSphere has, needs 2 million.
const maxDirectory = 4 << 20

// NewReader opens a streamOptimized VMDK of length bytes. Errors about its content wrap [ErrFormat].
func NewReader(file io.ReaderAt, length int64) (*Reader, error) {
	r := &Reader{file: file, length: length}
	head, err := r.header(0)
	if err != nil {
		return nil, err
	}
	at, size := int64(order.Uint64(head[28:])), int64(order.Uint64(head[36:]))
	if at < 1 || at > overhead || size < 1 || size > maxDescriptor/SectorSize {
		return nil, fmt.Errorf("descriptor at sector %d of %d: %w", at, size, ErrFormat)
	}
	text, err := r.sectors(at, size*SectorSize)
	if err != nil {
		return nil, err
	}
	if r.text, err = ParseDescriptor(text); err != nil {
		return nil, err
	}
	if order.Uint64(head[56:]) == atEnd { // footer, before the end marker
		if head, err = r.header(length - 2*SectorSize); err != nil {
			return nil, fmt.Errorf("footer: %w", err)
		}
	}
	capacity, grain, entries := order.Uint64(head[12:]), order.Uint64(head[20:]), order.Uint32(head[44:])
	if capacity > maxSize/SectorSize || grain < 8 || grain > 2048 || grain&(grain-1) != 0 || entries < 1 || entries > 4096 {
		return nil, fmt.Errorf("%d sectors in grains of %d, %d to a table: %w", capacity, grain, entries, ErrFormat)
	}
	r.size, r.grain, r.entries = int64(capacity)*SectorSize, int64(grain)*SectorSize, int64(entries)
	tables := (r.size + r.grain*r.entries - 1) / (r.grain * r.entries)
	if tables > maxDirectory || tables*4 > length {
		return nil, fmt.Errorf("a directory of %d tables: %w", tables, ErrFormat)
	}
	if r.directory, err = r.numbers(order.Uint64(head[56:]), tables); err != nil {
		return nil, fmt.Errorf("directory: %w", err)
	}
	return r, nil
}

// Size is the disk's capacity in bytes.
func (r *Reader) Size() int64 { return r.size }

// Descriptor is the descriptor inside.
func (r *Reader) Descriptor() Descriptor { return r.text }

func (r *Reader) header(off int64) ([]byte, error) {
	if off < 0 {
		return nil, fmt.Errorf("a file of %d bytes: %w", r.length, ErrFormat)
	}
	h := make([]byte, SectorSize)
	if err := r.fill(h, off); err != nil {
		return nil, err
	}
	if order.Uint32(h) != magic || order.Uint32(h[8:])&0x30000 != 0x30000 || order.Uint16(h[77:]) != deflate {
		return nil, fmt.Errorf("it is not streamOptimized: %w", ErrFormat)
	}
	return h, nil
}

// fill reads all of p.
func (r *Reader) fill(p []byte, off int64) error {
	n, err := r.file.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case err == nil || errors.Is(err, io.EOF):
		return fmt.Errorf("it ends before byte %d: %w", off+int64(len(p)), ErrFormat)
	}
	return err
}

// sectors reads n bytes at a sector.
func (r *Reader) sectors(at, n int64) ([]byte, error) {
	if at < 0 || at > r.length/SectorSize || n > r.length-at*SectorSize {
		return nil, fmt.Errorf("%d bytes at sector %d of a file of %d bytes: %w", n, at, r.length, ErrFormat)
	}
	b := make([]byte, n)
	return b, r.fill(b, at*SectorSize)
}

func (r *Reader) numbers(sector uint64, n int64) ([]uint32, error) {
	if sector > uint64(r.length/SectorSize) {
		return nil, fmt.Errorf("sector %d of a file of %d bytes: %w", sector, r.length, ErrFormat)
	}
	b, err := r.sectors(int64(sector), n*4)
	if err != nil {
		return nil, err
	}
	out := make([]uint32, n)
	for i := range out {
		out[i] = order.Uint32(b[4*i:])
	}
	return out, nil
}

// ReadAt fills p or fails; a read across the end gives what there is and io.EOF.
func (r *Reader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at %d", off)
	}
	done := 0
	var table []uint32
	loaded := int64(-1)
	for done < len(p) && off < r.size {
		number, in := off/r.grain, off%r.grain
		n := int(min(int64(len(p)-done), r.grain-in, r.size-off))
		t := number / r.entries
		if t != loaded {
			table, loaded = nil, t
			if at := r.directory[t]; at != 0 {
				var err error
				if table, err = r.numbers(uint64(at), r.entries); err != nil {
					return done, fmt.Errorf("table %d: %w", t, err)
				}
			}
		}
		dst := p[done : done+n]
		// 1 is a grain that is known to be zeros (flag bit 2 of the header); no grain lies in sector 1.
		if table == nil || table[number%r.entries] <= 1 {
			clear(dst)
		} else {
			data, err := r.load(int64(table[number%r.entries]), number)
			if err != nil {
				return done, fmt.Errorf("grain %d: %w", number, err)
			}
			if m := copy(dst, data[min(in, int64(len(data))):]); m < n {
				return done, fmt.Errorf("grain %d has %d bytes: %w", number, len(data), ErrFormat)
			}
		}
		done, off = done+n, off+int64(n)
	}
	if done < len(p) {
		return done, io.EOF
	}
	return done, nil
}

// load unpacks a grain.
func (r *Reader) load(sector, number int64) ([]byte, error) {
	head, err := r.sectors(sector, grainHead)
	if err != nil {
		return nil, err
	}
	first, size := order.Uint64(head), int64(order.Uint32(head[8:]))
	if first != uint64(number*r.grain/SectorSize) || size < 1 || size > 2*r.grain {
		return nil, fmt.Errorf("its marker tells of sector %d and %d bytes: %w", first, size, ErrFormat)
	}
	packed, err := r.sectors(sector, grainHead+size)
	if err != nil {
		return nil, err
	}
	z, err := zlib.NewReader(bytes.NewReader(packed[grainHead:]))
	if err != nil {
		return nil, fmt.Errorf("%v: %w", err, ErrFormat)
	}
	data := make([]byte, r.grain)
	n, err := io.ReadFull(z, data)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, fmt.Errorf("%v: %w", err, ErrFormat)
	}
	return data[:n], nil
}
