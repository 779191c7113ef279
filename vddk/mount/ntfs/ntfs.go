// Package ntfs reads NTFS, versions 3.0 and 3.1 (Windows 2000 and later).
//
// What is hidden: that everything is an attribute of a record, resident or in runs, possibly spread over an
// attribute list; and the ways Windows keeps content other than as it is (compression, the Windows Overlay Filter,
// sparse ranges, a valid data length).
//
// Terminology: a cluster is the allocation unit, 512 bytes to 2 MiB; VCN numbers clusters of a stream, LCN clusters
// of the volume; a record is an entry of the master file table (MFT), 1 or 4 KiB; a reference is a record's number
// (48 bits) with its sequence number (16 bits above), which changes when the record is used for another file.
// Guestfs IDs are references: a stale directory entry fails with an error instead of leading to a stranger.
//
// $LogFile is not replayed; [guestfs.Info.Notes] tells when that matters.
//
// Sources: the Linux-NTFS project's NTFS documentation (flatcap.github.io/linux-ntfs), Microsoft's [MS-FSCC]
// (reparse points, attributes, extended attributes), [MS-XCA] (LZNT1, XPRESS) and Windows SDK (WOF).
package ntfs

import (
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
)

var le = binary.LittleEndian

// Records with a fixed number.
const (
	recordMFT    = 0
	recordLog    = 2
	recordVolume = 3
	recordRoot   = 5
	recordSecure = 9
	firstUser    = 16 // below are the files of the format itself, which Windows does not show
)

// Format is NTFS.
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
	b, err := src.Meta(0, bootLen)
	if err != nil {
		return guestfs.Ident{}, err
	}
	g, err := parseBoot(b)
	if err != nil {
		return guestfs.Ident{}, guestfs.ErrUnknown
	}
	id := guestfs.Ident{Type: "ntfs", UUID: g.uuid()}
	if d, err := open(src); err == nil { // the label is in a file
		id.Label = d.label
	}
	return id, nil
}

const bootLen = 512

// geometry is what the boot sector tells:
//
//	0    3          11      13          40         48         56          64      68      72      80
//	+----+----------+-------+-----------+----------+----------+-----------+-------+-------+-------+
//	|jump| "NTFS    | bytes | sectors/  | sectors  | LCN of   | LCN of    | size  | size  |serial |
//	|    |"         |/sector| cluster   |          | MFT      | MFT copy  |record |index  |number |
//	+----+----------+-------+-----------+----------+----------+-----------+-------+-------+-------+
type geometry struct {
	cluster, recordLen int64 // bytes
	size               int64
	mft, mirror        int64 // bytes from the start of the volume
	serial             uint64
}

func parseBoot(b []byte) (geometry, error) {
	if string(b[3:11]) != "NTFS    " {
		return geometry{}, guestfs.Damaged("no boot sector")
	}
	sector, per := int64(le.Uint16(b[11:])), int64(b[13])
	if per > 0x80 { // a negative power of two: clusters above 64 KiB
		if per < 0x100-20 {
			return geometry{}, guestfs.Damaged("clusters of 2^%d sectors", 256-per)
		}
		per = 1 << (256 - per)
	}
	g := geometry{cluster: sector * per, serial: le.Uint64(b[72:])}
	if sector < 256 || sector > 4096 || sector&(sector-1) != 0 || g.cluster == 0 || g.cluster > 2<<20 || g.cluster&(g.cluster-1) != 0 {
		return geometry{}, guestfs.Damaged("sectors of %d bytes, clusters of %d sectors", sector, per)
	}
	if v := int8(b[64]); v < 0 && v > -31 {
		g.recordLen = 1 << -v
	} else {
		g.recordLen = int64(v) * g.cluster
	}
	if g.recordLen < 512 || g.recordLen > 64<<10 || g.recordLen&(g.recordLen-1) != 0 {
		return geometry{}, guestfs.Damaged("records of %d bytes", g.recordLen)
	}
	sectors, mft, mirror := le.Uint64(b[40:]), le.Uint64(b[48:]), le.Uint64(b[56:])
	if sectors > 1<<54 || mft > 1<<42 || mirror > 1<<42 {
		return geometry{}, guestfs.Damaged("%d sectors, MFT at cluster %d", sectors, mft)
	}
	g.size, g.mft, g.mirror = int64(sectors)*sector, int64(mft)*g.cluster, int64(mirror)*g.cluster
	return g, nil
}

func (g geometry) uuid() string { return fmt.Sprintf("%016X", g.serial) }

// driver is an opened file system.
type driver struct {
	geometry
	src   *guestfs.Source
	mft   runs
	mftN  uint64 // records of the MFT
	label string
	root  uint64 // reference
	notes []guestfs.Note

	secured  sync.Once
	security map[uint32]extent.Extent // security id -> descriptor in sds
	sds      guestfs.File
}

func open(src *guestfs.Source) (*driver, error) {
	b, err := src.Meta(0, bootLen)
	if err != nil {
		return nil, err
	}
	d := &driver{src: src}
	if d.geometry, err = parseBoot(b); err != nil {
		return nil, err
	}
	if d.size > src.Size() {
		d.note(true, "the file system is larger than its volume (%d bytes on %d)", d.size, src.Size())
	}
	if err := d.openMFT(); err != nil {
		return nil, fmt.Errorf("master file table: %w", err)
	}
	root, err := d.node(recordRoot)
	if err != nil {
		return nil, fmt.Errorf("root directory: %w", err)
	}
	d.root = root.ref
	d.readVolume()
	d.readLog()
	return d, nil
}

// openMFT finds the runs of the MFT, which its first record tells; of that there is a copy elsewhere.
func (d *driver) openMFT() error {
	start := func(at int64) error {
		d.mft, d.mftN = runs{{0, at / d.cluster, (4*d.recordLen + d.cluster - 1) / d.cluster}}, 4
		n, err := d.node(recordMFT)
		if err != nil {
			return err
		}
		// The first piece is always in record 0 itself and leads to the records with the others.
		pieces, err := n.pieces(typeData, "")
		if err != nil && len(pieces) == 0 {
			return err
		}
		if len(pieces) == 0 || pieces[0].resident {
			return guestfs.Damaged("it has no runs")
		}
		if d.mft, err = parseRuns(pieces[:1]); err != nil {
			return err
		}
		size := pieces[0].size
		if size < 0 || size/d.recordLen > 1<<32 {
			return guestfs.Damaged("%d bytes", size)
		}
		d.mftN = uint64(size / d.recordLen)
		if n.list == nil {
			return nil
		}
		if n, err = d.node(recordMFT); err != nil {
			return err
		}
		if pieces, err = n.pieces(typeData, ""); err != nil {
			return err
		}
		d.mft, err = parseRuns(pieces)
		return err
	}
	err := start(d.geometry.mft)
	if err == nil {
		return nil
	}
	if start(d.mirror) != nil {
		return err
	}
	d.note(false, "the first record of the master file table is damaged (%v), its copy was used", err)
	return nil
}

// readVolume reads label and flags from $Volume. What is damaged there does not keep files from being read.
func (d *driver) readVolume() {
	n, err := d.node(recordVolume)
	if err != nil {
		d.note(false, "$Volume: %v", err)
		return
	}
	if a, err := n.first(typeVolumeName, ""); err == nil && a != nil && a.resident {
		d.label = name(a.value)
	}
	const dirty = 1
	if a, err := n.first(typeVolumeInfo, ""); err == nil && a != nil && a.resident && len(a.value) >= 12 {
		if le.Uint16(a.value[10:])&dirty != 0 {
			d.note(true, "the volume is marked as damaged (chkdsk in the guest)")
		}
		if major := a.value[8]; major < 3 {
			d.note(true, "NTFS version %d.%d is older than what was tested", major, a.value[9])
		}
	}
}

// readLog tells from the two restart pages of $LogFile whether the volume was in use:
//
//	0      4     6     8    16   20   24    26          +8     +10       +12      +14
//	+------+-----+-----+----+----+----+-----+--- area --+------+---------+--------+-------+
//	|"RSTR"| fixup     |LSN |page|page|area | LSN ...   |clients| free   | in use | flags |
//	+------+-----+-----+----+----+----+-----+-----------+------+---------+--------+-------+
func (d *driver) readLog() {
	n, err := d.node(recordLog)
	if err != nil {
		d.note(false, "$LogFile: %v", err)
		return
	}
	f, err := n.stream(typeData, "")
	if err != nil {
		d.note(false, "$LogFile: %v", err)
		return
	}
	const none, clean = 0xffff, 2
	var newest uint64
	open := false
	for _, off := range []int64{0, 4096} {
		b := make([]byte, 4096)
		if _, err := f.ReadAt(b, off); err != nil || fixup(b, "RSTR") != nil {
			continue
		}
		area := int(le.Uint16(b[24:]))
		if area+16 > len(b) {
			continue
		}
		a := b[area:]
		if lsn := le.Uint64(a); lsn >= newest {
			newest = lsn
			open = le.Uint16(a[12:]) != none && le.Uint16(a[14:])&clean == 0
		}
	}
	if open {
		d.note(true, "the volume was in use when the point was taken, without the guest's VSS: changes of names and sizes "+
			"in the last seconds are only in $LogFile, which is not replayed; an entry that leads nowhere fails when it is opened")
	}
}

func (d *driver) note(uncertain bool, format string, args ...any) {
	d.notes = append(d.notes, guestfs.Note{Uncertain: uncertain, Text: fmt.Sprintf(format, args...)})
}

func (d *driver) Info() guestfs.Info {
	return guestfs.Info{
		Type: "ntfs", Label: d.label, UUID: d.uuid(), Size: d.size, BlockSize: d.cluster, FoldCase: true, Notes: d.notes,
	}
}

func (d *driver) Root() guestfs.ID { return guestfs.ID{File: d.root} }
