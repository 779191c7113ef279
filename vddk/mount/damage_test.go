package mount_test

import (
	"bytes"
	"io"
	"testing"

	"github.com/vmkeep/vmkeep/vddk/mount"
	"github.com/vmkeep/vmkeep/vddk/mount/mounttest"
)

// Damaged images give errors: no panic, no hang, and no more than 256 MiB of memory. Partition tables and volume
// managers are damaged by the tests of their packages, and Btrfs once more, with right checksums.

// kind is a kind of file system, with the golden images it is tried on.
type kind struct {
	name   string
	images []string
	opens  int // see mounttest.Damage
}

func kinds() []kind {
	return []kind{
		{"ext", []string{"ext4-journal", "ext4-bigalloc", "ext4-casefold", "ext3-journal", "ext2"}, 25},
		{"xfs", []string{"xfs-log", "xfs-1k", "xfs-v4", "xfs-v4-ftype"}, 25},
		{"ntfs", []string{"ntfs"}, 25},
		{"fat", []string{"fat12", "fat16", "fat32"}, 25},
		{"exfat", []string{"exfat"}, 25},
		{"btrfs", []string{"btrfs"}, 5}, // checksums keep most out
		{"iso9660", []string{"iso9660"}, 25},
	}
}

// load reads the golden images of a kind.
func (k kind) load(t testing.TB) [][]byte {
	t.Helper()
	var out [][]byte
	for _, name := range k.images {
		dir := moreGoldens()[name]
		if dir == "" {
			dir = "testdata"
		}
		image, _, err := mounttest.Golden{Name: name}.Load(dir)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, image)
	}
	return out
}

func TestDamagedImages(t *testing.T) {
	for _, k := range kinds() {
		t.Run(k.name, func(t *testing.T) {
			var breeders []*mounttest.Breeder
			for _, image := range k.load(t) {
				breeders = append(breeders, mounttest.NewBreeder(image, func(disk io.ReaderAt) {
					f, err := mount.Open([]mount.Disk{{Name: "disk", R: disk, Size: int64(len(image))}}).Volumes()[0].Open()
					if err != nil {
						t.Fatal(err)
					}
					mounttest.Names(f)
				}))
			}
			mounttest.Damage{Opens: k.opens, Try: func(n uint64) mounttest.Tried {
				of := uint64(len(breeders))
				return poke(breeders[n%of].Mutant(n / of))
			}}.Run(t)
		})
	}
}

func poke(m *mounttest.Mutant) (tried mounttest.Tried) {
	for _, v := range mount.Open([]mount.Disk{{Name: "disk", R: m, Size: m.Size()}}).Volumes() {
		if f, err := v.Open(); err == nil {
			entries, failures := mounttest.Poke(f)
			tried.Entries, tried.Errors, tried.Opened = tried.Entries+entries, tried.Errors+failures, true
		}
	}
	return tried
}

// The fuzzers write bytes over golden images and use everything of what then opens.

func FuzzExt(f *testing.F) { fuzz(f, "ext") }

func FuzzXFS(f *testing.F) { fuzz(f, "xfs") }

func FuzzNTFS(f *testing.F) { fuzz(f, "ntfs") }

func FuzzBtrfs(f *testing.F) { fuzz(f, "btrfs") }

func FuzzFAT(f *testing.F) { fuzz(f, "fat") }

func FuzzExFAT(f *testing.F) { fuzz(f, "exfat") }

func FuzzISO9660(f *testing.F) { fuzz(f, "iso9660") }

func fuzz(f *testing.F, name string) {
	var images [][]byte
	for _, k := range kinds() {
		if k.name == name {
			images = k.load(f)
		}
	}
	var held [][]int64
	for _, image := range images {
		var sectors []int64
		for n := range len(image) / 512 {
			if s := image[n*512 : n*512+512]; bytes.Count(s, s[:1]) < 512 {
				sectors = append(sectors, int64(n))
			}
		}
		held = append(held, sectors)
	}
	// A change is the number of a sector that holds something (2 bytes), a place in it (1), a length (1) and bytes.
	f.Add(uint8(0), []byte{0, 1, 0x38, 2, 0, 0})
	f.Add(uint8(1), []byte{0, 40, 10, 4, 0xff, 0xff, 0xff, 0x7f, 0, 9, 1, 1, 1})
	f.Fuzz(func(t *testing.T, which uint8, changes []byte) {
		k := int(which) % len(images)
		m := mounttest.Patched(images[k])
		for len(changes) >= 4 {
			s := held[k][(int(changes[0])<<8|int(changes[1]))%len(held[k])]
			at, n := int64(changes[2])*2, min(int(changes[3]), len(changes)-4)
			m.Patch(s*512+at, changes[4:4+n])
			changes = changes[4+n:]
		}
		poke(m)
	})
}
