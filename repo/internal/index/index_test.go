package index

import (
	"encoding/binary"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/vmkeep/vmkeep/repo/restic"
)

func id(rnd *rand.ChaCha8) (id restic.ID) {
	for i := 0; i < len(id); i += 8 {
		binary.LittleEndian.PutUint64(id[i:], rnd.Uint64())
	}
	return id
}

// makePack is n random blobs one behind another.
func makePack(rnd *rand.ChaCha8, n int) (restic.ID, []restic.Blob) {
	blobs := make([]restic.Blob, n)
	offset := uint32(0)
	for i := range blobs {
		v := rnd.Uint64()
		blobs[i] = restic.Blob{BlobHandle: restic.BlobHandle{ID: id(rnd), Type: restic.BlobType(v & 1)}, Offset: offset, Length: 32 + uint32(v>>40)}
		if v&2 != 0 {
			blobs[i].Uncompressed = uint32(v>>30) | 1
		}
		offset += blobs[i].Length
	}
	return id(rnd), blobs
}

func TestIndexEqualsItsModel(t *testing.T) {
	rnd := rand.NewChaCha8([32]byte{1})
	x := New()
	type place struct {
		pack restic.ID
		blob restic.Blob
	}
	model := make(map[restic.BlobHandle][]place)
	packs := make(map[restic.ID][]restic.Blob)
	var all []restic.Blob
	for range 2000 {
		pack, blobs := makePack(rnd, int(rnd.Uint64()%30))
		for i := range blobs { // some blobs are known already
			if len(all) > 0 && rnd.Uint64()%10 == 0 {
				blobs[i].BlobHandle = all[rnd.Uint64()%uint64(len(all))].BlobHandle
			}
		}
		conflict, err := x.AddPack(pack, blobs)
		if err != nil || conflict {
			t.Fatal(conflict, err)
		}
		packs[pack] = blobs
		for _, b := range blobs {
			model[b.BlobHandle] = append(model[b.BlobHandle], place{pack, b})
		}
		all = append(all, blobs...)
	}
	if x.Len() != len(all) || x.PackCount() != len(packs) {
		t.Fatalf("%d entries in %d packs, want %d in %d", x.Len(), x.PackCount(), len(all), len(packs))
	}
	refs := make(map[Ref]bool)
	for h, places := range model {
		var got []place
		for _, e := range x.Lookup(nil, h) {
			got = append(got, place{e.Pack, e.Blob})
			refs[e.Ref] = true
		}
		less := func(a, b place) int {
			return slices.Compare(append(a.pack[:], byte(a.blob.Offset)), append(b.pack[:], byte(b.blob.Offset)))
		}
		slices.SortFunc(got, less)
		slices.SortFunc(places, less)
		if !slices.Equal(got, places) {
			t.Fatalf("%v: %v, want %v", h, got, places)
		}
		if n, ok := x.Size(h); !ok || n == 0 && got[0].blob.Length > 32 {
			t.Fatalf("%v: size %d, %v", h, n, ok)
		}
		other := restic.BlobHandle{ID: h.ID, Type: 1 - h.Type}
		if _, ok := model[other]; !ok && x.Has(other) {
			t.Fatalf("%v is found as %v", h, other)
		}
	}
	if len(refs) != len(all) {
		t.Errorf("%d refs for %d entries", len(refs), len(all))
	}
	n := 0
	for pack, entries := range x.Packs() {
		var got []restic.Blob
		for _, e := range entries {
			got = append(got, e.Blob)
		}
		if !slices.Equal(got, packs[pack]) {
			t.Fatalf("pack %s: %v", pack, got)
		}
		n++
	}
	if n != len(packs) {
		t.Errorf("%d packs were listed of %d", n, len(packs))
	}
	n = 0
	for e := range x.Entries() {
		if int(e.Ref) != n {
			t.Fatalf("ref %d at %d", e.Ref, n)
		}
		n++
	}
	if n != len(all) {
		t.Errorf("%d entries were listed of %d", n, len(all))
	}
}

func TestPacksDescribedTwiceAreNotDoubled(t *testing.T) {
	rnd := rand.NewChaCha8([32]byte{2})
	x := New()
	pack, blobs := makePack(rnd, 10)
	if conflict, err := x.AddPack(pack, blobs); conflict || err != nil {
		t.Fatal(conflict, err)
	}
	if conflict, err := x.AddPack(pack, blobs); conflict || err != nil || x.Len() != 10 {
		t.Errorf("the same: conflict %v, %v, %d entries", conflict, err, x.Len())
	}
	other := slices.Clone(blobs)
	other[3].Length++
	if conflict, err := x.AddPack(pack, other); !conflict || err != nil {
		t.Errorf("other content: conflict %v, %v", conflict, err)
	}
}

func TestPendingBlobsAreNewOnce(t *testing.T) {
	rnd := rand.NewChaCha8([32]byte{3})
	x := New()
	pack, blobs := makePack(rnd, 2)
	h := blobs[0].BlobHandle
	var wins sync.Map
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			if x.Pend(h, 77) {
				wins.Store(i, true)
			}
		})
	}
	wg.Wait()
	n := 0
	wins.Range(func(any, any) bool { n++; return true })
	if n != 1 {
		t.Errorf("%d of 16 were told that the blob is new", n)
	}
	if size, ok := x.Size(h); !ok || size != 77 || len(x.Lookup(nil, h)) != 0 {
		t.Errorf("pending: %d, %v", size, ok)
	}
	if _, err := x.AddPack(pack, blobs); err != nil {
		t.Fatal(err)
	}
	if size, _ := x.Size(h); size != blobs[0].Size() {
		t.Errorf("stored: %d", size)
	}
	fresh := restic.BlobHandle{ID: id(rnd)}
	x.Pend(fresh, 1)
	x.DropPending()
	if x.Has(fresh) || !x.Has(h) {
		t.Error("dropping the pending dropped the wrong ones")
	}
}

func TestABlobTakesAtMost64Bytes(t *testing.T) {
	const blobsPerPack = 11 // 16 MiB of chunks of 1.49 MiB
	for _, n := range []int{100_000, 400_000, 1_000_000} {
		rnd := rand.NewChaCha8([32]byte{4})
		before := heap()
		x := New()
		for x.Len() < n {
			pack, blobs := makePack(rnd, blobsPerPack)
			if _, err := x.AddPack(pack, blobs); err != nil {
				t.Fatal(err)
			}
		}
		perBlob := float64(heap()-before) / float64(x.Len())
		t.Logf("%d blobs: %.1f bytes each", x.Len(), perBlob)
		if perBlob > 64 {
			t.Errorf("%d blobs take %.1f bytes each", x.Len(), perBlob)
		}
		runtime.KeepAlive(x)
	}
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func TestSet(t *testing.T) {
	s := NewSet(130)
	if !s.Add(129) || s.Add(129) || !s.Has(129) || s.Has(128) || s.Has(0) {
		t.Error("a set does not hold what was put in")
	}
}

func BenchmarkLookup(b *testing.B) {
	rnd := rand.NewChaCha8([32]byte{5})
	x := New()
	var hs []restic.BlobHandle
	for range 20_000 {
		pack, blobs := makePack(rnd, 11)
		if _, err := x.AddPack(pack, blobs); err != nil {
			b.Fatal(err)
		}
		hs = append(hs, blobs[0].BlobHandle)
	}
	i := 0
	for b.Loop() {
		x.Size(hs[i%len(hs)])
		i++
	}
}
