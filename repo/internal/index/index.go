// Package index knows in which pack a blob lies.
//
// It hides how millions of blobs are kept in little memory: at most 64 bytes each, the table of packs included.
// An entry is 48 bytes and has no pointer, so the garbage collector does not look at it:
//
//	ID 32 | pack and type 4 | offset 4 | length 4 | plaintext length 4
//
// Entries lie in pages that never move and are found through an open-addressed table of 32-bit entry numbers.
// The table is rebuilt when it grows, from the entries, so that old and new never exist together.
//
// Words: an entry is one copy of a blob in one pack; a blob may have several entries. A [Ref] is an entry's number,
// dense from 0, so that callers can keep a bit per entry. Pending blobs are those this process writes just now and
// that no pack holds yet; only their size is known.
package index

import (
	"encoding/binary"
	"fmt"
	"iter"
	"math/bits"
	"math/rand/v2"
	"sync"

	"github.com/vmkeep/vmkeep/repo/restic"
)

// Ref numbers an entry.
type Ref uint32

type entry struct {
	id                           restic.ID
	pack                         uint32 // the type is the top bit
	offset, length, uncompressed uint32
}

const (
	treeBit  = 1 << 31
	pageBits = 10
	pageSize = 1 << pageBits
	none     = ^uint32(0) // an empty slot of a table
)

// Index is safe for concurrent use.
type Index struct {
	mu    sync.RWMutex
	seed  [2]uint64
	pages []*[pageSize]entry
	n     uint32
	slots []uint32 // entry numbers

	packIDs   []restic.ID
	packSlots []uint32 // pack numbers

	pending map[restic.BlobHandle]uint32 // size of the plaintext
}

// New makes an empty index.
func New() *Index {
	return &Index{seed: [2]uint64{rand.Uint64() | 1, rand.Uint64() | 1}, pending: make(map[restic.BlobHandle]uint32)}
}

// hash is seeded, so that nobody can prepare IDs that all fall into one place.
func (x *Index) hash(id *restic.ID) uint64 {
	hi, lo := bits.Mul64(binary.LittleEndian.Uint64(id[0:])^x.seed[0], binary.LittleEndian.Uint64(id[8:])^x.seed[1])
	hi2, lo2 := bits.Mul64(binary.LittleEndian.Uint64(id[16:])^lo, binary.LittleEndian.Uint64(id[24:])^x.seed[0])
	return hi ^ hi2 ^ lo2
}

// slot maps a hash to a table of any length without division.
func slot(h uint64, n int) int {
	hi, _ := bits.Mul64(h, uint64(n))
	return int(hi)
}

func (x *Index) at(i uint32) *entry { return &x.pages[i>>pageBits][i&(pageSize-1)] }

func (e *entry) kind() restic.BlobType { return restic.BlobType(e.pack >> 31) }

func (e *entry) matches(h restic.BlobHandle) bool { return e.id == h.ID && e.kind() == h.Type }

func (e *entry) blob() restic.Blob {
	return restic.Blob{
		BlobHandle: restic.BlobHandle{ID: e.id, Type: e.kind()},
		Offset:     e.offset, Length: e.length, Uncompressed: e.uncompressed,
	}
}

// find calls fn for every entry of a blob until fn returns false.
func (x *Index) find(h restic.BlobHandle, fn func(i uint32, e *entry) bool) {
	if len(x.slots) == 0 {
		return
	}
	for s := slot(x.hash(&h.ID), len(x.slots)); x.slots[s] != none; s++ {
		if e := x.at(x.slots[s]); e.matches(h) && !fn(x.slots[s], e) {
			return
		}
		if s == len(x.slots)-1 {
			s = -1
		}
	}
}

func (x *Index) insert(table []uint32, i uint32) {
	s := slot(x.hash(&x.at(i).id), len(table))
	for table[s] != none {
		if s++; s == len(table) {
			s = 0
		}
	}
	table[s] = i
}

// reserve makes room in the table for n more entries: at most 4 of 5 slots are taken, at least about half.
func (x *Index) reserve(n int) {
	need := int(x.n) + n
	if need <= len(x.slots)/5*4 {
		return
	}
	size := max(64, need*5/4, int(float64(len(x.slots))*1.4))
	x.slots = nil
	table := make([]uint32, size)
	for i := range table {
		table[i] = none
	}
	for i := range x.n {
		x.insert(table, i)
	}
	x.slots = table
}

func (x *Index) packNumber(id *restic.ID) (uint32, bool) {
	if len(x.packSlots) == 0 {
		return 0, false
	}
	for s := slot(x.hash(id), len(x.packSlots)); x.packSlots[s] != none; s++ {
		if p := x.packSlots[s]; x.packIDs[p] == *id {
			return p, true
		}
		if s == len(x.packSlots)-1 {
			s = -1
		}
	}
	return 0, false
}

// addPack numbers a pack; known says that it had a number already.
func (x *Index) addPack(id restic.ID) (p uint32, known bool) {
	if p, ok := x.packNumber(&id); ok {
		return p, true
	}
	if len(x.packIDs) >= len(x.packSlots)/4*3 {
		table := make([]uint32, max(64, len(x.packSlots)*3/2))
		for i := range table {
			table[i] = none
		}
		for i := range x.packIDs {
			x.putPack(table, uint32(i))
		}
		x.packSlots = table
	}
	x.packIDs = append(x.packIDs, id)
	p = uint32(len(x.packIDs) - 1)
	x.putPack(x.packSlots, p)
	return p, false
}

func (x *Index) putPack(table []uint32, p uint32) {
	s := slot(x.hash(&x.packIDs[p]), len(table))
	for table[s] != none {
		if s++; s == len(table) {
			s = 0
		}
	}
	table[s] = p
}

// AddPack records a pack's blobs, and that they are pending no more. Entries already known are not doubled. conflict
// reports whether the pack was known with other content: one of the two index files is wrong.
func (x *Index) AddPack(id restic.ID, blobs []restic.Blob) (conflict bool, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(x.packIDs) >= treeBit-1 || uint64(x.n)+uint64(len(blobs)) >= uint64(none) {
		return false, fmt.Errorf("index is full: %d packs, %d blobs", len(x.packIDs), x.n)
	}
	p, known := x.addPack(id)
	before := 0
	if known {
		before = x.countPack(p, blobs)
	}
	x.reserve(len(blobs))
	added := 0
	for _, b := range blobs {
		if len(x.pending) > 0 {
			delete(x.pending, b.BlobHandle)
		}
		if known && x.has(p, b) {
			continue
		}
		if x.n&(pageSize-1) == 0 {
			x.pages = append(x.pages, new([pageSize]entry))
		}
		*x.at(x.n) = entry{b.ID, p | uint32(b.Type)<<31, b.Offset, b.Length, b.Uncompressed}
		x.insert(x.slots, x.n)
		x.n++
		added++
	}
	return known && (added > 0 || before != len(blobs)), nil
}

// countPack counts the entries of pack p, which is rarely asked: for packs that two index files describe.
func (x *Index) countPack(p uint32, blobs []restic.Blob) (n int) {
	for _, b := range blobs {
		if x.has(p, b) {
			n++
		}
	}
	return n
}

func (x *Index) has(p uint32, b restic.Blob) (found bool) {
	x.find(b.BlobHandle, func(_ uint32, e *entry) bool {
		found = e.pack&^treeBit == p && e.blob() == b
		return !found
	})
	return found
}

// Pend reports whether the blob is new: in no pack and not pending. If so it is pending from now on.
func (x *Index) Pend(h restic.BlobHandle, size int) (isNew bool) {
	if x.Has(h) {
		return false
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if _, ok := x.pending[h]; ok {
		return false
	}
	known := false
	x.find(h, func(uint32, *entry) bool { known = true; return false })
	if known {
		return false
	}
	x.pending[h] = uint32(size)
	return true
}

// DropPending forgets all pending blobs: nobody stores them any more.
func (x *Index) DropPending() {
	x.mu.Lock()
	defer x.mu.Unlock()
	clear(x.pending)
}

// Has reports whether the blob is in a pack or pending.
func (x *Index) Has(h restic.BlobHandle) bool {
	_, ok := x.Size(h)
	return ok
}

// Size is the length of the blob's plaintext in bytes; pending blobs have one too.
func (x *Index) Size(h restic.BlobHandle) (size int, ok bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	x.find(h, func(_ uint32, e *entry) bool { b := e.blob(); size, ok = b.Size(), true; return false })
	if !ok {
		if n, pending := x.pending[h]; pending {
			return int(n), true
		}
	}
	return size, ok
}

// Entry is where a copy of a blob lies.
type Entry struct {
	restic.Blob
	Pack restic.ID
	Ref  Ref
}

// Lookup appends all copies of the blob to dst.
func (x *Index) Lookup(dst []Entry, h restic.BlobHandle) []Entry {
	x.mu.RLock()
	defer x.mu.RUnlock()
	x.find(h, func(i uint32, e *entry) bool {
		dst = append(dst, Entry{e.blob(), x.packIDs[e.pack&^treeBit], Ref(i)})
		return true
	})
	return dst
}

// Refs calls fn for the number of every copy of the blob, always in the same order. fn may not call the Index.
func (x *Index) Refs(h restic.BlobHandle, fn func(Ref)) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	x.find(h, func(i uint32, _ *entry) bool { fn(Ref(i)); return true })
}

// Len is the number of entries: all Refs are below it.
func (x *Index) Len() int {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return int(x.n)
}

// HasPack reports whether any index names the pack.
func (x *Index) HasPack(id restic.ID) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	_, ok := x.packNumber(&id)
	return ok
}

// PackCount is the number of packs.
func (x *Index) PackCount() int {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return len(x.packIDs)
}

// Packs yields every pack with its entries in the order of their offsets. The slice is valid during one step only.
// It takes 4 more bytes per entry while it runs, and works on what is known when it begins.
func (x *Index) Packs() iter.Seq2[restic.ID, []Entry] {
	return func(yield func(restic.ID, []Entry) bool) {
		x.mu.RLock()
		packs, n := x.packIDs, x.n
		starts := make([]uint32, len(packs)+1)
		for i := range n {
			starts[x.at(i).pack&^treeBit+1]++
		}
		for p := range packs {
			starts[p+1] += starts[p]
		}
		order := make([]uint32, n)
		next := append([]uint32(nil), starts...)
		for i := range n {
			p := x.at(i).pack &^ treeBit
			order[next[p]] = i
			next[p]++
		}
		x.mu.RUnlock()
		var entries []Entry
		for p, id := range packs {
			entries = entries[:0]
			x.mu.RLock()
			for _, i := range order[starts[p]:starts[p+1]] {
				entries = append(entries, Entry{x.at(i).blob(), id, Ref(i)})
			}
			x.mu.RUnlock()
			sortEntries(entries)
			if !yield(id, entries) {
				return
			}
		}
	}
}

// Entries yields every entry, in the order of the Refs.
func (x *Index) Entries() iter.Seq[Entry] {
	return func(yield func(Entry) bool) {
		for i := uint32(0); ; i++ {
			x.mu.RLock()
			if i >= x.n {
				x.mu.RUnlock()
				return
			}
			e := x.at(i)
			out := Entry{e.blob(), x.packIDs[e.pack&^treeBit], Ref(i)}
			x.mu.RUnlock()
			if !yield(out) {
				return
			}
		}
	}
}
