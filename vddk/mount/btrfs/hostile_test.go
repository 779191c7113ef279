package btrfs_test

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"math/rand/v2"
	"testing"

	"github.com/vmkeep/vmkeep/vddk/mount/btrfs"
	"github.com/vmkeep/vmkeep/vddk/mount/device"
	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
	"github.com/vmkeep/vmkeep/vddk/mount/mounttest"
)

const blockLen = 4096 // of the golden image's tree blocks

func castagnoli(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// treeBlocks are where the golden image has tree blocks (and the superblock, which has the same head).
func treeBlocks(image []byte) []int {
	var out []int
	for at := 0; at+blockLen <= len(image); at += blockLen {
		b := image[at : at+blockLen]
		if binary.LittleEndian.Uint32(b) == castagnoli(b[32:]) && binary.LittleEndian.Uint64(b[80:]) != 0 {
			out = append(out, at)
		}
	}
	return out
}

// poke opens an image and uses everything.
func poke(image []byte) mounttest.Tried {
	f, err := guestfs.Open(btrfs.Format(), []*guestfs.Source{guestfs.NewSource(device.Disk(bytes.NewReader(image), 0, int64(len(image))))})
	if err != nil {
		return mounttest.Tried{}
	}
	entries, failures := mounttest.Poke(f)
	return mounttest.Tried{Opened: true, Entries: entries, Errors: failures}
}

// Whoever makes a hostile image makes its checksums right: so do these mutants.
func TestDamageWithRightChecksums(t *testing.T) {
	image, _, err := mounttest.Golden{Name: "btrfs"}.Load("testdata")
	if err != nil {
		t.Fatal(err)
	}
	blocks := treeBlocks(image)
	if len(blocks) < 20 {
		t.Fatalf("%d tree blocks", len(blocks))
	}
	mounttest.Damage{Opens: 25, Try: func(n uint64) mounttest.Tried {
		rnd := rand.New(rand.NewPCG(n, 5))
		old := map[int][]byte{}
		for range 1 + rnd.IntN(1+int(n%40)) {
			at := blocks[rnd.IntN(len(blocks))]
			b := image[at : at+blockLen]
			if old[at] == nil {
				old[at] = bytes.Clone(b)
			}
			for range 1 + rnd.IntN(4) {
				k := 72 + rnd.IntN(200)
				if rnd.IntN(2) == 0 {
					k = 32 + rnd.IntN(blockLen-32)
				}
				b[k] = []byte{0, 0xff, b[k] + 1, b[k] ^ 0x80, byte(rnd.Uint32())}[rnd.IntN(5)]
			}
			binary.LittleEndian.PutUint32(b, castagnoli(b[32:]))
		}
		defer func() {
			for at, b := range old {
				copy(image[at:], b)
			}
		}()
		return poke(image)
	}}.Run(t)
}

func FuzzTreeBlocks(f *testing.F) {
	image, _, err := mounttest.Golden{Name: "btrfs"}.Load("testdata")
	if err != nil {
		f.Fatal(err)
	}
	blocks := treeBlocks(image)
	f.Add([]byte{1, 0, 96, 2, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, changes []byte) {
		image := bytes.Clone(image)
		for len(changes) >= 4 { // a block (1 byte), a place in it (2), a length (1) and bytes
			at := blocks[int(changes[0])%len(blocks)]
			b := image[at : at+blockLen]
			place, n := 32+(int(changes[1])<<8|int(changes[2]))%(blockLen-32), min(int(changes[3]), len(changes)-4)
			copy(b[place:], changes[4:4+n])
			binary.LittleEndian.PutUint32(b, castagnoli(b[32:]))
			changes = changes[4+n:]
		}
		poke(image)
	})
}
