// Package chunker cuts a part of a disk into chunks exactly where restic would, and re-cuts only what changed.
//
// Words used here:
//
//	window     the 64 bytes before a position
//	candidate  a position whose window has a Rabin fingerprint ending in 20 zero bits
//	cut        the end of a chunk: the first candidate at least 512 KiB after the chunk's start, else 8 MiB, else the end
//	cutter     the rule that says where to cut: [New] for restic's rule, [Scaled] for shorter chunks, [Fixed] for aligned ones
//	keep point start of an old chunk none of whose bytes changed: a cut there makes it an old chunk again
//	hole       bytes known to be zero, which are therefore never read
//
// The package hides one decision: a cut depends on nothing but the bytes from the start of its chunk. So whether a
// chunk was read, kept from the previous point or skipped as a hole, the next chunk starts with a clean slate, and
// an incremental backup has exactly the chunks a full one would have. Everything else follows:
// a full read is a [Plan] without Old, a candidate depends on 64 bytes so that scanning runs in several lanes at
// once, and half a mebibyte of zeros is always the same chunk.
//
// Positions: "off" is an offset in the part, in bytes; an index in a buffer is called i or n and counts from the
// start of the chunk that is being made.
package chunker

import (
	"fmt"
	"sync"

	"github.com/restic/chunker"
)

// restic's parameters (github.com/restic/chunker v0.5.0, chunker.go). They decide which data deduplicates against
// blobs written by restic itself, so they are not configurable for [New].
const (
	MinSize = 512 << 10 // bytes; also the length of the zero chunk
	MaxSize = 8 << 20   // bytes
	bits    = 20        // low bits of a candidate's fingerprint that are zero: 1 MiB between candidates on average
)

// Pol is a polynomial over GF(2), as in the config of a restic repository ("chunker_polynomial").
type Pol = chunker.Pol

// RandomPol makes a polynomial for a new repository: irreducible, of degree 53, from crypto/rand.
func RandomPol() (Pol, error) { return chunker.RandomPolynomial() }

// CheckPol reports why pol cannot be used: restic's repositories have an irreducible polynomial of degree 53 or less.
func CheckPol(pol Pol) error {
	if d := pol.Deg(); d < minDegree || d > maxDegree {
		return fmt.Errorf("chunker: polynomial %v has degree %d, want %d to %d (53 in every repository restic made)", pol, d, minDegree, maxDegree)
	}
	if !pol.Irreducible() {
		return fmt.Errorf("chunker: polynomial %v is not irreducible: the repository's config is damaged or was made by a faulty program", pol)
	}
	return nil
}

// Cutter decides where chunks end. It is immutable and safe for concurrent use; a program makes one per repository
// and keeps it, for the tables of [New] take a while to compute.
type Cutter struct {
	min, max int     // lengths of a chunk, in bytes
	zero     int     // length of a chunk of zeros, in bytes; at least min
	step     int     // bytes scanned at a time while a chunk is made
	rabin    *tables // nil: no candidates, every chunk is max long

	spaces sync.Pool // of *workspace, for Chunks
}

// New makes the cutter of restic's repositories: Rabin fingerprints modulo pol, 512 KiB to 8 MiB, 1.5 MiB on average.
// The error is that of [CheckPol].
func New(pol Pol) (*Cutter, error) {
	return newCutter(pol, limits{min: MinSize, max: MaxSize, bits: bits, step: 256 << 10})
}

// Scaled makes a cutter by restic's rule with every length halved so many times, at most 3. Its chunks are not those of
// restic's own backups. Zeros are cut as restic cuts them, for restic restore --sparse and whoever counts on the zero chunk:
// a chunk that begins with as many zeros as the shortest has bytes is itself no shorter than restic's shortest.
func Scaled(pol Pol, halvings int) (*Cutter, error) {
	if halvings < 0 || halvings > 3 {
		return nil, fmt.Errorf("chunker: lengths halved %d times: want 0 to 3", halvings)
	}
	return newCutter(pol, limits{min: MinSize >> halvings, max: MaxSize >> halvings, bits: bits - halvings, step: 256 << 10 >> halvings, zero: MinSize})
}

// limits are the parameters of a Rabin cutter; tests make them small. No zero is min.
type limits struct{ min, max, bits, step, zero int }

func newCutter(pol Pol, l limits) (*Cutter, error) {
	if err := CheckPol(pol); err != nil {
		return nil, err
	}
	return &Cutter{min: l.min, max: l.max, zero: max(l.zero, l.min), step: l.step, rabin: newTables(pol, l.bits)}, nil
}

// Fixed makes the cutter of aligned chunks: every chunk is size bytes but the last, whatever the bytes are. The
// format permits it; such chunks do not deduplicate against those of restic's own backups, nor against shifted data.
// A size must be a multiple of 512 and at most 8 MiB. restic restore --sparse recognises holes only if size is 512 KiB.
func Fixed(size int) (*Cutter, error) {
	if size < sector || size > MaxSize || size%sector != 0 {
		return nil, fmt.Errorf("chunker: fixed chunks of %d bytes: want a multiple of %d, at most %d", size, sector, MaxSize)
	}
	return &Cutter{min: size, max: size, zero: size, step: size}, nil
}

// Min is the length of the shortest chunk but the last of a part, in bytes.
func (c *Cutter) Min() int { return c.min }

// Zero is the length of every zero chunk, in bytes: 512 KiB but for [Fixed].
func (c *Cutter) Zero() int { return c.zero }

// Max is the length of the longest chunk, in bytes.
func (c *Cutter) Max() int { return c.max }

// Next is the length of the chunk that b starts with. b must reach to the end of the part or hold at least Max
// bytes. The result is 0 only for an empty b.
func (c *Cutter) Next(b []byte) int {
	b = b[:min(len(b), c.max)]
	if n := c.scan(b, 0, len(b)); n > 0 {
		return n
	}
	return len(b)
}

// scan returns the first candidate at which the chunk b[:to] may be cut, past b[:from] where there is none; 0 if there is none.
func (c *Cutter) scan(b []byte, from, to int) int {
	least := c.min
	if c.zero > c.min && to >= c.min && zero(b[:c.min]) {
		least = c.zero
	}
	if from = max(from, least-1); from >= to || c.rabin == nil {
		return 0
	}
	return c.rabin.candidate(b, from, to)
}
