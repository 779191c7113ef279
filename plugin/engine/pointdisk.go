package engine

import (
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/vmkeep/vmkeep/repo"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// pointDisk is a disk of a point as an [io.ReaderAt]: bytes are fetched when they are asked for, whole chunks at a
// time, which the repository keeps for a while.
type pointDisk struct {
	ctx   context.Context // of the call that opened it
	repo  *repo.Repository
	size  int64
	parts []*restic.ID

	mu   sync.Mutex
	open map[restic.ID]*repo.Reader // by tree: parts without data share one
}

// openParts bounds the content lists kept in memory, each about 80 KB.
const openParts = 512

// openDisk opens one disk of the point.
func (p *loadedPoint) openDisk(ctx context.Context, d manifestDisk) (*pointDisk, error) {
	parts, err := p.partTrees(ctx, d.Name)
	if err != nil {
		return nil, err
	}
	return &pointDisk{ctx: ctx, repo: p.repo, size: d.Capacity, parts: parts, open: map[restic.ID]*repo.Reader{}}, nil
}

// ReadAt fills p or fails; a read across the end gives what there is and io.EOF.
func (d *pointDisk) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at %d", off)
	}
	done := 0
	for done < len(p) && off < d.size {
		n := int(off / PartSize)
		at, left := off-int64(n)*PartSize, partLen(d.size, n)
		want := int(min(int64(len(p)-done), left-at))
		r, err := d.part(n, left)
		if err != nil {
			return done, err
		}
		m, err := r.ReadAt(p[done:done+want], at)
		done, off = done+m, off+int64(m)
		if m < want {
			return done, fmt.Errorf("part %d at %d: %w", n, at, err)
		}
	}
	if done < len(p) {
		return done, io.EOF
	}
	return done, nil
}

func (d *pointDisk) part(n int, size int64) (*repo.Reader, error) {
	id := d.parts[n]
	if id == nil {
		return nil, fmt.Errorf("part %d is missing from the point: %w", n, repo.ErrDamaged)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if r := d.open[*id]; r != nil {
		return r, nil
	}
	ids, _, err := loadPart(d.ctx, d.repo, *id, size)
	if err != nil {
		return nil, fmt.Errorf("part %d: %w", n, err)
	}
	r, err := d.repo.Reader(d.ctx, ids)
	if err != nil {
		return nil, fmt.Errorf("part %d: %w", n, err)
	}
	if len(d.open) >= openParts {
		clear(d.open)
	}
	d.open[*id] = r
	return r, nil
}
