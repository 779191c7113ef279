// Package xfs reads XFS, versions 4 and 5.
//
// What is hidden: where inodes and extents lie (both are numbers in which the allocation group is the upper part),
// the five shapes of a directory and the four of attributes, and that a file system taken from a running machine
// keeps what happened lately only in its log: without replaying it even the root directory may look empty. The log
// is replayed into memory, over the volume.
//
// Terminology: a block is the file system's allocation unit; a group (AG) is a range of blocks of equal length;
// a basic block (bb) is 512 bytes, the unit of the log; a fork is one of the two things an inode can hold, data
// and attributes. All numbers on disk are big-endian, but for those in log items, which are in the order of the
// machine that wrote them: little-endian on everything VMware runs.
//
// Source of the format: "XFS Algorithms & Data Structures", 3rd edition (xfs-documentation of kernel.org).
package xfs

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"strings"

	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
)

var (
	le = binary.LittleEndian
	be = binary.BigEndian
)

// Features. Version 5 keeps them in words of their own, version 4 in the version and in features2.
const (
	version4Dir2  = 0x2000
	version4More  = 0x8000
	features2Type = 0x200

	incompatType     = 0x1
	incompatMetaUUID = 0x4
	incompatRepair   = 0x10

	// ftype, sparse inodes, metadata UUID, bigtime, needs-repair, nrext64, exchange-range, parent pointers, metadir
	incompatKnown = 0x1ff
)

// Format is XFS.
func Format() guestfs.Format {
	return guestfs.Format{
		Probe: probe,
		Open:  func(on []*guestfs.Source) (guestfs.Driver, error) { return open(on[0]) },
	}
}

func probe(src *guestfs.Source) (guestfs.Ident, error) {
	if src.Size() < superLen {
		return guestfs.Ident{}, guestfs.ErrUnknown
	}
	b, err := src.Meta(0, superLen)
	if err != nil {
		return guestfs.Ident{}, err
	}
	s, err := parseSuper(b)
	if err != nil {
		return guestfs.Ident{}, guestfs.ErrUnknown
	}
	return guestfs.Ident{Type: "xfs", Label: s.label, UUID: s.uuid}, nil
}

const superLen = 512

// super is what the superblock, at the start of the volume, tells.
type super struct {
	bs, inodeSize int64 // bytes
	dirBlock      int64 // bytes of a directory block
	blocks        uint64
	groupBlocks   uint32
	groups        uint32
	groupBits     uint // of a block within a group
	inodeBits     uint // of an inode within a block
	root          uint64
	logStart      uint64 // block; 0: the log is on another device
	logBlocks     uint32
	v5, ftype     bool
	incompat      uint32
	rawUUID       [2]string // of the file system; of its metadata, which may be an older one
	label, uuid   string
}

func parseSuper(b []byte) (super, error) {
	if string(b[:4]) != "XFSB" {
		return super{}, guestfs.Damaged("no superblock")
	}
	s := super{
		bs: int64(be.Uint32(b[4:])), blocks: be.Uint64(b[8:]), logStart: be.Uint64(b[48:]), root: be.Uint64(b[56:]),
		groupBlocks: be.Uint32(b[84:]), groups: be.Uint32(b[88:]), logBlocks: be.Uint32(b[96:]),
		inodeSize: int64(be.Uint16(b[104:])), inodeBits: uint(b[123]), groupBits: uint(b[124]),
		uuid: uuid(b[32:48]), rawUUID: [2]string{string(b[32:48]), string(b[32:48])},
	}
	s.label, _, _ = strings.Cut(string(b[108:120]), "\x00")
	version := be.Uint16(b[100:])
	switch version & 15 {
	case 4:
		if version&version4Dir2 == 0 {
			return super{}, fmt.Errorf("directories of version 1: %w", guestfs.ErrUnsupported)
		}
		s.ftype = version&version4More != 0 && be.Uint32(b[200:])&features2Type != 0
	case 5:
		s.v5, s.incompat = true, be.Uint32(b[216:])
		s.ftype = s.incompat&incompatType != 0
		if s.incompat&incompatMetaUUID != 0 {
			s.rawUUID[1] = string(b[248:264])
		}
	default:
		return super{}, fmt.Errorf("version %d: %w", version&15, guestfs.ErrUnsupported)
	}
	switch {
	case s.bs < 512 || s.bs > 64<<10 || s.bs&(s.bs-1) != 0:
		return super{}, guestfs.Damaged("blocks of %d bytes", s.bs)
	case b[192] > 7 || s.bs<<b[192] > 64<<10:
		return super{}, guestfs.Damaged("directory blocks of 2^%d blocks", b[192])
	case s.inodeSize < 256 || s.inodeSize > s.bs || s.inodeSize&(s.inodeSize-1) != 0 || s.inodeSize<<s.inodeBits != s.bs:
		return super{}, guestfs.Damaged("inodes of %d bytes", s.inodeSize)
	case s.groupBlocks == 0 || s.groups == 0 || s.blocks == 0 || s.blocks > 1<<52 || uint(bits.Len32(s.groupBlocks-1)) != s.groupBits:
		return super{}, guestfs.Damaged("%d groups of %d blocks (%d bits)", s.groups, s.groupBlocks, s.groupBits)
	}
	s.dirBlock = s.bs << b[192]
	return s, nil
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
	if d.incompat&incompatRepair != 0 {
		d.note(true, "the file system is marked as needing repair (xfs_repair in the guest)")
	}
	if d.logStart == 0 {
		d.note(true, "the log lies on another device and was not replayed: the last minutes before the point may be missing")
		return d, nil
	}
	over, err := d.replay()
	if err != nil {
		return nil, fmt.Errorf("log: %w; without it files would be wrong: restore or export the disk, and let the guest recover it", err)
	}
	if over.Len() > 0 {
		d.src = src.With(over)
		if err := d.readSuper(); err != nil {
			return nil, fmt.Errorf("after replaying the log: %w", err)
		}
	}
	return d, nil
}

func (d *driver) readSuper() error {
	b, err := d.src.Meta(0, superLen)
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
		Type: "xfs", Label: d.label, UUID: d.uuid, Size: int64(d.blocks) * d.bs, BlockSize: d.bs, Notes: d.notes,
	}
}

func (d *driver) Root() guestfs.ID { return guestfs.ID{File: d.root} }

// byteOf is where block n, counted with the group in its upper part, lies on the volume.
func (d *driver) byteOf(n uint64) (int64, error) {
	group, in := n>>d.groupBits, n&(1<<d.groupBits-1)
	if group >= uint64(d.groups) || in >= uint64(d.groupBlocks) {
		return 0, guestfs.Damaged("reference to block %d of group %d", in, group)
	}
	return (int64(group)*int64(d.groupBlocks) + int64(in)) * d.bs, nil
}

func uuid(b []byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16])
}
