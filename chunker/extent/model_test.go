package extent

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// space is the number of bytes the model knows; sets may reach up to it.
const space = 96

// bitmap is the trivially right model of a set: one bool per byte.
type bitmap [space]bool

func bits(s Set) (m bitmap) {
	for _, e := range s {
		for i := e.Off; i < e.End(); i++ {
			m[i] = true
		}
	}
	return m
}

// where is the bitmap of the bytes for which f holds.
func where(f func(i int64) bool) (m bitmap) {
	for i := range m {
		m[i] = f(int64(i))
	}
	return m
}

// check says that got is a set and has exactly the bytes of want.
func check(t *testing.T, op string, got Set, want bitmap) {
	t.Helper()
	if !got.Valid() {
		t.Fatalf("%s is not a set: %v", op, got)
	}
	for _, e := range got {
		if e.End() > space {
			t.Fatalf("%s reaches to %d: %v", op, e.End(), got)
		}
	}
	if m := bits(got); m != want {
		t.Fatalf("%s = %v\n got %s\nwant %s", op, got, picture(m), picture(want))
	}
}

func picture(m bitmap) string {
	b := make([]byte, space)
	for i, in := range m {
		b[i] = '.'
		if in {
			b[i] = '#'
		}
	}
	return string(b)
}

// laws compares every operation on the sets of as and bs, and on x, with the model.
func laws(t *testing.T, as, bs []Extent, x Extent, unit, size int64) {
	ca, cb := slices.Clone(as), slices.Clone(bs)
	a, b := Of(as...), Of(bs...)
	if !slices.Equal(as, ca) || !slices.Equal(bs, cb) {
		t.Fatal("Of changed its arguments")
	}
	ma, mb := bits(as), bits(bs)
	check(t, "Of", a, ma)
	check(t, "Of", b, mb)
	ca, cb = slices.Clone(a), slices.Clone(b)

	in := func(e Extent, i int64) bool { return i >= e.Off && i < e.End() }
	check(t, "Union", a.Union(b), where(func(i int64) bool { return ma[i] || mb[i] }))
	check(t, "Intersect", a.Intersect(b), where(func(i int64) bool { return ma[i] && mb[i] }))
	check(t, "Subtract", a.Subtract(b), where(func(i int64) bool { return ma[i] && !mb[i] }))
	check(t, "Clip", a.Clip(x), where(func(i int64) bool { return ma[i] && in(x, i) }))
	check(t, "Complement", a.Complement(size), where(func(i int64) bool { return !ma[i] && i < size }))
	check(t, "Align", a.Align(unit, size), where(func(i int64) bool {
		return i < size && slices.Contains(ma[i/unit*unit:min(i/unit*unit+unit, space)], true)
	}))
	if k := space - size; len(a) > 0 && a[len(a)-1].End() <= size {
		check(t, "Shift", a.Shift(k), where(func(i int64) bool { return i >= k && ma[i-k] }))
		check(t, "Shift back", a.Shift(k).Shift(-k), ma)
	}

	var bytes int64
	overlaps, covers := false, true
	for i := range int64(space) {
		if ma[i] {
			bytes++
		}
		overlaps = overlaps || ma[i] && in(x, i)
		covers = covers && (ma[i] || !in(x, i))
	}
	if got := a.Bytes(); got != bytes {
		t.Fatalf("%v has %d bytes, want %d", a, got, bytes)
	}
	if got := a.Overlaps(x); got != overlaps {
		t.Fatalf("%v overlaps %v: %v", a, x, got)
	}
	if got := a.Covers(x); got != covers {
		t.Fatalf("%v covers %v: %v", a, x, got)
	}
	if !slices.Equal(a, ca) || !slices.Equal(b, cb) {
		t.Fatal("an operation changed its operand")
	}
}

func TestOperationsEqualBitmaps(t *testing.T) {
	for seed := range uint64(5000) {
		rng := rand.New(rand.NewPCG(seed, 0))
		some := func() (es []Extent) {
			for range rng.IntN(10) {
				off := rng.Int64N(space)
				es = append(es, Extent{off, rng.Int64N(min(space-off, 24) + 1)})
			}
			return es
		}
		x := rng.Int64N(space)
		laws(t, some(), some(), Extent{x, rng.Int64N(space - x + 1)}, 1+rng.Int64N(20), rng.Int64N(space+1))
	}
}

func FuzzOperations(f *testing.F) {
	f.Add([]byte{1, 2, 3, 4, 5, 6, 7, 8})
	f.Add([]byte{0, 96, 95, 1, 16, 96, 10, 10, 20, 10, 30, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		pop := func(n int64) int64 {
			if len(b) == 0 {
				return 0
			}
			v := int64(b[0]) % n
			b = b[1:]
			return v
		}
		one := func() Extent {
			off := pop(space)
			return Extent{off, pop(space - off + 1)}
		}
		unit, size, x := 1+pop(20), pop(space+1), one()
		var as, bs []Extent
		for len(b) > 0 {
			as, bs = append(as, one()), append(bs, one())
		}
		laws(t, as, bs, x, unit, size)
	})
}

func TestLimitsOfInt64(t *testing.T) {
	const most = math.MaxInt64
	for _, c := range []struct {
		e  Extent
		ok bool
	}{
		{Extent{0, 0}, true}, {Extent{0, most}, true}, {Extent{most, 0}, true}, {Extent{most - 1, 1}, true},
		{Extent{most, 1}, false}, {Extent{1, most}, false}, {Extent{-1, 1}, false}, {Extent{1, -1}, false},
	} {
		if c.e.Valid() != c.ok {
			t.Errorf("%+v valid: %v", c.e, !c.ok)
		}
		func() {
			defer func() {
				if r := recover(); (r == nil) != c.ok {
					t.Errorf("Of(%+v): %v", c.e, r)
				}
			}()
			Of(c.e)
		}()
	}
	all := Of(Extent{0, most})
	last := Extent{most - 1, 1}
	if !all.Covers(last) || all.Align(4096, most)[0] != (Extent{0, most}) || all.Complement(most) != nil {
		t.Error("the greatest set is handled wrongly")
	}
	if s := Of(last).Align(4096, most); len(s) != 1 || s[0].End() != most || s[0].Off%4096 != 0 {
		t.Errorf("aligned: %v", s)
	}
	if s := Of(last).Complement(0); s != nil {
		t.Errorf("complement in nothing: %v", s)
	}
}

func TestValidRejectsWhatIsNoSet(t *testing.T) {
	for _, s := range []Set{
		{{5, 1}, {1, 1}}, // descending
		{{1, 4}, {3, 4}}, // overlapping
		{{1, 2}, {3, 4}}, // touching
		{{1, 0}},         // empty
		{{-1, 3}},        // negative
		{{1, 2}, {10, -1}},
	} {
		if s.Valid() {
			t.Errorf("%v is valid", s)
		}
	}
	if !(Set)(nil).Valid() || !(Set{{0, 1}, {2, 1}}).Valid() {
		t.Error("a set is not valid")
	}
}

func ExampleSet() {
	changed := Of(Extent{65536, 131072}, Extent{0, 65536}, Extent{1 << 20, 512})
	allocated := Of(Extent{0, 100 << 10})
	fmt.Println(changed)
	fmt.Println(changed.Intersect(allocated))
	fmt.Println(changed.Align(64<<10, 2<<20).Bytes())
	// Output:
	// [[0,196608) [1048576,1049088)]
	// [[0,102400)]
	// 262144
}
