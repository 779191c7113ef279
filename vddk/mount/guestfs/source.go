package guestfs

import (
	"container/list"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/vddk/mount/device"
)

// What a Source keeps in memory. Metadata is small and scattered: 16 KiB pages hold an inode cluster or a few
// directory blocks. Data is read in windows of 1 MiB, the mean size of a chunk in the repository and a good
// request for a disk: files that lie together are read together.
const (
	pageSize  = 16 << 10
	pages     = 2048 // 32 MiB
	windowLen = 1 << 20
	windows   = 12 // 12 MiB
)

// Overlay replaces bytes of a volume, as replaying a journal would have done, in units of Unit bytes.
type Overlay interface {
	Unit() int64
	// Has reports whether unit n (bytes n*Unit to (n+1)*Unit) is replaced.
	Has(n int64) bool
	// Fill sets p, of Unit bytes, to what unit n holds.
	Fill(p []byte, n int64) error
	// Len is the number of replaced units.
	Len() int
}

// Source is a volume as a format reads it: a device with bounds, caches and, once a journal was replayed, an
// overlay. It is safe for concurrent use.
type Source struct {
	dev  device.Device
	over Overlay
	meta *cache
	data *cache
}

// NewSource makes a Source without overlay.
func NewSource(dev device.Device) *Source { return newSource(dev, nil) }

// With is a Source of the same device seen through the overlay, with caches of its own.
func (s *Source) With(o Overlay) *Source { return newSource(s.dev, o) }

func newSource(dev device.Device, o Overlay) *Source {
	s := &Source{dev: dev, over: o}
	s.meta = newCache(pageSize, pages, s.fill)
	s.data = newCache(windowLen, windows, s.fill)
	return s
}

// Size is the device's size in bytes.
func (s *Source) Size() int64 { return s.dev.Size() }

// Device is what lies below, without overlay.
func (s *Source) Device() device.Device { return s.dev }

// ReadMeta fills p with the bytes at off, through the cache for metadata.
func (s *Source) ReadMeta(p []byte, off int64) error {
	if err := s.inside(off, int64(len(p))); err != nil {
		return err
	}
	return s.meta.read(p, off, s.Size())
}

// Meta returns n bytes of metadata at off in a new slice. n is bounded by 16 MiB.
func (s *Source) Meta(off int64, n int) ([]byte, error) {
	if n < 0 || n > 16<<20 {
		return nil, Damaged("structure of %d bytes", n)
	}
	if err := s.inside(off, int64(n)); err != nil {
		return nil, err
	}
	p := make([]byte, n)
	return p, s.meta.read(p, off, s.Size())
}

// ReadData fills p with the bytes at off. Reads below 1 MiB fetch the window around them.
func (s *Source) ReadData(p []byte, off int64) error {
	if err := s.inside(off, int64(len(p))); err != nil {
		return err
	}
	if len(p) >= windowLen {
		return s.fill(p, off)
	}
	return s.data.read(p, off, s.Size())
}

func (s *Source) inside(off, n int64) error {
	if off < 0 || n < 0 || off > s.Size()-n {
		return Damaged("reference to byte %d of a volume of %d bytes", off, s.Size())
	}
	return nil
}

// Replayed reports whether any byte of e comes from the overlay.
func (s *Source) Replayed(e extent.Extent) bool {
	if s.over == nil || s.over.Len() == 0 || e.Len <= 0 {
		return false
	}
	u := s.over.Unit()
	for n := e.Off / u; n <= (e.End()-1)/u; n++ {
		if s.over.Has(n) {
			return true
		}
	}
	return false
}

// fill reads from the device and lays the overlay over it.
func (s *Source) fill(p []byte, off int64) error {
	n, err := s.dev.ReadAt(p, off)
	if n < len(p) {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("volume: %w", err)
	}
	if s.over == nil || s.over.Len() == 0 {
		return nil
	}
	u, end := s.over.Unit(), off+int64(len(p))
	var buf []byte
	for k := off / u; k*u < end; k++ {
		if !s.over.Has(k) {
			continue
		}
		if lo := k*u - off; lo >= 0 && lo+u <= int64(len(p)) {
			if err := s.over.Fill(p[lo:lo+u], k); err != nil {
				return err
			}
			continue
		}
		if buf == nil {
			buf = make([]byte, u)
		}
		if err := s.over.Fill(buf, k); err != nil {
			return err
		}
		if lo := k*u - off; lo >= 0 {
			copy(p[lo:], buf)
		} else {
			copy(p, buf[-lo:])
		}
	}
	return nil
}

// cache is a bounded cache of aligned pages. A page is read once even when several callers want it together.
type cache struct {
	size int64
	max  int
	fill func([]byte, int64) error

	mu  sync.Mutex
	use *list.List // *page, most recently used first
	at  map[int64]*list.Element
}

type page struct {
	n     int64
	ready chan struct{} // closed once b and err are set
	b     []byte
	err   error
}

func newCache(size int64, max int, fill func([]byte, int64) error) *cache {
	return &cache{size: size, max: max, fill: fill, use: list.New(), at: map[int64]*list.Element{}}
}

// read copies bytes at off into p; all of them lie below end, where the last page is cut.
func (c *cache) read(p []byte, off, end int64) error {
	for len(p) > 0 {
		pg := c.page(off/c.size, end)
		<-pg.ready
		at := off % c.size
		n := min(int64(len(p)), c.size-at)
		if pg.err == nil {
			copy(p[:n], pg.b[at:])
		} else if err := c.fill(p[:n], off); err != nil {
			// One unreadable byte must not take its whole page away: the exact range was tried.
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

func (c *cache) page(n, end int64) *page {
	c.mu.Lock()
	if e := c.at[n]; e != nil {
		c.use.MoveToFront(e)
		c.mu.Unlock()
		return e.Value.(*page)
	}
	pg := &page{n: n, ready: make(chan struct{})}
	e := c.use.PushFront(pg)
	c.at[n] = e
	if c.use.Len() > c.max {
		old := c.use.Back()
		delete(c.at, old.Value.(*page).n)
		c.use.Remove(old)
	}
	c.mu.Unlock()

	pg.err = errors.New("page was not read") // should fill panic
	defer close(pg.ready)
	b := make([]byte, min(c.size, end-n*c.size))
	if pg.err = c.fill(b, n*c.size); pg.err == nil {
		pg.b = b
		return pg
	}
	// A failure is not kept: the disk may answer the next time.
	c.mu.Lock()
	if c.at[n] == e {
		delete(c.at, n)
		c.use.Remove(e)
	}
	c.mu.Unlock()
	return pg
}
