// Package local keeps a repository in a directory, in the layout restic calls default:
//
//	config
//	keys/<id>  locks/<id>  snapshots/<id>  index/<id>
//	data/<first two digits of id>/<id>
//
// It hides how a file becomes durable at one instant: written as <name>-tmp-<random> next to its place, synced,
// renamed, and its directory synced. A power cut leaves the whole file or, at worst, a temporary one that no
// listing shows.
package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// DefaultConnections is how many concurrent operations a local disk bears well; restic's figure.
const DefaultConnections = 2

// Backend is a directory. Its methods are those of [backend.Backend].
type Backend struct {
	root        string
	fs          filesystem
	connections int
	dirMode     fs.FileMode
	fileMode    fs.FileMode
}

var _ backend.Backend = (*Backend)(nil)

// Open uses the repository at path. It writes nothing; a missing directory is [backend.ErrNotExist].
// connections 0 means [DefaultConnections].
func Open(path string, connections int) (*Backend, error) {
	return open(path, connections, osFiles{})
}

// Create makes the directories of a repository at path, which may exist. Nothing that is there is changed.
func Create(path string, connections int) (*Backend, error) {
	return create(path, connections, osFiles{})
}

func open(path string, connections int, fsys filesystem) (*Backend, error) {
	b := newBackend(path, connections, fsys)
	info, err := fsys.Stat(b.root)
	if err != nil {
		return nil, b.explain("open", "repository directory", err)
	}
	if !info.IsDir() {
		return nil, backend.Permanent(fmt.Errorf("open %s: not a directory", b.root))
	}
	// As restic does: a config that the group may read says that the group shares the repository.
	if info, err := fsys.Stat(filepath.Join(b.root, "config")); err == nil && info.Mode()&0o040 != 0 {
		b.dirMode, b.fileMode = 0o750, 0o440
	}
	return b, nil
}

func create(path string, connections int, fsys filesystem) (*Backend, error) {
	b := newBackend(path, connections, fsys)
	if err := b.makeLayout(); err != nil {
		return nil, err
	}
	return open(path, connections, fsys)
}

func newBackend(path string, connections int, fsys filesystem) *Backend {
	if connections <= 0 {
		connections = DefaultConnections
	}
	return &Backend{root: filepath.Clean(path), fs: fsys, connections: connections, dirMode: 0o700, fileMode: 0o400}
}

func (b *Backend) makeLayout() error {
	parents := b.newParents()
	dirs := []string{"", "keys", "locks", "snapshots", "index", "data"}
	for i := range 256 {
		dirs = append(dirs, filepath.Join("data", fmt.Sprintf("%02x", i)))
	}
	for _, dir := range dirs {
		if err := b.fs.MkdirAll(filepath.Join(b.root, dir), b.dirMode); err != nil {
			return b.explain("create", "a directory", err)
		}
	}
	for _, dir := range append([]string{filepath.Join(b.root, "data"), b.root}, parents...) {
		if err := b.fs.SyncDir(dir); err != nil {
			return b.explain("sync", "directory "+dir, err)
		}
	}
	return nil
}

// newParents are the directories that will get an entry when root is made: its parents up to the first that
// exists. They may belong to others and be closed to us where root exists already; then there is nothing to sync.
func (b *Backend) newParents() []string {
	var parents []string
	for dir := b.root; ; {
		if _, err := b.fs.Stat(dir); err == nil {
			return parents
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return parents
		}
		parents, dir = append(parents, parent), parent
	}
}

func (b *Backend) path(h backend.Handle) string {
	switch h.Type {
	case restic.ConfigFile:
		return filepath.Join(b.root, "config")
	case restic.PackFile:
		return filepath.Join(b.root, string(h.Type), h.Name[:2], h.Name)
	}
	return filepath.Join(b.root, string(h.Type), h.Name)
}

// Save writes data as h with the recipe of the package comment.
func (b *Backend) Save(ctx context.Context, h backend.Handle, data []byte) error {
	if err := begin(ctx, h); err != nil {
		return err
	}
	final := b.path(h)
	if info, err := b.fs.Stat(final); err == nil {
		return exists(h, info.Size(), int64(len(data)))
	}
	temp, err := b.writeTemp(ctx, final, data)
	if errors.Is(err, fs.ErrNotExist) {
		// Directories may be missing in repositories made by others; restic makes them on demand as well.
		if err = b.makeDir(filepath.Dir(final)); err == nil {
			temp, err = b.writeTemp(ctx, final, data)
		}
	}
	if err != nil {
		return b.explain("save", h.String(), err)
	}
	if err := b.publish(temp, final, h); err != nil {
		return errors.Join(b.explain("save", h.String(), err), ignoreMissing(b.fs.Remove(temp)))
	}
	return nil
}

// exists is the answer to saving a name that is taken.
func exists(h backend.Handle, have, want int64) error {
	switch {
	case h.Type == restic.ConfigFile:
		return fmt.Errorf("save config: %w", backend.ErrExist)
	case have != want:
		return fmt.Errorf("save %s: %d bytes are stored under this name, not %d: %w", h, have, want, backend.ErrExist)
	}
	return nil
}

func (b *Backend) makeDir(dir string) error {
	if err := b.fs.MkdirAll(dir, b.dirMode); err != nil {
		return err
	}
	// The new directory's own entry must survive as well as what it holds; data/ may be as new as data/ab.
	for dir != b.root && len(dir) > len(b.root) {
		dir = filepath.Dir(dir)
		if err := b.fs.SyncDir(dir); err != nil {
			return err
		}
	}
	return nil
}

// pieceSize bounds how long a cancelled context waits for the disk.
const pieceSize = 4 << 20

func (b *Backend) writeTemp(ctx context.Context, final string, data []byte) (name string, err error) {
	f, err := b.fs.CreateTemp(filepath.Dir(final), filepath.Base(final)+"-tmp-")
	if err != nil {
		return "", err
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			err = errors.Join(err, ignoreMissing(b.fs.Remove(f.Name())))
		}
	}()
	for rest := data; len(rest) > 0; {
		if err := context.Cause(ctx); err != nil {
			return "", err
		}
		n, err := f.Write(rest[:min(len(rest), pieceSize)])
		if err != nil {
			return "", err
		}
		rest = rest[n:]
	}
	if err := f.Sync(); err != nil {
		return "", err
	}
	return f.Name(), b.fs.Chmod(f.Name(), b.fileMode)
}

// publish makes the synced temporary file visible under its name.
func (b *Backend) publish(temp, final string, h backend.Handle) error {
	if h.Type == restic.ConfigFile {
		// Two processes may run init at once. A hard link is the one portable way to lose that race with an
		// error; where there are none (FAT, some network file systems) the check above has to do.
		err := b.fs.Link(temp, final)
		if err == nil {
			return errors.Join(b.fs.Remove(temp), b.fs.SyncDir(filepath.Dir(final)))
		}
		if errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	if err := b.fs.Rename(temp, final); err != nil {
		return err
	}
	return b.fs.SyncDir(filepath.Dir(final))
}

// Load reads a range.
func (b *Backend) Load(ctx context.Context, h backend.Handle, offset, length int64, fn func(io.Reader) error) (err error) {
	if err := begin(ctx, h); err != nil {
		return err
	}
	f, err := b.fs.Open(b.path(h))
	if err != nil {
		return b.explain("load", h.String(), err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return b.explain("load", h.String(), err)
	}
	n, err := backend.CheckRange(offset, length, info.Size())
	if err != nil {
		return fmt.Errorf("load %s: %w", h, err)
	}
	if err := backend.Deliver(ctx, io.NewSectionReader(f, offset, n), n, fn); err != nil {
		return fmt.Errorf("load %s: %w", h, err)
	}
	return nil
}

// Stat tells a file's size.
func (b *Backend) Stat(ctx context.Context, h backend.Handle) (backend.FileInfo, error) {
	if err := begin(ctx, h); err != nil {
		return backend.FileInfo{}, err
	}
	info, err := b.fs.Stat(b.path(h))
	if err != nil {
		return backend.FileInfo{}, b.explain("stat", h.String(), err)
	}
	return backend.FileInfo{Name: h.Name, Size: info.Size()}, nil
}

// List reads the directory of t.
func (b *Backend) List(ctx context.Context, t restic.FileType, fn func(backend.FileInfo) error) error {
	if t == restic.ConfigFile {
		return backend.Permanent(errors.New("list config: it is one file, not a directory"))
	}
	dir := filepath.Join(b.root, string(t))
	if t != restic.PackFile {
		return b.listDir(ctx, dir, fn)
	}
	entries, err := b.fs.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return b.explain("list", string(t), err)
	}
	for _, e := range entries {
		if !e.IsDir() || len(e.Name()) != 2 {
			continue
		}
		if err := b.listDir(ctx, filepath.Join(dir, e.Name()), fn); err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

func (b *Backend) listDir(ctx context.Context, dir string, fn func(backend.FileInfo) error) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	entries, err := b.fs.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return b.explain("list", filepath.Base(dir), err)
	}
	for _, e := range entries {
		if !backend.IsName(e.Name()) || e.IsDir() {
			continue
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed since the directory was read
		}
		if err != nil {
			return b.explain("list", e.Name(), err)
		}
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if err := fn(backend.FileInfo{Name: e.Name(), Size: info.Size()}); err != nil {
			return err
		}
	}
	return nil
}

// Remove deletes a file.
func (b *Backend) Remove(ctx context.Context, h backend.Handle) error {
	if err := begin(ctx, h); err != nil {
		return err
	}
	err := b.fs.Remove(b.path(h))
	if errors.Is(err, fs.ErrPermission) {
		// Immutable or append-only attributes, or a directory that belongs to somebody else.
		return fmt.Errorf("remove %s: %w: %w", h, err, backend.ErrReadOnly)
	}
	if err == nil && (h.Type == restic.IndexFile || h.Type == restic.SnapshotFile || h.Type == restic.KeyFile) {
		// prune removes an index before the packs it names, forget a snapshot before prune looks: a power cut must
		// not undo the first and keep the second. Packs and locks may come back; that is harmless, and cheaper.
		err = b.fs.SyncDir(filepath.Dir(b.path(h)))
	}
	if err != nil {
		return b.explain("remove", h.String(), err)
	}
	return nil
}

// Connections is the figure given at Open.
func (b *Backend) Connections() int { return b.connections }

// Location is the directory.
func (b *Backend) Location() string { return b.root }

// Close has nothing to release.
func (b *Backend) Close() error { return nil }

func begin(ctx context.Context, h backend.Handle) error {
	if err := h.Check(); err != nil {
		return err
	}
	return context.Cause(ctx)
}

// explain adds what a caller asks of an error.
func (b *Backend) explain(verb, what string, err error) error {
	if err == nil {
		return nil
	}
	kind := error(nil)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		kind = backend.ErrNotExist
	case errors.Is(err, fs.ErrExist):
		kind = backend.ErrExist
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS), errors.Is(err, syscall.ENOSPC),
		errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EFBIG), errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.ENAMETOOLONG):
		kind = backend.ErrPermanent
	default:
		return fmt.Errorf("%s %s: %w", verb, what, err)
	}
	return backend.Mark(fmt.Errorf("%s %s: %w", verb, what, strip(err)), kind)
}

// strip drops the path and operation that os repeats when the error's kind says it all.
func strip(err error) error {
	if e, ok := err.(*fs.PathError); ok && strings.HasPrefix(e.Path, string(os.PathSeparator)) {
		return fmt.Errorf("%s: %w", e.Path, e.Err)
	}
	return err
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Retained is not known here.
func (*Backend) Retained(context.Context, backend.Handle) (time.Time, error) { return time.Time{}, nil }
