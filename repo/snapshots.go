package repo

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// Snapshots lists all snapshots, the oldest first. Those whose files are damaged are left out of the list and named in an error
// that is [ErrDamaged]; the list is good all the same.
func (r *Repository) Snapshots(ctx context.Context) ([]*restic.Snapshot, error) {
	names, err := r.list(ctx, restic.SnapshotFile)
	if err != nil {
		return nil, err
	}
	r.cache.keep(restic.SnapshotFile, names)
	var (
		mu      sync.Mutex
		out     []*restic.Snapshot
		damaged error
	)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(r.be.Connections(), runtime.GOMAXPROCS(0)))
	for id := range names {
		g.Go(func() error {
			s, err := r.loadSnapshot(gctx, id)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				out = append(out, s)
			case errors.Is(err, backend.ErrNotExist): // forgotten meanwhile
			case errors.Is(err, ErrDamaged):
				damaged = errors.Join(damaged, err)
			default:
				return err
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	slices.SortFunc(out, func(a, b *restic.Snapshot) int {
		if c := a.Time.Compare(b.Time); c != 0 {
			return c
		}
		return slices.Compare(a.ID[:], b.ID[:])
	})
	return out, damaged
}

func (r *Repository) loadSnapshot(ctx context.Context, id restic.ID) (*restic.Snapshot, error) {
	doc, err := r.loadDocument(ctx, restic.SnapshotFile, id)
	if err != nil {
		return nil, err
	}
	s, err := restic.DecodeSnapshot(doc)
	if err != nil {
		return nil, fmt.Errorf("snapshots/%s: %w: %w", id, ErrDamaged, err)
	}
	s.ID = id
	return s, nil
}

// LoadSnapshot reads a snapshot by its ID, by a beginning of the ID that no other has, or the newest one for "latest".
func (r *Repository) LoadSnapshot(ctx context.Context, name string) (*restic.Snapshot, error) {
	if name == "latest" {
		all, err := r.Snapshots(ctx)
		if len(all) == 0 {
			return nil, errors.Join(fmt.Errorf("snapshot latest: %w: there are no snapshots", ErrNotFound), err)
		}
		return all[len(all)-1], nil
	}
	if id, err := restic.ParseID(name); err == nil {
		s, err := r.loadSnapshot(ctx, id)
		if errors.Is(err, backend.ErrNotExist) {
			return nil, fmt.Errorf("snapshot %s: %w", name, ErrNotFound)
		}
		return s, err
	}
	names, err := r.list(ctx, restic.SnapshotFile)
	if err != nil {
		return nil, err
	}
	var found []restic.ID
	for id := range names {
		if name != "" && strings.HasPrefix(id.String(), strings.ToLower(name)) {
			found = append(found, id)
		}
	}
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("snapshot %q: %w", name, ErrNotFound)
	case 1:
		return r.loadSnapshot(ctx, found[0])
	}
	return nil, fmt.Errorf("snapshot %q: %d snapshots begin with it, give more digits", name, len(found))
}
