package repo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"sync/atomic"
	"time"

	"github.com/vmkeep/vmkeep/repo/restic"
)

// Writer stores blobs during a [Repository.Commit]. Its methods may be called concurrently.
type Writer struct {
	r     *Repository
	s     *session
	ctx   context.Context
	stats counters
}

// Stats is what a Writer has done so far. Known blobs were in the repository already, or came twice.
type Stats struct {
	DataNew, DataKnown int64 // blobs
	TreeNew, TreeKnown int64
	// Added is the plaintext of new blobs, Stored what is written for them (sealed and mostly compressed), Known the plaintext
	// of known blobs; all in bytes. Blobs count as stored once they are sealed.
	Added, Stored, Known int64
}

type counters struct {
	dataNew, dataKnown, treeNew, treeKnown atomic.Int64
	added, storedBytes, known              atomic.Int64
}

func (c *counters) stored(t restic.BlobType, plain, sealed int) {
	if t == restic.TreeBlob {
		c.treeNew.Add(1)
	} else {
		c.dataNew.Add(1)
	}
	c.added.Add(int64(plain))
	c.storedBytes.Add(int64(sealed))
}

func (c *counters) found(t restic.BlobType, plain int) {
	if t == restic.TreeBlob {
		c.treeKnown.Add(1)
	} else {
		c.dataKnown.Add(1)
	}
	c.known.Add(int64(plain))
}

// Commit runs fn, which stores content and trees through the Writer, and makes the snapshot that fn returns exist: it
// completes the packs, writes the index, and writes the snapshot's document last. Its ID is returned. If fn fails, panics or
// ctx ends, there is no snapshot; what was stored until then is found again by a rerun.
//
// Commit holds a shared lock while it runs; fn's context ends when the lock is lost or storing fails. A nil snapshot without an error
// stores the blobs and makes no snapshot. Commits may run concurrently and share their work.
func (r *Repository) Commit(ctx context.Context, fn func(ctx context.Context, w *Writer) (*restic.Snapshot, error)) (id restic.ID, err error) {
	err = r.WithLock(ctx, Shared, func(ctx context.Context) error {
		id, err = r.commit(ctx, fn)
		return err
	})
	return id, err
}

func (r *Repository) commit(ctx context.Context, fn func(ctx context.Context, w *Writer) (*restic.Snapshot, error)) (restic.ID, error) {
	s, err := r.join(ctx)
	if err != nil {
		return restic.ID{}, err
	}
	defer r.leave(s)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.ctx, func() { cancel(context.Cause(s.ctx)) })()
	stay := context.AfterFunc(ctx, func() {
		if s.alive.Add(-1) == 0 { // nobody is left who waits for the session's work
			s.fail(context.Cause(ctx))
		}
	})
	defer func() {
		if stay() {
			s.alive.Add(-1)
		}
	}()

	w := &Writer{r: r, s: s, ctx: ctx}
	snapshot, err := fn(ctx, w)
	if err == nil {
		// fn may not have noticed.
		err = context.Cause(ctx)
	}
	if err == nil {
		err = s.flush(ctx)
	}
	if err != nil {
		s.salvage(ctx)
		return restic.ID{}, err
	}
	if snapshot == nil {
		return restic.ID{}, nil
	}
	return r.saveSnapshot(ctx, s, snapshot)
}

func (r *Repository) saveSnapshot(ctx context.Context, s *session, snapshot *restic.Snapshot) (restic.ID, error) {
	if snapshot.Tree == nil || !s.index.Has(restic.BlobHandle{ID: *snapshot.Tree, Type: restic.TreeBlob}) {
		return restic.ID{}, errors.New("the snapshot's tree was not saved")
	}
	if snapshot.Time.IsZero() {
		snapshot.Time = time.Now()
	}
	doc, err := restic.EncodeSnapshot(snapshot)
	if err != nil {
		return restic.ID{}, err
	}
	return r.saveDocument(ctx, restic.SnapshotFile, doc)
}

// salvage names in an index what a failed commit has stored, so that a rerun need not store it again.
func (s *session) salvage(ctx context.Context) {
	if unprotected(context.Cause(ctx)) {
		return // others may be deleting by now
	}
	late, cancel := lastly(ctx)
	defer cancel()
	// That this fails too, if the store is the reason, is no news.
	if s.ctx.Err() == nil {
		_ = s.flush(late)
		return
	}
	_ = s.indexer.flush(late, s.r)
}

// Stats tells what the Writer has done until now.
func (w *Writer) Stats() Stats {
	c := &w.stats
	return Stats{
		DataNew: c.dataNew.Load(), DataKnown: c.dataKnown.Load(), TreeNew: c.treeNew.Load(), TreeKnown: c.treeKnown.Load(),
		Added: c.added.Load(), Stored: c.storedBytes.Load(), Known: c.known.Load(),
	}
}

// HasBlob reports whether the repository holds the blob already, or is about to.
func (w *Writer) HasBlob(h restic.BlobHandle) bool { return w.s.index.Has(h) }

// put stores a blob unless it is known. data is valid during the call only, unless take gives it away.
func (w *Writer) put(h restic.BlobHandle, data []byte, take Take) error {
	if err := context.Cause(w.ctx); err != nil {
		return err
	}
	j := w.s.admit(h, len(data), &w.stats)
	if j == nil {
		w.stats.found(h.Type, len(data))
		return nil
	}
	buf, err := w.s.buffer(len(data))
	if err != nil {
		return err
	}
	if take != nil {
		j.data = take(buf[:chunkBuffer])
	} else {
		copy(buf, data)
		j.data = buf
	}
	j.pooled = true
	return w.s.send(j)
}

// SaveBlob stores data as one data blob and returns its ID.
func (w *Writer) SaveBlob(data []byte) (restic.ID, error) {
	if uint64(len(data)) > maxBlob(restic.DataBlob) {
		return restic.ID{}, fmt.Errorf("a blob of %d bytes is too large", len(data))
	}
	return w.saveBlob(data, nil)
}

func (w *Writer) saveBlob(data []byte, take Take) (restic.ID, error) {
	id := w.r.hashChunk(data)
	return id, w.put(restic.BlobHandle{ID: id, Type: restic.DataBlob}, data, take)
}

// SaveTree stores a directory and returns its ID. The nodes must be in strictly ascending order of their names.
func (w *Writer) SaveTree(t *restic.Tree) (restic.ID, error) {
	data, err := restic.AppendTree(nil, t)
	if err != nil {
		return restic.ID{}, fmt.Errorf("save tree: %w", err)
	}
	if uint64(len(data)) > maxBlob(restic.TreeBlob) {
		return restic.ID{}, fmt.Errorf("save tree: %d bytes are more than a repository can bear; split the directory", len(data))
	}
	h := restic.BlobHandle{ID: restic.Hash(data), Type: restic.TreeBlob}
	if err := context.Cause(w.ctx); err != nil {
		return restic.ID{}, err
	}
	j := w.s.admit(h, len(data), &w.stats)
	if j == nil {
		w.stats.found(h.Type, len(data))
		return h.ID, nil
	}
	j.data = data
	return h.ID, w.s.send(j)
}

// SaveFile stores a small file and returns its content list and size, for a node.
func (w *Writer) SaveFile(data []byte) ([]restic.ID, error) {
	c := w.Content()
	for len(data) > 0 {
		n := min(len(data), chunkBuffer)
		if err := c.Append(data[:n]); err != nil {
			return nil, err
		}
		data = data[n:]
	}
	return c.IDs()
}

// hashChunk names a chunk. The most common one need not be hashed.
func (r *Repository) hashChunk(data []byte) restic.ID {
	if len(data) == restic.ZeroChunkSize && bytes.Equal(data, r.zeros) {
		return restic.ZeroChunk()
	}
	return restic.Hash(data)
}

// Content is a file's content while it is stored: chunks in order. It belongs to one goroutine; others may have others.
type Content struct {
	w    *Writer
	ids  []restic.ID
	size int64
}

// Content begins a file.
func (w *Writer) Content() *Content { return &Content{w: w, ids: []restic.ID{}} }

// Append adds a chunk, of any length up to 8 MiB as a rule. data is valid during the call only. It blocks while too
// much waits to be stored.
func (c *Content) Append(data []byte) error {
	id, err := c.w.SaveBlob(data)
	return c.appended(id, len(data), err)
}

// Take gives the memory of a chunk away, with the chunk in it, in exchange for other memory of 8 MiB.
type Take func(with []byte) (chunk []byte)

// AppendTaken is Append without a copy: where a chunk of at most 8 MiB is to be stored, its memory is taken during the call.
func (c *Content) AppendTaken(data []byte, take Take) error {
	id, err := c.w.saveBlob(data, take)
	return c.appended(id, len(data), err)
}

func (c *Content) appended(id restic.ID, size int, err error) error {
	if err != nil {
		return err
	}
	c.ids = append(c.ids, id)
	c.size += int64(size)
	return nil
}

// Keep adds a chunk that the repository holds, of size bytes. It fails with [ErrNotFound] if the repository does not hold it.
func (c *Content) Keep(id restic.ID, size int) error {
	h := restic.BlobHandle{ID: id, Type: restic.DataBlob}
	have, ok := c.w.s.index.Size(h)
	if !ok {
		return fmt.Errorf("keep %s: %w", h, ErrNotFound)
	}
	if have != size {
		return fmt.Errorf("keep %s: it has %d bytes, not %d: %w", h, have, size, ErrDamaged)
	}
	c.w.stats.found(restic.DataBlob, size)
	c.ids = append(c.ids, id)
	c.size += int64(size)
	return nil
}

// Zeros adds n zero bytes, as chunks of 512 KiB like restic's chunker cuts them. They are neither read nor hashed.
func (c *Content) Zeros(n int64) error {
	whole := n / restic.ZeroChunkSize
	if whole > 0 {
		id := restic.ZeroChunk()
		h := restic.BlobHandle{ID: id, Type: restic.DataBlob}
		if err := c.w.put(h, c.w.r.zeros, nil); err != nil {
			return err
		}
		if whole > math.MaxInt32 {
			return fmt.Errorf("%d zero bytes are too many for a file", n)
		}
		for range whole {
			c.ids = append(c.ids, id)
		}
		c.size += whole * restic.ZeroChunkSize
	}
	if rest := n - whole*restic.ZeroChunkSize; rest > 0 {
		return c.Append(c.w.r.zeros[:rest])
	}
	return nil
}

// Size is the length of the content so far, in bytes.
func (c *Content) Size() int64 { return c.size }

// IDs is the content list. The blobs may still be on their way: whether they arrive, the commit will know.
func (c *Content) IDs() ([]restic.ID, error) {
	return c.ids, context.Cause(c.w.ctx)
}
