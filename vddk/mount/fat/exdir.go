package fat

import (
	"io/fs"
	"time"

	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
	"github.com/vmkeep/vmkeep/vddk/mount/wtf8"
)

// A file of exFAT is a set of records: one of type 0x85, one 0xc0 (the stream), and 0xc1 with 15 characters of the
// name each; others may follow.
//
//	0x85  count(1) sum(2) attributes(2) 0(2) created(4) written(4) accessed(4) 10 ms(1+1) zones(1+1+1)
//	0xc0  flags(1) 0(1) name length(1) hash(2) 0(2) valid length(8) 0(4) cluster(4) length(8)
//	0xc1  flags(1) characters(30)
//
// The high bit of a type says that the record is in use.
const (
	typeFile   = 0x85
	typeStream = 0xc0
	typeName   = 0xc1
	// contiguous is a flag of the stream: its clusters follow one another, the table says nothing of them.
	contiguous = 2
	// besideID marks IDs of files in a contiguous directory: where their set crosses into another cluster, that
	// is the next one.
	besideID = 1 << 62
)

// exFile is a set.
type exFile struct {
	raw         []byte // its first record
	attr        byte
	name        string
	valid, size int64
	head        uint32
	together    bool
}

// parseSet decodes a whole set.
func parseSet(set []byte) (exFile, error) {
	if len(set) < 3*recordLen || set[recordLen] != typeStream {
		return exFile{}, guestfs.Damaged("set of %d bytes in a directory", len(set))
	}
	var sum uint16
	for k, c := range set {
		if k != 2 && k != 3 {
			sum = sum<<15 | sum>>1
			sum += uint16(c)
		}
	}
	if sum != le.Uint16(set[2:]) {
		return exFile{}, guestfs.Damaged("set in a directory has the sum %#x, not %#x", sum, le.Uint16(set[2:]))
	}
	s := set[recordLen:]
	f := exFile{
		raw: set[:recordLen], attr: set[4], together: s[1]&contiguous != 0, head: le.Uint32(s[20:]),
		valid: int64(le.Uint64(s[8:])), size: int64(le.Uint64(s[24:])),
	}
	var name []byte
	for p := 2 * recordLen; p < len(set); p += recordLen {
		if set[p] == typeName {
			name = append(name, set[p+2:p+recordLen]...)
		}
	}
	n := 2 * int(s[3])
	if n == 0 || n > len(name) || f.size < 0 || f.valid < 0 || f.valid > f.size {
		return exFile{}, guestfs.Damaged("file of %d bytes, %d valid, with a name of %d characters", f.size, f.valid, n/2)
	}
	f.name = wtf8.LE(name[:n])
	return f, nil
}

// file reads the set that an ID names.
func (d *exDriver) file(id guestfs.ID) (exFile, error) {
	off := int64(id.File &^ besideID)
	if id.Tree != 0 || off%recordLen != 0 || off < d.heap || off >= d.heap+int64(d.clusters)*d.cluster {
		return exFile{}, guestfs.Damaged("no directory at byte %v", id)
	}
	n := uint32((off-d.heap)/d.cluster) + 2
	var set []byte
	for want := recordLen; len(set) < want; {
		left := d.heap + int64(n-1)*d.cluster - off // in this cluster
		b, err := d.src.Meta(off, min(want-len(set), int(left)))
		if err != nil {
			return exFile{}, err
		}
		set = append(set, b...)
		if len(set) == recordLen {
			if set[0] != typeFile {
				return exFile{}, guestfs.Damaged("no file at byte %v", id)
			}
			want = recordLen * (1 + int(set[1]))
		}
		if off += int64(len(b)); len(set) == want || int64(len(b)) < left {
			continue
		}
		if id.File&besideID != 0 {
			n++
		} else if n, err = d.next(n); err != nil {
			return exFile{}, err
		}
		if off, err = d.at(n); err != nil {
			return exFile{}, err
		}
	}
	return parseSet(set)
}

func (d *exDriver) Stat(id guestfs.ID) (guestfs.Attr, error) {
	a := guestfs.Attr{ID: id, Type: guestfs.Directory, Mode: 0o755, Links: 1}
	if id == d.Root() {
		return a, nil
	}
	f, err := d.file(id)
	if err != nil {
		return a, err
	}
	a.DOS = uint32(f.attr)
	if f.attr&attrDirectory == 0 {
		a.Type, a.Mode, a.Size = guestfs.Regular, mode(f.attr), f.size
	}
	a.Btime = exStamp(f.raw[8:], f.raw[20], f.raw[22])
	a.Mtime = exStamp(f.raw[12:], f.raw[21], f.raw[23])
	a.Atime = exStamp(f.raw[16:], 0, f.raw[24])
	return a, nil
}

// exStamp is a time of FAT with a time zone: quarters of an hour east of UTC in seven bits, valid with the eighth.
func exStamp(b []byte, fine, zone byte) time.Time {
	t := stamp(le.Uint16(b[2:]), le.Uint16(b), fine)
	if zone&0x80 != 0 && !t.IsZero() {
		t = t.Add(-time.Duration(int8(zone<<1)>>1) * 15 * time.Minute)
	}
	return t
}

// content maps the clusters of a file.
func (d *exDriver) content(m *guestfs.Map, f exFile, size int64) error {
	if !f.together {
		_, err := d.follow(m, f.head, size)
		return err
	}
	at, err := d.at(f.head)
	if err != nil {
		return err
	}
	if left := int64(d.clusters-(f.head-2)) * d.cluster; size > left {
		return guestfs.Damaged("file of %d bytes from cluster %d on", size, f.head)
	}
	return m.Add(0, at, size)
}

// directory is the records of a directory, and whether its clusters follow one another.
func (d *exDriver) directory(id guestfs.ID) (guestfs.File, bool, error) {
	var m guestfs.Map
	if id == d.Root() {
		n, err := d.follow(&m, d.rootHead, -1)
		if err != nil {
			return nil, false, err
		}
		f, err := m.Meta(d.src, n)
		return f, false, err
	}
	f, err := d.file(id)
	if err != nil {
		return nil, false, err
	}
	if f.attr&attrDirectory == 0 {
		return nil, false, guestfs.ErrNotDir
	}
	if f.size > 0 {
		if err := d.content(&m, f, f.size); err != nil {
			return nil, false, err
		}
	}
	dir, err := m.Meta(d.src, f.size)
	return dir, f.together, err
}

func (d *exDriver) ReadDir(id guestfs.ID, after guestfs.Cursor, yield func(guestfs.Entry) bool) error {
	dir, together, err := d.directory(id)
	if err != nil {
		return err
	}
	if int64(after)%recordLen != 0 || int64(after) < 0 {
		return fs.ErrInvalid
	}
	flag := uint64(0)
	if together {
		flag = besideID
	}
	var set []byte
	var first int64
	var bad error
	err = records(d.src, dir, int64(after), func(b []byte, off, at int64) bool {
		if b[0] == end {
			return false
		}
		switch {
		case b[0] == typeFile:
			set, first = append([]byte{}, b...), at
		case len(set) == 0:
			return true
		case b[0]&0xc0 != 0xc0: // not in use, or the start of something else: the set is not whole
			set = nil
			return true
		default:
			set = append(set, b...)
		}
		if len(set) < recordLen*(1+int(set[1])) {
			return true
		}
		f, err := parseSet(set)
		set = nil
		if err != nil {
			if bad == nil {
				bad = err
			}
			return true
		}
		e := guestfs.Entry{
			Name: f.name, ID: guestfs.ID{File: uint64(first) | flag}, Type: guestfs.Regular, Next: guestfs.Cursor(off + recordLen),
		}
		if f.attr&attrDirectory != 0 {
			e.Type = guestfs.Directory
		}
		return yield(e)
	})
	if err == nil {
		err = bad
	}
	return err
}

func (d *exDriver) Readlink(guestfs.ID) (string, error) { return "", guestfs.ErrNotLink }

func (d *exDriver) Xattrs(guestfs.ID) ([]guestfs.Xattr, error) { return nil, nil }

func (d *exDriver) Streams(guestfs.ID) ([]guestfs.Stream, error) { return nil, nil }

// Open opens a file. Behind its valid length it reads as zeros, whatever lies there.
func (d *exDriver) Open(id guestfs.ID, stream string) (guestfs.File, error) {
	if id == d.Root() {
		return nil, guestfs.ErrNotRegular
	}
	f, err := d.file(id)
	if err != nil {
		return nil, err
	}
	switch {
	case f.attr&attrDirectory != 0:
		return nil, guestfs.ErrNotRegular
	case stream != "":
		return nil, fs.ErrNotExist
	case f.size == 0:
		return guestfs.Bytes(d.src, nil, extent.Extent{}), nil
	}
	var m guestfs.Map
	if f.valid > 0 {
		if err := d.content(&m, f, f.valid); err != nil {
			return nil, err
		}
	}
	return m.File(d.src, f.size)
}
