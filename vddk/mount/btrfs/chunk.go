package btrfs

import (
	"errors"
	"fmt"
	"slices"
	"sort"

	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/vddk/mount/device"
	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
)

// chunk maps n logical bytes to stripes:
//
//	size(8) owner(8) stripe length(8) type(8) alignments(12) stripes(2) sub-stripes(2) { device(8) offset(8) uuid(16) }...
type chunk struct {
	logical, n, length uint64
	kind               uint64
	sub                uint64
	stripes            []stripe
}

type stripe struct{ device, off uint64 }

// Kinds of chunks. RAID 1 (2, 3 and 4 copies), DUP and single ones lie whole in each stripe.
const (
	kindRAID0  = 1 << 3
	kindRAID10 = 1 << 6
	kindRAID5  = 1 << 7
	kindRAID6  = 1 << 8

	chunkHead  = 48
	stripeLen  = 32
	maxStripes = 1024
)

func parseChunk(logical uint64, b []byte) (chunk, int, error) {
	if len(b) < chunkHead {
		return chunk{}, 0, guestfs.Damaged("chunk of %d bytes", len(b))
	}
	c := chunk{logical: logical, n: le.Uint64(b), length: le.Uint64(b[16:]), kind: le.Uint64(b[24:]), sub: uint64(le.Uint16(b[46:]))}
	count := int(le.Uint16(b[44:]))
	used := chunkHead + stripeLen*count
	parity := uint64(0)
	switch {
	case c.kind&kindRAID5 != 0:
		parity = 1
	case c.kind&kindRAID6 != 0:
		parity = 2
	}
	switch {
	case count == 0 || count > maxStripes || used > len(b) || uint64(count) <= parity:
		return c, 0, guestfs.Damaged("chunk of %d stripes", count)
	case c.length < 4096 || c.length > 1<<30 || c.n == 0 || c.n > 1<<60 || logical > 1<<62:
		return c, 0, guestfs.Damaged("chunk of %d bytes in stripes of %d", c.n, c.length)
	case c.kind&kindRAID10 != 0 && (c.sub == 0 || uint64(count)%c.sub != 0):
		return c, 0, guestfs.Damaged("chunk of %d stripes by %d", count, c.sub)
	}
	for k := range count {
		s := b[chunkHead+stripeLen*k:]
		c.stripes = append(c.stripes, stripe{le.Uint64(s), le.Uint64(s[8:])})
	}
	return c, used, nil
}

// readChunks reads the chunk tree. Where that lies itself, the superblock tells.
func (d *driver) readChunks() error {
	const typeChunk, maxChunks = 228, 1 << 20
	for b := d.systemChunks; len(b) >= keyLen+chunkHead; {
		c, n, err := parseChunk(parseKey(b).off, b[keyLen:])
		if err != nil {
			return err
		}
		d.chunks = append(d.chunks, c)
		b = b[keyLen+n:]
	}
	d.sortChunks()
	var all []chunk
	err := d.scan(tree{at: d.chunkRoot, gen: d.chunkGen, level: d.chunkLevel}, key{}, lastKey, func(k key, b []byte) error {
		if k.typ != typeChunk {
			return nil
		}
		c, _, err := parseChunk(k.off, b)
		if err != nil {
			return err
		}
		if all = append(all, c); len(all) > maxChunks {
			return fmt.Errorf("more than %d chunks: %w", maxChunks, guestfs.ErrTooLarge)
		}
		return nil
	})
	if err != nil {
		return err
	}
	d.chunks = all
	d.sortChunks()
	return nil
}

func (d *driver) sortChunks() {
	slices.SortFunc(d.chunks, func(a, b chunk) int {
		if a.logical < b.logical {
			return -1
		}
		if a.logical > b.logical {
			return 1
		}
		return 0
	})
}

// place is where up to n bytes at a logical address lie: the copies, and of RAID 5 and 6 the whole row of stripes.
type place struct {
	copies []stripe
	n      uint64   // bytes that lie together
	row    []stripe // RAID 5: all stripes at the same offset, data and parity; XOR of all is zero
}

func (d *driver) place(logical, n uint64) (place, error) {
	k := sort.Search(len(d.chunks), func(k int) bool { return d.chunks[k].logical+d.chunks[k].n > logical })
	if k >= len(d.chunks) || d.chunks[k].logical > logical {
		return place{}, guestfs.Damaged("logical address %d lies in no chunk", logical)
	}
	c := d.chunks[k]
	off := logical - c.logical
	nr, in, count := off/c.length, off%c.length, uint64(len(c.stripes))
	p := place{n: min(n, c.n-off)}
	at := func(k, row uint64) stripe {
		s := c.stripes[k]
		return stripe{s.device, s.off + row*c.length + in}
	}
	switch {
	case c.kind&kindRAID0 != 0:
		p.copies = []stripe{at(nr%count, nr/count)}
	case c.kind&kindRAID10 != 0:
		groups := count / c.sub
		for m := range c.sub {
			p.copies = append(p.copies, at(nr%groups*c.sub+m, nr/groups))
		}
	case c.kind&(kindRAID5|kindRAID6) != 0:
		parity := uint64(1)
		if c.kind&kindRAID6 != 0 {
			parity = 2
		}
		data := count - parity
		row := nr / data
		p.copies = []stripe{at((nr%data+row)%count, row)}
		if parity == 1 {
			for k := range count {
				p.row = append(p.row, at(k, row))
			}
		}
	default:
		for _, s := range c.stripes {
			p.copies = append(p.copies, stripe{s.device, s.off + off})
		}
		return p, nil
	}
	p.n = min(p.n, c.length-in)
	return p, nil
}

// read fills b from copy number m of a logical address; of RAID 5 copy 1 is computed from the other stripes. more
// tells whether there is a further copy to try.
func (d *driver) read(b []byte, logical uint64, m int) (more bool, err error) {
	for len(b) > 0 {
		p, e := d.place(logical, uint64(len(b)))
		if e != nil {
			return false, e
		}
		part := b[:p.n]
		switch {
		case m < len(p.copies):
			e = d.readStripe(part, p.copies[m])
		case m == 1 && p.row != nil:
			e = d.rebuild(part, p)
		default: // a piece with fewer copies than others: the last one again
			e = d.readStripe(part, p.copies[len(p.copies)-1])
		}
		more = more || m+1 < len(p.copies) || m == 0 && p.row != nil
		if e != nil && err == nil {
			err = e
		}
		b, logical = b[p.n:], logical+p.n
	}
	return more, err
}

func (d *driver) readStripe(b []byte, s stripe) error {
	src := d.devs[s.device]
	if src == nil {
		return fmt.Errorf("device %d: %w", s.device, device.ErrMissing)
	}
	if s.off > 1<<62 {
		return guestfs.Damaged("stripe at byte %d", s.off)
	}
	return src.ReadData(b, int64(s.off))
}

// rebuild computes a stripe of RAID 5 from all others of its row.
func (d *driver) rebuild(b []byte, p place) error {
	clear(b)
	other := make([]byte, len(b))
	for _, s := range p.row {
		if s == p.copies[0] {
			continue
		}
		if err := d.readStripe(other, s); err != nil {
			return err
		}
		for k := range b {
			b[k] ^= other[k]
		}
	}
	return nil
}

// verified fills b from the first copy that good accepts.
func (d *driver) verified(b []byte, logical uint64, good func([]byte) bool) error {
	var all error
	for m := 0; ; m++ {
		more, err := d.read(b, logical, m)
		if err == nil && good(b) {
			return nil
		}
		if err == nil {
			err = guestfs.Damaged("checksum of %d bytes at logical address %d (copy %d)", len(b), logical, m+1)
		}
		all = errors.Join(all, err)
		if !more {
			return all
		}
	}
}

// Locate finds logical bytes on the machine's disks: their first copy that is there.
func (d *driver) Locate(e extent.Extent, emit func(device.Piece) bool) error {
	if !e.Valid() {
		return guestfs.Damaged("extent %v", e)
	}
	on := true
	for logical, left := uint64(e.Off), uint64(e.Len); left > 0 && on; {
		p, err := d.place(logical, left)
		if err != nil {
			return err
		}
		found := false
		for _, s := range p.copies {
			src := d.devs[s.device]
			if src == nil || s.off > 1<<62 {
				continue
			}
			found = true
			err := src.Device().Locate(extent.Extent{Off: int64(s.off), Len: int64(p.n)}, func(p device.Piece) bool {
				on = emit(p)
				return on
			})
			if err != nil {
				return err
			}
			break
		}
		if !found {
			return fmt.Errorf("logical address %d: %w", logical, device.ErrMissing)
		}
		logical, left = logical+p.n, left-p.n
	}
	return nil
}
