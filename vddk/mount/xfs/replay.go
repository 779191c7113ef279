package xfs

import (
	"fmt"

	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
)

// Kinds of log items. Their numbers are in the order of the guest's machine: little-endian.
const (
	itemInode  = 0x123b
	itemBuffer = 0x123c
	itemCreate = 0x123f // an inode chunk was made

	// Intents announce work for later transactions, and are followed by their done item; what is unfinished at
	// the end of the log, recovery finishes. Freeing extents and keeping reverse maps and reference counts is
	// nothing a reader sees; these are:
	itemMapIntent  = 0x1244 // BUI: an extent is to be mapped into a file, or out of it
	itemMapDone    = 0x1245
	itemAttrIntent = 0x1246
	itemAttrDone   = 0x1247
	itemSwapIntent = 0x1248 // extents of two files are to be exchanged
	itemSwapDone   = 0x1249
)

const (
	bufferInodes = 0x1 // only the pointers of unlinked inodes are logged
	bufferCancel = 0x2 // the buffer was freed: earlier copies must not be replayed
)

// overlay is what replaying the log changes, in sectors.
type overlay struct {
	at map[int64][]byte
}

func (o *overlay) Unit() int64                  { return bb }
func (o *overlay) Len() int                     { return len(o.at) }
func (o *overlay) Has(n int64) bool             { return o.at[n] != nil }
func (o *overlay) Fill(p []byte, n int64) error { copy(p, o.at[n]); return nil }

// maxOverlay bounds the sectors kept: 160 MiB. A log of 2 GiB, the largest there is, changes the same metadata over
// and over; one that changes more than this is refused.
const maxOverlay = 160 << 20 / bb

// span is a buffer on the disk: sectors from the start of the volume.
type span struct{ at, n int64 }

// replayer applies committed transactions to the overlay.
type replayer struct {
	d      *driver
	over   *overlay
	cancel map[span]int
	open   map[intent]bool
}

type intent struct {
	kind uint16
	id   uint64
}

// replay reads the log and returns what it changes. Two passes: buffers freed within the log are found first, for
// what they held before must not be written over what lies there now.
func (d *driver) replay() (*overlay, error) {
	start, err := d.byteOf(d.logStart)
	if err != nil {
		return nil, err
	}
	r := &ring{d: d, start: start, n: int64(d.logBlocks) * d.bs / bb}
	if r.n < 64 || start+r.n*bb > d.src.Size() {
		return nil, guestfs.Damaged("log of %d blocks", d.logBlocks)
	}
	p := &replayer{d: d, over: &overlay{map[int64][]byte{}}, cancel: map[span]int{}, open: map[intent]bool{}}
	tail, last, dirty, err := r.active()
	if err != nil || !dirty {
		return p.over, err
	}
	for _, pass := range []func(*transaction) error{p.find, p.apply} {
		a := assembly{open: map[uint32]*transaction{}, commit: pass}
		if err := r.each(tail, last, a.record); err != nil {
			return nil, err
		}
	}
	d.note(false, "the log was replayed in memory (from sector %d to %d, %d sectors changed)", tail&(1<<32-1), last.end()%r.n, p.over.Len())
	if len(p.open) > 0 {
		d.note(true, "%d changes of extents or attributes were begun and not finished in the log: single files written in the last seconds may show an older state", len(p.open))
	}
	return p.over, nil
}

// find is the first pass.
func (p *replayer) find(t *transaction) error {
	for _, item := range t.items {
		if b, ok := parseBuffer(item[0]); ok && b.flags&bufferCancel != 0 {
			p.cancel[b.span]++
		}
	}
	return nil
}

// apply is the second pass. Within a transaction buffers come first, for inodes are written into them, and
// cancellations last.
func (p *replayer) apply(t *transaction) error {
	var buffers, others, inodes, cancels [][][]byte
	for _, item := range t.items {
		h := item[0]
		if len(h) < 4 {
			return guestfs.Damaged("item of %d bytes in the log", len(h))
		}
		if len(item) < regions(item) {
			return guestfs.Damaged("item %#x in the log has %d of %d regions", le.Uint16(h), len(item), regions(item))
		}
		b, buffer := parseBuffer(h)
		switch {
		case buffer && b.flags&bufferCancel != 0:
			cancels = append(cancels, item)
		case buffer && b.flags&bufferInodes != 0:
			inodes = append(inodes, item)
		case buffer || le.Uint16(h) == itemCreate:
			buffers = append(buffers, item)
		default:
			others = append(others, item)
		}
	}
	for _, list := range [][][][]byte{buffers, others, inodes, cancels} {
		for _, item := range list {
			if err := p.item(item); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *replayer) item(item [][]byte) error {
	h := item[0]
	switch kind := le.Uint16(h); kind {
	case itemBuffer:
		return p.buffer(item)
	case itemInode:
		return p.inode(item)
	case itemCreate:
		return p.create(h)
	case itemMapIntent, itemAttrIntent, itemSwapIntent:
		if len(h) >= 16 {
			p.open[intent{kind, le.Uint64(h[8:])}] = true
		}
	case itemMapDone, itemAttrDone, itemSwapDone:
		if len(h) >= 16 {
			delete(p.open, intent{kind - 1, le.Uint64(h[8:])})
		}
	}
	return nil
}

// write puts b at a byte of the volume, over what is there.
func (p *replayer) write(b []byte, at int64) error {
	if at < 0 || at > p.d.src.Size()-int64(len(b)) {
		return guestfs.Damaged("the log writes at byte %d", at)
	}
	for len(b) > 0 {
		s := p.over.at[at/bb]
		if s == nil {
			if len(p.over.at) >= maxOverlay {
				return fmt.Errorf("the log changes more than %d MiB: %w", maxOverlay*bb>>20, guestfs.ErrTooLarge)
			}
			s = make([]byte, bb)
			if err := p.d.src.ReadMeta(s, at/bb*bb); err != nil {
				return err
			}
			p.over.at[at/bb] = s
		}
		n := copy(s[at%bb:], b)
		b, at = b[n:], at+int64(n)
	}
	return nil
}

// read gives n bytes of the volume as replayed so far.
func (p *replayer) read(n int, at int64) ([]byte, error) {
	if at%bb != 0 || n%bb != 0 {
		// Inodes of 256 bytes: read the sector around.
		lo := at / bb * bb
		b, err := p.read((int(at-lo)+n+bb-1)/bb*bb, lo)
		if err != nil {
			return nil, err
		}
		return b[at-lo:][:n], nil
	}
	b, err := p.d.src.Meta(at, n)
	if err != nil {
		return nil, err
	}
	for k := 0; k < n; k += bb {
		if s := p.over.at[(at+int64(k))/bb]; s != nil {
			copy(b[k:], s)
		}
	}
	return b, nil
}

// A buffer item says which pieces of 128 bytes of a buffer follow, one region for each run of set bits, or several:
//
//	type(2) regions(2) flags(2) sectors(2) sector(8) words of the bitmap(4) bitmap
type buffer struct {
	span
	flags  uint16
	bitmap []byte
}

const bufferPiece = 128

func parseBuffer(h []byte) (buffer, bool) {
	if len(h) < 20 || le.Uint16(h) != itemBuffer {
		return buffer{}, false
	}
	words := int64(le.Uint32(h[16:]))
	return buffer{
		span:  span{int64(le.Uint64(h[8:])), int64(le.Uint16(h[6:]))},
		flags: le.Uint16(h[4:]), bitmap: h[20:min(int64(len(h)), 20+4*words)],
	}, true
}

func (p *replayer) buffer(item [][]byte) error {
	b, ok := parseBuffer(item[0])
	switch {
	case !ok:
		return guestfs.Damaged("buffer item of %d bytes in the log", len(item[0]))
	case b.at < 0 || b.at > p.d.src.Size()/bb:
		return guestfs.Damaged("the log changes sector %d", uint64(b.at))
	case b.flags&bufferCancel != 0:
		if p.cancel[b.span]--; p.cancel[b.span] <= 0 {
			delete(p.cancel, b.span)
		}
		return nil
	case p.cancel[b.span] > 0:
		return nil // freed further on
	case b.flags&bufferInodes != 0:
		return nil // the inodes themselves are logged one by one
	}
	set := func(k int) bool { return b.bitmap[k/8]>>(k%8)&1 != 0 }
	bits, next := len(b.bitmap)*8, 1
	for k := 0; k < bits; {
		if !set(k) {
			k++
			continue
		}
		end := k
		for end < bits && set(end) {
			end++
		}
		for k < end {
			if next >= len(item) {
				return guestfs.Damaged("buffer item in the log lacks regions")
			}
			region := item[next]
			next++
			region = region[:min(len(region), (end-k)*bufferPiece)]
			if err := p.write(region, b.at*bb+int64(k)*bufferPiece); err != nil {
				return err
			}
			k += (len(region) + bufferPiece - 1) / bufferPiece
		}
	}
	return nil
}

// create makes an inode chunk, empty:
//
//	type(2) regions(2) group(4) block(4) inodes(4) bytes of an inode(4) blocks(4) generation(4), big-endian from group on
func (p *replayer) create(h []byte) error {
	if len(h) < 28 {
		return guestfs.Damaged("inode chunk item of %d bytes in the log", len(h))
	}
	group, block, n := be.Uint32(h[4:]), be.Uint32(h[8:]), be.Uint32(h[20:])
	if group >= p.d.groups || n > 1024 {
		return guestfs.Damaged("inode chunk of %d blocks in group %d", n, group)
	}
	at := (int64(group)*int64(p.d.groupBlocks) + int64(block)) * p.d.bs
	end := at + int64(n)*p.d.bs
	for c := range p.cancel {
		if lo := c.at * bb; lo < end && lo+c.n*bb > at {
			return nil // the chunk is freed further on
		}
	}
	b := make([]byte, p.d.bs)
	for k := int64(0); k < p.d.bs; k += p.d.inodeSize {
		copy(b[k:], "IN")
		b[k+4] = 3
	}
	for ; at < end; at += p.d.bs {
		if err := p.write(b, at); err != nil {
			return err
		}
	}
	return nil
}
