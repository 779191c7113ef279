package engine

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/repo"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// frameSize is the most bytes one frame carries. gRPC is at its best between 256 KiB and 1 MiB.
const frameSize = 1 << 20

// ReadDisk implements [plugin.Service].
func (e *Engine) ReadDisk(ctx context.Context, req plugin.ReadDiskRequest, fn func(plugin.Frame) error) error {
	return e.operate(ctx, "read-disk", nil, func(ctx context.Context, op *operation) error {
		return op.withRepository(ctx, func(r *repo.Repository) error {
			return r.WithLock(ctx, repo.Shared, func(ctx context.Context) error {
				point, err := findPoint(ctx, r, req.Point, req.Machine)
				if err != nil {
					return err
				}
				rec := point.manifest.disk(req.Disk)
				if rec == nil || rec.Skipped != "" {
					return &plugin.Error{Code: plugin.CodePointNotFound, Summary: fmt.Sprintf("the point has no disk %q", req.Disk), Object: req.Disk,
						Remedy: "list the point's disks with `vmkeep points --disks`"}
				}
				want := extent.Extent{Off: req.Offset, Len: req.Length}
				if want.Len == 0 {
					want.Len = rec.Capacity - want.Off
				}
				if !want.Valid() || want.End() > rec.Capacity {
					return invalid("offset", fmt.Sprintf("bytes %d+%d are not all on a disk of %d", req.Offset, req.Length, rec.Capacity), "stay within the disk's capacity")
				}
				parts, err := point.partTrees(ctx, rec.Name)
				if err != nil {
					return err
				}
				m, end := scope{out: op.out}.meter(plugin.PhaseRead, want.Len)
				defer end()
				c := &chunkMap{repo: r, size: rec.Capacity, parts: parts, only: extent.Of(want), meter: m}
				return c.stream(ctx, want, frames(fn))
			})
		})
	})
}

// aheadPieces is how many chunks are fetched together while the ones before are handed out: some 24 MiB.
const aheadPieces = 16

// stream hands out the bytes of want in order; data nil: zeros.
func (c *chunkMap) stream(ctx context.Context, want extent.Extent, fn func(off, length int64, data []byte) error) error {
	if want.Len == 0 {
		return nil
	}
	type loaded struct {
		pieces []piece
		data   [][]byte
	}
	ready := make(chan loaded) // unbuffered: one batch is fetched while one is handed out
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(ready)
		for n := int(want.Off / PartSize); n <= int((want.End()-1)/PartSize); n++ {
			all, err := c.pieces(ctx, n, n+1)
			if err != nil {
				return err
			}
			for len(all) > 0 {
				b := loaded{pieces: all[:min(len(all), aheadPieces)]}
				all = all[len(b.pieces):]
				if b.data, err = c.load(ctx, b.pieces); err != nil {
					return err
				}
				select {
				case ready <- b:
				case <-ctx.Done():
					return context.Cause(ctx)
				}
			}
		}
		return nil
	})
	g.Go(func() error {
		for b := range ready {
			for i, p := range b.pieces {
				lo, hi := max(p.off, want.Off), min(p.off+p.len, want.End())
				var data []byte
				if b.data[i] != nil {
					data = b.data[i][lo-p.off : hi-p.off]
				}
				if err := fn(lo, hi-lo, data); err != nil {
					return err
				}
			}
		}
		return nil
	})
	return g.Wait()
}

// load fetches pieces into memory; zero pieces stay nil.
func (c *chunkMap) load(ctx context.Context, pieces []piece) ([][]byte, error) {
	out := make([][]byte, len(pieces))
	var ids []restic.ID
	var at []int
	for i, p := range pieces {
		if p.id != restic.ZeroChunk() {
			ids, at = append(ids, p.id), append(at, i)
		}
	}
	fetched := c.repo.Fetch(ctx, ids, func(i int, data []byte) error {
		if int64(len(data)) != pieces[at[i]].len {
			return fmt.Errorf("chunk %s has another length than the index says: %w", ids[i].Short(), repo.ErrDamaged)
		}
		c.fetched.Add(int64(len(data)))
		out[at[i]] = append([]byte(nil), data...)
		return nil
	})
	lost, err := missing(fetched, pieces) // they stay nil: zeros
	if err == nil {
		err = c.giveUp(lost, fetched)
	}
	return out, err
}

// frames cuts runs into frames of at most frameSize and finds the zeros among them; neighbouring zeros become one frame.
func frames(fn func(plugin.Frame) error) func(off, length int64, data []byte) error {
	return func(off, length int64, data []byte) error {
		if data == nil {
			return fn(plugin.Frame{Offset: off, Length: length})
		}
		for len(data) > 0 {
			n := min(len(data), frameSize)
			f := plugin.Frame{Offset: off, Length: int64(n)}
			if !isZero(data[:n]) {
				f.Data = data[:n]
			}
			if err := fn(f); err != nil {
				return err
			}
			off, data = off+int64(n), data[n:]
		}
		return nil
	}
}
