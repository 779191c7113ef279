package ext4

import (
	"fmt"

	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
)

// maxDir bounds the size of a directory: far above what large_dir makes practical (2 GiB, 10 million names).
const maxDir = 8 << 30

// ReadDir reads entries block by block, as they lie. The blocks of a hashed directory's index look like unused
// entries of a whole block, so that no directory needs its index to be read. The cursor is the offset of the
// next entry within the directory.
//
//	entry:  inode(4) length of entry(2) length of name(1) type(1) name
//
// A block that makes no sense is passed over; the directory then ends with an error.
func (d *driver) ReadDir(dir guestfs.ID, after guestfs.Cursor, yield func(guestfs.Entry) bool) error {
	i, err := d.file(dir)
	switch {
	case err != nil:
		return err
	case i.kind() != guestfs.Directory:
		return fmt.Errorf("inode %v is a %v: %w", dir, i.kind(), guestfs.ErrNotDir)
	case i.flags&flagEncrypted != 0:
		return fmt.Errorf("names in directory %v: fscrypt: %w", dir, guestfs.ErrEncrypted)
	case i.size > maxDir:
		return guestfs.Damaged("directory of %d bytes", i.size)
	}
	s := scan{d: d, after: int64(after), yield: yield}
	if i.flags&flagInline != 0 {
		b, err := d.inline(i)
		if err != nil {
			return err
		}
		// The first 4 bytes are the parent's number. What lies in i_block and what lies in the attribute are
		// two areas; entries do not cross.
		n := min(60, len(b))
		if n >= 4 && s.area(b[:n], 0, 4) {
			s.area(b, 0, n)
		}
		return s.err
	}
	f, err := d.content(i)
	if err != nil {
		return err
	}
	runs, err := f.Runs()
	if err != nil {
		return err
	}
	b := make([]byte, d.bs)
	for _, r := range runs {
		if r.Kind == guestfs.Zero { // left behind when a block of names was freed
			continue
		}
		off := max(r.File.Off, int64(after)/d.bs*d.bs)
		for ; off+d.bs <= r.File.End(); off += d.bs {
			if err := d.src.ReadMeta(b, r.Disk.Off+off-r.File.Off); err != nil {
				return err
			}
			if !s.area(b, off, 0) {
				return s.err
			}
		}
	}
	return s.err
}

type scan struct {
	d     *driver
	after int64
	yield func(guestfs.Entry) bool
	err   error // the first damage
}

// area reads the entries of b[p:], where b lies at off within the directory. It returns false to stop.
func (s *scan) area(b []byte, off int64, p int) bool {
	for p+8 <= len(b) {
		length, n := s.d.entryLen(le.Uint16(b[p+4:])), int(b[p+6])
		if length < 8 || p+length > len(b) || 8+n > length {
			if s.err == nil && !zeros(b) {
				s.err = guestfs.Damaged("entry of %d bytes at byte %d of a directory", length, off+int64(p))
			}
			return true
		}
		e := guestfs.Entry{
			Name: string(b[p+8 : p+8+n]), ID: guestfs.ID{File: uint64(le.Uint32(b[p:]))},
			Next: guestfs.Cursor(off + int64(p+length)),
		}
		if s.d.incompat&incompatFileType != 0 {
			e.Type = entryType(b[p+7])
		}
		p += length
		if e.ID.File == 0 || n == 0 || e.Name == "." || e.Name == ".." || int64(e.Next) <= s.after {
			continue
		}
		if !s.yield(e) {
			return false
		}
	}
	return true
}

func zeros(b []byte) bool {
	for _, x := range b {
		if x != 0 {
			return false
		}
	}
	return true
}

// entryLen decodes the length of an entry: with blocks of 64 KiB a whole block does not fit 16 bits.
func (d *driver) entryLen(n uint16) int {
	if d.bs < 64<<10 {
		return int(n)
	}
	if n == 0 || n == 0xffff {
		return int(d.bs)
	}
	return int(n&0xfffc) | int(n&3)<<16
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
