package engine

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vmkeep/vmkeep/chunker/extent"
)

// sectorTarget is a disk that refuses what is not whole sectors, or written twice.
type sectorTarget struct {
	mu      sync.Mutex
	data    []byte
	written []bool
}

func (s *sectorTarget) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(s.data).ReadAt(p, off)
}

func (s *sectorTarget) WriteAt(p []byte, off int64) (int, error) {
	if off%512 != 0 || len(p)%512 != 0 || off+int64(len(p)) > int64(len(s.data)) {
		return 0, fmt.Errorf("write of %d bytes at %d", len(p), off)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := off / 512; i < (off+int64(len(p)))/512; i++ {
		if s.written[i] {
			return 0, fmt.Errorf("sector %d is written twice", i)
		}
		s.written[i] = true
	}
	return copy(s.data[off:], p), nil
}

var _ io.WriterAt = (*sectorTarget)(nil)

// Pieces of any length, in any order, from several goroutines, make the disk that they are pieces of.
func TestStitcherPutsSectorsTogether(t *testing.T) {
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 1))
		want := make([]byte, (1+rng.IntN(2000))*512)
		for i := 0; i < len(want); { // runs of data and of zeros
			n := min(1+rng.IntN(300<<10), len(want)-i)
			if rng.IntN(2) == 0 {
				for j := range n {
					want[i+j] = byte(rng.Uint32())
				}
			}
			i += n
		}
		fresh := seed%2 == 0
		target := &sectorTarget{data: make([]byte, len(want)), written: make([]bool, len(want)/512)}
		if !fresh {
			for i := range target.data {
				target.data[i] = 0xA5
			}
		}
		var pieces []extent.Extent
		for off := 0; off < len(want); {
			n := min(1+rng.IntN(70<<10), len(want)-off)
			if rng.IntN(4) == 0 {
				n = min(1+rng.IntN(300), len(want)-off) // several pieces in one sector
			}
			pieces = append(pieces, extent.Extent{Off: int64(off), Len: int64(n)})
			off += n
		}
		rng.Shuffle(len(pieces), func(i, j int) { pieces[i], pieces[j] = pieces[j], pieces[i] })
		var written atomic.Int64
		s := &stitcher{target: target, fresh: fresh, pending: map[int64]*sector{}, written: &written}
		var wg sync.WaitGroup
		for w := range 3 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for i := w; i < len(pieces); i += 3 {
					e := pieces[i]
					data := want[e.Off:e.End()]
					var err error
					if isZero(data) && i%2 == 0 {
						err = s.zeros(e)
					} else {
						err = s.write(e.Off, data)
					}
					if err != nil {
						t.Errorf("seed %d: %v", seed, err)
						return
					}
				}
			}()
		}
		wg.Wait()
		if err := s.complete(); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if !bytes.Equal(target.data, want) {
			t.Fatalf("seed %d, fresh %v: the disk is not what it should be", seed, fresh)
		}
		if fresh && isZero(want) && written.Load() != 0 {
			t.Errorf("seed %d: zeros were written to a fresh disk", seed)
		}
	}
}

func TestStitcherNoticesWhatIsMissing(t *testing.T) {
	target := &sectorTarget{data: make([]byte, 1024), written: make([]bool, 2)}
	s := &stitcher{target: target, pending: map[int64]*sector{}, written: new(atomic.Int64)}
	if err := s.write(0, make([]byte, 700)); err != nil {
		t.Fatal(err)
	}
	if err := s.complete(); err == nil {
		t.Error("half a sector counts as complete")
	}
}

// Over what is nearly right only the sectors that differ are written, with short gaps between them.
func TestStitcherWritesWhatDiffers(t *testing.T) {
	for seed := range uint64(40) {
		rng := rand.New(rand.NewPCG(seed, 2))
		want := make([]byte, (1+rng.IntN(1000))*512)
		for i := range want {
			want[i] = byte(rng.Uint32())
		}
		target := &sectorTarget{data: bytes.Clone(want), written: make([]bool, len(want)/512)}
		different := map[int]bool{}
		for range rng.IntN(8) {
			n := rng.IntN(len(want) / 512)
			target.data[n*512+rng.IntN(512)] ^= 1
			different[n] = true
		}
		var spoilt int
		for n := range different {
			if !bytes.Equal(target.data[n*512:n*512+512], want[n*512:n*512+512]) {
				spoilt++
			}
		}
		var written atomic.Int64
		s := &stitcher{target: target, there: target, patch: true, pending: map[int64]*sector{}, written: &written}
		for off := 0; off < len(want); {
			n := min(1+rng.IntN(70<<10), len(want)-off)
			if err := s.write(int64(off), want[off:off+n]); err != nil {
				t.Fatal(err)
			}
			off += n
		}
		if err := s.complete(); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(target.data, want) {
			t.Fatalf("seed %d: the disk is not what it should be", seed)
		}
		if got := written.Load(); got < int64(spoilt*512) || got > int64(spoilt*(512+patchGap)) {
			t.Errorf("seed %d: %d bytes were written for %d sectors that differ", seed, got, spoilt)
		}
	}
}

// Looking at what is there takes no memory for each piece.
func TestPatchingReusesItsBuffers(t *testing.T) {
	const piece, pieces = 1 << 20, 64
	target := &sectorTarget{data: make([]byte, piece*pieces), written: make([]bool, piece*pieces/512)}
	s := &stitcher{target: target, there: target, patch: true, pending: map[int64]*sector{}, written: new(atomic.Int64)}
	data := make([]byte, piece)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for n := range int64(pieces) {
		if err := s.write(n*piece, data); err != nil {
			t.Fatal(err)
		}
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > piece*pieces/2 {
		t.Errorf("%d bytes were allocated for %d pieces of %d", n, pieces, piece)
	}
}
