// Package iso9660 reads ISO 9660 with Rock Ridge or Joliet: the discs attached to machines.
//
// What is hidden: which of up to three trees of names is shown (Rock Ridge, else Joliet, else plain names), and that a
// file may be in several extents.
//
// Terminology: a block is the unit of addresses, mostly 2048 bytes; a record is an entry of a directory; the system
// use area is the end of a record, where Rock Ridge keeps its fields and continues in other blocks. A guestfs ID is
// where a file's (first) record lies on the volume.
//
// Sources: ECMA-119, the System Use Sharing Protocol 1.12 and Rock Ridge Interchange Protocol 1.12, Microsoft's Joliet
// specification. UDF is not read: discs that have both are read as ISO 9660.
package iso9660

import (
	"encoding/binary"
	"fmt"
	"strings"
	"time"

	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
	"github.com/vmkeep/vmkeep/vddk/mount/wtf8"
)

var le = binary.LittleEndian

// Format is ISO 9660.
func Format() guestfs.Format {
	return guestfs.Format{
		Probe: probe,
		Open:  func(on []*guestfs.Source) (guestfs.Driver, error) { return open(on[0]) },
	}
}

func probe(src *guestfs.Source) (guestfs.Ident, error) {
	if b, err := src.Meta(firstDescriptor*sectorLen, 8); err != nil || string(b[1:6]) != "CD001" {
		return guestfs.Ident{}, guestfs.ErrUnknown
	}
	d, err := open(src)
	if err != nil {
		return guestfs.Ident{}, guestfs.ErrUnknown
	}
	return guestfs.Ident{Type: "iso9660", Label: d.label, UUID: d.uuid}, nil
}

const (
	sectorLen       = 2048
	firstDescriptor = 16
	maxDescriptors  = 64
)

// driver is an opened disc.
type driver struct {
	src    *guestfs.Source
	block  int64 // bytes
	size   int64
	root   int64 // where the record of the root directory lies, in a volume descriptor
	joliet bool
	rock   bool
	skip   int // bytes of the system use area before Rock Ridge's fields
	label  string
	uuid   string
	notes  []guestfs.Note
}

// open reads the volume descriptors, of 2048 bytes from sector 16 on. Numbers are kept in both byte orders:
//
//	0    1       7  8       40     72  80       88          120  128    156     190     813      830
//	+----+-------+--+-------+------+---+--------+-----------+----+------+-------+-------+--------+
//	|type|"CD001"|  |system |label |   |blocks  |escapes    |    |block |root   | names |created |
//	|    |       |  |       |      |   |4+4     |(Joliet)   |    |2+2   |record |       |        |
//	+----+-------+--+-------+------+---+--------+-----------+----+------+-------+-------+--------+
func open(src *guestfs.Source) (*driver, error) {
	var primary, joliet []byte
	var primaryAt, jolietAt int64
	for n := int64(firstDescriptor); n < firstDescriptor+maxDescriptors; n++ {
		b, err := src.Meta(n*sectorLen, sectorLen)
		if err != nil {
			return nil, err
		}
		if string(b[1:6]) != "CD001" {
			break
		}
		const terminator, typePrimary, typeSupplementary = 255, 1, 2
		if b[0] == terminator {
			break
		}
		switch {
		case b[0] == typePrimary && primary == nil:
			primary, primaryAt = b, n*sectorLen
		case b[0] == typeSupplementary && joliet == nil && isJoliet(string(b[88:120])):
			joliet, jolietAt = b, n*sectorLen
		}
	}
	if primary == nil {
		return nil, guestfs.Damaged("no primary volume descriptor")
	}
	d := &driver{src: src, block: int64(le.Uint16(primary[128:])), root: primaryAt + 156}
	if d.block < 512 || d.block > 32<<10 || d.block&(d.block-1) != 0 {
		return nil, guestfs.Damaged("blocks of %d bytes", d.block)
	}
	d.size = int64(le.Uint32(primary[80:])) * d.block
	if d.size > src.Size() {
		d.notes = append(d.notes, guestfs.Note{Uncertain: true,
			Text: fmt.Sprintf("the file system is larger than its volume (%d bytes on %d)", d.size, src.Size())})
	}
	d.label = strings.TrimRight(string(primary[40:72]), " \x00")
	d.uuid = identity(primary[813:])
	if err := d.findRock(); err != nil {
		return nil, fmt.Errorf("root directory: %w", err)
	}
	if joliet != nil {
		if l := strings.TrimRight(wtf8.BE(joliet[40:72]), " \x00"); l != "" && !d.rock {
			d.label = l
		}
		if !d.rock {
			d.joliet, d.root = true, jolietAt+156
		}
	}
	if _, err := d.extents(d.root); err != nil {
		return nil, fmt.Errorf("root directory: %w", err)
	}
	return d, nil
}

func isJoliet(escapes string) bool {
	return strings.HasPrefix(escapes, "%/@") || strings.HasPrefix(escapes, "%/C") || strings.HasPrefix(escapes, "%/E")
}

// identity is the time of creation as blkid(8) prints it.
func identity(b []byte) string {
	for _, c := range b[:16] {
		if c < '0' || c > '9' {
			return ""
		}
	}
	return fmt.Sprintf("%s-%s-%s-%s-%s-%s-%s", b[:4], b[4:6], b[6:8], b[8:10], b[10:12], b[12:14], b[14:16])
}

func (d *driver) Info() guestfs.Info {
	return guestfs.Info{
		Type: "iso9660", Label: d.label, UUID: d.uuid, Size: d.size, BlockSize: d.block, FoldCase: !d.rock, Notes: d.notes,
	}
}

// Root is file 0: the record of the root is in a volume descriptor.
func (d *driver) Root() guestfs.ID { return guestfs.ID{} }

// short is a time of seven bytes: year from 1900, month, day, hour, minute, second, quarters of an hour east of UTC.
func short(b []byte) time.Time {
	if b[1] < 1 || b[1] > 12 || b[2] < 1 {
		return time.Time{}
	}
	t := time.Date(1900+int(b[0]), time.Month(b[1]), int(b[2]), int(b[3]), int(b[4]), int(b[5]), 0, time.UTC)
	return t.Add(-time.Duration(int8(b[6])) * 15 * time.Minute)
}

// long is a time of 16 digits, YYYYMMDDhhmmss and hundredths, and quarters of an hour.
func long(b []byte) time.Time {
	for _, c := range b[:16] {
		if c < '0' || c > '9' {
			return time.Time{}
		}
	}
	n := func(from, to int) int {
		v := 0
		for _, c := range b[from:to] {
			v = v*10 + int(c-'0')
		}
		return v
	}
	if n(4, 6) < 1 || n(6, 8) < 1 {
		return time.Time{}
	}
	t := time.Date(n(0, 4), time.Month(n(4, 6)), n(6, 8), n(8, 10), n(10, 12), n(12, 14), n(14, 16)*10_000_000, time.UTC)
	return t.Add(-time.Duration(int8(b[16])) * 15 * time.Minute)
}
