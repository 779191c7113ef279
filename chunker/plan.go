package chunker

import (
	"bytes"
	"fmt"
	"io"
	"iter"

	"github.com/vmkeep/vmkeep/chunker/extent"
)

// sector is the unit in which disks are read, in bytes.
const sector = 512

// Plan says what is known of a part before it is read. The zero value but for Size knows nothing: everything is read.
// All offsets and sizes are bytes and count from the start of the part.
type Plan struct {
	// Size is the length of the part now.
	Size int64
	// Old are the lengths of the chunks the part had at the previous point, in order. They must have been cut by the
	// same cutter; their sum is the old size, which may be smaller or larger than Size.
	Old []int
	// Dirty is every byte that may have changed since, as far as the old size reaches. What grew is always read.
	Dirty extent.Set
	// Holes are bytes that are zero now, whatever they were. Whole sectors of them are not read.
	Holes extent.Set
	// Ahead says how reading runs ahead of cutting.
	Ahead Ahead
}

// Ahead bounds the reads that are under way or done before their bytes are wanted. Zero fields mean the default.
//
// Memory of one call of [Plan.Chunks]: (Depth+1) * Piece + the cutter's Max; 13 MiB by default. It is kept by the
// cutter for the next call.
type Ahead struct {
	Depth int // reads at once; default 4
	Piece int // longest read in bytes, a multiple of 512; default 1 MiB. Reads end at multiples of it.
}

// Lender is a reader that fills memory of its own without a copy.
type Lender interface {
	io.ReaderAt
	// Lend gives n bytes to be read into, until giveBack is called; nil: it has none to spare.
	Lend(n int) (p []byte, giveBack func())
}

// Chunk is one chunk of a part. It is exactly one of three kinds:
//
//	new     Data holds the bytes
//	old     Old is the index in Plan.Old of the chunk it repeats; Data is nil
//	zero    Zero is set: Len is the cutter's Zero and all bytes are zero, so the ID is known without hashing; Data is nil
//
// Data is valid until the next chunk is asked for: its memory is used again, unless it is taken.
type Chunk struct {
	Off  int64 // in the part, bytes
	Len  int   // bytes
	Data []byte
	Old  int // -1 unless old
	Zero bool

	stream *stream
}

// Take gives Data's memory away for good, in exchange for other memory of [MaxSize] bytes, and returns Data with its
// capacity of as many. It is for new chunks only, once each, before the next is asked for.
func (c Chunk) Take(with []byte) []byte {
	s := c.stream
	w := s.ahead.space()
	data := w.chunk[:len(c.Data)]
	w.chunk = with[:MaxSize]
	s.rest = w.chunk[:copy(w.chunk, s.rest)]
	return data
}

// Chunks yields the chunks of the part r, in order and without gaps from 0 to Size. They are the chunks a full read
// would give; old ones are not read, nor are holes. r must give the part's bytes as they are now, at least those of
// [Plan.Reads], and be safe for concurrent use. Reads start and end at multiples of 512 or at Size, and never reach
// beyond Size; r should be fast for the length Ahead.Piece.
//
// What is read ahead is read into the memory of r where r is a [Lender].
//
// An error ends the sequence: a plan that makes no sense, or what r said with the place where. No read is under
// way after the loop has ended, however it ended; a loop that breaks off waits for the reads under way.
// The sequence may be run again, which reads again.
func (p Plan) Chunks(r io.ReaderAt, c *Cutter) iter.Seq2[Chunk, error] {
	return func(yield func(Chunk, error) bool) {
		l, err := p.layout(c)
		if err != nil {
			yield(Chunk{}, err)
			return
		}
		s := &stream{layout: l, ahead: newAhead(r, l, p.Ahead)}
		defer s.ahead.close()
		for off := int64(0); off < p.Size; {
			ch, err := s.next(off)
			if !yield(ch, err) || err != nil {
				return
			}
			off += int64(ch.Len)
		}
	}
}

// Reads is what Chunks is certain to read. In a full read that is all of it; in an incremental one, where the cuts
// of new data miss the old ones, Chunks reads on to the end of the next old chunk, and so forth until they meet. That
// is rare: one old chunk more in a hundred changes of 64 KiB (BenchmarkChange).
func (p Plan) Reads(c *Cutter) (extent.Set, error) {
	l, err := p.layout(c)
	if err != nil {
		return nil, err
	}
	return l.reads, nil
}

// layout is a plan made ready: which old chunks may be kept, where they are, what must be read.
type layout struct {
	c     *Cutter
	size  int64
	holes extent.Set // whole sectors only
	old   []oldChunk
	reads extent.Set // whole sectors only
}

// oldChunk is a chunk of the previous point where it was.
type oldChunk struct {
	extent.Extent
	keep bool // unchanged and cut by its bytes: where a chunk starts at Off, it is this one
}

func (p Plan) layout(c *Cutter) (*layout, error) {
	switch {
	case p.Size < 0:
		return nil, fmt.Errorf("chunker: a part of %d bytes", p.Size)
	case !p.Dirty.Valid():
		return nil, fmt.Errorf("chunker: dirty extents are not a set: make them with extent.Of")
	case !p.Holes.Valid():
		return nil, fmt.Errorf("chunker: holes are not a set: make them with extent.Of")
	case p.Ahead.Depth < 0 || p.Ahead.Piece < 0 || p.Ahead.Piece%sector != 0:
		return nil, fmt.Errorf("chunker: reading %d pieces of %d bytes ahead: want neither negative and pieces of whole sectors", p.Ahead.Depth, p.Ahead.Piece)
	}
	all := extent.Extent{Len: p.Size}
	l := &layout{c: c, size: p.Size, old: make([]oldChunk, len(p.Old))}
	l.holes = p.Holes.Clip(all).Complement(p.Size).Align(sector, p.Size).Complement(p.Size)
	var oldSize int64
	var must extent.Set
	for i, n := range p.Old {
		last := i == len(p.Old)-1
		if n <= 0 || n > c.max || n < c.min && !last {
			return nil, fmt.Errorf("chunker: old chunk %d of %d has %d bytes, the cutter makes %d to %d: the old point was cut otherwise, read the part in full",
				i, len(p.Old), n, c.min, c.max)
		}
		o := oldChunk{Extent: extent.Extent{Off: oldSize, Len: int64(n)}}
		oldSize = o.End()
		o.keep = oldSize <= p.Size && !p.Dirty.Overlaps(o.Extent)
		l.old[i] = o
	}
	if k := len(l.old) - 1; k >= 0 && oldSize != p.Size && p.Old[k] != c.max {
		l.old[k].keep = false // not the bytes ended it but the end of the part, which is elsewhere now
	}
	for _, o := range l.old {
		if !o.keep {
			must = append(must, o.Extent)
		}
	}
	if oldSize < p.Size {
		must = append(must, extent.Extent{Off: oldSize, Len: p.Size - oldSize})
	}
	l.reads = extent.Of(must...).Clip(all).Align(sector, p.Size).Subtract(l.holes)
	return l, nil
}

// stream makes the chunks of one run of Chunks.
type stream struct {
	*layout
	ahead *ahead
	rest  []byte // read but beyond the last cut: the start of the next chunk, in the workspace's chunk buffer
	now   int    // first old chunk not before the current chunk
	far   int    // first old chunk that starts at or after the bytes read
}

// next makes the chunk at off.
func (s *stream) next(off int64) (Chunk, error) {
	for s.now < len(s.old) && s.old[s.now].Off < off {
		s.now++
	}
	if n := int64(s.c.zero); off+n <= s.size && s.holes.Covers(extent.Extent{Off: off, Len: n}) {
		s.rest = s.rest[min(len(s.rest), s.c.zero):]
		return Chunk{Off: off, Len: s.c.zero, Old: -1, Zero: true}, nil
	}
	if k := s.now; k < len(s.old) && s.old[k].Off == off && s.old[k].keep {
		return Chunk{Off: off, Len: int(s.old[k].Len), Old: k}, nil
	}
	data, err := s.cut(off)
	if err != nil {
		return Chunk{}, err
	}
	if len(data) == s.c.zero && zero(data) {
		return Chunk{Off: off, Len: len(data), Old: -1, Zero: true}, nil
	}
	return Chunk{Off: off, Len: len(data), Data: data, Old: -1, stream: s}, nil
}

// cut reads and scans in turn until the chunk at off ends.
//
// Bytes read too many would be bytes of the next chunk. That is fine if it is a new one; but no byte of an old chunk
// may be read before it is certain that no chunk starts where it does, so reading halts at keep points.
func (s *stream) cut(off int64) ([]byte, error) {
	buf := s.ahead.space().chunk
	n := len(s.rest)
	if n > 0 && &buf[0] != &s.rest[0] {
		copy(buf, s.rest)
	}
	limit := int(min(int64(s.c.max), s.size-off))
	for scanned := 0; ; {
		if i := s.c.scan(buf, scanned, n); i > 0 {
			s.rest = buf[i:n]
			return buf[:i:i], nil
		}
		if scanned = n; n == limit {
			s.rest = nil
			return buf[:n:n], nil
		}
		to := min(max(n+s.c.step, s.c.min-1), limit) // the first cut is possible at min; from there on in whole steps
		to = int(s.halt(off+int64(n), off+int64(to)) - off)
		if err := s.ahead.read(buf[n:to], off+int64(n)); err != nil {
			return nil, err
		}
		n = to
	}
}

// halt returns where reading from off must pause, at most to. Old chunks that off has entered are lost: no chunk
// starts where they do, all their bytes are needed.
func (s *stream) halt(off, to int64) int64 {
	for ; s.far < len(s.old) && s.old[s.far].Off < to; s.far++ {
		switch o := s.old[s.far]; {
		case !o.keep || o.End() <= off:
		case o.Off > off:
			return o.Off
		default:
			s.ahead.need(extent.Extent{Off: off, Len: o.End() - off})
		}
	}
	return to
}

// zero reports whether all bytes of b are zero: the first is, and each equals the one before.
func zero(b []byte) bool {
	const k = 64
	return len(b) > k && b[0] == 0 && bytes.Equal(b[1:k], b[:k-1]) && bytes.Equal(b[k:], b[:len(b)-k])
}
