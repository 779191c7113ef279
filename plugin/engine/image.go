package engine

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/vmkeep/vmkeep/chunker"
	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/repo"
	"github.com/vmkeep/vmkeep/repo/restic"
	"github.com/vmkeep/vmkeep/vddk"
)

// imaging reads one disk of a snapshot into a commit, part by part.
//
// Offsets: the fields hold disk offsets; a part's plan holds part offsets (see layout.go).
type imaging struct {
	repo   *repo.Repository
	writer *repo.Writer
	cutter *chunker.Cutter
	disk   vddk.Disk
	size   int64
	dirty  extent.Set   // what must be read; all of the disk for a full read
	holes  extent.Set   // known to be zeros
	old    []*restic.ID // tree of each part in the previous point; empty for a full read
	meter  *meter
	memory *readable

	read   atomic.Int64 // bytes taken from the disk
	reused atomic.Int64 // bytes kept or taken from the repository
	healed atomic.Int64 // parts read in full because the repository lost them
	zero   zeroPart
}

// run reads all parts, each in a goroutine that takes one of slots while it reads, and returns when the disk is not
// needed any more. The trees are complete when the group finish is: chunks are sealed in the background.
func (m *imaging) run(ctx context.Context, slots chan struct{}, finish *errgroup.Group) ([]restic.ID, error) {
	trees := make([]restic.ID, partCount(m.size))
	reading, ctx := errgroup.WithContext(ctx)
	for n := range trees {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done(): // whatever the parts that are being read make of it, this one is not
			return nil, cmp.Or(reading.Wait(), context.Cause(ctx))
		}
		reading.Go(func() error {
			defer func() { <-slots }()
			sealed, err := m.part(ctx, n)
			if err != nil {
				return fmt.Errorf("part %d: %w", n, err)
			}
			finish.Go(func() (err error) {
				trees[n], err = sealed()
				return err
			})
			return nil
		})
	}
	return trees, reading.Wait()
}

// part reads what is needed of part n. The returned function waits until its chunks are sealed and gives the
// part's tree.
func (m *imaging) part(ctx context.Context, n int) (func() (restic.ID, error), error) {
	start, size := int64(n)*PartSize, partLen(m.size, n)
	within := extent.Extent{Off: start, Len: size}
	dirty := m.dirty.Clip(within).Shift(-start)
	holes := m.holes.Clip(within).Shift(-start)

	var content []restic.ID
	var sizes []int
	if n < len(m.old) && m.old[n] != nil {
		tree := *m.old[n]
		ids, lens, err := m.memory.part(ctx, tree, size)
		switch {
		case err == nil && len(dirty) == 0:
			m.reused.Add(size)
			m.meter.skip(size)
			return func() (restic.ID, error) { return tree, nil }, nil
		case err == nil:
			content, sizes = ids, lens
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		default: // the repository lost it: heal by reading
			m.healed.Add(1)
		}
	}
	if content == nil {
		dirty = extent.Of(extent.Extent{Off: 0, Len: size})
		if size == PartSize && holes.Covers(dirty[0]) {
			m.meter.skip(size)
			return func() (restic.ID, error) { return m.zero.tree(m.writer) }, nil
		}
	}

	plan := chunker.Plan{Size: size, Old: sizes, Dirty: dirty, Holes: holes}
	var source io.ReaderAt = &section{disk: m.disk, off: start, read: &m.read, meter: m.meter}
	if content != nil {
		base, err := m.repo.Reader(ctx, content)
		if err != nil {
			return nil, err
		}
		source = &chunker.Overlay{Base: base, Top: source, Extents: plan.Changed()}
	}
	c := m.writer.Content()
	for chunk, err := range plan.Chunks(source, m.cutter) {
		count := m.meter.skip
		switch {
		case err != nil:
			return nil, err
		case chunk.Zero:
			err = c.Zeros(int64(chunk.Len))
		case chunk.Data == nil:
			m.reused.Add(int64(chunk.Len))
			err = c.Keep(content[chunk.Old], chunk.Len)
		default:
			err = c.AppendTaken(chunk.Data, chunk.Take)
			count = func(n int64) { m.meter.done.Add(n) } // moved when it was read
		}
		if err != nil {
			return nil, err
		}
		count(int64(chunk.Len))
	}
	return func() (restic.ID, error) {
		ids, err := c.IDs()
		if err != nil {
			return restic.ID{}, err
		}
		return savePart(m.writer, ids, size)
	}, nil
}

// savePart stores the tree of one part: a directory with one file.
func savePart(w *repo.Writer, content []restic.ID, size int64) (restic.ID, error) {
	return w.SaveTree(&restic.Tree{Nodes: []restic.Node{fileNode(partFile, content, size, epoch())}})
}

// zeroPart makes the tree of a part without data once.
type zeroPart struct {
	mu   sync.Mutex
	id   restic.ID
	made bool
}

func (z *zeroPart) tree(w *repo.Writer) (restic.ID, error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.made {
		return z.id, nil
	}
	c := w.Content()
	if err := c.Zeros(PartSize); err != nil {
		return restic.ID{}, err
	}
	ids, err := c.IDs()
	if err != nil {
		return restic.ID{}, err
	}
	z.id, err = savePart(w, ids, PartSize)
	z.made = err == nil
	return z.id, err
}

// section is the part of a disk that starts at off, counting what is read.
type section struct {
	disk  vddk.Disk
	off   int64
	read  *atomic.Int64
	meter *meter
}

func (s *section) ReadAt(p []byte, off int64) (int, error) {
	n, err := s.disk.ReadAt(p, s.off+off)
	s.read.Add(int64(n))
	s.meter.read.Add(int64(n))
	s.meter.moved.Add(int64(n))
	return n, err
}

var _ chunker.Lender = (*section)(nil)

// Lend lends the memory of the disk, where that has some.
func (s *section) Lend(n int) (p []byte, giveBack func()) {
	if l, ok := s.disk.(vddk.Lender); ok {
		return l.Lend(n)
	}
	return nil, nil
}

// readable answers whether the repository still has everything of a part's tree, remembering trees already seen:
// all-zero parts share one.
type readable struct {
	repo *repo.Repository
	mu   sync.Mutex
	seen map[restic.ID]partContent
}

type partContent struct {
	ids   []restic.ID
	sizes []int
	err   error
}

func newReadable(r *repo.Repository) *readable {
	return &readable{repo: r, seen: map[restic.ID]partContent{}}
}

// part returns the chunks of the part whose tree is given, which must hold size bytes.
func (k *readable) part(ctx context.Context, tree restic.ID, size int64) ([]restic.ID, []int, error) {
	k.mu.Lock()
	c, ok := k.seen[tree]
	k.mu.Unlock()
	if ok {
		return c.ids, c.sizes, c.err
	}
	c.ids, c.sizes, c.err = loadPart(ctx, k.repo, tree, size)
	if ctx.Err() == nil {
		k.remember(tree, c)
	}
	return c.ids, c.sizes, c.err
}

func (k *readable) remember(tree restic.ID, c partContent) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.seen) < 64 { // enough for the trees that repeat; bounded for those that do not
		k.seen[tree] = c
	}
}

// loadPart reads the content list of a part and makes sure that every chunk is known to the index and that the
// lengths add up.
func loadPart(ctx context.Context, r *repo.Repository, id restic.ID, size int64) ([]restic.ID, []int, error) {
	tree, err := r.LoadTree(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	if len(tree.Nodes) != 1 || tree.Nodes[0].Name != partFile || tree.Nodes[0].Type != restic.FileNode {
		return nil, nil, fmt.Errorf("tree %s is not that of a part", id.Short())
	}
	ids := tree.Nodes[0].Content
	sizes := make([]int, len(ids))
	var sum int64
	for i, b := range ids {
		n, ok, err := r.BlobSize(ctx, restic.BlobHandle{Type: restic.DataBlob, ID: b})
		if err != nil {
			return nil, nil, err
		}
		if !ok {
			return nil, nil, fmt.Errorf("chunk %s of tree %s is missing from the index: %w", b.Short(), id.Short(), repo.ErrDamaged)
		}
		sizes[i] = n
		sum += int64(n)
	}
	if sum != size {
		return nil, nil, fmt.Errorf("tree %s holds %d bytes, want %d", id.Short(), sum, size)
	}
	return ids, sizes, nil
}
