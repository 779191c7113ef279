package mounttest

import (
	"bytes"
	"io"
	"math/rand/v2"
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
}

const sectorLen = 512

// NewBreeder looks at an image.
func NewBreeder(image []byte) *Breeder {
	b := &Breeder{image: image}
	for n := int64(0); (n+1)*sectorLen <= int64(len(image)); n++ {
		s := image[n*sectorLen : (n+1)*sectorLen]
		if bytes.Count(s, s[:1]) < sectorLen {
			b.sectors = append(b.sectors, n)
		}
	}
	return b
}

// Mutant makes the mutant of a number: always the same.
func (b *Breeder) Mutant(n uint64) *Mutant {
	rnd := rand.New(rand.NewPCG(n, 77))
	m := &Mutant{image: b.image, patches: map[int64][]byte{}}
	// Few changes leave the way to deep places open, many hit more of them.
	for range 1 + rnd.IntN(1+int(n%60)) {
		s := b.sectors[rnd.IntN(len(b.sectors))]
		if rnd.IntN(4) == 0 { // superblocks and inodes of the first files are at the beginning
			s = b.sectors[rnd.IntN(min(64, len(b.sectors)))]
		}
		p := m.patches[s]
		if p == nil {
			p = bytes.Clone(b.image[s*sectorLen : (s+1)*sectorLen])
			m.patches[s] = p
		}
		at := rnd.IntN(sectorLen)
		switch rnd.IntN(6) {
		case 0:
			p[at] ^= 1 << rnd.IntN(8)
		case 1:
			p[at] = byte(rnd.Uint32())
		case 2: // a number at its limit
			fill := []byte{0, 0xff, 0x7f, 0x80}[rnd.IntN(4)]
			for k := at; k < min(at+1<<rnd.IntN(4), sectorLen); k++ {
				p[k] = fill
			}
		case 3: // a number that is a little different
			p[at] += byte(rnd.IntN(5)) - 2
		case 4: // another sector's bytes
			o := b.sectors[rnd.IntN(len(b.sectors))]
			n := 1 + rnd.IntN(sectorLen-at)
			copy(p[at:at+n], b.image[o*sectorLen:])
		case 5:
			n := 1 + rnd.IntN(min(32, sectorLen-at))
			for k := at; k < at+n; k++ {
				p[k] = byte(rnd.Uint32())
			}
		}
	}
	return m
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
