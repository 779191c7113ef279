// Package foreign names what lies on a volume and cannot be read: encryption, software RAID, volume managers and file
// systems without a reader. What is hidden: how each is known. Every name comes with what to do instead.
//
// Source of the magic numbers: libblkid's documentation of its probes, cryptsetup's on-disk formats, and the
// Microsoft open specifications; checked against volumes made by the tools that Debian has.
package foreign

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
)

var (
	le = binary.LittleEndian
	be = binary.BigEndian
)

const (
	adviceRestore   = "restore the machine or the disk instead, and read the files there"
	adviceEncrypted = "its content can only be read with the key, inside the guest: " + adviceRestore
	adviceRAID      = "software RAID is not assembled: " + adviceRestore
)

type prober func(*guestfs.Source) (guestfs.Ident, bool)

// Containers are what hides a file system in it, some with that file system's superblock still at its place: they
// are looked for before file systems.
func Containers() []guestfs.Format { return formats(luks, bitlocker, refs, mdraid, bcache, container) }

// Rest is what mkfs may have left behind of an earlier use: looked for after file systems.
func Rest() []guestfs.Format { return formats(fileSystem, zfs, swap) }

func formats(probers ...prober) []guestfs.Format {
	var out []guestfs.Format
	for _, p := range probers {
		out = append(out, guestfs.Format{Probe: func(src *guestfs.Source) (guestfs.Ident, error) {
			if id, ok := p(src); ok {
				return id, nil
			}
			return guestfs.Ident{}, guestfs.ErrUnknown
		}})
	}
	return out
}

// at is n bytes at off, or nil where the volume is shorter or unreadable. Negative offsets count from its end.
func at(src *guestfs.Source, off int64, n int) []byte {
	if off < 0 {
		off += src.Size()
	}
	b, err := src.Meta(off, n)
	if err != nil {
		return nil
	}
	return b
}

func text(b []byte) string {
	s, _, _ := bytes.Cut(b, []byte{0})
	return string(s)
}

func uuid(b []byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

// luks: magic(6) version(2, big-endian); label at 24 in version 2; UUID as text at 168.
func luks(src *guestfs.Source) (guestfs.Ident, bool) {
	b := at(src, 0, 512)
	if b == nil || string(b[:6]) != "LUKS\xba\xbe" {
		return guestfs.Ident{}, false
	}
	id := guestfs.Ident{Type: "crypto_LUKS", UUID: text(b[168:208]), Advice: adviceEncrypted}
	if be.Uint16(b[6:]) == 2 {
		id.Label = text(b[24:72])
	}
	return id, true
}

// bitlocker: "-FVE-FS-" in place of the file system's name, or a FAT boot sector with BitLocker To Go's GUID.
func bitlocker(src *guestfs.Source) (guestfs.Ident, bool) {
	b := at(src, 0, 512)
	toGo := []byte{0x3b, 0xd6, 0x67, 0x49, 0x29, 0x2e, 0xd8, 0x4a, 0x83, 0x99, 0xf6, 0xa3, 0x39, 0xe3, 0xd0, 0x01}
	if b == nil || string(b[3:11]) != "-FVE-FS-" && !(string(b[3:11]) == "MSWIN4.1" && bytes.Equal(b[424:440], toGo)) {
		return guestfs.Ident{}, false
	}
	return guestfs.Ident{Type: "BitLocker", Advice: adviceEncrypted}, true
}

func refs(src *guestfs.Source) (guestfs.Ident, bool) {
	b := at(src, 0, 512)
	if b == nil || string(b[3:11]) != "ReFS\x00\x00\x00\x00" {
		return guestfs.Ident{}, false
	}
	return guestfs.Ident{Type: "ReFS", UUID: fmt.Sprintf("%016X", le.Uint64(b[56:])), Advice: adviceRestore}, true
}

// mdraid: versions 1.1 and 1.2 at 0 and 4 KiB, 1.0 and 0.90 near the end, where the file system's own superblock
// stays visible at its place.
func mdraid(src *guestfs.Source) (guestfs.Ident, bool) {
	const magic = 0xa92b4efc
	one := func(off int64) (guestfs.Ident, bool) {
		b := at(src, off, 256)
		if b == nil || le.Uint32(b) != magic || le.Uint32(b[4:]) != 1 || int64(le.Uint64(b[144:]))*512 != off {
			return guestfs.Ident{}, false
		}
		return guestfs.Ident{Type: "linux_raid_member", UUID: uuid(b[16:]), Label: text(b[32:64]), Advice: adviceRAID}, true
	}
	offs := []int64{0, 4096}
	if sectors := src.Size() / 512; sectors > 16 {
		offs = append(offs, (sectors-16)&^7*512)
	}
	for _, off := range offs {
		if id, ok := one(off); ok {
			return id, true
		}
	}
	if old := src.Size()&^(64<<10-1) - 64<<10; old > 0 {
		if b := at(src, old, 64); b != nil && le.Uint32(b) == magic && le.Uint32(b[4:]) == 0 {
			return guestfs.Ident{Type: "linux_raid_member", Advice: adviceRAID}, true
		}
	}
	return guestfs.Ident{}, false
}

// bcache: superblock at 4 KiB, magic at 24 in it, UUID at 40, label at 72.
func bcache(src *guestfs.Source) (guestfs.Ident, bool) {
	b := at(src, 4096, 512)
	if b == nil || !bytes.Equal(b[24:40], []byte{0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba, 0x6d, 0x81}) {
		return guestfs.Ident{}, false
	}
	return guestfs.Ident{
		Type: "bcache", UUID: uuid(b[40:]), Label: text(b[72:104]),
		Advice: "its cache may hold data that is not yet on the volume: " + adviceRestore,
	}, true
}

// mark is a string at one place.
type mark struct {
	off  int64
	want string
	typ  string
}

func marked(src *guestfs.Source, marks []mark) (guestfs.Ident, bool) {
	for _, m := range marks {
		if b := at(src, m.off, len(m.want)); b != nil && string(b) == m.want {
			return guestfs.Ident{Type: m.typ, Advice: adviceRestore}, true
		}
	}
	return guestfs.Ident{}, false
}

func container(src *guestfs.Source) (guestfs.Ident, bool) {
	const stratis = "!Stra0tis\x86\xff\x02^\x41rh"
	return marked(src, []mark{
		{0, "dmvdo001", "vdo"},
		{512 + 4, stratis, "stratis"}, {9*512 + 4, stratis, "stratis"},
		{1 << 20, "\x0d\xd0\x01\xc0", "VMFS_volume_member"},
	})
}

func fileSystem(src *guestfs.Source) (guestfs.Ident, bool) {
	return marked(src, []mark{
		{0, "hsqs", "squashfs"},
		{1024, "\xe2\xe1\xf5\xe0", "erofs"},
		{1024, "\x10\x20\xf5\xf2", "f2fs"},
		{64<<10 + 52, "ReIsErFs", "reiserfs"}, {64<<10 + 52, "ReIsEr2Fs", "reiserfs"}, {64<<10 + 52, "ReIsEr3Fs", "reiserfs"},
		{32 << 10, "JFS1", "jfs"},
		{1024, "H+\x00\x04", "hfsplus"}, {1024, "HX\x00\x05", "hfsplus"},
		{32, "NXSB", "apfs"},
	})
}

// ByPartition names what the type of a partition promises, where nothing is recognised in it.
func ByPartition(typ string) (guestfs.Ident, bool) {
	id, ok := map[string]guestfs.Ident{
		"E75CAF8F-F680-4CEE-AFA3-B001E56EFC2D": {Type: "storage_spaces", Advice: "Storage Spaces are not assembled: " + adviceRestore},
		"E3C9E316-0B5C-4DB8-817D-F92DF00215AE": {Type: "microsoft_reserved", Advice: "it holds no files"},
		"21686148-6449-6E6F-744E-656564454649": {Type: "bios_boot", Advice: "it holds a boot loader and no files"},
		"AA31E02A-400F-11DB-9590-000C2911D1B8": {Type: "VMFS_volume_member", Advice: adviceRestore},
		"9D275380-40AD-11DB-BF97-000C2911D1B8": {Type: "vmkcore", Advice: "it holds no files"},
		"5808C8AA-7E8F-42E0-85D2-E1E90434CFB3": {Type: "ldm_metadata", Advice: "it describes dynamic disks and holds no files"},
		"AF9B60A0-1431-4F62-BC68-3311714A69AD": {Type: "ldm_data", Advice: "dynamic disk: " + adviceRestore},
		"42":                                   {Type: "ldm_data", Advice: "dynamic disk: " + adviceRestore},
	}[typ]
	return id, ok
}

// zfs: rings of 128 uberblocks from 128 KiB on in four labels; enough of them in the first must have the magic.
func zfs(src *guestfs.Source) (guestfs.Ident, bool) {
	const magic = 0x00bab10c
	found := 0
	for _, label := range []int64{0, 256 << 10, -512 << 10, -256 << 10} {
		if label < 0 {
			label = src.Size()&^(256<<10-1) + label
		}
		ring := at(src, label+128<<10, 128<<10)
		for off := 0; ring != nil && off < len(ring); off += 1024 {
			if v := le.Uint64(ring[off:]); v == magic || be.Uint64(ring[off:]) == magic {
				found++
			}
		}
	}
	if label := at(src, 16<<10, 112<<10); found < 4 || label == nil {
		return guestfs.Ident{}, false
	}
	return guestfs.Ident{Type: "zfs_member", Advice: adviceRestore}, true
}

// swap: the signature is at the end of the first page, whose size is the guest's.
func swap(src *guestfs.Source) (guestfs.Ident, bool) {
	for _, page := range []int64{4096, 8192, 16384, 65536} {
		b := at(src, page-10, 10)
		if b == nil || string(b) != "SWAPSPACE2" && string(b) != "SWAP-SPACE" && !strings.HasPrefix(string(b), "S1SUSPEND") {
			continue
		}
		id := guestfs.Ident{Type: "swap", Advice: "it is memory of the guest and holds no files"}
		if h := at(src, 1024, 44); h != nil {
			id.UUID, id.Label = uuid(h[12:]), text(h[28:44])
		}
		return id, true
	}
	return guestfs.Ident{}, false
}
