package ldm

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/vmkeep/vmkeep/vddk/mount/mounttest"
)

func TestDamagedGroups(t *testing.T) {
	for name, gpt := range map[string]bool{"mbr": false, "gpt": true} {
		t.Run(name, func(t *testing.T) {
			g, _ := build(gpt)
			all := g.finish()
			blocks := 1 + bytes.Count(g.disks[0], []byte("VBLK"))/4
			// What tells of the group: private heads, table of contents, database.
			places := [][2]int{{6, 7}, {2989, 2990}, {configAt + 1, configAt + 2}, {configAt + 17, configAt + 17 + blocks}}
			var clean [][]byte
			for _, b := range g.disks {
				clean = append(clean, bytes.Clone(b))
			}
			mounttest.Damage{Opens: 25, Try: func(n uint64) (tried mounttest.Tried) {
				rnd := rand.New(rand.NewPCG(n, 13))
				for range 1 + rnd.IntN(1+int(n%40)) {
					p := places[min(rnd.IntN(8), 3)]
					mounttest.Spoil(rnd, g.disks[rnd.IntN(len(g.disks))][p[0]*sectorLen:p[1]*sectorLen])
				}
				a := Assemble(all)
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
				for k, b := range g.disks {
					for _, p := range places {
						copy(b[p[0]*sectorLen:p[1]*sectorLen], clean[k][p[0]*sectorLen:])
					}
				}
				return tried
			}}.Run(t)
		})
	}
}
