package repo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// diskCache keeps index files, snapshots and packs of trees in a local directory, as they are on the store: sealed, and so
// worth nothing to whoever else reads them. A nil one keeps nothing. Nothing in it is believed: files are verified by
// their names, blobs by theirs, and what is wrong is fetched again. Failing to cache is never an error.
//
//	<dir>/<repository id>/index/<name>
//	<dir>/<repository id>/snapshots/<name>
//	<dir>/<repository id>/data/<name>
//	<dir>/CACHEDIR.TAG                  tells backup programs to leave it out
type diskCache struct {
	dir   string
	limit int64

	mu    sync.Mutex
	size  int64
	packs map[string]*sync.Once // packs fetched as a whole, or found not to be worth it, each at most once per process
}

const (
	defaultCacheSize = 2 << 30
	// maxCachedPack is the largest pack kept: a pack of trees of the usual size, at most with one large tree behind.
	maxCachedPack = 64 << 20
	// cacheTag is defined at https://bford.info/cachedir/.
	cacheTag = "Signature: 8a477f597d28d172789f06886806bc55\n# Files of backup repositories. May be deleted at any time.\n"
)

func openDiskCache(dir, id string, limit int64) (*diskCache, error) {
	if limit == 0 {
		limit = defaultCacheSize
	}
	c := &diskCache{dir: filepath.Join(dir, id), limit: limit, packs: make(map[string]*sync.Once)}
	for _, t := range []restic.FileType{restic.IndexFile, restic.SnapshotFile, restic.PackFile} {
		if err := os.MkdirAll(filepath.Join(c.dir, string(t)), 0o700); err != nil {
			return nil, fmt.Errorf("cache: %w; choose another directory, or none", err)
		}
	}
	tag := filepath.Join(dir, "CACHEDIR.TAG")
	if _, err := os.Stat(tag); errors.Is(err, fs.ErrNotExist) {
		if err := os.WriteFile(tag, []byte(cacheTag), 0o600); err != nil {
			return nil, fmt.Errorf("cache: %w; choose another directory, or none", err)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sweep()
	return c, nil
}

func (c *diskCache) path(h backend.Handle) string {
	return filepath.Join(c.dir, string(h.Type), h.Name)
}

// get returns a whole file, verified.
func (c *diskCache) get(h backend.Handle) ([]byte, bool) {
	if c == nil {
		return nil, false
	}
	data, err := os.ReadFile(c.path(h))
	if err != nil {
		return nil, false
	}
	if restic.Hash(data).String() != h.Name {
		c.drop(h)
		return nil, false
	}
	c.touch(h)
	return data, true
}

// put keeps a file. It appears as a whole or not at all; a torn one, after a power cut, its hash gives away.
func (c *diskCache) put(h backend.Handle, data []byte) {
	if c == nil || len(data) > maxCachedPack {
		return
	}
	tmp, err := os.CreateTemp(filepath.Dir(c.path(h)), "new-")
	if err != nil {
		return
	}
	_, err = tmp.Write(data)
	err = errors.Join(err, tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), c.path(h))
	}
	if err != nil {
		_ = os.Remove(tmp.Name())
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.size += int64(len(data)); c.size > c.limit {
		c.sweep()
	}
}

func (c *diskCache) drop(h backend.Handle) {
	if c != nil {
		_ = os.Remove(c.path(h))
	}
}

// touch notes that a file was used, once an hour.
func (c *diskCache) touch(h backend.Handle) {
	now := time.Now()
	if info, err := os.Stat(c.path(h)); err == nil && now.Sub(info.ModTime()) > time.Hour {
		_ = os.Chtimes(c.path(h), now, now)
	}
}

// keep removes files of a type that the repository has no more.
func (c *diskCache) keep(t restic.FileType, listed map[restic.ID]int64) {
	if c == nil {
		return
	}
	entries, err := os.ReadDir(filepath.Join(c.dir, string(t)))
	if err != nil {
		return
	}
	for _, e := range entries {
		id, err := restic.ParseID(e.Name())
		if err != nil {
			continue // being written
		}
		if _, ok := listed[id]; !ok {
			c.drop(backend.Handle{Type: t, Name: e.Name()})
		}
	}
}

// slice returns a sealed tree, caching the whole pack it lies in: who reads a tree reads its neighbours.
func (c *diskCache) slice(ctx context.Context, r *Repository, h backend.Handle, b restic.Blob) ([]byte, bool) {
	if c == nil {
		return nil, false
	}
	if sealed, ok := c.readAt(h, b); ok {
		return sealed, true
	}
	c.mu.Lock()
	once := c.packs[h.Name]
	if once == nil {
		once = new(sync.Once)
		c.packs[h.Name] = once
	}
	c.mu.Unlock()
	once.Do(func() {
		var pack []byte
		err := r.be.Load(ctx, h, 0, 0, func(rd io.Reader) (err error) {
			pack, err = io.ReadAll(io.LimitReader(rd, maxCachedPack+1))
			return err
		})
		if err == nil && len(pack) <= maxCachedPack && restic.Hash(pack).String() == h.Name {
			c.put(h, pack)
		}
	})
	return c.readAt(h, b)
}

func (c *diskCache) readAt(h backend.Handle, b restic.Blob) ([]byte, bool) {
	f, err := os.Open(c.path(h))
	if err != nil {
		return nil, false
	}
	defer f.Close()
	sealed := make([]byte, b.Length)
	if _, err := f.ReadAt(sealed, int64(b.Offset)); err != nil {
		return nil, false
	}
	c.touch(h)
	return sealed, true
}

// sweep measures the cache and, if it is too large, deletes what was not used for longest until a fifth is free.
// It also deletes what an interrupted put left. The caller holds the lock.
func (c *diskCache) sweep() {
	type file struct {
		path string
		size int64
		used time.Time
	}
	var files []file
	c.size = 0
	_ = filepath.WalkDir(c.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return nil
		}
		if strings.HasPrefix(d.Name(), "new-") && time.Since(info.ModTime()) > time.Hour {
			_ = os.Remove(path)
			return nil
		}
		files = append(files, file{path, info.Size(), info.ModTime()})
		c.size += info.Size()
		return nil
	})
	if c.size <= c.limit {
		return
	}
	slices.SortFunc(files, func(a, b file) int { return a.used.Compare(b.used) })
	for _, f := range files {
		if c.size <= c.limit/5*4 {
			return
		}
		if os.Remove(f.path) == nil {
			c.size -= f.size
		}
	}
}
