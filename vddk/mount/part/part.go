// Package part reads partition tables: MBR with logical partitions, and GPT with either of its headers.
//
// Terminology: a sector is the unit the table counts in, 512 or 4096 bytes; everything a [Table] says is in bytes.
// What is hidden: which of the table's copies was believed, and why.
//
// Sources: UEFI specification 2.10, chapter 5 (GPT, protective MBR); the MBR and EBR layouts are those every
// PC uses since DOS 3.3.
package part

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"
	"unicode/utf16"

	"github.com/vmkeep/vmkeep/vddk/mount/device"
)

// ErrNone: the device has no partition table.
var ErrNone = errors.New("no partition table")

// Table is the partitions of a disk.
type Table struct {
	Kind    string // "gpt" or "dos"
	UUID    string // disk GUID in upper case, or the MBR's 32-bit signature as 8 hex digits
	Sector  int64  // bytes
	Entries []Entry
	Notes   []string // damage that was worked around
}

// Entry is a partition.
type Entry struct {
	Number int    // as Linux counts: slot from 1; logical partitions of an MBR from 5
	Off    int64  // bytes from the start of the disk
	Len    int64  // bytes
	Type   string // two hex digits ("83") or a GUID in upper case
	Name   string // GPT only
	UUID   string // PARTUUID as Linux prints it
}

var le = binary.LittleEndian

// Read reads the table of d. sector is the logical sector size when the caller knows it, else 0: GPT tells it,
// MBR is taken to count 512 bytes.
func Read(d device.Device, sector int64) (Table, error) {
	mbr := make([]byte, 512)
	if err := get(d, mbr, 0); err != nil {
		return Table{}, ErrNone
	}
	slots, ok := parseMBR(mbr)
	if !ok || bootSector(mbr) {
		slots = nil
	}
	protective := false
	for _, s := range slots {
		protective = protective || s.typ == 0xee
	}
	if protective || !ok {
		// Without any MBR a valid GPT still counts: its protective MBR may be what was lost.
		t, err := readGPT(d, sector)
		if err == nil || protective {
			return t, err
		}
		return Table{}, ErrNone
	}
	if sector == 0 {
		sector = 512
	}
	t := readMBR(d, mbr, slots, sector)
	if len(t.Entries) == 0 {
		return Table{}, ErrNone
	}
	return t, nil
}

// MBR, sector 0 (EBRs of logical partitions look the same, with two slots used):
//
//	0         440        444 446       462       478       494       510
//	+---------+----------+---+---------+---------+---------+---------+------+
//	| code    | disk id  | 0 | slot 1  | slot 2  | slot 3  | slot 4  | 55AA |
//	+---------+----------+---+---------+---------+---------+---------+------+
//	slot:  flag(1) chs(3) type(1) chs(3) start(4, sectors) count(4, sectors)
type slot struct {
	typ          byte
	start, count int64 // sectors
}

// parseMBR returns the four slots of a boot record, empty ones with type 0.
func parseMBR(b []byte) ([]slot, bool) {
	if le.Uint16(b[510:]) != 0xaa55 {
		return nil, false
	}
	slots := make([]slot, 4)
	for i := range slots {
		e := b[446+16*i:]
		if e[0]&0x7f != 0 { // neither active nor inactive: code, not a table
			return nil, false
		}
		slots[i] = slot{e[4], int64(le.Uint32(e[8:])), int64(le.Uint32(e[12:]))}
	}
	return slots, true
}

// bootSector reports whether sector 0 belongs to a file system on the whole disk, whose boot code may look like
// a table.
func bootSector(b []byte) bool {
	switch string(b[3:11]) {
	case "NTFS    ", "EXFAT   ", "-FVE-FS-", "ReFS\x00\x00\x00\x00":
		return true
	}
	return string(b[54:57]) == "FAT" || string(b[82:87]) == "FAT32" || string(b[:4]) == "XFSB"
}

func extended(typ byte) bool { return typ == 0x05 || typ == 0x0f || typ == 0x85 }

// maxLogical is more than Linux and Windows accept; it bounds a chain made to be endless.
const maxLogical = 256

func readMBR(d device.Device, mbr []byte, slots []slot, sector int64) Table {
	t := Table{Kind: "dos", UUID: fmt.Sprintf("%08x", le.Uint32(mbr[440:])), Sector: sector}
	add := func(n int, s slot, base int64) {
		off, size := (base+s.start)*sector, s.count*sector
		if off >= d.Size() {
			t.Notes = append(t.Notes, fmt.Sprintf("partition %d starts beyond the end of the disk", n))
			return
		}
		if off+size > d.Size() {
			t.Notes = append(t.Notes, fmt.Sprintf("partition %d reaches beyond the end of the disk", n))
			size = d.Size() - off
		}
		t.Entries = append(t.Entries, Entry{
			Number: n, Off: off, Len: size, Type: fmt.Sprintf("%02x", s.typ), UUID: fmt.Sprintf("%s-%02x", t.UUID, n),
		})
	}
	for i, s := range slots {
		if s.typ != 0 && s.count != 0 && !extended(s.typ) {
			add(i+1, s, 0)
		}
	}
	for _, s := range slots {
		if extended(s.typ) && s.count != 0 {
			t.logical(d, s.start, add)
			break // a second extended partition is not followed by any system
		}
	}
	return t
}

// logical follows the chain of EBRs. A logical partition counts from its own EBR, the next EBR from the start of
// the extended partition.
func (t *Table) logical(d device.Device, base int64, add func(int, slot, int64)) {
	seen := map[int64]bool{}
	for at, n := base, 5; ; {
		if seen[at] || len(seen) >= maxLogical {
			t.Notes = append(t.Notes, "the chain of logical partitions has a loop")
			return
		}
		seen[at] = true
		b := make([]byte, 512)
		if err := get(d, b, at*t.Sector); err != nil {
			t.Notes = append(t.Notes, "the chain of logical partitions leaves the disk")
			return
		}
		slots, ok := parseMBR(b)
		if !ok {
			t.Notes = append(t.Notes, fmt.Sprintf("the chain of logical partitions breaks at sector %d", at))
			return
		}
		next := int64(-1)
		for _, s := range slots {
			switch {
			case s.typ == 0 || s.count == 0:
			case extended(s.typ):
				if next < 0 {
					next = base + s.start
				}
			default:
				add(n, s, at)
				n++
			}
		}
		if next < 0 {
			return
		}
		at = next
	}
}

// GPT header, in sector 1 and again in the last sector of the disk:
//
//	0          8     12    16     20  24   32     40     48    56         72       80      84      88
//	+----------+-----+-----+------+---+----+------+------+-----+----------+--------+-------+-------+-----------+
//	| EFI PART | rev | len | crc  | 0 | me | twin | first| last| disk GUID| entries| count | size  | array crc |
//	+----------+-----+-----+------+---+----+------+------+-----+----------+--------+-------+-------+-----------+
//
// entry: type GUID(16) own GUID(16) first(8) last(8, inclusive) flags(8) name(72, UTF-16LE)
func readGPT(d device.Device, sector int64) (Table, error) {
	sizes := []int64{512, 4096}
	if sector != 0 {
		sizes = []int64{sector}
	}
	var why error
	for _, s := range sizes {
		t, err := gptAt(d, s, s)
		if err == nil {
			return t, nil
		}
		if why == nil || !errors.Is(err, errNoHeader) {
			why = err
		}
	}
	for _, s := range sizes {
		if t, err := gptAt(d, d.Size()/s*s-s, s); err == nil {
			t.Notes = append(t.Notes, fmt.Sprintf("the first GPT is unusable (%v), its copy at the end of the disk was used", why))
			return t, nil
		}
	}
	return Table{}, fmt.Errorf("GPT and its copy are unusable: %v; repair the table in the guest (gdisk), or restore the disk", why)
}

var errNoHeader = errors.New("no header")

// maxArray bounds the entry array: 128 entries of 128 bytes are usual.
const maxArray = 1 << 20

func gptAt(d device.Device, off, sector int64) (Table, error) {
	h := make([]byte, 512)
	if err := get(d, h, off); err != nil || string(h[:8]) != "EFI PART" {
		return Table{}, errNoHeader
	}
	n := le.Uint32(h[12:])
	if n < 92 || int64(n) > sector {
		return Table{}, fmt.Errorf("header of %d bytes", n)
	}
	full := make([]byte, n)
	if err := get(d, full, off); err != nil {
		return Table{}, err
	}
	sum := le.Uint32(full[16:])
	clear(full[16:20])
	if crc32.ChecksumIEEE(full) != sum {
		return Table{}, errors.New("header checksum mismatch")
	}
	count, size := int64(le.Uint32(h[80:])), int64(le.Uint32(h[84:]))
	if size < 128 || size%8 != 0 || size > maxArray || count > maxArray/size {
		return Table{}, fmt.Errorf("array of %d entries of %d bytes", count, size)
	}
	at := le.Uint64(h[72:])
	if at > uint64(d.Size()/sector) {
		return Table{}, fmt.Errorf("array at sector %d", at)
	}
	array := make([]byte, count*size)
	if err := get(d, array, int64(at)*sector); err != nil {
		return Table{}, err
	}
	if crc32.ChecksumIEEE(array) != le.Uint32(h[88:]) {
		return Table{}, errors.New("array checksum mismatch")
	}
	t := Table{Kind: "gpt", UUID: guid(h[56:]), Sector: sector}
	for i := range int(count) {
		e := array[int64(i)*size:]
		typ, first, last := guid(e), le.Uint64(e[32:]), le.Uint64(e[40:])
		if typ == "00000000-0000-0000-0000-000000000000" {
			continue
		}
		end := uint64(d.Size() / sector)
		if last < first || first >= end {
			t.Notes = append(t.Notes, fmt.Sprintf("partition %d lies beyond the end of the disk", i+1))
			continue
		}
		if last >= end {
			t.Notes = append(t.Notes, fmt.Sprintf("partition %d reaches beyond the end of the disk", i+1))
			last = end - 1
		}
		name := make([]uint16, 36)
		for k := range name {
			name[k] = le.Uint16(e[56+2*k:])
		}
		s, _, _ := strings.Cut(string(utf16.Decode(name)), "\x00")
		t.Entries = append(t.Entries, Entry{
			Number: i + 1, Off: int64(first) * sector, Len: int64(last-first+1) * sector, Type: typ, Name: s,
			UUID: strings.ToLower(guid(e[16:])),
		})
	}
	return t, nil
}

// guid prints a GUID in its mixed-endian form.
func guid(b []byte) string {
	return fmt.Sprintf("%08X-%04X-%04X-%X-%X", le.Uint32(b), le.Uint16(b[4:]), le.Uint16(b[6:]), b[8:10], b[10:16])
}

// get fills p or fails.
func get(d device.Device, p []byte, off int64) error {
	if off < 0 || off > d.Size()-int64(len(p)) {
		return fmt.Errorf("byte %d is outside the disk", off)
	}
	n, err := d.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	return err
}
