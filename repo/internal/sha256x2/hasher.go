// Package sha256x2 hashes two messages side by side. In SHA-256 each step waits for the one before; processors with instructions
// for it can do steps of another message meanwhile, which takes three quarters of the time or less. What is hidden is which
// processors do so, and how messages of different lengths share them. Elsewhere messages are hashed one after the other.
package sha256x2

import (
	"encoding"
	"encoding/binary"

	"github.com/minio/sha256-simd"
)

// Size is the length of a hash in bytes.
const Size = sha256.Size

// Hasher hashes messages, two at a time. Its zero value has none. It belongs to one goroutine.
type Hasher struct {
	lanes [2]lane
	alone bool // as where nothing can be hashed side by side
}

// Add hashes a message. done gets its hash, perhaps only during a later Add or Flush, until when p must stay as it is. After Add
// at most one message waits. done may not use the Hasher. An error of done is returned at once, and ends the use of the Hasher.
func (h *Hasher) Add(p []byte, done func(hash [Size]byte) error) error {
	if !paired || h.alone {
		return done(sha256.Sum256(p))
	}
	h.lanes[h.Free()] = lane{state: initial(), rest: p, done: done}
	a, b := &h.lanes[0], &h.lanes[1]
	if !a.busy() || !b.busy() {
		return nil
	}
	n := min(len(a.rest), len(b.rest)) / sha256.BlockSize
	if n > 0 {
		compress(&a.state, &b.state, &a.rest[0], &b.rest[0], n)
	}
	for i := range h.lanes {
		if l := &h.lanes[i]; l.skip(n) < sha256.BlockSize {
			if err := l.finish(); err != nil {
				return err
			}
		}
	}
	return nil
}

// Free is the lane, 0 or 1, that the next message gets; a message that waits is in the other one. Whoever has a buffer for each
// lane overwrites nothing that is still to be hashed.
func (h *Hasher) Free() int {
	if h.lanes[0].busy() {
		return 1
	}
	return 0
}

// Flush hashes what waits.
func (h *Hasher) Flush() error {
	if l := &h.lanes[1-h.Free()]; l.busy() {
		return l.finish()
	}
	return nil
}

// lane is a message: its state after some blocks, and the rest of it.
type lane struct {
	state  state
	hashed uint64 // bytes
	rest   []byte
	done   func([Size]byte) error // nil: the lane is free
}

func (l *lane) busy() bool { return l.done != nil }

// skip notes that n blocks are hashed, and returns how many bytes are not.
func (l *lane) skip(n int) int {
	l.hashed += uint64(n) * sha256.BlockSize
	l.rest = l.rest[n*sha256.BlockSize:]
	return len(l.rest)
}

// finish hashes the rest alone, and frees the lane.
func (l *lane) finish() error {
	hash, done := l.state.finish(l.hashed, l.rest), l.done
	*l = lane{}
	return done(hash)
}

// state is the hash of whole blocks, in the order F E B A H G D C, which the instructions want.
type state [8]uint32

// initial is H(0) of FIPS 180-4, section 5.3.3.
func initial() state {
	return state{0x9b05688c, 0x510e527f, 0xbb67ae85, 0x6a09e667, 0x5be0cd19, 0x1f83d9ab, 0xa54ff53a, 0x3c6ef372}
}

// finish is the hash of a message that the state is of the first bytes of.
func (s *state) finish(hashed uint64, rest []byte) [Size]byte {
	// What a hash.Hash of SHA-256 marshals: a name, A to H, an unfinished block, the length.
	b := []byte("sha\x03")
	for _, i := range [8]int{3, 2, 7, 6, 1, 0, 5, 4} {
		b = binary.BigEndian.AppendUint32(b, s[i])
	}
	b = binary.BigEndian.AppendUint64(append(b, make([]byte, sha256.BlockSize)...), hashed)
	h := sha256.New()
	if err := h.(encoding.BinaryUnmarshaler).UnmarshalBinary(b); err != nil {
		panic(err) // a format that never changed would have
	}
	h.Write(rest) // never fails
	return [Size]byte(h.Sum(nil))
}
