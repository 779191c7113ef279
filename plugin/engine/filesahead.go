package engine

import (
	"bytes"
	"context"
	"io"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
)

// Reading ahead in a walk. Small files lie together, a hundred in one chunk of the repository: so many must be asked for
// at a time for the next chunks to be fetched and opened while the files of this one are handed out.
const (
	aheadSize  = 1 << 20 // bytes of a file that is read ahead; larger ones keep a reader busy on their own
	aheadBytes = 8 << 20 // of all that were read and not yet handed out
	aheadFiles = 256     // as many files at most
)

// found is a file of a walk.
type found struct {
	place
	attr  guestfs.Attr
	ready chan struct{} // closed once content is set; nil: it is not read ahead
	// content is what a small regular file holds. Nil where it is not read ahead or could not be: whoever reads the file
	// then sees why.
	content []byte
}

// walkAhead is walk with the content of small files, read by others while fn works. fn is called by one goroutine at a
// time, in order; all have ended when walkAhead returns.
func (p place) walkAhead(ctx context.Context, req plugin.FileRequest, fn func(*found) error) error {
	g, ctx := errgroup.WithContext(ctx)
	budget := semaphore.NewWeighted(aheadBytes)
	queue := make(chan *found, aheadFiles)
	g.Go(func() error {
		defer close(queue)
		return p.walk(ctx, req, func(at place, a guestfs.Attr) error {
			f := &found{place: at, attr: a}
			if a.Type == guestfs.Regular && a.Size > 0 && a.Size <= aheadSize && a.Links <= 1 {
				if budget.Acquire(ctx, a.Size) != nil {
					return context.Cause(ctx)
				}
				f.ready = make(chan struct{})
				g.Go(func() error {
					defer close(f.ready)
					f.content = f.whole(a.Size)
					return nil
				})
			}
			select {
			case queue <- f:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		})
	})
	g.Go(func() error {
		for f := range queue {
			if f.ready != nil {
				<-f.ready
			}
			if err := fn(f); err != nil {
				return err
			}
			if f.ready != nil {
				budget.Release(f.attr.Size)
			}
		}
		return nil
	})
	return g.Wait()
}

// whole is all of a file's content, of which there are size bytes, or nil.
func (p place) whole(size int64) []byte {
	f, err := p.fs.Open(p.id, "")
	if err != nil || f.Size() != size {
		return nil
	}
	b := make([]byte, size)
	if n, _ := f.ReadAt(b, 0); n < len(b) {
		return nil
	}
	return b
}

// reader reads the file's content, and tells its bytes.
func (f *found) reader() (int64, io.Reader, error) {
	if f.content != nil {
		return int64(len(f.content)), bytes.NewReader(f.content), nil
	}
	file, err := f.fs.Open(f.id, "")
	if err != nil {
		return 0, nil, err
	}
	return file.Size(), guestfs.NewReader(file), nil
}
