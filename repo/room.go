package repo

import (
	"context"

	"golang.org/x/sync/semaphore"
)

// roomSize is what large trees and index files may take while they are read, all together, in bytes. zstd makes gigabytes of a hostile
// repository's megabytes, and several files are read at a time.
const roomSize = 512 << 20

// room is memory that is shared out.
type room struct {
	size int64
	left *semaphore.Weighted
}

func newRoom(size int64) *room { return &room{size, semaphore.NewWeighted(size)} }

// hold runs fn, which needs n bytes, when they are free. What needs more than there is runs alone.
func (m *room) hold(ctx context.Context, n int, fn func() error) error {
	w := min(int64(n), m.size)
	if m.left.Acquire(ctx, w) != nil {
		return context.Cause(ctx)
	}
	defer m.left.Release(w)
	return fn()
}
