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
//	<dir>/<repository id>/lock          is locked, shared, by every process that uses this repository's cache
//	<dir>/CACHEDIR.TAG                  tells backup programs to leave it out
//
// The caches of all repositories have one bound. Whoever finds it exceeded deletes, of its own repository and of those that
// nobody uses, what was not used for longest.
type diskCache struct {
	root  string   // of the caches of all repositories
	dir   string   // of this one
	limit int64    // of all, in bytes
	lock  *os.File // nil where the file system has no locks

	mu    sync.Mutex
	size  int64                 // of all, as of the last sweep, and what was put since
	fresh int64                 // put since
	packs map[string]*sync.Once // packs fetched as a whole, or found not to be worth it, each at most once per process
}

const (
	defaultCacheSize = 2 << 30
	// maxCachedPack is the largest pack kept: a pack of trees of the usual size, at most with one large tree behind.
	maxCachedPack = 64 << 20
	// cacheTag is defined at https://bford.info/cachedir/.
	cacheTag  = "Signature: 8a477f597d28d172789f06886806bc55\n# Files of backup repositories. May be deleted at any time.\n"
	cacheLock = "lock"
	// sweepShare of the limit is what a process puts at most before it measures anew what others have put.
	sweepShare = 16
)

func openDiskCache(dir, id string, limit int64) (*diskCache, error) {
	if limit == 0 {
		limit = defaultCacheSize
	}
	c := &diskCache{root: dir, dir: filepath.Join(dir, id), limit: limit, packs: make(map[string]*sync.Once)}
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
	c.lock, _ = lockCache(c.dir, lockShared)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sweep()
	return c, nil
}

// close lets others delete from this repository's cache.
func (c *diskCache) close() error {
	if c == nil || c.lock == nil {
		return nil
	}
	return c.lock.Close()
}

// lockKind is how a cache is locked: together with others who use it, or alone.
type lockKind int

const (
	lockShared lockKind = iota
	lockAlone
)

// lockCache locks the cache of a repository without waiting, until the file is closed.
func lockCache(dir string, kind lockKind) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, cacheLock), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := lockFile(f, kind); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
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
	c.size += int64(len(data))
	if c.fresh += int64(len(data)); c.size > c.limit || c.fresh > c.limit/sweepShare {
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

// cached is a file of a cache.
type cached struct {
	path string
	size int64
	used time.Time
}

// sweep measures all caches and, if they are too large, deletes what was not used for longest until a fifth is free: of
// this repository, and of those that no process uses. The caller holds the lock.
func (c *diskCache) sweep() {
	c.size, c.fresh = 0, 0
	var files []cached
	others := map[string][]cached{}
	entries, _ := os.ReadDir(c.root) // nothing is found, nothing is deleted
	for _, e := range entries {
		dir := filepath.Join(c.root, e.Name())
		if _, err := restic.ParseID(e.Name()); dir != c.dir && (err != nil || !e.IsDir()) {
			continue // not ours
		}
		found := filesIn(dir)
		for _, f := range found {
			c.size += f.size
		}
		if dir == c.dir {
			files = append(files, found...)
		} else {
			others[dir] = found
		}
	}
	if c.size <= c.limit {
		return
	}
	for dir, found := range others {
		if lock, err := lockCache(dir, lockAlone); err == nil {
			defer lock.Close()
			files = append(files, found...)
		}
	}
	slices.SortFunc(files, func(a, b cached) int { return a.used.Compare(b.used) })
	for _, f := range files {
		if c.size <= c.limit/5*4 {
			return
		}
		if os.Remove(f.path) == nil {
			c.size -= f.size
		}
	}
}

// filesIn lists the files of one repository's cache. What an interrupted put left goes.
func filesIn(dir string) (files []cached) {
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() == cacheLock {
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
		files = append(files, cached{path, info.Size(), info.ModTime()})
		return nil
	})
	return files
}
