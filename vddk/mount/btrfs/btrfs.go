// Package btrfs reads Btrfs, on one or several devices.
//
// What is hidden: that all addresses are logical and lie, by chunks, in stripes and copies on several devices; that
// every tree block and most data carry checksums, so that a copy that went bad or stale is told from a good one; and
// that content may be compressed, shared, or within a tree.
//
// Terminology: a logical address counts bytes of a space that chunks map to devices; a stripe is a chunk's place on a
// device; a tree is a B-tree of items sorted by key (object, type, offset); a leaf holds items, a node leads to
// others; a subvolume is a tree of files. A guestfs ID is subvolume and inode; the root is that of the top-level
// subvolume (5), whatever the guest mounts.
//
// The log tree, which holds what was fsynced in the last seconds before the point, is not read: a note tells.
//
// Source: the Btrfs documentation, "On-disk format" (btrfs.readthedocs.io), and the kernel's uapi header btrfs_tree.h.
package btrfs

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"sync"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/crypto/blake2b"

	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
)

var le = binary.LittleEndian

const (
	superOff = 64 << 10
	superLen = 4096
	magic    = "_BHRfS_M"
)

// Incompatible features: all up to raid1c34 (bit 11) and simple quotas are read as they are. Missing on purpose are
// zoned devices (bit 12), extent tree v2 (13) and the stripe tree (14), which place things otherwise.
const (
	incompatKnown  = 1<<12 - 1 | 1<<16
	incompatStripe = 1 << 14
	incompatZoned  = 1 << 12
)

// Format is Btrfs.
func Format() guestfs.Format {
	return guestfs.Format{
		Probe: probe,
		Open:  func(on []*guestfs.Source) (guestfs.Driver, error) { return open(on) },
	}
}

func probe(src *guestfs.Source) (guestfs.Ident, error) {
	s, err := readSuper(src)
	if err != nil {
		return guestfs.Ident{}, guestfs.ErrUnknown
	}
	id := guestfs.Ident{Type: "btrfs", Label: s.label, UUID: s.uuid()}
	if s.devices > 1 {
		id.Set, id.Members = id.UUID, int(min(s.devices, 1<<16))
	}
	return id, nil
}

// super is what a superblock tells, of which each device has its own:
//
//	0     32    48    56    64    72    80    88    96    ... 136     144    148  ... 160   188      196   201      299    811
//	+-----+-----+-----+-----+-----+-----+-----+-----+-----+-----+-------+------+----+---+-----+--------+-----+--------+------+-------+
//	| sum |fsid |place|flags|magic|gen. |root |chunk|log  |     |devices|sector|node|   |chunk|incompat|sum  |device  |label |system |
//	|     |     |     |     |     |     |tree |tree |tree |     |       |size  |size|   |bytes|        |type |id, ... |      |chunks |
//	+-----+-----+-----+-----+-----+-----+-----+-----+-----+-----+-------+------+----+---+-----+--------+-----+--------+------+-------+
type super struct {
	fsid                   [16]byte
	generation, chunkGen   uint64
	root, chunkRoot, log   uint64
	total, devices, device uint64
	sector, node           int
	incompat               uint64
	sumType                uint16
	rootLevel, chunkLevel  byte
	label                  string
	systemChunks           []byte
}

func (s *super) uuid() string {
	b := s.fsid
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

func readSuper(src *guestfs.Source) (*super, error) {
	if src.Size() < superOff+superLen {
		return nil, guestfs.Damaged("no room for a superblock")
	}
	b, err := src.Meta(superOff, superLen)
	if err != nil {
		return nil, err
	}
	if string(b[64:72]) != magic {
		return nil, guestfs.Damaged("no superblock")
	}
	s := &super{
		generation: le.Uint64(b[72:]), root: le.Uint64(b[80:]), chunkRoot: le.Uint64(b[88:]), log: le.Uint64(b[96:]),
		total: le.Uint64(b[112:]), devices: le.Uint64(b[136:]), sector: int(le.Uint32(b[144:])), node: int(le.Uint32(b[148:])),
		chunkGen: le.Uint64(b[164:]), incompat: le.Uint64(b[188:]), sumType: le.Uint16(b[196:]),
		rootLevel: b[198], chunkLevel: b[199], device: le.Uint64(b[201:]),
	}
	copy(s.fsid[:], b[32:])
	label, _, _ := bytes.Cut(b[299:299+256], []byte{0})
	s.label = string(label)
	n := int(le.Uint32(b[160:]))
	switch {
	case n > 2048:
		return nil, guestfs.Damaged("%d bytes of system chunks", n)
	case s.sector < 4096 || s.sector > 64<<10 || s.sector&(s.sector-1) != 0 || s.node < s.sector || s.node > 64<<10 || s.node&(s.node-1) != 0:
		return nil, guestfs.Damaged("sectors of %d bytes, tree blocks of %d", s.sector, s.node)
	}
	s.systemChunks = b[811 : 811+n]
	if !s.sumOK(b[:32], b[32:]) {
		return nil, guestfs.Damaged("checksum of the superblock")
	}
	return s, nil
}

// sumLen is the bytes of a checksum in the checksum tree.
func (s *super) sumLen() int { return map[uint16]int{0: 4, 1: 8, 2: 32, 3: 32}[s.sumType] }

// sum appends the checksum of b: CRC-32C, xxHash64, SHA-256 or BLAKE2b-256.
func (s *super) sum(to, b []byte) []byte {
	switch s.sumType {
	case 0:
		return le.AppendUint32(to, crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	case 1:
		return le.AppendUint64(to, xxhash.Sum64(b))
	case 2:
		h := sha256.Sum256(b)
		return append(to, h[:]...)
	case 3:
		h := blake2b.Sum256(b)
		return append(to, h[:]...)
	}
	return to
}

func (s *super) sumOK(want, b []byte) bool {
	n := s.sumLen()
	return n > 0 && bytes.Equal(s.sum(nil, b), want[:n])
}

// driver is an opened file system.
type driver struct {
	*super
	devs     map[uint64]*guestfs.Source
	chunks   []chunk // by logical address
	blocks   *blocks
	trees    trees
	sums     tree      // checksums of data; zero: none
	decoders sync.Pool // *zstd.Decoder
	notes    []guestfs.Note
}

// open takes the devices of a file system in any order. Some may be missing: what lies on them only cannot be read.
func open(on []*guestfs.Source) (*driver, error) {
	d := &driver{devs: map[uint64]*guestfs.Source{}, blocks: newBlocks()}
	for _, src := range on {
		s, err := readSuper(src)
		if err != nil {
			return nil, err
		}
		if d.super != nil && d.fsid != s.fsid {
			return nil, guestfs.Damaged("a device belongs to file system %s, not %s", s.uuid(), d.uuid())
		}
		d.devs[s.device] = src
		if d.super == nil || s.generation > d.generation {
			d.super = s
		}
	}
	if u := d.incompat &^ incompatKnown; u != 0 {
		what := fmt.Sprintf("features %#x", u)
		if u&(incompatStripe|incompatZoned) != 0 {
			what += " (zoned, or with a stripe tree)"
		}
		return nil, fmt.Errorf("%s: %w; restore or export the disk instead", what, guestfs.ErrUnsupported)
	}
	for _, src := range on {
		if s, err := readSuper(src); err == nil && s.generation != d.generation {
			d.note(false, "device %d is older (generation %d of %d): what changed since is read from the others",
				s.device, s.generation, d.generation)
		}
	}
	if n := uint64(len(d.devs)); n < d.devices {
		d.note(false, "%d of %d devices are missing: files are read as far as copies of them are there", d.devices-n, d.devices)
	}
	if err := d.readChunks(); err != nil {
		return nil, fmt.Errorf("chunk tree: %w", err)
	}
	root := tree{at: d.root, gen: d.generation, level: d.rootLevel}
	d.trees = trees{root: root, known: map[uint64]tree{}}
	if _, err := d.tree(treeTop); err != nil {
		return nil, err
	}
	var err error
	if d.sums, err = d.tree(treeSums); err != nil {
		d.note(true, "the checksums of data cannot be read (%v): content is not verified", err)
	}
	if d.log != 0 {
		d.note(true, "the file system was in use when the point was taken: what programs forced to disk (fsync) in the last "+
			"30 seconds before may be in the log tree only, which is not replayed; everything else is as of the last commit")
	}
	return d, nil
}

func (d *driver) note(uncertain bool, format string, args ...any) {
	d.notes = append(d.notes, guestfs.Note{Uncertain: uncertain, Text: fmt.Sprintf(format, args...)})
}

func (d *driver) Info() guestfs.Info {
	return guestfs.Info{
		Type: "btrfs", Label: d.label, UUID: d.uuid(), Size: int64(min(d.total, 1<<62)), BlockSize: int64(d.sector), Notes: d.notes,
	}
}

func (d *driver) Root() guestfs.ID { return guestfs.ID{Tree: treeTop, File: firstInode} }
