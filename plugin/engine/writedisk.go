package engine

import (
	"context"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/repo"
	"github.com/vmkeep/vmkeep/repo/restic"
	"github.com/vmkeep/vmkeep/vddk"
)

// diskWriter writes a point's disk, or extents of it, to a target.
//
// Chunks end at any byte, disks are written in sectors: the sector that two chunks share is put together from both
// (see stitcher). Blobs are fetched in the order of the packs, so they arrive, and are written, in any order.
type diskWriter struct {
	*chunkMap
	target diskTarget
	// fresh says that the target reads as zeros where nothing was written: zeros are left out. A target that is not fresh
	// keeps what it holds where the repository lost data.
	fresh bool
	// patch says that the target is nearly what it shall be: only sectors that differ are written.
	patch bool
	// there is what the target holds before anything is written; nil: reading the target tells.
	there io.ReaderAt

	written atomic.Int64
}

// diskTarget is what a disk is written to: a virtual disk, a file, a set of files.
type diskTarget interface {
	io.ReaderAt
	io.WriterAt
}

// run writes everything.
func (w *diskWriter) run(ctx context.Context) error {
	if w.there == nil {
		w.there = w.target
	}
	stitch := &stitcher{target: w.target, there: w.there, fresh: w.fresh, patch: w.patch, pending: map[int64]*sector{}, written: &w.written}
	for first := 0; first < len(w.parts); first += batchParts {
		batch, err := w.pieces(ctx, first, min(first+batchParts, len(w.parts)))
		if err != nil {
			return err
		}
		if err := w.batch(ctx, batch, stitch); err != nil {
			return err
		}
	}
	return stitch.complete()
}

// batch writes pieces: the zeros first, which need no fetching.
func (w *diskWriter) batch(ctx context.Context, batch []piece, stitch *stitcher) error {
	var fetch []piece
	var ids []restic.ID
	ahead := int64(0)
	for _, p := range batch {
		if p.zero() {
			if err := w.blank(p, stitch); err != nil {
				return err
			}
			if err := context.Cause(ctx); err != nil {
				return err
			}
			continue
		}
		fetch, ids, ahead = append(fetch, p), append(ids, p.id), ahead+p.len
	}
	if len(ids) == 0 {
		return context.Cause(ctx)
	}
	w.meter.ahead.Add(ahead)
	fetched := w.repo.Fetch(ctx, ids, func(i int, data []byte) error {
		if int64(len(data)) != fetch[i].len {
			return fmt.Errorf("chunk %s has %d bytes, the index says %d: %w", fetch[i].id.Short(), len(data), fetch[i].len, repo.ErrDamaged)
		}
		w.fetched.Add(int64(len(data)))
		return w.put(fetch[i], data, stitch)
	})
	lost, err := missing(fetched, fetch)
	if err == nil && !w.fresh {
		lost, err = w.absent(lost)
	}
	if err == nil {
		err = w.giveUp(lost, fetched)
	}
	if err != nil {
		return err
	}
	for _, p := range lost {
		p.lost = true
		if err := w.blank(p, stitch); err != nil {
			return err
		}
	}
	return nil
}

// blank writes a piece that has no data: zeros, but what was lost stays as it is on a target that is not fresh.
func (w *diskWriter) blank(p piece, stitch *stitcher) error {
	if !p.lost || w.fresh {
		return w.put(p, nil, stitch)
	}
	defer w.passed(p)
	for _, e := range w.wanted(p) {
		if err := w.keep(e, stitch); err != nil {
			return err
		}
	}
	return nil
}

// keep leaves e as it is on the target. Sectors that it shares with pieces that are written are put together with what
// is there of it.
func (w *diskWriter) keep(e extent.Extent, stitch *stitcher) error {
	const mask = vddk.SectorSize - 1
	for e.Len > 0 {
		first := e.Off &^ mask
		n := min(first+vddk.SectorSize, e.End()) - e.Off
		if n == vddk.SectorSize {
			n = e.Len &^ mask // whole sectors
		} else {
			var there [vddk.SectorSize]byte
			if _, err := w.there.ReadAt(there[:], first); err != nil && err != io.EOF {
				return fmt.Errorf("read the disk at %d: %w", first, err)
			}
			if err := stitch.write(e.Off, there[e.Off-first:e.Off-first+n]); err != nil {
				return err
			}
		}
		e.Off, e.Len = e.Off+n, e.Len-n
	}
	return nil
}

// passed counts a piece as done.
func (w *diskWriter) passed(p piece) {
	switch {
	case !p.zero():
		w.meter.done.Add(p.len)
		w.meter.ahead.Add(-p.len)
	case w.fresh || p.lost:
		w.meter.skip(p.len)
	default:
		w.meter.done.Add(p.len)
	}
}

// absent is what of the pieces that the repository lost the target does not hold either.
func (w *diskWriter) absent(lost []piece) (out []piece, err error) {
	var buf []byte
	for _, p := range lost {
		var different []extent.Extent
		if buf, different, err = compareOne(w.there, []piece{p}, buf); err != nil {
			return nil, fmt.Errorf("read the disk at %d: %w", p.off, err)
		}
		if len(different) > 0 {
			out = append(out, p)
			continue
		}
		w.passed(p)
	}
	return out, nil
}

// put writes what is wanted of a piece; data nil: zeros.
func (w *diskWriter) put(p piece, data []byte, stitch *stitcher) error {
	defer w.passed(p)
	for _, e := range w.wanted(p) {
		if !p.zero() || !w.fresh {
			w.meter.moved.Add(e.Len)
		}
		var err error
		if data == nil {
			err = stitch.zeros(e)
		} else {
			err = stitch.write(e.Off, data[e.Off-p.off:e.End()-p.off])
		}
		if err != nil {
			return err
		}
	}
	w.meter.stored.Store(w.written.Load())
	return nil
}
