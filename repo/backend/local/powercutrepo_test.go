package local

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vmkeep/vmkeep/repo"
	"github.com/vmkeep/vmkeep/repo/restic"
)

const secret = "password"

// on opens the repository on a disk for fn.
func on(ctx context.Context, d *disk, fn func(r *repo.Repository) error) error {
	b, err := open(root, 2, d)
	if err != nil {
		return err
	}
	r, err := repo.Open(ctx, b, repo.OpenOptions{Password: secret})
	if err != nil {
		return err
	}
	defer r.Close()
	return fn(r)
}

// back stores pieces of 20,000 bytes, each told by its number, as a snapshot of host.
func back(ctx context.Context, r *repo.Repository, host string, pieces ...byte) error {
	_, err := r.Commit(ctx, func(_ context.Context, w *repo.Writer) (*restic.Snapshot, error) {
		c := w.Content()
		for _, piece := range pieces {
			data := make([]byte, 20_000)
			_, _ = rand.NewChaCha8([32]byte{piece}).Read(data)
			if err := c.Append(data); err != nil {
				return nil, err
			}
		}
		ids, err := c.IDs()
		if err != nil {
			return nil, err
		}
		tree, err := w.SaveTree(&restic.Tree{Nodes: []restic.Node{{Name: "disk", Type: restic.FileNode, Mode: 0o644, Links: 1, Size: uint64(c.Size()), Content: ids}}})
		return &restic.Snapshot{Time: time.Now(), Tree: &tree, Paths: []string{"/" + host}, Hostname: host}, err
	})
	return err
}

// hosts are those that have a snapshot.
func hosts(ctx context.Context, r *repo.Repository) (map[string]bool, error) {
	all, err := r.Snapshots(ctx)
	have := make(map[string]bool)
	for _, s := range all {
		have[s.Hostname] = true
	}
	return have, err
}

// A work is what goes on when the power fails, on a disk with snapshots of old and new, which share a piece, and what is left of the
// forgotten snapshot of gone, which shared one with old.
type work struct {
	do    func(context.Context, *repo.Repository) error
	after map[string]bool // hosts with a snapshot or without one, if it was said to be done
}

var works = map[string]work{
	"commit": {func(ctx context.Context, r *repo.Repository) error { return back(ctx, r, "third", 3, 4, 5) }, map[string]bool{"third": true}},
	"forget": {func(ctx context.Context, r *repo.Repository) error { return forget(ctx, r, "old") }, map[string]bool{"old": false}},
	"prune": {func(ctx context.Context, r *repo.Repository) error {
		_, err := r.Prune(ctx, repo.PruneOptions{MaxUnused: repo.Unused{None: true}})
		return err
	}, nil},
}

func forget(ctx context.Context, r *repo.Repository, host string) error {
	all, err := r.Snapshots(ctx)
	if err != nil {
		return err
	}
	var ids []restic.ID
	for _, s := range all {
		if s.Hostname == host {
			ids = append(ids, s.ID)
		}
	}
	return r.ForgetSnapshots(ctx, ids)
}

// furnish is a disk on which all is durable.
func furnish(t *testing.T) *disk {
	t.Helper()
	d := newDisk("/srv")
	b, err := create(root, 2, d)
	if err != nil {
		t.Fatal(err)
	}
	r, err := repo.Init(t.Context(), b, repo.InitOptions{Password: secret, KeyTime: time.Nanosecond})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, err := range []error{
		back(t.Context(), r, "gone", 1, 2), back(t.Context(), r, "old", 2, 3), back(t.Context(), r, "new", 3, 4),
		forget(t.Context(), r, "gone"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for name := range d.dirs {
		if err := d.SyncDir(name); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

func TestPowerCutDuringCommitForgetOrPruneLeavesAllSnapshotsWhole(t *testing.T) {
	for name, w := range works {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := furnish(t)
				whole := start.cut(rand.New(rand.NewPCG(0, 0)))
				if err := on(t.Context(), whole, func(r *repo.Repository) error { return w.do(t.Context(), r) }); err != nil {
					t.Fatal(err)
				}
				steps, done := 1<<30-whole.left, 0
				for left := range steps + 3 { // packs may be written in another order, with more steps
					d := start.cut(rand.New(rand.NewPCG(0, 0)))
					d.left = left
					var promised error
					err := on(t.Context(), d, func(r *repo.Repository) error {
						promised = w.do(t.Context(), r)
						return promised
					})
					if err == nil {
						done++
					}
					for seed := range uint64(2) {
						found := d.cut(rand.New(rand.NewPCG(uint64(left), seed)))
						if broken := w.judge(t.Context(), found, err == nil); broken != nil {
							t.Fatalf("power cut after %d of %d steps, outcome %d; %s had said %v: %v", left, steps, seed, name, err, broken)
						}
					}
				}
				if steps < 8 || done == 0 || done > steps/2 {
					t.Errorf("of %d steps and two more %d cuts came when all was done", steps, done)
				}
			})
		})
	}
}

// judge is what is wrong with the disk as found. Locks of before may be there again, as with any crash.
func (w work) judge(ctx context.Context, found *disk, done bool) error {
	return on(ctx, found, func(r *repo.Repository) error {
		if _, err := r.UnlockAll(ctx); err != nil {
			return err
		}
		if err := sound(ctx, r); err != nil {
			return err
		}
		have, err := hosts(ctx, r)
		if err != nil {
			return err
		}
		for host, want := range map[string]bool{"old": true, "new": true, "gone": false} {
			if _, changes := w.after[host]; !changes && have[host] != want {
				return fmt.Errorf("%s has a snapshot: %v", host, have[host])
			}
		}
		for host, want := range w.after {
			if done && have[host] != want {
				return fmt.Errorf("what was done is undone: %s has a snapshot: %v", host, have[host])
			}
		}
		if err := w.do(ctx, r); err != nil {
			return fmt.Errorf("rerun: %w", err)
		}
		return sound(ctx, r)
	})
}

// sound verifies every bit that a snapshot needs.
func sound(ctx context.Context, r *repo.Repository) error {
	report, err := r.Check(ctx, repo.CheckOptions{ReadData: repo.ReadData{All: true}})
	if err == nil && !report.OK() {
		err = fmt.Errorf("check finds %+v", report.Findings)
	}
	return err
}
