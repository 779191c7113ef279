// Package wtf8 turns names that guests keep as UTF-16 (NTFS, FAT, exFAT, Joliet) into Go strings.
//
// What is hidden: such names need not be well-formed, for the formats only count 16-bit units. A surrogate without
// its partner becomes the three bytes UTF-8 would use for it if it were a character (WTF-8), so that different
// names stay different and [Encode] gives the units back.
//
// Source: "The WTF-8 encoding", https://simonsapin.github.io/wtf-8/.
package wtf8

import (
	"encoding/binary"
	"unicode/utf16"
	"unicode/utf8"
)

// LE decodes little-endian units; an odd last byte is passed over.
func LE(b []byte) string { return decode(b, binary.LittleEndian.Uint16) }

// BE decodes big-endian units; an odd last byte is passed over.
func BE(b []byte) string { return decode(b, binary.BigEndian.Uint16) }

func decode(b []byte, unit func([]byte) uint16) string {
	out := make([]byte, 0, len(b))
	for ; len(b) >= 2; b = b[2:] {
		r := rune(unit(b))
		if utf16.IsSurrogate(r) {
			if len(b) >= 4 {
				if pair := utf16.DecodeRune(r, rune(unit(b[2:]))); pair != utf8.RuneError {
					out = utf8.AppendRune(out, pair)
					b = b[2:]
					continue
				}
			}
			out = append(out, 0xe0|byte(r>>12), 0x80|byte(r>>6&0x3f), 0x80|byte(r&0x3f))
			continue
		}
		out = utf8.AppendRune(out, r)
	}
	return string(out)
}

// Encode gives the units of a name back. Bytes that are no WTF-8 become U+FFFD.
func Encode(s string) []uint16 {
	var out []uint16
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && n == 1 && i+3 <= len(s) && s[i] == 0xed && s[i+1]&0xe0 == 0xa0 && s[i+2]&0xc0 == 0x80 {
			out = append(out, 0xd000|uint16(s[i+1]&0x3f)<<6|uint16(s[i+2]&0x3f))
			i += 3
			continue
		}
		out = utf16.AppendRune(out, r)
		i += n
	}
	return out
}
