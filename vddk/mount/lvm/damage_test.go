package lvm

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/vmkeep/vmkeep/vddk/mount/device"
	"github.com/vmkeep/vmkeep/vddk/mount/mounttest"
)

// everything is a group with a volume of most kinds on two disks, and what lies on the disks for it.
func everything() ([]device.Candidate, []*pattern) {
	cs, ps := machine(2, thinText()+mirrorText()+
		lv("str", seg(0, 2, "type = \"striped\"\nstripe_size = 128\nstripes = [\"pv0\", 9, \"pv1\", 6]"))+
		lv("ten", seg(0, 1, "type = \"raid10\"\nstripe_size = 128\nraids = [\"\", \"hidden_d0\", \"\", \"hidden_d1\"]"))+
		lv("five", seg(0, 2, "type = \"raid5_ls\"\nstripe_size = 128\nraids = [\"hidden_m0\", \"hidden_d0\", \"hidden_m1\", \"hidden_d1\", \"hidden_m1\", \"str\"]"))+
		lv("org", seg(0, 2, "type = \"striped\"\nstripes = [\"pv1\", 8]"))+
		lv("snap", seg(0, 1, "type = \"striped\"\nstripes = [\"pv1\", 10]"))+
		lv("hidden_snapshot0", seg(0, 2, "type = \"snapshot\"\nchunk_size = 8\norigin = \"org\"\ncow_store = \"snap\"")))
	le := binary.LittleEndian
	sb := make([]byte, nodeLen)
	le.PutUint64(sb[0x20:], thinMagic)
	le.PutUint64(sb[0x140:], 1)
	le.PutUint32(sb[0x150:], 128)
	for n, b := range [][]byte{sb, node(1, true, 1, 9, 3, 2), node(2, false, 0, 3, 40, 4), node(3, true, 0, 7<<24|1, 2, 8<<24|1), node(4, true, 40, 1<<24|5, 127, 5)} {
		ps[0].patches[first+int64(n)*nodeLen] = b
	}
	ps[1].patches[first] = raidSuper(0, 1<<64-1, 9)
	ps[1].patches[first+10*ext] = append([]byte("SnAp"), 1, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0)
	table := make([]byte, 4096)
	for n, chunk := range []uint64{5, 2, 0, 3, 7, 9} {
		le.PutUint64(table[8*n:], chunk)
	}
	ps[1].patches[first+10*ext+4096] = table
	return cs, ps
}

// What is damaged has right checksums where the format has them: nothing else keeps hostile bytes out.
func TestDamagedGroups(t *testing.T) {
	mounttest.Damage{Opens: 25, Try: func(n uint64) (tried mounttest.Tried) {
		cs, ps := everything()
		rnd := rand.New(rand.NewPCG(n, 11))
		damage(rnd, ps[rnd.IntN(2)], 1+rnd.IntN(1+int(n%20)))
		a := Assemble(cs)
		tried.Errors = len(a.Problems)
		b := make([]byte, 4096)
		for _, l := range a.Logicals[:min(len(a.Logicals), 50)] {
			tried.Opened = true
			for _, off := range []int64{0, l.Dev.Size() / 3, l.Dev.Size() - int64(len(b))} {
				tried.Entries++
				if _, err := l.Dev.ReadAt(b, max(off, 0)); err != nil {
					tried.Errors++
				}
			}
		}
		return tried
	}}.Run(t)
}

// damage damages a disk in some places.
func damage(rnd *rand.Rand, p *pattern, places int) {
	const area, size = 4096, 1<<20 - 4096
	var at []int64
	for off := range p.patches {
		at = append(at, off)
	}
	// Not in the order of the map, so that a number names one damage.
	for i := range at {
		for k := range i {
			if at[k] > at[i] {
				at[k], at[i] = at[i], at[k]
			}
		}
	}
	text := bytes.Join([][]byte{p.patches[area+size-700], p.patches[area+512]}, nil)
	for range places {
		if rnd.IntN(2) == 0 { // the text alone: most is told there
			mounttest.Spoil(rnd, text)
			continue
		}
		b := p.patches[at[rnd.IntN(len(at))]]
		mounttest.Spoil(rnd, b)
	}
	copy(p.patches[area+size-700], text)
	copy(p.patches[area+512], text[700:])
	put := binary.LittleEndian.PutUint32
	put(p.patches[area][56:], crc(text))
	put(p.patches[area], crc(p.patches[area][4:]))
	put(p.patches[512][16:], crc(p.patches[512][20:]))
}
