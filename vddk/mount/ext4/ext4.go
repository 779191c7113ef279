// Package ext4 reads ext2, ext3 and ext4.
//
// What is hidden: the many layouts one superblock can announce (block maps or extent trees, three inode sizes,
// inline data, meta block groups, bigalloc, values in inodes of their own), and that a file system taken from a
// running machine is not what its blocks say: a journal that was not replayed is laid over the volume in memory,
// by reference to the journal's blocks, before anything else is read.
//
// Terminology: a block is the file system's allocation unit, 1 to 64 KiB, numbered from the start of the volume;
// an index addresses blocks within a file; a group is a run of blocks with its own inode table. Offsets are bytes.
//
// Source of the format: the kernel's Documentation/filesystems/ext4 (on-disk structures), which also names every
// field by the offset used here.
package ext4

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
)

var (
	le = binary.LittleEndian
	be = binary.BigEndian
)

// Compatible, incompatible and read-only-compatible features, as far as they change reading.
const (
	compatJournal = 0x4
	compatSparse2 = 0x200

	incompatFileType   = 0x2
	incompatRecover    = 0x4
	incompatJournalDev = 0x8
	incompatMetaBG     = 0x10
	incompat64         = 0x80
	incompatLargeDir   = 0x4000
	incompatCaseFold   = 0x20000

	// filetype, recover, meta_bg, extents, 64bit, mmp, flex_bg, ea_inode, csum_seed, largedir, inline_data,
	// encrypt, casefold. Missing on purpose: compression (never merged into Linux) and dirdata (Lustre).
	incompatKnown = 0x2 | 0x4 | 0x10 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x10000 | 0x20000

	roSparse = 0x1
	roExt3   = 0x7 // sparse_super, large_file, btree_dir: what ext2 and ext3 may have
)

// Format is ext2, ext3 and ext4.
func Format() guestfs.Format {
	return guestfs.Format{
		Probe: probe,
		Open:  func(on []*guestfs.Source) (guestfs.Driver, error) { return open(on[0]) },
	}
}

// The superblock is at byte 1024, whatever the block size.
const superOff, superLen = 1024, 1024

func probe(src *guestfs.Source) (guestfs.Ident, error) {
	if src.Size() < superOff+superLen {
		return guestfs.Ident{}, guestfs.ErrUnknown
	}
	b, err := src.Meta(superOff, superLen)
	if err != nil {
		return guestfs.Ident{}, err
	}
	s, err := parseSuper(b)
	if err != nil {
		return guestfs.Ident{}, guestfs.ErrUnknown
	}
	id := guestfs.Ident{Type: s.kind(), Label: s.label, UUID: s.uuid}
	if s.incompat&incompatJournalDev != 0 {
		id.Type, id.Advice = "jbd", "it is a journal of another volume and holds no files"
	}
	return id, nil
}

// super is what the superblock tells.
type super struct {
	bs                         int64 // bytes of a block
	blocks, first              uint64
	perGroup, inodesPerGroup   uint32
	inodes                     uint32
	inodeSize                  int64
	descSize                   int64
	compat, incompat, roCompat uint32
	firstMeta                  uint32 // descriptor blocks below it lie behind the superblock
	backups                    [2]uint32
	journal                    uint32 // inode, 0: none inside
	errors                     bool
	label, uuid                string
}

func parseSuper(b []byte) (super, error) {
	if le.Uint16(b[0x38:]) != 0xef53 {
		return super{}, guestfs.Damaged("no superblock")
	}
	shift := le.Uint32(b[0x18:])
	if shift > 6 {
		return super{}, guestfs.Damaged("block size 2^%d KiB", shift)
	}
	s := super{
		bs: 1024 << shift, blocks: uint64(le.Uint32(b[0x4:])), first: uint64(le.Uint32(b[0x14:])),
		perGroup: le.Uint32(b[0x20:]), inodesPerGroup: le.Uint32(b[0x28:]), inodes: le.Uint32(b),
		inodeSize: 128, descSize: 32,
		errors: le.Uint16(b[0x3a:])&2 != 0,
		label:  cstring(b[0x78:0x88]), uuid: uuid(b[0x68:0x78]),
	}
	if le.Uint32(b[0x4c:]) > 0 { // dynamic revision
		s.inodeSize = int64(le.Uint16(b[0x58:]))
		s.compat, s.incompat, s.roCompat = le.Uint32(b[0x5c:]), le.Uint32(b[0x60:]), le.Uint32(b[0x64:])
		s.journal = le.Uint32(b[0xe0:])
		s.firstMeta = le.Uint32(b[0x104:])
		s.backups = [2]uint32{le.Uint32(b[0x24c:]), le.Uint32(b[0x250:])}
	}
	if s.incompat&incompat64 != 0 {
		s.blocks |= uint64(le.Uint32(b[0x150:])) << 32
		s.descSize = int64(le.Uint16(b[0xfe:]))
	}
	if s.incompat&incompatJournalDev != 0 {
		return s, nil
	}
	switch {
	case s.perGroup == 0 || s.inodesPerGroup == 0 || s.inodes == 0:
		return super{}, guestfs.Damaged("empty block groups")
	case s.inodeSize < 128 || s.inodeSize > s.bs || s.inodeSize&(s.inodeSize-1) != 0:
		return super{}, guestfs.Damaged("inodes of %d bytes", s.inodeSize)
	case s.descSize < 32 || s.descSize > s.bs || s.descSize&(s.descSize-1) != 0:
		return super{}, guestfs.Damaged("group descriptors of %d bytes", s.descSize)
	case s.first >= s.blocks || s.blocks > 1<<48:
		return super{}, guestfs.Damaged("%d blocks from %d", s.blocks, s.first)
	}
	return s, nil
}

// kind tells ext2, ext3 and ext4 apart as blkid(8) does: by what ext3 could not have mounted.
func (s super) kind() string {
	const ext3 = incompatFileType | incompatRecover | incompatMetaBG
	switch {
	case s.roCompat&^roExt3 != 0 || s.incompat&^ext3 != 0:
		return "ext4"
	case s.compat&compatJournal != 0:
		return "ext3"
	}
	return "ext2"
}

// driver is an opened file system.
type driver struct {
	super
	src   *guestfs.Source
	notes []guestfs.Note
}

func open(src *guestfs.Source) (*driver, error) {
	d := &driver{src: src}
	if err := d.readSuper(); err != nil {
		return nil, err
	}
	if int64(d.blocks) > src.Size()/d.bs {
		d.note(true, "the file system is larger than its volume (%d blocks of %d bytes on %d bytes)", d.blocks, d.bs, src.Size())
	}
	if d.errors {
		d.note(true, "the guest's kernel recorded errors in this file system; it should be checked in the guest")
	}
	if d.compat&compatJournal == 0 || d.incompat&incompatRecover == 0 {
		return d, nil
	}
	if d.journal == 0 {
		d.note(true, "the journal lies on another device and was not replayed: the last seconds before the point may be missing")
		return d, nil
	}
	over, err := d.replay()
	if err != nil {
		return nil, fmt.Errorf("journal: %w; without it files would be wrong: restore or export the disk, and let the guest recover it", err)
	}
	if over.Len() > 0 {
		// What was journalled includes the superblock and the descriptors themselves.
		d.src = src.With(over)
		d.note(false, "the journal was replayed in memory (%d blocks changed)", over.Len())
		if err := d.readSuper(); err != nil {
			return nil, fmt.Errorf("after replaying the journal: %w", err)
		}
	}
	return d, nil
}

func (d *driver) readSuper() error {
	b, err := d.src.Meta(superOff, superLen)
	if err != nil {
		return err
	}
	if d.super, err = parseSuper(b); err != nil {
		return err
	}
	if u := d.incompat &^ incompatKnown; u != 0 {
		return fmt.Errorf("incompatible features %#x: %w; restore or export the disk instead", u, guestfs.ErrUnsupported)
	}
	return nil
}

func (d *driver) note(uncertain bool, format string, args ...any) {
	d.notes = append(d.notes, guestfs.Note{Uncertain: uncertain, Text: fmt.Sprintf(format, args...)})
}

func (d *driver) Info() guestfs.Info {
	return guestfs.Info{
		Type: d.kind(), Label: d.label, UUID: d.uuid, Size: int64(d.blocks) * d.bs, BlockSize: d.bs, Notes: d.notes,
		FoldCase: false, // casefold is a flag of single directories; an exact name is always found
	}
}

// Root is inode 2.
func (d *driver) Root() guestfs.ID { return guestfs.ID{File: 2} }

// block reads block n.
func (d *driver) block(n uint64) ([]byte, error) {
	if n == 0 || n >= d.blocks {
		return nil, guestfs.Damaged("reference to block %d of %d", n, d.blocks)
	}
	return d.src.Meta(int64(n)*d.bs, int(d.bs))
}

// table returns the offset of group g's inode table.
func (d *driver) table(g uint32) (int64, error) {
	per := uint32(d.bs / d.descSize)
	at := uint64(1024/d.bs) + 1 + uint64(g/per) // behind the superblock's block
	if d.incompat&incompatMetaBG != 0 && g/per >= d.firstMeta {
		// Each meta group of per groups keeps its one block of descriptors in its own first group.
		lead := g / per * per
		at = d.first + uint64(lead)*uint64(d.perGroup)
		if d.hasSuper(lead) {
			at++
		}
		if d.bs == 1024 && lead == 0 && d.first == 0 { // bigalloc: block 0 is counted though it holds no superblock
			at++
		}
	}
	desc := make([]byte, d.descSize)
	if err := d.src.ReadMeta(desc, int64(at)*d.bs+int64(g%per)*d.descSize); err != nil {
		return 0, err
	}
	n := uint64(le.Uint32(desc[0x8:]))
	if d.descSize >= 64 {
		n |= uint64(le.Uint32(desc[0x28:])) << 32
	}
	if n == 0 || n >= d.blocks {
		return 0, guestfs.Damaged("inode table of group %d in block %d", g, n)
	}
	return int64(n) * d.bs, nil
}

// hasSuper reports whether group g begins with a copy of the superblock.
func (d *driver) hasSuper(g uint32) bool {
	if g == 0 {
		return true
	}
	if d.compat&compatSparse2 != 0 {
		return g == d.backups[0] || g == d.backups[1]
	}
	if g == 1 || d.roCompat&roSparse == 0 {
		return true
	}
	for _, p := range []uint64{3, 5, 7} {
		n := p
		for n < uint64(g) {
			n *= p
		}
		if n == uint64(g) {
			return true
		}
	}
	return false
}

func cstring(b []byte) string {
	s, _, _ := strings.Cut(string(b), "\x00")
	return s
}

func uuid(b []byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16])
}
