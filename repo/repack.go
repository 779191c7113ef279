package repo

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/internal/index"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// execute does what was planned.
func (p *pruner) execute(ctx context.Context) error {
	drop := make(map[restic.ID]bool)
	for i := range p.packs {
		if u := &p.packs[i]; u.verdict != keepPack {
			drop[u.id] = true
		}
	}
	if p.report.RepackPacks > 0 {
		p.stage(PruneRepack, p.report.RepackBytes)
		if err := p.repack(ctx); err != nil {
			return fmt.Errorf("repack: %w; nothing was deleted", err)
		}
	}
	refused := false
	if len(drop) > 0 {
		p.stage(PruneIndex, 0)
		old, err := p.r.rewriteIndex(ctx, drop, p.fixed)
		if err != nil {
			return fmt.Errorf("write the new index: %w; nothing was deleted", err)
		}
		// As long as an index file names a pack the pack must exist.
		kept, err := p.remove(ctx, restic.IndexFile, old)
		if err != nil {
			return err
		}
		refused = len(kept) > 0
	}
	if refused {
		p.report.FreedBytes = -p.report.RepackBytes
	} else {
		doomed := p.orphan
		for i := range p.packs {
			if u := &p.packs[i]; u.verdict != keepPack && u.size >= 0 {
				doomed = append(doomed, u.id)
			}
		}
		kept, err := p.remove(ctx, restic.PackFile, doomed)
		if err != nil {
			return err
		}
		for _, id := range kept {
			p.report.FreedBytes -= p.sizes[id]
		}
	}
	p.r.forgetIndex()
	return nil
}

// remove deletes files, several at a time. What the store refuses to delete is noted, not an error.
func (p *pruner) remove(ctx context.Context, t restic.FileType, ids []restic.ID) (refused []restic.ID, err error) {
	p.stage(PruneDelete, int64(len(ids)))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(1, p.r.be.Connections()))
	for _, id := range ids {
		g.Go(func() error {
			h := backend.Handle{Type: t, Name: id.String()}
			err := p.r.be.Remove(ctx, h)
			p.r.cache.drop(h)
			p.step(1)
			switch {
			case errors.Is(err, backend.ErrNotExist):
				return nil
			case errors.Is(err, backend.ErrReadOnly):
				p.mu.Lock()
				defer p.mu.Unlock()
				refused = append(refused, id)
				p.report.Refused = append(p.report.Refused, h.String())
				return nil
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return refused, fmt.Errorf("delete %s: %w; run prune again", t, err)
	}
	return refused, nil
}

// repack copies the used blobs of packs into new ones and names those in an index. Each blob is verified on its way, but kept as
// it is sealed: the key is the same and every seal has its own IV.
func (p *pruner) repack(ctx context.Context) (err error) {
	s := p.r.start(ctx, index.New())
	defer s.stop()
	reads := make(chan read)
	g, gctx := errgroup.WithContext(ctx)
	slots := make(chan struct{}, max(1, p.r.be.Connections()))
	for range max(cap(slots), runtime.GOMAXPROCS(0)) {
		c := &copier{p: p, s: s, slots: slots, decoder: decoder{r: p.r}}
		g.Go(func() error {
			for rd := range reads {
				if err := c.copy(gctx, rd); err != nil {
					return err
				}
			}
			return nil
		})
	}
	g.Go(func() error {
		defer close(reads)
		i := -1
		for id, entries := range p.index.Packs() {
			if i++; p.packs[i].verdict != repackPack {
				continue
			}
			entries = slices.DeleteFunc(slices.Clone(entries), func(e index.Entry) bool { return !p.keep.Has(e.Ref) })
			for _, rd := range coalesce(id, entries) {
				select {
				case reads <- rd:
				case <-gctx.Done():
					return context.Cause(gctx)
				case <-s.ctx.Done():
					return context.Cause(s.ctx)
				}
			}
		}
		return nil
	})
	if err = g.Wait(); err == nil {
		err = s.flush(ctx)
	}
	if err != nil {
		s.salvage(ctx)
	}
	return err
}

// copier moves blobs from pack to pack, with buffers for one read.
type copier struct {
	p       *pruner
	s       *session
	slots   chan struct{}
	read    []byte
	decoder decoder
	sealed  [2][]byte // a blob of each lane, since decoding uses it up
}

func (c *copier) copy(ctx context.Context, rd read) error {
	select {
	case c.slots <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	buf := sized(&c.read, rd.limit-rd.offset)
	damaged := c.p.r.readPack(ctx, rd.pack, rd.offset, buf)
	<-c.slots
	if damaged != nil && !damage(damaged) {
		return damaged
	}
	for _, e := range rd.entries {
		lo := int64(e.Offset) - rd.offset
		unit := buf[lo : lo+int64(e.Length)]
		sealed := append(c.sealed[c.decoder.lane()][:0], unit...)
		c.sealed[c.decoder.lane()] = sealed
		done := func(plain []byte, bad error) error {
			if bad != nil {
				return c.alone(ctx, e.BlobHandle)
			}
			defer c.p.step(int64(e.Length))
			if c.worthCompressing(e.Blob) {
				return c.s.submit(&job{handle: e.BlobHandle, data: slices.Clone(plain), stats: &counters{}})
			}
			return c.s.copySealed(e.Blob, sealed)
		}
		var err error
		if damaged != nil {
			err = done(nil, damaged)
		} else {
			err = c.decoder.decode(e.Blob, unit, done)
		}
		if err != nil {
			return err
		}
	}
	return c.decoder.flush()
}

// alone copies a blob by another try or from another copy; if there is none prune gives up before it deletes anything.
func (c *copier) alone(ctx context.Context, h restic.BlobHandle) error {
	plain, err := c.p.r.LoadBlob(ctx, h)
	if err != nil {
		return err
	}
	return c.s.submit(&job{handle: h, data: plain, stats: &counters{}})
}

// worthCompressing reports whether a blob should be sealed anew to be compressed: trees always, data if asked for.
func (c *copier) worthCompressing(b restic.Blob) bool {
	return c.p.r.config.Version >= 2 && !b.Compressed() && b.Length > restic.Sealed &&
		(b.Type == restic.TreeBlob || c.p.o.RepackUncompressed)
}

// copySealed puts a blob into a pack as it is.
func (s *session) copySealed(b restic.Blob, sealed []byte) error {
	p, region, err := s.reserve(b)
	if err != nil {
		return err
	}
	copy(region, sealed)
	s.sealed(p)
	return nil
}

// rewriteIndex writes index files for all that is in the old ones but the packs to drop, and returns the old files that are to be
// deleted then. Index files that lose nothing stay, unless they are small; fixed ones stay and lose nothing.
func (r *Repository) rewriteIndex(ctx context.Context, drop, fixed map[restic.ID]bool) (old []restic.ID, err error) {
	r.index.mu.Lock()
	var names []restic.ID
	for id := range r.index.files {
		if !fixed[id] {
			names = append(names, id)
		}
	}
	r.index.mu.Unlock()
	slices.SortFunc(names, func(a, b restic.ID) int { return slices.Compare(a[:], b[:]) })
	var out indexWriter
	for _, id := range names {
		h := backend.Handle{Type: restic.IndexFile, Name: id.String()}
		sealed, err := r.loadSealed(ctx, h)
		if err != nil {
			return nil, err
		}
		var packs []restic.IndexPack
		blobs, loses := 0, false
		if err := r.decodeIndex(ctx, h, sealed, func(pack restic.ID, bs []restic.Blob) error {
			if drop[pack] {
				loses = true
				return nil
			}
			packs = append(packs, restic.IndexPack{ID: pack, Blobs: slices.Clone(bs)})
			blobs += len(bs)
			return nil
		}); err != nil {
			return nil, err
		}
		if !loses && blobs >= indexBlobs/8 {
			continue
		}
		for _, pack := range packs {
			if err := out.add(ctx, r, pack); err != nil {
				return nil, err
			}
		}
		old = append(old, id)
	}
	if err := out.flush(ctx, r); err != nil {
		return nil, err
	}
	// What was written may have the same name as what was there only if nothing changed, which a random IV rules out.
	return old, nil
}

// indexWriter writes index files of the usual size.
type indexWriter struct {
	packs []restic.IndexPack
	seen  map[restic.ID]bool
	blobs int
}

// add adds a pack, once.
func (w *indexWriter) add(ctx context.Context, r *Repository, p restic.IndexPack) error {
	if w.seen == nil {
		w.seen = make(map[restic.ID]bool)
	}
	if w.seen[p.ID] || len(p.Blobs) == 0 {
		return nil
	}
	w.seen[p.ID] = true
	w.packs = append(w.packs, p)
	if w.blobs += len(p.Blobs); w.blobs >= indexBlobs {
		return w.flush(ctx, r)
	}
	return nil
}

func (w *indexWriter) flush(ctx context.Context, r *Repository) error {
	if len(w.packs) == 0 {
		return nil
	}
	_, err := r.saveDocument(ctx, restic.IndexFile, restic.AppendIndex(nil, w.packs))
	w.packs, w.blobs = nil, 0
	return err
}

// forgetIndex makes the next use load the index anew.
func (r *Repository) forgetIndex() {
	r.index.mu.Lock()
	defer r.index.mu.Unlock()
	r.index.index, r.index.files, r.index.fresh = nil, nil, false
}
