package engine

import (
	"context"
	"fmt"
	"io"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/repo/restic"
	"github.com/vmkeep/vmkeep/vddk"
)

// compareRun is how many bytes of a disk are read at once where neighbouring chunks are to be compared: enough for any
// transport to be at its best. A run may be longer by one chunk, which has at most 8 MiB; each of the readers, one more
// than there are processors, has a buffer of that length.
const compareRun = 4 << 20

// zeroPiece is how much of a run of zeros is compared as one, in bytes.
const zeroPiece = 512 << 10

// differing reads a disk and returns the extents of the chunks that are not what the point says, but for those that
// skip knows. It is what reading back after a restore, a rollback without change tracking and the audit have in common.
// Neighbours are read together, several runs at once, whichever part they lie in.
func (c *chunkMap) differing(ctx context.Context, from io.ReaderAt, skip func(piece) bool) (extent.Set, error) {
	var mu sync.Mutex
	var found []extent.Extent
	runs := make(chan []piece)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(runs)
		for first := 0; first < len(c.parts); first += listAhead {
			pieces, err := c.pieces(ctx, first, min(first+listAhead, len(c.parts)))
			if err != nil {
				return err
			}
			for run := range c.runs(pieces, skip) {
				select {
				case runs <- run:
				case <-ctx.Done():
					return context.Cause(ctx)
				}
			}
		}
		return nil
	})
	for range cpus() + 1 {
		g.Go(func() error {
			var buf []byte
			for run := range runs {
				var different []extent.Extent
				var err error
				if buf, different, err = compareOne(from, run, buf); err != nil {
					return fmt.Errorf("read the disk at %d: %w", run[0].off, err)
				}
				for _, p := range run {
					c.meter.work(p.len)
					c.meter.read.Add(p.len)
				}
				mu.Lock()
				found = append(found, different...)
				mu.Unlock()
			}
			return nil
		})
	}
	err := g.Wait()
	return extent.Of(found...), err
}

// runs groups neighbouring pieces that are to be compared. Long zeros are cut, so that a difference in them is told as
// closely as one in a chunk.
func (c *chunkMap) runs(pieces []piece, skip func(piece) bool) func(yield func([]piece) bool) {
	return func(yield func([]piece) bool) {
		var run []piece
		length := int64(0)
		add := func(p piece) bool {
			if p.lost || skip(p) {
				c.meter.skip(p.len)
				return true
			}
			if n := len(run); n > 0 && (length >= compareRun || run[n-1].extent().End() != p.off) {
				if !yield(run) {
					return false
				}
				run, length = nil, 0
			}
			run, length = append(run, p), length+p.len
			return true
		}
		for _, p := range pieces {
			for p.zero() && !p.lost && p.len > zeroPiece {
				if !add(piece{id: p.id, off: p.off, len: zeroPiece}) {
					return
				}
				p.off, p.len = p.off+zeroPiece, p.len-zeroPiece
			}
			if !add(p) {
				return
			}
		}
		if len(run) > 0 {
			yield(run)
		}
	}
}

// compareOne reads the sectors that a run of neighbours lies in and returns which of its pieces are different. It
// returns its buffer for the next one.
func compareOne(from io.ReaderAt, run []piece, buf []byte) ([]byte, []extent.Extent, error) {
	lo := run[0].off &^ (vddk.SectorSize - 1)
	hi := (run[len(run)-1].extent().End() + vddk.SectorSize - 1) &^ (vddk.SectorSize - 1)
	if int64(cap(buf)) < hi-lo {
		buf = make([]byte, hi-lo)
	}
	buf = buf[:hi-lo]
	n, err := from.ReadAt(buf, lo)
	if err != nil && err != io.EOF {
		return buf, nil, err
	}
	at := func(p piece) []byte { return buf[p.off-lo : p.extent().End()-lo] }
	var chunks [][]byte
	for _, p := range run {
		if !p.zero() {
			chunks = append(chunks, at(p))
		}
	}
	hashes := restic.HashAll(chunks)
	var different []extent.Extent
	for _, p := range run {
		var same bool
		if p.zero() {
			same = isZero(at(p))
		} else {
			same, hashes = hashes[0] == p.id, hashes[1:]
		}
		if there := p.extent().End()-lo <= int64(n); !same || !there { // the disk may end before
			different = append(different, p.extent())
		}
	}
	return buf, different, nil
}
