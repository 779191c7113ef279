package fat

import (
	"fmt"

	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
	"github.com/vmkeep/vmkeep/vddk/mount/wtf8"
)

// ExFAT is exFAT.
func ExFAT() guestfs.Format {
	return guestfs.Format{
		Probe: probeEx,
		Open:  func(on []*guestfs.Source) (guestfs.Driver, error) { return openEx(on[0]) },
	}
}

func probeEx(src *guestfs.Source) (guestfs.Ident, error) {
	if src.Size() < bootLen {
		return guestfs.Ident{}, guestfs.ErrUnknown
	}
	d, err := openEx(src)
	if err != nil {
		return guestfs.Ident{}, guestfs.ErrUnknown
	}
	return guestfs.Ident{Type: "exfat", Label: d.label, UUID: d.uuid}, nil
}

// exDriver is an opened exFAT file system.
type exDriver struct {
	chains
	size     int64
	rootHead uint32
	label    string
	uuid     string
	notes    []guestfs.Note
}

// openEx reads the boot sector:
//
//	3         64      72      80      84      88     92       96       100    104     106   108    109     110
//	+---------+-------+-------+-------+-------+------+--------+--------+------+-------+-----+------+-------+----+
//	|"EXFAT   |offset |sectors|table  |table  |heap  |clusters|root    |serial|version|flags|log   |log    |FATs|
//	|"        |       |       |sector |sectors|sector|        |cluster |      |       |     |sector|cluster|    |
//	+---------+-------+-------+-------+-------+------+--------+--------+------+-------+-----+------+-------+----+
func openEx(src *guestfs.Source) (*exDriver, error) {
	b, err := src.Meta(0, bootLen)
	if err != nil {
		return nil, err
	}
	if string(b[3:11]) != "EXFAT   " || b[510] != 0x55 || b[511] != 0xaa {
		return nil, guestfs.Damaged("no boot sector")
	}
	sectorBits, clusterBits := b[108], b[109]
	if sectorBits < 9 || sectorBits > 12 || clusterBits > 25-sectorBits {
		return nil, guestfs.Damaged("sectors of 2^%d bytes, clusters of 2^%d sectors", sectorBits, clusterBits)
	}
	sector := int64(1) << sectorBits
	sectors, count := le.Uint64(b[72:]), le.Uint32(b[92:])
	table, length := int64(le.Uint32(b[80:])), int64(le.Uint32(b[84:]))
	if sectors > 1<<54 || count > 0xfffffff5 || int64(count) > length*sector/4-2 {
		return nil, guestfs.Damaged("%d sectors, %d clusters in a table of %d sectors", sectors, count, length)
	}
	d := &exDriver{size: int64(sectors) * sector, rootHead: le.Uint32(b[96:])}
	const secondTable, dirty, failed = 1, 2, 4
	flags := le.Uint16(b[106:])
	if flags&secondTable != 0 && b[110] == 2 {
		table += length
	}
	d.chains = chains{
		src: src, table: table * sector, heap: int64(le.Uint32(b[88:])) * sector, cluster: sector << clusterBits, clusters: count,
	}
	d.uuid = fmt.Sprintf("%04X-%04X", le.Uint16(b[102:]), le.Uint16(b[100:]))
	note := func(uncertain bool, text string) {
		d.notes = append(d.notes, guestfs.Note{Uncertain: uncertain, Text: text})
	}
	if d.size > src.Size() {
		note(true, fmt.Sprintf("the file system is larger than its volume (%d bytes on %d)", d.size, src.Size()))
	}
	if flags&dirty != 0 {
		note(false, "the volume was in use when the point was taken: what the guest had not yet written is not there")
	}
	if flags&failed != 0 {
		note(true, "the guest met errors of the disk (chkdsk in the guest)")
	}
	d.readLabel()
	return d, nil
}

// readLabel: a record of the root directory, type 0x83, characters(1), label(22).
func (d *exDriver) readLabel() {
	const label = 0x83
	dir, _, err := d.directory(d.Root())
	if err != nil {
		return
	}
	_ = records(d.src, dir, 0, func(b []byte, _, _ int64) bool {
		if b[0] == label && b[1] <= 11 {
			d.label = wtf8.LE(b[2 : 2+2*int(b[1])])
			return false
		}
		return b[0] != end
	})
}

func (d *exDriver) Info() guestfs.Info {
	return guestfs.Info{
		Type: "exfat", Label: d.label, UUID: d.uuid, Size: d.size, BlockSize: d.cluster, FoldCase: true, Notes: d.notes,
	}
}

func (d *exDriver) Root() guestfs.ID { return guestfs.ID{} }
