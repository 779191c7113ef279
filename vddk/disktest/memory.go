package disktest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/vddk"
)

// grain is the unit in which Memory allocates, as most transports report.
const grain = 64 << 10

// Memory is a Transport to sparse disks in memory. The zero value has none.
type Memory struct {
	mu    sync.Mutex
	disks map[string]*Image
}

// Image is the content of a disk of Memory. Its methods do not care about sectors.
type Image struct {
	size   int64
	mu     sync.RWMutex
	grains map[int64][]byte // by index; absent: zeros
	locked bool             // open for writing
	cut    int              // counts Cut
}

// Name is "memory".
func (m *Memory) Name() string { return "memory" }

// Add puts an empty disk of size bytes at path.
func (m *Memory) Add(path string, size int64) *Image {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.disks == nil {
		m.disks = map[string]*Image{}
	}
	i := &Image{size: size, grains: map[int64][]byte{}}
	m.disks[path] = i
	return i
}

// Open opens the disk at spec.Path.
func (m *Memory) Open(ctx context.Context, spec vddk.Spec) (vddk.Disk, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	m.mu.Lock()
	i := m.disks[spec.Path]
	m.mu.Unlock()
	if i == nil {
		return nil, fmt.Errorf("%s: %w", spec.Path, vddk.ErrNotFound)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if spec.Write && i.locked {
		return nil, fmt.Errorf("%s: %w", spec.Path, vddk.ErrLocked)
	}
	i.locked = i.locked || spec.Write
	return &memoryDisk{Image: i, ctx: ctx, spec: spec, cut: i.cut}, nil
}

// ReadAt reads; behind the end there is io.EOF.
func (i *Image) ReadAt(p []byte, off int64) (int, error) {
	i.mu.RLock()
	defer i.mu.RUnlock()
	n := 0
	for n < len(p) && off+int64(n) < i.size {
		at := off + int64(n)
		in := at % grain
		k := int(min(int64(len(p)-n), grain-in, i.size-at))
		if g := i.grains[at/grain]; g != nil {
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

// WriteAt writes; nothing may lie behind the end. Zeros written into a hole leave the hole.
func (i *Image) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > i.size {
		return 0, fmt.Errorf("write of %d bytes at %d, beyond the end at %d: %w", len(p), off, i.size, io.ErrShortWrite)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	n := 0
	for n < len(p) {
		at := off + int64(n)
		in := at % grain
		k := int(min(int64(len(p)-n), grain-in))
		g := i.grains[at/grain]
		if g == nil && len(bytes.TrimLeft(p[n:n+k], "\x00")) > 0 {
			g = make([]byte, grain)
			i.grains[at/grain] = g
		}
		if g != nil {
			copy(g[in:], p[n:n+k])
		}
		n += k
	}
	return n, nil
}

// Size is the capacity in bytes.
func (i *Image) Size() int64 { return i.size }

// Cut makes every opening that exists fail as if its connection were lost.
func (i *Image) Cut() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.cut++
}

func (i *Image) allocated(e extent.Extent) extent.Set {
	i.mu.RLock()
	defer i.mu.RUnlock()
	var es []extent.Extent
	for k := e.Off / grain; k*grain < e.End(); k++ {
		if i.grains[k] != nil {
			es = append(es, extent.Extent{Off: k * grain, Len: grain})
		}
	}
	return extent.Of(es...).Clip(extent.Extent{Len: i.size})
}

// memoryDisk is one opening of an Image.
type memoryDisk struct {
	*Image
	ctx  context.Context
	spec vddk.Spec
	cut  int // of the image at opening

	use    sync.RWMutex // held for reading by calls in flight
	closed bool
}

var (
	_ vddk.Disk      = (*memoryDisk)(nil)
	_ vddk.Allocator = (*memoryDisk)(nil)
	_ vddk.Flusher   = (*memoryDisk)(nil)
)

// enter admits a call; leave with use.RUnlock.
func (d *memoryDisk) enter(n int, off int64) error {
	if off < 0 || off%vddk.SectorSize != 0 || n%vddk.SectorSize != 0 {
		return fmt.Errorf("%d bytes at %d: %w", n, off, vddk.ErrAlignment)
	}
	d.use.RLock()
	d.mu.RLock()
	cut := d.Image.cut != d.cut
	d.mu.RUnlock()
	var err error
	switch {
	case d.closed:
		err = vddk.ErrClosed
	case d.ctx.Err() != nil:
		err = context.Cause(d.ctx)
	case cut:
		err = vddk.ErrConnectionLost
	default:
		return nil
	}
	d.use.RUnlock()
	return fmt.Errorf("%s: %w", d.spec.Path, err)
}

func (d *memoryDisk) ReadAt(p []byte, off int64) (int, error) {
	if err := d.enter(len(p), off); err != nil {
		return 0, err
	}
	defer d.use.RUnlock()
	if off >= d.size {
		return 0, io.EOF
	}
	return d.Image.ReadAt(p, off)
}

func (d *memoryDisk) WriteAt(p []byte, off int64) (int, error) {
	if err := d.enter(len(p), off); err != nil {
		return 0, err
	}
	defer d.use.RUnlock()
	if !d.spec.Write {
		return 0, fmt.Errorf("%s: %w", d.spec.Path, vddk.ErrReadOnly)
	}
	return d.Image.WriteAt(p, off)
}

func (d *memoryDisk) Allocated(ctx context.Context, e extent.Extent) (extent.Set, error) {
	if err := d.enter(0, 0); err != nil {
		return nil, err
	}
	defer d.use.RUnlock()
	return d.allocated(e), context.Cause(ctx)
}

func (d *memoryDisk) Flush(ctx context.Context) error {
	if err := d.enter(0, 0); err != nil {
		return err
	}
	defer d.use.RUnlock()
	return context.Cause(ctx)
}

func (d *memoryDisk) Describe() string { return "memory " + d.spec.Path }

func (d *memoryDisk) Close() error {
	d.use.Lock()
	defer d.use.Unlock()
	if d.closed || !d.spec.Write {
		d.closed = true
		return nil
	}
	d.closed = true
	d.mu.Lock()
	defer d.mu.Unlock()
	d.locked = false
	if d.Image.cut != d.cut { // nobody knows what became of the writes
		return fmt.Errorf("close %s: %w", d.spec.Path, vddk.ErrConnectionLost)
	}
	return nil
}
