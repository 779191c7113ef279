package repo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/internal/index"
	"github.com/vmkeep/vmkeep/repo/restic"
)

const (
	// maxGap is how many bytes nobody asked for are read rather than beginning another read.
	maxGap = 256 << 10
	// maxRead bounds one read, and with the number of workers the memory of a fetch. It holds a pack of the usual size.
	maxRead = 16 << 20
)

// Fetch reads chunks and calls fn with each position in ids and its chunk. The order is that of the packs; fn is called from several
// goroutines at once, and may not change data nor keep it. What a position gets is verified against its ID before.
//
// A chunk listed many times is read once, zero chunks never. A chunk whose copy is damaged is read from another one. Chunks
// that are lost do not stop the others: all are reported in the end, in a [MissingError]. fn's error ends the fetch.
func (r *Repository) Fetch(ctx context.Context, ids []restic.ID, fn func(i int, data []byte) error) error {
	f := &fetch{r: r, fn: fn, next: make([]int32, len(ids)), first: make(map[restic.ID]int32, len(ids))}
	zero := restic.ZeroChunk()
	for i := len(ids) - 1; i >= 0; i-- { // backwards, so that the chains run forwards
		if ids[i] == zero {
			continue
		}
		f.next[i] = -1
		if j, ok := f.first[ids[i]]; ok {
			f.next[i] = j
		}
		f.first[ids[i]] = int32(i)
	}
	reads, err := f.plan(ctx, ids)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	work := make(chan read)
	f.slots = make(chan struct{}, max(1, r.be.Connections()))
	for range min(max(cap(f.slots), runtime.GOMAXPROCS(0)), max(1, len(reads))) {
		g.Go(func() error {
			w := &fetcher{fetch: f, decoder: decoder{r: r}}
			for rd := range work {
				if err := w.run(ctx, rd); err != nil {
					return err
				}
			}
			return w.decoder.flush()
		})
	}
	g.Go(func() error {
		defer close(work)
		for _, rd := range reads {
			select {
			case work <- rd:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		for i, id := range ids {
			if id == zero {
				if err := fn(i, r.zeros); err != nil {
					return err
				}
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
			}
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		return err
	}
	if len(f.missing) > 0 {
		slices.SortFunc(f.missing, func(a, b MissingBlob) int { return cmp.Compare(f.first[a.ID], f.first[b.ID]) })
		return &MissingError{f.missing}
	}
	return nil
}

// fetch is one Fetch.
type fetch struct {
	r     *Repository
	fn    func(i int, data []byte) error
	first map[restic.ID]int32 // the first position of each chunk
	next  []int32             // the next position of the same chunk, or -1
	slots chan struct{}       // limits concurrent reads

	mu      sync.Mutex
	missing []MissingBlob
}

// read is a range of a pack that holds wanted chunks.
type read struct {
	pack          restic.ID
	offset, limit int64
	entries       []index.Entry
}

// plan looks all chunks up and makes few reads of them, in the order in which their packs are first needed.
func (f *fetch) plan(ctx context.Context, ids []restic.ID) ([]read, error) {
	var (
		order  []restic.ID
		byPack = make(map[restic.ID][]index.Entry)
		zero   = restic.ZeroChunk()
	)
	x, err := f.r.idx(ctx)
	if err != nil {
		return nil, err
	}
	var entries []index.Entry
	reloaded := false
	for i, id := range ids {
		if id == zero || f.first[id] != int32(i) {
			continue
		}
		h := restic.BlobHandle{ID: id, Type: restic.DataBlob}
		entries = x.Lookup(entries[:0], h)
		if len(entries) == 0 && !reloaded {
			reloaded = true
			if x, err = f.r.reload(ctx); err != nil {
				return nil, err
			}
			entries = x.Lookup(entries[:0], h)
		}
		if len(entries) == 0 {
			f.miss(h, f.r.notFound())
			continue
		}
		entries = slices.DeleteFunc(entries, oversized)
		if len(entries) == 0 {
			f.miss(h, fmt.Errorf("%w: the index claims a size no chunk has", ErrDamaged))
			continue
		}
		e := entries[0]
		for _, other := range entries[1:] {
			if _, ok := byPack[other.Pack]; ok {
				e = other // a pack that is read anyway
			}
		}
		if _, ok := byPack[e.Pack]; !ok {
			order = append(order, e.Pack)
		}
		byPack[e.Pack] = append(byPack[e.Pack], e)
	}
	var reads []read
	for _, pack := range order {
		entries := byPack[pack]
		slices.SortFunc(entries, func(a, b index.Entry) int { return cmp.Compare(a.Offset, b.Offset) })
		reads = append(reads, coalesce(pack, entries)...)
	}
	return reads, nil
}

// oversized reports whether reading the blob would take more memory than any blob deserves.
func oversized(e index.Entry) bool { return uint64(e.Length) > maxBlob(e.Type)+restic.Sealed }

// coalesce joins neighbours in a pack, sorted by offset, into reads. Blobs of one read do not overlap, as they would by an index
// that is wrong: they are decoded where they lie.
func coalesce(pack restic.ID, entries []index.Entry) (out []read) {
	for _, e := range entries {
		lo, hi := int64(e.Offset), int64(e.Offset)+int64(e.Length)
		if n := len(out); n > 0 && lo >= out[n-1].limit && lo-out[n-1].limit <= maxGap && hi-out[n-1].offset <= maxRead {
			out[n-1].limit = hi
			out[n-1].entries = append(out[n-1].entries, e)
			continue
		}
		out = append(out, read{pack, lo, hi, []index.Entry{e}})
	}
	return out
}

// fetcher does one read of a fetch after another.
type fetcher struct {
	*fetch
	sealed  []byte // of a read, grows as needed
	decoder decoder
}

// run reads a range and delivers the chunks in it.
func (f *fetcher) run(ctx context.Context, rd read) error {
	select {
	case f.slots <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	sealed := sized(&f.sealed, rd.limit-rd.offset)
	damaged := f.r.readPack(ctx, rd.pack, rd.offset, sealed)
	<-f.slots
	if damaged != nil && !damage(damaged) {
		return damaged
	}
	for _, e := range rd.entries {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		done := func(plain []byte, bad error) error {
			if bad != nil {
				return f.alone(ctx, e.BlobHandle)
			}
			return f.deliver(e.ID, plain)
		}
		var err error
		if damaged != nil {
			err = done(nil, damaged)
		} else {
			lo := int64(e.Offset) - rd.offset
			err = f.decoder.decode(e.Blob, sealed[lo:lo+int64(e.Length)], done)
		}
		if err != nil {
			return err
		}
	}
	return f.decoder.release()
}

// alone reads a chunk once more: the fault may lie on the way, or another copy may be good.
func (f *fetch) alone(ctx context.Context, h restic.BlobHandle) error {
	plain, err := f.r.LoadBlob(ctx, h)
	var missing *MissingError
	if errors.As(err, &missing) {
		f.miss(h, missing.Blobs[0].Err)
		return nil
	}
	if err != nil {
		return err
	}
	return f.deliver(h.ID, plain)
}

func (f *fetch) deliver(id restic.ID, data []byte) error {
	for i := f.first[id]; i >= 0; i = f.next[i] {
		if err := f.fn(int(i), data); err != nil {
			return err
		}
	}
	return nil
}

func (f *fetch) miss(h restic.BlobHandle, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.missing = append(f.missing, MissingBlob{h, err})
}

// readPack fills buf from a pack. A pack that is too short is damaged.
func (r *Repository) readPack(ctx context.Context, pack restic.ID, offset int64, buf []byte) error {
	h := backend.Handle{Type: restic.PackFile, Name: pack.String()}
	err := r.be.Load(ctx, h, offset, int64(len(buf)), func(rd io.Reader) error {
		_, err := io.ReadFull(rd, buf)
		return err
	})
	if err == nil {
		return nil
	}
	if !errors.Is(err, backend.ErrNotExist) && ctx.Err() == nil {
		if info, statErr := r.be.Stat(ctx, h); statErr == nil && info.Size < offset+int64(len(buf)) {
			return fmt.Errorf("%s: %w: it has %d bytes", h, errTruncated, info.Size)
		}
	}
	return fmt.Errorf("load %s: %w", h, err)
}

// Reader reads a file at random. It is an io.ReaderAt, safe for concurrent use; it holds no resources.
type Reader struct {
	r    *Repository
	ctx  context.Context
	ids  []restic.ID
	ends []int64 // where each chunk ends
}

var _ io.ReaderAt = (*Reader)(nil)

// Reader gives random access to a file's content. It fails with a [MissingError] if the length of a chunk is not known; that all
// chunks can be read shows only when they are. ctx bounds its reads.
func (r *Repository) Reader(ctx context.Context, ids []restic.ID) (*Reader, error) {
	out := &Reader{r: r, ctx: ctx, ids: ids, ends: make([]int64, len(ids))}
	x, err := r.idx(ctx)
	if err != nil {
		return nil, err
	}
	end := int64(0)
	var missing []MissingBlob
	reloaded := false
	for i, id := range ids {
		h := restic.BlobHandle{ID: id, Type: restic.DataBlob}
		n, ok := x.Size(h)
		if !ok && !reloaded {
			reloaded = true
			if x, err = r.reload(ctx); err != nil {
				return nil, err
			}
			n, ok = x.Size(h)
		}
		switch {
		case ok:
		case id == restic.ZeroChunk():
			n = restic.ZeroChunkSize
		default:
			missing = append(missing, MissingBlob{h, r.notFound()})
		}
		end += int64(n)
		out.ends[i] = end
	}
	if len(missing) > 0 {
		return nil, &MissingError{missing}
	}
	return out, nil
}

// Size is the file's length in bytes.
func (rd *Reader) Size() int64 {
	if len(rd.ends) == 0 {
		return 0
	}
	return rd.ends[len(rd.ends)-1]
}

// ReadAt fills p from offset off, or fails. At the end of the file it returns what there is and io.EOF.
func (rd *Reader) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, fmt.Errorf("read at negative offset %d", off)
	}
	i, _ := slices.BinarySearchFunc(rd.ends, off, func(end, off int64) int {
		if end <= off {
			return -1
		}
		return 1
	})
	for ; n < len(p) && i < len(rd.ids); i++ {
		data, err := rd.chunk(rd.ids[i])
		if err != nil {
			return n, err
		}
		start := int64(0)
		if i > 0 {
			start = rd.ends[i-1]
		}
		n += copy(p[n:], data[off+int64(n)-start:])
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (rd *Reader) chunk(id restic.ID) ([]byte, error) {
	if id == restic.ZeroChunk() {
		return rd.r.zeros, nil
	}
	return rd.r.blobs.get(id, func() ([]byte, error) {
		return rd.r.LoadBlob(rd.ctx, restic.BlobHandle{ID: id, Type: restic.DataBlob})
	})
}
