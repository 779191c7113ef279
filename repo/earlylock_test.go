package repo

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vmkeep/vmkeep/repo/backend/backendtest"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// changes counts what was written to a store but locks.
func changes(be *backendtest.Memory) (n int) {
	for _, h := range be.Handles() {
		if h.Type != restic.LockFile && h.Type != restic.KeyFile && h.Type != restic.ConfigFile {
			n++
		}
	}
	return n
}

func storeOne(ctx context.Context, r *Repository) error {
	_, err := r.Commit(ctx, func(_ context.Context, w *Writer) (*restic.Snapshot, error) {
		_, err := w.SaveBlob([]byte("something"))
		return nil, err
	})
	return err
}

func TestAnEarlyLockLetsReadAtOnceAndWriteWhenItIsSettled(t *testing.T) {
	be := backendtest.NewMemory()
	r := create(t, be)
	started := time.Now()
	var reading time.Duration
	err := r.WithEarlyLock(t.Context(), func(ctx context.Context) error {
		reading = time.Since(started)
		if err := r.Settled(ctx); err != nil || time.Since(started) < lockSettle {
			t.Errorf("settled after %v, %v", time.Since(started), err)
		}
		return storeOne(ctx, r)
	})
	if err != nil || changes(be) == 0 || lockCount(be) != 0 {
		t.Fatalf("%v; %d files, %d locks", err, changes(be), lockCount(be))
	}
	if reading >= lockSettle || time.Since(started) < lockSettle {
		t.Errorf("reading began after %v, all was done after %v, settling takes %v", reading, time.Since(started), lockSettle)
	}
}

func TestAnEarlyLockThatDoesNotHoldStoresNothing(t *testing.T) {
	be := backendtest.NewMemory()
	r := create(t, be)
	var ended error
	err := r.WithEarlyLock(t.Context(), func(ctx context.Context) error {
		// Somebody wrote an exclusive lock at the same time.
		leaveLock(t, reopen(t, be), restic.Lock{Time: time.Now(), Exclusive: true, Hostname: "elsewhere", Username: "somebody", PID: 1})
		settled := r.Settled(ctx)
		if locked := (*LockedError)(nil); !errors.As(settled, &locked) {
			t.Errorf("settled with %v", settled)
		}
		err := storeOne(ctx, r)
		ended = context.Cause(ctx)
		return errors.Join(errors.New("it did not work"), err)
	})
	var locked *LockedError
	if !errors.As(err, &locked) || !errors.As(ended, &locked) {
		t.Errorf("%v, in the context: %v", err, ended)
	}
	if n := changes(be); n != 0 {
		t.Errorf("%d files were written", n)
	}
	if n := lockCount(be); n != 1 { // theirs
		t.Errorf("%d locks are left", n)
	}
	// The repository is as good as ever when they are gone.
	if _, err := r.UnlockAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := storeOne(t.Context(), r); err != nil || changes(be) == 0 {
		t.Errorf("%v, %d files", err, changes(be))
	}
}

func TestWaitingForALock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		be := backendtest.NewMemory()
		other := create(t, be)
		r, err := Open(t.Context(), be, OpenOptions{Password: password, LockWait: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = r.Close() })
		for _, c := range []struct {
			held time.Duration
			want bool
		}{{20 * time.Second, true}, {2 * time.Minute, false}} {
			taken, gone := make(chan struct{}), make(chan error, 1)
			go func() {
				gone <- other.WithLock(t.Context(), Exclusive, func(context.Context) error {
					close(taken)
					time.Sleep(c.held)
					return nil
				})
			}()
			<-taken
			started := time.Now()
			err := r.WithLock(t.Context(), Shared, nothing)
			var locked *LockedError
			if (err == nil) != c.want || err != nil && !errors.As(err, &locked) {
				t.Errorf("a lock held for %v: %v", c.held, err)
			}
			if waited := time.Since(started); !c.want && waited < time.Minute {
				t.Errorf("gave up after %v", waited)
			}
			if err := <-gone; err != nil {
				t.Error(err)
			}
		}
	})
}
