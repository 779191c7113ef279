package nfctest

import (
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/vddk"
)

// Grant is what a ticket allows: the disks of one machine.
type Grant struct {
	VM    string // managed object id, for the store to know whose files are meant
	Key   int32  // device key, 0: any disk of the machine
	Write bool   // from NfcRandomAccessOpenDisk; others only read
}

// OpenRequest is what OPEN_FILE asks for.
type OpenRequest struct {
	Grant
	Path     string // datastore path, as the client sent it
	Writable bool   // open flags; the server has checked that the grant allows it
}

// Store is where the server's disks come from.
type Store interface {
	// Open opens a disk. Errors that wrap [vddk.ErrLocked], [vddk.ErrPermission] or [vddk.ErrNotFound] become what
	// a host says in these cases, others a general error with their text. ctx ends with the connection.
	Open(ctx context.Context, r OpenRequest) (File, error)
}

// File is an open disk. ReadAt and WriteAt are called concurrently.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Size() int64
	// Allocated is the allocated part of e; the rest of e reads as zeros.
	Allocated(e extent.Extent) (extent.Set, error)
}

// Database is a File with a disk database, the key-value pairs of a VMDK descriptor ("ddb." left out).
type Database interface {
	DDB(key string) (string, bool)
}

// Viewer is a File that can lend its bytes, so that they are sent without being copied. The slice must not change
// while it is used: until the next call of release.
type Viewer interface {
	View(off int64, n int) (b []byte, release func(), ok bool)
}

// Memory is a Store in memory: sparse disks by path. The zero value is empty and ready.
type Memory struct {
	mu    sync.Mutex
	disks map[string]*MemoryDisk
}

// Add puts an empty disk of size bytes at path, replacing another.
func (m *Memory) Add(path string, size int64) *MemoryDisk {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.disks == nil {
		m.disks = map[string]*MemoryDisk{}
	}
	d := &MemoryDisk{size: size, grains: map[int64][]byte{}}
	m.disks[path] = d
	return d
}

// Open opens the disk at the request's path. A disk open for writing is locked for others, as on a datastore.
func (m *Memory) Open(_ context.Context, r OpenRequest) (File, error) {
	m.mu.Lock()
	d := m.disks[r.Path]
	m.mu.Unlock()
	if d == nil {
		return nil, fmt.Errorf("%s: %w", r.Path, vddk.ErrNotFound)
	}
	return d.open(r.Writable)
}

// MemoryDisk is a sparse disk in memory.
type MemoryDisk struct {
	// DDB is the disk's database; set it before the disk is opened.
	Entries map[string]string

	size    int64
	mu      sync.RWMutex
	grains  map[int64][]byte // by index, each grainSize bytes; absent: zeros
	readers int
	writer  bool
}

const grainSize = 64 << 10

func (d *MemoryDisk) open(write bool) (File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.writer || write && d.readers > 0 {
		return nil, vddk.ErrLocked
	}
	if write {
		d.writer = true
	} else {
		d.readers++
	}
	return &memoryFile{MemoryDisk: d, write: write}, nil
}

// Size is the capacity in bytes.
func (d *MemoryDisk) Size() int64 { return d.size }

// DDB looks a key up in Entries.
func (d *MemoryDisk) DDB(key string) (string, bool) { v, ok := d.Entries[key]; return v, ok }

// ReadAt reads; the part behind the end gives io.EOF.
func (d *MemoryDisk) ReadAt(p []byte, off int64) (int, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	n := 0
	for n < len(p) && off+int64(n) < d.size {
		at := off + int64(n)
		in := at % grainSize
		k := int(min(int64(len(p)-n), grainSize-in, d.size-at))
		if g := d.grains[at/grainSize]; g != nil {
			copy(p[n:n+k], g[in:])
		} else {
			clear(p[n : n+k])
		}
		n += k
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt writes; nothing may lie behind the end.
func (d *MemoryDisk) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > d.size {
		return 0, fmt.Errorf("write of %d bytes at %d, beyond the disk's end at %d", len(p), off, d.size)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	n := 0
	for n < len(p) {
		at := off + int64(n)
		in := at % grainSize
		g := d.grains[at/grainSize]
		if g == nil {
			g = make([]byte, grainSize)
			d.grains[at/grainSize] = g
		}
		n += copy(g[in:], p[n:])
	}
	return n, nil
}

// Allocated is every grain that was written, inside e.
func (d *MemoryDisk) Allocated(e extent.Extent) (extent.Set, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	var es []extent.Extent
	for i := e.Off / grainSize; i*grainSize < e.End(); i++ {
		if d.grains[i] != nil {
			es = append(es, extent.Extent{Off: i * grainSize, Len: grainSize})
		}
	}
	return extent.Of(es...).Clip(extent.Extent{Off: e.Off, Len: min(e.End(), d.size) - e.Off}), nil
}

// memoryFile is one opening of a MemoryDisk.
type memoryFile struct {
	*MemoryDisk
	write bool
	once  sync.Once
}

func (f *memoryFile) Close() error {
	f.once.Do(func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.write {
			f.writer = false
		} else {
			f.readers--
		}
	})
	return nil
}
