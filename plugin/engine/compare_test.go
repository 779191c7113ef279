package engine

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/repo"
	"github.com/vmkeep/vmkeep/repo/backend/local"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// storedDisk is a disk in a repository, cut into chunks of odd lengths with zeros between, and its bytes.
func storedDisk(t *testing.T, size int) (*chunkMap, []byte) {
	t.Helper()
	ctx := t.Context()
	be, err := local.Create(filepath.Join(t.TempDir(), "r"), 0)
	if err != nil {
		t.Fatal(err)
	}
	r, err := repo.Init(ctx, be, repo.InitOptions{Password: "p", KeyTime: time.Microsecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	data := make([]byte, size)
	rng := rand.New(rand.NewPCG(8, 1))
	var tree restic.ID
	if _, err := r.Commit(ctx, func(ctx context.Context, w *repo.Writer) (*restic.Snapshot, error) {
		c := w.Content()
		for off := 0; off < size; {
			if n := 3 * restic.ZeroChunkSize; rng.IntN(3) == 0 && size-off > n {
				off += n
				if err := c.Zeros(int64(n)); err != nil {
					return nil, err
				}
				continue
			}
			piece := data[off:min(size, off+300_001+rng.IntN(1<<20))]
			for i := range piece {
				piece[i] = byte(rng.Uint32())
			}
			if err := c.Append(bytes.Clone(piece)); err != nil {
				return nil, err
			}
			off += len(piece)
		}
		ids, err := c.IDs()
		if err != nil {
			return nil, err
		}
		tree, err = savePart(w, ids, int64(size))
		return &restic.Snapshot{Tree: &tree, Time: epoch()}, err
	}); err != nil {
		t.Fatal(err)
	}
	m := &meter{}
	m.total.Store(int64(size))
	return &chunkMap{repo: r, size: int64(size), parts: []*restic.ID{&tree}, meter: m}, data
}

// countedReads notes what is read of a disk.
type countedReads struct {
	io.ReaderAt
	mu    sync.Mutex
	reads []extent.Extent
}

func (c *countedReads) ReadAt(p []byte, off int64) (int, error) {
	c.mu.Lock()
	c.reads = append(c.reads, extent.Extent{Off: off, Len: int64(len(p))})
	c.mu.Unlock()
	return c.ReaderAt.ReadAt(p, off)
}

func TestComparingFindsWhatDiffersInFewReads(t *testing.T) {
	c, data := storedDisk(t, 24<<20)
	pieces, err := c.pieces(t.Context(), 0, 1)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(pieces, func(p piece) bool { return p.zero() && p.len > zeroPiece }) {
		t.Fatal("no two zero chunks became one piece")
	}
	zeros := int64(0)
	for _, p := range pieces {
		if p.zero() {
			zeros += p.len
		}
	}
	if n, err := c.dataBytes(t.Context()); err != nil || zeros == 0 || n != c.size-zeros {
		t.Errorf("%d bytes are data, want %d less %d: %v", n, c.size, zeros, err)
	}
	nothing := func(piece) bool { return false }

	disk := &countedReads{ReaderAt: bytes.NewReader(data)}
	if found, err := c.differing(t.Context(), disk, nothing); err != nil || len(found) > 0 {
		t.Fatalf("the disk itself: %v, %v", found, err)
	}
	if most := len(data)/compareRun + 1; len(disk.reads) > most {
		t.Errorf("%d reads for %d pieces, at most %d are needed", len(disk.reads), len(pieces), most)
	}
	if done, read := c.meter.done.Load(), c.meter.read.Load(); done != c.size || read != c.size {
		t.Errorf("%d done and %d read of %d", done, read, c.size)
	}

	// One byte in the middle of each piece in turn.
	for _, p := range pieces {
		at := p.off + p.len/2
		data[at] ^= 1
		found, err := c.differing(t.Context(), bytes.NewReader(data), nothing)
		if err != nil || len(found) != 1 || !found.Covers(extent.Extent{Off: at, Len: 1}) || found.Bytes() > max(zeroPiece, p.len) ||
			p.zero() && found.Bytes() > zeroPiece {
			t.Errorf("a byte at %d: %v, %v", at, found, err)
		}
		data[at] ^= 1
	}

	// The first or the last byte of any of the pieces, which end at any byte.
	rng := rand.New(rand.NewPCG(8, 2))
	for range 20 {
		var want, flipped []extent.Extent
		for _, p := range pieces {
			if p.zero() || rng.IntN(3) == 0 {
				continue
			}
			at := extent.Extent{Off: p.off + rng.Int64N(2)*(p.len-1), Len: 1}
			want, flipped = append(want, p.extent()), append(flipped, at)
			data[at.Off] ^= 1
		}
		if found, err := c.differing(t.Context(), bytes.NewReader(data), nothing); err != nil || !slices.Equal(found, extent.Of(want...)) {
			t.Errorf("bytes at %v: %v, want %v: %v", flipped, found, want, err)
		}
		for _, e := range flipped {
			data[e.Off] ^= 1
		}
	}

	// What is skipped is neither read nor found different.
	skipped := pieces[len(pieces)/2].extent()
	data[skipped.Off] ^= 1
	disk.reads = nil
	if found, err := c.differing(t.Context(), disk, func(p piece) bool { return extent.Of(skipped).Overlaps(p.extent()) }); err != nil || len(found) > 0 {
		t.Errorf("skipping %v: %v, %v", skipped, found, err)
	}
	for _, e := range disk.reads {
		if inner := extent.Of(extent.Extent{Off: skipped.Off + 512, Len: skipped.Len - 1024}); inner.Overlaps(e) {
			t.Errorf("%v was read, %v was to be skipped", e, skipped)
		}
	}
	data[skipped.Off] ^= 1

	// A disk that ends early differs from there on.
	short := bytes.NewReader(data[:len(data)-512])
	if found, err := c.differing(t.Context(), short, nothing); err != nil || len(found) != 1 || found[0].End() != c.size {
		t.Errorf("a short disk: %v, %v", found, err)
	}
}

func TestTheEstimatedEndCountsOnlyWork(t *testing.T) {
	for _, c := range []struct {
		what                     string
		done, free, ahead, total int64
		want                     time.Duration // after 10 seconds
	}{
		{"nothing known", 0, 0, 0, 100, 0},
		{"all is work", 50, 0, 0, 100, 10 * time.Second},
		{"half was zeros, all is listed", 60, 50, 40, 100, 40 * time.Second},
		{"only zeros so far", 50, 50, 50, 100, 0},
		{"more will come like it", 100, 90, 0, 1000, 90 * time.Second},
		{"done", 100, 50, 0, 100, 0},
	} {
		m := &meter{}
		m.done.Store(c.done)
		m.free.Store(c.free)
		m.ahead.Store(c.ahead)
		m.total.Store(c.total)
		if got := m.eta(10 * time.Second); got != c.want {
			t.Errorf("%s: %v, want %v", c.what, got, c.want)
		}
	}
}

// A disk is asked only for what is allocated of it, and reads as it would.
func TestHeldAsksForWhatIsAllocated(t *testing.T) {
	for seed := range uint64(50) {
		rng := rand.New(rand.NewPCG(seed, 3))
		data := make([]byte, 64<<10)
		var set []extent.Extent
		for range rng.IntN(6) {
			e := extent.Extent{Off: rng.Int64N(100) * 512, Len: (1 + rng.Int64N(20)) * 512}
			for i := e.Off; i < e.End(); i++ {
				data[i] = byte(rng.Uint32()) | 1
			}
			set = append(set, e)
		}
		disk := &countedReads{ReaderAt: bytes.NewReader(data)}
		h := &held{disk: disk, allocated: extent.Of(set...)}
		asked := int64(0)
		for range 20 {
			off := rng.Int64N(100) * 512
			p := make([]byte, 512*(1+rng.Int64N(28)))
			if n, err := h.ReadAt(p, off); err != nil || n != len(p) || !bytes.Equal(p, data[off:off+int64(n)]) {
				t.Fatalf("seed %d: %d bytes at %d: %d, %v", seed, len(p), off, n, err)
			}
			asked += int64(len(p))
		}
		var read int64
		for _, e := range disk.reads {
			read += e.Len
			if !h.allocated.Covers(e) {
				t.Errorf("seed %d: the disk was asked for %v of %v", seed, e, h.allocated)
			}
		}
		if h.spared.Load() != asked-read {
			t.Errorf("seed %d: %d bytes were spared, %d were read of %d", seed, h.spared.Load(), read, asked)
		}
	}
}
