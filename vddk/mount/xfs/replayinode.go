package xfs

import (
	"slices"

	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
)

// What an inode item carries.
const (
	logData       = 0x2
	logExtents    = 0x4
	logRoot       = 0x8 // root of the extent tree, as in memory
	logDevice     = 0x10
	logAttr       = 0x40
	logAttrExtent = 0x80
	logAttrRoot   = 0x100
)

// inode writes an inode item into the inode. Its regions are the item, the inode's fixed part in the order of the
// guest's machine, then the data fork and the attribute fork as far as they changed.
//
//	type(2) regions(2) fields(4) bytes of attributes(2) of data(2) [0(4)] inode(8) device(16) sector(8) sectors(4) offset(4)
func (p *replayer) inode(item [][]byte) error {
	h := item[0]
	var at int64
	var on span
	switch len(h) {
	case 56:
		on = span{int64(le.Uint64(h[40:])), int64(le.Uint32(h[48:]))}
		at = int64(int32(le.Uint32(h[52:])))
	case 52: // without padding, from 32-bit guests
		on = span{int64(le.Uint64(h[36:])), int64(le.Uint32(h[44:]))}
		at = int64(int32(le.Uint32(h[48:])))
	default:
		return guestfs.Damaged("inode item of %d bytes in the log", len(h))
	}
	if p.cancel[on] > 0 {
		return nil // the whole cluster of inodes is freed further on
	}
	if on.at < 0 || on.at > p.d.src.Size()/bb || at < 0 || at > 64<<10 || at%p.d.inodeSize != 0 {
		return guestfs.Damaged("the log writes an inode at sector %d", uint64(on.at))
	}
	at += on.at * bb
	fields := le.Uint32(h[4:])
	if len(item) < 2 || len(item[1]) < 96 {
		return guestfs.Damaged("inode item without inode in the log")
	}
	core := diskOrder(item[1])
	raw, err := p.read(int(p.d.inodeSize), at)
	if err != nil {
		return err
	}
	start := 100
	if core[4] >= 3 {
		start = 176
	}
	copy(raw[:start], core)
	split := len(raw)
	if fork := int(raw[82]) * 8; fork != 0 {
		if split = start + fork; split > len(raw) {
			return guestfs.Damaged("inode in the log has its attributes beyond its end")
		}
	}
	rest := item[2:]
	take := func() ([]byte, error) {
		if len(rest) == 0 {
			return nil, guestfs.Damaged("inode item in the log lacks a region")
		}
		b := rest[0]
		rest = rest[1:]
		return b, nil
	}
	forks := []struct {
		to          []byte
		plain, root uint32
	}{{raw[start:split], logData | logExtents, logRoot}, {raw[split:], logAttr | logAttrExtent, logAttrRoot}}
	for _, f := range forks {
		if fields&(f.plain|f.root) == 0 {
			continue
		}
		b, err := take()
		if err != nil {
			return err
		}
		if fields&f.root != 0 {
			if err := p.treeRoot(f.to, b); err != nil {
				return err
			}
			continue
		}
		clear(f.to)
		copy(f.to, b)
	}
	if fields&logDevice != 0 && split-start >= 4 {
		be.PutUint32(raw[start:], le.Uint32(h[len(h)-32:]))
	}
	return p.write(raw, at)
}

// diskOrder turns an inode's fixed part from little-endian into the order on the disk.
func diskOrder(log []byte) []byte {
	b := slices.Clone(log)
	swap := func(width int, offs ...int) {
		for _, o := range offs {
			if o+width <= len(b) {
				slices.Reverse(b[o : o+width])
			}
		}
	}
	flags2 := uint64(0)
	if log[4] >= 3 && len(log) >= 128 {
		flags2 = le.Uint64(log[120:])
	}
	swap(2, 0, 2, 6, 20, 22, 80, 88, 90)
	swap(4, 8, 12, 16, 72, 76, 84, 92, 96, 100, 128)
	swap(8, 56, 64, 104, 112, 120, 152)
	if flags2&flag2Counts != 0 {
		swap(8, 24)
	} else {
		swap(2, 30)
	}
	for _, o := range []int{32, 40, 48, 144} {
		if flags2&flag2Bigtime != 0 {
			swap(8, o)
		} else {
			swap(4, o, o+4)
		}
	}
	return b
}

// treeRoot turns the root of an extent tree from its form in memory, that of any block of the tree, into that in
// the inode.
func (p *replayer) treeRoot(to, from []byte) error {
	head := 24
	if p.d.v5 {
		head = 72
	}
	if len(from) < head || len(to) < 4 {
		return guestfs.Damaged("root of an extent tree of %d bytes in the log", len(from))
	}
	level, count := be.Uint16(from[4:]), int(be.Uint16(from[6:]))
	room, fits := (len(from)-head)/16, (len(to)-4)/16
	if count > room || count > fits {
		return guestfs.Damaged("root of an extent tree with %d entries in the log", count)
	}
	clear(to)
	be.PutUint16(to, level)
	be.PutUint16(to[2:], uint16(count))
	copy(to[4:], from[head:head+8*count])
	copy(to[4+8*fits:], from[head+8*room:head+8*room+8*count])
	return nil
}
