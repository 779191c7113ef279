package repo

import (
	"bytes"
	"errors"
	"fmt"
	"runtime/debug"
	"runtime/metrics"
	"testing"
	"time"

	"github.com/vmkeep/vmkeep/repo/backend/backendtest"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// Some kilobytes of a hostile repository are gigabytes when unpacked. What reads it takes an error, or the room there is.

// peakHeap is how much larger the heap became, in bytes, while fn ran.
func peakHeap(fn func()) int64 {
	defer debug.SetGCPercent(debug.SetGCPercent(10)) // garbage is not what is measured
	debug.FreeOSMemory()
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	heap := func() int64 {
		metrics.Read(sample)
		return int64(sample[0].Value.Uint64())
	}
	before, most := heap(), int64(0)
	done := make(chan struct{})
	go func() {
		defer close(done)
		fn()
	}()
	tick := time.NewTicker(500 * time.Microsecond)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return most
		case <-tick.C:
			most = max(most, heap()-before)
		}
	}
}

// wide is a tree of about size bytes, whose nodes are given by their format.
func wide(size, seed int, format string) []byte {
	tree := fmt.Appendf(nil, `{"seed":%d,"nodes":[`, seed)
	for i := 0; len(tree) < size; i++ {
		tree = append(fmt.Appendf(tree, format, i), ',')
	}
	return append(tree[:len(tree)-1], "]}\n"...)
}

func TestWideTreesTakeTheRoomThereIs(t *testing.T) {
	const room, size, count = 4 << 20, 3 << 20, 16
	for what, format := range map[string]string{
		"of nothing":  `{"name":"%09d","type":"fifo"}`,
		"of nonsense": `{"x":%d}`,
		"of directories": `{"name":"%09d","type":"dir","mtime":"2026-01-01T00:00:00Z","subtree":"` +
			`b5bb9d8014a0f9b1d61e21e796d78dccdf1352f23cd32812f4850b878ae4944c"}`,
	} {
		r := create(t, &busy{backendtest.NewMemory(), count})
		for i := range count {
			plant(t, r, wide(size, i, format))
		}
		r.room = newRoom(room)
		work := map[string]func(){
			"check": func() {
				report, err := r.Check(t.Context(), CheckOptions{})
				if err != nil || report.Trees < count || report.Errors() == 0 && what != "of nothing" {
					t.Errorf("trees %s: %v, %d trees, %d errors", what, err, report.Trees, report.Errors())
				}
			},
			"prune": func() {
				if _, err := r.Prune(t.Context(), PruneOptions{DryRun: true}); err != nil && what == "of nothing" {
					t.Errorf("trees %s: %v", what, err)
				}
			},
		}
		for name, fn := range work {
			// A tree, a place to go to for each directory in it, findings, and what the collector of garbage is late with.
			if peak := peakHeap(fn); peak > 6*room {
				t.Errorf("trees %s: %s takes %d MiB of memory", what, name, peak>>20)
			}
		}
	}
}

func TestTreesThatWouldBeLargerInMemoryAreRefused(t *testing.T) {
	for _, format := range []string{`{"x":%d}`, `{"name":"a","extended_attributes":[` + "%d" + `]}`} {
		tree := wide(8<<20, 0, format)
		peak := peakHeap(func() {
			if _, err := restic.DecodeTree(tree); err == nil {
				t.Errorf("a tree of %.30s was decoded", format)
			}
		})
		if peak > int64(16*len(tree)) { // as decoded it would be 35 times as large
			t.Errorf("a tree of %.30s: %d MiB of memory for %d MiB", format, peak>>20, len(tree)>>20)
		}
	}
	attributes := append(append([]byte(`{"nodes":[{"name":"a","type":"file","content":[],"extended_attributes":[{}`), bytes.Repeat([]byte(",{}"), 1e5)...), "]}]}"...)
	if _, err := restic.DecodeTree(attributes); err == nil {
		t.Error("100,000 attributes without names were decoded")
	}
	name := append(append([]byte(`{"nodes":[{"name":"`), bytes.Repeat([]byte("a"), 5000)...), `","type":"file","content":[]}]}`...)
	if _, err := restic.DecodeTree(name); err == nil {
		t.Error("a name of 5000 bytes was decoded")
	}
}

func TestTreesThatShareWhatIsBelowAreVisitedOnce(t *testing.T) {
	r := create(t, backendtest.NewMemory())
	for _, leaf := range []string{`{"nodes":[]}`, `{"nodes":[{"name":"..","type":"file","content":[]}]}`} { // the second is to be repaired
		trees := [][]byte{[]byte(leaf)}
		for range 30 { // 10^30 paths
			sub := restic.Hash(trees[len(trees)-1])
			level := &restic.Tree{}
			for i := range 10 {
				level.Nodes = append(level.Nodes, dirNode(fmt.Sprint(i), sub))
			}
			tree, err := restic.AppendTree(nil, level)
			if err != nil {
				t.Fatal(err)
			}
			trees = append(trees, tree)
		}
		plant(t, r, trees...)
	}
	report, err := r.Check(t.Context(), CheckOptions{})
	if err != nil || report.Trees != 62 || report.Errors() != 1 {
		t.Errorf("%v: %+v", err, report)
	}
	if _, err := r.Prune(t.Context(), PruneOptions{}); !errors.Is(err, ErrDamaged) {
		t.Errorf("prune: %v", err)
	}
	repaired, err := r.RepairSnapshots(t.Context(), RepairSnapshotsOptions{Forget: true})
	if err != nil || len(repaired) != 1 || repaired[0].Lost {
		t.Fatalf("repair: %+v, %v", repaired, err)
	}
	if report, err := r.Check(t.Context(), CheckOptions{}); err != nil || !report.OK() {
		t.Errorf("%v: %+v", err, report)
	}
	if _, err := r.Stats(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestIndexBombsTakeTheRoomThereIs(t *testing.T) {
	const room, size, count = 5 << 20, 4 << 20, 20
	be := &busy{backendtest.NewMemory(), count}
	r := create(t, be)
	if _, err := commitFiles(t.Context(), r, "vm", map[string][]byte{"a": noise(1, 1000)}); err != nil {
		t.Fatal(err)
	}
	for i := range count {
		bomb := fmt.Appendf(nil, `{"%d":"%s","packs":[]}`, i, bytes.Repeat([]byte("x"), size))
		if _, err := r.saveDocument(t.Context(), restic.IndexFile, bomb); err != nil {
			t.Fatal(err)
		}
	}
	r = reopen(t, be)
	r.room = newRoom(room)
	for name, fn := range map[string]func() error{
		"check": func() error {
			report, err := r.Check(t.Context(), CheckOptions{})
			if err == nil && (report.IndexFiles != count+1 || !report.OK()) {
				err = fmt.Errorf("%+v", report)
			}
			return err
		},
		"loading": func() error {
			_, err := r.idx(t.Context())
			return err
		},
	} {
		r.forgetIndex()
		if peak := peakHeap(func() {
			if err := fn(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}); peak > 6*room {
			t.Errorf("%s takes %d MiB of memory", name, peak>>20)
		}
	}
	// What would not fit by itself is damage.
	huge := bytes.Repeat([]byte("{"), 256<<20+1)
	if _, err := r.zstd.Unpack(restic.IndexFile, r.zstd.PackUnpacked(nil, huge, 2)); err == nil {
		t.Errorf("%d bytes were unpacked", len(huge))
	}
}

// busy is a store that bears many connections.
type busy struct {
	*backendtest.Memory
	connections int
}

func (b *busy) Connections() int { return b.connections }
