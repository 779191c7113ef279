package ext4

import (
	"fmt"
	"hash/crc32"
	"io"

	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
)

// The journal (jbd2) is a file of blocks, used as a ring. All its numbers are big-endian. A transaction is
// descriptor blocks, each followed by copies of the blocks it names, revocation blocks, and a commit block:
//
//	every block:  magic C03B3998(4) type(4) sequence(4)     data blocks have no header
//	descriptor 1: header, tags, [checksum(4) at the end]
//	commit     2: header, checksum type(1) size(1) 0(2) checksum(32) seconds(8) nanoseconds(4)
//	revocation 5: header, bytes used(4), block numbers(4 or 8 each), [checksum(4) at the end]
//	tag:     block(4) checksum(2) flags(2) [upper block(4)] [0(2)]          unless checksums are version 3
//	tag v3:  block(4) flags(4) upper block(4) checksum(4)
//	tag flags: 1 the copy's magic was blanked, 2 no journal UUID(16) follows, 4 (deleted), 8 last tag
//
// The superblock of the journal, in its block 0:
//
//	C 16     20    24   28       32    36   40     44     48   64     80            84
//	blocksize,length,first,sequence,start,errno,compat,incompat,ro,uuid,... checksum type, blocks for fast commits
const (
	jbdMagic = 0xc03b3998

	jbdDescriptor = 1
	jbdCommit     = 2
	jbdRevoke     = 5

	jbdCompatChecksum = 1 // whole transactions, CRC-32 in the commit block
	jbdRevokes        = 0x1
	jbd64             = 0x2
	jbdAsync          = 0x4 // commit blocks may have reached the disk before what they commit
	jbdChecksum2      = 0x8
	jbdChecksum3      = 0x10
	jbdFast           = 0x20
	jbdKnown          = 0x3f

	tagEscaped  = 1
	tagSameUUID = 2
	tagLast     = 8
)

// overlay is the journal laid over the volume: block -> where its last copy lies. Only references are kept, so
// that a journal of a gigabyte costs megabytes.
type overlay struct {
	src  *guestfs.Source
	bs   int64
	at   map[int64]copied
	sums sums
}

// copied is the place of a block's copy in the journal.
type copied struct {
	off     int64 // on the volume
	seq     uint32
	sum     uint32
	escaped bool
}

func (o *overlay) Unit() int64      { return o.bs }
func (o *overlay) Len() int         { return len(o.at) }
func (o *overlay) Has(n int64) bool { _, ok := o.at[n]; return ok }

func (o *overlay) Fill(p []byte, n int64) error {
	c := o.at[n]
	if err := o.src.ReadData(p, c.off); err != nil {
		return err
	}
	if o.sums.tags() && o.sums.tag(p, c.seq) != o.sums.cut(c.sum) {
		return guestfs.Damaged("journal's copy of block %d has a wrong checksum", n)
	}
	if c.escaped {
		be.PutUint32(p, jbdMagic)
	}
	return nil
}

// sums are the checksums of a journal, CRC-32C from a seed made of its UUID.
type sums struct {
	version int // 0: none, 2 or 3
	seed    uint32
}

func castagnoli(crc uint32, b []byte) uint32 {
	// Without the complement at both ends, as the kernel chains them.
	return ^crc32.Update(^crc, crc32.MakeTable(crc32.Castagnoli), b)
}

func (s sums) tags() bool { return s.version != 0 }

// tag is the checksum of a data block of transaction seq.
func (s sums) tag(b []byte, seq uint32) uint32 {
	return s.cut(castagnoli(castagnoli(s.seed, be.AppendUint32(nil, seq)), b))
}

func (s sums) cut(sum uint32) uint32 {
	if s.version == 2 {
		return sum & 0xffff
	}
	return sum
}

// valid checks the checksum kept at b[at:] over the whole block with those 4 bytes blank.
func (s sums) valid(b []byte, at int) bool {
	if s.version == 0 {
		return true
	}
	c := append([]byte{}, b...)
	clear(c[at : at+4])
	return castagnoli(s.seed, c) == be.Uint32(b[at:])
}

// log is a journal being read.
type log struct {
	d        *driver
	f        guestfs.File
	runs     []guestfs.Run
	features uint32
	compat   uint32
	first    uint32 // blocks [first, end) are the ring
	end      uint32
	sums     sums
}

// replay reads the journal and returns what it changes.
func (d *driver) replay() (*overlay, error) {
	i, err := d.inode(guestfs.ID{File: uint64(d.journal)})
	if err != nil {
		return nil, err
	}
	if i.kind() != guestfs.Regular || i.flags&flagInline != 0 {
		return nil, guestfs.Damaged("inode %d is no journal", d.journal)
	}
	f, err := d.content(i)
	if err != nil {
		return nil, err
	}
	l := &log{d: d, f: f}
	if l.runs, err = f.Runs(); err != nil {
		return nil, err
	}
	sb, err := l.block(0)
	if err != nil {
		return nil, err
	}
	if be.Uint32(sb) != jbdMagic || int64(be.Uint32(sb[12:])) != d.bs {
		return nil, guestfs.Damaged("journal superblock")
	}
	version := be.Uint32(sb[4:]) // 3: without features, 4: with
	l.first, l.end = be.Uint32(sb[20:]), be.Uint32(sb[16:])
	seq, start := be.Uint32(sb[24:]), be.Uint32(sb[28:])
	if version == 4 {
		l.compat, l.features = be.Uint32(sb[36:]), be.Uint32(sb[40:])
	}
	if u := l.features &^ jbdKnown; u != 0 {
		return nil, fmt.Errorf("journal features %#x: %w; start and stop the guest cleanly, or restore the disk", u, guestfs.ErrUnsupported)
	}
	fast := uint32(0)
	if l.features&jbdFast != 0 {
		if fast = be.Uint32(sb[84:]); fast == 0 {
			fast = 256
		}
	}
	if l.first == 0 || uint64(l.end)*uint64(d.bs) > uint64(f.Size()) || l.end <= fast || l.first >= l.end-fast || start >= l.end-fast {
		return nil, guestfs.Damaged("journal of %d blocks from %d, starting at %d", l.end, l.first, start)
	}
	l.end -= fast
	switch {
	case l.features&jbdChecksum3 != 0:
		l.sums.version = 3
	case l.features&jbdChecksum2 != 0:
		l.sums.version = 2
	}
	l.sums.seed = castagnoli(^uint32(0), sb[48:64])
	o := &overlay{src: d.src, bs: d.bs, at: map[int64]copied{}, sums: l.sums}
	if start == 0 { // closed cleanly
		return o, nil
	}
	next, err := l.transactions(start, seq, o)
	if err != nil {
		return nil, err
	}
	if fast > 0 {
		l.fastCommits(next)
	}
	return o, nil
}

// block reads block n of the journal.
func (l *log) block(n uint32) ([]byte, error) {
	b := make([]byte, l.d.bs)
	_, err := l.f.ReadAt(b, int64(n)*l.d.bs)
	if err != nil && err != io.EOF {
		return nil, err
	}
	return b, nil
}

// place is where block n of the journal lies on the volume.
func (l *log) place(n uint32) (int64, error) {
	off := int64(n) * l.d.bs
	lo, hi := 0, len(l.runs)
	for lo < hi {
		if mid := (lo + hi) / 2; l.runs[mid].File.End() <= off {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == len(l.runs) || l.runs[lo].Kind != guestfs.Data {
		return 0, guestfs.Damaged("block %d of the journal is a hole", n)
	}
	return l.runs[lo].Disk.Off + off - l.runs[lo].File.Off, nil
}

func (l *log) next(n uint32) uint32 {
	if n++; n >= l.end {
		n = l.first
	}
	return n
}

// transaction is what lies between the blocks of one sequence number.
type transaction struct {
	tags    []tag
	revoked []int64
	sum     uint32 // compat checksum so far
	torn    bool   // a descriptor or revocation block has a wrong checksum
}

type tag struct {
	block int64 // on the volume
	at    uint32
	flags uint32
	sum   uint32
}

// transactions walks the ring from start and lays every committed transaction over o, in order. It returns the
// sequence number that would have come next.
//
// A block revoked by transaction n is not replayed from n or earlier ones: it was freed, and may hold file data
// now. That is known only at the end, so revocations are gathered first and applied then.
func (l *log) transactions(start, seq uint32, o *overlay) (uint32, error) {
	revoked := map[int64]uint32{}
	cur := transaction{sum: ^uint32(0)}
	lastCommit := int64(0)
	for n, steps := start, uint32(0); steps < l.end; steps++ {
		b, err := l.block(n)
		if err != nil {
			return 0, err
		}
		if be.Uint32(b) != jbdMagic || be.Uint32(b[8:]) != seq {
			break
		}
		switch be.Uint32(b[4:]) {
		case jbdDescriptor:
			used, err := l.descriptor(b, n, &cur)
			if err != nil {
				return 0, err
			}
			steps += used
			for range used {
				n = l.next(n)
			}
		case jbdRevoke:
			l.revocations(b, &cur)
		case jbdCommit:
			when := int64(be.Uint64(b[48:]))
			if ok, stale := l.committed(b, &cur, when < lastCommit); !ok {
				if !stale {
					l.d.note(true, "transaction %d of the journal has a wrong checksum and was not replayed, nor were later ones", seq)
				}
				return seq, l.finish(o, revoked)
			}
			lastCommit = when
			for _, t := range cur.tags {
				off, err := l.place(t.at)
				if err != nil {
					return 0, err
				}
				if uint64(t.block) >= l.d.blocks {
					return 0, guestfs.Damaged("the journal names block %d of %d", t.block, l.d.blocks)
				}
				o.at[t.block] = copied{off: off, seq: seq, sum: t.sum, escaped: t.flags&tagEscaped != 0}
			}
			for _, r := range cur.revoked {
				revoked[r] = seq
			}
			cur = transaction{sum: ^uint32(0)}
			seq++
		default:
			return seq, l.finish(o, revoked)
		}
		n = l.next(n)
	}
	return seq, l.finish(o, revoked)
}

// finish removes what was revoked. The overlay keeps the last copy of a block; earlier ones are revoked with it.
func (l *log) finish(o *overlay, revoked map[int64]uint32) error {
	for block, seq := range revoked {
		if c, ok := o.at[block]; ok && int32(c.seq-seq) <= 0 {
			delete(o.at, block)
		}
	}
	return nil
}

// descriptor reads the tags of a descriptor block, which is block n of the journal, and returns how many data
// blocks follow it.
func (l *log) descriptor(b []byte, n uint32, t *transaction) (uint32, error) {
	size, end := 8, len(b)
	if l.features&jbd64 != 0 {
		size = 12
	}
	if l.sums.version == 2 {
		size += 2
	}
	if l.sums.version == 3 {
		size = 16
	}
	if l.sums.version != 0 {
		end -= 4
		t.torn = t.torn || !l.sums.valid(b, end)
	}
	if l.compat&jbdCompatChecksum != 0 {
		t.sum = crcBE(t.sum, b)
	}
	at, used := n, uint32(0)
	for p := 12; p+size <= end; {
		x := tag{block: int64(be.Uint32(b[p:])), flags: uint32(be.Uint16(b[p+6:])), sum: uint32(be.Uint16(b[p+4:]))}
		if l.sums.version == 3 {
			x.flags, x.sum = be.Uint32(b[p+4:]), be.Uint32(b[p+12:])
		}
		if l.features&jbd64 != 0 {
			x.block |= int64(be.Uint32(b[p+8:])) << 32
		}
		if x.block < 0 {
			return 0, guestfs.Damaged("the journal names block %d", uint64(x.block))
		}
		at, used = l.next(at), used+1
		x.at = at
		if err := l.checkData(x, be.Uint32(b[8:]), t); err != nil {
			return 0, err
		}
		t.tags = append(t.tags, x)
		if p += size; x.flags&tagSameUUID == 0 {
			p += 16
		}
		if x.flags&tagLast != 0 {
			break
		}
	}
	if uint64(len(t.tags)) > uint64(l.end) {
		return 0, guestfs.Damaged("a transaction is longer than the journal")
	}
	return used, nil
}

// checkData looks at a data block at once where it may be torn: the others were flushed before their commit block
// was written, and are checked when they are used.
func (l *log) checkData(x tag, seq uint32, t *transaction) error {
	if l.compat&jbdCompatChecksum == 0 && l.features&jbdAsync == 0 {
		return nil
	}
	b, err := l.block(x.at)
	if err != nil {
		return err
	}
	if l.compat&jbdCompatChecksum != 0 {
		t.sum = crcBE(t.sum, b)
	}
	if l.sums.tags() && l.sums.tag(b, seq) != l.sums.cut(x.sum) {
		t.torn = true
	}
	return nil
}

func (l *log) revocations(b []byte, t *transaction) {
	if l.sums.version != 0 && !l.sums.valid(b, len(b)-4) {
		t.torn = true
		return
	}
	width := 4
	if l.features&jbd64 != 0 {
		width = 8
	}
	end := min(int(be.Uint32(b[12:])), len(b))
	for p := 16; p+width <= end; p += width {
		if width == 8 {
			t.revoked = append(t.revoked, int64(be.Uint64(b[p:])))
		} else {
			t.revoked = append(t.revoked, int64(be.Uint32(b[p:])))
		}
	}
}

// committed reports whether the commit block b ends a whole transaction. When it does not, stale tells that this
// is how a journal ends: with the rest of an earlier round, or, where commit blocks do not wait for what they commit,
// a transaction that was being written.
func (l *log) committed(b []byte, t *transaction, older bool) (ok, stale bool) {
	const sumAt = 16
	ok = l.sums.valid(b, sumAt) && !t.torn
	if l.sums.version == 0 && l.compat&jbdCompatChecksum != 0 && b[12] == 1 && b[13] == 4 {
		ok = be.Uint32(b[sumAt:]) == t.sum
	}
	return ok, older || l.features&jbdAsync != 0
}

// crcBE is the CRC-32 of the first checksummed journals: polynomial 04C11DB7, most significant bit first, not
// complemented.
func crcBE(crc uint32, b []byte) uint32 {
	for _, x := range b {
		crc ^= uint32(x) << 24
		for range 8 {
			if crc&(1<<31) != 0 {
				crc = crc<<1 ^ 0x04c11db7
			} else {
				crc <<= 1
			}
		}
	}
	return crc
}

// fastCommits looks for fast commits that follow transaction next-1. They describe changes instead of holding
// blocks, and are not replayed: what they would change is named as uncertain.
//
//	area:  tag(2, little-endian) length(2) value; the first is HEAD (9): features(4) transaction(4)
//
// The area begins one block behind the ring, by the way Linux counts.
func (l *log) fastCommits(next uint32) {
	b, err := l.block(l.end + 1)
	if err != nil || le.Uint16(b) != 9 || le.Uint16(b[2:]) < 8 || le.Uint32(b[8:]) != next {
		return
	}
	l.d.note(true, "the journal holds fast commits that were not replayed: files written in the last seconds before the point may show an older state")
}
