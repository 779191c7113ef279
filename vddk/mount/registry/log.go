package registry

import (
	"cmp"
	"fmt"
	"math/bits"
	"slices"

	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
)

// Windows writes changes to a log first and to the hive later: since Windows 8.1 up to an hour later, so that a
// snapshot of a running guest has hives that need their logs.

const (
	typeOldest = 1
	typeOld    = 2
	typeNew    = 6

	maxPatches = 64 << 20 // bytes of logs kept in memory
)

// recover reads over the hive what logs hold that it lacks. Where they do not help it says so and reads what is there.
func (h *Hive) recover(s base, logs []File) {
	var entries []entry
	var old File
	var oldBase base
	for _, f := range logs {
		b, err := readBase(f)
		if err != nil || !b.sum {
			continue
		}
		switch b.typ {
		case typeNew:
			entries = append(entries, readEntries(f, b)...)
		case typeOld, typeOldest:
			if b.seq1 == b.seq2 && b.written >= s.written && (old == nil || b.written > oldBase.written) {
				old, oldBase = f, b
			}
		}
	}
	why := "Windows had not finished writing it, and there is no log that would help"
	patches := map[int64][]byte{}
	var bins int64
	var root uint32
	var err error
	switch {
	case len(entries) > 0:
		bins, root, err = apply(s, entries, patches)
	case old != nil:
		bins, root = oldBase.bins, oldBase.root
		err = applyOld(old, bins, patches)
	default:
		h.Uncertain = why
		return
	}
	if err != nil {
		h.Uncertain = "Windows had not finished writing it, and its log does not help: " + err.Error()
		return
	}
	h.bins, h.root, h.patches, h.Replayed = bins, root, patches, true
}

// entry is what Windows wrote to a log at one time:
//
//	0      4       8     12  16    20     24       32       40
//	"HvLE" length  flags seq bins  pages  hash(8)  hash(8)  for each page: place in the bins(4) bytes(4); the pages
//
// The first hash is of all behind the hashes, the second of the 32 bytes at the start.
type entry struct {
	seq  uint32
	root uint32 // from the log's base block
	b    []byte
}

// readEntries reads the entries that follow one another without a gap from the start of a log; what comes then is of
// earlier times.
func readEntries(f File, s base) []entry {
	var out []entry
	total := int64(0)
	for at := int64(pageLen); ; {
		head := make([]byte, 40)
		if n, _ := f.ReadAt(head, at); n < len(head) || string(head[:4]) != "HvLE" {
			return out
		}
		size := int64(le.Uint32(head[4:]))
		if total += size; size < pageLen || size%pageLen != 0 || total > maxPatches || le.Uint32(head[12:]) != s.seq1+uint32(len(out)) {
			return out
		}
		b := make([]byte, min(size, max(f.Size()-at, 0)))
		if n, _ := f.ReadAt(b, at); int64(n) < size || marvin(b[:32]) != le.Uint64(b[32:]) || marvin(b[40:]) != le.Uint64(b[24:]) {
			return out
		}
		out = append(out, entry{le.Uint32(b[12:]), s.root, b})
		at += size
	}
}

// apply collects the pages of all entries from the hive's last complete state on. Two logs are written in turns.
func apply(s base, entries []entry, patches map[int64][]byte) (bins int64, root uint32, err error) {
	// The numbers count round.
	slices.SortStableFunc(entries, func(a, b entry) int { return cmp.Compare(int32(a.seq-b.seq), 0) })
	if s.sum { // else nobody knows which state the hive has, and all entries are newer or tell what it holds anyway
		entries = slices.DeleteFunc(entries, func(e entry) bool { return int32(e.seq-s.seq2) < 0 })
	}
	if len(entries) == 0 {
		return 0, 0, fmt.Errorf("it is older than the hive")
	}
	for i, e := range entries {
		if i > 0 && e.seq != entries[i-1].seq+1 {
			return 0, 0, fmt.Errorf("entry %d follows entry %d", e.seq, entries[i-1].seq)
		}
		count := int64(le.Uint32(e.b[20:]))
		bins, root = int64(le.Uint32(e.b[16:])), e.root
		data := 40 + 8*count
		for k := range count {
			if data > int64(len(e.b)) {
				break
			}
			at, n := int64(le.Uint32(e.b[40+8*k:])), int64(le.Uint32(e.b[44+8*k:]))
			if at%pageLen != 0 || n%pageLen != 0 || data+n > int64(len(e.b)) {
				return 0, 0, guestfs.Damaged("a page of %d bytes for %#x", n, at)
			}
			for o := int64(0); o < n; o += pageLen {
				patches[at+o] = e.b[data+o : data+o+pageLen]
			}
			data += n
		}
		if data > int64(len(e.b)) {
			return 0, 0, guestfs.Damaged("%d pages in an entry of %d bytes", count, len(e.b))
		}
	}
	return bins, root, nil
}

// applyOld collects the pages of a log of Windows before 8.1: behind the base block "DIRT" and a bit for each page of
// the bins, then, from the next sector on, the pages whose bits are set.
func applyOld(f File, bins int64, patches map[int64][]byte) error {
	if bins <= 0 || bins > maxBins {
		return guestfs.Damaged("%d bytes of bins", bins)
	}
	bitmap := make([]byte, 4+bins/pageLen/8)
	if n, err := f.ReadAt(bitmap, pageLen); n < len(bitmap) || string(bitmap[:4]) != "DIRT" {
		return fmt.Errorf("map of pages: %w", orDamaged(err))
	}
	at := (pageLen + int64(len(bitmap)) + pageLen - 1) / pageLen * pageLen
	for page := range int64(len(bitmap)-4) * 8 {
		if bitmap[4+page/8]>>(page%8)&1 == 0 {
			continue
		}
		if len(patches) >= maxPatches/pageLen {
			return fmt.Errorf("more than %d MiB: %w", maxPatches>>20, guestfs.ErrTooLarge)
		}
		b := make([]byte, pageLen)
		if n, err := f.ReadAt(b, at); n < len(b) {
			return fmt.Errorf("page %d: %w", page, orDamaged(err))
		}
		patches[page*pageLen] = b
		at += pageLen
	}
	if len(patches) == 0 {
		return fmt.Errorf("it holds no pages")
	}
	return nil
}

// marvin is the hash of entries: Marvin32, which the .NET runtime has in the open, with the seed that the kernel has
// for logs and in full 64 bits.
func marvin(b []byte) uint64 {
	lo, hi := uint32(0x7a4e55c5), uint32(0x82ef4d88)
	mix := func(v uint32) {
		lo += v
		hi ^= lo
		lo = bits.RotateLeft32(lo, 20) + hi
		hi = bits.RotateLeft32(hi, 9) ^ lo
		lo = bits.RotateLeft32(lo, 27) + hi
		hi = bits.RotateLeft32(hi, 19)
	}
	for ; len(b) >= 4; b = b[4:] {
		mix(le.Uint32(b))
	}
	last := uint32(0x80) << (8 * len(b))
	for i, c := range b {
		last |= uint32(c) << (8 * i)
	}
	mix(last)
	mix(0)
	return uint64(hi)<<32 | uint64(lo)
}
