package repo

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/backend/backendtest"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// leaveLock writes a lock of somebody else's.
func leaveLock(t *testing.T, r *Repository, l restic.Lock) {
	t.Helper()
	doc, err := restic.EncodeLock(l)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.saveDocument(t.Context(), restic.LockFile, doc); err != nil {
		t.Fatal(err)
	}
}

func lockCount(be *backendtest.Memory) (n int) {
	for _, h := range be.Handles() {
		if h.Type == restic.LockFile {
			n++
		}
	}
	return n
}

func nothing(context.Context) error { return nil }

func TestLocksBearOneAnotherOrNot(t *testing.T) {
	for _, c := range []struct {
		theirs, ours LockMode
		want         bool
	}{{Shared, Shared, true}, {Shared, Exclusive, false}, {Exclusive, Shared, false}, {Exclusive, Exclusive, false}} {
		synctest.Test(t, func(t *testing.T) {
			be := backendtest.NewMemory()
			r, other := create(t, be), reopen(t, be)
			err := other.WithLock(t.Context(), c.theirs, func(context.Context) error {
				return r.WithLock(t.Context(), c.ours, nothing)
			})
			var locked *LockedError
			if errors.As(err, &locked) == c.want || c.want && err != nil {
				t.Errorf("%v after %v: %v", c.ours, c.theirs, err)
			}
			if locked != nil && (locked.Exclusive != (c.theirs == Exclusive) || !strings.Contains(locked.Error(), "process") || locked.Remedy() == "") {
				t.Errorf("%v", locked)
			}
			if n := lockCount(be); n != 0 {
				t.Errorf("%d locks are left", n)
			}
		})
	}
}

func TestTwoWhoWantTheRepositoryForThemselvesNeverBothGetIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		be := backendtest.NewMemory()
		a, b := create(t, be), reopen(t, be)
		inside, most := 0, 0
		results := make(chan error, 2)
		for _, r := range []*Repository{a, b} {
			go func() {
				results <- r.WithLock(t.Context(), Exclusive, func(context.Context) error {
					inside++
					most = max(most, inside)
					time.Sleep(time.Second)
					inside--
					return nil
				})
			}()
		}
		failed := 0
		for range 2 {
			if <-results != nil {
				failed++
			}
		}
		if most > 1 || failed == 0 || lockCount(be) != 0 {
			t.Errorf("%d at once, %d gave up, %d locks are left", most, failed, lockCount(be))
		}
	})
}

func TestNestedLocksAreOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		be := backendtest.NewMemory()
		r := create(t, be)
		err := r.WithLock(t.Context(), Exclusive, func(ctx context.Context) error {
			return r.WithLock(ctx, Shared, func(context.Context) error {
				if n := lockCount(be); n != 1 {
					t.Errorf("%d locks", n)
				}
				return nil
			})
		})
		if err != nil {
			t.Error(err)
		}
		err = r.WithLock(t.Context(), Shared, func(ctx context.Context) error { return r.WithLock(ctx, Exclusive, nothing) })
		if err == nil {
			t.Error("a shared lock became exclusive")
		}
	})
}

func TestALockIsRefreshedAndRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		be := backendtest.NewMemory()
		r := create(t, be)
		ctx, cancel := context.WithCancel(t.Context())
		seen := make(map[restic.ID]bool)
		err := r.WithLock(ctx, Exclusive, func(ctx context.Context) error {
			time.Sleep(30 * time.Second) // between the refreshes
			for range 60 {
				time.Sleep(time.Minute)
				locks, err := r.Locks(ctx)
				if err != nil || len(locks) != 1 || age(locks[0].Time) > lockSign || locks[0].Stale() {
					t.Fatalf("%+v, %v", locks, err)
				}
				seen[locks[0].ID] = true
			}
			cancel()
			return ctx.Err()
		})
		if !errors.Is(err, context.Canceled) || len(seen) < 10 || lockCount(be) != 0 {
			t.Errorf("%v; %d locks were seen, %d are left", err, len(seen), lockCount(be))
		}
	})
}

func TestALockThatMovesWhileItIsLookedForIsFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		be := backendtest.NewMemory()
		r := create(t, be)
		l := &held{mode: Exclusive}
		if err := r.writeLock(t.Context(), l); err != nil {
			t.Fatal(err)
		}
		// The holder refreshes after the list was made and before the file is read.
		moves := backendtest.On(backendtest.Do(1, func(ctx context.Context, _ backendtest.Op) error { return r.refresh(ctx, l) }),
			backendtest.Is(backendtest.Load), backendtest.OfType(restic.LockFile))
		locks, err := reopen(t, backendtest.Inject(be, moves)).Locks(t.Context())
		if err != nil || len(locks) != 1 || locks[0].ID != l.id {
			t.Errorf("%+v, %v", locks, err)
		}
	})
}

func TestALockThatCannotBeRefreshedEndsTheWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		be := backendtest.NewMemory()
		create(t, be)
		down := errors.New("the store is down")
		f := &outage{Memory: be}
		r := reopen(t, f)
		start := time.Now()
		err := r.WithLock(t.Context(), Shared, func(ctx context.Context) error {
			f.fail(down)
			<-ctx.Done()
			if took := time.Since(start); took < lockLost || took > lockStale {
				t.Errorf("the work was ended after %v", took)
			}
			return context.Cause(ctx)
		})
		if !errors.Is(err, ErrLockLost) || !errors.Is(err, down) {
			t.Errorf("%v", err)
		}
	})
}

func TestALockSurvivesAShortOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		be := backendtest.NewMemory()
		create(t, be)
		f := &outage{Memory: be}
		r := reopen(t, f)
		err := r.WithLock(t.Context(), Shared, func(ctx context.Context) error {
			f.fail(errors.New("down"))
			time.Sleep(20 * time.Minute)
			f.fail(nil)
			time.Sleep(20 * time.Minute)
			return context.Cause(ctx)
		})
		if err != nil || lockCount(be) != 0 {
			t.Errorf("%v, %d locks are left", err, lockCount(be))
		}
	})
}

func TestWhoSleptTooLongLooksBeforeGoingOn(t *testing.T) {
	for _, removed := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			be := backendtest.NewMemory()
			r := create(t, be)
			err := r.WithLock(t.Context(), Shared, func(ctx context.Context) error {
				locks, err := r.Locks(ctx)
				if err != nil {
					return err
				}
				// As if the machine had been asleep: the last refresh is long ago by the clock on the wall.
				old := locks[0].ID
				l := &held{mode: Shared, id: old, at: time.Now().Add(-lockLost - time.Minute)}
				if removed {
					if err := be.Remove(ctx, backend.Handle{Type: restic.LockFile, Name: old.String()}); err != nil {
						return err
					}
				}
				err = r.revive(ctx, l)
				if (err == nil) == removed {
					t.Errorf("the lock was removed: %v, reviving it: %v", removed, err)
				}
				if !removed && (l.id == old || lockCount(be) != 1) {
					t.Errorf("%d locks", lockCount(be))
				}
				return r.removeLock(ctx, l.id)
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
}

// outage is a store that is down from fail until fail(nil).
type outage struct {
	*backendtest.Memory
	err atomic.Value
}

type failure struct{ error }

func (o *outage) fail(err error) { o.err.Store(failure{err}) }

func (o *outage) state() error {
	f, _ := o.err.Load().(failure)
	return f.error
}

func (o *outage) Save(ctx context.Context, h backend.Handle, data []byte) error {
	if err := o.state(); err != nil {
		return err
	}
	return o.Memory.Save(ctx, h, data)
}

func (o *outage) Stat(ctx context.Context, h backend.Handle) (backend.FileInfo, error) {
	if err := o.state(); err != nil {
		return backend.FileInfo{}, err
	}
	return o.Memory.Stat(ctx, h)
}

// deadPID is a process that is no more.
func deadPID(t *testing.T) int {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid
}

func TestLocksOfDeadProcessesAreRemoved(t *testing.T) {
	host, user, _, _ := identity()
	dead := deadPID(t)
	for _, c := range []struct {
		what  string
		lock  restic.Lock
		age   time.Duration
		gone  bool
		stale bool
	}{
		{"ours, killed just now", restic.Lock{Hostname: host, PID: dead, ProcessTable: processTable()}, 0, true, true},
		{"restic's, killed long ago", restic.Lock{Hostname: host, PID: dead}, 10 * time.Minute, true, true},
		{"of a container with our host's name, alive", restic.Lock{Hostname: host, PID: dead}, time.Minute, false, true},
		{"of another container, alive", restic.Lock{Hostname: host, PID: dead, ProcessTable: "other"}, time.Minute, false, true},
		{"of a living process", restic.Lock{Hostname: host, PID: os.Getppid(), ProcessTable: processTable()}, time.Hour, false, true},
		{"of another host", restic.Lock{Hostname: "elsewhere", PID: dead}, time.Minute, false, false},
		{"of another host, stale", restic.Lock{Hostname: "elsewhere", PID: dead}, 2 * time.Hour, false, true},
	} {
		synctest.Test(t, func(t *testing.T) {
			be := backendtest.NewMemory()
			r := create(t, be)
			l := c.lock
			l.Exclusive, l.Username, l.Time = true, user, time.Now().Add(-c.age)
			leaveLock(t, r, l)
			err := r.WithLock(t.Context(), Shared, nothing)
			var locked *LockedError
			if (err == nil) != c.gone || !c.gone && !errors.As(err, &locked) {
				t.Errorf("%s: %v", c.what, err)
			}
			if locked != nil && (locked.Stale != (c.age > lockStale) || locked.Gone != (l.PID == dead && l.Hostname == host) ||
				!strings.Contains(locked.Error(), l.Hostname) || !strings.Contains(locked.Remedy(), "vmkeep unlock")) {
				t.Errorf("%s: %v", c.what, locked)
			}
			removed, err := r.Unlock(t.Context())
			if err != nil || !c.gone && (len(removed) == 1) != c.stale {
				t.Errorf("%s: unlock removed %v, %v", c.what, removed, err)
			}
			if removed, err := r.UnlockAll(t.Context()); err != nil || lockCount(be) != 0 {
				t.Errorf("%s: unlock all removed %v, %v", c.what, removed, err)
			}
		})
	}
}

func TestADeadSharedLockIsRemovedByWhoWouldBearIt(t *testing.T) {
	host, user, _, _ := identity()
	dead := restic.Lock{Hostname: host, Username: user, PID: deadPID(t), ProcessTable: processTable()}
	synctest.Test(t, func(t *testing.T) {
		be := backendtest.NewMemory()
		dead.Time = time.Now()
		leaveLock(t, create(t, be), dead)
		refuses := backendtest.Inject(be, backendtest.On(backendtest.Fail(1), backendtest.Is(backendtest.Remove)))
		if err := reopen(t, refuses).WithLock(t.Context(), Shared, nothing); err != nil {
			t.Errorf("a lock that does no harm cannot be removed: %v", err)
		}
		if err := reopen(t, be).WithLock(t.Context(), Shared, nothing); err != nil || lockCount(be) != 0 {
			t.Errorf("%d locks are left, %v", lockCount(be), err)
		}
	})
}

func TestUnreadableLocksCountAfterAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		be := backendtest.NewMemory()
		r := create(t, be)
		be.Replace(backend.Handle{Type: restic.LockFile, Name: restic.Hash([]byte("empty")).String()}, nil)
		if err := r.WithLock(t.Context(), Exclusive, nothing); err != nil {
			t.Errorf("an empty lock file counts: %v", err)
		}
		garbage := []byte("garbage that is not empty")
		be.Replace(backend.Handle{Type: restic.LockFile, Name: restic.Hash(garbage).String()}, garbage)
		start := time.Now()
		err := r.WithLock(t.Context(), Shared, nothing)
		var locked *LockedError
		if !errors.As(err, &locked) || !errors.Is(err, ErrDamaged) || time.Since(start) < 30*time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
	})
}
