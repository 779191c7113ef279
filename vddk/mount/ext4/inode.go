package ext4

import (
	"fmt"
	"io/fs"
	"math/bits"
	"time"

	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
)

// Inode flags that change reading.
const (
	flagEncrypted = 0x800
	flagExtents   = 0x80000
	flagInline    = 0x10000000
)

// inode, of 128 bytes on ext2 and with more times and room for attributes behind on larger ones:
//
//	0    2     4      8     C     10    14    18    1A    1C     20    24    28           64    68    6C
//	+----+-----+------+-----+-----+-----+-----+-----+-----+------+-----+-----+------------+-----+-----+------+
//	|mode| uid | size |atime|ctime|mtime|dtime| gid |links|blocks|flags| ver | i_block 60 | gen | acl | size |
//	+----+-----+------+-----+-----+-----+-----+-----+-----+------+-----+-----+------------+-----+-----+------+
//	70     74     76    78     7A     7C    7E   80    82   84      88      8C      90    94
//	+------+------+-----+------+------+-----+---+-----+-----+-------+-------+-------+-----+---------+
//	| frag |blocks| acl | uid  | gid  | crc | 0 |extra| crc | ctime+| mtime+| atime+|btime| btime+  |  attributes
//	+------+------+-----+------+------+-----+---+-----+-----+-------+-------+-------+-----+---------+
type inode struct {
	num   uint32
	raw   []byte
	where extent.Extent // on the volume
	mode  uint16
	size  int64
	flags uint32
	acl   uint64 // block of attributes, 0: none
}

func (d *driver) inode(id guestfs.ID) (*inode, error) {
	if id.Tree != 0 || id.File == 0 || id.File > uint64(d.inodes) {
		return nil, guestfs.Damaged("inode %v of %d", id, d.inodes)
	}
	num := uint32(id.File)
	table, err := d.table((num - 1) / d.inodesPerGroup)
	if err != nil {
		return nil, err
	}
	i := &inode{num: num}
	i.where = extent.Extent{Off: table + int64((num-1)%d.inodesPerGroup)*d.inodeSize, Len: d.inodeSize}
	if i.raw, err = d.src.Meta(i.where.Off, int(d.inodeSize)); err != nil {
		return nil, err
	}
	r := i.raw
	i.mode, i.flags = le.Uint16(r), le.Uint32(r[0x20:])
	i.acl = uint64(le.Uint32(r[0x68:])) | uint64(le.Uint16(r[0x76:]))<<32
	size := uint64(le.Uint32(r[0x4:]))
	// The upper half was the ACL of directories once; it counts for files and where directories may be that large.
	if i.kind() == guestfs.Regular || d.incompat&incompatLargeDir != 0 {
		size |= uint64(le.Uint32(r[0x6c:])) << 32
	}
	if size > 1<<62 {
		return nil, guestfs.Damaged("inode %d of %d bytes", num, size)
	}
	i.size = int64(size)
	return i, nil
}

// file is the inode of something that has a name: neither free nor deleted.
func (d *driver) file(id guestfs.ID) (*inode, error) {
	i, err := d.inode(id)
	if err != nil {
		return nil, err
	}
	if i.mode == 0 || le.Uint16(i.raw[0x1a:]) == 0 {
		return nil, fmt.Errorf("inode %v is not in use: %w", id, fs.ErrNotExist)
	}
	return i, nil
}

func (i *inode) kind() guestfs.Type { return guestfs.TypeOfMode(i.mode) }

func (i *inode) block() []byte { return i.raw[0x28:0x64] }

// extra is the length of the fixed fields behind the first 128 bytes.
func (i *inode) extra() int {
	if len(i.raw) <= 128 {
		return 0
	}
	return min(int(le.Uint16(i.raw[0x80:])), len(i.raw)-128)
}

// time decodes a time of 32 bits, signed, with its extension where the inode has one: 2 more bits of epoch
// (to the year 2446) and 30 bits of nanoseconds.
func (i *inode) time(at, ext int) time.Time {
	sec, ns := int64(int32(le.Uint32(i.raw[at:]))), int64(0)
	if ext+4 <= 128+i.extra() {
		x := le.Uint32(i.raw[ext:])
		sec, ns = sec+int64(x&3)<<32, int64(x>>2)
	}
	return time.Unix(sec, ns).UTC()
}

func (d *driver) Stat(id guestfs.ID) (guestfs.Attr, error) {
	i, err := d.file(id)
	if err != nil {
		return guestfs.Attr{}, err
	}
	r := i.raw
	a := guestfs.Attr{
		ID: id, Type: i.kind(), Mode: uint32(i.mode & 0o7777), Links: uint32(le.Uint16(r[0x1a:])), Size: i.size,
		UID:   uint32(le.Uint16(r[0x2:])) | uint32(le.Uint16(r[0x78:]))<<16,
		GID:   uint32(le.Uint16(r[0x18:])) | uint32(le.Uint16(r[0x7a:]))<<16,
		Atime: i.time(0x8, 0x8c), Ctime: i.time(0xc, 0x84), Mtime: i.time(0x10, 0x88),
		Generation: uint64(le.Uint32(r[0x64:])),
	}
	if 128+i.extra() >= 0x98 {
		a.Btime = i.time(0x90, 0x94)
	}
	switch a.Type {
	case guestfs.CharDevice, guestfs.BlockDevice:
		a.Major, a.Minor = deviceNumber(i.block())
		a.Size = 0
	case guestfs.FIFO, guestfs.Socket:
		a.Size = 0
	}
	return a, nil
}

// deviceNumber decodes a device number: 8+8 bits in the first word of i_block, else 12+20 bits in the second.
func deviceNumber(b []byte) (major, minor uint32) {
	if n := le.Uint32(b); n != 0 {
		return n >> 8 & 0xff, n & 0xff
	}
	n := le.Uint32(b[4:])
	return n >> 8 & 0xfff, n&0xff | n>>12&0xfff00
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
	case i.flags&flagEncrypted != 0:
		return nil, fmt.Errorf("inode %v: fscrypt: %w", id, guestfs.ErrEncrypted)
	}
	return d.content(i)
}

// content is the bytes of any inode that has some.
func (d *driver) content(i *inode) (guestfs.File, error) {
	if i.flags&flagInline != 0 {
		b, err := d.inline(i)
		if err != nil {
			return nil, err
		}
		return guestfs.Bytes(d.src, b, i.where), nil
	}
	var m guestfs.Map
	w := walker{d: d, m: &m, seen: map[uint64]bool{}}
	var err error
	if i.flags&flagExtents != 0 {
		err = w.tree(i.block(), -1)
	} else {
		err = w.blockMap(i)
	}
	if err != nil {
		return nil, fmt.Errorf("inode %d: %w", i.num, err)
	}
	return m.File(d.src, i.size)
}

// walker collects where a file's blocks lie. A block of its index can be visited once only: that bounds the work
// on damaged bytes by the size of the volume.
type walker struct {
	d    *driver
	m    *guestfs.Map
	seen map[uint64]bool
}

func (w *walker) index(n uint64) ([]byte, error) {
	if w.seen[n] {
		return nil, guestfs.Damaged("block %d is used twice in the index of a file", n)
	}
	w.seen[n] = true
	return w.d.block(n)
}

// tree reads a node of an extent tree; depth is what its parent expects, -1 for the root within the inode.
//
//	node:   magic F30A(2) entries(2) room(2) depth(2) generation(4), then entries of 12 bytes
//	leaf:   index(4) length(2) block, upper 16 bits(2) block, lower 32 bits(4); length > 32768: never written
//	index:  index(4) block, lower 32 bits(4) block, upper 16 bits(2) 0(2)
func (w *walker) tree(b []byte, depth int) error {
	n, level := int(le.Uint16(b[2:])), int(le.Uint16(b[6:]))
	switch {
	case le.Uint16(b) != 0xf30a:
		return guestfs.Damaged("extent tree node without magic")
	case level > 5 || depth >= 0 && level != depth:
		return guestfs.Damaged("extent tree node of depth %d", level)
	case 12+12*n > len(b):
		return guestfs.Damaged("extent tree node of %d entries", n)
	}
	for k := range n {
		e := b[12+12*k:]
		if level > 0 {
			child, err := w.index(uint64(le.Uint32(e[4:])) | uint64(le.Uint16(e[8:]))<<32)
			if err != nil {
				return err
			}
			if err := w.tree(child, level-1); err != nil {
				return err
			}
			continue
		}
		length, written := uint64(le.Uint16(e[4:])), true
		if length > 32768 {
			length, written = length-32768, false
		}
		if err := w.add(uint64(le.Uint32(e)), uint64(le.Uint32(e[8:]))|uint64(le.Uint16(e[6:]))<<32, length, written); err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) add(index, block, length uint64, written bool) error {
	if block == 0 || block+length > w.d.blocks {
		return guestfs.Damaged("extent of %d blocks at block %d of %d", length, block, w.d.blocks)
	}
	disk := int64(block) * w.d.bs
	if !written {
		disk = -1
	}
	return w.m.Add(int64(index)*w.d.bs, disk, int64(length)*w.d.bs)
}

// blockMap reads the map of ext2 and ext3: 12 blocks, then one block of block numbers, one of blocks of them,
// one of those. 0 is a hole.
func (w *walker) blockMap(i *inode) error {
	per := uint64(w.d.bs / 4)
	end := uint64(i.size+w.d.bs-1) / uint64(w.d.bs)
	b := i.block()
	for k := range uint64(12) {
		if err := w.mapped(le.Uint32(b[4*k:]), k, 0, end); err != nil {
			return err
		}
	}
	index, span := uint64(12), per
	for level := 1; level <= 3; level++ {
		if err := w.mapped(le.Uint32(b[4*(11+level):]), index, level, end); err != nil {
			return err
		}
		index += span
		span *= per
	}
	return nil
}

// mapped follows block n, which leads to the blocks of the file from index on, over level blocks of numbers.
func (w *walker) mapped(n uint32, index uint64, level int, end uint64) error {
	if n == 0 || index >= end {
		return nil
	}
	if level == 0 {
		return w.add(index, uint64(n), 1, true)
	}
	b, err := w.index(uint64(n))
	if err != nil {
		return err
	}
	per := uint64(w.d.bs / 4)
	span := uint64(1) << (uint(level-1) * uint(bits.TrailingZeros64(per)))
	for k := range per {
		if err := w.mapped(le.Uint32(b[4*k:]), index+k*span, level-1, end); err != nil {
			return err
		}
	}
	return nil
}

// inline is content kept in the inode: 60 bytes in i_block, the rest as the attribute system.data.
func (d *driver) inline(i *inode) ([]byte, error) {
	b := append([]byte{}, i.block()...)
	if i.size > int64(len(b)) {
		err := d.attributes(i, func(a attribute) error {
			if a.index != nameSystem || a.name != "data" {
				return nil
			}
			v, err := d.value(a)
			b = append(b, v...)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	if i.size > int64(len(b)) {
		return nil, guestfs.Damaged("inode %d has %d bytes inline and claims %d", i.num, len(b), i.size)
	}
	return b[:i.size], nil
}

// maxTarget is what Linux allows a link to hold, PATH_MAX, and a whole block for what else wrote it.
const maxTarget = 64 << 10

func (d *driver) Readlink(id guestfs.ID) (string, error) {
	i, err := d.file(id)
	switch {
	case err != nil:
		return "", err
	case i.kind() != guestfs.Symlink:
		return "", fmt.Errorf("inode %v is a %v: %w", id, i.kind(), guestfs.ErrNotLink)
	case i.flags&flagEncrypted != 0:
		return "", fmt.Errorf("inode %v: fscrypt: %w", id, guestfs.ErrEncrypted)
	case i.size > maxTarget:
		return "", guestfs.Damaged("link of %d bytes", i.size)
	case i.size < 60 && i.flags&(flagExtents|flagInline) == 0:
		return string(i.block()[:i.size]), nil
	}
	f, err := d.content(i)
	if err != nil {
		return "", err
	}
	b := make([]byte, f.Size())
	if _, err := f.ReadAt(b, 0); err != nil {
		return "", err
	}
	return cstring(b), nil // a target stored in blocks is ended by NUL within its size by some writers
}

// Streams: ext4 has none.
func (d *driver) Streams(guestfs.ID) ([]guestfs.Stream, error) { return nil, nil }
