package repo

import (
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// hold keeps packs that the store would not delete, and those that an index file names which it would not delete: as long as an index
// file names a pack the pack must exist. To store their content anew, or an index without them, would make the store larger with each
// prune and free nothing.
func (p *pruner) hold(ctx context.Context) error {
	var doomed []*packUse
	for i := range p.packs {
		if u := &p.packs[i]; u.verdict != keepPack {
			doomed = append(doomed, u)
		}
	}
	if len(doomed)+len(p.orphan) == 0 {
		return nil
	}
	refuses, err := p.r.refusesDeletion(ctx)
	if err != nil {
		return err
	}
	if refuses {
		for _, u := range doomed {
			p.keepHeld(u)
		}
		for _, id := range p.orphan {
			p.report.HeldPacks++
			p.report.HeldBytes += p.sizes[id]
		}
		p.orphan = nil
		return nil
	}
	if len(doomed) > 0 {
		if err := p.holdIndexed(ctx, doomed); err != nil {
			return err
		}
	}
	held, err := p.retained(ctx, restic.PackFile, p.orphan)
	p.orphan = slices.DeleteFunc(p.orphan, func(id restic.ID) bool {
		if held[id] {
			p.report.HeldPacks++
			p.report.HeldBytes += p.sizes[id]
		}
		return held[id]
	})
	return err
}

// holdIndexed keeps those of the doomed packs that are retained or named by an index file that is.
func (p *pruner) holdIndexed(ctx context.Context, doomed []*packUse) error {
	var ids, indexes []restic.ID
	for _, u := range doomed {
		if u.size >= 0 {
			ids = append(ids, u.id)
		}
	}
	held, err := p.retained(ctx, restic.PackFile, ids)
	if err != nil {
		return err
	}
	p.r.index.mu.Lock()
	for id := range p.r.index.files {
		indexes = append(indexes, id)
	}
	p.r.index.mu.Unlock()
	if p.fixed, err = p.retained(ctx, restic.IndexFile, indexes); err != nil {
		return err
	}
	for id := range p.fixed {
		h := backend.Handle{Type: restic.IndexFile, Name: id.String()}
		sealed, err := p.r.loadSealed(ctx, h)
		if err != nil {
			return err
		}
		if err := p.r.decodeIndex(ctx, h, sealed, func(pack restic.ID, _ []restic.Blob) error {
			held[pack] = true
			return nil
		}); err != nil {
			return err
		}
	}
	for _, u := range doomed {
		if held[u.id] {
			p.keepHeld(u)
		}
	}
	return nil
}

// keepHeld keeps a pack that was to go, and counts what would have been freed.
func (p *pruner) keepHeld(u *packUse) {
	switch {
	case u.verdict == repackPack:
		p.report.HeldBytes += u.unused
	case u.size > 0:
		p.report.HeldBytes += u.size
	}
	u.verdict = keepPack
	p.report.HeldPacks++
}

// retained asks which of the files the store retains still, several at a time, and notes until when.
func (p *pruner) retained(ctx context.Context, t restic.FileType, ids []restic.ID) (map[restic.ID]bool, error) {
	held := make(map[restic.ID]bool)
	now := time.Now()
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(1, p.r.be.Connections()))
	for _, id := range ids {
		g.Go(func() error {
			until, err := p.r.be.Retained(ctx, backend.Handle{Type: t, Name: id.String()})
			if errors.Is(err, backend.ErrNotExist) {
				return nil
			}
			if until.After(now) {
				mu.Lock()
				defer mu.Unlock()
				held[id] = true
				if until.After(p.report.HeldUntil) {
					p.report.HeldUntil = until
				}
			}
			return err
		})
	}
	return held, g.Wait()
}

// refusesDeletion reports whether the store deletes nothing, as append-only ones do. These say so of files that do not exist as well.
func (r *Repository) refusesDeletion(ctx context.Context) (bool, error) {
	for _, t := range []restic.FileType{restic.IndexFile, restic.PackFile} {
		var nobody restic.ID
		rand.Read(nobody[:])
		switch err := r.be.Remove(ctx, backend.Handle{Type: t, Name: nobody.String()}); {
		case errors.Is(err, backend.ErrReadOnly):
			return true, nil
		case err != nil && !errors.Is(err, backend.ErrNotExist):
			return false, err
		}
	}
	return false, nil
}
