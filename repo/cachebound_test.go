package repo

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// cacheOf opens the cache of a made-up repository below root.
func cacheOf(t *testing.T, root string, repository byte, limit int64) *diskCache {
	t.Helper()
	c, err := openDiskCache(root, strings.Repeat(string([]byte{'0' + repository}), 64), limit)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// fill puts n files of 10 kB, each used a minute after the one before, beginning at some hour of some day.
func (c *diskCache) fill(t *testing.T, n, hour int) {
	t.Helper()
	for i := range n {
		data := noise(uint64(hour*1000+i), 10_000)
		h := backend.Handle{Type: restic.IndexFile, Name: restic.Hash(data).String()}
		c.put(h, data)
		used := time.Date(2026, 1, 1, hour, i, 0, 0, time.UTC)
		if err := os.Chtimes(c.path(h), used, used); err != nil {
			t.Fatal(err)
		}
	}
}

func (c *diskCache) count(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(c.dir, "index"))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// One bound holds for the caches of all repositories: what nobody uses goes first by its age, whosever it is, and what another
// process uses never.
func TestCachesOfAllRepositoriesHaveOneBound(t *testing.T) {
	root := t.TempDir()
	const ample = 1 << 30
	oldest, used, old := cacheOf(t, root, 1, ample), cacheOf(t, root, 2, ample), cacheOf(t, root, 3, ample)
	used.fill(t, 10, 1) // the least recently used of all
	oldest.fill(t, 10, 2)
	old.fill(t, 10, 3)
	stranger := filepath.Join(root, "stranger")
	if err := os.WriteFile(stranger, noise(1, 500_000), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*diskCache{oldest, old} {
		if err := c.close(); err != nil {
			t.Fatal(err)
		}
	}

	// 350 kB in all, of which 240 kB may stay.
	mine := cacheOf(t, root, 4, 300_001)
	mine.fill(t, 5, 4)
	if a, b, c, d := oldest.count(t), used.count(t), old.count(t), mine.count(t); b != 10 || d != 5 || a+c > 14 || a != 0 && c != 10 {
		t.Errorf("files left: %d of the oldest, %d of the one in use, %d of the other, %d of mine", a, b, c, d)
	}
	// All that may go goes, and what is in use is still there.
	tiny := cacheOf(t, root, 3, 1)
	if a, b, c := oldest.count(t), used.count(t), tiny.count(t); a+c != 0 || b != 10 {
		t.Errorf("files left: %d of the oldest, %d of the one in use, %d of mine", a, b, c)
	}
	if mine.count(t) != 5 {
		t.Error("another open repository lost files")
	}
	for _, c := range []*diskCache{used, mine, tiny} {
		if err := c.close(); err != nil {
			t.Fatal(err)
		}
	}
	cacheOf(t, root, 1, 1)
	if b, d := used.count(t), mine.count(t); b+d != 0 {
		t.Errorf("files left after all were closed: %d and %d", b, d)
	}
	if _, err := os.Stat(stranger); err != nil {
		t.Error("what is not of a cache was deleted")
	}
}

// What other processes put is noticed before it is much.
func TestWhatOthersPutIntoTheCacheIsNoticed(t *testing.T) {
	root := t.TempDir()
	one, two := cacheOf(t, root, 1, 300_000), cacheOf(t, root, 1, 300_000)
	one.fill(t, 29, 1)
	two.fill(t, 29, 2)
	if n := one.count(t); n > 33 {
		t.Errorf("%d kB are kept, the limit is 300", 10*n)
	}
}
