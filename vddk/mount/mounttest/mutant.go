package mounttest

import (
	"bytes"
	"io"
	"math/rand/v2"
	"sync"
)

// Mutant is an image with damage in it. Damage goes where something is written: sectors that hold one byte over and
// over are left alone.
type Mutant struct {
	image   []byte
	patches map[int64][]byte // sector -> its bytes
}

// Breeder makes mutants of an image.
type Breeder struct {
	image   []byte
	sectors []int64 // that hold something
	meta    []int64 // of these, those that hold metadata
}

const sectorLen = 512

// NewBreeder looks at an image. walk reads all metadata of the file system on the disk it is given: what it reads
// in small pieces is where most damage goes.
func NewBreeder(image []byte, walk func(disk io.ReaderAt)) *Breeder {
	b := &Breeder{image: image}
	r := &recorder{image: bytes.NewReader(image), small: map[int64]bool{}}
	walk(r)
	for n := int64(0); (n+1)*sectorLen <= int64(len(image)); n++ {
		s := image[n*sectorLen : (n+1)*sectorLen]
		if bytes.Count(s, s[:1]) == sectorLen {
			continue
		}
		b.sectors = append(b.sectors, n)
		if r.small[n] {
			b.meta = append(b.meta, n)
		}
	}
	return b
}

// recorder notes the sectors of small reads.
type recorder struct {
	image *bytes.Reader
	mu    sync.Mutex
	small map[int64]bool
}

func (r *recorder) ReadAt(p []byte, off int64) (int, error) {
	if len(p) <= 64<<10 {
		r.mu.Lock()
		defer r.mu.Unlock()
		for n := off / sectorLen; n*sectorLen < off+int64(len(p)); n++ {
			r.small[n] = true
		}
	}
	return r.image.ReadAt(p, off)
}

// Mutant makes the mutant of a number: always the same.
func (b *Breeder) Mutant(n uint64) *Mutant {
	rnd := rand.New(rand.NewPCG(n, 77))
	m := &Mutant{image: b.image, patches: map[int64][]byte{}}
	// Few changes leave the way to deep places open, many hit more of them.
	for range 1 + rnd.IntN(1+int(n%60)) {
		s := b.meta[rnd.IntN(len(b.meta))]
		if rnd.IntN(6) == 0 { // anywhere, journals among them
			s = b.sectors[rnd.IntN(len(b.sectors))]
		}
		p := m.patches[s]
		if p == nil {
			p = bytes.Clone(b.image[s*sectorLen : (s+1)*sectorLen])
			m.patches[s] = p
		}
		if rnd.IntN(6) == 0 { // another sector's bytes
			o := b.sectors[rnd.IntN(len(b.sectors))]
			at := rnd.IntN(sectorLen)
			n := 1 + rnd.IntN(sectorLen-at)
			copy(p[at:at+n], b.image[o*sectorLen:])
			continue
		}
		Spoil(rnd, p)
	}
	return m
}

// Spoil damages one place of p, which is not empty.
func Spoil(rnd *rand.Rand, p []byte) {
	at := rnd.IntN(len(p))
	switch rnd.IntN(5) {
	case 0:
		p[at] ^= 1 << rnd.IntN(8)
	case 1:
		p[at] = byte(rnd.Uint32())
	case 2: // a number at its limit
		fill := []byte{0, 0xff, 0x7f, 0x80}[rnd.IntN(4)]
		for k := at; k < min(at+1<<rnd.IntN(4), len(p)); k++ {
			p[k] = fill
		}
	case 3: // a number that is a little different
		p[at] += byte(rnd.IntN(5)) - 2
	case 4:
		n := 1 + rnd.IntN(min(32, len(p)-at))
		for k := at; k < at+n; k++ {
			p[k] = byte(rnd.Uint32())
		}
	}
}

// Patched is an undamaged mutant, for [Mutant.Patch].
func Patched(image []byte) *Mutant { return &Mutant{image: image, patches: map[int64][]byte{}} }

// Patch writes b at off. What lies beyond the image is dropped.
func (m *Mutant) Patch(off int64, b []byte) {
	for len(b) > 0 && off < m.Size()/sectorLen*sectorLen {
		s := off / sectorLen
		if m.patches[s] == nil {
			m.patches[s] = bytes.Clone(m.image[s*sectorLen : (s+1)*sectorLen])
		}
		n := copy(m.patches[s][off%sectorLen:], b)
		b, off = b[n:], off+int64(n)
	}
}

// Size is the image's size in bytes.
func (m *Mutant) Size() int64 { return int64(len(m.image)) }

// ReadAt reads the damaged image.
func (m *Mutant) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= m.Size() {
		return 0, io.EOF
	}
	n := copy(p, m.image[off:])
	for s := off / sectorLen; s*sectorLen < off+int64(n); s++ {
		patch := m.patches[s]
		if patch == nil {
			continue
		}
		if lo := s*sectorLen - off; lo >= 0 {
			copy(p[lo:n], patch)
		} else {
			copy(p[:n], patch[-lo:])
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
