package ntfs

import "github.com/vmkeep/vmkeep/vddk/mount/guestfs"

// xpress decodes one buffer of XPRESS with Huffman coding into all of dst. ([MS-XCA] 2.2.)
//
// It begins with the lengths of 512 codes, 4 bits each; codes 0 to 255 are bytes, the others matches: four bits of
// the distance's length, four of the match's. Then 16-bit words of bits, with the longer lengths as bytes between them.
func xpress(dst, src []byte) error {
	const table = 256
	if len(src) < table+4 {
		return guestfs.Damaged("XPRESS buffer of %d bytes", len(src))
	}
	codes, err := newHuffman(src[:table])
	if err != nil {
		return err
	}
	r := bitReader{in: src[table:]}
	r.bits = r.word()<<16 | r.word()
	r.extra = 16
	for at := 0; at < len(dst); {
		sym := int(codes.symbol[r.bits>>17])
		r.take(uint(codes.length[sym]))
		if r.short {
			return guestfs.Damaged("XPRESS buffer ends at byte %d of %d", at, len(dst))
		}
		if sym < 256 {
			dst[at] = byte(sym)
			at++
			continue
		}
		n, log := (sym-256)&15, uint(sym-256)>>4
		if n == 15 {
			var ok bool
			if n, ok = r.long(); !ok {
				return guestfs.Damaged("XPRESS match without a length")
			}
		}
		n += 3
		back := 1 << log
		if log > 0 {
			back += int(r.bits >> (32 - log))
			r.take(log)
		}
		if r.short || back > at || n > len(dst)-at {
			return guestfs.Damaged("XPRESS match of %d bytes, %d back, at byte %d", n, back, at)
		}
		for ; n > 0; n-- {
			dst[at] = dst[at-back]
			at++
		}
	}
	return nil
}

// huffman finds a symbol by the next 15 bits.
type huffman struct {
	length [512]byte
	symbol [1 << 15]uint16
}

func newHuffman(nibbles []byte) (*huffman, error) {
	h := &huffman{}
	for k, b := range nibbles {
		h.length[2*k], h.length[2*k+1] = b&15, b>>4
	}
	at := 0
	for n := byte(1); n <= 15; n++ {
		for sym, l := range h.length {
			if l != n {
				continue
			}
			span := 1 << (15 - n)
			if at+span > len(h.symbol) {
				return nil, guestfs.Damaged("XPRESS codes overlap")
			}
			for k := range span {
				h.symbol[at+k] = uint16(sym)
			}
			at += span
		}
	}
	if at != len(h.symbol) {
		return nil, guestfs.Damaged("XPRESS codes leave gaps")
	}
	return h, nil
}

// bitReader reads bits from the top of 16-bit words. It reads a word ahead, so the end of the input is passed by up
// to two words; short is set when more than that is missing.
type bitReader struct {
	in    []byte
	bits  uint32
	extra int // bits in the lower word
	ahead int // words made up behind the end
	short bool
}

func (r *bitReader) word() uint32 {
	if len(r.in) < 2 {
		r.in = nil
		r.ahead++
		r.short = r.ahead > 3
		return 0
	}
	v := uint32(le.Uint16(r.in))
	r.in = r.in[2:]
	return v
}

func (r *bitReader) take(n uint) {
	r.bits <<= n
	if r.extra -= int(n); r.extra < 0 {
		r.bits |= r.word() << -r.extra
		r.extra += 16
	}
}

// long reads a length of 15 or more: a byte to add, or 255 and the length in two bytes, or those 0 and it in four.
func (r *bitReader) long() (int, bool) {
	if len(r.in) < 1 {
		return 0, false
	}
	n := int(r.in[0])
	r.in = r.in[1:]
	if n < 255 {
		return 15 + n, true
	}
	if len(r.in) < 2 {
		return 0, false
	}
	n = int(r.word())
	if n == 0 {
		if len(r.in) < 4 {
			return 0, false
		}
		v := le.Uint32(r.in)
		r.in = r.in[4:]
		if v > 1<<20 { // a buffer is 64 KiB at most
			return 0, false
		}
		n = int(v)
	}
	return n, n >= 15
}
