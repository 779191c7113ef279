package xfs

import (
	"fmt"
	"io/fs"
	"time"

	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
)

// How a fork is kept.
const (
	formatDevice  = 0
	formatLocal   = 1
	formatExtents = 2
	formatTree    = 3
)

const (
	flagRealtime = 0x1

	flag2Bigtime = 0x8  // times are 64-bit nanoseconds
	flag2Counts  = 0x10 // nrext64: extent counts of 64 and 32 bits
)

// inode; the part from 100 on is of version 3 (file systems of version 5), the forks follow it.
//
//	0   2     4   5      6      8    12   16     20    24            32     40     48     56    64
//	+---+-----+---+------+------+----+----+------+-----+-------------+------+------+------+-----+------+
//	|IN | mode|ver|format|links1| uid| gid| links| proj| 64-bit count| atime| mtime| ctime| size|blocks|
//	+---+-----+---+------+------+----+----+------+-----+-------------+------+------+------+-----+------+
//	72       76     80      82      83       84  90     92   96     100  104   112  120     128 144    152  160  176
//	+--------+------+-------+-------+--------+---+------+----+------+----+-----+----+-------+---+------+----+----+
//	| extsize| count| attr. | fork/8| aformat|   | flags| gen| next | crc|change|lsn| flags2|   | btime| ino|uuid|
//	+--------+------+-------+-------+--------+---+------+----+------+----+-----+----+-------+---+------+----+----+
type inode struct {
	num    uint64
	raw    []byte
	where  extent.Extent
	mode   uint16
	size   int64
	flags2 uint64
	data   []byte // the data fork
	attr   []byte // the attribute fork, empty: none
}

func (d *driver) inode(id guestfs.ID) (*inode, error) {
	n := id.File
	at, err := d.byteOf(n >> d.inodeBits)
	if err != nil || id.Tree != 0 {
		return nil, guestfs.Damaged("no inode %v", id)
	}
	i := &inode{num: n, where: extent.Extent{Off: at + int64(n&(1<<d.inodeBits-1))*d.inodeSize, Len: d.inodeSize}}
	if i.raw, err = d.src.Meta(i.where.Off, int(d.inodeSize)); err != nil {
		return nil, err
	}
	r := i.raw
	if string(r[:2]) != "IN" {
		return nil, guestfs.Damaged("inode %d has no magic", n)
	}
	i.mode = be.Uint16(r[2:])
	i.size = int64(be.Uint64(r[56:]))
	if i.size < 0 || i.size > 1<<62 {
		return nil, guestfs.Damaged("inode %d of %d bytes", n, uint64(i.size))
	}
	start, end := 100, len(r)
	if r[4] >= 3 {
		start, i.flags2 = 176, be.Uint64(r[120:])
	}
	if fork := int(r[82]) * 8; fork != 0 {
		if start+fork >= end {
			return nil, guestfs.Damaged("inode %d has its attributes beyond its end", n)
		}
		i.attr, end = r[start+fork:], start+fork
	}
	i.data = r[start:end]
	return i, nil
}

// file is the inode of something that has a name.
func (d *driver) file(id guestfs.ID) (*inode, error) {
	i, err := d.inode(id)
	if err != nil {
		return nil, err
	}
	if i.mode == 0 || i.links() == 0 {
		return nil, fmt.Errorf("inode %v is not in use: %w", id, fs.ErrNotExist)
	}
	return i, nil
}

func (i *inode) kind() guestfs.Type { return guestfs.TypeOfMode(i.mode) }
func (i *inode) format() byte       { return i.raw[5] }
func (i *inode) attrFormat() byte   { return i.raw[83] }

func (i *inode) links() uint32 {
	if i.raw[4] == 1 {
		return uint32(be.Uint16(i.raw[6:]))
	}
	return be.Uint32(i.raw[16:])
}

// counts are the numbers of extents of both forks.
func (i *inode) counts() (data, attr uint64) {
	if i.flags2&flag2Counts != 0 {
		return be.Uint64(i.raw[24:]), uint64(be.Uint32(i.raw[76:]))
	}
	return uint64(be.Uint32(i.raw[76:])), uint64(be.Uint16(i.raw[80:]))
}

// time decodes a time: two signed 32-bit numbers, or nanoseconds since 1901 (bigtime, to the year 2486).
func (i *inode) time(at int) time.Time {
	b := i.raw[at:]
	if i.flags2&flag2Bigtime != 0 {
		t := be.Uint64(b)
		return time.Unix(int64(t/1e9)-1<<31, int64(t%1e9)).UTC()
	}
	return time.Unix(int64(int32(be.Uint32(b))), int64(be.Uint32(b[4:]))).UTC()
}

func (d *driver) Stat(id guestfs.ID) (guestfs.Attr, error) {
	i, err := d.file(id)
	if err != nil {
		return guestfs.Attr{}, err
	}
	r := i.raw
	a := guestfs.Attr{
		ID: id, Type: i.kind(), Mode: uint32(i.mode & 0o7777), UID: be.Uint32(r[8:]), GID: be.Uint32(r[12:]),
		Links: i.links(), Size: i.size, Atime: i.time(32), Mtime: i.time(40), Ctime: i.time(48),
		Generation: uint64(be.Uint32(r[92:])),
	}
	if r[4] >= 3 {
		a.Btime = i.time(144)
	}
	switch a.Type {
	case guestfs.CharDevice, guestfs.BlockDevice:
		if len(i.data) < 4 || i.format() != formatDevice {
			return a, guestfs.Damaged("inode %v is a device without number", id)
		}
		n := be.Uint32(i.data) // 14+18 bits, as System V had it
		a.Major, a.Minor = n>>18, n&(1<<18-1)
	}
	return a, nil
}

func (d *driver) Open(id guestfs.ID, stream string) (guestfs.File, error) {
	i, err := d.file(id)
	switch {
	case err != nil:
		return nil, err
	case i.kind() != guestfs.Regular:
		return nil, fmt.Errorf("inode %v is a %v: %w", id, i.kind(), guestfs.ErrNotRegular)
	case stream != "":
		return nil, fmt.Errorf("stream %q: %w", stream, fs.ErrNotExist)
	case be.Uint16(i.raw[90:])&flagRealtime != 0:
		return nil, fmt.Errorf("inode %v lies on the realtime device: %w; restore the machine instead", id, guestfs.ErrUnsupported)
	}
	return d.content(i)
}

// content is the bytes of any inode that has some.
func (d *driver) content(i *inode) (guestfs.File, error) {
	if i.format() == formatLocal {
		if i.size > int64(len(i.data)) {
			return nil, guestfs.Damaged("inode %d has %d bytes inline and claims %d", i.num, len(i.data), i.size)
		}
		return guestfs.Bytes(d.src, i.data[:i.size], i.where), nil
	}
	n, _ := i.counts()
	m, err := d.forkMap(i.data, i.format(), n)
	if err != nil {
		return nil, fmt.Errorf("inode %d: %w", i.num, err)
	}
	return m.File(d.src, i.size)
}

func (d *driver) forkMap(fork []byte, format byte, n uint64) (*guestfs.Map, error) {
	m := &guestfs.Map{}
	return m, d.extents(fork, format, n, func(e mapping) error {
		disk := int64(-1)
		if !e.unwritten {
			var err error
			if disk, err = d.span(e); err != nil {
				return err
			}
		}
		return m.Add(int64(e.index)*d.bs, disk, int64(e.length)*d.bs)
	})
}

// mapping is an extent of a fork, in blocks.
type mapping struct {
	index, length uint64
	block         uint64 // with the group in its upper part
	unwritten     bool
}

// span is where a mapping lies on the volume; it must lie in one group.
func (d *driver) span(e mapping) (int64, error) {
	at, err := d.byteOf(e.block)
	if err != nil {
		return 0, err
	}
	if e.length == 0 {
		return 0, guestfs.Damaged("extent of no blocks")
	}
	if _, err := d.byteOf(e.block + e.length - 1); err != nil {
		return 0, err
	}
	return at, nil
}

// unpack decodes an extent record of 16 bytes:
//
//	unwritten(1 bit) index(54 bits) block(52 bits) length(21 bits)
func unpack(b []byte) mapping {
	hi, lo := be.Uint64(b), be.Uint64(b[8:])
	return mapping{index: hi >> 9 & (1<<54 - 1), length: lo & (1<<21 - 1), block: hi&511<<43 | lo>>21, unwritten: hi>>63 != 0}
}

// extents calls fn with the extents of a fork; n is how many the inode claims.
func (d *driver) extents(fork []byte, format byte, n uint64, fn func(mapping) error) error {
	switch format {
	case formatExtents:
		if n > uint64(len(fork)/16) {
			return guestfs.Damaged("%d extents in %d bytes", n, len(fork))
		}
		for k := range int(n) {
			if err := fn(unpack(fork[16*k:])); err != nil {
				return err
			}
		}
		return nil
	case formatTree:
		// root: level(2) count(2), keys(8 each), block numbers(8 each), both arrays of the length that fits
		if len(fork) < 4 {
			return guestfs.Damaged("extent tree without root")
		}
		level, count, room := int(be.Uint16(fork)), int(be.Uint16(fork[2:])), (len(fork)-4)/16
		if level < 1 || level > 9 || count > room {
			return guestfs.Damaged("extent tree of level %d with %d entries", level, count)
		}
		t := tree{d: d, fn: fn, seen: map[uint64]bool{}}
		for k := range count {
			if err := t.walk(be.Uint64(fork[4+8*room+8*k:]), level-1); err != nil {
				return err
			}
		}
		return nil
	}
	return guestfs.Damaged("fork of format %d has no extents", format)
}

// tree walks the extent tree of a fork. A block can be visited once only, which bounds the work.
type tree struct {
	d    *driver
	fn   func(mapping) error
	seen map[uint64]bool
}

// walk reads a block of the tree:
//
//	magic BMAP or BMA3(4) level(2) count(2) neighbours(16) [v5: 48 more], then extents(16 each) at level 0,
//	else keys(8 each) and block numbers(8 each), both arrays of the length that fits
func (t *tree) walk(n uint64, level int) error {
	if t.seen[n] {
		return guestfs.Damaged("block %d is used twice in the extent tree of a file", n)
	}
	t.seen[n] = true
	at, err := t.d.byteOf(n)
	if err != nil {
		return err
	}
	b, err := t.d.src.Meta(at, int(t.d.bs))
	if err != nil {
		return err
	}
	magic, head := "BMAP", 24
	if t.d.v5 {
		magic, head = "BMA3", 72
	}
	count, room := int(be.Uint16(b[6:])), (len(b)-head)/16
	if string(b[:4]) != magic || int(be.Uint16(b[4:])) != level || count > room {
		return guestfs.Damaged("block %d is no node of level %d of an extent tree", n, level)
	}
	for k := range count {
		if level == 0 {
			err = t.fn(unpack(b[head+16*k:]))
		} else {
			err = t.walk(be.Uint64(b[head+8*room+8*k:]), level-1)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// maxTarget is above what Linux allows a link to hold (1,024 bytes on XFS).
const maxTarget = 64 << 10

func (d *driver) Readlink(id guestfs.ID) (string, error) {
	i, err := d.file(id)
	switch {
	case err != nil:
		return "", err
	case i.kind() != guestfs.Symlink:
		return "", fmt.Errorf("inode %v is a %v: %w", id, i.kind(), guestfs.ErrNotLink)
	case i.size > maxTarget:
		return "", guestfs.Damaged("link of %d bytes", i.size)
	case i.format() == formatLocal || !d.v5:
		f, err := d.content(i)
		if err != nil {
			return "", err
		}
		b := make([]byte, f.Size())
		if _, err := f.ReadAt(b, 0); err != nil {
			return "", err
		}
		return string(b), nil
	}
	// Version 5 puts a header before the bytes in each extent: XSLM(4) offset(4) bytes(4) ... 56 in all.
	var out []byte
	n, _ := i.counts()
	err = d.extents(i.data, i.format(), n, func(e mapping) error {
		at, err := d.span(e)
		if err != nil || int64(len(out)) >= i.size {
			return err
		}
		b, err := d.src.Meta(at, int(min(int64(e.length)*d.bs, maxTarget)))
		if err != nil {
			return err
		}
		k := int64(be.Uint32(b[8:]))
		if string(b[:4]) != "XSLM" || k > int64(len(b)-56) || int64(be.Uint32(b[4:])) != int64(len(out)) {
			return guestfs.Damaged("extent of link %v", id)
		}
		out = append(out, b[56:56+k]...)
		return nil
	})
	if err == nil && int64(len(out)) != i.size {
		err = guestfs.Damaged("link %v has %d bytes of %d", id, len(out), i.size)
	}
	return string(out), err
}

// Streams: XFS has none.
func (d *driver) Streams(guestfs.ID) ([]guestfs.Stream, error) { return nil, nil }
