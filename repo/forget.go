package repo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// ForgetOptions choose snapshots and say which of them to keep.
type ForgetOptions struct {
	Policy  restic.Policy
	GroupBy restic.GroupBy
	// Hosts, Paths and Tags choose, if set: snapshots of any of the hosts, with all of the paths, with any of the lists of tags.
	Hosts []string
	Paths []string
	Tags  [][]string
	// DryRun decides and removes nothing.
	DryRun bool
}

// ForgetReport is what was decided for each group.
type ForgetReport struct {
	Groups []ForgetGroup
}

// ForgetGroup is a group of snapshots, the newest first.
type ForgetGroup struct {
	Host   string
	Paths  []string
	Tags   []string
	Keep   []restic.Kept
	Remove []*restic.Snapshot
}

// ErrNoPolicy refuses to forget without a rule: it would keep nothing.
var ErrNoPolicy = errors.New("no rule says which snapshots to keep, so none is removed")

// ErrLastSnapshot refuses a policy that would leave a group without any snapshot.
var ErrLastSnapshot = errors.New("the rules would remove every snapshot")

// Forget removes the snapshots that a policy does not keep, each group by itself, under an exclusive lock. It removes the documents
// only; [Repository.Prune] frees the space. Nothing is removed if any group would lose all its snapshots.
func (r *Repository) Forget(ctx context.Context, o ForgetOptions) (*ForgetReport, error) {
	if err := o.Policy.Valid(); err != nil {
		return nil, err
	}
	if o.Policy.Empty() {
		return nil, ErrNoPolicy
	}
	mode := Exclusive
	if o.DryRun {
		mode = Shared
	}
	var report *ForgetReport
	err := r.WithLock(ctx, mode, func(ctx context.Context) error {
		all, err := r.Snapshots(ctx)
		if err != nil {
			return err
		}
		if report, err = o.decide(all, time.Now()); err != nil || o.DryRun {
			return err
		}
		var ids []restic.ID
		for _, g := range report.Groups {
			for _, s := range g.Remove {
				ids = append(ids, s.ID)
			}
		}
		return r.removeSnapshots(ctx, ids)
	})
	if err != nil {
		return nil, fmt.Errorf("forget: %w", err)
	}
	return report, nil
}

func (o ForgetOptions) decide(all []*restic.Snapshot, now time.Time) (*ForgetReport, error) {
	chosen := slices.DeleteFunc(all, func(s *restic.Snapshot) bool {
		return len(o.Hosts) > 0 && !slices.Contains(o.Hosts, s.Hostname) || !s.HasPaths(o.Paths) || !s.HasTagList(o.Tags)
	})
	report := &ForgetReport{}
	for _, g := range o.GroupBy.Group(chosen) {
		keep, remove := o.Policy.Apply(g.Snapshots, now)
		if len(keep) == 0 {
			return nil, fmt.Errorf("%w of host %q, paths %q", ErrLastSnapshot, g.Host, g.Paths)
		}
		report.Groups = append(report.Groups, ForgetGroup{g.Host, g.Paths, g.Tags, keep, remove})
	}
	return report, nil
}

// ForgetSnapshots removes snapshots by ID, whatever they are, under an exclusive lock. One that is gone already is no error.
func (r *Repository) ForgetSnapshots(ctx context.Context, ids []restic.ID) error {
	err := r.WithLock(ctx, Exclusive, func(ctx context.Context) error { return r.removeSnapshots(ctx, ids) })
	if err != nil {
		return fmt.Errorf("forget: %w", err)
	}
	return nil
}

func (r *Repository) removeSnapshots(ctx context.Context, ids []restic.ID) error {
	for _, id := range ids {
		h := backend.Handle{Type: restic.SnapshotFile, Name: id.String()}
		if err := r.be.Remove(ctx, h); err != nil && !errors.Is(err, backend.ErrNotExist) {
			return fmt.Errorf("remove %s: %w", h, err)
		}
		r.cache.drop(h)
	}
	return nil
}
