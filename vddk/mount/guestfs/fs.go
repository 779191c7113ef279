package guestfs

import (
	"container/list"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"iter"
	"runtime"
	"strings"
	"sync"

	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/vddk/mount/device"
)

// FS is a guest's file system opened for reading, safe for concurrent use. It needs no closing: it holds memory
// only (bounded, see the package's constants) and the device below.
type FS struct {
	d    Driver
	info Info
	dev  device.Device // what Run.Disk counts on, unless the driver is a Locator
	dirs *dirs
}

// Open opens format f on the sources (one, but for formats that span devices), guarded against what the bytes
// may make the format do.
func Open(f Format, on []*Source) (fs *FS, err error) {
	defer guard(&err)
	d, err := f.Open(on)
	if err != nil {
		return nil, err
	}
	return &FS{d: d, info: d.Info(), dev: on[0].Device(), dirs: newDirs()}, nil
}

// Locate turns an extent of the volume, as [Run] gives it, into pieces of the machine's disks, in order.
func (f *FS) Locate(e extent.Extent, emit func(device.Piece) bool) (err error) {
	defer guard(&err)
	if l, ok := f.d.(Locator); ok {
		return l.Locate(e, emit)
	}
	return f.dev.Locate(e, emit)
}

// Probe asks f whether src is of its format, guarded likewise: damage in the first look is ErrUnknown's business
// of the caller.
func Probe(f Format, src *Source) (id Ident, err error) {
	defer guard(&err)
	return f.Probe(src)
}

// guard turns a panic over hostile bytes into ErrDamaged. Errors of the runtime that are not about bytes
// (out of memory, concurrent map access) are fatal in Go and pass by.
func guard(err *error) {
	if r := recover(); r != nil {
		*err = caught(r)
	}
}

func caught(r any) error {
	var re runtime.Error
	if e, ok := r.(error); ok && errors.As(e, &re) {
		return fmt.Errorf("%w: %w", ErrDamaged, re)
	}
	return fmt.Errorf("%w: %v", ErrDamaged, r)
}

// Info describes the file system.
func (f *FS) Info() Info { return f.info }

// Root is the directory at the top.
func (f *FS) Root() ID { return f.d.Root() }

// Stat tells what is known of a file.
func (f *FS) Stat(id ID) (a Attr, err error) {
	defer guard(&err)
	return f.d.Stat(id)
}

// Readlink is the target of a symbolic link, as the guest stores it. Nothing follows links: a target names a
// place in the guest and never one outside.
func (f *FS) Readlink(id ID) (target string, err error) {
	defer guard(&err)
	return f.d.Readlink(id)
}

// Xattrs are the extended attributes of a file, in no order.
func (f *FS) Xattrs(id ID) (x []Xattr, err error) {
	defer guard(&err)
	return f.d.Xattrs(id)
}

// Streams are the named streams of a file beside its content.
func (f *FS) Streams(id ID) (s []Stream, err error) {
	defer guard(&err)
	return f.d.Streams(id)
}

// Open opens the content of a regular file (stream "") or one of its named streams.
func (f *FS) Open(id ID, stream string) (file File, err error) {
	defer guard(&err)
	file, err = f.d.Open(id, stream)
	if err != nil {
		return nil, err
	}
	return guarded{file}, nil
}

type guarded struct{ f File }

func (g guarded) Size() int64 { return g.f.Size() }

func (g guarded) ReadAt(p []byte, off int64) (n int, err error) {
	defer guard(&err)
	return g.f.ReadAt(p, off)
}

func (g guarded) Runs() (r []Run, err error) {
	defer guard(&err)
	return g.f.Runs()
}

// ReadDir gives the entries of a directory after the cursor (0: from the start), in the order of the format.
// An error ends it.
func (f *FS) ReadDir(dir ID, after Cursor) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		stopped := false
		err := f.readDir(dir, after, func(e Entry) bool {
			stopped = !yield(e, nil)
			return !stopped
		})
		if err != nil && !stopped {
			yield(Entry{}, err)
		}
	}
}

// readDir guards the driver but not the caller's loop body, whose panics are its own.
func (f *FS) readDir(dir ID, after Cursor, yield func(Entry) bool) (err error) {
	outside := false
	defer func() {
		if outside {
			return // the panic goes on
		}
		if r := recover(); r != nil {
			err = caught(r)
		}
	}()
	var bad *Entry
	err = f.d.ReadDir(dir, after, func(e Entry) bool {
		if !validName(e.Name) {
			bad = &e
			return true
		}
		outside = true
		on := yield(e)
		outside = false
		return on
	})
	if err == nil && bad != nil {
		err = Damaged("directory %v holds the name %q", dir, bad.Name)
	}
	return err
}

// validName reports whether a name can be one element of a path. No guest can make others; bytes that claim them
// must not lead a restore out of its directory.
func validName(s string) bool {
	return s != "" && s != "." && s != ".." && !strings.ContainsAny(s, "/\x00")
}

// Lookup finds a name in a directory. Where the format folds case, an exact match wins over others.
func (f *FS) Lookup(dir ID, name string) (ID, error) {
	names, err := f.dirs.get(dir, func(add func(Entry) bool) error { return f.readDir(dir, 0, add) })
	if id, ok := names[name]; ok { // also where the rest of the directory is damaged
		return id, nil
	}
	if err != nil {
		return ID{}, err
	}
	if names == nil { // too large to keep
		return f.scan(dir, name)
	}
	if f.info.FoldCase {
		return f.scan(dir, name)
	}
	return ID{}, notExist(name)
}

func (f *FS) scan(dir ID, name string) (ID, error) {
	var found, folded *ID
	err := f.readDir(dir, 0, func(e Entry) bool {
		switch {
		case e.Name == name:
			found = &e.ID
		case f.info.FoldCase && folded == nil && strings.EqualFold(e.Name, name):
			folded = &e.ID
		}
		return found == nil
	})
	switch {
	case found != nil:
		return *found, nil
	case err != nil:
		return ID{}, err
	case folded != nil:
		return *folded, nil
	}
	return ID{}, notExist(name)
}

func notExist(name string) error { return fmt.Errorf("%q: %w", name, iofs.ErrNotExist) }

// Walk finds a path from the root: names separated by "/", empty ones and "." passed over. Symbolic links are
// not followed and ".." is refused, so that the path stays inside the file system.
func (f *FS) Walk(path string) (ID, error) {
	id := f.Root()
	for name := range strings.SplitSeq(path, "/") {
		switch name {
		case "", ".":
			continue
		case "..":
			return ID{}, fmt.Errorf("%q: parent directories are not resolved: %w", path, iofs.ErrInvalid)
		}
		next, err := f.Lookup(id, name)
		if err != nil {
			return ID{}, fmt.Errorf("%s: %w", path, err)
		}
		id = next
	}
	return id, nil
}

// NewReader reads a file from its start in pieces of 1 MiB, whatever the sizes its caller asks for.
func NewReader(f File) io.Reader {
	return &reader{r: io.NewSectionReader(f, 0, f.Size()), buf: nil}
}

type reader struct {
	r   *io.SectionReader
	buf []byte // what was read and not yet given
	mem []byte
}

func (r *reader) Read(p []byte) (int, error) {
	if len(r.buf) == 0 {
		if len(p) >= windowLen {
			return r.r.Read(p)
		}
		if r.mem == nil {
			r.mem = make([]byte, min(windowLen, max(r.r.Size(), 1)))
		}
		n, err := r.r.Read(r.mem)
		if n == 0 {
			return 0, err
		}
		r.buf = r.mem[:n]
	}
	n := copy(p, r.buf)
	r.buf = r.buf[n:]
	return n, nil
}

// dirs keeps the names of directories walked through lately: a path walk through a directory of 30,000 entries
// must not scan it for every name.
type dirs struct {
	mu    sync.Mutex
	use   *list.List // *names
	at    map[ID]*list.Element
	total int
}

type names struct {
	dir ID
	ids map[string]ID
}

// Names kept of one directory, and of all together (about 100 bytes each).
const (
	maxNames    = 100_000
	maxAllNames = 200_000
)

func newDirs() *dirs { return &dirs{use: list.New(), at: map[ID]*list.Element{}} }

// get returns the names of dir, reading them when they are not kept; nil when there are too many, and with an error
// those that were read before it.
func (d *dirs) get(dir ID, read func(func(Entry) bool) error) (map[string]ID, error) {
	d.mu.Lock()
	if e := d.at[dir]; e != nil {
		d.use.MoveToFront(e)
		ids := e.Value.(*names).ids
		d.mu.Unlock()
		return ids, nil
	}
	d.mu.Unlock()

	ids, small := map[string]ID{}, true
	err := read(func(e Entry) bool {
		if _, twice := ids[e.Name]; !twice {
			ids[e.Name] = e.ID
		}
		small = len(ids) <= maxNames
		return small
	})
	if err != nil {
		return ids, err
	}
	if !small {
		return nil, nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.at[dir] == nil {
		d.at[dir] = d.use.PushFront(&names{dir, ids})
		d.total += len(ids) + 1
	}
	for d.total > maxAllNames {
		old := d.use.Remove(d.use.Back()).(*names)
		delete(d.at, old.dir)
		d.total -= len(old.ids) + 1
	}
	return ids, nil
}
