// Package extent is the algebra of byte ranges of a disk.
//
// Everything that says "which bytes" in vmkeep says it with a [Set]: changed areas from change tracking,
// allocated blocks from a transport, holes, what a restore must write. The package hides one decision:
// a Set is a sorted slice of disjoint, non-empty, non-touching extents, so that every operation is one merge.
//
// Offsets and lengths are bytes, never sectors.
package extent

import (
	"cmp"
	"fmt"
	"math"
	"slices"
)

// Extent is the byte range [Off, Off+Len) of a disk.
type Extent struct{ Off, Len int64 }

// End is the first byte after the extent.
func (e Extent) End() int64 { return e.Off + e.Len }

func (e Extent) String() string { return fmt.Sprintf("[%d,%d)", e.Off, e.End()) }

// Set is a set of bytes: extents in ascending order, none empty, none touching the next.
// The zero value is the empty set. Sets are values: operations return a new Set and never change their operands.
type Set []Extent

// Of makes a Set of extents in any order; they may overlap, touch or be empty.
// Extents with a negative offset or length, or whose end exceeds an int64, make it panic: they are a
// caller's mistake, untrusted input is checked with [Extent.Valid] first.
func Of(es ...Extent) Set {
	s := make(Set, 0, len(es))
	for _, e := range es {
		if !e.Valid() {
			panic(fmt.Sprintf("extent: invalid %d+%d", e.Off, e.Len))
		}
		if e.Len > 0 {
			s = append(s, e)
		}
	}
	slices.SortFunc(s, func(a, b Extent) int { return cmp.Compare(a.Off, b.Off) })
	return s.merged()
}

// Valid reports whether the extent is a possible byte range: nothing negative, no overflow.
func (e Extent) Valid() bool { return e.Off >= 0 && e.Len >= 0 && e.Off <= math.MaxInt64-e.Len }

// Valid reports whether s is a set as every function of this package makes it: for one that was decoded or written by hand.
func (s Set) Valid() bool {
	for i, e := range s {
		if !e.Valid() || e.Len == 0 || i > 0 && e.Off <= s[i-1].End() {
			return false
		}
	}
	return true
}

// merged joins touching and overlapping neighbours of a slice sorted by offset, in place.
func (s Set) merged() Set {
	out := s[:0]
	for _, e := range s {
		if k := len(out); k > 0 && e.Off <= out[k-1].End() {
			out[k-1].Len = max(out[k-1].End(), e.End()) - out[k-1].Off
			continue
		}
		out = append(out, e)
	}
	return out
}

// Bytes is the number of bytes in the set.
func (s Set) Bytes() int64 {
	var n int64
	for _, e := range s {
		n += e.Len
	}
	return n
}

// Union is every byte of s or t.
func (s Set) Union(t Set) Set {
	out := make(Set, 0, len(s)+len(t))
	for len(s) > 0 && len(t) > 0 {
		if s[0].Off <= t[0].Off {
			out, s = append(out, s[0]), s[1:]
		} else {
			out, t = append(out, t[0]), t[1:]
		}
	}
	return append(append(out, s...), t...).merged()
}

// Intersect is every byte of both s and t.
func (s Set) Intersect(t Set) Set {
	var out Set
	for len(s) > 0 && len(t) > 0 {
		lo, hi := max(s[0].Off, t[0].Off), min(s[0].End(), t[0].End())
		if lo < hi {
			out = append(out, Extent{lo, hi - lo})
		}
		if s[0].End() < t[0].End() {
			s = s[1:]
		} else {
			t = t[1:]
		}
	}
	return out
}

// Subtract is every byte of s that is not in t.
func (s Set) Subtract(t Set) Set {
	var out Set
	for _, e := range s {
		off := e.Off
		for len(t) > 0 && t[0].End() <= off {
			t = t[1:]
		}
		for _, x := range t {
			if x.Off >= e.End() {
				break
			}
			if x.Off > off {
				out = append(out, Extent{off, x.Off - off})
			}
			off = max(off, x.End())
		}
		if off < e.End() {
			out = append(out, Extent{off, e.End() - off})
		}
	}
	return out
}

// Clip is the part of s inside e.
func (s Set) Clip(e Extent) Set {
	i, _ := s.search(e.Off)
	var out Set
	for ; i < len(s) && s[i].Off < e.End(); i++ {
		lo, hi := max(s[i].Off, e.Off), min(s[i].End(), e.End())
		if lo < hi {
			out = append(out, Extent{lo, hi - lo})
		}
	}
	return out
}

// Shift moves every extent by delta bytes; nothing may fall below zero.
func (s Set) Shift(delta int64) Set {
	out := make(Set, len(s))
	for i, e := range s {
		out[i] = Extent{e.Off + delta, e.Len}
	}
	return out
}

// Align rounds every extent outwards to multiples of unit and cuts the result at size.
func (s Set) Align(unit, size int64) Set {
	out := make(Set, 0, len(s))
	for _, e := range s {
		lo, hi := e.Off/unit*unit, min(e.End(), size)
		if r := hi % unit; r > 0 {
			hi += min(unit-r, size-hi) // never beyond size, so that nothing overflows
		}
		if lo < hi {
			out = append(out, Extent{lo, hi - lo})
		}
	}
	return out.merged()
}

// Complement is every byte of [0, size) that is not in s.
func (s Set) Complement(size int64) Set {
	if size <= 0 {
		return nil
	}
	return Set{{0, size}}.Subtract(s)
}

// search returns the index of the first extent that ends after off, and whether it contains off.
func (s Set) search(off int64) (int, bool) {
	i, _ := slices.BinarySearchFunc(s, off, func(e Extent, off int64) int {
		if e.End() <= off {
			return -1
		}
		return 1
	})
	return i, i < len(s) && s[i].Off <= off
}

// Overlaps reports whether s and e share a byte.
func (s Set) Overlaps(e Extent) bool {
	i, _ := s.search(e.Off)
	return e.Len > 0 && i < len(s) && s[i].Off < e.End()
}

// Covers reports whether every byte of e is in s. An empty extent is always covered.
func (s Set) Covers(e Extent) bool {
	i, in := s.search(e.Off)
	return e.Len == 0 || in && s[i].End() >= e.End()
}
