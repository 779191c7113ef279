package engine

import (
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"
)

// directFile is a file whose long writes go past the page cache, which a restore would only fill: the kernel's part of a
// restore is a fifth of what it is through the cache, and the storage begins at once.
type directFile struct {
	*os.File // through the cache
	past     past
	refused  atomic.Bool
}

// past is a file opened a second time, to be written past the cache; nil: that is not possible.
type past interface {
	io.WriterAt
	io.Closer
}

const (
	// directBlock is what is written past the cache in whole, in bytes. It is as long as a page or a block of a file system gets,
	// so that none is ever written both ways at once.
	directBlock = 64 << 10
	directPiece = 1 << 20 // copied at once, in bytes
)

// pageAligned says that memory begins at a page, as the kernel wants it to: FetchFor sees to it that most chunks do.
func pageAligned(p []byte) bool { return uintptr(unsafe.Pointer(&p[0]))&(4<<10-1) == 0 }

// directBuffers are for what does not, of directPiece bytes.
var directBuffers = sync.Pool{New: func() any {
	const page = 64 << 10
	b := make([]byte, directPiece+page)
	return (*[directPiece]byte)(b[-uintptr(unsafe.Pointer(&b[0]))&(page-1):])
}}

// WriteAt writes p. Its ends, up to the first and from the last boundary of a block, go through the cache.
func (d *directFile) WriteAt(p []byte, off int64) (n int, err error) {
	head := int(-off & (directBlock - 1))
	if d.past == nil || d.refused.Load() || head+directBlock > len(p) {
		return d.cached(p, off)
	}
	if n, err = d.File.WriteAt(p[:head], off); err != nil {
		return n, err
	}
	end := head + (len(p)-head)&^(directBlock-1)
	var buf *[directPiece]byte
	if !pageAligned(p[head:]) {
		buf = directBuffers.Get().(*[directPiece]byte)
		defer directBuffers.Put(buf)
	}
	for n < end {
		piece := p[n:end]
		if buf != nil {
			piece = buf[:copy(buf[:min(directPiece, end-n)], piece)]
		}
		m, err := d.past.WriteAt(piece, off+int64(n))
		n += m
		if errors.Is(err, syscall.EINVAL) { // not this file system, or not on this device
			d.refused.Store(true)
			break
		}
		if err != nil {
			return n, err
		}
	}
	m, err := d.cached(p[n:], off+int64(n))
	return n + m, err
}

// earlyWrite is the length in bytes from which a write through the cache is sent to the storage at once. What is shorter, the
// sectors that two chunks share above all, waits for its neighbours.
const earlyWrite = 64 << 10

// cached writes through the cache, and has long writes sent to the storage while others are still being fetched: the restore
// promises to be durable in the end, which then is near, and dirty memory does not pile up.
func (d *directFile) cached(p []byte, off int64) (int, error) {
	n, err := d.File.WriteAt(p, off)
	if err == nil && n >= earlyWrite {
		err = beginWriteback(d.File, off, int64(n))
	}
	return n, err
}

func (d *directFile) Close() error {
	err := d.File.Close()
	if d.past != nil {
		err = errors.Join(err, d.past.Close())
	}
	return err
}
