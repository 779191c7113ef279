// Package fat reads FAT12, FAT16, FAT32 and exFAT.
//
// What is hidden: how names and places are kept. FAT's long names lie in records before the short one, exFAT's in sets
// of records; clusters are chained in a table, or (exFAT) follow one another.
//
// Terminology: a cluster is the allocation unit, numbered from 2; the heap is where clusters lie; the table (the FAT)
// has an entry for each, which tells the next of its chain; a record is 32 bytes of a directory. A guestfs ID is where
// a file's first record of its own lies on the volume, 0 the root.
//
// FAT keeps times as the guest's local time without saying which: they are given as if that were UTC.
//
// Sources: Microsoft, "FAT: General Overview of On-Disk Format" 1.03 and "exFAT file system specification".
package fat

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"strings"

	"golang.org/x/text/encoding/charmap"

	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
)

var le = binary.LittleEndian

const (
	bootLen   = 512
	recordLen = 32
)

// Attributes of files, the same in both formats and in Windows.
const (
	attrReadOnly  = 0x01
	attrVolume    = 0x08
	attrDirectory = 0x10
	attrLong      = 0x0f // of FAT's records of long names
)

// Format is FAT12, FAT16 and FAT32.
func Format() guestfs.Format {
	return guestfs.Format{
		Probe: probe,
		Open:  func(on []*guestfs.Source) (guestfs.Driver, error) { return open(on[0]) },
	}
}

func probe(src *guestfs.Source) (guestfs.Ident, error) {
	if src.Size() < bootLen {
		return guestfs.Ident{}, guestfs.ErrUnknown
	}
	d, err := open(src)
	if err != nil {
		return guestfs.Ident{}, guestfs.ErrUnknown
	}
	return guestfs.Ident{Type: "vfat", Label: d.label, UUID: d.uuid}, nil
}

// driver is an opened FAT file system.
type driver struct {
	chains
	size     int64
	fixed    int64 // of FAT12 and FAT16: bytes of the root directory, which is no chain
	rootAt   int64 // where those are
	rootHead uint32
	label    string
	uuid     string
	notes    []guestfs.Note
}

// open reads the boot sector; from 36 on it depends on the variant:
//
//	11     13       14       16   17    19      21    22       24        28     32
//	+------+--------+--------+----+-----+-------+-----+--------+---------+------+-------+
//	|bytes |sectors |sectors |FATs|root |sectors|media|sectors | geometry|hidden|sectors|
//	|sector|/cluster|reserved|    |recs |       |     |of a FAT|         |      |       |
//	+------+--------+--------+----+-----+-------+-----+--------+---------+------+-------+
//	FAT12, FAT16:  38 signature(1) serial(4) label(11)
//	FAT32:         36 sectors of a FAT(4) flags(2) version(2) root cluster(4) ... 66 signature(1) serial(4) label(11)
func open(src *guestfs.Source) (*driver, error) {
	b, err := src.Meta(0, bootLen)
	if err != nil {
		return nil, err
	}
	sector, per, reserved, fats := int64(le.Uint16(b[11:])), int64(b[13]), int64(le.Uint16(b[14:])), int64(b[16])
	records, sectors, perFAT := int64(le.Uint16(b[17:])), int64(le.Uint16(b[19:])), int64(le.Uint16(b[22:]))
	if sectors == 0 {
		sectors = int64(le.Uint32(b[32:]))
	}
	is32 := perFAT == 0
	if is32 {
		perFAT = int64(le.Uint32(b[36:]))
	}
	switch {
	case b[510] != 0x55 || b[511] != 0xaa || b[0] != 0xeb && b[0] != 0xe9:
		return nil, guestfs.Damaged("no boot sector")
	case bits.OnesCount64(uint64(sector)) != 1 || sector < 128 || sector > 4096 || bits.OnesCount64(uint64(per)) != 1:
		return nil, guestfs.Damaged("sectors of %d bytes, %d in a cluster", sector, per)
	case reserved == 0 || fats == 0 || fats > 4 || perFAT == 0 || b[21] != 0xf0 && b[21] < 0xf8:
		return nil, guestfs.Damaged("%d reserved sectors, %d tables of %d sectors, medium %#x", reserved, fats, perFAT, b[21])
	case is32 != (records == 0):
		return nil, guestfs.Damaged("%d records in the root directory", records)
	}
	d := &driver{size: sectors * sector}
	d.chains = chains{src: src, table: reserved * sector, cluster: sector * per}
	d.rootAt = d.table + fats*perFAT*sector
	d.fixed = (records*recordLen + sector - 1) / sector * sector
	d.heap = d.rootAt + d.fixed
	if d.heap > d.size {
		return nil, guestfs.Damaged("clusters begin at byte %d of %d", d.heap, d.size)
	}
	count := (d.size - d.heap) / d.cluster
	serial, label := b[39:43], b[43:54]
	switch {
	case is32:
		d.width, d.rootHead, serial, label = 32, le.Uint32(b[44:]), b[67:71], b[71:82]
		const oneActive = 0x80
		if flags := le.Uint16(b[40:]); flags&oneActive != 0 {
			d.table += int64(flags&15) % fats * perFAT * sector
		}
	case count < 4085:
		d.width = 12
	default:
		d.width = 16
	}
	if room := perFAT*sector*8/int64(d.width) - 2; count > room {
		d.note(false, "the table has room for %d of %d clusters", room, count)
		count = room
	}
	if count < 1 || count > 0xffffff5 {
		return nil, guestfs.Damaged("%d clusters", count)
	}
	d.clusters = uint32(count)
	if d.size > src.Size() {
		d.note(true, "the file system is larger than its volume (%d bytes on %d)", d.size, src.Size())
	}
	d.uuid = fmt.Sprintf("%04X-%04X", le.Uint16(serial[2:]), le.Uint16(serial))
	if d.label = strings.TrimRight(oem(label), " \x00"); d.label == "NO NAME" {
		d.label = ""
	}
	d.readLabel()
	d.readState()
	d.note(false, "times are the guest's local time; its time zone is not recorded")
	return d, nil
}

// readState tells from the second entry of the table whether the volume was in use.
func (d *driver) readState() {
	if d.width == 12 {
		return // it has no room for that
	}
	v, err := d.raw(1)
	if err != nil {
		return
	}
	clean, good := uint32(0x8000), uint32(0x4000)
	if d.width == 32 {
		clean, good = 0x8000000, 0x4000000
	}
	if v&clean == 0 {
		d.note(false, "the volume was in use when the point was taken: what the guest had not yet written is not there")
	}
	if v&good == 0 {
		d.note(true, "the guest met errors of the disk (chkdsk in the guest)")
	}
}

func (d *driver) note(uncertain bool, format string, args ...any) {
	d.notes = append(d.notes, guestfs.Note{Uncertain: uncertain, Text: fmt.Sprintf(format, args...)})
}

func (d *driver) Info() guestfs.Info {
	return guestfs.Info{
		Type: "vfat", Label: d.label, UUID: d.uuid, Size: d.size, BlockSize: d.cluster, FoldCase: true, Notes: d.notes,
	}
}

// oem decodes bytes of a short name. Which code page the guest uses is not recorded; 437 is that of the PC.
func oem(b []byte) string {
	s, err := charmap.CodePage437.NewDecoder().Bytes(b)
	if err != nil { // it has a character for each byte
		return string(b)
	}
	return string(s)
}
