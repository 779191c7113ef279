package ntfs

import (
	"fmt"
	"io/fs"
	"sort"

	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
	"github.com/vmkeep/vmkeep/vddk/mount/wtf8"
)

// Attribute types.
const (
	typeStandard   = 0x10
	typeList       = 0x20
	typeFileName   = 0x30
	typeObjectID   = 0x40
	typeSecurity   = 0x50
	typeVolumeName = 0x60
	typeVolumeInfo = 0x70
	typeData       = 0x80
	typeIndexRoot  = 0x90
	typeIndexAlloc = 0xa0
	typeReparse    = 0xc0
	typeEA         = 0xe0
)

// Attribute flags.
const (
	flagCompressed = 0x00ff // 1 is LZNT1
	flagEncrypted  = 0x4000
)

// attribute is one attribute, or one piece of an attribute whose others are in other records:
//
//	0     4     8    9     10    12    14   16
//	+-----+-----+----+-----+-----+-----+----+---------------------------------------------------+
//	|type | len |non-|name |name |flags| id | resident: value length(4) offset(2)               |
//	|     |     |res.|len  |off  |     |    | else: first VCN(8) last VCN(8) runs offset(2)     |
//	|     |     |    |     |     |     |    |       unit(1) 0(5) allocated(8) size(8) valid(8)  |
//	+-----+-----+----+-----+-----+-----+----+---------------------------------------------------+
type attribute struct {
	typ      uint32
	name     string
	flags    uint16
	id       uint16
	resident bool
	value    []byte
	where    extent.Extent // of the record, on the volume

	lo, hi      int64 // VCNs, hi is the last
	runs        []byte
	unit        byte // log2 of the clusters of a compression unit
	size, valid int64
}

func name(b []byte) string { return wtf8.LE(b) }

// fixup checks and undoes the protection of a record against torn writes: the last two bytes of each 512 are
// replaced by a number that is the same in all of them, the real bytes are kept in the header.
func fixup(b []byte, magic string) error {
	if string(b[:4]) != magic {
		return guestfs.Damaged("record begins with %q, not %q", b[:4], magic)
	}
	at, n := int(le.Uint16(b[4:])), int(le.Uint16(b[6:]))
	if n < 2 || at+2*n > len(b) || (n-1)*512 > len(b) {
		return guestfs.Damaged("record with %d fixups at %d", n, at)
	}
	for k := 1; k < n; k++ {
		end := b[k*512-2:]
		if end[0] != b[at] || end[1] != b[at+1] {
			return guestfs.Damaged("record was written in part only")
		}
		end[0], end[1] = b[at+2*k], b[at+2*k+1]
	}
	return nil
}

// record reads record n of the MFT, undone, and tells where it lies.
func (d *driver) record(n uint64) ([]byte, extent.Extent, error) {
	if n >= d.mftN {
		return nil, extent.Extent{}, guestfs.Damaged("reference to record %d of %d", n, d.mftN)
	}
	off := int64(n) * d.recordLen
	b := make([]byte, d.recordLen)
	where, err := d.mft.read(b, off, d)
	if err != nil {
		return nil, where, err
	}
	if err := fixup(b, "FILE"); err != nil {
		return nil, where, fmt.Errorf("record %d: %w", n, err)
	}
	return b, where, nil
}

func parseAttributes(b []byte, where extent.Extent) ([]attribute, error) {
	p, end := int(le.Uint16(b[20:])), min(int(le.Uint32(b[24:])), len(b))
	var out []attribute
	for p+4 <= end {
		typ := le.Uint32(b[p:])
		if typ == 0xffffffff {
			return out, nil
		}
		if p+24 > end {
			break
		}
		n := int(le.Uint32(b[p+4:]))
		if n < 24 || p+n > end {
			return nil, guestfs.Damaged("attribute of %d bytes", n)
		}
		a, err := parseAttribute(b[p : p+n])
		if err != nil {
			return nil, err
		}
		a.where = where
		out = append(out, a)
		p += n
	}
	return out, nil
}

func parseAttribute(b []byte) (attribute, error) {
	a := attribute{typ: le.Uint32(b), flags: le.Uint16(b[12:]), id: le.Uint16(b[14:]), resident: b[8] == 0}
	if n, at := int(b[9]), int(le.Uint16(b[10:])); n > 0 {
		if at+2*n > len(b) {
			return a, guestfs.Damaged("name of an attribute is cut off")
		}
		a.name = name(b[at : at+2*n])
	}
	if a.resident {
		n, at := int(le.Uint32(b[16:])), int(le.Uint16(b[20:]))
		if at > len(b) || n > len(b)-at {
			return a, guestfs.Damaged("value of an attribute is cut off")
		}
		a.value = b[at : at+n]
		return a, nil
	}
	if len(b) < 64 || int(le.Uint16(b[32:])) > len(b) {
		return a, guestfs.Damaged("runs of an attribute are cut off")
	}
	a.lo, a.hi, a.unit = int64(le.Uint64(b[16:])), int64(le.Uint64(b[24:])), b[34]
	a.runs = b[le.Uint16(b[32:]):]
	a.size, a.valid = int64(le.Uint64(b[48:])), int64(le.Uint64(b[56:]))
	if a.lo < 0 || a.hi < a.lo-1 || a.hi > 1<<50 {
		return a, guestfs.Damaged("attribute of clusters %d to %d", a.lo, a.hi)
	}
	if a.lo == 0 && (a.size < 0 || a.valid < 0) {
		return a, guestfs.Damaged("attribute of %d bytes, %d valid", a.size, a.valid)
	}
	return a, nil
}

// node is a file: its base record and, when they do not fit there, the list of its attributes.
type node struct {
	d     *driver
	ref   uint64
	dir   bool
	links uint16
	base  []attribute
	list  []listed               // nil: all are in base
	other map[uint64][]attribute // records loaded by the list
}

// listed is an entry of an attribute list:
//
//	type(4) length(2) name length(1) name offset(1) first VCN(8) reference(8) id(2) name
type listed struct {
	typ  uint32
	name string
	lo   int64
	ref  uint64
	id   uint16
}

const (
	numberMask = 1<<48 - 1
	// maxList is four times what Windows writes.
	maxList = 1 << 20
)

func number(ref uint64) uint64 { return ref & numberMask }

// file loads the file a reference leads to, and fails when the record was used again for another.
func (d *driver) file(id guestfs.ID) (*node, error) {
	if id.Tree != 0 {
		return nil, guestfs.Damaged("reference %v", id)
	}
	n, err := d.node(number(id.File))
	if err != nil {
		return nil, err
	}
	if n.ref != id.File {
		return nil, guestfs.Damaged("stale reference: record %d now holds another file (generation %d, not %d)",
			number(id.File), n.ref>>48, id.File>>48)
	}
	return n, nil
}

// node loads the file of a record, whatever its generation.
func (d *driver) node(num uint64) (*node, error) {
	b, where, err := d.record(num)
	if err != nil {
		return nil, err
	}
	const inUse, directory = 1, 2
	flags := le.Uint16(b[22:])
	if flags&inUse == 0 {
		return nil, fmt.Errorf("record %d is free: %w", num, fs.ErrNotExist)
	}
	if base := le.Uint64(b[32:]); base != 0 {
		return nil, guestfs.Damaged("record %d is part of record %d", num, number(base))
	}
	n := &node{d: d, ref: num | uint64(le.Uint16(b[16:]))<<48, dir: flags&directory != 0, links: le.Uint16(b[18:])}
	if n.base, err = parseAttributes(b, where); err != nil {
		return nil, fmt.Errorf("record %d: %w", num, err)
	}
	for _, a := range n.base {
		if a.typ == typeList {
			if err := n.readList(a); err != nil {
				return nil, fmt.Errorf("record %d: attribute list: %w", num, err)
			}
			break
		}
	}
	return n, nil
}

func (n *node) readList(a attribute) error {
	b := a.value
	if !a.resident {
		if a.size > maxList {
			return fmt.Errorf("%d bytes: %w", a.size, guestfs.ErrTooLarge)
		}
		r, err := parseRuns([]attribute{a})
		if err != nil {
			return err
		}
		b = make([]byte, a.size)
		if _, err := r.read(b, 0, n.d); err != nil {
			return err
		}
	}
	n.list = []listed{}
	for len(b) >= 26 {
		size, count, at := int(le.Uint16(b[4:])), int(b[6]), int(b[7])
		if size < 26 || size > len(b) || count > 0 && at+2*count > size {
			return guestfs.Damaged("entry of %d bytes", size)
		}
		e := listed{typ: le.Uint32(b), lo: int64(le.Uint64(b[8:])), ref: le.Uint64(b[16:]), id: le.Uint16(b[24:])}
		if count > 0 {
			e.name = name(b[at : at+2*count])
		}
		n.list = append(n.list, e)
		b = b[size:]
	}
	n.other = map[uint64][]attribute{}
	return nil
}

// attrs are the attributes of the record that an entry of the list leads to.
func (n *node) attrs(ref uint64) ([]attribute, error) {
	if ref == n.ref {
		return n.base, nil
	}
	if as, ok := n.other[ref]; ok {
		return as, nil
	}
	b, where, err := n.d.record(number(ref))
	if err != nil {
		return nil, err
	}
	if le.Uint16(b[22:])&1 == 0 || le.Uint64(b[32:]) != n.ref || uint64(le.Uint16(b[16:])) != ref>>48 {
		return nil, guestfs.Damaged("record %d, where attributes of record %d should be, belongs to another file",
			number(ref), number(n.ref))
	}
	as, err := parseAttributes(b, where)
	if err != nil {
		return nil, fmt.Errorf("record %d: %w", number(ref), err)
	}
	n.other[ref] = as
	return as, nil
}

// pieces are the pieces of one attribute, by VCN. What is found before an error is returned with it. No pieces and
// no error: the file has no such attribute.
func (n *node) pieces(typ uint32, name string) ([]attribute, error) {
	var out []attribute
	for _, a := range n.base {
		if n.list == nil && a.typ == typ && a.name == name {
			out = append(out, a)
		}
	}
	for _, e := range n.list {
		if e.typ != typ || e.name != name {
			continue
		}
		as, err := n.attrs(e.ref)
		if err != nil {
			return out, err
		}
		found := false
		for _, a := range as {
			if a.typ == typ && a.id == e.id && a.name == name && (a.resident || a.lo == e.lo) {
				out, found = append(out, a), true
				break
			}
		}
		if !found {
			return out, guestfs.Damaged("record %d lacks attribute %#x of record %d", number(e.ref), typ, number(n.ref))
		}
	}
	sort.SliceStable(out, func(i, j int) bool { return out[i].lo < out[j].lo })
	return out, nil
}

// first is the first piece of an attribute, which tells its sizes; nil where there is none.
func (n *node) first(typ uint32, name string) (*attribute, error) {
	for _, a := range n.base {
		if a.typ == typ && a.name == name && (a.resident || a.lo == 0) {
			return &a, nil
		}
	}
	for _, e := range n.list {
		if e.typ != typ || e.name != name || e.lo != 0 {
			continue
		}
		as, err := n.attrs(e.ref)
		if err != nil {
			return nil, err
		}
		for _, a := range as {
			if a.typ == typ && a.id == e.id && a.name == name {
				return &a, nil
			}
		}
		return nil, guestfs.Damaged("record %d lacks attribute %#x of record %d", number(e.ref), typ, number(n.ref))
	}
	return nil, nil
}

// names are the names of the attributes of one type, in order.
func (n *node) names(typ uint32) []string {
	var out []string
	if n.list == nil {
		for _, a := range n.base {
			if a.typ == typ && (a.resident || a.lo == 0) {
				out = append(out, a.name)
			}
		}
	}
	for _, e := range n.list {
		if e.typ == typ && e.lo == 0 {
			out = append(out, e.name)
		}
	}
	return out
}

// value is a small attribute in whole, at most limit bytes; nil where there is none.
func (n *node) value(typ uint32, name string, limit int64) ([]byte, error) {
	a, err := n.first(typ, name)
	if err != nil || a == nil {
		return nil, err
	}
	if a.resident {
		return a.value, nil
	}
	if a.size > limit {
		return nil, fmt.Errorf("attribute %#x of %d bytes: %w", typ, a.size, guestfs.ErrTooLarge)
	}
	pieces, err := n.pieces(typ, name)
	if err != nil {
		return nil, err
	}
	r, err := parseRuns(pieces)
	if err != nil {
		return nil, err
	}
	b := make([]byte, a.size)
	_, err = r.read(b, 0, n.d)
	return b, err
}
