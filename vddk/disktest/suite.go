package disktest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/vddk"
)

// Harness is a transport under test, and the other end of it.
type Harness struct {
	Transport vddk.Transport
	// New makes a disk of size bytes (a multiple of 512), all zeros and unallocated, and names it. It lasts as long
	// as t.
	New func(t *testing.T, size int64) Target
	// Reconnects: reads go on after Target.Cut. Without it they fail with [vddk.ErrConnectionLost].
	Reconnects bool
	// Unit is how coarse allocation is, bytes.
	Unit int64
	// Lacks names what the transport does not have, with the reason. Whatever is not named here is demanded.
	Lacks map[Ability]string
}

// Target is a disk behind the transport.
type Target struct {
	Spec vddk.Spec // as given to Open; Write is set by the suite
	// Raw is the disk's content, beside the transport. What is written there before an opening is seen by it.
	Raw interface {
		io.ReaderAt
		io.WriterAt
	}
	Cut   func()                 // breaks every connection to the disk there is, see [Cutting]
	Stall func() (resume func()) // makes answers wait until the returned function is called, see [Stalling]
}

// patience bounds everything that ought to end soon.
const patience = 30 * time.Second

// Run holds the transport to all promises.
func Run(t *testing.T, h Harness) {
	for _, c := range []struct {
		name  string
		test  func(*testing.T, Harness)
		needs Ability // empty: none
	}{
		{"Abilities", abilities, ""},
		{"Alignment", alignment, ""},
		{"Sizes", sizes, ""},
		{"EndOfDisk", endOfDisk, ""},
		{"Sparse", sparse, ""},
		{"Unknown", unknown, ""},
		{"Model", model, ""},
		{"Parallel", parallel, ""},
		{"ReadOnly", readOnly, ""},
		{"Durability", durability, ""},
		{"Flush", flush, Flushing},
		{"Allocated", allocated, Allocation},
		{"Lent", lent, Lending},
		{"LentAfterwards", lentAfterwards, Lending},
		{"CancelBefore", cancelBefore, ""},
		{"CancelIdle", cancelIdle, ""},
		{"CancelInFlight", cancelInFlight, Stalling},
		{"CutReading", cutReading, Cutting},
		{"CutWriting", cutWriting, Cutting},
		{"CloseInFlight", closeInFlight, ""},
		{"CloseTwice", closeTwice, ""},
	} {
		if _, lacks := h.Lacks[c.needs]; !lacks {
			t.Run(c.name, func(t *testing.T) { c.test(t, h) })
		}
	}
}

// open opens a target; the test closes what it opens.
func open(t *testing.T, h Harness, ctx context.Context, s vddk.Spec) vddk.Disk {
	t.Helper()
	d, err := h.Transport.Open(ctx, s)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return d
}

func writable(s vddk.Spec) vddk.Spec { s.Write = true; return s }

func shut(t *testing.T, d vddk.Disk) {
	t.Helper()
	if err := d.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

// within wants f to end.
func within(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatalf("%s does not end", what)
	}
}

func random(n int, seed uint64) []byte {
	var s [32]byte
	for i := range 8 {
		s[i] = byte(seed >> (8 * i))
	}
	p := make([]byte, n)
	rand.NewChaCha8(s).Read(p)
	return p
}

// filled is a target with random content.
func filled(t *testing.T, h Harness, size int) (Target, []byte) {
	t.Helper()
	x := h.New(t, int64(size))
	content := random(size, 7)
	if _, err := x.Raw.WriteAt(content, 0); err != nil {
		t.Fatal(err)
	}
	return x, content
}

func alignment(t *testing.T, h Harness) {
	x, content := filled(t, h, 1<<20)
	d := open(t, h, t.Context(), writable(x.Spec))
	defer shut(t, d)
	for _, c := range []struct {
		off int64
		n   int
	}{{1, 512}, {0, 1}, {0, 511}, {511, 512}, {512, 513}, {-512, 512}, {-1, 512}, {1 << 19, 100}} {
		if _, err := d.ReadAt(make([]byte, c.n), c.off); !errors.Is(err, vddk.ErrAlignment) {
			t.Errorf("reading %d bytes at %d gives %v", c.n, c.off, err)
		}
		if _, err := d.WriteAt(make([]byte, c.n), c.off); !errors.Is(err, vddk.ErrAlignment) {
			t.Errorf("writing %d bytes at %d gives %v", c.n, c.off, err)
		}
	}
	got := make([]byte, len(content))
	if _, err := d.ReadAt(got, 0); err != nil || !bytes.Equal(got, content) {
		t.Errorf("refused calls changed the disk (%v)", err)
	}
}

func sizes(t *testing.T, h Harness) {
	const size = 3<<20 + 512
	x, content := filled(t, h, size)
	d := open(t, h, t.Context(), x.Spec)
	defer shut(t, d)
	if d.Size() != size {
		t.Fatalf("size is %d, not %d", d.Size(), size)
	}
	for _, n := range []int{0, 512, 1024, 4096, 64<<10 - 512, 64 << 10, 64<<10 + 512, 1 << 20, 1<<20 + 512, 2<<20 + 1024, size} {
		for _, off := range []int{512, size - n} {
			if off+n > size {
				continue
			}
			got := make([]byte, n)
			if k, err := d.ReadAt(got, int64(off)); k != n || err != nil && err != io.EOF {
				t.Fatalf("reading %d bytes at %d gives %d, %v", n, off, k, err)
			}
			if !bytes.Equal(got, content[off:off+n]) {
				t.Fatalf("reading %d bytes at %d gives others", n, off)
			}
		}
	}
}

func endOfDisk(t *testing.T, h Harness) {
	const size = 1<<20 + 512
	x, content := filled(t, h, size)
	d := open(t, h, t.Context(), writable(x.Spec))
	defer shut(t, d)
	for _, off := range []int64{size, size + 512, 1 << 40} {
		if n, err := d.ReadAt(make([]byte, 512), off); n != 0 || err != io.EOF {
			t.Errorf("reading behind the end, at %d, gives %d, %v", off, n, err)
		}
	}
	got := make([]byte, 2048)
	if n, err := d.ReadAt(got, size-1024); n != 1024 || err != io.EOF || !bytes.Equal(got[:n], content[size-1024:]) {
		t.Errorf("reading across the end gives %d, %v", n, err)
	}
	for _, off := range []int64{size - 512, size, 1 << 40} {
		if _, err := d.WriteAt(make([]byte, 1024), off); err == nil {
			t.Errorf("writing across the end, at %d, is accepted", off)
		}
	}
	got = make([]byte, size)
	if _, err := d.ReadAt(got, 0); err != nil && err != io.EOF || !bytes.Equal(got, content) {
		t.Errorf("a refused write changed the disk (%v)", err)
	}
}

func sparse(t *testing.T, h Harness) {
	const size = 256 << 20
	x := h.New(t, size)
	word := []byte("here")
	for _, at := range []int64{0, 100 << 20, size - 4} {
		if _, err := x.Raw.WriteAt(word, at); err != nil {
			t.Fatal(err)
		}
	}
	d := open(t, h, t.Context(), x.Spec)
	defer shut(t, d)
	buf := random(1<<20, 1)
	for _, off := range []int64{50 << 20, 100 << 20, size - 2<<20} {
		if _, err := d.ReadAt(buf, off); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		want := make([]byte, len(buf))
		if _, err := x.Raw.ReadAt(want, off); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		if !bytes.Equal(buf, want) {
			t.Errorf("at %d the hole does not read as zeros", off)
		}
	}
}

func unknown(t *testing.T, h Harness) {
	x := h.New(t, 1<<20)
	x.Spec.Path += ".no-such-disk"
	x.Spec.Key += 4711
	if d, err := h.Transport.Open(t.Context(), x.Spec); !errors.Is(err, vddk.ErrNotFound) {
		t.Errorf("an unknown disk gives %v", err)
		if err == nil {
			shut(t, d)
		}
	}
}

// model does random operations on the disk and on bytes in memory.
func model(t *testing.T, h Harness) {
	const size = 2<<20 + 1536
	x := h.New(t, size)
	want := make([]byte, size)
	d := open(t, h, t.Context(), writable(x.Spec))
	r := rand.New(rand.NewPCG(1, 2))
	pick := func() (off, n int) {
		n = (1 + r.IntN(1+r.IntN(1<<10))) * 512
		off = r.IntN(size/512) * 512
		return off, min(n, size-off)
	}
	for i := range 100 {
		off, n := pick()
		if r.IntN(2) == 0 {
			p := random(n, uint64(i))
			if r.IntN(4) == 0 {
				clear(p)
			}
			if k, err := d.WriteAt(p, int64(off)); k != n || err != nil {
				t.Fatalf("operation %d: writing %d at %d gives %d, %v", i, n, off, k, err)
			}
			copy(want[off:], p)
			continue
		}
		got := make([]byte, n)
		if k, err := d.ReadAt(got, int64(off)); k != n || err != nil && err != io.EOF {
			t.Fatalf("operation %d: reading %d at %d gives %d, %v", i, n, off, k, err)
		}
		if !bytes.Equal(got, want[off:off+n]) {
			t.Fatalf("operation %d: reading %d at %d gives other bytes than were written", i, n, off)
		}
	}
	shut(t, d)
	same(t, x, want)
}

// same wants the raw content of a target.
func same(t *testing.T, x Target, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := x.Raw.ReadAt(got, 0); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("the disk's content is not what was written")
	}
}

// parallel does the same from several goroutines, each in a stripe of its own, while others read everything.
func parallel(t *testing.T, h Harness) {
	const stripe, writers, readers, rounds = 256 << 10, 6, 3, 15
	x, content := filled(t, h, stripe*(writers+1))
	d := open(t, h, t.Context(), writable(x.Spec))
	want := bytes.Clone(content)
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 3))
			mine := want[w*stripe : (w+1)*stripe]
			for i := range rounds {
				off := r.IntN(stripe/512) * 512
				n := min((1+r.IntN(200))*512, stripe-off)
				p := random(n, uint64(w*1000+i))
				if _, err := d.WriteAt(p, int64(w*stripe+off)); err != nil {
					t.Errorf("write: %v", err)
					return
				}
				copy(mine[off:], p)
				if _, err := d.ReadAt(p, int64(w*stripe+off)); err != nil || !bytes.Equal(p, mine[off:off+n]) {
					t.Errorf("a write is not seen by the same goroutine's read (%v)", err)
					return
				}
			}
		})
	}
	for g := range readers {
		wg.Go(func() { // the last stripe does not change
			r := rand.New(rand.NewPCG(uint64(g), 4))
			for range rounds {
				off := r.IntN(stripe/512) * 512
				n := min((1+r.IntN(500))*512, stripe-off)
				p := make([]byte, n)
				at := writers*stripe + off
				if _, err := d.ReadAt(p, int64(at)); err != nil && err != io.EOF || !bytes.Equal(p, content[at:at+n]) {
					t.Errorf("concurrent read is wrong (%v)", err)
					return
				}
			}
		})
	}
	wg.Wait()
	shut(t, d)
	same(t, x, want)
}

func readOnly(t *testing.T, h Harness) {
	x, content := filled(t, h, 1<<20)
	d := open(t, h, t.Context(), x.Spec)
	if _, err := d.WriteAt(make([]byte, 512), 0); !errors.Is(err, vddk.ErrReadOnly) {
		t.Errorf("writing gives %v", err)
	}
	shut(t, d)
	same(t, x, content)
}

func durability(t *testing.T, h Harness) {
	x := h.New(t, 4<<20)
	want := random(4<<20, 5)
	d := open(t, h, t.Context(), writable(x.Spec))
	if _, err := d.WriteAt(want, 0); err != nil {
		t.Fatal(err)
	}
	shut(t, d)
	same(t, x, want)
	d = open(t, h, t.Context(), x.Spec)
	defer shut(t, d)
	got := make([]byte, len(want))
	if _, err := d.ReadAt(got, 0); err != nil && err != io.EOF || !bytes.Equal(got, want) {
		t.Errorf("after reopening the disk reads otherwise (%v)", err)
	}
}

func flush(t *testing.T, h Harness) {
	x := h.New(t, 2<<20)
	want := random(2<<20, 6)
	d := open(t, h, t.Context(), writable(x.Spec))
	f := d.(vddk.Flusher)
	for _, n := range []int{1 << 20, 2 << 20} {
		if _, err := d.WriteAt(want[n-1<<20:n], int64(n)-1<<20); err != nil {
			t.Fatal(err)
		}
		if err := f.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		same(t, x, append(bytes.Clone(want[:n]), make([]byte, len(want)-n)...))
	}
	shut(t, d)
	if err := f.Flush(t.Context()); !errors.Is(err, vddk.ErrClosed) {
		t.Errorf("flushing after Close gives %v", err)
	}
}

func allocated(t *testing.T, h Harness) {
	size := 40*h.Unit + 512
	x := h.New(t, size)
	var data extent.Set
	for _, e := range []extent.Extent{{Off: 0, Len: 512}, {Off: 3*h.Unit - 512, Len: 1024}, {Off: 10 * h.Unit, Len: 5 * h.Unit}, {Off: size - 512, Len: 512}} {
		if _, err := x.Raw.WriteAt(random(int(e.Len), 9), e.Off); err != nil {
			t.Fatal(err)
		}
		data = data.Union(extent.Of(e))
	}
	d := open(t, h, t.Context(), x.Spec)
	defer shut(t, d)
	a := d.(vddk.Allocator)
	whole := extent.Extent{Len: size}
	for _, e := range []extent.Extent{whole, {Off: 512, Len: 512}, {Off: 5 * h.Unit, Len: 3*h.Unit + 512}, {Off: 9*h.Unit + 512, Len: 2 * h.Unit}, {Off: size - 512, Len: 512}, {Off: h.Unit}} {
		got, err := a.Allocated(t.Context(), e)
		if err != nil {
			t.Fatalf("allocated of %s: %v", e, err)
		}
		asked := extent.Set{}.Union(extent.Of(e)).Align(h.Unit, size)
		if extra := got.Subtract(asked); len(extra) > 0 {
			t.Errorf("allocated of %s names %v, which was not asked for", e, extra)
		}
		if missing := data.Clip(e).Subtract(got); len(missing) > 0 {
			t.Errorf("allocated of %s lacks %v", e, missing)
		}
		if most := data.Align(h.Unit, size).Union(extent.Of(extent.Extent{Off: size / h.Unit * h.Unit, Len: size % h.Unit})); len(got.Subtract(most)) > 0 {
			t.Errorf("allocated of %s names holes: %v", e, got.Subtract(most))
		}
	}
	shut(t, d)
	if _, err := a.Allocated(t.Context(), whole); !errors.Is(err, vddk.ErrClosed) {
		t.Errorf("allocated after Close gives %v", err)
	}
}
