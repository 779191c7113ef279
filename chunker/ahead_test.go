package chunker

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"go.uber.org/goleak"

	"github.com/vmkeep/vmkeep/chunker/extent"
)

// late is how long a test waits for what must happen before it fails; nothing waits for it otherwise.
const late = 20 * time.Second

// readerFunc is a disk.
type readerFunc func(p []byte, off int64) (int, error)

func (f readerFunc) ReadAt(p []byte, off int64) (int, error) { return f(p, off) }

// The first Depth reads are under way together, never more, and more follow while the user has a chunk in hand.
func TestReadingOverlapsCuttingAndUse(t *testing.T) {
	c := small(t, limits{min: 4096, max: 16384, bits: 12, step: 512})
	data := samples(1<<20, 1)["random"]
	for _, depth := range []int{1, 2, 4, 7} {
		var under, most, started atomic.Int32
		together := make(chan struct{})
		onward := make(chan struct{})
		disk := readerFunc(func(p []byte, off int64) (int, error) {
			n := under.Add(1)
			defer under.Add(-1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
			switch started.Add(1) {
			case int32(depth):
				close(together)
			case int32(depth) + 1:
				close(onward)
			}
			select {
			case <-together:
			case <-time.After(late):
				return 0, fmt.Errorf("only %d reads under way", n)
			}
			return copy(p, data[off:]), nil
		})
		p := Plan{Size: int64(len(data)), Ahead: Ahead{Depth: depth, Piece: 4096}}
		first := true
		for ch, err := range p.Chunks(disk, c) {
			if err != nil {
				t.Fatalf("depth %d: %v", depth, err)
			}
			if first && ch.Off+int64(ch.Len) > 4096 { // the first piece is used up: another read must be under way or done
				first = false
				select {
				case <-onward:
				case <-time.After(late):
					t.Fatalf("depth %d: nothing is read while the user has a chunk", depth)
				}
			}
		}
		if first || int(most.Load()) != depth {
			t.Errorf("depth %d: %d reads at once", depth, most.Load())
		}
	}
}

// Small changes far apart are read together too, though the bytes between them are not read.
func TestReadAheadLeapsOverKeptChunks(t *testing.T) {
	c := small(t, limits{min: 1024, max: 16 << 10, bits: 11, step: 512})
	data := samples(1<<20, 1)["random"]
	old, _ := full(data, c)
	var dirty []extent.Extent
	for i := range int64(4) {
		dirty = append(dirty, extent.Extent{Off: i * 200 << 10, Len: 512})
	}
	var started atomic.Int32
	together := make(chan struct{})
	disk := readerFunc(func(p []byte, off int64) (int, error) {
		if started.Add(1) == 4 {
			close(together)
		}
		select {
		case <-together:
		case <-time.After(late):
			return 0, errors.New("four changes are not read at once")
		}
		return copy(p, data[off:]), nil
	})
	touched, kept := 0, 0
	for off, i := int64(0), 0; i < len(old); i++ {
		if extent.Of(dirty...).Overlaps(extent.Extent{Off: off, Len: int64(old[i])}) {
			touched++
		}
		off += int64(old[i])
	}
	for ch, err := range (Plan{Size: 1 << 20, Old: old, Dirty: extent.Of(dirty...)}).Chunks(disk, c) {
		if err != nil {
			t.Fatal(err)
		}
		if ch.Data == nil {
			kept++
		}
	}
	if touched < 4 || kept != len(old)-touched {
		t.Errorf("kept %d of %d chunks, %d touched", kept, len(old), touched)
	}
}

// However the loop ends, no read is under way afterwards and no goroutine left.
func TestNothingIsLeftBehind(t *testing.T) {
	c := small(t, limits{min: 4096, max: 16384, bits: 12, step: 512})
	data := samples(1<<20, 1)["random"]
	broken := errors.New("disk went away")
	for _, how := range []string{"break", "panic", "error", "all"} {
		var under, done atomic.Int32
		disk := readerFunc(func(p []byte, off int64) (int, error) {
			under.Add(1)
			defer under.Add(-1)
			if done.Add(1) == 20 && how == "error" {
				return 0, broken
			}
			return copy(p, data[off:]), nil
		})
		chunks, failed := 0, error(nil)
		func() {
			defer func() { _ = recover() }()
			for _, err := range (Plan{Size: 1 << 20, Ahead: Ahead{Piece: 4096}}).Chunks(disk, c) {
				if err != nil {
					failed = err
					continue // the sequence ends by itself
				}
				chunks++
				if chunks == 3 && how == "break" {
					break
				}
				if chunks == 3 && how == "panic" {
					panic("user")
				}
			}
		}()
		if n := under.Load(); n != 0 {
			t.Errorf("%s: %d reads under way", how, n)
		}
		if err := goleak.Find(); err != nil {
			t.Errorf("%s: %v", how, err)
		}
		if (how == "break" || how == "panic") && (chunks != 3 || done.Load() > 30) {
			t.Errorf("%s: %d chunks, %d reads", how, chunks, done.Load())
		}
		if errors.Is(failed, broken) != (how == "error") || how == "error" && !strings.Contains(failed.Error(), "bytes at ") {
			t.Errorf("%s: %v", how, failed)
		}
	}
}

// A workspace that was given back in the middle of its use serves the next run, also one with other pieces.
func TestWorkspaceIsUsedAgain(t *testing.T) {
	c := small(t, limits{min: 4096, max: 16384, bits: 12, step: 512})
	data := samples(256<<10, 1)["mixed"]
	want, wantSums := full(data, c)
	for i := range 50 {
		p := Plan{Size: int64(len(data)), Ahead: Ahead{Depth: 1 + i%5, Piece: sector << (i % 7)}}
		for range p.Chunks(bytes.NewReader(data), c) {
			break
		}
		lens, sums := collect(t, p, bytes.NewReader(data), c, nil)
		if fmt.Sprint(lens) != fmt.Sprint(want) || fmt.Sprint(sums) != fmt.Sprint(wantSums) {
			t.Fatalf("run %d differs", i)
		}
	}
}

// lending is a disk with memory of its own for so many pieces.
type lending struct {
	readerFunc
	most int
	mu   sync.Mutex
	out  map[*byte]bool // the first bytes of what is lent
}

func (l *lending) Lend(n int) ([]byte, func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.out) == l.most {
		return nil, nil
	}
	p := make([]byte, n)
	l.out[&p[0]] = true
	return p, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.out, &p[0])
	}
}

// As much as a disk lends is read into, also through an overlay, and all of it is given back, however the run ends.
func TestLentMemoryIsReadIntoAndGivenBack(t *testing.T) {
	c := small(t, limits{min: 4096, max: 16384, bits: 12, step: 512})
	data := samples(256<<10, 1)["random"]
	want, wantSums := full(data, c)
	broken := errors.New("disk went away")
	for _, most := range []int{0, 1, 3, 100} {
		for _, how := range []string{"all", "overlay", "break", "error"} {
			var lent, own int
			disk := &lending{most: most, out: map[*byte]bool{}}
			disk.readerFunc = func(p []byte, off int64) (int, error) {
				disk.mu.Lock()
				defer disk.mu.Unlock()
				if disk.out[&p[0]] {
					lent++
				} else {
					own++
				}
				if how == "error" && off > 100<<10 {
					return 0, broken
				}
				return copy(p, data[off:]), nil
			}
			var r io.ReaderAt = disk
			if how == "overlay" {
				r = &Overlay{Base: bytes.NewReader(data), Top: r, Extents: extent.Of(extent.Extent{Len: int64(len(data))})}
			}
			p := Plan{Size: int64(len(data)), Ahead: Ahead{Depth: 4, Piece: 4096}}
			switch how {
			case "all", "overlay":
				lens, sums := collect(t, p, r, c, nil)
				if fmt.Sprint(lens) != fmt.Sprint(want) || fmt.Sprint(sums) != fmt.Sprint(wantSums) {
					t.Errorf("%d, %s: other chunks", most, how)
				}
			default:
				for _, err := range p.Chunks(r, c) {
					if how == "break" || err != nil && !errors.Is(err, broken) {
						break
					}
				}
			}
			if len(disk.out) > 0 {
				t.Errorf("%d, %s: %d pieces are not given back", most, how, len(disk.out))
			}
			if (lent > 0) != (most > 0) || most == 100 && own > 0 {
				t.Errorf("%d, %s: %d reads into lent memory, %d into own", most, how, lent, own)
			}
		}
	}
}

func TestShortReadsAreErrors(t *testing.T) {
	c := small(t, limits{min: 4096, max: 16384, bits: 12, step: 512})
	for name, r := range map[string]io.ReaderAt{
		"end too early": bytes.NewReader(make([]byte, 30000)),
		"nothing":       readerFunc(func(p []byte, _ int64) (int, error) { return 0, nil }),
		"less":          readerFunc(func(p []byte, _ int64) (int, error) { return len(p) - 1, nil }),
	} {
		var last error
		for _, err := range (Plan{Size: 40000}).Chunks(r, c) {
			last = err
		}
		if !errors.Is(last, io.ErrUnexpectedEOF) {
			t.Errorf("%s: %v", name, last)
		}
	}
	full := readerFunc(func(p []byte, _ int64) (int, error) { return len(p), io.EOF }) // allowed by io.ReaderAt
	for _, err := range (Plan{Size: 40000}).Chunks(full, c) {
		if err != nil {
			t.Error(err)
		}
	}
	for _, err := range (Plan{Size: 40000}).Chunks(failing{iotest.ErrTimeout}, c) {
		if !errors.Is(err, iotest.ErrTimeout) {
			t.Errorf("%v", err)
		}
	}
}

// Memory does not grow with the part: four times the chunks, not one allocation more than goroutines explain.
func TestNoAllocationPerChunk(t *testing.T) {
	c, err := New(testPol)
	if err != nil {
		t.Fatal(err)
	}
	data := samples(64<<20, 1)["random"]
	allocs := func(size int64) float64 {
		return testing.AllocsPerRun(3, func() {
			for _, err := range (Plan{Size: size}).Chunks(bytes.NewReader(data), c) {
				if err != nil {
					t.Fatal(err)
				}
			}
		})
	}
	if less, more := allocs(16<<20), allocs(64<<20); more > less+8 { // 30 chunks and 48 reads more
		t.Errorf("%v allocations for 16 MiB, %v for 64 MiB", less, more)
	}
}

// Chunks whose memory is taken stay what they are, those that are not taken come right as well, in full and in an increment.
func TestTakenChunksStay(t *testing.T) {
	taken := 0
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 0))
		old, now, dirty, holes := disks(rng, 200_000)
		c := small(t, limits{min: 256, max: 16384, bits: 10, step: 128})
		lens, _ := full(old, c)
		for _, p := range []Plan{{Size: int64(len(now))}, {Size: int64(len(now)), Old: lens, Dirty: dirty, Holes: holes}} {
			kept := make(map[int64][]byte)
			for ch, err := range p.Chunks(bytes.NewReader(now), c) {
				if err != nil {
					t.Fatal(err)
				}
				want := now[ch.Off:][:ch.Len]
				switch {
				case ch.Data == nil:
				case !bytes.Equal(ch.Data, want):
					t.Fatalf("seed %d: the chunk at %d is another", seed, ch.Off)
				case rng.IntN(16) == 0:
					kept[ch.Off] = ch.Take(bytes.Repeat([]byte{0xee}, MaxSize))
				}
			}
			for off, data := range kept {
				if !bytes.Equal(data, now[off:][:len(data)]) {
					t.Fatalf("seed %d: the chunk at %d changed after it was taken", seed, off)
				}
				if cap(data) != MaxSize {
					t.Fatalf("seed %d: %d bytes were taken for %d", seed, cap(data), MaxSize)
				}
			}
			taken += len(kept)
		}
	}
	if taken < 20 {
		t.Errorf("only %d chunks were taken", taken)
	}
}
