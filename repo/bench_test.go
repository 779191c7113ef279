package repo

import (
	"encoding/binary"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/vmkeep/vmkeep/repo/backend/backendtest"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// bigIndex writes index files of n blobs, 11 in a pack as with chunks of 1.49 MiB in packs of 16 MiB.
func bigIndex(b *testing.B, r *Repository, n int) {
	b.Helper()
	rnd := rand.NewChaCha8([32]byte{9})
	id := func() (id restic.ID) {
		for i := 0; i < len(id); i += 8 {
			binary.LittleEndian.PutUint64(id[i:], rnd.Uint64())
		}
		return id
	}
	var w indexWriter
	for done := 0; done < n; done += 11 {
		p := restic.IndexPack{ID: id()}
		offset := uint32(0)
		for range 11 {
			v := rnd.Uint64()
			blob := restic.Blob{BlobHandle: restic.BlobHandle{ID: id()}, Offset: offset, Length: 500_000 + uint32(v%1_000_000), Uncompressed: 600_000 + uint32(v>>32%1_000_000)}
			offset += blob.Length
			p.Blobs = append(p.Blobs, blob)
		}
		if err := w.add(b.Context(), r, p); err != nil {
			b.Fatal(err)
		}
	}
	if err := w.flush(b.Context(), r); err != nil {
		b.Fatal(err)
	}
}

// A million blobs are 1.5 TiB of chunks. The time of opening and the memory grow in proportion.
func BenchmarkOpenWithAMillionBlobs(b *testing.B) {
	be := backendtest.NewMemory()
	bigIndex(b, create(b, be), 1_000_000)
	var heapPer float64
	for b.Loop() {
		r := reopen(b, be)
		before := heapInUse()
		x, err := r.idx(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		heapPer = float64(heapInUse()-before) / float64(x.Len())
		runtime.KeepAlive(x)
	}
	b.ReportMetric(heapPer, "B/blob")
}

func heapInUse() uint64 {
	runtime.GC()
	runtime.GC() // pools keep what they hold for one more cycle
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// benchRepository has a file of 64 MB, half of which compresses.
func benchRepository(b *testing.B) (*Repository, []restic.ID) {
	b.Helper()
	r := create(b, backendtest.NewMemory())
	s, err := commitFiles(b.Context(), r, "vm", map[string][]byte{"disk": noise(1, 64e6)})
	if err != nil {
		b.Fatal(err)
	}
	root, err := r.LoadTree(b.Context(), *s.Tree)
	if err != nil {
		b.Fatal(err)
	}
	tree, err := r.LoadTree(b.Context(), *root.Nodes[0].Subtree)
	if err != nil {
		b.Fatal(err)
	}
	return r, tree.Nodes[0].Content
}

func BenchmarkCommit(b *testing.B) {
	data := noise(1, 64e6)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		r := create(b, backendtest.NewMemory())
		if _, err := commitFiles(Unlocked(b.Context(), r), r, "vm", map[string][]byte{"disk": data}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCommitOfWhatIsKnown(b *testing.B) {
	r, _ := benchRepository(b)
	data := noise(1, 64e6)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if _, err := commitFiles(Unlocked(b.Context(), r), r, "vm", map[string][]byte{"disk": data}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkFetch(b *testing.B) {
	r, ids := benchRepository(b)
	b.SetBytes(64e6)
	for b.Loop() {
		if err := r.Fetch(b.Context(), ids, func(int, []byte) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCheckOfAllData(b *testing.B) {
	r, _ := benchRepository(b)
	b.SetBytes(64e6)
	for b.Loop() {
		if report, err := r.Check(Unlocked(b.Context(), r), CheckOptions{ReadData: ReadData{All: true}}); err != nil || !report.OK() {
			b.Fatal(report, err)
		}
	}
}
