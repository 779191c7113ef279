package ldm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/vddk/mount/device"
	"github.com/vmkeep/vmkeep/vddk/mount/part"
)

// The disks here are written by this file, from the description of the format: what Windows keeps on a dynamic disk,
// for each kind of volume it makes.

const (
	diskSectors = 4096
	configAt    = 3000
	configLen   = 512
	areaAt      = 63
)

// testGroup is a disk group with one volume of each kind, over up to four disks.
type testGroup struct {
	disks   [][]byte
	objects [][]byte
	next    uint64 // number of the next object
	gpt     bool
}

func vnum(v uint64) []byte {
	b := binary.BigEndian.AppendUint64(nil, v)
	for len(b) > 1 && b[0] == 0 {
		b = b[1:]
	}
	return append([]byte{byte(len(b))}, b...)
}

func vstr(s string) []byte { return append([]byte{byte(len(s))}, s...) }

func (g *testGroup) object(flags, typ byte, fields ...[]byte) uint64 {
	g.next++
	body := slices.Concat(append([][]byte{vnum(g.next)}, fields...)...)
	head := []byte{0, 0, flags, typ}
	g.objects = append(g.objects, slices.Concat(head, binary.BigEndian.AppendUint32(nil, uint32(len(body))), body))
	return g.next
}

func guid(k int) string { return fmt.Sprintf("%08d-1111-2222-3333-444444444444", k) }

func newGroup(disks int, gpt bool) (*testGroup, []uint64) {
	g := &testGroup{gpt: gpt}
	var ids []uint64
	for k := range disks {
		b := make([]byte, diskSectors*sectorLen)
		rnd := rand.New(rand.NewPCG(uint64(k), 1))
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		g.disks = append(g.disks, b)
		if k%2 == 0 {
			ids = append(ids, g.object(0, 0x34, vstr(fmt.Sprint("Disk", k+1)), vstr(guid(k)), vstr("")))
		} else { // the newer form has a binary GUID
			raw := []byte{0, 0, 0, byte(k), 0x11, 0x11, 0x22, 0x22, 0x33, 0x33, 0x44, 0x44, 0x44, 0x44, 0x44, 0x44}
			ids = append(ids, g.object(0, 0x44, vstr(fmt.Sprint("Disk", k+1)), raw, make([]byte, 20)))
		}
	}
	return g, ids
}

func (g *testGroup) volume(name string, sectors uint64, letter string) uint64 {
	flags := byte(0)
	if letter != "" {
		flags = 0x02 | 0x08
	}
	return g.object(flags, 0x51, vstr(name), vstr("gen"), vstr(""), make([]byte, 21), vnum(1), make([]byte, 16), vnum(sectors),
		make([]byte, 21), vstr("id"), vstr(letter))
}

func (g *testGroup) component(volume uint64, kind byte, chunk, columns uint64) uint64 {
	flags, stripes := byte(0), []byte{}
	if kind != kindJoined {
		flags, stripes = 0x10, slices.Concat(vnum(chunk), vnum(columns))
	}
	return g.object(flags, 0x32, vstr(fmt.Sprintf("Volume-%d", g.next)), vstr("ACTIVE"), []byte{kind}, make([]byte, 4), vnum(1),
		make([]byte, 16), vnum(volume), []byte{0}, stripes)
}

func (g *testGroup) partition(component, disk uint64, place [3]uint64, column uint64) {
	g.object(8, 0x33, vstr(fmt.Sprintf("Disk-%d", g.next)), make([]byte, 12), binary.BigEndian.AppendUint64(nil, place[0]),
		binary.BigEndian.AppendUint64(nil, place[1]), vnum(place[2]), vnum(component), vnum(disk), vnum(column))
}

// finish writes tables, headers and the database to all disks.
func (g *testGroup) finish() []device.Candidate {
	const vblk = 128
	config := make([]byte, configLen*sectorLen)
	toc := config[sectorLen:]
	copy(toc, "TOCBLOCK")
	binary.BigEndian.PutUint64(toc[0x2e:], 17)
	db := config[17*sectorLen:]
	copy(db, "VMDB")
	binary.BigEndian.PutUint32(db[8:], vblk)
	binary.BigEndian.PutUint32(db[12:], sectorLen)
	binary.BigEndian.PutUint64(db[0x75:], 7)
	at := db[sectorLen:]
	for n, o := range g.objects {
		parts := (len(o) + vblk - 17) / (vblk - 16)
		for p := range parts {
			copy(at, "VBLK")
			binary.BigEndian.PutUint32(at[8:], uint32(n+10))
			binary.BigEndian.PutUint16(at[12:], uint16(p))
			binary.BigEndian.PutUint16(at[14:], uint16(parts))
			o = o[copy(at[16:vblk], o):]
			at = at[vblk:]
		}
	}
	var out []device.Candidate
	for k, b := range g.disks {
		head := b[6*sectorLen : 7*sectorLen]
		typ, table := typeMBR, extent.Extent{Off: areaAt * sectorLen, Len: 2900 * sectorLen}
		if g.gpt {
			typ, table = typeMetadata, extent.Extent{Off: 2980 * sectorLen, Len: 10 * sectorLen}
			head = b[2989*sectorLen : 2990*sectorLen]
		}
		clear(head)
		copy(head, "PRIVHEAD")
		copy(head[48:], strings.ToUpper(guid(k)))
		copy(head[176:], "the group")
		binary.BigEndian.PutUint64(head[283:], areaAt)
		binary.BigEndian.PutUint64(head[299:], configAt)
		binary.BigEndian.PutUint64(head[307:], configLen)
		copy(b[configAt*sectorLen:], config)
		dev := device.Disk(bytes.NewReader(b), k, int64(len(b)))
		name := fmt.Sprint("disk", k)
		out = append(out, device.Candidate{Dev: dev, Name: name, Whole: true, Parted: true},
			device.Candidate{Dev: device.Slice(dev, table), Name: name + "p1", Type: typ})
		if g.gpt {
			out = append(out, device.Candidate{Dev: device.Slice(dev, extent.Extent{Off: 200 * sectorLen, Len: 100}), Name: name + "p2", Type: typeData})
		}
	}
	return out
}

// area is sectors of a disk's data area.
func (g *testGroup) area(disk int, from, n int) []byte {
	return g.disks[disk][(areaAt+from)*sectorLen : (areaAt+from+n)*sectorLen]
}

// build makes a group with all kinds of volumes and returns what each holds.
func build(gpt bool) (*testGroup, map[string][]byte) {
	g, d := newGroup(4, gpt)
	want := map[string][]byte{}

	v := g.volume("Simple", 100, "E:")
	g.partition(g.component(v, kindJoined, 0, 0), d[0], [3]uint64{0, 0, 100}, 0)
	want["ldm/Simple"] = g.area(0, 0, 100)

	v = g.volume("Spanned", 150, "")
	c := g.component(v, kindJoined, 0, 0)
	g.partition(c, d[2], [3]uint64{200, 100, 50}, 0) // not in order
	g.partition(c, d[1], [3]uint64{10, 0, 100}, 0)
	want["ldm/Spanned"] = slices.Concat(g.area(1, 10, 100), g.area(2, 200, 50))

	v = g.volume("Striped", 16*9, "")
	c = g.component(v, kindStriped, 16, 3)
	for k := range 3 {
		g.partition(c, d[k], [3]uint64{300, 0, 48}, uint64(k))
	}
	var b []byte
	for row := range 3 {
		for k := range 3 {
			b = append(b, g.area(k, 300+16*row, 16)...)
		}
	}
	want["ldm/Striped"] = b

	v = g.volume("Mirror", 64, "")
	for k := range 2 {
		copy(g.area(3, 400, 64), g.area(1, 400, 64))
		g.partition(g.component(v, kindJoined, 0, 0), d[1+2*k], [3]uint64{400, 0, 64}, 0)
	}
	want["ldm/Mirror"] = g.area(1, 400, 64)

	v = g.volume("Raid5", 16*12, "")
	c = g.component(v, kindParity, 16, 4)
	for k := range 4 {
		g.partition(c, d[k], [3]uint64{500, 0, 64}, uint64(k))
	}
	// The table of the layout, written out: P0 is on the last disk, data begins behind parity.
	b = nil
	for row, ks := range [][]int{{0, 1, 2}, {3, 0, 1}, {2, 3, 0}, {1, 2, 3}} {
		for _, k := range ks {
			b = append(b, g.area(k, 500+16*row, 16)...)
		}
	}
	want["ldm/Raid5"] = b
	return g, want
}

func read(t *testing.T, d device.Device) ([]byte, error) {
	t.Helper()
	b := make([]byte, d.Size())
	_, err := d.ReadAt(b, 0)
	return b, err
}

func TestVolumesOfEveryKind(t *testing.T) {
	for _, gpt := range []bool{false, true} {
		g, want := build(gpt)
		a := Assemble(g.finish())
		if len(a.Problems) != 0 || len(a.Logicals) != len(want) {
			t.Fatalf("%v, %d volumes", a.Problems, len(a.Logicals))
		}
		if n := map[bool]int{false: 4, true: 8}[gpt]; len(a.Members) != n {
			t.Errorf("%d members, want %d", len(a.Members), n)
		}
		for _, l := range a.Logicals {
			if got, err := read(t, l.Dev); err != nil || !bytes.Equal(got, want[l.Name]) || l.Missing != "" {
				t.Errorf("%s: %v, missing %q, equal: %v", l.Name, err, l.Missing, bytes.Equal(got, want[l.Name]))
			}
			if l.Name == "ldm/Simple" && !slices.Equal(l.Paths, []string{"E:"}) {
				t.Errorf("paths %v", l.Paths)
			}
		}
	}
}

func TestMissingDiskIsNamedAndMirrorsDoWithout(t *testing.T) {
	g, want := build(false)
	all := g.finish()
	a := Assemble(all[:len(all)-2]) // without the fourth disk
	for _, l := range a.Logicals {
		got, err := read(t, l.Dev)
		switch l.Name {
		case "ldm/Raid5":
			if !errors.Is(err, device.ErrMissing) || !strings.Contains(l.Missing, "Disk4") {
				t.Errorf("%s: %v, missing %q", l.Name, err, l.Missing)
			}
		default:
			if err != nil || !bytes.Equal(got, want[l.Name]) || l.Missing != "" {
				t.Errorf("%s: %v, missing %q", l.Name, err, l.Missing)
			}
		}
	}
	a = Assemble(all[4:]) // without the first two: the mirror is on the fourth too
	for _, l := range a.Logicals {
		if l.Name == "ldm/Mirror" {
			if got, err := read(t, l.Dev); err != nil || !bytes.Equal(got, want[l.Name]) {
				t.Errorf("mirror: %v", err)
			}
		}
	}
}

func TestNewestDatabaseCounts(t *testing.T) {
	g, _ := build(false)
	all := g.finish()
	// A disk that was away while the others went on has an older database, here one without volumes.
	old := g.disks[0][configAt*sectorLen+17*sectorLen:]
	binary.BigEndian.PutUint64(old[0x75:], 6)
	clear(old[sectorLen : 200*sectorLen])
	if a := Assemble(all); len(a.Logicals) != 5 {
		t.Errorf("%d volumes", len(a.Logicals))
	}
}

func TestPartitionTableLeadsToDynamicDisk(t *testing.T) {
	g, want := build(false)
	g.finish()
	b := g.disks[0]
	clear(b[:sectorLen])
	copy(b[446:], []byte{0, 0, 0, 0, 0x42, 0, 0, 0, areaAt, 0, 0, 0, 0, 8, 0, 0})
	b[510], b[511] = 0x55, 0xaa
	dev := device.Disk(bytes.NewReader(b), 0, int64(len(b)))
	table, err := part.Read(dev, 0)
	if err != nil || len(table.Entries) != 1 {
		t.Fatalf("%+v, %v", table, err)
	}
	e := table.Entries[0]
	a := Assemble([]device.Candidate{
		{Dev: dev, Name: "d", Whole: true, Parted: true},
		{Dev: device.Slice(dev, extent.Extent{Off: e.Off, Len: e.Len}), Name: "dp1", Type: e.Type},
	})
	for _, l := range a.Logicals {
		if l.Name == "ldm/Simple" {
			if got, err := read(t, l.Dev); err != nil || !bytes.Equal(got, want[l.Name]) {
				t.Errorf("simple volume: %v", err)
			}
			return
		}
	}
	t.Errorf("no simple volume: %+v", a)
}

func FuzzAssemble(f *testing.F) {
	g, _ := build(false)
	all := g.finish()
	db := g.disks[0][(configAt+17)*sectorLen : (configAt+40)*sectorLen]
	f.Add(slices.Clone(db))
	rest := slices.Clone(db)
	f.Fuzz(func(t *testing.T, b []byte) {
		copy(db, rest)
		copy(db, b)
		for _, l := range Assemble(all).Logicals {
			p := make([]byte, 64<<10)
			for off := int64(0); off < l.Dev.Size() && off < 1<<20; off += int64(len(p)) {
				if _, err := l.Dev.ReadAt(p[:min(int64(len(p)), l.Dev.Size()-off)], off); err != nil {
					break
				}
			}
		}
	})
}
