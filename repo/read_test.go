package repo

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"

	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/backend/backendtest"
	"github.com/vmkeep/vmkeep/repo/internal/index"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// listed commits a file and returns its content list.
func listed(t *testing.T, r *Repository, fill func(c *Content) error) (ids []restic.ID, size int64) {
	t.Helper()
	_, err := r.Commit(Unlocked(t.Context(), r), func(ctx context.Context, w *Writer) (*restic.Snapshot, error) {
		c := w.Content()
		if err := fill(c); err != nil {
			return nil, err
		}
		var err error
		ids, err = c.IDs()
		size = c.Size()
		return nil, err
	})
	if err != nil {
		t.Fatal(err)
	}
	return ids, size
}

func TestReaderReadsAtRandom(t *testing.T) {
	be := backendtest.NewMemory()
	r := create(t, be)
	rnd := rand.New(rand.NewPCG(1, 2))
	var want []byte
	ids, size := listed(t, r, func(c *Content) error {
		for i := range 60 {
			piece := noise(uint64(i%40), 1+rnd.IntN(100_000))
			if err := c.Append(piece); err != nil {
				return err
			}
			want = append(want, piece...)
			if i%9 == 0 {
				if err := c.Zeros(2*restic.ZeroChunkSize + 33); err != nil {
					return err
				}
				want = append(want, make([]byte, 2*restic.ZeroChunkSize+33)...)
			}
		}
		return nil
	})
	if size != int64(len(want)) {
		t.Fatalf("size %d, want %d", size, len(want))
	}
	small, err := Open(t.Context(), be, OpenOptions{Password: password, BlobCache: 300_000})
	if err != nil {
		t.Fatal(err)
	}
	defer small.Close()
	rd, err := small.Reader(t.Context(), ids)
	if err != nil {
		t.Fatal(err)
	}
	if rd.Size() != size {
		t.Errorf("size %d, want %d", rd.Size(), size)
	}
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(g), 3))
			for range 200 {
				off := rnd.Int64N(size + 10)
				p := make([]byte, rnd.IntN(300_000))
				n, err := rd.ReadAt(p, off)
				if off+int64(len(p)) > size != errors.Is(err, io.EOF) || err != nil && !errors.Is(err, io.EOF) {
					t.Errorf("%d bytes at %d of %d: %d, %v", len(p), off, size, n, err)
					return
				}
				if !bytes.Equal(p[:n], want[min(off, size):][:n]) {
					t.Errorf("%d bytes at %d are wrong", n, off)
					return
				}
			}
		})
	}
	wg.Wait()
	if small.blobs.size > 300_000+100_000 {
		t.Errorf("%d bytes are cached", small.blobs.size)
	}
	if err := iotest.TestReader(io.NewSectionReader(rd, 0, size), want); err != nil {
		t.Error(err)
	}
}

func TestFetchReadsRepeatedAndZeroChunksOnce(t *testing.T) {
	be := backendtest.NewMemory()
	r := create(t, be)
	ids, _ := listed(t, r, func(c *Content) error {
		for range 50 {
			if err := errors.Join(c.Append(noise(1, 50_000)), c.Zeros(3*restic.ZeroChunkSize)); err != nil {
				return err
			}
		}
		return nil
	})
	f := backendtest.Inject(be)
	r = reopen(t, f)
	var mu sync.Mutex
	seen := make(map[int]int)
	err := r.Fetch(t.Context(), ids, func(i int, data []byte) error {
		mu.Lock()
		defer mu.Unlock()
		seen[i]++
		want := noise(1, 50_000)
		if i%4 != 0 {
			want = make([]byte, restic.ZeroChunkSize)
		}
		if !bytes.Equal(data, want) {
			t.Errorf("position %d is wrong", i)
		}
		return nil
	})
	if err != nil || len(seen) != 200 {
		t.Fatalf("%d positions, %v", len(seen), err)
	}
	for i, n := range seen {
		if n != 1 {
			t.Errorf("position %d came %d times", i, n)
		}
	}
	if n := f.Count(backendtest.Is(backendtest.Load), backendtest.OfType(restic.PackFile)); n != 1 {
		t.Errorf("%d reads", n)
	}
}

// Chunks far from one another are read one by one, and hashed together even so: none is read again because what it lay in
// was overwritten.
func TestFetchHashesChunksOfDifferentReads(t *testing.T) {
	for _, compression := range []restic.Compression{restic.CompressionAuto, restic.CompressionOff} {
		t.Run(string(compression), func(t *testing.T) {
			be := backendtest.NewMemory()
			create(t, be)
			r, err := Open(t.Context(), be, OpenOptions{Password: password, Compression: compression})
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			const chunks, size = 24, 600_000 // longer than what is read for nothing, also compressed
			ids, _ := listed(t, r, func(c *Content) error {
				for i := range chunks {
					if err := c.Append(noise(uint64(i), size)); err != nil {
						return err
					}
				}
				return nil
			})
			x, err := r.idx(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			var lie []index.Entry
			for _, id := range ids {
				lie = x.Lookup(lie, restic.BlobHandle{ID: id, Type: restic.DataBlob})
			}
			slices.SortFunc(lie, func(a, b index.Entry) int {
				return cmp.Or(bytes.Compare(a.Pack[:], b.Pack[:]), cmp.Compare(a.Offset, b.Offset))
			})
			var wanted []restic.ID
			for i := 0; i < len(lie); i += 2 {
				wanted = append(wanted, lie[i].ID)
			}
			f := backendtest.Inject(be)
			var right atomic.Int32
			err = reopen(t, f).Fetch(t.Context(), wanted, func(i int, data []byte) error {
				if bytes.Equal(data, noise(uint64(slices.Index(ids, wanted[i])), size)) {
					right.Add(1)
				}
				return nil
			})
			if err != nil || int(right.Load()) != len(wanted) {
				t.Errorf("%d of %d chunks are right, %v", right.Load(), len(wanted), err)
			}
			if n := f.Count(backendtest.Is(backendtest.Load), backendtest.OfType(restic.PackFile)); n != len(wanted) {
				t.Errorf("%d reads of %d chunks", n, len(wanted))
			}
		})
	}
}

func TestFetchDeliversAllThatIsLeftAndReportsTheRest(t *testing.T) {
	be := backendtest.NewMemory()
	r := create(t, be)
	ids, _ := listed(t, r, func(c *Content) error {
		for i := range 10 {
			if err := c.Append(noise(uint64(i), 10_000)); err != nil {
				return err
			}
		}
		return nil
	})
	unknown := restic.Hash([]byte("never stored"))
	want := append(slices.Clone(ids), unknown, ids[0], unknown)
	var mu sync.Mutex
	var got []int
	err := r.Fetch(t.Context(), want, func(i int, data []byte) error {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, i)
		return nil
	})
	var missing *MissingError
	if !errors.As(err, &missing) || len(missing.Blobs) != 1 || missing.Blobs[0].ID != unknown || !errors.Is(err, ErrNotFound) {
		t.Errorf("%v", err)
	}
	if len(got) != 11 {
		t.Errorf("delivered: %v", got)
	}
	boom := errors.New("boom")
	if err := r.Fetch(t.Context(), ids, func(int, []byte) error { return boom }); !errors.Is(err, boom) {
		t.Errorf("%v", err)
	}
	if err := r.Fetch(t.Context(), nil, nil); err != nil {
		t.Errorf("nothing: %v", err)
	}
	if _, err := r.Reader(t.Context(), want); !errors.As(err, &missing) {
		t.Errorf("reader: %v", err)
	}
}

func TestKeepTakesOnlyWhatIsThere(t *testing.T) {
	r := create(t, backendtest.NewMemory())
	ids, _ := listed(t, r, func(c *Content) error { return c.Append(noise(1, 1000)) })
	listed(t, r, func(c *Content) error {
		if err := c.Keep(restic.Hash([]byte("unknown")), 7); !errors.Is(err, ErrNotFound) {
			t.Errorf("unknown: %v", err)
		}
		if err := c.Keep(ids[0], 999); err == nil {
			t.Error("a wrong size was taken")
		}
		if err := c.Keep(ids[0], 1000); err != nil || c.Size() != 1000 {
			t.Errorf("%v, size %d", err, c.Size())
		}
		return nil
	})
}

func TestBlobsLargerThanAPackAreStored(t *testing.T) {
	be := backendtest.NewMemory()
	r := create(t, be)
	big := noise(1, 40e6)
	ids, _ := listed(t, r, func(c *Content) error {
		return errors.Join(c.Append(big), c.Append(big[:9e6]), c.Append(nil), c.Append(big[1:20e6]))
	})
	r = reopen(t, be)
	got := make([][]byte, len(ids))
	if err := r.Fetch(t.Context(), ids, func(i int, data []byte) error { got[i] = bytes.Clone(data); return nil }); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got[0], big) || !bytes.Equal(got[1], big[:9e6]) || len(got[2]) != 0 || !bytes.Equal(got[3], big[1:20e6]) {
		t.Error("a big blob came back different")
	}
	wantClean(t, r)
}

// A writer that takes chunks' memory stores each as it was, hands out memory of the length it promises, and takes nothing of
// what it need not store.
func TestTakenChunksAreStored(t *testing.T) {
	r := create(t, backendtest.NewMemory())
	var want []byte
	taken := 0
	ids, _ := listed(t, r, func(c *Content) error {
		memory := make([]byte, chunkBuffer)
		for i := range 40 {
			chunk := memory[:copy(memory, noise(uint64(i%30), 1000+i%30*100))]
			want = append(want, chunk...)
			err := c.AppendTaken(chunk, func(with []byte) []byte {
				if len(with) != chunkBuffer || &with[0] == &memory[0] {
					t.Errorf("%d bytes for the memory of a chunk", len(with))
				}
				taken++
				memory = with
				return chunk[:len(chunk):chunkBuffer]
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if taken != 30 {
		t.Errorf("30 new chunks, %d were taken", taken)
	}
	rd, err := r.Reader(t.Context(), ids)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if _, err := rd.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("what was taken comes back otherwise: %v", err)
	}
}

func TestCompressionIsAChoice(t *testing.T) {
	text := bytes.Repeat([]byte("compressible "), 10_000)
	sizes := make(map[restic.Compression]int64)
	for _, level := range []restic.Compression{"", "auto", "off", "fastest", "better", "max"} {
		be := backendtest.NewMemory()
		create(t, be)
		r, err := Open(t.Context(), be, OpenOptions{Password: password, Compression: level})
		if err != nil {
			t.Fatal(err)
		}
		_, err = r.Commit(Unlocked(t.Context(), r), func(ctx context.Context, w *Writer) (*restic.Snapshot, error) {
			_, err := w.SaveFile(text)
			return nil, err
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range be.Handles() {
			if h.Type == restic.PackFile {
				sizes[level] += int64(len(be.Bytes(h)))
			}
		}
		wantClean(t, r)
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if sizes["off"] < int64(len(text)) || sizes["auto"] > 2000 || sizes[""] != sizes["auto"] || sizes["max"] > sizes["fastest"] {
		t.Errorf("%v", sizes)
	}
	be := backendtest.NewMemory()
	create(t, be)
	if _, err := Open(t.Context(), be, OpenOptions{Password: password, Compression: "lots"}); err == nil {
		t.Error("compression lots was accepted")
	}
}

func TestWhatDoesNotShrinkIsStoredAsItIs(t *testing.T) {
	be := backendtest.NewMemory()
	r := create(t, be)
	data := make([]byte, 100_000)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(data)
	ids, _ := listed(t, r, func(c *Content) error { return c.Append(data) })
	x, err := r.idx(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if e := x.Lookup(nil, restic.BlobHandle{ID: ids[0]})[0]; e.Compressed() || int(e.Length) != len(data)+restic.Sealed {
		t.Errorf("%+v", e.Blob)
	}
}

func TestCacheSavesReadsAndIsNeverBelieved(t *testing.T) {
	be := backendtest.NewMemory()
	r := create(t, be)
	files := map[string][]byte{"a": noise(1, 1_100_000), "b": noise(2, 100)}
	s, err := commitFiles(t.Context(), r, "vm", files)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	use := func() int {
		f := backendtest.Inject(be)
		r, err := Open(t.Context(), f, OpenOptions{Password: password, CacheDir: dir})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if _, err := r.Snapshots(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := r.idx(t.Context()); err != nil {
			t.Fatal(err)
		}
		root, err := r.LoadTree(t.Context(), *s.Tree)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.LoadTree(t.Context(), *root.Nodes[0].Subtree); err != nil {
			t.Fatal(err)
		}
		n := f.Count(backendtest.Is(backendtest.Load), backendtest.OfType(restic.SnapshotFile, restic.IndexFile, restic.PackFile))
		wantFiles(t, r, s, files)
		return n
	}
	if n := use(); n != 3 {
		t.Errorf("the first time %d files were read", n)
	}
	if n := use(); n != 0 {
		t.Errorf("the second time %d files were read", n)
	}
	// Damage of the cache is no damage.
	cached := 0
	err = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() == "CACHEDIR.TAG" || d.Name() == cacheLock {
			return err
		}
		cached++
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for i := range data {
			data[i] ^= 1
		}
		return os.WriteFile(path, data, 0o600)
	})
	if err != nil || cached != 3 {
		t.Fatalf("%d files, %v", cached, err)
	}
	if n := use(); n < 3 {
		t.Errorf("of a damaged cache only %d files were read again", n)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	use()
	// What the repository has no more the cache has no more.
	if err := r.ForgetSnapshots(t.Context(), []restic.ID{s.ID}); err != nil {
		t.Fatal(err)
	}
	c, err := Open(t.Context(), be, OpenOptions{Password: password, CacheDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Snapshots(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, ok := c.cache.get(backend.Handle{Type: restic.SnapshotFile, Name: s.ID.String()}); ok {
		t.Error("a forgotten snapshot is still cached")
	}
}

func TestCacheIsBounded(t *testing.T) {
	c, err := openDiskCache(t.TempDir(), "id", 100_000)
	if err != nil {
		t.Fatal(err)
	}
	var last backend.Handle
	for i := range 50 {
		data := noise(uint64(i), 10_000)
		last = backend.Handle{Type: restic.IndexFile, Name: restic.Hash(data).String()}
		c.put(last, data)
	}
	total := int64(0)
	entries, err := os.ReadDir(filepath.Join(c.dir, "index"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		total += info.Size()
	}
	if total > 100_000 || total < 50_000 {
		t.Errorf("%d bytes are cached", total)
	}
	if _, err := openDiskCache("/dev/null", "id", 0); err == nil {
		t.Error("a cache in a file was opened")
	}
}

func TestSnapshotsAreFoundByName(t *testing.T) {
	r := create(t, backendtest.NewMemory())
	if _, err := r.LoadSnapshot(t.Context(), "latest"); !errors.Is(err, ErrNotFound) {
		t.Errorf("latest of none: %v", err)
	}
	var last *restic.Snapshot
	for i := range 3 {
		var err error
		if last, err = commitFiles(t.Context(), r, "vm", map[string][]byte{"a": {byte(i)}}); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"latest", last.ID.String(), last.ID.Short()} {
		if s, err := r.LoadSnapshot(t.Context(), name); err != nil || s.ID != last.ID {
			t.Errorf("%s: %v, %v", name, s, err)
		}
	}
	for _, name := range []string{"", "zz", restic.Hash(nil).String()} {
		if _, err := r.LoadSnapshot(t.Context(), name); err == nil {
			t.Errorf("%q is found", name)
		}
	}
}

func TestChecksOfPartsCoverEverything(t *testing.T) {
	be := backendtest.NewMemory()
	r := create(t, be)
	r.packSize = 100_000
	if _, err := commitFiles(t.Context(), r, "vm", map[string][]byte{"a": noise(1, 6e6)}); err != nil {
		t.Fatal(err)
	}
	read := func(choice string) (int, int) {
		t.Helper()
		d, err := ParseReadData(choice)
		if err != nil {
			t.Fatal(err)
		}
		report, err := r.Check(Unlocked(t.Context(), r), CheckOptions{ReadData: d})
		if err != nil || !report.OK() {
			t.Fatalf("%+v, %v", report, err)
		}
		return report.PacksRead, report.Packs
	}
	sum := 0
	_, total := read("all")
	for _, part := range []string{"1/3", "2/3", "3/3"} {
		n, _ := read(part)
		sum += n
	}
	if sum != total || total < 5 {
		t.Errorf("three thirds are %d of %d packs", sum, total)
	}
	if n, _ := read("50%"); n != total/2 {
		t.Errorf("50%% are %d of %d", n, total)
	}
	if n, _ := read("1"); n != 1 {
		t.Errorf("one byte is %d packs", n)
	}
	if n, _ := read("1G"); n != total {
		t.Errorf("1 GiB is %d of %d", n, total)
	}
	for _, bad := range []string{"", "0/3", "4/3", "1/257", "0%", "101%", "-1%", "x", "5X", "-5M", "1/", "NaN%"} {
		if d, err := ParseReadData(bad); err == nil {
			t.Errorf("%q: %+v", bad, d)
		}
	}
}
