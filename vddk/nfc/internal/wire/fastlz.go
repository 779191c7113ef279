package wire

import (
	"fmt"
)

// FastLZ blocks, after the public description of the format. The first byte's upper 3 bits are the level (0 or 1 for
// levels 1 and 2), its lower 5 start the first instruction, which is always a literal run. Instructions:
//
//	000LLLLL                            copy L+1 bytes that follow
//	MMMHHHHH llllllll     M in 1..6     copy M+2 bytes from distance HHHHHllllllll+1
//	111HHHHH n... llllllll              copy 9+n bytes; level 1: one byte n; level 2: bytes are summed up to and
//	                                    with the first that is not 255
//	MMM11111 [n...] 11111111 xx xx      level 2 only: distance is 8192 + xxxx, big-endian
const (
	fastNear    = 8191             // largest distance-1 of a short match; at level 2, 8191 itself announces a far one
	fastFar     = fastNear + 65535 // largest distance-1 at level 2
	fastLevel2  = 64 << 10         // inputs from here use level 2
	fastMin     = 16               // inputs below are not packed
	fastBits    = 13
	fastTable   = 1 << fastBits
	fastMaxRun  = 32
	fastMaxLen1 = 9 + 254 // longest match written at level 1; 255 is legal, 254 leaves it unambiguous at both levels
)

func decodeFast(dst, src []byte) error {
	bad := func(why string) error { return fmt.Errorf("%w: FastLZ: %s", ErrPacked, why) }
	if len(src) == 0 {
		return bad("empty")
	}
	level := src[0] >> 5
	if level > 1 {
		return bad("unknown level")
	}
	ctrl := int(src[0] & 31)
	i, o := 1, 0
	for {
		if ctrl < 32 {
			n := ctrl + 1
			if n > len(src)-i {
				return bad("literals cut off")
			}
			if n > len(dst)-o {
				return bad("too much data")
			}
			copy(dst[o:], src[i:i+n])
			i, o = i+n, o+n
		} else {
			n, hi := ctrl>>5+2, ctrl&31
			if n == 9 {
				for {
					if i >= len(src) {
						return bad("match cut off")
					}
					b := int(src[i])
					i++
					n += b
					if n > len(dst)-o {
						return bad("too much data")
					}
					if level == 0 || b != 255 {
						break
					}
				}
			}
			if i >= len(src) {
				return bad("match cut off")
			}
			dist := hi<<8 + int(src[i]) + 1
			i++
			if level == 1 && dist == fastNear+1 {
				if len(src)-i < 2 {
					return bad("match cut off")
				}
				dist = int(src[i])<<8 + int(src[i+1]) + fastNear + 1
				i += 2
			}
			if dist > o {
				return bad("match before the start")
			}
			if n > len(dst)-o {
				return bad("too much data")
			}
			copyMatch(dst, o, dist, n)
			o += n
		}
		if i == len(src) {
			break
		}
		ctrl = int(src[i])
		i++
	}
	if o != len(dst) {
		return bad("too little data")
	}
	return nil
}

// copyMatch copies n bytes from dist back to o. The ranges may overlap: the pattern then repeats, so each round can
// copy all that is there already.
func copyMatch(dst []byte, o, dist, n int) {
	from := o - dist
	for n > 0 {
		k := copy(dst[o:o+n], dst[from:o])
		o, n = o+k, n-k
	}
}

func (k *Codec) encodeFast(dst, src []byte) []byte {
	if len(src) < fastMin {
		return dst
	}
	if k.table == nil {
		k.table = new([fastTable]uint32)
	}
	clear(k.table[:])
	far, level := fastNear-1, byte(0)
	if len(src) >= fastLevel2 {
		far, level = fastFar, 1
	}
	start, lit, miss := len(dst), 0, 0
	// The first instruction must be literals: matches start at 1. The last bytes are literals, so that four can be
	// read at every candidate.
	for i := 1; i+8 <= len(src); {
		w := le.Uint32(src[i:])
		h := (w & 0xffffff) * 2654435761 >> (32 - fastBits)
		cand := int(k.table[h])
		k.table[h] = uint32(i)
		dist := i - cand
		if dist > far || dist <= 0 || (le.Uint32(src[cand:])^w)&0xffffff != 0 || dist > fastNear && le.Uint32(src[cand:]) != w {
			// What does not repeat is passed over ever faster.
			miss++
			i += 1 + miss>>6
			continue
		}
		n := 3
		for i+n < len(src)-4 && src[cand+n] == src[i+n] {
			n++
		}
		if dist > fastNear && n < 5 { // a far match costs four bytes
			miss++
			i++
			continue
		}
		miss = 0
		dst = appendLiterals(dst, src[lit:i])
		dst = appendMatch(dst, dist-1, n, level)
		i += n
		lit = i
		if i+8 <= len(src) {
			k.table[(le.Uint32(src[i-1:])&0xffffff)*2654435761>>(32-fastBits)] = uint32(i - 1)
		}
		if len(dst)-start >= len(src) {
			return dst
		}
	}
	dst = appendLiterals(dst, src[lit:])
	dst[start] |= level << 5
	return dst
}

func appendLiterals(dst, run []byte) []byte {
	for len(run) > 0 {
		n := min(len(run), fastMaxRun)
		dst = append(dst, byte(n-1))
		dst = append(dst, run[:n]...)
		run = run[n:]
	}
	return dst
}

// appendMatch appends a match of n bytes; d is the distance less one.
func appendMatch(dst []byte, d, n int, level byte) []byte {
	if level == 0 {
		for n > fastMaxLen1 {
			// What is left over must be a match itself: never fewer than three bytes.
			k := min(fastMaxLen1, n-3)
			dst = append(dst, 7<<5|byte(d>>8), byte(k-9), byte(d))
			n -= k
		}
		if n < 9 {
			return append(dst, byte(n-2)<<5|byte(d>>8), byte(d))
		}
		return append(dst, 7<<5|byte(d>>8), byte(n-9), byte(d))
	}
	hi, lo := byte(d>>8), byte(d)
	if d >= fastNear {
		hi, lo = 31, 255
	}
	if n < 9 {
		dst = append(dst, byte(n-2)<<5|hi)
	} else {
		dst = append(dst, 7<<5|hi)
		for n -= 9; n >= 255; n -= 255 {
			dst = append(dst, 255)
		}
		dst = append(dst, byte(n))
	}
	dst = append(dst, lo)
	if d >= fastNear {
		dst = append(dst, byte((d-fastNear)>>8), byte(d-fastNear))
	}
	return dst
}
