package repo

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/backend/backendtest"
	"github.com/vmkeep/vmkeep/repo/internal/index"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// Whoever has the password of a repository, or can write to its store, may be an enemy of who reads it.

// plant stores blobs as they are, whatever they hold, and a snapshot whose tree is the last one.
func plant(t *testing.T, r *Repository, trees ...[]byte) *restic.Snapshot {
	t.Helper()
	s := r.start(t.Context(), index.New())
	defer s.stop()
	var last restic.ID
	for _, data := range trees {
		last = restic.Hash(data)
		if err := s.submit(&job{handle: restic.BlobHandle{ID: last, Type: restic.TreeBlob}, data: data, stats: &counters{}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.forgetIndex()
	return plantSnapshot(t, r, last)
}

func plantSnapshot(t *testing.T, r *Repository, tree restic.ID) *restic.Snapshot {
	t.Helper()
	snapshot := &restic.Snapshot{Time: time.Now(), Tree: &tree, Paths: []string{"/"}, Hostname: "evil"}
	doc, err := restic.EncodeSnapshot(snapshot)
	if err != nil {
		t.Fatal(err)
	}
	if snapshot.ID, err = r.saveDocument(t.Context(), restic.SnapshotFile, doc); err != nil {
		t.Fatal(err)
	}
	return snapshot
}

// plantPack stores a pack of one blob and an index that says of it what blob says.
func plantPack(t *testing.T, be backend.Backend, r *Repository, b restic.Blob, stored []byte) {
	t.Helper()
	sealed := r.key.Seal(nil, stored)
	real := b
	real.Offset, real.Length = 0, uint32(len(sealed))
	id, pack, err := r.completePack(sealed, []restic.Blob{real})
	if err != nil {
		t.Fatal(err)
	}
	if err := be.Save(t.Context(), backend.Handle{Type: restic.PackFile, Name: id.String()}, pack); err != nil {
		t.Fatal(err)
	}
	if b.Length == 0 {
		b.Length = real.Length
	}
	if _, err := r.saveDocument(t.Context(), restic.IndexFile, restic.AppendIndex(nil, []restic.IndexPack{{ID: id, Blobs: []restic.Blob{b}}})); err != nil {
		t.Fatal(err)
	}
	r.forgetIndex()
}

func wantErrors(t *testing.T, r *Repository, text string) {
	t.Helper()
	report, err := r.Check(Unlocked(t.Context(), r), CheckOptions{ReadData: ReadData{All: true}})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range report.Findings {
		if f.Severity == Error && strings.Contains(f.Text, text) {
			return
		}
	}
	t.Errorf("check does not find %q: %+v", text, report.Findings)
}

const node = `{"name":%q,"type":%q,"mtime":"2026-01-01T00:00:00Z","atime":"2026-01-01T00:00:00Z","ctime":"2026-01-01T00:00:00Z","uid":0,"gid":0,"content":%s}`

func TestNamesThatLeaveTheirDirectoryAreRefused(t *testing.T) {
	for _, name := range []string{"..", ".", "", "a/b", "../../etc/passwd", "/etc/passwd", `\x00`} {
		r := create(t, backendtest.NewMemory())
		s := plant(t, r, []byte(`{"nodes":[`+fmt.Sprintf(node, name, "file", "[]")+"]}\n"))
		if _, err := r.LoadTree(t.Context(), *s.Tree); !errors.Is(err, ErrDamaged) {
			t.Errorf("%q: %v", name, err)
		}
		wantErrors(t, r, "in the directory /")
	}
}

func TestTreesWithoutEndAreRefused(t *testing.T) {
	r := create(t, backendtest.NewMemory())
	trees := [][]byte{[]byte("{\"nodes\":[]}\n")}
	for range maxTreeDepth + 5 {
		sub := restic.Hash(trees[len(trees)-1])
		tree, err := restic.AppendTree(nil, &restic.Tree{Nodes: []restic.Node{dirNode("d", sub)}})
		if err != nil {
			t.Fatal(err)
		}
		trees = append(trees, tree)
	}
	plant(t, r, trees...)
	wantErrors(t, r, "nested deeper")
	if _, err := r.Prune(t.Context(), PruneOptions{}); !errors.Is(err, ErrDamaged) {
		t.Errorf("prune: %v", err)
	}
}

func TestATreeThatContainsItselfIsRefused(t *testing.T) {
	be := backendtest.NewMemory()
	r := create(t, be)
	id := restic.Hash([]byte("whatever"))
	tree, err := restic.AppendTree(nil, &restic.Tree{Nodes: []restic.Node{dirNode("d", id)}})
	if err != nil {
		t.Fatal(err)
	}
	plantPack(t, be, r, restic.Blob{BlobHandle: restic.BlobHandle{ID: id, Type: restic.TreeBlob}}, tree)
	plantSnapshot(t, r, id)
	wantErrors(t, r, "cannot be read")
}

func TestBlobsThatLieAboutTheirSizeAreRefused(t *testing.T) {
	z, err := restic.NewZstd("")
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	zeros := make([]byte, 200<<20)
	bomb := z.Compress(nil, zeros)
	small := []byte("small")
	for what, c := range map[string]struct {
		blob   restic.Blob
		stored []byte
	}{
		"holds 200 MiB, says 100 bytes": {restic.Blob{Uncompressed: 100}, bomb},
		"says 4 GiB":                    {restic.Blob{Uncompressed: 1<<32 - 1}, bomb},
		"holds less than it says":       {restic.Blob{Uncompressed: 1e6}, z.Compress(nil, small)},
		"is no frame":                   {restic.Blob{Uncompressed: 5}, small},
		"ends behind its pack":          {restic.Blob{Length: 1000}, small},
		"lies far behind its pack":      {restic.Blob{Offset: 4e9, Length: 1000}, small},
		"is of 4 GiB":                   {restic.Blob{Length: 4e9}, small},
	} {
		be := backendtest.NewMemory()
		r := create(t, be)
		c.blob.ID = restic.Hash([]byte(what))
		plantPack(t, be, r, c.blob, c.stored)
		before := allocated()
		err := r.Fetch(t.Context(), []restic.ID{c.blob.ID}, func(int, []byte) error { return errors.New("it was delivered") })
		if !errors.Is(err, ErrDamaged) {
			t.Errorf("a blob that %s: %v", what, err)
		}
		if _, err := r.LoadBlob(t.Context(), c.blob.BlobHandle); !errors.Is(err, ErrDamaged) {
			t.Errorf("a blob that %s: %v", what, err)
		}
		if n := allocated() - before; n > 64<<20 {
			t.Errorf("a blob that %s made us allocate %d bytes", what, n)
		}
	}
}

func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

func TestKeyFilesThatWouldExhaustMemoryAreSkipped(t *testing.T) {
	be := backendtest.NewMemory()
	create(t, be)
	for i, n := range []int{1 << 30, 1 << 24} {
		evil, err := restic.EncodeKey(restic.Key{KDF: "scrypt", N: n, R: 8 << i, P: 1, Salt: make([]byte, 64), Data: make([]byte, 100)})
		if err != nil {
			t.Fatal(err)
		}
		be.Replace(backend.Handle{Type: restic.KeyFile, Name: restic.Hash(evil).String()}, evil)
	}
	before := allocated()
	if _, err := Open(t.Context(), be, OpenOptions{Password: "wrong"}); !errors.Is(err, ErrWrongPassword) || !strings.Contains(err.Error(), "memory") {
		t.Errorf("%v", err)
	}
	if n := allocated() - before; n > 64<<20 {
		t.Errorf("%d bytes were allocated", n)
	}
	r := reopen(t, be) // the good key still opens
	wantErrors(t, r, "does not open the repository any more")
}

func TestErrorsHoldNoSecrets(t *testing.T) {
	be := backendtest.NewMemory()
	r := create(t, be)
	s, err := commitFiles(t.Context(), r, "vm", map[string][]byte{"a": noise(1, 1000)})
	if err != nil {
		t.Fatal(err)
	}
	leaveLock(t, r, restic.Lock{Time: time.Now(), Exclusive: true, Hostname: "elsewhere", PID: 1})
	const wrong = "s3cr3t-password"
	secrets := []string{wrong, password}
	for _, key := range [][]byte{r.master.Encrypt, r.master.MACK, r.master.MACR} {
		secrets = append(secrets, hex.EncodeToString(key), base64.StdEncoding.EncodeToString(key), string(key), fmt.Sprint(key))
	}
	texts := 0
	look := func(text string) {
		texts++
		for _, secret := range secrets {
			if strings.Contains(text, secret) {
				t.Errorf("%q holds %q", text, secret)
			}
		}
	}
	_, err = Open(t.Context(), be, OpenOptions{Password: wrong})
	look(fmt.Sprint(err))
	look(fmt.Sprintf("%+v", r.WithLock(t.Context(), Shared, nothing)))
	for _, h := range be.Handles() {
		for _, damage := range []func([]byte) []byte{
			func(data []byte) []byte { data[len(data)/2] ^= 1; return data },
			func(data []byte) []byte { return data[:len(data)/3] },
			func([]byte) []byte { return nil },
		} {
			broken := be.Clone()
			broken.Replace(h, damage(be.Bytes(h)))
			own, err := Open(t.Context(), broken, OpenOptions{Password: password})
			if err != nil {
				look(fmt.Sprintf("%+v", err))
				continue
			}
			report, err := own.Check(Unlocked(t.Context(), own), CheckOptions{ReadData: ReadData{All: true}})
			look(fmt.Sprintf("%+v %+v", report, err))
			_, err = readFiles(t.Context(), own, s)
			look(fmt.Sprintf("%+v", err))
			_, err = own.Prune(Unlocked(t.Context(), own), PruneOptions{})
			look(fmt.Sprintf("%+v", err))
			_ = own.Close()
		}
	}
	if texts < 50 {
		t.Errorf("only %d texts were looked at", texts)
	}
}
