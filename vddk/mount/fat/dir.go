package fat

import (
	"io/fs"
	"strings"
	"time"

	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
	"github.com/vmkeep/vmkeep/vddk/mount/wtf8"
)

// record is a file as a directory keeps it:
//
//	0     8    11    12     13     14    16    18      20       22    24    26      28     32
//	+-----+----+-----+------+------+-----+-----+-------+--------+-----+-----+-------+------+
//	|name |ext |attr |lower |10 ms |   created |accessed|cluster |  written  |cluster| size |
//	|     |    |     |case  |      |time |date |date   |high    |time |date |low    |      |
//	+-----+----+-----+------+------+-----+-----+-------+--------+-----+-----+-------+------+
//
// A record of a long name, several of which precede it, last part first:
//
//	number(1; 0x40: the last part) characters(10) 0x0f 0 sum of the short name(1) characters(12) 0(2) characters(4)
type record struct {
	attr byte
	head uint32
	size int64
	raw  []byte
}

const (
	deleted = 0xe5
	end     = 0
)

func (d *driver) parse(b []byte) record {
	r := record{attr: b[11], head: uint32(le.Uint16(b[26:])), size: int64(le.Uint32(b[28:])), raw: b}
	if d.width == 32 {
		r.head |= uint32(le.Uint16(b[20:])) << 16
	}
	return r
}

// at reads the record that an ID names.
func (d *driver) record(id guestfs.ID) (record, error) {
	off := int64(id.File)
	inRoot := off >= d.rootAt && off < d.rootAt+d.fixed
	inHeap := off >= d.heap && off < d.heap+int64(d.clusters)*d.cluster
	if id.Tree != 0 || off%recordLen != 0 || !inRoot && !inHeap {
		return record{}, guestfs.Damaged("no directory at byte %v", id)
	}
	b, err := d.src.Meta(off, recordLen)
	if err != nil {
		return record{}, err
	}
	if b[0] == deleted || b[0] == end || b[11]&attrVolume != 0 {
		return record{}, guestfs.Damaged("no file at byte %v", id)
	}
	return d.parse(b), nil
}

func (d *driver) Root() guestfs.ID { return guestfs.ID{} }

func (d *driver) Stat(id guestfs.ID) (guestfs.Attr, error) {
	a := guestfs.Attr{ID: id, Type: guestfs.Directory, Mode: 0o755, Links: 1}
	if id == d.Root() {
		return a, nil
	}
	r, err := d.record(id)
	if err != nil {
		return a, err
	}
	a.DOS = uint32(r.attr)
	if r.attr&attrDirectory == 0 {
		a.Type, a.Mode, a.Size = guestfs.Regular, mode(r.attr), r.size
	}
	a.Mtime = stamp(le.Uint16(r.raw[24:]), le.Uint16(r.raw[22:]), 0)
	a.Atime = stamp(le.Uint16(r.raw[18:]), 0, 0)
	a.Btime = stamp(le.Uint16(r.raw[16:]), le.Uint16(r.raw[14:]), r.raw[13])
	return a, nil
}

// mode is that of a file.
func mode(attr byte) uint32 {
	if attr&attrReadOnly != 0 {
		return 0o444
	}
	return 0o644
}

// stamp is a date (years from 1980, month, day) and time (hour, minute, two seconds) with units of 10 ms.
func stamp(date, clock uint16, fine byte) time.Time {
	year, month, day := 1980+int(date>>9), time.Month(date>>5&15), int(date&31)
	if month < 1 || month > 12 || day < 1 {
		return time.Time{}
	}
	hour, minute, second := int(clock>>11), int(clock>>5&63), int(clock&31)*2
	return time.Date(year, month, day, hour, minute, second, int(min(fine, 199))*10_000_000, time.UTC)
}

// directory is the records of a directory.
func (d *driver) directory(id guestfs.ID) (guestfs.File, error) {
	var m guestfs.Map
	head := d.rootHead
	if id != d.Root() {
		r, err := d.record(id)
		if err != nil {
			return nil, err
		}
		if r.attr&attrDirectory == 0 {
			return nil, guestfs.ErrNotDir
		}
		head = r.head
	} else if d.width != 32 {
		if err := m.Add(0, d.rootAt, d.fixed); err != nil {
			return nil, err
		}
		return m.Meta(d.src, d.fixed)
	}
	n, err := d.follow(&m, head, -1)
	if err != nil {
		return nil, err
	}
	return m.Meta(d.src, n)
}

func (d *driver) ReadDir(id guestfs.ID, after guestfs.Cursor, yield func(guestfs.Entry) bool) error {
	dir, err := d.directory(id)
	if err != nil {
		return err
	}
	if int64(after)%recordLen != 0 || int64(after) < 0 {
		return fs.ErrInvalid
	}
	var long longName
	return records(d.src, dir, int64(after), func(b []byte, off, at int64) bool {
		switch {
		case b[0] == end:
			return false
		case b[0] == deleted:
			long.reset()
			return true
		case b[11]&0x3f == attrLong:
			long.add(b)
			return true
		}
		name := long.take(b)
		if b[11]&attrVolume != 0 {
			return true
		}
		if name == "" {
			name = shortName(b)
		}
		if name == "." || name == ".." || name == "" {
			return true
		}
		e := guestfs.Entry{
			Name: name, ID: guestfs.ID{File: uint64(at)}, Type: guestfs.Regular, Next: guestfs.Cursor(off + recordLen),
		}
		if b[11]&attrDirectory != 0 {
			e.Type = guestfs.Directory
		}
		return yield(e)
	})
}

// longName collects the parts of a long name. A character may lie in two records, so they are joined before they
// are decoded.
type longName struct {
	units []byte
	want  int // number of the next part
	sum   byte
}

func (l *longName) reset() { *l = longName{} }

func (l *longName) add(b []byte) {
	const last, maxParts = 0x40, 20
	n := int(b[0] &^ last)
	if b[0]&last != 0 {
		*l = longName{want: n, sum: b[13]}
	}
	if n != l.want || n == 0 || n > maxParts || b[13] != l.sum {
		l.reset()
		return
	}
	l.want--
	part := make([]byte, 0, 26+len(l.units))
	part = append(append(append(part, b[1:11]...), b[14:26]...), b[28:32]...)
	l.units = append(part, l.units...)
}

// take is the name when it is whole and belongs to the short name b, else "".
func (l *longName) take(b []byte) string {
	units, whole := l.units, l.want == 0
	sum := l.sum
	l.reset()
	var own byte
	for _, c := range b[:11] {
		own = own>>1 | own<<7
		own += c
	}
	if len(units) == 0 || !whole || sum != own {
		return ""
	}
	for k := 0; k+1 < len(units); k += 2 {
		if units[k] == 0 && units[k+1] == 0 {
			units = units[:k]
			break
		}
	}
	return wtf8.LE(units)
}

// shortName is a name of eight and three characters, with the case that Windows NT keeps in two bits.
func shortName(b []byte) string {
	const lowerBase, lowerExt, escaped = 0x08, 0x10, 0x05
	raw := append([]byte{}, b[:11]...)
	if raw[0] == escaped {
		raw[0] = deleted
	}
	base, ext := strings.TrimRight(oem(raw[:8]), " "), strings.TrimRight(oem(raw[8:]), " ")
	if b[12]&lowerBase != 0 {
		base = strings.ToLower(base)
	}
	if b[12]&lowerExt != 0 {
		ext = strings.ToLower(ext)
	}
	if ext == "" {
		return base
	}
	return base + "." + ext
}

// readLabel takes the label from the root directory, where it is current.
func (d *driver) readLabel() {
	dir, err := d.directory(d.Root())
	if err != nil {
		return
	}
	_ = records(d.src, dir, 0, func(b []byte, _, _ int64) bool {
		if b[0] != end && b[0] != deleted && b[11]&0x3f != attrLong && b[11]&attrVolume != 0 {
			d.label = strings.TrimRight(oem(b[:11]), " ")
			return false
		}
		return b[0] != end
	})
}

func (d *driver) Readlink(guestfs.ID) (string, error) { return "", guestfs.ErrNotLink }

func (d *driver) Xattrs(guestfs.ID) ([]guestfs.Xattr, error) { return nil, nil }

func (d *driver) Streams(guestfs.ID) ([]guestfs.Stream, error) { return nil, nil }

func (d *driver) Open(id guestfs.ID, stream string) (guestfs.File, error) {
	if id == d.Root() {
		return nil, guestfs.ErrNotRegular
	}
	r, err := d.record(id)
	if err != nil {
		return nil, err
	}
	switch {
	case r.attr&attrDirectory != 0:
		return nil, guestfs.ErrNotRegular
	case stream != "":
		return nil, fs.ErrNotExist
	case r.size == 0:
		return guestfs.Bytes(d.src, nil, extent.Extent{}), nil
	}
	var m guestfs.Map
	if _, err := d.follow(&m, r.head, r.size); err != nil {
		return nil, err
	}
	return m.File(d.src, r.size)
}
