package repo

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/vmkeep/vmkeep/repo/backend/backendtest"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// useCache reads, stores, forgets and prunes with a cache at dir, which is deleted before the n-th time that a file is loaded or
// saved. It tells whether there was something to delete, and whether there was an n-th time.
func useCache(t *testing.T, dir string, n int) (found, reached bool) {
	w := newWorld(t)
	vanish := backendtest.Do(n, func(context.Context, backendtest.Op) error {
		entries, err := os.ReadDir(dir)
		found, reached = err == nil && len(entries) > 0, true
		return removeInUse(dir)
	})
	f := backendtest.Inject(w.be, backendtest.On(vanish, backendtest.Is(backendtest.Load, backendtest.Save)))
	r, err := Open(t.Context(), f, OpenOptions{Password: password, CacheDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for i, s := range w.snaps {
		wantFiles(t, r, s, w.files[i])
	}
	s, err := commitFiles(t.Context(), r, "vm", w.next)
	if err != nil {
		t.Fatal(err)
	}
	wantFiles(t, r, s, w.next)
	if err := r.ForgetSnapshots(t.Context(), []restic.ID{w.snaps[0].ID}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Prune(t.Context(), PruneOptions{MaxUnused: Unused{None: true}}); err != nil {
		t.Fatal(err)
	}
	wantFiles(t, r, w.snaps[1], w.files[1])
	wantNoErrors(t, r)
	return found, reached
}

// removeInUse removes a directory to which somebody writes: what comes meanwhile is removed as well.
func removeInUse(dir string) (err error) {
	for range 100 {
		if err = os.RemoveAll(dir); !errors.Is(err, syscall.ENOTEMPTY) {
			return err
		}
	}
	return err
}

func TestCacheMayBeDeletedWhileItIsInUse(t *testing.T) {
	const step = 9 // keeps the test short
	times := 0
	for n := 1; ; n += step {
		found, reached := false, false
		synctest.Test(t, func(t *testing.T) { found, reached = useCache(t, filepath.Join(t.TempDir(), "cache"), n) })
		if !reached {
			break
		}
		if found {
			times++
		}
	}
	t.Logf("%d times", times)
	if times < 3 {
		t.Errorf("there was a cache to delete %d times", times)
	}
}
