package chunker

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/vmkeep/vmkeep/chunker/extent"
)

// Production storage gives each 64 KiB that changed once, whatever has to be cut again around it.
func TestDiskIsReadOnlyWhereItChanged(t *testing.T) {
	c, err := New(testPol)
	if err != nil {
		t.Fatal(err)
	}
	for seed := range uint64(4) {
		rng := rand.New(rand.NewPCG(seed, 2))
		old := samples(48<<20, byte(seed))["mixed"]
		lens, sums := full(old, c)
		now := bytes.Clone(old)
		switch seed {
		case 1:
			now = append(now, samples(1<<20, 3)["random"]...)
		case 2:
			now = now[:len(now)-5<<20]
		}
		var changes []extent.Extent
		for range 12 {
			e := extent.Extent{Off: rng.Int64N(int64(len(now)-64<<10)) / sector * sector, Len: sector * (1 + rng.Int64N(127))}
			copy(now[e.Off:e.End()], samples(int(e.Len), 5)["random"])
			changes = append(changes, e)
		}
		p := Plan{Size: int64(len(now)), Old: lens, Dirty: extent.Of(changes...)}
		base, top := &recorder{data: old}, &recorder{data: now}
		gotLens, gotSums := collect(t, p, &Overlay{Base: base, Top: top, Extents: p.Changed()}, c, sums)
		wantLens, wantSums := full(now, c)
		if !slices.Equal(gotLens, wantLens) || !slices.Equal(gotSums, wantSums) {
			t.Fatalf("seed %d: chunks differ from a full read", seed)
		}
		if len(top.bad)+len(base.bad) > 0 {
			t.Errorf("seed %d: %s %s", seed, top.bad, base.bad)
		}
		limit := p.Dirty
		if len(now) > len(old) {
			limit = limit.Union(extent.Of(extent.Extent{Off: int64(len(old)), Len: int64(len(now) - len(old))}))
		}
		limit = limit.Align(64<<10, p.Size)
		read := extent.Of(top.reads...)
		if over := read.Subtract(limit); len(over) > 0 {
			t.Errorf("seed %d: the disk was read at %v, which did not change", seed, over)
		}
		if missed := p.Dirty.Subtract(read); len(missed) > 0 {
			t.Errorf("seed %d: the disk was not read at %v, which changed", seed, missed)
		}
		if top.total() > limit.Bytes() {
			t.Errorf("seed %d: the disk was read twice in places: %d bytes of %d", seed, top.total(), limit.Bytes())
		}
		t.Logf("seed %d: %d bytes changed, %d read from the disk, %d from the old point", seed, p.Dirty.Bytes(), top.total(), base.total())
	}
}

func TestChanged(t *testing.T) {
	const k = 64 << 10
	dirty := extent.Of(extent.Extent{Off: 2*k + 1, Len: 1}, extent.Extent{Off: 100 * k, Len: k})
	for name, c := range map[string]struct {
		p    Plan
		want extent.Set
	}{
		"full":   {Plan{Size: 5*k + 512}, extent.Set{{Off: 0, Len: 5*k + 512}}},
		"same":   {Plan{Size: 10 * k, Old: []int{10 * k}, Dirty: dirty}, extent.Set{{Off: 2 * k, Len: k}}},
		"grown":  {Plan{Size: 10 * k, Old: []int{7*k - 512}, Dirty: dirty}, extent.Set{{Off: 2 * k, Len: k}, {Off: 6 * k, Len: 4 * k}}},
		"shrunk": {Plan{Size: 2*k + 512, Old: []int{7 * k}, Dirty: dirty}, extent.Set{{Off: 2 * k, Len: 512}}},
		"empty":  {Plan{Dirty: dirty}, nil},
	} {
		if got := c.p.Changed(); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

func TestOverlayEqualsPatchedBytes(t *testing.T) {
	for seed := range uint64(2000) {
		rng := rand.New(rand.NewPCG(seed, 3))
		n := 1 + rng.Int64N(200)
		base, top := make([]byte, n), bytes.Repeat([]byte{1}, int(n))
		var es []extent.Extent
		for range rng.IntN(6) {
			off := rng.Int64N(n)
			es = append(es, extent.Extent{Off: off, Len: rng.Int64N(n - off + 1)})
		}
		want := bytes.Clone(base)
		for _, e := range es {
			copy(want[e.Off:e.End()], top[e.Off:])
		}
		o := &Overlay{Base: bytes.NewReader(base), Top: bytes.NewReader(top), Extents: extent.Of(es...)}
		off := rng.Int64N(n)
		got := bytes.Repeat([]byte{9}, int(rng.Int64N(n-off)+1))
		if m, err := o.ReadAt(got, off); m != len(got) || err != nil {
			t.Fatalf("seed %d: %d %v", seed, m, err)
		}
		if !bytes.Equal(got, want[off:off+int64(len(got))]) {
			t.Fatalf("seed %d: %v at %d of %v\nwant %v", seed, got, off, o.Extents, want[off:])
		}
	}
}

type failing struct{ err error }

func (f failing) ReadAt([]byte, int64) (int, error) { return 0, f.err }

func TestOverlayFailsWithTheReaderThatFailed(t *testing.T) {
	good := bytes.NewReader(make([]byte, 100))
	ex := extent.Of(extent.Extent{Off: 10, Len: 10})
	for _, c := range []struct {
		o    Overlay
		off  int64
		n    int
		want error
		says string
	}{
		{Overlay{failing{iotest.ErrTimeout}, good, ex}, 0, 0, iotest.ErrTimeout, "unchanged bytes 0 to 10"},
		{Overlay{good, failing{iotest.ErrTimeout}, ex}, 0, 10, iotest.ErrTimeout, "changed bytes 10 to 20"},
		{Overlay{good, good, ex}, 90, 0, io.ErrUnexpectedEOF, "unchanged bytes 90 to 130"},
		{Overlay{good, bytes.NewReader(make([]byte, 15)), ex}, 5, 5, io.ErrUnexpectedEOF, "changed bytes 10 to 20"},
		{Overlay{failing{nil}, good, ex}, 12, 8, io.ErrUnexpectedEOF, "unchanged bytes 20 to 52"},
	} {
		n, err := c.o.ReadAt(make([]byte, 40), c.off)
		if n != c.n || !errors.Is(err, c.want) || !strings.HasPrefix(err.Error(), c.says) {
			t.Errorf("%s: got %d, %v", c.says, n, err)
		}
	}
	if _, err := (&Overlay{Base: good, Top: good}).ReadAt(make([]byte, 1), -1); err == nil {
		t.Error("a negative offset is read")
	}
}
