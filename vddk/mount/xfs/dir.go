package xfs

import (
	"fmt"

	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
)

// leafOffset is where a directory's hash tables begin in its address space; names lie below.
const leafOffset = 32 << 30

// ReadDir reads the entries as they lie: within the inode, in one block, or in many data blocks. Hash tables,
// leaves and nodes are not needed. The cursor is the offset of the next entry in the directory's address space.
func (d *driver) ReadDir(dir guestfs.ID, after guestfs.Cursor, yield func(guestfs.Entry) bool) error {
	i, err := d.file(dir)
	switch {
	case err != nil:
		return err
	case i.kind() != guestfs.Directory:
		return fmt.Errorf("inode %v is a %v: %w", dir, i.kind(), guestfs.ErrNotDir)
	case i.format() == formatLocal:
		return d.shortDir(i, after, yield)
	}
	n, _ := i.counts()
	m, err := d.forkMap(i.data, i.format(), n)
	if err != nil {
		return fmt.Errorf("directory %v: %w", dir, err)
	}
	f, err := m.Meta(d.src, leafOffset)
	if err != nil {
		return err
	}
	runs, err := f.Runs()
	if err != nil {
		return err
	}
	var damage error // the first; the other blocks are still read
	next := int64(after) / d.dirBlock * d.dirBlock
	b := make([]byte, d.dirBlock)
	for _, r := range runs {
		if r.Kind != guestfs.Data || r.File.End() <= next {
			continue
		}
		// A directory block may lie in several extents: go by directory blocks, of which this run begins or
		// continues one.
		for off := max(r.File.Off/d.dirBlock*d.dirBlock, next); off < r.File.End(); off += d.dirBlock {
			if _, err := f.ReadAt(b, off); err != nil {
				return err
			}
			on, err := d.dirNames(b, off, after, yield)
			if !on {
				return nil
			}
			if damage == nil {
				damage = err
			}
			next = off + d.dirBlock
		}
	}
	return damage
}

// dirNames reads the names in a directory block that lies at off in the directory:
//
//	magic(4), [v5: 44 more], free space(12, v5 16), then entries and gaps; a directory of one block ends with its
//	own hash table: entries(8 each) count(4) stale(4)
//	entry:  inode(8) length of name(1) name [type(1)] padding own offset(2), in all a multiple of 8
//	gap:    FFFF(2) length(2) padding own offset(2)
func (d *driver) dirNames(b []byte, off int64, after guestfs.Cursor, yield func(guestfs.Entry) bool) (bool, error) {
	p, end := 16, len(b)
	switch string(b[:4]) {
	case "XD2D":
	case "XDD3":
		p = 64
	case "XD2B", "XDB3":
		if b[3] == '3' {
			p = 64
		}
		table := int64(be.Uint32(b[len(b)-8:]))*8 + 8
		if table > int64(len(b)-p) {
			return true, guestfs.Damaged("directory block with a table of %d bytes", table)
		}
		end -= int(table)
	default:
		return true, guestfs.Damaged("directory block at %d has no magic", off)
	}
	typed := 0
	if d.ftype {
		typed = 1
	}
	for p+8 <= end {
		if be.Uint16(b[p:]) == 0xffff {
			gap := int(be.Uint16(b[p+2:]))
			if gap < 8 || gap%8 != 0 {
				return true, guestfs.Damaged("gap of %d bytes in a directory", gap)
			}
			p += gap
			continue
		}
		if p+11 > end {
			return true, guestfs.Damaged("directory entry is cut")
		}
		n := int(b[p+8])
		length := (8 + 1 + n + typed + 2 + 7) &^ 7
		if n == 0 || p+length > end {
			return true, guestfs.Damaged("entry of %d bytes in a directory", length)
		}
		e := guestfs.Entry{
			Name: string(b[p+9 : p+9+n]), ID: guestfs.ID{File: be.Uint64(b[p:])},
			Next: guestfs.Cursor(off + int64(p+length)),
		}
		if d.ftype {
			e.Type = entryType(b[p+9+n])
		}
		p += length
		if e.Name == "." || e.Name == ".." || e.Next <= after {
			continue
		}
		if !yield(e) {
			return false, nil
		}
	}
	return true, nil
}

// shortDir reads a directory kept in its inode:
//
//	count(1) of which with 8-byte inodes(1) parent(4 or 8), then per entry:
//	length of name(1) offset(2) name [type(1)] inode(4 or 8)
func (d *driver) shortDir(i *inode, after guestfs.Cursor, yield func(guestfs.Entry) bool) error {
	if i.size < 6 || i.size > int64(len(i.data)) {
		return guestfs.Damaged("directory of %d bytes in its inode", i.size)
	}
	b := i.data[:i.size]
	count, wide := int(b[0]), 4
	if b[1] != 0 {
		count, wide = max(int(b[0]), int(b[1])), 8
	}
	typed := 0
	if d.ftype {
		typed = 1
	}
	for p := 2 + wide; count > 0; count-- {
		if p+3 > len(b) || p+3+int(b[p])+typed+wide > len(b) {
			return guestfs.Damaged("directory in inode %d is cut", i.num)
		}
		n := int(b[p])
		name, at := b[p+3:p+3+n], p+3+n+typed
		e := guestfs.Entry{Name: string(name), Next: guestfs.Cursor(at + wide)}
		if d.ftype {
			e.Type = entryType(b[at-1])
		}
		if wide == 4 {
			e.ID.File = uint64(be.Uint32(b[at:]))
		} else {
			e.ID.File = be.Uint64(b[at:])
		}
		p = at + wide
		if e.Next > after && !yield(e) {
			return nil
		}
	}
	return nil
}

func entryType(t byte) guestfs.Type {
	types := [...]guestfs.Type{
		guestfs.Unknown, guestfs.Regular, guestfs.Directory, guestfs.CharDevice, guestfs.BlockDevice, guestfs.FIFO,
		guestfs.Socket, guestfs.Symlink,
	}
	if int(t) < len(types) {
		return types[t]
	}
	return guestfs.Unknown
}
