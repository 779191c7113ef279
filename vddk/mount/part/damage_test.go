package part

import (
	"bytes"
	"hash/crc32"
	"math/rand/v2"
	"testing"

	"github.com/vmkeep/vmkeep/vddk/mount/device"
	"github.com/vmkeep/vmkeep/vddk/mount/mounttest"
)

// Partitions of damaged tables lie on the disk, whatever the table says.
func TestDamagedTables(t *testing.T) {
	for name, whole := range map[string][]byte{
		"gpt": gpt(t, "-n", "1:2048:+1M", "-n", "3:0:+2M", "-n", "7:0:+1M", "-c", "3:größe"),
		"mbr": logical(),
	} {
		t.Run(name, func(t *testing.T) {
			mounttest.Damage{Opens: 25, Try: func(n uint64) (tried mounttest.Tried) {
				b := bytes.Clone(whole[:64<<10])
				tail := bytes.Clone(whole[len(whole)-32<<10:])
				rnd := rand.New(rand.NewPCG(n, 17))
				for range 1 + rnd.IntN(1+int(n%20)) {
					switch {
					case name == "mbr":
						at := 512 * []int{0, 20, 40, 60}[rnd.IntN(4)]
						mounttest.Spoil(rnd, b[at+440:at+512])
					case rnd.IntN(4) == 0:
						mounttest.Spoil(rnd, b[440:512])
					case rnd.IntN(4) == 0:
						mounttest.Spoil(rnd, tail[len(tail)-512:])
					case rnd.IntN(2) == 0:
						mounttest.Spoil(rnd, b[512:604])
					default:
						mounttest.Spoil(rnd, b[1024:1024+8*128])
					}
				}
				if name == "gpt" && rnd.IntN(2) == 0 { // whoever means harm makes the sums right
					le.PutUint32(b[512+88:], crc32.ChecksumIEEE(b[1024:1024+128*128]))
					resum(b)
				}
				disk := mounttest.Patched(whole)
				disk.Patch(0, b)
				disk.Patch(int64(len(whole)-len(tail)), tail)
				got, err := Read(device.Disk(disk, 0, disk.Size()), int64(rnd.IntN(2))*512)
				if err != nil {
					tried.Errors++
				}
				for _, e := range got.Entries {
					tried.Opened = true
					tried.Entries++
					if e.Off < 0 || e.Len <= 0 || e.Off+e.Len > disk.Size() {
						t.Errorf("input %d: partition %+v on a disk of %d bytes", n, e, disk.Size())
					}
				}
				tried.Errors += len(got.Notes)
				return tried
			}}.Run(t)
		})
	}
}

// logical is an MBR with three logical partitions.
func logical() []byte {
	b := make([]byte, mib)
	slots(b, 512, 0, [3]uint32{0x83, 8, 10}, [3]uint32{0x05, 20, 1000}, [3]uint32{0x07, 1100, 100})
	slots(b, 512, 20, [3]uint32{0x83, 1, 10}, [3]uint32{0x05, 20, 60})
	slots(b, 512, 40, [3]uint32{0x83, 1, 10}, [3]uint32{0x05, 40, 60})
	slots(b, 512, 60, [3]uint32{0x83, 1, 10})
	return b
}
