package vmdk

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
)

// A streamOptimized VMDK, all numbers little endian, everything padded to sectors:
//
//	+----------------------------------------------------------------+
//	| header, 512 bytes: see (*header).encode; directory = -1        |
//	| descriptor, text, up to sector 128                             |
//	+----------------------------------------------------------------+
//	| grain:     u64 first sector | u32 size | zlib data             |  in the order of the disk; zero grains are left out
//	| ...                                                            |
//	| table:     u64 sectors | u32 0 | u32 1 | pad | 512 x u32       |  after the grains it names, sector of each or 0
//	| ...                                                            |
//	| directory: u64 sectors | u32 0 | u32 2 | pad | n x u32         |  sector of each table or 0
//	| footer:    u64 1       | u32 0 | u32 3 | pad | header          |  with the true directory
//	| end:       512 zeros                                           |
//	+----------------------------------------------------------------+
//
// A marker with a size is a grain; one without says its kind. Grains are compressed alone (RFC 1950).
const (
	grainSize     = 64 << 10
	perTable      = 512
	overhead      = 128 // sectors before the first grain, as VMware's own tools leave
	magic         = 0x564d444b
	version       = 3
	flags         = 0x30001 // the newlines are valid, grains are compressed, there are markers
	deflate       = 1
	atEnd         = ^uint64(0) // the directory is where the footer says
	kindEnd       = 0
	kindTable     = 1
	kindDirectory = 2
	kindFooter    = 3
	grainHead     = 12 // bytes before the data of a grain
)

// tableSpan is what one table covers, in bytes of the disk: 32 MiB.
const tableSpan = perTable * grainSize

var order = binary.LittleEndian // never changed

type header struct {
	capacity   int64 // bytes
	descriptor int64 // sectors
	directory  uint64
	overhead   int64
}

func (h header) encode() []byte {
	b := make([]byte, SectorSize)
	order.PutUint32(b, magic)
	order.PutUint32(b[4:], version)
	order.PutUint32(b[8:], flags)
	order.PutUint64(b[12:], uint64(h.capacity/SectorSize))
	order.PutUint64(b[20:], grainSize/SectorSize)
	order.PutUint64(b[28:], 1) // the descriptor follows
	order.PutUint64(b[36:], uint64(h.descriptor))
	order.PutUint32(b[44:], perTable)
	order.PutUint64(b[48:], 0) // no redundant directory
	order.PutUint64(b[56:], h.directory)
	order.PutUint64(b[64:], uint64(h.overhead))
	copy(b[73:], "\n \r\n") // found changed where a transfer in text mode destroyed the file
	order.PutUint16(b[77:], deflate)
	return b
}

// ErrTooLarge is wrapped where a disk does not fit the format: tables point to grains with 32 bits of sectors, so a
// streamOptimized VMDK file ends at 2 TiB.
var ErrTooLarge = errors.New("more than a streamOptimized VMDK can hold")

// Put takes bytes of a disk. Calls go upwards: off is never below the end of the call before. What no call brings is
// zeros. p is not kept.
type Put func(p []byte, off int64) error

// WriteStream writes a streamOptimized VMDK of the disk whose bytes fn puts, to w, from its beginning to its end. d has
// one extent; its File is how the file calls itself. Grains are compressed on all processors, written in order. An
// error of fn or w ends it; what was written by then is no VMDK.
func WriteStream(w io.Writer, d Descriptor, fn func(Put) error) error {
	if len(d.Extents) != 1 || d.Size() < 0 || d.Size()%SectorSize != 0 {
		return fmt.Errorf("a streamOptimized VMDK of %d extents, %d bytes: %w", len(d.Extents), d.Size(), ErrFormat)
	}
	d.Type = TypeStream
	text := d.Encode()
	if len(text) > (overhead-1)*SectorSize {
		return fmt.Errorf("descriptor of %d bytes: %w", len(text), ErrFormat)
	}
	s := &streamWriter{size: d.Size(), out: sectorWriter{w: w}, descriptor: int64(len(text)+SectorSize-1) / SectorSize}
	s.directory = make([]uint32, (s.size+tableSpan-1)/tableSpan)
	s.out.write(header{capacity: s.size, descriptor: s.descriptor, directory: atEnd, overhead: overhead}.encode())
	s.out.write(text)
	s.out.write(make([]byte, (overhead-s.out.at)*SectorSize))
	if s.out.err != nil {
		return s.out.err
	}
	return s.run(fn)
}

// streamWriter is one WriteStream.
//
// put fills grains and sends each to two places: to a worker, which packs it, and to the emitter, which waits for each
// in turn and writes it. ahead bounds how many there are.
type streamWriter struct {
	size       int64
	descriptor int64 // sectors
	out        sectorWriter
	directory  []uint32
	table      [perTable]uint32
	current    int64 // table being filled
	used       bool

	at    int64  // end of what put was given
	grain *grain // being filled, nil: none

	work, ordered chan *grain
	failed        chan struct{} // closed when the emitter met an error, which is in out.err
}

// grain is on its way through the writer.
type grain struct {
	number int64
	data   []byte
	packed bytes.Buffer
	err    error
	done   chan struct{} // holds one token when packed is ready
}

func (s *streamWriter) run(fn func(Put) error) error {
	workers := runtime.GOMAXPROCS(0)
	ahead := 4 * workers
	s.work, s.ordered, s.failed = make(chan *grain, ahead), make(chan *grain, ahead), make(chan struct{})
	pool := sync.Pool{New: func() any { return &grain{data: make([]byte, grainSize), done: make(chan struct{}, 1)} }}
	var packers, emitter sync.WaitGroup
	for range workers {
		packers.Add(1)
		go func() {
			defer packers.Done()
			z := zlib.NewWriter(io.Discard)
			for g := range s.work {
				g.pack(z)
				g.done <- struct{}{}
			}
		}()
	}
	emitter.Add(1)
	go func() {
		defer emitter.Done()
		failed := false
		for g := range s.ordered {
			<-g.done
			if !failed {
				s.emit(g)
				if failed = s.out.err != nil; failed {
					close(s.failed)
				}
			}
			pool.Put(g)
		}
	}()
	err := fn(func(p []byte, off int64) error { return s.put(p, off, &pool) })
	if err == nil && s.grain != nil {
		err = s.send()
	}
	close(s.work)
	close(s.ordered)
	packers.Wait()
	emitter.Wait()
	if s.out.err != nil {
		return s.out.err
	}
	if err != nil {
		return err
	}
	s.finish()
	return s.out.err
}

func (s *streamWriter) put(p []byte, off int64, pool *sync.Pool) error {
	if off < s.at || off+int64(len(p)) > s.size {
		return fmt.Errorf("bytes %d+%d do not follow those before %d on a disk of %d", off, len(p), s.at, s.size)
	}
	s.at = off + int64(len(p))
	for len(p) > 0 {
		number, in := off/grainSize, int(off%grainSize)
		n := min(len(p), grainSize-in)
		if s.grain != nil && s.grain.number != number {
			if err := s.send(); err != nil {
				return err
			}
		}
		if s.grain == nil {
			s.grain = pool.Get().(*grain)
			s.grain.number = number
			clear(s.grain.data)
		}
		copy(s.grain.data[in:], p[:n])
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// send gives the filled grain away.
func (s *streamWriter) send() error {
	g := s.grain
	s.grain = nil
	select {
	case <-s.failed:
		return s.out.err
	default:
	}
	s.ordered <- g
	s.work <- g
	return nil
}

var zeroGrain [grainSize]byte // never written

// pack compresses the grain with its head before it; a zero grain becomes nothing.
func (g *grain) pack(z *zlib.Writer) {
	g.packed.Reset()
	g.err = nil
	if bytes.Equal(g.data, zeroGrain[:]) {
		return
	}
	g.packed.Write(make([]byte, grainHead)) // never fails, as all writes to a bytes.Buffer
	z.Reset(&g.packed)
	if _, g.err = z.Write(g.data); g.err == nil {
		g.err = z.Close()
	}
	head := g.packed.Bytes()
	order.PutUint64(head, uint64(g.number*grainSize/SectorSize))
	order.PutUint32(head[8:], uint32(g.packed.Len()-grainHead))
}

// emit writes a packed grain.
func (s *streamWriter) emit(g *grain) {
	if g.err != nil {
		s.out.err = g.err
		return
	}
	if g.packed.Len() == 0 {
		return
	}
	if n := g.number / perTable; n != s.current {
		s.closeTable()
		s.current = n
	}
	s.table[g.number%perTable], s.used = s.out.here(), true
	s.out.write(g.packed.Bytes())
}

func (s *streamWriter) closeTable() {
	if !s.used {
		return
	}
	s.out.marker(kindTable, perTable*4/SectorSize)
	s.directory[s.current] = s.out.here()
	s.out.numbers(s.table[:])
	s.table, s.used = [perTable]uint32{}, false
}

func (s *streamWriter) finish() {
	s.closeTable()
	s.out.marker(kindDirectory, (int64(len(s.directory))*4+SectorSize-1)/SectorSize)
	at := s.out.here()
	s.out.numbers(s.directory)
	s.out.marker(kindFooter, 1)
	s.out.write(header{capacity: s.size, descriptor: s.descriptor, directory: uint64(at), overhead: overhead}.encode())
	s.out.marker(kindEnd, 0)
}

// sectorWriter writes whole sectors and counts them. After an error it does nothing.
type sectorWriter struct {
	w   io.Writer
	at  int64 // sectors written
	err error
	pad [SectorSize]byte // never written
}

func (s *sectorWriter) write(p []byte) {
	if s.err != nil {
		return
	}
	if _, s.err = s.w.Write(p); s.err != nil {
		return
	}
	if n := len(p) % SectorSize; n > 0 {
		_, s.err = s.w.Write(s.pad[n:])
	}
	s.at += int64(len(p)+SectorSize-1) / SectorSize
}

// here is the present sector as tables hold it.
func (s *sectorWriter) here() uint32 {
	if s.at >= 1<<32 && s.err == nil {
		s.err = ErrTooLarge
	}
	return uint32(s.at)
}

func (s *sectorWriter) marker(kind uint32, sectors int64) {
	m := make([]byte, SectorSize)
	order.PutUint64(m, uint64(sectors))
	order.PutUint32(m[12:], kind)
	s.write(m)
}

func (s *sectorWriter) numbers(list []uint32) {
	b := make([]byte, 0, 4*len(list))
	for _, n := range list {
		b = order.AppendUint32(b, n)
	}
	s.write(b)
}
