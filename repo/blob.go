package repo

import (
	"bytes"
	"container/list"
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/internal/index"
	"github.com/vmkeep/vmkeep/repo/internal/sha256x2"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// maxBlob bounds the plaintext of a blob in bytes. restic's chunks have at most 8 MiB, other writers' may be larger; a tree has 67
// bytes for each chunk of its files, and some 400 for each of its files: this is a directory of over a million, or a file of 8 TiB.
// What claims more is taken for an attack on our memory.
func maxBlob(t restic.BlobType) uint64 {
	if t == restic.TreeBlob {
		return 512 << 20
	}
	return 256 << 20
}

// MissingError lists the blobs that could not be delivered: not in any readable index or pack, or damaged in every copy.
type MissingError struct {
	Blobs []MissingBlob
}

// MissingBlob is a blob and why it cannot be read.
type MissingBlob struct {
	restic.BlobHandle
	Err error
}

func (e *MissingError) Error() string {
	if len(e.Blobs) == 1 {
		return fmt.Sprintf("%s cannot be read: %v", e.Blobs[0].BlobHandle, e.Blobs[0].Err)
	}
	return fmt.Sprintf("%d blobs cannot be read; the first, %s: %v", len(e.Blobs), e.Blobs[0].BlobHandle, e.Blobs[0].Err)
}

// Unwrap makes a MissingError ErrDamaged or ErrNotFound, whatever its blobs are.
func (e *MissingError) Unwrap() []error {
	var out []error
	for _, b := range e.Blobs {
		out = append(out, b.Err)
	}
	return out
}

// decode opens, decompresses and verifies a sealed blob. sealed is used up: the plaintext lies in it, or in buf, which grows as
// needed, if the blob is compressed.
func (r *Repository) decode(buf *[]byte, b restic.Blob, sealed []byte) ([]byte, error) {
	plain, err := r.unseal(buf, b, sealed)
	if err == nil {
		err = named(b.BlobHandle, restic.Hash(plain))
	}
	if err != nil {
		return nil, err
	}
	return plain, nil
}

// unseal is decode without the hash, by which alone the plaintext is known to be the right blob's.
func (r *Repository) unseal(buf *[]byte, b restic.Blob, sealed []byte) ([]byte, error) {
	if n := uint64(b.Size()); n > maxBlob(b.Type) || b.Compressed() && !restic.Plausible(len(sealed), n) {
		return nil, fmt.Errorf("%s: %w: it claims %d bytes", b.BlobHandle, ErrDamaged, b.Size())
	}
	plain, err := r.key.Open(sealed[16:16], sealed) // in place
	if err == nil && b.Compressed() {
		frame := plain
		plain = sized(buf, int64(b.Size()))
		err = r.zstd.Decompress(plain, frame)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", b.BlobHandle, ErrDamaged, err)
	}
	return plain, nil
}

// named fails unless hash is the one that the blob is named by.
func named(h restic.BlobHandle, hash restic.ID) error {
	if hash != h.ID {
		return fmt.Errorf("%s: %w: its content does not have the hash it is named by", h, ErrDamaged)
	}
	return nil
}

// sized gives a buffer the length n. Its content is lost if it has to grow.
func sized(buf *[]byte, n int64) []byte {
	if int64(cap(*buf)) < n {
		*buf = make([]byte, n)
	}
	*buf = (*buf)[:n]
	return *buf
}

// decoder decodes blobs one after another, and hashes two at a time. It belongs to one goroutine.
type decoder struct {
	r      *Repository
	plain  [2][]byte // what a blob of each lane of the hasher is decompressed into
	lent   [2]bool   // the blob of a lane lies where it was sealed
	hasher sha256x2.Hasher
}

// decode is [Repository.decode], whose results done gets, perhaps only during a later decode or flush. Until then sealed is in use.
// It returns what done does, after an error of which the decoder is of no use.
func (d *decoder) decode(b restic.Blob, sealed []byte, done func(plain []byte, err error) error) error {
	lane := d.lane()
	plain, err := d.r.unseal(&d.plain[lane], b, sealed)
	if err != nil {
		return done(nil, err)
	}
	d.lent[lane] = !b.Compressed()
	return d.hasher.Add(plain, func(hash [sha256x2.Size]byte) error {
		if err := named(b.BlobHandle, hash); err != nil {
			return done(nil, err)
		}
		return done(plain, nil)
	})
}

// lane is 0 or 1: the one that the next blob gets, while a blob that is not done is in the other.
func (d *decoder) lane() int { return d.hasher.Free() }

// flush ends with all blobs done.
func (d *decoder) flush() error { return d.hasher.Flush() }

// release ends with no sealed bytes in use. A blob that needs none may wait for the next one.
func (d *decoder) release() error {
	if d.lent[1-d.lane()] {
		return d.flush()
	}
	return nil
}

// loadEntry reads one copy of a blob, trees from the cache if it has them.
func (r *Repository) loadEntry(ctx context.Context, e index.Entry) ([]byte, error) {
	if e.Type == restic.TreeBlob {
		h := backend.Handle{Type: restic.PackFile, Name: e.Pack.String()}
		if sealed, ok := r.cache.slice(ctx, r, h, e.Blob); ok {
			if out, err := r.decode(new([]byte), e.Blob, sealed); err == nil {
				return out, nil
			}
			r.cache.drop(h)
		}
	}
	return r.loadStored(ctx, e)
}

// loadStored reads one copy of a blob from the store.
func (r *Repository) loadStored(ctx context.Context, e index.Entry) ([]byte, error) {
	if oversized(e) {
		return nil, fmt.Errorf("%s: %w: it claims %d bytes", e.BlobHandle, ErrDamaged, e.Length)
	}
	buf, _ := r.sealed.Get().(*[]byte)
	if buf == nil || cap(*buf) < int(e.Length) {
		b := make([]byte, e.Length, max(int(e.Length), restic.ZeroChunkSize))
		buf = &b
	}
	defer r.sealed.Put(buf)
	sealed := (*buf)[:e.Length]
	if err := r.readPack(ctx, e.Pack, int64(e.Offset), sealed); err != nil {
		return nil, err
	}
	out, err := r.decode(new([]byte), e.Blob, sealed)
	if err != nil {
		return nil, fmt.Errorf("data/%s: %w", e.Pack, err)
	}
	if !e.Compressed() {
		out = bytes.Clone(out) // it lies in the buffer that goes back
	}
	return out, nil
}

// reload lists the index files once more, since another process may have written or pruned, and brings the index up to date.
func (r *Repository) reload(ctx context.Context) (*index.Index, error) {
	r.lookAgain()
	return r.idx(ctx)
}

// LoadBlob reads a blob, from another copy if one is damaged. It fails with a [MissingError] if there is no good copy.
func (r *Repository) LoadBlob(ctx context.Context, h restic.BlobHandle) ([]byte, error) {
	if h.Type == restic.DataBlob && h.ID == restic.ZeroChunk() {
		return make([]byte, restic.ZeroChunkSize), nil
	}
	x, err := r.idx(ctx)
	if err != nil {
		return nil, err
	}
	data, why, err := r.loadCopy(ctx, x, h)
	if data == nil && err == nil && (errors.Is(why, ErrNotFound) || errors.Is(why, backend.ErrNotExist)) {
		if x, err = r.reload(ctx); err != nil {
			return nil, err
		}
		data, why, err = r.loadCopy(ctx, x, h)
	}
	if err != nil {
		return nil, err
	}
	if data == nil {
		return nil, &MissingError{[]MissingBlob{{h, why}}}
	}
	return data, nil
}

// loadCopy tries all copies of a blob. If none is good, why tells what is wrong with each; err is set if the store fails.
func (r *Repository) loadCopy(ctx context.Context, x *index.Index, h restic.BlobHandle) (data []byte, why, err error) {
	return r.tryCopies(x, h, func(e index.Entry) ([]byte, error) { return r.loadEntry(ctx, e) })
}

// loadCopyPastCache is loadCopy for those who want to know what is on the store.
func (r *Repository) loadCopyPastCache(ctx context.Context, x *index.Index, h restic.BlobHandle) (data []byte, why, err error) {
	return r.tryCopies(x, h, func(e index.Entry) ([]byte, error) { return r.loadStored(ctx, e) })
}

func (r *Repository) tryCopies(x *index.Index, h restic.BlobHandle, load func(index.Entry) ([]byte, error)) (data []byte, why, err error) {
	entries := x.Lookup(nil, h)
	if len(entries) == 0 {
		return nil, r.notFound(), nil
	}
	for _, e := range entries {
		data, err := load(e)
		if err == nil {
			return data, nil, nil
		}
		if !damage(err) {
			return nil, nil, err
		}
		why = errors.Join(why, err)
	}
	return nil, why, nil
}

// damage reports whether an error means that a copy is lost, not that the store cannot be reached.
func damage(err error) bool {
	return errors.Is(err, ErrDamaged) || errors.Is(err, backend.ErrNotExist) || errors.Is(err, errTruncated)
}

// errTruncated is a pack that ends before a blob does.
var errTruncated = fmt.Errorf("%w: the pack is too short", ErrDamaged)

// notFound is the reason for a blob that no index names.
func (r *Repository) notFound() error {
	if err := r.indexDamage(); err != nil {
		return fmt.Errorf("%w, as far as the index can be read: %w", ErrNotFound, err)
	}
	return fmt.Errorf("%w: no index names it", ErrNotFound)
}

// HasBlob reports whether the repository's index names the blob.
func (r *Repository) HasBlob(ctx context.Context, h restic.BlobHandle) (bool, error) {
	_, ok, err := r.BlobSize(ctx, h)
	return ok, err
}

// BlobSize is the length of a blob's plaintext in bytes, as the index tells, and whether it names the blob.
func (r *Repository) BlobSize(ctx context.Context, h restic.BlobHandle) (size int, ok bool, err error) {
	x, err := r.idx(ctx)
	if err != nil {
		return 0, false, err
	}
	size, ok = x.Size(h)
	return size, ok, nil
}

// LoadTree reads a directory. Its nodes are checked: names in order, none that leaves the directory.
func (r *Repository) LoadTree(ctx context.Context, id restic.ID) (*restic.Tree, error) {
	data, err := r.LoadBlob(ctx, restic.BlobHandle{ID: id, Type: restic.TreeBlob})
	if err != nil {
		return nil, err
	}
	t, err := restic.DecodeTree(data)
	if err == nil {
		err = t.Check()
	}
	if err != nil {
		return nil, fmt.Errorf("tree %s: %w: %w", id.Short(), ErrDamaged, err)
	}
	return t, nil
}

// blobCache keeps the decoded chunks used last, up to a number of bytes. Chunks are handed out shared: nobody may change them.
type blobCache struct {
	mu    sync.Mutex
	limit int64
	size  int64
	order list.List // of *cachedBlob, the one used last in front
	byID  map[restic.ID]*list.Element
}

type cachedBlob struct {
	id   restic.ID
	once sync.Mutex // held while the blob is loaded
	data []byte
}

func newBlobCache(limit int64) *blobCache {
	return &blobCache{limit: limit, byID: make(map[restic.ID]*list.Element)}
}

// get returns a chunk, loading it if needed; those who ask for it meanwhile wait.
func (c *blobCache) get(id restic.ID, load func() ([]byte, error)) ([]byte, error) {
	c.mu.Lock()
	el := c.byID[id]
	if el == nil {
		el = c.order.PushFront(&cachedBlob{id: id})
		c.byID[id] = el
	} else {
		c.order.MoveToFront(el)
	}
	c.mu.Unlock()
	b := el.Value.(*cachedBlob)
	b.once.Lock()
	defer b.once.Unlock()
	if b.data != nil {
		return b.data, nil
	}
	data, err := load()
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.remove(el)
		return nil, err
	}
	b.data = data
	if c.byID[id] == el {
		c.size += int64(len(data))
	}
	for c.size > c.limit && c.order.Len() > 1 {
		c.remove(c.order.Back())
	}
	return data, nil
}

func (c *blobCache) remove(el *list.Element) {
	b := el.Value.(*cachedBlob)
	if c.byID[b.id] == el {
		delete(c.byID, b.id)
		c.order.Remove(el)
		c.size -= int64(len(b.data))
	}
}
