package index

import (
	"cmp"
	"slices"
)

// sortEntries orders by offset. Packs are written and indexed in that order, so it is mostly a look.
func sortEntries(es []Entry) {
	byOffset := func(a, b Entry) int { return cmp.Compare(a.Offset, b.Offset) }
	if !slices.IsSortedFunc(es, byOffset) {
		slices.SortFunc(es, byOffset)
	}
}

// Set is a set of Refs: a bit for each entry.
type Set []uint64

// NewSet makes an empty set for Refs below n.
func NewSet(n int) Set { return make(Set, (n+63)/64) }

// Add puts r into the set and reports whether it was not in it.
func (s Set) Add(r Ref) bool {
	bit := uint64(1) << (r & 63)
	added := s[r>>6]&bit == 0
	s[r>>6] |= bit
	return added
}

// Has reports whether r is in the set.
func (s Set) Has(r Ref) bool { return s[r>>6]>>(r&63)&1 == 1 }
