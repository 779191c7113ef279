package mount_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"os"
	"runtime"
	"runtime/metrics"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/vmkeep/vmkeep/vddk/mount"
	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
	"github.com/vmkeep/vmkeep/vddk/mount/mounttest"
)

func openImage(t testing.TB, image []byte) *guestfs.FS {
	t.Helper()
	vs := mount.Open([]mount.Disk{{Name: "disk", R: bytes.NewReader(image), Size: int64(len(image))}}).Volumes()
	if len(vs) != 1 {
		t.Fatalf("%d volumes", len(vs))
	}
	f, err := vs[0].Open()
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// The golden images hold the readers to the kernel where there is neither root nor mkfs.
func TestGoldenImages(t *testing.T) {
	for _, g := range mounttest.Goldens() {
		t.Run(g.Name, func(t *testing.T) {
			t.Parallel()
			image, truth, err := g.Load("testdata")
			if err != nil {
				t.Fatal(err)
			}
			f := openImage(t, image)
			got, err := mounttest.Read(f)
			if err != nil {
				t.Error(err)
			}
			if len(truth) < 150 {
				t.Errorf("only %d entries", len(truth))
			}
			for _, d := range mounttest.Diff(truth, got) {
				t.Error(d)
			}
		})
	}
}

func TestAsAnOrdinaryFileSystem(t *testing.T) {
	for _, g := range mounttest.Goldens() {
		if g.Name != "ext4-journal" && g.Name != "xfs-1k" {
			continue
		}
		t.Run(g.Name, func(t *testing.T) {
			t.Parallel()
			image, _, err := g.Load("testdata")
			if err != nil {
				t.Fatal(err)
			}
			fsys := openImage(t, image).IOFS()
			for dir, name := range map[string]string{"sizes": "b0000100", "names": "invalid-%FF%FE-utf8", "meta": "m4755", "bigdir": "entry_with_a_rather_long_name_000001.txt"} {
				sub, err := iofs.Sub(fsys, dir)
				if err != nil {
					t.Fatal(err)
				}
				if err := fstest.TestFS(sub, name); err != nil {
					t.Errorf("%s: %v", dir, err)
				}
			}
			if l, err := iofs.ReadLink(fsys, "links/sym0010"); err != nil || l != "target.txt" {
				t.Errorf("link to %q, %v", l, err)
			}
			for name, want := range map[string]error{
				"links/sym0010": guestfs.ErrNotRegular, "special/fifo": guestfs.ErrNotRegular, "sizes/none": iofs.ErrNotExist, "../x": iofs.ErrInvalid,
				"sizes/b0000100/x": iofs.ErrNotExist,
			} {
				if _, err := fsys.Open(name); !errors.Is(err, want) {
					t.Errorf("%s: %v, want %v", name, err, want)
				}
			}
		})
	}
}

// mutants is how many damaged images of each golden one are tried: 300 together for each kind of file system, or as
// many as VMKEEP_MUTANTS says.
func mutants(t *testing.T) int {
	v := os.Getenv("VMKEEP_MUTANTS")
	if v == "" {
		return 80
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		t.Fatalf("VMKEEP_MUTANTS: %v", err)
	}
	return n
}

const maxHeap = 256 << 20

// Damaged images give errors: no panic, no hang, and no more than 256 MiB of memory. A panic that a reader's guard
// caught is an error here, as it is to users.
func TestDamagedImages(t *testing.T) {
	for _, g := range mounttest.Goldens() {
		t.Run(g.Name, func(t *testing.T) {
			image, _, err := g.Load("testdata")
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
			runtime.GC()
			heap := watchHeap()
			opened, entries, failures := 0, 0, 0
			for n := range uint64(mutants(t)) {
				var e, f int
				var ok bool
				within(t, 20*time.Second, fmt.Sprintf("mutant %d", n), func() {
					e, f, ok = poke(breeder.Mutant(n))
				})
				if ok {
					opened++
				}
				entries, failures = entries+e, failures+f
			}
			if peak := heap(); peak > maxHeap {
				t.Errorf("%d MiB of memory", peak>>20)
			} else {
				t.Logf("%d of %d opened, %d entries, %d errors, %d MiB", opened, mutants(t), entries, failures, peak>>20)
			}
			if unopened := mutants(t) - opened; opened < mutants(t)/4 || failures+unopened == 0 {
				t.Errorf("%d opened with %d errors: that tries nothing", opened, failures)
			}
		})
	}
}

func poke(m *mounttest.Mutant) (entries, failures int, ok bool) {
	for _, v := range mount.Open([]mount.Disk{{Name: "disk", R: m, Size: m.Size()}}).Volumes() {
		if f, err := v.Open(); err == nil {
			e, n := mounttest.Poke(f)
			entries, failures, ok = entries+e, failures+n, true
		}
	}
	return entries, failures, ok
}

// within fails the test with all stacks when fn takes longer.
func within(t *testing.T, d time.Duration, what string, fn func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		fn()
	}()
	select {
	case <-done:
	case <-time.After(d):
		b := make([]byte, 1<<20)
		t.Fatalf("%s takes longer than %v\n%s", what, d, b[:runtime.Stack(b, true)])
	}
}

// watchHeap samples the heap until the function it returns is called, which gives the largest growth seen, garbage
// included.
func watchHeap() func() uint64 {
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(sample)
	base, peak := sample[0].Value.Uint64(), uint64(0)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				metrics.Read(sample)
				peak = max(peak, sample[0].Value.Uint64()-min(base, sample[0].Value.Uint64()))
			}
		}
	})
	return func() uint64 {
		close(stop)
		wg.Wait()
		return peak
	}
}

// FuzzExt and FuzzXFS write bytes over a golden image and use everything of what then opens.
func FuzzExt(f *testing.F) { fuzzGolden(f, "ext4-journal", "ext3-journal", "ext4-bigalloc") }

func FuzzXFS(f *testing.F) { fuzzGolden(f, "xfs-log", "xfs-1k", "xfs-v4-ftype") }

func fuzzGolden(f *testing.F, names ...string) {
	var images [][]byte
	for _, g := range mounttest.Goldens() {
		if !slices.Contains(names, g.Name) {
			continue
		}
		image, _, err := g.Load("testdata")
		if err != nil {
			f.Fatal(err)
		}
		images = append(images, image)
	}
	// A change is the number of a sector that holds something (2 bytes), a place in it (1), a length (1) and bytes.
	f.Add(uint8(0), []byte{0, 1, 0x38, 2, 0, 0})
	f.Add(uint8(1), []byte{0, 40, 10, 4, 0xff, 0xff, 0xff, 0x7f, 0, 9, 1, 1, 1})
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
