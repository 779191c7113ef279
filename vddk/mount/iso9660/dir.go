package iso9660

import (
	"fmt"
	"io/fs"
	"strings"

	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
	"github.com/vmkeep/vmkeep/vddk/mount/wtf8"
)

// record:
//
//	0      1    2       10    18    25    26     27   28      32     33
//	+------+----+-------+-----+-----+-----+------+----+-------+------+------+-----------+
//	|length|attr|block  |bytes|time |flags|unit  |gap |volume |name  |name, | system    |
//	|      |len |4+4    |4+4  |7    |     |size  |    |2+2    |length|padded| use       |
//	+------+----+-------+-----+-----+-----+------+----+-------+------+------+-----------+
type record struct {
	at     int64 // on the volume
	raw    []byte
	flags  byte
	name   []byte // as stored; "\x00" and "\x01" are the directory itself and the one above
	use    []byte // system use area
	extent extent.Extent
}

const (
	recordHead     = 33
	flagDirectory  = 2
	flagAssociated = 4    // the resource fork of the file before
	flagMore       = 0x80 // the file goes on in the next record
)

func (d *driver) parse(b []byte, at int64) (record, error) {
	n := int(b[0])
	if n < recordHead+1 || n > len(b) || recordHead+int(b[32]) > n {
		return record{}, guestfs.Damaged("directory record of %d bytes", n)
	}
	r := record{at: at, raw: b[:n], flags: b[25], name: b[recordHead : recordHead+int(b[32])]}
	use := (recordHead + int(b[32]) + 1) &^ 1
	if use < n {
		r.use = b[use:n]
	}
	if b[26] != 0 || b[27] != 0 {
		return r, fmt.Errorf("interleaved file: %w", guestfs.ErrUnsupported)
	}
	// Extended attributes, which nobody writes, lie before the content.
	r.extent = extent.Extent{Off: (int64(le.Uint32(b[2:])) + int64(b[1])) * d.block, Len: int64(le.Uint32(b[10:]))}
	return r, nil
}

// read reads the record at a byte of the volume.
func (d *driver) read(at int64) (record, error) {
	if at%2 != 0 {
		return record{}, guestfs.Damaged("no record at byte %d", at)
	}
	// A record does not cross the end of its sector.
	b, err := d.src.Meta(at, int(min(256, sectorLen-at%sectorLen, max(d.src.Size()-at, 0))))
	if err != nil {
		return record{}, err
	}
	if len(b) < recordHead+1 {
		return record{}, guestfs.Damaged("no record at byte %d", at)
	}
	return d.parse(b, at)
}

func (d *driver) record(id guestfs.ID) (record, error) {
	if id.Tree != 0 || id.File > 1<<62 {
		return record{}, guestfs.Damaged("no record at byte %v", id)
	}
	if id == d.Root() {
		return d.read(d.root)
	}
	return d.read(int64(id.File))
}

// maxExtents of a file are 4 TiB.
const maxExtents = 1024

// extents are the extents of the file whose first record is at a byte of the volume. Further ones are in the
// records that follow, perhaps in the next sector.
func (d *driver) extents(at int64) ([]extent.Extent, error) {
	var out []extent.Extent
	for {
		r, err := d.read(at)
		if err != nil {
			return nil, err
		}
		out = append(out, r.extent)
		if r.flags&flagMore == 0 {
			return out, nil
		}
		if len(out) >= maxExtents {
			return nil, fmt.Errorf("file in more than %d extents: %w", maxExtents, guestfs.ErrTooLarge)
		}
		at += int64(len(r.raw))
		if b, err := d.src.Meta(at, 1); err != nil {
			return nil, err
		} else if at%sectorLen != 0 && b[0] == 0 {
			at = (at + sectorLen - 1) / sectorLen * sectorLen
		}
	}
}

// records calls fn with the records of a directory, from a byte of it on, until it returns false. Damage in a sector
// does not keep the next from being read.
func (d *driver) records(dir record, from int64, fn func(r record, next int64) bool) error {
	var bad error
	for off := from / sectorLen * sectorLen; off < dir.extent.Len; off += sectorLen {
		b, err := d.src.Meta(dir.extent.Off+off, int(min(sectorLen, dir.extent.Len-off)))
		if err != nil {
			return err
		}
		for p := 0; p < len(b) && b[p] != 0; {
			r, err := d.parse(b[p:], dir.extent.Off+off+int64(p))
			if err != nil {
				if bad == nil {
					bad = err
				}
				break
			}
			p += len(r.raw)
			if off+int64(p) <= from {
				continue
			}
			if !fn(r, off+int64(p)) {
				return nil
			}
		}
	}
	return bad
}

func (d *driver) ReadDir(id guestfs.ID, after guestfs.Cursor, yield func(guestfs.Entry) bool) error {
	dir, err := d.record(id)
	if err != nil {
		return err
	}
	if dir.flags&flagDirectory == 0 {
		return guestfs.ErrNotDir
	}
	if int64(after) < 0 {
		return fs.ErrInvalid
	}
	var bad error
	first := int64(-1) // of a file in several extents
	err = d.records(dir, int64(after), func(r record, next int64) bool {
		if len(r.name) == 1 && r.name[0] <= 1 || r.flags&flagAssociated != 0 {
			return true
		}
		if first < 0 {
			first = r.at
		}
		if r.flags&flagMore != 0 {
			return true
		}
		at := first
		first = -1
		e := guestfs.Entry{ID: guestfs.ID{File: uint64(at)}, Type: guestfs.Regular, Next: guestfs.Cursor(next)}
		if r.flags&flagDirectory != 0 {
			e.Type = guestfs.Directory
		}
		if e.Name = d.name(r); d.rock {
			head, err := d.read(at)
			if err == nil {
				err = d.rockEntry(head, &e)
			}
			if err != nil && bad == nil {
				bad = fmt.Errorf("%q: %w", e.Name, err)
			}
			if err != nil || e.Name == "" {
				return true
			}
		}
		return yield(e)
	})
	if err == nil {
		err = bad
	}
	return err
}

// name is a name of Joliet or a plain one, without the version and the dot of an empty extension.
func (d *driver) name(r record) string {
	if d.joliet {
		n := wtf8.BE(r.name)
		if k := strings.LastIndexByte(n, ';'); k > 0 {
			n = n[:k]
		}
		return n
	}
	n := string(r.name)
	if r.flags&flagDirectory != 0 {
		return n
	}
	if k := strings.LastIndexByte(n, ';'); k > 0 {
		n = n[:k]
	}
	if k := len(n) - 1; k > 0 && n[k] == '.' {
		n = n[:k]
	}
	return n
}

func (d *driver) Stat(id guestfs.ID) (guestfs.Attr, error) {
	r, err := d.record(id)
	if err != nil {
		return guestfs.Attr{}, err
	}
	a := guestfs.Attr{ID: id, Type: guestfs.Regular, Mode: 0o444, Links: 1, Mtime: short(r.raw[18:])}
	if r.flags&flagDirectory != 0 {
		a.Type, a.Mode = guestfs.Directory, 0o555
	} else {
		es, err := d.extents(r.at)
		if err != nil {
			return a, err
		}
		for _, e := range es {
			a.Size += e.Len
		}
	}
	if d.rock {
		// The fields of the root are in its own first record, "."; the volume descriptor has no room.
		if id == d.Root() {
			if r, err = d.read(r.extent.Off); err != nil {
				return a, err
			}
		}
		err = d.rockAttr(r, &a)
	}
	return a, err
}

func (d *driver) Open(id guestfs.ID, stream string) (guestfs.File, error) {
	a, err := d.Stat(id)
	if err != nil {
		return nil, err
	}
	if a.Type != guestfs.Regular {
		return nil, guestfs.ErrNotRegular
	}
	if stream != "" {
		return nil, fs.ErrNotExist
	}
	es, err := d.extents(int64(id.File))
	if err != nil {
		return nil, err
	}
	if d.rock {
		r, err := d.record(id)
		if err != nil {
			return nil, err
		}
		if err := d.readable(r); err != nil {
			return nil, err
		}
	}
	var m guestfs.Map
	off := int64(0)
	for _, e := range es {
		if err := m.Add(off, e.Off, e.Len); err != nil {
			return nil, err
		}
		off += e.Len
	}
	return m.File(d.src, off)
}

func (d *driver) Xattrs(guestfs.ID) ([]guestfs.Xattr, error) { return nil, nil }

func (d *driver) Streams(guestfs.ID) ([]guestfs.Stream, error) { return nil, nil }
