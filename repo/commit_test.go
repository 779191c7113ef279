package repo

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/backend/backendtest"
	"github.com/vmkeep/vmkeep/repo/restic"
)

const password = "a password with spaces and ünïcode"

// create makes a repository whose key costs no time.
func create(t testing.TB, be backend.Backend) *Repository {
	t.Helper()
	r, err := Init(t.Context(), be, InitOptions{Password: password, KeyTime: time.Nanosecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func reopen(t testing.TB, be backend.Backend) *Repository {
	t.Helper()
	r, err := Open(t.Context(), be, OpenOptions{Password: password})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

// noise is n bytes, half of which compress to a quarter; the same for the same seed.
func noise(seed uint64, n int) []byte {
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), byte(seed >> 24)})
	b := make([]byte, n)
	_, _ = r.Read(b)
	half := b[n/2:]
	for ; len(half) >= 8; half = half[8:] {
		binary.LittleEndian.PutUint64(half, binary.LittleEndian.Uint64(half)&0x0303030303030303)
	}
	return b
}

// stamp is the one time of all nodes.
var stamp = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func fileNode(name string, ids []restic.ID, size int64) restic.Node {
	return restic.Node{Name: name, Type: restic.FileNode, Mode: 0o644, ModTime: stamp, AccessTime: stamp, ChangeTime: stamp,
		Links: 1, Size: uint64(size), Content: ids}
}

func dirNode(name string, id restic.ID) restic.Node {
	return restic.Node{Name: name, Type: restic.DirNode, Mode: 0o755 | 1<<31, ModTime: stamp, AccessTime: stamp, ChangeTime: stamp, Subtree: &id}
}

// commitFiles backs files up as /host/name and returns the snapshot. Contents are cut into pieces of 1 MB, small ones of 20 kB.
func commitFiles(ctx context.Context, r *Repository, host string, files map[string][]byte) (*restic.Snapshot, error) {
	var snapshot *restic.Snapshot
	id, err := r.Commit(ctx, func(ctx context.Context, w *Writer) (*restic.Snapshot, error) {
		var tree restic.Tree
		for name, data := range files {
			c := w.Content()
			n := 1_000_000
			if len(data) < n {
				n = 20_000
			}
			for piece := range slices.Chunk(data, n) {
				if err := c.Append(piece); err != nil {
					return nil, err
				}
			}
			ids, err := c.IDs()
			if err != nil {
				return nil, err
			}
			tree.Nodes = append(tree.Nodes, fileNode(name, ids, c.Size()))
		}
		slices.SortFunc(tree.Nodes, func(a, b restic.Node) int { return bytes.Compare([]byte(a.Name), []byte(b.Name)) })
		sub, err := w.SaveTree(&tree)
		if err != nil {
			return nil, err
		}
		root, err := w.SaveTree(&restic.Tree{Nodes: []restic.Node{dirNode(host, sub)}})
		snapshot = &restic.Snapshot{Time: time.Now(), Tree: &root, Paths: []string{"/" + host}, Hostname: host, ProgramVersion: "vmkeep test",
			Summary: &restic.Summary{TotalBytesProcessed: 1}}
		return snapshot, err
	})
	if snapshot != nil {
		snapshot.ID = id
	}
	return snapshot, err
}

// readFiles is the reverse of commitFiles.
func readFiles(ctx context.Context, r *Repository, s *restic.Snapshot) (map[string][]byte, error) {
	root, err := r.LoadTree(ctx, *s.Tree)
	if err != nil {
		return nil, err
	}
	tree, err := r.LoadTree(ctx, *root.Nodes[0].Subtree)
	if err != nil {
		return nil, err
	}
	out := make(map[string][]byte)
	for _, n := range tree.Nodes {
		pieces := make([][]byte, len(n.Content))
		var mu sync.Mutex
		err := r.Fetch(ctx, n.Content, func(i int, data []byte) error {
			mu.Lock()
			defer mu.Unlock()
			if pieces[i] != nil {
				return fmt.Errorf("piece %d came twice", i)
			}
			pieces[i] = bytes.Clone(data)
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", n.Name, err)
		}
		out[n.Name] = bytes.Join(pieces, nil)
	}
	return out, nil
}

func wantFiles(t testing.TB, r *Repository, s *restic.Snapshot, want map[string][]byte) {
	t.Helper()
	got, err := readFiles(t.Context(), r, s)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(want) {
		t.Fatalf("%d files came back of %d", len(got), len(want))
	}
	for name := range want {
		if !bytes.Equal(got[name], want[name]) {
			t.Fatalf("%s came back different", name)
		}
	}
}

func TestWhatWasCommittedComesBack(t *testing.T) {
	be := backendtest.NewMemory()
	r := create(t, be)
	files := map[string][]byte{"a": noise(1, 12e6), "b": noise(2, 5), "empty": {}, "zeros": make([]byte, 3e6), "same": noise(1, 12e6)}
	s, err := commitFiles(t.Context(), r, "vm", files)
	if err != nil {
		t.Fatal(err)
	}
	wantFiles(t, r, s, files)
	r2 := reopen(t, be)
	all, err := r2.Snapshots(t.Context())
	if err != nil || len(all) != 1 || all[0].ID != s.ID || all[0].Hostname != "vm" {
		t.Fatalf("snapshots: %v, %v", all, err)
	}
	wantFiles(t, r2, all[0], files)
}

func TestErrorsOfOpeningAreTold(t *testing.T) {
	be := backendtest.NewMemory()
	if _, err := Open(t.Context(), be, OpenOptions{Password: password}); !errors.Is(err, ErrNoRepository) {
		t.Errorf("empty store: %v", err)
	}
	create(t, be)
	if _, err := Open(t.Context(), be, OpenOptions{Password: "wrong"}); !errors.Is(err, ErrWrongPassword) {
		t.Errorf("wrong password: %v", err)
	}
	if _, err := Init(t.Context(), be, InitOptions{Password: password, KeyTime: 1}); !errors.Is(err, ErrExists) {
		t.Errorf("second init: %v", err)
	}
}
