package engine

import (
	"io"
	"sync/atomic"

	"github.com/vmkeep/vmkeep/chunker/extent"
)

// held is what a disk holds before anything is written to it. Where nothing is allocated there are zeros, and the disk
// is not asked for them: most of a disk whose filling was interrupted is empty.
type held struct {
	disk      io.ReaderAt
	allocated extent.Set
	spared    atomic.Int64 // bytes that the disk was not asked for
}

// ReadAt fills p, whose bytes are all on the disk.
func (h *held) ReadAt(p []byte, off int64) (int, error) {
	e := extent.Extent{Off: off, Len: int64(len(p))}
	if h.allocated.Covers(e) {
		return h.disk.ReadAt(p, off)
	}
	clear(p)
	left := e.Len
	for _, x := range h.allocated.Clip(e) {
		if n, err := h.disk.ReadAt(p[x.Off-off:x.End()-off], x.Off); int64(n) < x.Len {
			return 0, err
		}
		left -= x.Len
	}
	h.spared.Add(left)
	return len(p), nil
}
