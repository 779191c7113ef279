package hotadd

import (
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
)

// gone lists what a device says that was taken away.
func gone() []error { return []error{syscall.EIO, syscall.ENXIO, syscall.ENODEV} }

// direct reads and writes past the page cache, which a backup would only fill; through it where the kernel does not
// allow that for an offset.
type direct struct {
	*os.File          // through the cache
	past     *os.File // nil: not possible
	refused  atomic.Bool
}

// open opens a device.
func (t *Transport) open(name string, write bool) (device, error) {
	flag := os.O_RDONLY
	if write {
		flag = os.O_RDWR
	}
	path := filepath.Join(t.dev(), name)
	f, err := os.OpenFile(path, flag, 0)
	if err != nil {
		return nil, err
	}
	d := &direct{File: f}
	if past, err := os.OpenFile(path, flag|syscall.O_DIRECT, 0); err == nil {
		d.past = past
	}
	if t.wrap != nil {
		return t.wrap(d), nil
	}
	return d, nil
}

func (d *direct) ReadAt(p []byte, off int64) (int, error) {
	if d.past != nil && !d.refused.Load() {
		n, err := d.past.ReadAt(p, off)
		if !errors.Is(err, syscall.EINVAL) {
			return n, err
		}
		d.refused.Store(true)
	}
	return d.File.ReadAt(p, off)
}

func (d *direct) WriteAt(p []byte, off int64) (int, error) {
	if d.past != nil && !d.refused.Load() {
		n, err := d.past.WriteAt(p, off)
		if !errors.Is(err, syscall.EINVAL) {
			return n, err
		}
		d.refused.Store(true)
	}
	return d.File.WriteAt(p, off)
}

func (d *direct) Close() error {
	err := d.File.Close()
	if d.past != nil {
		err = errors.Join(err, d.past.Close())
	}
	return err
}
