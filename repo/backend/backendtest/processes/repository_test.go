//go:build unix

// Package processes_test runs whole repositories on real stores, with processes that are killed at every write
// and with many that write at once.
package processes_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmkeep/vmkeep/repo"
	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/backend/backendtest/peers"
	"github.com/vmkeep/vmkeep/repo/backend/location"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// Tests of whole repositories on real stores run parts of themselves as processes of their own, which can be
// killed, and which share nothing: the test binary starts itself with a job to do.
const jobVariable = "VMKEEP_TEST_JOB"

// job is what a child process does; its argument comes after a space.
type job func(ctx context.Context, argument string) error

func TestMain(m *testing.M) {
	name, argument, _ := strings.Cut(os.Getenv(jobVariable), " ")
	if name == "" {
		os.Exit(m.Run())
	}
	do, ok := map[string]job{"write": writeJob, "killed": killedJob, "ack": ackJob}[name]
	if !ok {
		fmt.Fprintln(os.Stderr, "no such job:", name)
		os.Exit(2)
	}
	if err := do(context.Background(), argument); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// start runs the test binary with a job on a peer.
func start(t *testing.T, p peers.Peer, name, argument string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), jobVariable+"="+name+" "+argument, "RESTIC_REPOSITORY="+p.Location)
	for k, v := range p.Env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	return cmd
}

func parse(t *testing.T, s string) location.Location {
	t.Helper()
	l, err := location.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func settings(p peers.Peer) location.Settings {
	return location.Settings{Env: p.Lookup, Options: p.Options}
}

// opened is a repository and its store.
type opened struct {
	*repo.Repository
	store backend.Backend
}

func (o opened) Close() error { return errors.Join(o.Repository.Close(), o.store.Close()) }

// openHere opens the repository in the environment, with a wrapper around the store if one is given.
func openHere(ctx context.Context, wrap func(backend.Backend) backend.Backend) (opened, error) {
	l, err := location.Parse(os.Getenv("RESTIC_REPOSITORY"))
	if err != nil {
		return opened{}, err
	}
	store, err := location.Open(ctx, l, location.Settings{})
	if err != nil {
		return opened{}, err
	}
	if wrap != nil {
		store = wrap(store)
	}
	r, err := repo.Open(ctx, store, repo.OpenOptions{Password: peers.Password})
	if err != nil {
		return opened{}, errors.Join(err, store.Close())
	}
	return opened{r, store}, nil
}

// openPeer opens the repository at p.
func openPeer(t *testing.T, p peers.Peer) opened {
	t.Helper()
	store, err := location.Open(t.Context(), parse(t, p.Location), settings(p))
	if err != nil {
		t.Fatal(err)
	}
	r, err := repo.Open(t.Context(), store, repo.OpenOptions{Password: peers.Password})
	if err != nil {
		t.Fatal(errors.Join(err, store.Close()))
	}
	return opened{r, store}
}

// initPeer makes a repository at p whose key costs no time.
func initPeer(t *testing.T, p peers.Peer) {
	t.Helper()
	store, err := location.Create(t.Context(), parse(t, p.Location), settings(p))
	if err != nil {
		t.Fatal(err)
	}
	r, err := repo.Init(t.Context(), store, repo.InitOptions{Password: peers.Password, KeyTime: time.Nanosecond})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(r.Close(), store.Close()); err != nil {
		t.Fatal(err)
	}
}

// content is n chunks of size bytes that do not compress; the same for the same seed.
func content(seed byte, n, size int) [][]byte {
	r := rand.NewChaCha8([32]byte{seed})
	chunks := make([][]byte, n)
	for i := range chunks {
		chunks[i] = make([]byte, size)
		_, _ = r.Read(chunks[i]) // never fails
	}
	return chunks
}

// back stores chunks as one file of a snapshot of host.
func back(ctx context.Context, r *repo.Repository, host string, chunks [][]byte) (restic.ID, error) {
	return r.Commit(ctx, func(_ context.Context, w *repo.Writer) (*restic.Snapshot, error) {
		c := w.Content()
		for _, chunk := range chunks {
			if err := c.Append(chunk); err != nil {
				return nil, err
			}
		}
		ids, err := c.IDs()
		if err != nil {
			return nil, err
		}
		now := time.Now().UTC()
		tree, err := w.SaveTree(&restic.Tree{Nodes: []restic.Node{{
			Name: "file", Type: restic.FileNode, Mode: 0o644, ModTime: now, AccessTime: now, ChangeTime: now, Links: 1,
			Size: uint64(c.Size()), Content: ids,
		}}})
		return &restic.Snapshot{Time: now, Tree: &tree, Paths: []string{"/" + host}, Hostname: host, ProgramVersion: "vmkeep test"}, err
	})
}

// holds reports whether a snapshot's file is chunks, and nothing else.
func holds(ctx context.Context, r *repo.Repository, s *restic.Snapshot, chunks [][]byte) error {
	tree, err := r.LoadTree(ctx, *s.Tree)
	if err != nil {
		return err
	}
	ids := tree.Nodes[0].Content
	if len(ids) != len(chunks) {
		return fmt.Errorf("snapshot %s has %d chunks, want %d", s.ID.Short(), len(ids), len(chunks))
	}
	var mu sync.Mutex
	seen := 0
	err = r.Fetch(ctx, ids, func(i int, data []byte) error {
		mu.Lock()
		defer mu.Unlock()
		seen++
		if !bytes.Equal(data, chunks[i]) {
			return fmt.Errorf("snapshot %s: chunk %d came back different", s.ID.Short(), i)
		}
		return nil
	})
	if err == nil && seen != len(chunks) {
		err = fmt.Errorf("snapshot %s: %d chunks came back, want %d", s.ID.Short(), seen, len(chunks))
	}
	return err
}

// wantSound checks the repository's structure and data.
func wantSound(t *testing.T, r *repo.Repository) *repo.CheckReport {
	t.Helper()
	report, err := r.Check(t.Context(), repo.CheckOptions{ReadData: repo.ReadData{All: true}})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range report.Findings {
		if f.Severity == repo.Error {
			t.Errorf("check: %s", f.Text)
		}
	}
	return report
}

func snapshots(t *testing.T, r *repo.Repository) []*restic.Snapshot {
	t.Helper()
	list, err := r.Snapshots(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(list, func(a, b *restic.Snapshot) int { return a.Time.Compare(b.Time) })
	return list
}
