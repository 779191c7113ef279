package ntfs

import "github.com/vmkeep/vmkeep/vddk/mount/guestfs"

// lznt1 decodes src into all of dst; what src does not fill is zeros. ([MS-XCA] 2.5.)
//
// A chunk gives 4 KiB (the last one perhaps less): header(2), whose low 12 bits are the length - 1 of what follows and
// whose top bit says that it is compressed, in groups of a byte of flags and eight items. An item is a byte, or a
// pair in 16 bits whose split between distance and length moves with the place in the chunk.
func lznt1(dst, src []byte) error {
	const chunk = 4096
	at := 0
	for len(src) >= 2 && at < len(dst) {
		head := le.Uint16(src)
		if head == 0 {
			break
		}
		n := int(head&0xfff) + 1
		if 2+n > len(src) {
			return guestfs.Damaged("LZNT1 chunk of %d bytes is cut off", n)
		}
		in, out := src[2:2+n], dst[at:min(at+chunk, len(dst))]
		src = src[2+n:]
		at += len(out)
		made := 0
		if head&0x8000 == 0 {
			made = copy(out, in)
		} else {
			var ok bool
			if made, ok = lznt1Chunk(out, in); !ok {
				return guestfs.Damaged("LZNT1 chunk before byte %d", at)
			}
		}
		clear(out[made:])
	}
	clear(dst[at:])
	return nil
}

func lznt1Chunk(out, in []byte) (int, bool) {
	at := 0
	for len(in) > 0 && at < len(out) {
		flags := in[0]
		in = in[1:]
		for k := 0; k < 8 && len(in) > 0 && at < len(out); k++ {
			if flags>>k&1 == 0 {
				out[at] = in[0]
				in, at = in[1:], at+1
				continue
			}
			if len(in) < 2 || at == 0 {
				return at, false
			}
			pair := int(le.Uint16(in))
			in = in[2:]
			bits := 12 // of the length
			for x := at - 1; x >= 16; x >>= 1 {
				bits--
			}
			back, n := pair>>bits+1, pair&(1<<bits-1)+3
			if back > at {
				return at, false
			}
			for ; n > 0 && at < len(out); n-- {
				out[at] = out[at-back]
				at++
			}
		}
	}
	return at, true
}
