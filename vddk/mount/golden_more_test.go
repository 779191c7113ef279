package mount_test

import (
	"bytes"
	"fmt"
	"io"
	"runtime"
	"testing"
	"time"

	"github.com/vmkeep/vmkeep/vddk/mount"
	"github.com/vmkeep/vmkeep/vddk/mount/mounttest"
)

// moreGoldens are the golden images that lie with their readers, whose tests make them again.
func moreGoldens() map[string]string {
	return map[string]string{
		"ntfs": "ntfs/testdata", "btrfs": "btrfs/testdata", "fat12": "fat/testdata", "fat16": "fat/testdata",
		"fat32": "fat/testdata", "exfat": "fat/testdata", "iso9660": "iso9660/testdata",
	}
}

func TestGoldenImagesOfOtherFormats(t *testing.T) {
	for name, dir := range moreGoldens() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			image, truth, err := mounttest.Golden{Name: name}.Load(dir)
			if err != nil {
				t.Fatal(err)
			}
			f := openImage(t, image)
			got, err := mounttest.Read(f)
			if err != nil {
				t.Error(err)
			}
			if len(truth) < 100 {
				t.Errorf("only %d entries", len(truth))
			}
			for _, d := range mounttest.Diff(truth, got) {
				t.Error(d)
			}
		})
	}
}

// As TestDamagedImages, 300 mutants for each format or as many as VMKEEP_MUTANTS says.
func TestDamagedImagesOfOtherFormats(t *testing.T) {
	for name, dir := range moreGoldens() {
		t.Run(name, func(t *testing.T) {
			image, _, err := mounttest.Golden{Name: name}.Load(dir)
			if err != nil {
				t.Fatal(err)
			}
			breeder := mounttest.NewBreeder(image, func(disk io.ReaderAt) {
				m := mount.Open([]mount.Disk{{Name: "disk", R: disk, Size: int64(len(image))}})
				f, err := m.Volumes()[0].Open()
				if err != nil {
					t.Fatal(err)
				}
				mounttest.Names(f)
			})
			count := mutants(t)
			if count == 80 {
				count = map[string]int{"fat12": 100, "fat16": 100, "fat32": 100}[name]
				if count == 0 {
					count = 300
				}
			}
			runtime.GC()
			heap := watchHeap()
			opened, entries, failures := 0, 0, 0
			for n := range uint64(count) {
				var e, f int
				var ok bool
				within(t, 20*time.Second, fmt.Sprintf("mutant %d", n), func() { e, f, ok = poke(breeder.Mutant(n)) })
				if ok {
					opened++
				}
				entries, failures = entries+e, failures+f
			}
			if peak := heap(); peak > maxHeap {
				t.Errorf("%d MiB of memory", peak>>20)
			} else {
				t.Logf("%d of %d opened, %d entries, %d errors, %d MiB", opened, count, entries, failures, peak>>20)
			}
			floor := count / 4
			if name == "btrfs" {
				floor = count / 20 // checksums keep most out; package btrfs tries mutants with right ones
			}
			if opened < floor || failures+count-opened == 0 {
				t.Errorf("%d of %d opened with %d errors: that tries nothing", opened, count, failures)
			}
		})
	}
}

// FuzzNTFS and the others write bytes over a golden image and use everything of what then opens.
func FuzzNTFS(f *testing.F) { fuzzMore(f, "ntfs") }

func FuzzBtrfs(f *testing.F) { fuzzMore(f, "btrfs") }

func FuzzFAT(f *testing.F) { fuzzMore(f, "fat12", "fat16", "fat32") }

func FuzzExFAT(f *testing.F) { fuzzMore(f, "exfat") }

func FuzzISO9660(f *testing.F) { fuzzMore(f, "iso9660") }

func fuzzMore(f *testing.F, names ...string) {
	var images [][]byte
	var held [][]int64
	for _, name := range names {
		image, _, err := mounttest.Golden{Name: name}.Load(moreGoldens()[name])
		if err != nil {
			f.Fatal(err)
		}
		var sectors []int64
		for n := range len(image) / 512 {
			if s := image[n*512 : n*512+512]; bytes.Count(s, s[:1]) < 512 {
				sectors = append(sectors, int64(n))
			}
		}
		images, held = append(images, image), append(held, sectors)
	}
	// As in fuzzGolden: the number of a sector that holds something (2 bytes), a place in it (1), a length (1) and bytes.
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
