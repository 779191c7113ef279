// Package mount opens the file systems inside a machine's disks, without the guest, a kernel or root: what
// VMware calls the Virtual Disk Mount API, for Linux and Windows guests.
//
//	disks -> partitions -> volume managers (LVM, ...) -> volumes -> file systems -> mount points
//
// [Open] takes all disks of a machine together, for volume groups and file systems span disks, and gives
// [Machine.Volumes]; [Volume.Open] gives a file system (package guestfs); [Machine.Systems] tells where the guest
// itself mounts which volume. What is hidden: how a volume is made of disks.
//
// A disk is any io.ReaderAt: a snapshot read over the network, a recovery point in the repository, a file. Its
// bytes are hostile input; so nothing here fails as a whole because of what a guest wrote: what cannot be read is
// named, with the reason and a remedy. Reading writes nothing, journals are replayed in memory.
//
// Below: guestfs (the contract), device (the stack of disks), part (partition tables), lvm and other volume
// managers, ext4, xfs and other formats, foreign (what is only named).
package mount

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"

	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/vddk/mount/device"
	"github.com/vmkeep/vmkeep/vddk/mount/foreign"
	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
	"github.com/vmkeep/vmkeep/vddk/mount/part"
)

// Disk is a disk of the machine. R serves at least aligned reads of whole 512-byte sectors, concurrently, and
// must stay open as long as anything of the machine is in use.
type Disk struct {
	Name   string // names of volumes start with it: "scsi0-0"
	R      io.ReaderAt
	Size   int64 // bytes
	Sector int64 // bytes of a logical sector when known, else 0
}

// Machine is the volumes of a machine's disks. It is immutable and safe for concurrent use.
type Machine struct {
	disks    []Disk
	volumes  []*Volume
	problems []Problem
}

// Problem is something that is there and cannot be used as it is.
type Problem struct {
	Where string // disk, partition or volume group
	Text  string // what is wrong, and what to do
}

// Volume is a place for one file system, or something with a name that cannot be read.
type Volume struct {
	// Name is unique in the machine: "scsi0-0" (a disk without partitions), "scsi0-0p1", "vg/root".
	Name string
	guestfs.Ident
	Size  int64      // bytes
	Table string     // kind of the partition table it is in: "gpt", "dos", or "" (a whole disk, a logical volume)
	Part  part.Entry // the partition; Number 0 when it is none
	// Paths are the device names the guest may know it by: "/dev/mapper/vg-root". Partitions have none:
	// the names of disks depend on the guest.
	Paths   []string
	Missing string // what part of it lies on disks not given; empty when it is complete

	disk    int    // number of the disk of a whole disk or partition, else -1
	logical string // UUID by which a volume manager knows a logical volume
	format  *guestfs.Format
	src     []*guestfs.Source
	once    sync.Once
	fs      *guestfs.FS
	err     error
}

// Machine-wide bounds on what hostile tables may make us look at.
const maxCandidates = 4096

// Open finds the volumes on the disks of a machine. It reads partition tables, labels and superblocks only, and
// it does not fail over what it finds: see [Machine.Problems].
func Open(disks []Disk) *Machine {
	m := &Machine{disks: disks}
	all := m.candidates()
	member := map[int]string{}
	var logical []device.Logical
	devs := make([]device.Candidate, len(all))
	for i, c := range all {
		devs[i] = c.Candidate
	}
	for _, manager := range managers() {
		a := assemble(manager, devs)
		logical = append(logical, a.Logicals...)
		for i, group := range a.Members {
			member[i] = group
		}
		for _, p := range a.Problems {
			m.problems = append(m.problems, Problem{Text: p})
		}
	}
	for i, c := range all {
		if _, used := member[i]; used || c.Parted {
			continue
		}
		v := &Volume{Name: c.Name, Size: c.Dev.Size(), Table: c.table, Part: c.entry, disk: c.disk}
		m.identify(v, c.Dev)
		if v.format == nil && v.Type == "" && c.Type == "" {
			continue // a blank disk
		}
		m.volumes = append(m.volumes, v)
	}
	for _, l := range logical {
		v := &Volume{Name: l.Name, Size: l.Dev.Size(), Paths: l.Paths, Missing: l.Missing, disk: -1, logical: l.UUID}
		m.identify(v, l.Dev)
		m.volumes = append(m.volumes, v)
	}
	m.join()
	return m
}

// Volumes are the volumes of the machine, by disk and partition, then logical ones.
func (m *Machine) Volumes() []*Volume { return m.volumes }

// Problems are what stands in the way of reading everything.
func (m *Machine) Problems() []Problem { return m.problems }

// Volume finds a volume by its name.
func (m *Machine) Volume(name string) (*Volume, bool) {
	for _, v := range m.volumes {
		if v.Name == name {
			return v, true
		}
	}
	return nil, false
}

type candidate struct {
	device.Candidate
	disk  int
	table string
	entry part.Entry
}

// candidates are the disks and their partitions.
func (m *Machine) candidates() []candidate {
	var out []candidate
	for n, d := range m.disks {
		dev := device.Disk(d.R, n, d.Size)
		if err := readable(d); err != nil {
			m.problems = append(m.problems, Problem{d.Name, "cannot be read: " + err.Error()})
			continue
		}
		whole := candidate{Candidate: device.Candidate{Dev: dev, Name: d.Name, Whole: true}, disk: n}
		t, err := m.table(dev, d.Sector)
		if err != nil {
			if !errors.Is(err, part.ErrNone) {
				m.problems = append(m.problems, Problem{d.Name, "partition table: " + err.Error()})
			}
			out = append(out, whole)
			continue
		}
		for _, note := range t.Notes {
			m.problems = append(m.problems, Problem{d.Name, note})
		}
		whole.Parted = true
		out = append(out, whole)
		for _, e := range t.Entries {
			if len(out) >= maxCandidates {
				m.problems = append(m.problems, Problem{d.Name, fmt.Sprintf("more than %d partitions, the rest is left out", maxCandidates)})
				break
			}
			out = append(out, candidate{
				Candidate: device.Candidate{
					Dev: device.Slice(dev, extent.Extent{Off: e.Off, Len: e.Len}), Name: d.Name + "p" + strconv.Itoa(e.Number), Type: e.Type,
				},
				disk: n, table: t.Kind, entry: e,
			})
		}
	}
	return out
}

// readable reads a disk's first sector: a disk that fails must not look like a blank one.
func readable(d Disk) error {
	if n, err := d.R.ReadAt(make([]byte, min(512, d.Size)), 0); err != nil && int64(n) < min(512, d.Size) {
		return err
	}
	return nil
}

// table reads the partition table of a disk. An MBR does not say what its sectors are: when nothing is
// recognised where 512-byte sectors lead and something is with 4096, the disk has those (4Kn).
func (m *Machine) table(dev device.Device, sector int64) (part.Table, error) {
	t, err := part.Read(dev, sector)
	if err != nil || sector != 0 || t.Kind != "dos" || m.known(dev, t) {
		return t, err
	}
	if big, err := part.Read(dev, 4096); err == nil && big.Kind == "dos" && m.known(dev, big) {
		return big, nil
	}
	return t, nil
}

// known reports whether any partition of the table begins with something recognised.
func (m *Machine) known(dev device.Device, t part.Table) bool {
	for _, e := range t.Entries {
		if id, _ := probe(guestfs.NewSource(device.Slice(dev, extent.Extent{Off: e.Off, Len: e.Len}))); id.Type != "" {
			return true
		}
	}
	return false
}

// identify finds out what is on a volume.
func (m *Machine) identify(v *Volume, dev device.Device) {
	src := guestfs.NewSource(dev)
	v.Ident, v.format = probe(src)
	if v.format == nil {
		v.Ident, _ = foreign.ByPartition(v.Part.Type)
	}
	v.src = []*guestfs.Source{src}
}

// probe tells what src holds; the zero Ident when nothing is recognised.
func probe(src *guestfs.Source) (guestfs.Ident, *guestfs.Format) {
	for _, f := range formats() {
		id, err := guestfs.Probe(f, src)
		if err == nil {
			return id, &f
		}
	}
	return guestfs.Ident{}, nil
}

// assemble runs a manager, whose panics over hostile bytes are a problem and no more.
func assemble(manager device.Manager, devs []device.Candidate) (a device.Assembly) {
	defer func() {
		if r := recover(); r != nil {
			a = device.Assembly{Problems: []string{fmt.Sprintf("volume manager: damaged metadata: %v", r)}}
		}
	}()
	return manager(devs)
}

// join makes one volume of the devices of a file system that spans several: the first of them stands for all.
func (m *Machine) join() {
	type key struct{ typ, set string }
	first := map[key]*Volume{}
	var out []*Volume
	for _, v := range m.volumes {
		k := key{v.Type, v.Set}
		if v.Set == "" || v.Advice != "" {
			out = append(out, v)
			continue
		}
		if f := first[k]; f != nil {
			f.src = append(f.src, v.src...)
			f.Size += v.Size
			continue
		}
		first[k] = v
		out = append(out, v)
	}
	for _, v := range first {
		if len(v.src) < v.Members {
			v.Missing = fmt.Sprintf("%d of %d devices of the file system", v.Members-len(v.src), v.Members)
		}
	}
	m.volumes = out
}

// Readable reports whether the volume holds a file system that Open can open.
func (v *Volume) Readable() bool { return v.format != nil && v.format.Open != nil }

// Open opens the file system, once; later calls give the same. What cannot be opened fails with an error that
// says what to do instead.
func (v *Volume) Open() (*guestfs.FS, error) {
	v.once.Do(func() {
		switch {
		case v.format == nil && v.Missing != "":
			v.err = fmt.Errorf("volume %s is incomplete: %s: %w", v.Name, v.Missing, device.ErrMissing)
		case v.format == nil && v.Type == "":
			v.err = fmt.Errorf("volume %s: %w: restore or export the disk instead", v.Name, guestfs.ErrUnknown)
		case v.Advice != "":
			v.err = fmt.Errorf("volume %s holds %s: %w: %s", v.Name, v.Type, guestfs.ErrUnsupported, v.Advice)
		default:
			if v.fs, v.err = guestfs.Open(*v.format, v.src); v.err != nil {
				v.err = fmt.Errorf("volume %s (%s): %w", v.Name, v.Type, v.err)
				if v.Missing != "" {
					v.err = fmt.Errorf("%w (missing: %s; open all disks of the machine together)", v.err, v.Missing)
				}
			}
		}
	})
	return v.fs, v.err
}

// Located turns the runs of a file into extents per disk, by the disk's number: what changed-block tracking is
// compared with. Runs kept as zeros have none.
func Located(fs *guestfs.FS, runs []guestfs.Run) (map[int]extent.Set, error) {
	per := map[int][]extent.Extent{}
	for _, r := range runs {
		if r.Kind == guestfs.Zero {
			continue
		}
		err := fs.Locate(r.Disk, func(p device.Piece) bool {
			if p.Disk != device.Zeros {
				per[p.Disk] = append(per[p.Disk], extent.Extent{Off: p.Off, Len: p.Len})
			}
			return true
		})
		if err != nil {
			return nil, err
		}
	}
	out := make(map[int]extent.Set, len(per))
	for n, es := range per {
		out[n] = extent.Of(es...)
	}
	return out, nil
}
