package chunker

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"github.com/restic/chunker"
)

func TestCutsEqualRestics(t *testing.T) {
	for i, pol := range polynomials(t) {
		c, err := New(pol)
		if err != nil {
			t.Fatal(err)
		}
		for name, b := range samples(24<<20/(1+i)+77*i, byte(i)) {
			t.Run(fmt.Sprintf("%v/%s", pol, name), func(t *testing.T) {
				want := byRestic(t, b, pol)
				lens, _ := collect(t, Plan{Size: int64(len(b))}, bytes.NewReader(b), c, nil)
				if !slices.Equal(lens, want) {
					t.Errorf("Chunks: %d\nrestic: %d", lens, want)
				}
				var next []int
				for rest := b; len(rest) > 0; rest = rest[next[len(next)-1]:] {
					next = append(next, c.Next(rest))
				}
				if !slices.Equal(next, want) {
					t.Errorf("Next:   %d\nrestic: %d", next, want)
				}
			})
		}
	}
}

// Small limits make every length of a buffer, every distance of candidates and every place in a lane come up.
func TestCandidatesEqualRestics(t *testing.T) {
	for i, pol := range polynomials(t) {
		for _, l := range []limits{{65, 4096, 6, 100, 0}, {128, 100 << 10, 16, 4096, 0}, {1000, 300 << 10, 14, 64 << 10, 0}} {
			c, err := newCutter(pol, l)
			if err != nil {
				t.Fatal(err)
			}
			for name, b := range samples(400<<10+i, byte(i)) {
				var want, got []int
				ref := chunker.NewBase(pol, chunker.WithBaseBoundaries(uint(l.min), uint(l.max)), chunker.WithBaseAverageBits(l.bits))
				for rest := b; len(rest) > 0; rest = rest[want[len(want)-1]:] {
					n := ref.NextSplitPoint(rest)
					if n < 0 {
						n = len(rest)
					}
					want = append(want, n)
				}
				for rest := b; len(rest) > 0; rest = rest[got[len(got)-1]:] {
					got = append(got, c.Next(rest))
				}
				if !slices.Equal(got, want) {
					t.Fatalf("%v %s %+v: %d\nwant %d", pol, name, l, got, want)
				}
				lens, _ := collect(t, Plan{Size: int64(len(b))}, bytes.NewReader(b), c, nil)
				if !slices.Equal(lens, want) {
					t.Fatalf("%v %s %+v: Chunks %d\nwant %d", pol, name, l, lens, want)
				}
			}
		}
	}
}
