// Package ldm assembles the volumes of Windows dynamic disks (Logical Disk Manager).
//
// What is hidden: the database that each disk of a group keeps, how volumes are made of components and those of
// partitions, and what does without a disk that is missing (a mirror).
//
// Terminology: a disk group is the disks that share a database; a volume has one component, or several when it is
// mirrored; a component is partitions, joined (simple and spanned volumes), striped, or striped with parity (RAID-5).
// A sector is 512 bytes, here always.
//
// Source: the Linux-NTFS project's LDM documentation (flatcap.github.io/linux-ntfs/ldm) and the kernel's
// Documentation/admin-guide/ldm.rst. All numbers of the format are big-endian.
package ldm

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/vddk/mount/device"
)

var be = binary.BigEndian

const sectorLen = 512

// Types of partitions that LDM makes on a disk: one over all of an MBR disk, two on a GPT disk.
const (
	typeMBR      = "42"
	typeMetadata = "5808C8AA-7E8F-42E0-85D2-E1E90434CFB3"
	typeData     = "AF9B60A0-1431-4F62-BC68-3311714A69AD"
)

// disk is a disk with a database.
type disk struct {
	dev    device.Device
	name   string
	id     string // GUID in lower case
	group  string
	base   int64 // bytes: where the area of partitions begins
	config []byte
}

// Assemble builds the volumes of all disk groups among the candidates.
func Assemble(candidates []device.Candidate) device.Assembly {
	out := device.Assembly{Members: map[int]string{}}
	groups := map[string][]*disk{}
	var order []string
	var whole device.Candidate
	seen := map[string]*disk{} // by GUID
	for i, c := range candidates {
		if c.Whole {
			whole = c
			continue
		}
		if c.Type != typeMBR && c.Type != typeMetadata && c.Type != typeData || whole.Dev == nil {
			continue
		}
		out.Members[i] = "LDM"
		if c.Type == typeData {
			continue
		}
		d, err := readDisk(whole, c)
		if err != nil {
			out.Problems = append(out.Problems, fmt.Sprintf("%s: dynamic disk: %v; restore the machine and look there", whole.Name, err))
			continue
		}
		if twin := seen[d.id]; twin != nil {
			if twin.name != d.name {
				out.Problems = append(out.Problems, fmt.Sprintf("%s and %s are the same dynamic disk (a copied disk?); the first is used", twin.name, d.name))
			}
			continue
		}
		seen[d.id] = d
		if groups[d.group] == nil {
			order = append(order, d.group)
		}
		groups[d.group] = append(groups[d.group], d)
	}
	for _, g := range order {
		assemble(groups[g], &out)
	}
	return out
}

// readDisk reads the private header, which is in sector 6 of an MBR disk and in the last sector of the metadata
// partition of a GPT disk:
//
//	0          8 ... 48        112 ... 176       240 ... 283      291       299       307      315
//	+----------+-----+---------+-------+---------+-------+--------+---------+---------+--------+
//	|"PRIVHEAD"|     |disk GUID|       |group    |       |first   |sectors  |config   |config  |
//	|          |     |text     |       |GUID text|       |sector  |for data |sector   |sectors |
//	+----------+-----+---------+-------+---------+-------+--------+---------+---------+--------+
func readDisk(whole, part device.Candidate) (*disk, error) {
	b := make([]byte, sectorLen)
	var err error
	if part.Type == typeMBR {
		_, err = whole.Dev.ReadAt(b, 6*sectorLen)
	} else {
		_, err = part.Dev.ReadAt(b, part.Dev.Size()-sectorLen)
	}
	if err != nil {
		return nil, err
	}
	if string(b[:8]) != "PRIVHEAD" {
		return nil, fmt.Errorf("it has no private header")
	}
	d := &disk{dev: whole.Dev, name: whole.Name, id: strings.ToLower(text(b[48:112])), group: strings.ToLower(text(b[176:240]))}
	base, at, n := be.Uint64(b[283:]), be.Uint64(b[299:]), be.Uint64(b[307:])
	sectors := uint64(whole.Dev.Size()) / sectorLen
	const maxConfig = 65536
	if base > sectors || at > sectors || n > sectors-at || n < 4 || n > maxConfig {
		return nil, fmt.Errorf("database of %d sectors at %d", n, at)
	}
	d.base = int64(base) * sectorLen
	d.config = make([]byte, n*sectorLen)
	if _, err := whole.Dev.ReadAt(d.config, int64(at)*sectorLen); err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	return d, nil
}

func text(b []byte) string {
	s, _, _ := bytes.Cut(b, []byte{0})
	return string(s)
}

// assemble builds the volumes of one group. Every disk has the whole database: the newest is used.
func assemble(disks []*disk, out *device.Assembly) {
	var db *database
	var why error
	for _, d := range disks {
		found, err := readDatabase(d.config)
		if err != nil {
			why = fmt.Errorf("%s: %w", d.name, err)
			continue
		}
		if db == nil || found.sequence > db.sequence {
			db = found
		}
	}
	if db == nil {
		out.Problems = append(out.Problems, fmt.Sprintf("dynamic disks: no database can be read: %v", why))
		return
	}
	have := map[uint64]*disk{}
	for id, guid := range db.disks {
		for _, d := range disks {
			if d.id == strings.ToLower(guid) {
				have[id] = d
			}
		}
	}
	for _, v := range db.volumes {
		dev, missing, err := db.build(v, have)
		name := "ldm/" + strings.ReplaceAll(v.name, "/", "_")
		for slices.ContainsFunc(out.Logicals, func(l device.Logical) bool { return l.Name == name }) {
			name += "'" // two groups from two machines may use the same names
		}
		if err != nil {
			out.Problems = append(out.Problems, fmt.Sprintf("%s: %v", name, err))
			continue
		}
		l := device.Logical{Dev: dev, Name: name, UUID: v.guid, Missing: missing}
		if v.letter != "" {
			l.Paths = []string{v.letter}
		}
		out.Logicals = append(out.Logicals, l)
	}
}

// build makes the device of a volume from its first component that is whole, else of one that is not.
func (db *database) build(v volume, have map[uint64]*disk) (device.Device, string, error) {
	var part device.Device
	var missing string
	err := fmt.Errorf("it has no component")
	for _, c := range db.components {
		if c.volume != v.id {
			continue
		}
		dev, lacks, e := db.component(v, c, have)
		if e != nil {
			err = e
			continue
		}
		if lacks == "" {
			return dev, "", nil
		}
		part, missing = dev, lacks
	}
	if part != nil {
		return part, missing, nil
	}
	return nil, "", err
}

// component makes the device of a component and names the disks it lacks.
func (db *database) component(v volume, c component, have map[uint64]*disk) (device.Device, string, error) {
	var ps []partition
	for _, p := range db.partitions {
		if p.component == c.id {
			ps = append(ps, p)
		}
	}
	if len(ps) == 0 {
		return nil, "", fmt.Errorf("component without partitions")
	}
	slices.SortFunc(ps, func(a, b partition) int {
		x, y := a.column, b.column
		if c.kind == kindJoined {
			x, y = a.off, b.off
		}
		if x < y {
			return -1
		}
		if x > y {
			return 1
		}
		return 0
	})
	var legs []device.Device
	var lacks []string
	for _, p := range ps {
		d := have[p.disk]
		if d == nil {
			name := db.names[p.disk]
			lacks = append(lacks, "dynamic disk "+name)
			legs = append(legs, device.Absent(p.size, name))
			continue
		}
		if p.start > d.dev.Size()-d.base-p.size {
			return nil, "", fmt.Errorf("partition of %d bytes at %d is outside of %s", p.size, p.start, d.name)
		}
		legs = append(legs, device.Slice(d.dev, extent.Extent{Off: d.base + p.start, Len: p.size}))
	}
	dev, err := c.join(v.size, ps, legs)
	return dev, strings.Join(lacks, ", "), err
}

// join lays size bytes over legs.
func (c component) join(size int64, ps []partition, legs []device.Device) (device.Device, error) {
	n := int64(len(legs))
	switch c.kind {
	case kindJoined:
		at := int64(0)
		for _, p := range ps {
			if p.off != at {
				return nil, fmt.Errorf("bytes %d to %d lie nowhere", at, p.off)
			}
			at += p.size
		}
		if at < size {
			return nil, fmt.Errorf("partitions of %d bytes for a volume of %d", at, size)
		}
		return device.Mapped(size, func(off int64) (device.Target, error) {
			k, _ := slices.BinarySearchFunc(ps, off, func(p partition, off int64) int {
				switch {
				case off < p.off:
					return 1
				case off >= p.off+p.size:
					return -1
				}
				return 0
			})
			return device.Target{Dev: legs[k], Off: off - ps[k].off, Len: ps[k].size - (off - ps[k].off)}, nil
		}), nil
	case kindStriped, kindParity:
		parity := int64(0)
		if c.kind == kindParity {
			parity = 1
		}
		data := n - parity
		if c.chunk < sectorLen || c.chunk > 1<<30 || data < 1 {
			return nil, fmt.Errorf("%d partitions in stripes of %d bytes", n, c.chunk)
		}
		rows := ((size+c.chunk-1)/c.chunk + data - 1) / data
		for _, l := range legs {
			if l.Size() < (rows-1)*c.chunk {
				return nil, fmt.Errorf("partition of %d bytes for %d stripes of %d", l.Size(), rows, c.chunk)
			}
		}
		return device.Mapped(size, func(off int64) (device.Target, error) {
			nr, in := off/c.chunk, off%c.chunk
			row, k := nr/data, nr%data
			if parity == 1 {
				// Left symmetric: parity moves to the left from the last, data begins behind it.
				k = (n - 1 - row%n + 1 + k) % n
			}
			return device.Target{Dev: legs[k], Off: row*c.chunk + in, Len: c.chunk - in}, nil
		}), nil
	}
	return nil, fmt.Errorf("component of kind %d is not read; restore the machine and look there", c.kind)
}
