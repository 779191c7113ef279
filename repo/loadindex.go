package repo

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/internal/index"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// indexHolder is the index in memory and what it was made of.
type indexHolder struct {
	mu      sync.Mutex
	index   *index.Index
	files   map[restic.ID]bool // index files that are in it
	damaged map[restic.ID]error
	fresh   bool // no need to list the files again
	pins    int  // commits that need the index to stay the same object: it holds what they are storing
}

// lookAgain makes the next use of the index list the index files: a lock was just taken, before it they may have changed.
func (r *Repository) lookAgain() {
	r.index.mu.Lock()
	defer r.index.mu.Unlock()
	r.index.fresh = false
}

// idx is the index, loaded or brought up to date as needed. Damaged index files are left out: what can be read is
// readable, what cannot be found is reported where it is missed, and what is written is merely stored once more.
func (r *Repository) idx(ctx context.Context) (*index.Index, error) {
	r.index.mu.Lock()
	defer r.index.mu.Unlock()
	return r.bringUpToDate(ctx)
}

// pinIndex is idx, and keeps the index the same object until unpinIndex.
func (r *Repository) pinIndex(ctx context.Context) (*index.Index, error) {
	r.index.mu.Lock()
	defer r.index.mu.Unlock()
	x, err := r.bringUpToDate(ctx)
	if err == nil {
		r.index.pins++
	}
	return x, err
}

func (r *Repository) indexPinned() bool {
	r.index.mu.Lock()
	defer r.index.mu.Unlock()
	return r.index.pins > 0
}

func (r *Repository) unpinIndex() {
	r.index.mu.Lock()
	defer r.index.mu.Unlock()
	r.index.pins--
}

// bringUpToDate loads what is new. The caller holds the index's mutex.
func (r *Repository) bringUpToDate(ctx context.Context) (*index.Index, error) {
	x := &r.index
	if x.fresh {
		return x.index, nil
	}
	listed, err := r.list(ctx, restic.IndexFile)
	if err != nil {
		return nil, err
	}
	for id := range x.files {
		// Files are gone: somebody pruned, and what they said may be wrong now. While a commit runs its lock keeps prune
		// out, so they can only have been gone before, or without changing what is true.
		if _, ok := listed[id]; !ok && x.pins == 0 {
			x.index = nil
			break
		}
	}
	if x.index == nil {
		x.index, x.files, x.damaged = index.New(), make(map[restic.ID]bool), make(map[restic.ID]error)
	}
	var news []restic.ID
	for id := range listed {
		if !x.files[id] {
			news = append(news, id)
		}
	}
	damaged, err := r.loadIndexFiles(ctx, x.index, news)
	if err != nil {
		return nil, err
	}
	for _, id := range news {
		if damaged[id] == nil {
			x.files[id] = true
		}
	}
	x.damaged = damaged
	x.fresh = true
	r.cache.keep(restic.IndexFile, listed)
	return x.index, nil
}

// loadIndexFiles adds index files to an index, several at a time, and tells which are damaged.
func (r *Repository) loadIndexFiles(ctx context.Context, x *index.Index, ids []restic.ID) (map[restic.ID]error, error) {
	damaged := make(map[restic.ID]error)
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(r.be.Connections(), runtime.GOMAXPROCS(0)))
	for _, id := range ids {
		g.Go(func() error {
			err := r.loadIndexFile(ctx, x, id)
			if errors.Is(err, ErrDamaged) {
				mu.Lock()
				defer mu.Unlock()
				damaged[id] = err
				return nil
			}
			if errors.Is(err, backend.ErrNotExist) {
				return nil // it was replaced between listing and loading; what replaced it is found next time
			}
			return err
		})
	}
	return damaged, g.Wait()
}

func (r *Repository) loadIndexFile(ctx context.Context, x *index.Index, id restic.ID) error {
	h := backend.Handle{Type: restic.IndexFile, Name: id.String()}
	sealed, err := r.loadSealed(ctx, h)
	if err != nil {
		return err
	}
	return r.decodeIndex(ctx, h, sealed, func(pack restic.ID, blobs []restic.Blob) error {
		if r.config.Version < 2 {
			for _, b := range blobs {
				if b.Compressed() {
					return fmt.Errorf("%s is compressed, which a version 1 repository cannot hold", b.BlobHandle)
				}
			}
		}
		_, err := x.AddPack(pack, blobs)
		return err
	})
}

// indexDamage is the error of damaged index files, for those who must not go on without them.
func (r *Repository) indexDamage() error {
	r.index.mu.Lock()
	defer r.index.mu.Unlock()
	var err error
	for _, e := range r.index.damaged {
		err = errors.Join(err, e)
	}
	return err
}

// indexWritten notes an index file that this process wrote from what the index holds already.
func (r *Repository) indexWritten(id restic.ID) {
	r.index.mu.Lock()
	defer r.index.mu.Unlock()
	if r.index.files != nil {
		r.index.files[id] = true
	}
}
