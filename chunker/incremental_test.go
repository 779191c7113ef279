package chunker

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/vmkeep/vmkeep/chunker/extent"
)

// recorder is a disk that checks how it is read.
type recorder struct {
	data []byte

	mu    sync.Mutex
	reads []extent.Extent
	bufs  map[*byte]bool
	bad   []string
}

func (r *recorder) ReadAt(p []byte, off int64) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	end := off + int64(len(p))
	size := int64(len(r.data))
	if off%sector != 0 || end%sector != 0 && end != size || end > size || len(p) == 0 {
		r.bad = append(r.bad, fmt.Sprintf("read of %d bytes at %d of %d", len(p), off, size))
	}
	r.reads = append(r.reads, extent.Extent{Off: off, Len: int64(len(p))})
	if r.bufs == nil {
		r.bufs = map[*byte]bool{}
	}
	r.bufs[&p[0]] = true
	return copy(p, r.data[off:]), nil
}

// total is the number of bytes read, those read twice counted twice.
func (r *recorder) total() (n int64) {
	for _, e := range r.reads {
		n += e.Len
	}
	return n
}

// full is how b is cut when all of it is known at once.
func full(b []byte, c *Cutter) (lens []int, sums []sum) {
	for len(b) > 0 {
		n := c.Next(b)
		lens, sums = append(lens, n), append(sums, sha256.Sum256(b[:n]))
		b = b[n:]
	}
	return lens, sums
}

// disks makes an old and a new disk of up to size bytes, what a change tracker says of the difference, and holes of the new one.
func disks(rng *rand.Rand, size int) (old, now []byte, dirty, holes extent.Set) {
	fill := func(b []byte) {
		switch rng.IntN(5) {
		case 0, 1:
			clear(b)
		case 2:
			for i := range b {
				b[i] = byte(i >> 8)
			}
		default:
			for i := range b {
				b[i] = byte(rng.Uint32())
			}
		}
	}
	any := func(n int) (int, int) { // a range of [0, n): sometimes aligned, often short
		lo := rng.IntN(n + 1)
		l := rng.IntN(1 + rng.IntN(n-lo+1))
		if rng.IntN(2) == 0 {
			lo = lo / sector * sector
			l = min((l+sector)/sector*sector, n-lo)
		}
		return lo, l
	}
	old = make([]byte, rng.IntN(size+1))
	fill(old)
	for range rng.IntN(8) {
		lo, l := any(len(old))
		fill(old[lo : lo+l])
	}
	now = bytes.Clone(old)
	switch rng.IntN(4) {
	case 0: // grown
		more := make([]byte, rng.IntN(size))
		fill(more)
		now = append(now, more...)
	case 1: // shrunk
		now = now[:rng.IntN(len(now)+1)]
	}
	for range rng.IntN(6) {
		lo, l := any(len(now))
		fill(now[lo : lo+l])
		dirty = append(dirty, extent.Extent{Off: int64(lo), Len: int64(l)})
	}
	for range rng.IntN(2) { // reported, but not changed
		lo, l := any(2 * size)
		dirty = append(dirty, extent.Extent{Off: int64(lo), Len: int64(l)})
	}
	for lo := 0; lo < len(now); {
		if now[lo] != 0 {
			lo++
			continue
		}
		hi := lo
		for hi < len(now) && now[hi] == 0 {
			hi++
		}
		if rng.IntN(4) > 0 {
			a, b := lo, hi
			if rng.IntN(2) == 0 {
				a, b = lo+rng.IntN(hi-lo+1), hi-rng.IntN(hi-lo+1)
			}
			if b == len(now) && rng.IntN(2) == 0 {
				b += rng.IntN(5000) // a hole may reach beyond the part
			}
			if a < b {
				holes = append(holes, extent.Extent{Off: int64(a), Len: int64(b - a)})
			}
		}
		lo = hi
	}
	return old, now, extent.Of(dirty...), extent.Of(holes...)
}

// checkIncremental says that the chunks of plan are those of a full read, and that each sector of a new chunk
// outside holes was read once, and nothing else was.
func checkIncremental(t *testing.T, c *Cutter, p Plan, old, now []byte) {
	t.Helper()
	var oldSums []sum
	p.Old, oldSums = full(old, c)
	p.Size = int64(len(now))
	wantLens, wantSums := full(now, c)

	r := &recorder{data: now}
	lens, sums := collect(t, p, r, c, oldSums)
	if !slices.Equal(lens, wantLens) {
		t.Fatalf("old %d bytes %d\nplan %+v\ngot  %d\nwant %d", len(old), p.Old, p, lens, wantLens)
	}
	if !slices.Equal(sums, wantSums) {
		t.Fatalf("plan %+v: contents differ", p)
	}
	if len(r.bad) > 0 {
		t.Fatalf("plan %+v: %s", p, r.bad)
	}

	var fresh extent.Set
	for ch, err := range p.Chunks(&recorder{data: now}, c) {
		if err != nil {
			t.Fatal(err)
		}
		if ch.Data != nil || ch.Zero {
			fresh = append(fresh, extent.Extent{Off: ch.Off, Len: int64(ch.Len)})
		}
	}
	holes := p.Holes.Complement(p.Size).Align(sector, p.Size).Complement(p.Size)
	want := extent.Of(fresh...).Align(sector, p.Size).Subtract(holes)
	read := extent.Of(r.reads...)
	if !slices.Equal(read, want) {
		t.Fatalf("plan %+v\nread %v\nwant %v", p, read, want)
	}
	if c.min >= 2*sector && r.total() != read.Bytes() {
		t.Fatalf("plan %+v: read %d bytes, %d of them again", p, r.total(), r.total()-read.Bytes())
	}
	certain, err := p.Reads(c)
	if err != nil || len(certain.Subtract(read)) > 0 {
		t.Fatalf("Reads %v, %v; read %v", certain, err, read)
	}
	depth := p.Ahead.Depth
	if depth == 0 {
		depth = defaultDepth
	}
	if len(r.bufs) > depth+1 {
		t.Fatalf("plan %+v: %d buffers", p, len(r.bufs))
	}
}

func small(t testing.TB, l limits) *Cutter {
	c, err := newCutter(testPol, l)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestIncrementalEqualsFull(t *testing.T) {
	fixed, err := Fixed(2048)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]*Cutter{
		"tiny":   small(t, limits{min: 65, max: 1000, bits: 6, step: 50}),
		"sector": small(t, limits{min: 512, max: 4096, bits: 10, step: 512}),
		"like":   small(t, limits{min: 1024, max: 16 << 10, bits: 11, step: 512}), // restic's proportions
		"coarse": small(t, limits{min: 3000, max: 9000, bits: 14, step: 5000}),    // mostly cut at max
		"fixed":  fixed,
		"zeros":  small(t, limits{min: 512, max: 8 << 10, bits: 9, step: 256, zero: 2048}),
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(600) {
				rng := rand.New(rand.NewPCG(seed, 1))
				old, now, dirty, holes := disks(rng, 1+rng.IntN(100<<10))
				checkIncremental(t, c, Plan{
					Dirty: dirty,
					Holes: holes,
					Ahead: Ahead{Depth: rng.IntN(6), Piece: sector << rng.IntN(8)},
				}, old, now)
				if t.Failed() {
					t.Fatalf("seed %d", seed)
				}
			}
		})
	}
}

func TestIncrementalEqualsFullAtRealSizes(t *testing.T) {
	c, err := New(testPol)
	if err != nil {
		t.Fatal(err)
	}
	mib := func(off, n float64) extent.Extent {
		return extent.Extent{Off: int64(off * (1 << 20)), Len: int64(n * (1 << 20))}
	}
	for i, size := range []int{0, -5 << 20, 3<<20 + 7} { // growth
		old := samples(40<<20, byte(i))["mixed"]
		now := bytes.Clone(old)
		if size < 0 {
			now = now[:len(now)+size]
		} else {
			now = append(now, samples(3<<20+7, 9)["random"][:size]...)
		}
		dirty := extent.Of(mib(1, 1./16), mib(9, 1), mib(17.5, 4), mib(31, 1./16))
		for _, e := range dirty {
			copy(now[e.Off:e.End()], samples(int(e.Len), 7)["random"])
		}
		clear(now[18<<20 : 21<<20])
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			checkIncremental(t, c, Plan{Dirty: dirty, Holes: extent.Of(mib(18, 3))}, old, now)
		})
	}
}

// drawn is a disk that is told in pairs of a kind and a length: zeros, one byte again and again, noise, or, after the pair,
// the bytes themselves. The fuzzer tries to shorten what is new to it in as many ways as the square of its length: with
// disks as they are it would do nothing else.
func drawn(pairs []byte) (disk []byte) {
	for len(pairs) >= 2 {
		kind, n := pairs[0], int(pairs[1])
		pairs = pairs[2:]
		run := make([]byte, n<<(kind>>2%6))
		switch kind & 3 {
		case 1:
			for i := range run {
				run[i] = kind
			}
		case 2:
			rand.NewChaCha8([32]byte{kind, byte(n)}).Read(run)
		case 3:
			n = min(n, len(pairs))
			run, pairs = pairs[:n], pairs[n:]
		}
		disk = append(disk, run...)
	}
	return disk
}

// FuzzPlan lets the fuzzer draw both disks; what differs is dirty, and more besides.
func FuzzPlan(f *testing.F) {
	cutters := []*Cutter{small(f, limits{min: 100, max: 1500, bits: 5, step: 64}), small(f, limits{min: 100, max: 1500, bits: 5, step: 64, zero: 400})}
	f.Add([]byte("\x03\x03old"), []byte("\x03\x03new"), []byte{})
	f.Add([]byte{2, 200, 14, 100, 1, 255}, []byte{2, 200, 3, 1, 'x', 14, 100, 1, 200}, []byte{0, 1, 4, 2, 8, 3, 7})
	f.Add([]byte{16, 188}, []byte{20, 255, 0, 9}, []byte{1, 1, 0, 200, 2, 0, 3, 250})
	f.Add([]byte{}, []byte{16, 250}, []byte{255, 0, 0, 255, 255})
	f.Fuzz(func(t *testing.T, ofOld, ofNow, more []byte) {
		old, now := drawn(ofOld), drawn(ofNow)
		if len(ofOld)+len(ofNow)+len(more) > 100 || len(old)+len(now) > 64<<10 {
			return // only slow
		}
		var dirty, holes []extent.Extent
		for i := range min(len(old), len(now)) {
			if old[i] != now[i] {
				dirty = append(dirty, extent.Extent{Off: int64(i), Len: 1})
			}
		}
		for i := range now {
			if now[i] == 0 {
				holes = append(holes, extent.Extent{Off: int64(i), Len: 1})
			}
		}
		zeros := append(extent.Of(holes...), extent.Extent{Off: int64(len(now)) + 1, Len: 1 << 40})
		holes = nil
		for ; len(more) >= 3; more = more[3:] { // kind, offset, length: any, within a part or far beyond it
			e := extent.Extent{Off: int64(more[1]) << (more[0] >> 4 % 12), Len: int64(more[2]) << (more[0] >> 1 % 8)}
			if more[0]&1 == 0 {
				dirty = append(dirty, e)
			} else {
				holes = append(holes, e)
			}
		}
		for _, c := range cutters {
			checkIncremental(t, c, Plan{
				Dirty: extent.Of(dirty...),
				Holes: extent.Of(holes...).Intersect(zeros),
				Ahead: Ahead{Depth: 1 + len(now)%3, Piece: sector},
			}, old, now)
		}
	})
}

func TestPlansThatMakeNoSense(t *testing.T) {
	c := small(t, limits{min: 100, max: 1500, bits: 5, step: 64})
	bad := extent.Set{{Off: 9, Len: 3}, {Off: 5, Len: 1}}
	for name, p := range map[string]Plan{
		"negative size":      {Size: -1},
		"short old chunk":    {Size: 1000, Old: []int{99, 900}},
		"long old chunk":     {Size: 1000, Old: []int{1501}},
		"empty old chunk":    {Size: 1000, Old: []int{500, 0}},
		"negative old chunk": {Size: 1000, Old: []int{-500}},
		"dirty no set":       {Size: 1000, Dirty: bad},
		"holes no set":       {Size: 1000, Holes: bad},
		"negative depth":     {Size: 1000, Ahead: Ahead{Depth: -1}},
		"odd piece":          {Size: 1000, Ahead: Ahead{Piece: 1000}},
		"negative piece":     {Size: 1000, Ahead: Ahead{Piece: -512}},
	} {
		var got []error
		for ch, err := range p.Chunks(bytes.NewReader(make([]byte, 1000)), c) {
			if ch.Len != 0 {
				t.Errorf("%s: a chunk %+v", name, ch)
			}
			got = append(got, err)
		}
		_, err := p.Reads(c)
		if len(got) != 1 || got[0] == nil || err == nil {
			t.Errorf("%s: Chunks gives %v, Reads %v", name, got, err)
		}
	}
	for range (Plan{}).Chunks(nil, c) {
		t.Error("an empty part has a chunk")
	}
}

// Holes that were not zero before and are not dirty contradict each other: change tracking missed something. What is
// zero now counts, nothing is left out, and no read goes into a hole.
func TestHolesThatAreNotDirty(t *testing.T) {
	c := small(t, limits{min: 600, max: 4000, bits: 9, step: 512})
	for seed := range uint64(500) {
		rng := rand.New(rand.NewPCG(seed, 4))
		old, now, dirty, _ := disks(rng, 60<<10)
		lens, sums := full(old, c)
		var holes []extent.Extent
		for range 1 + rng.IntN(4) {
			holes = append(holes, extent.Extent{Off: rng.Int64N(60<<10) / sector * sector, Len: sector * rng.Int64N(30)})
		}
		p := Plan{Size: int64(len(now)), Old: lens, Dirty: dirty, Holes: extent.Of(holes...), Ahead: Ahead{Depth: 2, Piece: 2048}}
		r := &recorder{data: now}
		collect(t, p, r, c, sums)
		if in := extent.Of(r.reads...).Intersect(p.Holes); len(in) > 0 || len(r.bad) > 0 {
			t.Fatalf("seed %d: read in holes at %v, %s", seed, in, r.bad)
		}
	}
}

var _ io.ReaderAt = (*recorder)(nil)
