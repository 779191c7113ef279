package repo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// maxFile bounds what is read of a file that is read whole, in bytes: anything but packs. An index of a million blobs has 40 MB.
const maxFile = 256 << 20

// loadWhole reads a file and, unless it is the config, verifies that it has the name of its content. A file that does
// not is read once more, since the fault may lie on the way.
func loadWhole(ctx context.Context, be backend.Backend, h backend.Handle) ([]byte, error) {
	for attempt := 0; ; attempt++ {
		var buf bytes.Buffer
		err := be.Load(ctx, h, 0, 0, func(rd io.Reader) error {
			buf.Reset()
			n, err := buf.ReadFrom(io.LimitReader(rd, maxFile+1))
			if n > maxFile {
				return fmt.Errorf("%w: more than %d bytes", ErrDamaged, maxFile)
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("load %s: %w", h, err)
		}
		if h.Type == restic.ConfigFile || restic.Hash(buf.Bytes()).String() == h.Name {
			return buf.Bytes(), nil
		}
		if attempt > 0 {
			return nil, fmt.Errorf("%s: %w: its content does not have the hash it is named by", h, ErrDamaged)
		}
	}
}

// loadDocument reads a lock, snapshot or index file and returns its JSON.
func (r *Repository) loadDocument(ctx context.Context, t restic.FileType, id restic.ID) ([]byte, error) {
	h := backend.Handle{Type: t, Name: id.String()}
	sealed, err := r.loadSealed(ctx, h)
	if err != nil {
		return nil, err
	}
	return r.openDocument(h, sealed)
}

// loadSealed reads a snapshot or index file from the cache, others and what is not in it from the store.
func (r *Repository) loadSealed(ctx context.Context, h backend.Handle) ([]byte, error) {
	if sealed, ok := r.cache.get(h); ok {
		return sealed, nil
	}
	sealed, err := loadWhole(ctx, r.be, h)
	if err == nil && (h.Type == restic.IndexFile || h.Type == restic.SnapshotFile) {
		r.cache.put(h, sealed)
	}
	return sealed, err
}

func (r *Repository) openDocument(h backend.Handle, sealed []byte) (doc []byte, err error) {
	plain, err := r.key.Open(nil, sealed)
	if err == nil {
		doc, err = r.zstd.Unpack(h.Type, plain)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", h, ErrDamaged, err)
	}
	return doc, nil
}

// decodeIndex is [restic.DecodeIndex] of an index file, in what memory there is. What is malformed, and an error of pack, is damage.
func (r *Repository) decodeIndex(ctx context.Context, h backend.Handle, sealed []byte, pack func(restic.ID, []restic.Blob) error) error {
	plain, err := r.key.Open(nil, sealed)
	if err != nil {
		return fmt.Errorf("%s: %w: %w", h, ErrDamaged, err)
	}
	return r.room.hold(ctx, restic.UnpackedSize(h.Type, plain), func() error {
		doc, err := r.zstd.Unpack(h.Type, plain)
		if err == nil {
			err = restic.DecodeIndex(doc, pack)
		}
		if err != nil {
			return fmt.Errorf("%s: %w: %w", h, ErrDamaged, err)
		}
		return nil
	})
}

// sealDocument makes a file of a JSON document and verifies that it can be read back.
func (r *Repository) sealDocument(t restic.FileType, doc []byte) (backend.Handle, []byte, error) {
	sealed := r.key.Seal(nil, r.zstd.PackUnpacked(nil, doc, r.config.Version))
	h := backend.Handle{Type: t, Name: restic.Hash(sealed).String()}
	back, err := r.openDocument(h, sealed)
	if err == nil && !bytes.Equal(back, doc) {
		err = errors.New("it reads back differently")
	}
	if err != nil {
		return h, nil, fmt.Errorf("verify %s before it is written: %w (%s)", t, err, faultyMachine)
	}
	return h, sealed, nil
}

const faultyMachine = "this points to faulty memory or a faulty processor; nothing wrong was written"

// saveDocument writes a JSON document as a file and returns its name.
func (r *Repository) saveDocument(ctx context.Context, t restic.FileType, doc []byte) (restic.ID, error) {
	h, sealed, err := r.sealDocument(t, doc)
	if err != nil {
		return restic.ID{}, err
	}
	if err := r.be.Save(ctx, h, sealed); err != nil {
		return restic.ID{}, fmt.Errorf("save %s: %w", h, err)
	}
	if t == restic.IndexFile || t == restic.SnapshotFile {
		r.cache.put(h, sealed)
	}
	return restic.ParseID(h.Name)
}

// list gives the names of all files of a type, with their sizes in bytes.
func (r *Repository) list(ctx context.Context, t restic.FileType) (map[restic.ID]int64, error) {
	out := make(map[restic.ID]int64)
	err := r.be.List(ctx, t, func(info backend.FileInfo) error {
		if id, err := restic.ParseID(info.Name); err == nil && !id.IsNull() {
			out[id] = info.Size
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", t, err)
	}
	return out, nil
}
