package wire

import (
	"bytes"
	"fmt"
)

// A skipz fragment leaves zero runs out:
//
//	+-----------+-------+------------+------------+------+------------+--- ...
//	| u32 total | u32 0 | u32 offset | u32 length | data | u32 offset | ...
//	+-----------+-------+------------+------------+------+------------+--- ...
//
// total is the fragment's length, records ascend, and what none covers is zero. Hosts have been seen to send raw data
// under this type where it does not shrink.
const (
	skipHead   = 8
	skipRecord = 8
	skipGain   = 64 // shorter zero runs are not worth a record of their own
)

func decodeSkipz(dst, src []byte) error {
	raw := len(src) == len(dst)
	err := checkSkipz(len(dst), src)
	switch {
	case err != nil && raw:
		copy(dst, src)
		return nil
	case err != nil:
		return err
	case raw:
		// Sound records that save nothing: either would do, and a guest can write sectors that look like this.
		return ErrAmbiguous
	}
	o := 0
	for p := skipHead; p < len(src); {
		off, n := int(le.Uint32(src[p:])), int(le.Uint32(src[p+4:]))
		p += skipRecord
		clear(dst[o:off])
		o = off + copy(dst[off:off+n], src[p:])
		p += n
	}
	clear(dst[o:])
	return nil
}

// checkSkipz walks the records of a fragment of total bytes.
func checkSkipz(total int, src []byte) error {
	bad := func(why string) error { return fmt.Errorf("%w: skipz: %s", ErrPacked, why) }
	if len(src) < skipHead || uint64(le.Uint32(src)) != uint64(total) {
		return bad("length differs")
	}
	if le.Uint32(src[4:]) != 0 {
		return bad("head is not zero")
	}
	end := uint64(0)
	for rest := src[skipHead:]; len(rest) > 0; {
		if len(rest) < skipRecord {
			return bad("record cut off")
		}
		off, n := uint64(le.Uint32(rest)), uint64(le.Uint32(rest[4:]))
		rest = rest[skipRecord:]
		switch {
		case off < end:
			return bad("records overlap")
		case off+n > uint64(total):
			return bad("record beyond the end")
		case n > uint64(len(rest)):
			return bad("record cut off")
		}
		end, rest = off+n, rest[n:]
	}
	return nil
}

func encodeSkipz(dst, src []byte) []byte {
	start := len(dst)
	dst = le.AppendUint32(dst, uint32(len(src)))
	dst = le.AppendUint32(dst, 0)
	for i := zeroRun(src); i < len(src) && len(dst)-start < len(src); {
		n, gap := dataRun(src[i:])
		dst = le.AppendUint32(dst, uint32(i))
		dst = le.AppendUint32(dst, uint32(n))
		dst = append(dst, src[i:i+n]...)
		i += n + gap
	}
	return dst
}

// zeroRun is the number of zero bytes src starts with.
func zeroRun(src []byte) int {
	i := 0
	for ; len(src)-i >= 32; i += 32 {
		if p := src[i : i+32]; le.Uint64(p)|le.Uint64(p[8:])|le.Uint64(p[16:])|le.Uint64(p[24:]) != 0 {
			break
		}
	}
	for i < len(src) && src[i] == 0 {
		i++
	}
	return i
}

// dataRun is the length of the data src starts with, up to the next worthwhile zero run, and that run's length.
func dataRun(src []byte) (n, gap int) {
	for n < len(src) {
		z := bytes.IndexByte(src[n:], 0)
		if z < 0 {
			return len(src), 0
		}
		n += z
		if gap = zeroRun(src[n:]); gap >= skipGain || n+gap == len(src) {
			return n, gap
		}
		n += gap
	}
	return n, 0
}
