package engine

import (
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/vmkeep/vmkeep/repo/restic"
	"github.com/vmkeep/vmkeep/vddk/vmdk"
)

// How a point lies in the repository (DESIGN section 3):
//
//	/<machine>/vm.json                   manifest
//	/<machine>/<machine>.vmx, .nvram     as the datastore gives them
//	/<machine>/scsi0-0.vmdk              descriptor of a disk
//	/<machine>/scsi0-0/0000/flat.vmdk    part 0 of that disk
//	/<machine>/files/...                 guest files, where they were asked for
//
// Offsets. A disk offset counts from the start of the disk, a part offset from the start of its part;
// disk offset = part number * PartSize + part offset. Chunks never cross a part.

// PartSize is the size in bytes of every part of a disk but the last.
//
// One restic file lists all its blobs in one tree blob, 67 bytes of JSON each. 1 GiB keeps that list near
// 50 KB, lets an unchanged part repeat its tree's ID, and gives parallel work a unit (DESIGN section 3).
const PartSize = 1 << 30

const (
	manifestName = "vm.json"
	partFile     = "flat.vmdk"
	filesDir     = "files"
)

// partCount is the number of parts of a disk of size bytes.
func partCount(size int64) int { return int((size + PartSize - 1) / PartSize) }

// partLen is the length in bytes of part n of a disk of size bytes.
func partLen(size int64, n int) int64 { return min(PartSize, size-int64(n)*PartSize) }

func partName(n int) string { return fmt.Sprintf("%04d", n) }

// parsePart is the reverse of partName.
func parsePart(name string) (int, error) {
	n, err := strconv.Atoi(name)
	if err != nil || n < 0 || partName(n) != name {
		return 0, fmt.Errorf("%q is not the name of a part", name)
	}
	return n, nil
}

// safeName is a machine's name as a directory: never a path, never empty.
func safeName(machine string) string {
	name := strings.Map(func(r rune) rune {
		if r == '/' || r == '\\' || r < 0x20 || r == 0x7f {
			return '_'
		}
		return r
	}, machine)
	if name == "" || name == "." || name == ".." {
		name = "_" + name
	}
	return name
}

// epoch is the time of every node inside a part's tree: a constant, or nothing would deduplicate.
func epoch() time.Time { return time.Unix(0, 0).UTC() }

func dirNode(name string, tree restic.ID, at time.Time) restic.Node {
	return restic.Node{Name: name, Type: restic.DirNode, Mode: fs.ModeDir | 0o755, Subtree: &tree,
		ModTime: at, AccessTime: at, ChangeTime: at}
}

func fileNode(name string, content []restic.ID, size int64, at time.Time) restic.Node {
	if content == nil {
		content = []restic.ID{}
	}
	return restic.Node{Name: name, Type: restic.FileNode, Mode: 0o644, Size: uint64(size), Content: content, Links: 1,
		ModTime: at, AccessTime: at, ChangeTime: at}
}

// descriptor is the VMDK descriptor that makes one disk of the parts, for qemu-img and everything else that
// knows createType twoGbMaxExtentFlat (VMware, "Virtual Disk Format 1.1"): one FLAT extent per part.
func descriptor(disk string, size int64, uuid string) []byte {
	d := vmdk.Descriptor{Type: vmdk.TypeSplit, UUID: uuid}
	for n := range partCount(size) {
		d.Extents = append(d.Extents, vmdk.Extent{File: path.Join(disk, partName(n), partFile), Size: partLen(size, n)})
	}
	return d.Encode()
}
