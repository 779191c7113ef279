package crypto

import (
	"crypto/pbkdf2"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/bits"
	"runtime"
	"sync"
)

// scryptMemory bounds what the lanes of one derivation that run at once take, in bytes; one lane always may.
const scryptMemory = 64 << 20

// scrypt is RFC 7914's function. Its p lanes do not depend on one another: golang.org/x/crypto computes them one after
// the other, here as many run at once as there are CPUs and memory for. restic's keys have some five lanes, which is most of
// the time that opening a repository takes.
func scrypt(password, salt []byte, p Params, size int) ([]byte, error) {
	const most = 1 << 30 // RFC 7914, section 2: r * p < 2^30; here also the bytes of one lane
	if p.N < 2 || p.N&(p.N-1) != 0 || p.R < 1 || p.P < 1 || p.R >= most/p.P || p.R > most/128/p.N {
		return nil, fmt.Errorf("scrypt: parameters N=%d, r=%d, p=%d cannot be used", p.N, p.R, p.P)
	}
	lane := 128 * p.R
	b, err := pbkdf2.Key(sha256.New, string(password), salt, 1, p.P*lane)
	if err != nil {
		return nil, fmt.Errorf("scrypt: %w", err)
	}
	next := make(chan []byte, p.P)
	for i := range p.P {
		next <- b[i*lane:][:lane]
	}
	close(next)
	var workers sync.WaitGroup
	for range min(p.P, runtime.GOMAXPROCS(0), max(1, scryptMemory/(lane*p.N))) {
		workers.Go(func() {
			m := newMixer(p.N, p.R)
			for lane := range next {
				m.mix(lane)
			}
		})
	}
	workers.Wait()
	return pbkdf2.Key(sha256.New, string(password), b, 1, size)
}

// mixer is the memory of one lane.
type mixer struct {
	n, r int
	v    []salsaBlock // n times 2r: every state of the first half
	x, y []salsaBlock // 2r each
}

// salsaBlock is what one Salsa20 core works on: 64 bytes.
type salsaBlock [16]uint32

func newMixer(n, r int) *mixer {
	return &mixer{n: n, r: r, v: make([]salsaBlock, n*2*r), x: make([]salsaBlock, 2*r), y: make([]salsaBlock, 2*r)}
}

// mix is scryptROMix of one lane, in place. The race detector is kept out of it and of what it calls: they touch only
// the lane, which one worker has taken, and the memory of that worker.
//
//go:norace
func (m *mixer) mix(b []byte) {
	k := 2 * m.r
	for i := range m.x {
		for j := range m.x[i] {
			m.x[i][j] = binary.LittleEndian.Uint32(b[64*i+4*j:])
		}
	}
	for i := range m.n {
		copy(m.v[i*k:], m.x)
		blockMix(m.y, m.x)
		m.x, m.y = m.y, m.x
	}
	for range m.n {
		j := int(m.x[k-1][0]) & (m.n - 1) // Integerify: n has fewer bits than the word
		for i, w := range m.v[j*k:][:k] {
			x := &m.x[i]
			for l := range x {
				x[l] ^= w[l]
			}
		}
		blockMix(m.y, m.x)
		m.x, m.y = m.y, m.x
	}
	for i := range m.x {
		for j, w := range m.x[i] {
			binary.LittleEndian.PutUint32(b[64*i+4*j:], w)
		}
	}
}

// blockMix is scryptBlockMix: the even results go to the first half of out, the odd ones to the second.
//
//go:norace
func blockMix(out, in []salsaBlock) {
	r := len(in) / 2
	x := &in[2*r-1]
	for i := range in {
		y := &out[i/2+i%2*r]
		salsa8(y, x, &in[i])
		x = y
	}
}

// salsa8 sets out to Salsa20/8 of a xor b.
//
//go:norace
func salsa8(out, a, b *salsaBlock) {
	w0, w1, w2, w3 := a[0]^b[0], a[1]^b[1], a[2]^b[2], a[3]^b[3]
	w4, w5, w6, w7 := a[4]^b[4], a[5]^b[5], a[6]^b[6], a[7]^b[7]
	w8, w9, w10, w11 := a[8]^b[8], a[9]^b[9], a[10]^b[10], a[11]^b[11]
	w12, w13, w14, w15 := a[12]^b[12], a[13]^b[13], a[14]^b[14], a[15]^b[15]
	x0, x1, x2, x3, x4, x5, x6, x7 := w0, w1, w2, w3, w4, w5, w6, w7
	x8, x9, x10, x11, x12, x13, x14, x15 := w8, w9, w10, w11, w12, w13, w14, w15
	for range 4 { // the columns, then the rows; four quarters of each
		x4 ^= bits.RotateLeft32(x0+x12, 7)
		x9 ^= bits.RotateLeft32(x5+x1, 7)
		x14 ^= bits.RotateLeft32(x10+x6, 7)
		x3 ^= bits.RotateLeft32(x15+x11, 7)
		x8 ^= bits.RotateLeft32(x4+x0, 9)
		x13 ^= bits.RotateLeft32(x9+x5, 9)
		x2 ^= bits.RotateLeft32(x14+x10, 9)
		x7 ^= bits.RotateLeft32(x3+x15, 9)
		x12 ^= bits.RotateLeft32(x8+x4, 13)
		x1 ^= bits.RotateLeft32(x13+x9, 13)
		x6 ^= bits.RotateLeft32(x2+x14, 13)
		x11 ^= bits.RotateLeft32(x7+x3, 13)
		x0 ^= bits.RotateLeft32(x12+x8, 18)
		x5 ^= bits.RotateLeft32(x1+x13, 18)
		x10 ^= bits.RotateLeft32(x6+x2, 18)
		x15 ^= bits.RotateLeft32(x11+x7, 18)

		x1 ^= bits.RotateLeft32(x0+x3, 7)
		x6 ^= bits.RotateLeft32(x5+x4, 7)
		x11 ^= bits.RotateLeft32(x10+x9, 7)
		x12 ^= bits.RotateLeft32(x15+x14, 7)
		x2 ^= bits.RotateLeft32(x1+x0, 9)
		x7 ^= bits.RotateLeft32(x6+x5, 9)
		x8 ^= bits.RotateLeft32(x11+x10, 9)
		x13 ^= bits.RotateLeft32(x12+x15, 9)
		x3 ^= bits.RotateLeft32(x2+x1, 13)
		x4 ^= bits.RotateLeft32(x7+x6, 13)
		x9 ^= bits.RotateLeft32(x8+x11, 13)
		x14 ^= bits.RotateLeft32(x13+x12, 13)
		x0 ^= bits.RotateLeft32(x3+x2, 18)
		x5 ^= bits.RotateLeft32(x4+x7, 18)
		x10 ^= bits.RotateLeft32(x9+x8, 18)
		x15 ^= bits.RotateLeft32(x14+x13, 18)
	}
	*out = salsaBlock{x0 + w0, x1 + w1, x2 + w2, x3 + w3, x4 + w4, x5 + w5, x6 + w6, x7 + w7,
		x8 + w8, x9 + w9, x10 + w10, x11 + w11, x12 + w12, x13 + w13, x14 + w14, x15 + w15}
}
