package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/repo"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// batchParts is how many parts are fetched together: enough that a pack is read once for all its chunks and a chunk
// once for all its places, few enough that the list of chunks, some 200 bytes for each, stays small. In bytes of the
// disk: 64 GiB; of memory: some 15 MB.
const batchParts = 64

// chunkMap says which chunks a disk of a point is made of, and where on the disk they lie. Restores, comparisons and
// streams all walk it. Its memory does not grow with the disk: lists are made for some parts at a time, and runs of zeros
// are one piece.
type chunkMap struct {
	repo  *repo.Repository
	size  int64
	parts []*restic.ID
	// only are the extents that are wanted, multiples of a sector; nil: the whole disk.
	only extent.Set
	// allowMissing goes on without what the repository lost, instead of failing.
	allowMissing bool
	meter        *meter

	fetched atomic.Int64 // bytes of chunks that came out of the repository
	// empty is the tree of a part without data, once one was met: nearly all parts of a large sparse disk share it.
	empty atomic.Pointer[restic.ID]
	mu    sync.Mutex
	lost  []extent.Extent
}

// whole is the same map without a selection, to compare what was written.
func (c *chunkMap) whole(m *meter) *chunkMap {
	return &chunkMap{repo: c.repo, size: c.size, parts: c.parts, allowMissing: c.allowMissing, meter: m, lost: c.lost}
}

// piece is a chunk of the point and where it lies on the disk, or a run of zeros of any length.
type piece struct {
	id   restic.ID // of the zero chunk for zeros
	off  int64
	len  int64
	lost bool // the zeros stand for something that nobody knows any more
}

func (p piece) zero() bool { return p.id == restic.ZeroChunk() }

func (p piece) extent() extent.Extent { return extent.Extent{Off: p.off, Len: p.len} }

// listAhead is how many parts' lists of chunks are loaded at once: each is a request to the repository's storage.
const listAhead = 8

// pieces lists the chunks of parts [first, last) that hold wanted bytes.
func (c *chunkMap) pieces(ctx context.Context, first, last int) ([]piece, error) {
	lists := make([][]piece, last-first)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(listAhead)
	for n := first; n < last; n++ {
		g.Go(func() (err error) {
			lists[n-first], err = c.piecesOf(ctx, n)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return slices.Concat(lists...), nil
}

func (c *chunkMap) piecesOf(ctx context.Context, n int) ([]piece, error) {
	within := extent.Extent{Off: int64(n) * PartSize, Len: partLen(c.size, n)}
	if c.only != nil && !c.only.Overlaps(within) {
		c.meter.skip(within.Len)
		return nil, nil
	}
	if empty := c.empty.Load(); empty != nil && c.parts[n] != nil && *c.parts[n] == *empty && within.Len == PartSize {
		return []piece{{id: restic.ZeroChunk(), off: within.Off, len: PartSize}}, nil
	}
	all, err := c.listPart(ctx, n, within)
	if err != nil {
		return nil, fmt.Errorf("part %d: %w", n, err)
	}
	var out []piece
	for _, p := range all {
		if last := len(out) - 1; last >= 0 && p.zero() && out[last].zero() && out[last].off+out[last].len == p.off && out[last].lost == p.lost {
			out[last].len += p.len
			continue
		}
		if c.only != nil && !c.only.Overlaps(extent.Extent{Off: p.off, Len: p.len}) {
			c.meter.skip(p.len)
			continue
		}
		out = append(out, p)
	}
	if len(out) == 1 && out[0].zero() && !out[0].lost && out[0].len == PartSize && c.parts[n] != nil {
		c.empty.Store(c.parts[n])
	}
	return out, nil
}

// dataBytes is how many bytes of the disk are in chunks that are not zeros.
func (c *chunkMap) dataBytes(ctx context.Context) (sum int64, err error) {
	for n := range c.parts {
		pieces, err := c.piecesOf(ctx, n)
		if err != nil {
			return 0, err
		}
		for _, p := range pieces {
			if !p.zero() {
				sum += p.len
			}
		}
	}
	return sum, nil
}

// listPart lists the chunks of part n, which lies within. What the repository lost of it is lost where that was allowed.
func (c *chunkMap) listPart(ctx context.Context, n int, within extent.Extent) ([]piece, error) {
	err := fmt.Errorf("it is missing from the point: %w", repo.ErrDamaged)
	if c.parts[n] != nil {
		var ids []restic.ID
		var sizes []int
		if ids, sizes, err = loadPart(ctx, c.repo, *c.parts[n], within.Len); err == nil {
			return piecesAt(within.Off, ids, sizes), nil
		}
	}
	var missing *repo.MissingError
	if !errors.As(err, &missing) && !errors.Is(err, repo.ErrDamaged) {
		return nil, err
	}
	if c.allowMissing {
		return c.salvage(ctx, n, within)
	}
	c.lose(within)
	return nil, c.lossError(err)
}

// piecesAt are chunks that lie one behind the other from off on.
func piecesAt(off int64, ids []restic.ID, sizes []int) []piece {
	out := make([]piece, len(ids))
	for i, id := range ids {
		out[i] = piece{id: id, off: off, len: int64(sizes[i])}
		off += out[i].len
	}
	return out
}

// salvage is what can be known of a part's chunks. A chunk whose length the index does not tell any more leaves a gap:
// chunks before the first gap and behind the last one lie where they lay, for those between several gaps nobody knows.
func (c *chunkMap) salvage(ctx context.Context, n int, within extent.Extent) ([]piece, error) {
	var head, tail struct {
		ids   []restic.ID
		sizes []int
		sum   int64
	}
	var content []restic.ID
	if c.parts[n] != nil {
		tree, err := c.repo.LoadTree(ctx, *c.parts[n])
		if err == nil && len(tree.Nodes) == 1 && tree.Nodes[0].Type == restic.FileNode {
			content = tree.Nodes[0].Content
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
	length := func(id restic.ID) (int, bool, error) {
		return c.repo.BlobSize(ctx, restic.BlobHandle{Type: restic.DataBlob, ID: id})
	}
	for len(content) > 0 {
		n, ok, err := length(content[0])
		if err != nil {
			return nil, err
		}
		if !ok || head.sum+int64(n) > within.Len {
			break
		}
		head.ids, head.sizes, head.sum, content = append(head.ids, content[0]), append(head.sizes, n), head.sum+int64(n), content[1:]
	}
	for len(content) > 0 {
		n, ok, err := length(content[len(content)-1])
		if err != nil {
			return nil, err
		}
		if !ok || head.sum+tail.sum+int64(n) > within.Len {
			break
		}
		tail.ids, tail.sizes, tail.sum, content = append(tail.ids, content[len(content)-1]), append(tail.sizes, n), tail.sum+int64(n), content[:len(content)-1]
	}
	slices.Reverse(tail.ids)
	slices.Reverse(tail.sizes)
	out := piecesAt(within.Off, head.ids, head.sizes)
	if gap := (extent.Extent{Off: within.Off + head.sum, Len: within.Len - head.sum - tail.sum}); gap.Len > 0 {
		p := piece{id: restic.ZeroChunk(), off: gap.Off, len: gap.Len, lost: true}
		for _, e := range c.wanted(p) {
			c.lose(e)
		}
		out = append(out, p)
	}
	return append(out, piecesAt(within.End()-tail.sum, tail.ids, tail.sizes)...), nil
}

func (c *chunkMap) lose(e extent.Extent) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lost = append(c.lost, e)
}

func (c *chunkMap) lossError(cause error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return &plugin.Error{Code: plugin.CodeDamaged, Summary: "the repository lost a part of the disk", Err: cause, Detail: lostText(c.lost),
		Remedy: "restore with --allow-missing, which leaves zeros there, or what an existing disk holds; or take another point"}
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

// wanted is what is wanted of a piece.
func (c *chunkMap) wanted(p piece) extent.Set {
	if c.only == nil {
		return extent.Set{p.extent()}
	}
	return c.only.Clip(p.extent())
}

// missing sorts a fetch's error: the pieces that the repository lost, or another error.
func missing(err error, fetched []piece) ([]piece, error) {
	var some *repo.MissingError
	if !errors.As(err, &some) {
		return nil, err
	}
	lost := map[restic.ID]bool{}
	for _, b := range some.Blobs {
		lost[b.ID] = true
	}
	return slices.DeleteFunc(slices.Clone(fetched), func(p piece) bool { return !lost[p.id] }), nil
}

// giveUp notes pieces as lost. It fails where going on without them is not allowed.
func (c *chunkMap) giveUp(lost []piece, cause error) error {
	for _, p := range lost {
		for _, e := range c.wanted(p) {
			c.lose(e)
		}
	}
	if len(lost) == 0 || c.allowMissing {
		return nil
	}
	return c.lossError(cause)
}
