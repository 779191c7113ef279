package ldm

import (
	"encoding/hex"
	"fmt"
	"slices"
)

// database is what the disks of a group are told about each other.
type database struct {
	sequence   uint64
	volumes    []volume
	components []component
	partitions []partition
	disks      map[uint64]string // number -> GUID
	names      map[uint64]string // number -> name
}

type volume struct {
	id     uint64
	name   string
	size   int64  // bytes
	letter string // drive hint
	guid   string // 32 hex digits
}

// Kinds of components.
const (
	kindStriped = 1
	kindJoined  = 2
	kindParity  = 3
)

type component struct {
	id, volume uint64
	kind       byte
	chunk      int64 // bytes
}

type partition struct {
	component, disk  uint64
	start, off, size int64 // bytes: in the disk's data area, in the component
	column           int64
}

// readDatabase reads the configuration of a disk. Sectors 1 and 2 of it are two copies of a table of contents that
// tells where the database ("VMDB") is; that is followed by records of a fixed size ("VBLK"), several of which may make
// one object.
//
//	TOCBLOCK:  name 0x24, sector 0x2e(8), sectors 0x36(8)
//	VMDB:      "VMDB" last number(4) size of a VBLK(4) first VBLK(4) ... 0x75 committed sequence(8)
//	VBLK:      "VBLK" number(4) group(4) part(2) of parts(2) object ...
func readDatabase(config []byte) (*database, error) {
	toc := config[sectorLen:]
	if string(toc[:8]) != "TOCBLOCK" {
		if toc = config[2*sectorLen:]; string(toc[:8]) != "TOCBLOCK" {
			return nil, fmt.Errorf("it has no table of contents")
		}
	}
	at := be.Uint64(toc[0x2e:])
	if at >= uint64(len(config)/sectorLen) {
		return nil, fmt.Errorf("database at sector %d", at)
	}
	b := config[at*sectorLen:]
	if string(b[:4]) != "VMDB" {
		return nil, fmt.Errorf("it has no database")
	}
	size, first := int(be.Uint32(b[8:])), int(be.Uint32(b[12:]))
	if size < 64 || size > 4096 || first < 16 || first > len(b) {
		return nil, fmt.Errorf("objects of %d bytes from byte %d on", size, first)
	}
	db := &database{sequence: be.Uint64(b[0x75:]), disks: map[uint64]string{}, names: map[uint64]string{}}
	type object struct {
		parts [][]byte
		found int
	}
	objects := map[uint32]*object{}
	var order []uint32
	for p := first; p+size <= len(b); p += size {
		r := b[p : p+size]
		if string(r[:4]) != "VBLK" {
			continue
		}
		group, part, parts := be.Uint32(r[8:]), int(be.Uint16(r[12:])), int(be.Uint16(r[14:]))
		const maxParts = 64
		if parts == 0 || parts > maxParts || part >= parts {
			continue // not in use
		}
		o := objects[group]
		if o == nil {
			o = &object{parts: make([][]byte, parts)}
			objects[group] = o
			order = append(order, group)
		}
		if part < len(o.parts) && o.parts[part] == nil {
			o.parts[part] = r[16:]
			o.found++
		}
	}
	for _, group := range order {
		o := objects[group]
		if o.found == len(o.parts) {
			db.add(slices.Concat(o.parts...))
		}
	}
	slices.SortFunc(db.volumes, func(a, b volume) int {
		if a.name < b.name {
			return -1
		}
		if a.name > b.name {
			return 1
		}
		return 0
	})
	return db, nil
}

// reader takes fields of variable length from an object: a length(1) and a number or a text. It is spent when the
// object is too short.
type reader struct {
	b     []byte
	spent bool
}

func (r *reader) take(n int) []byte {
	if n > len(r.b) {
		r.b, r.spent = nil, true
		return make([]byte, n)
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) skip(n int) { r.take(n) }

func (r *reader) bytes() []byte { return r.take(int(r.take(1)[0])) }

func (r *reader) text() string { return string(r.bytes()) }

func (r *reader) number() uint64 {
	b := r.bytes()
	if len(b) > 8 {
		r.spent = true
		return 0
	}
	var v uint64
	for _, c := range b {
		v = v<<8 | uint64(c)
	}
	return v
}

// sectors is a number of sectors, in bytes.
func (r *reader) sectors() int64 { return r.scaled(r.number()) }

func (r *reader) scaled(n uint64) int64 {
	if n > 1<<50 {
		r.spent = true
		return 0
	}
	return int64(n) * sectorLen
}

// add decodes an object: 0(2) flags(1) type(1; its upper half is the version) length(4) number name ... by type.
func (db *database) add(b []byte) {
	r := &reader{b: b}
	head := r.take(8)
	flags, kind, version := head[2], head[3]&15, head[3]>>4
	id, name := r.number(), r.text()
	const typeVolume, typeComponent, typePartition, typeDisk = 1, 2, 3, 4
	switch kind {
	case typeVolume:
		v := volume{id: id, name: name}
		r.text()   // "gen" or "raid5"
		r.text()   // 0
		r.skip(14) // state
		r.skip(1 + 1 + 1 + 4)
		r.number() // components
		r.skip(8 + 8)
		v.size = r.sectors()
		if !r.spent {
			v.guid, v.letter = identity(r, flags)
			db.volumes = append(db.volumes, v)
		}
	case typeComponent:
		c := component{id: id}
		r.text() // state
		c.kind = r.take(1)[0]
		r.skip(4)
		r.number() // partitions
		r.skip(8 + 8)
		c.volume = r.number()
		r.skip(1)
		const isStriped = 0x10
		if flags&isStriped != 0 {
			c.chunk = r.sectors()
		}
		if !r.spent {
			db.components = append(db.components, c)
		}
	case typePartition:
		var p partition
		r.skip(4 + 8)
		p.start, p.off = r.scaled(be.Uint64(r.take(8))), r.scaled(be.Uint64(r.take(8)))
		p.size = r.sectors()
		p.component, p.disk = r.number(), r.number()
		const hasColumn = 8
		if flags&hasColumn != 0 {
			p.column = int64(r.number() & 0xffff)
		}
		if !r.spent {
			db.partitions = append(db.partitions, p)
		}
	case typeDisk:
		guid := ""
		if version >= 4 {
			x := r.take(16)
			guid = fmt.Sprintf("%x-%x-%x-%x-%x", x[0:4], x[4:6], x[6:8], x[8:10], x[10:16])
		} else {
			guid = r.text()
		}
		if !r.spent {
			db.disks[id], db.names[id] = guid, name
		}
	}
}

// identity is the GUID of a volume and the drive letter that it asks for, behind fields that are there or not.
func identity(r *reader, flags byte) (guid, letter string) {
	const hasFirstID, hasSecondID, hasSize, hasLetter = 0x08, 0x20, 0x80, 0x02
	r.skip(4 + 1) // 0, type of partition
	guid = hex.EncodeToString(r.take(16))
	if flags&hasFirstID != 0 {
		r.text()
	}
	if flags&hasSecondID != 0 {
		r.text()
	}
	if flags&hasSize != 0 {
		r.number()
	}
	if flags&hasLetter == 0 || r.spent {
		return guid, ""
	}
	return guid, r.text()
}
