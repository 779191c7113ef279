package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/repo"
	"github.com/vmkeep/vmkeep/repo/restic"
	"github.com/vmkeep/vmkeep/vddk"
)

// diskWriter writes a point's disk, or extents of it, to a target.
//
// Chunks end at any byte, disks are written in sectors: the sector that two chunks share is put together from both
// (see stitcher). Blobs are fetched in the order of the packs, so they arrive, and are written, in any order.
type diskWriter struct {
	repo   *repo.Repository
	target diskTarget
	size   int64
	parts  []*restic.ID
	// only are the extents to write, multiples of a sector; nil: the whole disk.
	only extent.Set
	// fresh says that the target reads as zeros where nothing was written: zeros are left out.
	fresh bool
	// allowMissing makes chunks that the repository lost zeros, instead of a failure.
	allowMissing bool
	meter        *meter

	fetched atomic.Int64
	written atomic.Int64
	mu      sync.Mutex
	lost    []extent.Extent
}

// diskTarget is what a disk is written to: a virtual disk, a file, a set of files.
type diskTarget interface {
	io.ReaderAt
	io.WriterAt
}

// batchParts is how many parts are fetched together: enough that a pack is read once for all its chunks and a chunk
// once for all its places, few enough that the list of chunks, some 200 bytes for each, stays small. In bytes of the
// disk: 64 GiB; of memory: some 15 MB.
const batchParts = 64

// piece is a chunk of the point and where it lies on the disk.
type piece struct {
	id  restic.ID
	off int64
	len int64
}

// run writes everything.
func (w *diskWriter) run(ctx context.Context) error {
	stitch := &stitcher{target: w.target, fresh: w.fresh, pending: map[int64]*sector{}, written: &w.written}
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

// whole is a writer for the same disk without a selection, to compare what was written.
func (w *diskWriter) whole(m *meter) *diskWriter {
	return &diskWriter{repo: w.repo, size: w.size, parts: w.parts, allowMissing: w.allowMissing, meter: m, lost: w.lost}
}

// listAhead is how many parts' lists of chunks are loaded at once: each is a request to the repository's storage.
const listAhead = 8

// pieces lists the chunks of parts [first, last) that hold bytes to write.
func (w *diskWriter) pieces(ctx context.Context, first, last int) ([]piece, error) {
	lists := make([][]piece, last-first)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(listAhead)
	for n := first; n < last; n++ {
		g.Go(func() (err error) {
			lists[n-first], err = w.piecesOf(ctx, n)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return slices.Concat(lists...), nil
}

func (w *diskWriter) piecesOf(ctx context.Context, n int) ([]piece, error) {
	start, size := int64(n)*PartSize, partLen(w.size, n)
	if w.only != nil && !w.only.Overlaps(extent.Extent{Off: start, Len: size}) {
		w.meter.done.Add(size)
		return nil, nil
	}
	ids, sizes, err := w.listPart(ctx, n, size)
	if err != nil {
		return nil, fmt.Errorf("part %d: %w", n, err)
	}
	out := make([]piece, 0, len(ids))
	off := start
	for i, id := range ids {
		p := piece{id: id, off: off, len: int64(sizes[i])}
		off += p.len
		if w.only != nil && !w.only.Overlaps(extent.Extent{Off: p.off, Len: p.len}) {
			w.meter.done.Add(p.len)
			continue
		}
		out = append(out, p)
	}
	return out, nil
}

// listPart loads the list of a part's chunks. What the repository lost of it is zeros where that was allowed.
func (w *diskWriter) listPart(ctx context.Context, n int, size int64) ([]restic.ID, []int, error) {
	err := fmt.Errorf("it is missing from the point: %w", repo.ErrDamaged)
	if w.parts[n] != nil {
		var ids []restic.ID
		var sizes []int
		if ids, sizes, err = loadPart(ctx, w.repo, *w.parts[n], size); err == nil {
			return ids, sizes, nil
		}
	}
	var missing *repo.MissingError
	if !errors.As(err, &missing) && !errors.Is(err, repo.ErrDamaged) {
		return nil, nil, err
	}
	if w.allowMissing {
		return w.salvage(ctx, n, size)
	}
	w.lose(extent.Extent{Off: int64(n) * PartSize, Len: size})
	return nil, nil, w.lossError(err)
}

// salvage is a list of a part's chunks with zeros in place of what cannot be found. A chunk whose length the index does
// not tell any more leaves a gap: chunks before the first gap and behind the last one lie where they lay, for those
// between several gaps nobody knows.
func (w *diskWriter) salvage(ctx context.Context, n int, size int64) ([]restic.ID, []int, error) {
	var head, tail struct {
		ids   []restic.ID
		sizes []int
		sum   int64
	}
	var content []restic.ID
	if w.parts[n] != nil {
		tree, err := w.repo.LoadTree(ctx, *w.parts[n])
		if err == nil && len(tree.Nodes) == 1 && tree.Nodes[0].Type == restic.FileNode {
			content = tree.Nodes[0].Content
		}
		if ctx.Err() != nil {
			return nil, nil, context.Cause(ctx)
		}
	}
	length := func(id restic.ID) (int, bool, error) {
		return w.repo.BlobSize(ctx, restic.BlobHandle{Type: restic.DataBlob, ID: id})
	}
	for len(content) > 0 {
		n, ok, err := length(content[0])
		if err != nil {
			return nil, nil, err
		}
		if !ok || head.sum+int64(n) > size {
			break
		}
		head.ids, head.sizes, head.sum, content = append(head.ids, content[0]), append(head.sizes, n), head.sum+int64(n), content[1:]
	}
	for len(content) > 0 {
		n, ok, err := length(content[len(content)-1])
		if err != nil {
			return nil, nil, err
		}
		if !ok || head.sum+tail.sum+int64(n) > size {
			break
		}
		tail.ids, tail.sizes, tail.sum, content = append(tail.ids, content[len(content)-1]), append(tail.sizes, n), tail.sum+int64(n), content[:len(content)-1]
	}
	slices.Reverse(tail.ids)
	slices.Reverse(tail.sizes)
	gap := size - head.sum - tail.sum
	if gap > 0 {
		w.lose(extent.Extent{Off: int64(n)*PartSize + head.sum, Len: gap})
	}
	for gap > 0 {
		step := min(gap, zeroPiece)
		head.ids, head.sizes, gap = append(head.ids, restic.ZeroChunk()), append(head.sizes, int(step)), gap-step
	}
	return append(head.ids, tail.ids...), append(head.sizes, tail.sizes...), nil
}

// zeroPiece is how long the pieces are that stand for what was lost, in bytes.
const zeroPiece = 512 << 10

func (w *diskWriter) lose(e extent.Extent) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lost = append(w.lost, e)
}

func (w *diskWriter) lossError(cause error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return &plugin.Error{Code: plugin.CodeDamaged, Summary: "the repository lost a part of the disk", Err: cause, Detail: lostText(w.lost),
		Remedy: "restore with --allow-missing to get zeros there, or take another point"}
}

// lostText tells of lost extents: how many bytes, and where the first are.
func lostText(lost []extent.Extent) string {
	const show = 5
	all := extent.Of(lost...)
	text := fmt.Sprintf("%d bytes in %d extents:", all.Bytes(), len(all))
	for i, e := range all {
		if i == show {
			return text + " ..."
		}
		text += fmt.Sprintf(" %d+%d", e.Off, e.Len)
	}
	return text
}

func (w *diskWriter) batch(ctx context.Context, batch []piece, stitch *stitcher) error {
	var fetch []piece
	var ids []restic.ID
	for _, p := range batch {
		if p.id == restic.ZeroChunk() {
			if err := w.put(p, nil, stitch); err != nil {
				return err
			}
			continue
		}
		fetch, ids = append(fetch, p), append(ids, p.id)
	}
	if len(ids) == 0 {
		return context.Cause(ctx)
	}
	err := w.repo.Fetch(ctx, ids, func(i int, data []byte) error {
		if int64(len(data)) != fetch[i].len {
			return fmt.Errorf("chunk %s has %d bytes, the index says %d: %w", fetch[i].id.Short(), len(data), fetch[i].len, repo.ErrDamaged)
		}
		w.fetched.Add(int64(len(data)))
		return w.put(fetch[i], data, stitch)
	})
	gone, err := w.gone(err, fetch)
	if err != nil {
		return err
	}
	for _, p := range gone {
		if err := w.put(p, nil, stitch); err != nil {
			return err
		}
	}
	return nil
}

// gone sorts a fetch's error: the pieces that the repository lost, where going on without them is allowed, or an error.
func (w *diskWriter) gone(err error, fetched []piece) ([]piece, error) {
	var missing *repo.MissingError
	if !errors.As(err, &missing) {
		return nil, err
	}
	lost := map[restic.ID]bool{}
	for _, b := range missing.Blobs {
		lost[b.ID] = true
	}
	var out []piece
	for _, p := range fetched {
		if lost[p.id] {
			w.lose(extent.Extent{Off: p.off, Len: p.len})
			out = append(out, p)
		}
	}
	if !w.allowMissing {
		return nil, w.lossError(err)
	}
	return out, nil
}

// put writes what is wanted of a piece; data nil: zeros.
func (w *diskWriter) put(p piece, data []byte, stitch *stitcher) error {
	defer w.meter.done.Add(p.len)
	want := extent.Set{{Off: p.off, Len: p.len}}
	if w.only != nil {
		want = w.only.Clip(want[0])
	}
	for _, e := range want {
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

// stitcher writes pieces that begin and end at any byte to a target that takes whole sectors.
type stitcher struct {
	target  diskTarget
	fresh   bool
	written *atomic.Int64

	mu      sync.Mutex
	pending map[int64]*sector // by number
}

// sector is being put together from the pieces that share it.
type sector struct {
	data   [vddk.SectorSize]byte
	filled int
}

// zeroRun is the granularity in which zeros are looked for and left out on a fresh target.
const zeroRun = 64 << 10

var zeros [zeroRun]byte // never written

func isZero(p []byte) bool {
	for len(p) > len(zeros) {
		if !bytes.Equal(p[:len(zeros)], zeros[:]) {
			return false
		}
		p = p[len(zeros):]
	}
	return bytes.Equal(p, zeros[:len(p)])
}

// write takes the bytes at off. data is not kept.
func (s *stitcher) write(off int64, data []byte) error {
	if head := int(-off & (vddk.SectorSize - 1)); head > 0 {
		head = min(head, len(data))
		if err := s.edge(off, data[:head], head); err != nil {
			return err
		}
		off, data = off+int64(head), data[head:]
	}
	if tail := len(data) & (vddk.SectorSize - 1); tail > 0 {
		if err := s.edge(off+int64(len(data)-tail), data[len(data)-tail:], tail); err != nil {
			return err
		}
		data = data[:len(data)-tail]
	}
	if !s.fresh {
		return s.put(off, data)
	}
	for len(data) > 0 { // write runs between zeros, cut at multiples of zeroRun
		n := 0
		for n < len(data) {
			step := min(zeroRun-int((off+int64(n))&(zeroRun-1)), len(data)-n)
			if isZero(data[n : n+step]) {
				break
			}
			n += step
		}
		if err := s.put(off, data[:n]); err != nil {
			return err
		}
		off, data = off+int64(n), data[n:]
		if len(data) > 0 {
			skip := min(zeroRun-int(off&(zeroRun-1)), len(data))
			off, data = off+int64(skip), data[skip:]
		}
	}
	return nil
}

// zeros takes a run of zeros.
func (s *stitcher) zeros(e extent.Extent) error {
	for e.Len > 0 {
		n := min(e.Len, zeroRun-e.Off&(zeroRun-1))
		aligned := e.Off&(vddk.SectorSize-1) == 0 && n&(vddk.SectorSize-1) == 0
		if !s.fresh || !aligned {
			if err := s.write(e.Off, zeros[:n]); err != nil {
				return err
			}
		}
		e.Off, e.Len = e.Off+n, e.Len-n
	}
	return nil
}

// edge takes a piece of one sector.
func (s *stitcher) edge(off int64, data []byte, n int) error {
	number := off / vddk.SectorSize
	s.mu.Lock()
	x := s.pending[number]
	if x == nil {
		x = &sector{}
		s.pending[number] = x
	}
	copy(x.data[off%vddk.SectorSize:], data)
	x.filled += n
	whole := x.filled == vddk.SectorSize
	if whole {
		delete(s.pending, number)
	}
	s.mu.Unlock()
	if !whole || s.fresh && isZero(x.data[:]) {
		return nil
	}
	return s.put(number*vddk.SectorSize, x.data[:])
}

func (s *stitcher) put(off int64, data []byte) error {
	if len(data) == 0 {
		return nil
	}
	if _, err := s.target.WriteAt(data, off); err != nil {
		return err
	}
	s.written.Add(int64(len(data)))
	return nil
}

// complete makes sure that every sector got all its bytes.
func (s *stitcher) complete() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.pending); n > 0 {
		return fmt.Errorf("%d sectors were written in part: %w", n, repo.ErrDamaged)
	}
	return nil
}

// verify reads a disk back and compares every chunk with its name. It returns the differing extents. Lost chunks have
// nothing to be compared with.
func (w *diskWriter) verify(ctx context.Context, from io.ReaderAt) (extent.Set, error) {
	known := extent.Of(w.lost...)
	return w.differing(ctx, from, func(e extent.Extent) bool { return known.Overlaps(e) })
}

// differing reads a disk and returns the extents of the chunks that are not what the point says, but for those that
// skip knows.
func (w *diskWriter) differing(ctx context.Context, from io.ReaderAt, skip func(extent.Extent) bool) (extent.Set, error) {
	var mu sync.Mutex
	var found []extent.Extent
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(cpus() + 1)
	for n := range w.parts {
		g.Go(func() error {
			pieces, err := w.piecesOf(ctx, n)
			if err != nil {
				return err
			}
			for _, p := range pieces {
				if err := context.Cause(ctx); err != nil {
					return err
				}
				e := extent.Extent{Off: p.off, Len: p.len}
				w.meter.done.Add(p.len)
				if skip(e) {
					continue
				}
				same, err := sameChunk(from, p)
				if err != nil {
					return fmt.Errorf("read back at %d: %w", p.off, err)
				}
				w.meter.read.Add(p.len)
				if !same {
					mu.Lock()
					found = append(found, e)
					mu.Unlock()
				}
			}
			return nil
		})
	}
	err := g.Wait()
	return extent.Of(found...), err
}
