// Package vmdk reads and writes VMware's virtual disk files.
//
// It hides the two things a VMDK is made of. A descriptor is a short text that says what a disk is and which files
// hold it; with flat extents those files hold the disk's bytes as they are, and the descriptor is all there is to the
// format (see [Descriptor]). A streamOptimized VMDK is one file that can be written and read as a stream, with the
// descriptor inside; it is the form that disks have in OVF packages (see [WriteStream] and [Reader]).
//
// Words: a sector is 512 bytes; a grain is the unit of a streamOptimized VMDK, 64 KiB of the disk; an extent here is a
// file that holds a part of the disk, as VMware's documents call it.
//
// Facts are from VMware, "Virtual Disk Format 5.0" (2011), a public technical note.
package vmdk

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// SectorSize is the unit of sizes and offsets in VMDK files, in bytes.
const SectorSize = 512

// ErrFormat is wrapped by errors about bytes that are not a VMDK, or not one that this package knows.
var ErrFormat = errors.New("not a VMDK this program understands")

// The values of Descriptor.Type.
const (
	TypeFlat   = "monolithicFlat"     // one flat extent
	TypeSplit  = "twoGbMaxExtentFlat" // several flat extents
	TypeStream = "streamOptimized"    // one compressed extent with the descriptor inside
)

// Descriptor says what a disk is.
type Descriptor struct {
	Type    string
	UUID    string // "6000c290-..." or in a descriptor's own spelling; empty: none
	Adapter string // "lsilogic", "buslogic", "ide"; empty: lsilogic
	Extents []Extent
}

// Extent is a file with a part of the disk.
type Extent struct {
	File string // relative to the descriptor, with slashes
	Size int64  // bytes of the disk, a multiple of SectorSize
}

// Size is the disk's capacity in bytes.
func (d Descriptor) Size() int64 {
	var n int64
	for _, e := range d.Extents {
		n += e.Size
	}
	return n
}

// Encode is the descriptor's text.
func (d Descriptor) Encode() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"%s\"\n\n# Extent description\n", d.Type)
	for _, e := range d.Extents {
		if d.Type == TypeStream {
			fmt.Fprintf(&b, "RW %d SPARSE \"%s\"\n", e.Size/SectorSize, e.File)
		} else {
			fmt.Fprintf(&b, "RW %d FLAT \"%s\" 0\n", e.Size/SectorSize, e.File)
		}
	}
	adapter, heads, sectors := d.Adapter, int64(255), int64(63)
	if adapter == "" {
		adapter = "lsilogic"
	}
	if adapter == "ide" {
		heads = 16
	}
	// Geometry is what old guests ask for: 255 heads and 63 sectors for SCSI, 16 and 63 with at most 16383 cylinders for IDE.
	cylinders := min(max(d.Size()/SectorSize/(heads*sectors), 1), 65535)
	if adapter == "ide" {
		cylinders = min(cylinders, 16383)
	}
	fmt.Fprintf(&b, "\n# The Disk Data Base\n#DDB\n\nddb.virtualHWVersion = \"13\"\nddb.geometry.cylinders = \"%d\"\nddb.geometry.heads = \"%d\"\nddb.geometry.sectors = \"%d\"\nddb.adapterType = \"%s\"\n",
		cylinders, heads, sectors, adapter)
	if d.UUID != "" {
		fmt.Fprintf(&b, "ddb.uuid = \"%s\"\n", spellUUID(d.UUID))
	}
	return b.Bytes()
}

// spellUUID spells a uuid as descriptors do: "60 00 c2 9f ...-...".
func spellUUID(uuid string) string {
	hex := strings.ReplaceAll(uuid, "-", "")
	if len(hex) != 32 || strings.ContainsAny(hex, " \"\n") {
		return strings.Map(func(r rune) rune {
			if r == '"' || r < ' ' {
				return -1
			}
			return r
		}, uuid)
	}
	var pairs []string
	for i := 0; i < len(hex); i += 2 {
		pairs = append(pairs, hex[i:i+2])
	}
	return strings.Join(pairs[:8], " ") + "-" + strings.Join(pairs[8:], " ")
}

// maxDescriptor bounds a descriptor in bytes: one line for each GiB of the largest disk is 5 MiB.
const maxDescriptor = 8 << 20

// ParseDescriptor reads a descriptor's text. It understands what Encode writes, and any descriptor of those types;
// lines it does not know are left alone. Errors wrap [ErrFormat].
func ParseDescriptor(text []byte) (Descriptor, error) {
	var d Descriptor
	if len(text) > maxDescriptor {
		return d, fmt.Errorf("descriptor of %d bytes: %w", len(text), ErrFormat)
	}
	lines := bufio.NewScanner(bytes.NewReader(bytes.TrimRight(text, "\x00")))
	lines.Buffer(nil, 1<<20)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if n == 1 && line != "# Disk DescriptorFile" {
			return d, fmt.Errorf("the text does not begin as descriptors do: %w", ErrFormat)
		}
		if strings.HasPrefix(line, "RW ") {
			e, err := parseExtent(line)
			if err != nil {
				return d, fmt.Errorf("line %d: %w", n, err)
			}
			if e.Size > maxSize-d.Size() {
				return d, fmt.Errorf("line %d: the disk is too large: %w", n, ErrFormat)
			}
			d.Extents = append(d.Extents, e)
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok || strings.HasPrefix(line, "#") {
			continue
		}
		value = strings.Trim(strings.TrimSpace(value), `"`)
		switch strings.TrimSpace(key) {
		case "createType":
			d.Type = value
		case "ddb.uuid":
			d.UUID = value
		case "ddb.adapterType":
			d.Adapter = value
		}
	}
	if err := lines.Err(); err != nil {
		return d, fmt.Errorf("descriptor: %v: %w", err, ErrFormat)
	}
	if d.Type == "" || len(d.Extents) == 0 {
		return d, fmt.Errorf("the descriptor names no type or no extent: %w", ErrFormat)
	}
	return d, nil
}

// maxSize is more than any disk has, 1 EiB, and keeps sums of sizes from overflowing.
const maxSize = 1 << 60

// parseExtent reads `RW 2097152 FLAT "disk-flat.vmdk" 0`.
func parseExtent(line string) (Extent, error) {
	head, rest, _ := strings.Cut(line, `"`)
	file, tail, ok := strings.Cut(rest, `"`)
	fields := strings.Fields(head)
	if !ok || len(fields) != 3 || fields[2] != "FLAT" && fields[2] != "SPARSE" {
		return Extent{}, fmt.Errorf("extent %q: %w", line, ErrFormat)
	}
	sectors, err := strconv.ParseInt(fields[1], 10, 64)
	if err != nil || sectors < 0 || sectors > maxSize/SectorSize {
		return Extent{}, fmt.Errorf("extent of %q sectors: %w", fields[1], ErrFormat)
	}
	if at := strings.TrimSpace(tail); at != "" && at != "0" {
		return Extent{}, fmt.Errorf("extent that begins in the middle of its file: %w", ErrFormat)
	}
	return Extent{File: file, Size: sectors * SectorSize}, nil
}
