package repo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// Locks, as restic keeps them: files in the repository, each naming a process. Shared ones bear one another, an exclusive
// one bears none. To lock is to look, to write one's own, to wait until others' writes are visible, and to look again.
const (
	lockSettle  = 200 * time.Millisecond // between writing a lock and looking again
	lockRefresh = 5 * time.Minute        // a holder writes a new lock this often
	lockStale   = 30 * time.Minute       // a lock older than this nobody refreshes any more
	// lockLost is when a holder who could not refresh must assume that others take its lock for stale.
	lockLost = lockStale - lockRefresh*3/2
	// lockTick is how often the holder looks at the clock on the wall. A timer alone would sleep as long as the machine.
	lockTick = time.Minute
	// lockSign is the age below which a lock's holder was alive for sure, whatever its process ID says: another
	// container may share the host's name but not its process table.
	lockSign = lockRefresh + lockTick
)

// LockMode is Shared or Exclusive.
type LockMode int

// Shared lets others read and add; Exclusive is needed to delete.
const (
	Shared LockMode = iota
	Exclusive
)

func (m LockMode) String() string {
	if m == Exclusive {
		return "exclusive"
	}
	return "shared"
}

// ErrLockLost ends the context of [Repository.WithLock]: the lock could not be refreshed, others may ignore it by now.
var ErrLockLost = errors.New("the repository's lock was lost: it could not be refreshed in time")

// LockedError says that another process works on the repository.
type LockedError struct {
	Holder    string // user@host, process
	Exclusive bool
	Since     time.Time
	Age       time.Duration
	Stale     bool // nobody refreshed the lock for 30 minutes
	Gone      bool // it names a process of this host, and there is none
	ID        restic.ID
}

func (e *LockedError) Error() string { return "the repository is locked: " + e.Detail() }

// Detail says who holds what.
func (e *LockedError) Detail() string {
	kind := "a shared lock"
	if e.Exclusive {
		kind = "an exclusive lock"
	}
	return fmt.Sprintf("%s holds %s, refreshed %s ago (%s)", e.Holder, kind, e.Age.Round(time.Second), e.ID.Short())
}

// Remedy is what the user can do about it.
func (e *LockedError) Remedy() string {
	switch {
	case e.Gone:
		return fmt.Sprintf("that process does not exist on this host any more: if it was none of a container's, run `vmkeep unlock`; in %s the lock goes by itself",
			max(lockSign-e.Age, 0).Round(time.Second))
	case e.Stale:
		return "nobody has refreshed it for 30 minutes: make sure that process is gone, then run `vmkeep unlock`"
	}
	return "wait until it is done; if you know that process is gone, run `vmkeep unlock --all`"
}

// LockInfo is a lock in the repository. Err is set, and all but ID unset, if it cannot be read.
type LockInfo struct {
	restic.Lock
	ID  restic.ID
	Err error
}

// Stale reports whether the lock's holder is gone, as restic unlock judges: not refreshed for 30 minutes, or a process
// of this host that does not exist.
func (l LockInfo) Stale() bool {
	return l.Err == nil && (age(l.Time) > lockStale || l.ofDeadProcess())
}

// age is by the clock on the wall, which goes on while a machine sleeps.
func age(t time.Time) time.Duration { return time.Now().Round(0).Sub(t.Round(0)) }

// ofDeadProcess reports whether the holder was a process of this host and is no more.
func (l LockInfo) ofDeadProcess() bool {
	host, _, _, _ := identity()
	if l.Hostname != host || l.PID <= 0 || l.PID == os.Getpid() {
		return false
	}
	p, err := os.FindProcess(l.PID)
	if err != nil {
		return true
	}
	defer p.Release()
	return errors.Is(p.Signal(syscall.Signal(0)), os.ErrProcessDone)
}

// abandoned reports whether a lock may be removed without asking: its process is gone for sure. That a process ID does not
// exist here proves it at once if the lock names our process table, and otherwise when it should have been refreshed.
func (l LockInfo) abandoned() bool {
	if l.Err != nil || !l.ofDeadProcess() {
		return false
	}
	table := processTable()
	return table != "" && l.ProcessTable == table || age(l.Time) > lockSign
}

// processTable names the process table of this boot and container; empty where the system does not tell.
func processTable() string {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	ns, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return ""
	}
	return restic.Hash([]byte(strings.TrimSpace(string(boot)) + ns)).Short()
}

func (l LockInfo) conflict() *LockedError {
	e := &LockedError{
		Holder: fmt.Sprintf("%s@%s (process %d)", l.Username, l.Hostname, l.PID), Exclusive: l.Exclusive,
		Since: l.Time, Age: age(l.Time), Stale: age(l.Time) > lockStale, Gone: l.ofDeadProcess(), ID: l.ID,
	}
	if l.Err != nil {
		e.Holder, e.Exclusive, e.Age, e.Stale, e.Gone = "somebody whose lock cannot be read", true, 0, false, false
	}
	return e
}

// Locks lists the locks in the repository.
func (r *Repository) Locks(ctx context.Context) ([]LockInfo, error) {
	for attempt := 0; ; attempt++ {
		out, moved, err := r.listLocks(ctx)
		// A lock that goes while it is looked at may have been refreshed: its new file was not in the list.
		if err != nil || !moved || attempt == 4 {
			return out, err
		}
	}
}

// listLocks lists the locks once; moved tells that one was gone before it could be read.
func (r *Repository) listLocks(ctx context.Context) (out []LockInfo, moved bool, err error) {
	names, err := r.list(ctx, restic.LockFile)
	if err != nil {
		return nil, false, err
	}
	for id, size := range names {
		if size == 0 {
			continue // a lock that was being written when its writer crashed; restic ignores them too
		}
		l := LockInfo{ID: id}
		l.Lock, l.Err = r.loadLock(ctx, id)
		switch {
		case errors.Is(l.Err, backend.ErrNotExist):
			moved = true
		case l.Err == nil || errors.Is(l.Err, ErrDamaged):
			out = append(out, l)
		default:
			return nil, false, l.Err
		}
	}
	slices.SortFunc(out, func(a, b LockInfo) int { return a.Time.Compare(b.Time) })
	return out, moved, nil
}

func (r *Repository) loadLock(ctx context.Context, id restic.ID) (restic.Lock, error) {
	h := backend.Handle{Type: restic.LockFile, Name: id.String()}
	sealed, err := loadWhole(ctx, r.be.Backend, h)
	if err != nil {
		return restic.Lock{}, err
	}
	doc, err := r.openDocument(h, sealed)
	if err != nil {
		return restic.Lock{}, err
	}
	l, err := restic.DecodeLock(doc)
	if err != nil {
		return restic.Lock{}, fmt.Errorf("%s: %w: %w", h, ErrDamaged, err)
	}
	return l, nil
}

// held is a lock this process holds. Its file's name changes with every refresh.
type held struct {
	mode LockMode
	id   restic.ID
	at   time.Time // of the last refresh, by the clock on the wall
}

// lockKey finds the held mode in a context, per repository.
type lockKey struct{ r *Repository }

// WithLock runs fn while this process holds a lock on the repository. Inside fn's context further calls, of methods
// that lock themselves too, take no second lock. The context ends, with [ErrLockLost] as its cause, when the lock cannot be refreshed in time.
// The lock is removed when fn returns or panics, also after ctx ended. If others hold a lock that does not bear this one,
// WithLock fails with a [LockedError]; locks of processes of this host that are gone are removed.
func (r *Repository) WithLock(ctx context.Context, mode LockMode, fn func(ctx context.Context) error) error {
	return r.hold(ctx, mode, func(ctx context.Context, l *held) error {
		return r.settle(ctx, l)
	}, fn)
}

// WithEarlyLock is WithLock with a shared lock for an fn that begins by reading: it begins once the lock is written, while it
// is still to be seen whether someone wrote a conflicting one at the same time. Until that is known, what fn stores waits; if
// there is one, fn's context ends with the [LockedError] as its cause, and nothing was stored. What fn reads meanwhile is what it would read later: who wants
// to delete has seen our lock, or we theirs.
func (r *Repository) WithEarlyLock(ctx context.Context, fn func(ctx context.Context) error) error {
	return r.hold(ctx, Shared, nil, fn)
}

// Settled waits until it is known whether the lock that an early fn runs under holds, for what fn changes elsewhere than in the
// repository. ctx is fn's; what it has ended with is returned, a [LockedError] if the lock does not hold.
func (r *Repository) Settled(ctx context.Context) error {
	r.be.mu.RLock()
	defer r.be.mu.RUnlock()
	return context.Cause(ctx)
}

// hold writes a lock, runs fn and removes the lock. The lock is settled by before, or, if that is nil, beside fn.
func (r *Repository) hold(ctx context.Context, mode LockMode, before func(context.Context, *held) error, fn func(ctx context.Context) error) (err error) {
	if have, ok := ctx.Value(lockKey{r}).(LockMode); ok {
		if have < mode {
			return errors.New("an exclusive lock was asked for inside of a shared one")
		}
		return fn(ctx)
	}
	if r.be.noLock {
		if mode == Exclusive {
			return ErrNoLock
		}
		return fn(Unlocked(ctx, r))
	}
	l := &held{mode: mode}
	if err := r.announce(ctx, l); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(context.WithValue(ctx, lockKey{r}, mode))
	var keeper sync.WaitGroup
	defer func() {
		lost := errors.Is(context.Cause(ctx), ErrLockLost)
		cancel(nil)
		keeper.Wait()
		rm, stop := lastly(ctx)
		defer stop()
		if rmErr := r.removeLock(rm, l.id); rmErr != nil && !lost {
			err = errors.Join(err, fmt.Errorf("remove our lock %s: %w", l.id.Short(), rmErr))
		}
		if lost && err != nil && !errors.Is(err, ErrLockLost) {
			err = fmt.Errorf("%w: %w", ErrLockLost, err)
		}
	}()
	if before != nil {
		if err := before(ctx, l); err != nil {
			return err
		}
	}
	r.lookAgain() // what was known before may be outdated
	settled := make(chan error, 1)
	if before == nil {
		r.be.mu.Lock() // until it is settled
	}
	keeper.Go(func() {
		if before == nil {
			err := r.settle(ctx, l)
			if err != nil { // before anything that waits is let through
				cancel(err)
				r.failSession(err)
			}
			r.be.mu.Unlock()
			settled <- err
			if err != nil {
				return
			}
		}
		r.refreshLoop(ctx, l, cancel)
	})
	err = fn(ctx)
	if before == nil && err == nil {
		return <-settled
	}
	if cause := context.Cause(ctx); before == nil && unprotected(cause) {
		return cause // whatever fn made of it
	}
	return err
}

// unprotected reports whether a context has ended because there is no lock any more, or never was one.
func unprotected(cause error) bool {
	var conflict *LockedError
	return errors.Is(cause, ErrLockLost) || errors.As(cause, &conflict)
}

// Unlocked is a context in which methods that need a shared lock take none: for stores that cannot be written, where nobody
// can prune either. Methods that need an exclusive lock fail in it.
func Unlocked(ctx context.Context, r *Repository) context.Context {
	return context.WithValue(ctx, lockKey{r}, Shared)
}

// announce writes a lock file if no other lock conflicts. If one does, it tries again for as long as
// [OpenOptions.LockWait] says.
func (r *Repository) announce(ctx context.Context, l *held) error {
	const shortest, longest = 5 * time.Second, time.Minute // restic's
	started := time.Now()
	for wait := shortest; ; wait = min(2*wait, longest) {
		err := r.noConflict(ctx, l)
		var conflict *LockedError
		left := r.lockWait - time.Since(started)
		if !errors.As(err, &conflict) || left <= 0 {
			if err != nil {
				return err
			}
			return r.writeLock(ctx, l)
		}
		if err := pause(ctx, min(wait, left)); err != nil {
			return err
		}
	}
}

// settle waits until locks written at the same time are visible, and looks for them.
func (r *Repository) settle(ctx context.Context, l *held) error {
	if err := pause(ctx, lockSettle); err != nil {
		return err
	}
	return r.noConflict(ctx, l)
}

// noConflict fails with a LockedError if another lock does not bear l. A lock that cannot be read may be half visible
// on a slow store: it gets 35 s before it counts as a conflict.
func (r *Repository) noConflict(ctx context.Context, l *held) error {
	for attempt := 0; ; attempt++ {
		locks, err := r.Locks(ctx)
		if err != nil {
			return fmt.Errorf("look for locks: %w", err)
		}
		var unreadable *LockInfo
		for _, other := range locks {
			switch {
			case other.ID == l.id:
			case other.Err != nil:
				unreadable = &other
			case other.abandoned():
				// Also if it bears ours: others would stop at it, and may not know that its process is gone.
				if err := r.removeLock(ctx, other.ID); err != nil && !bears(l.mode, other) {
					return fmt.Errorf("remove the lock of a process that is gone: %w", err)
				}
			case bears(l.mode, other):
			default:
				return other.conflict()
			}
		}
		if unreadable == nil {
			return nil
		}
		if attempt == 3 {
			return fmt.Errorf("%w: %w", unreadable.conflict(), unreadable.Err)
		}
		if err := pause(ctx, 5*time.Second<<attempt); err != nil {
			return err
		}
	}
}

// bears reports whether a lock of that mode and the other one may be held at once.
func bears(mode LockMode, other LockInfo) bool { return mode == Shared && !other.Exclusive }

func (r *Repository) writeLock(ctx context.Context, l *held) error {
	host, user, uid, gid := identity()
	now := time.Now()
	doc, err := restic.EncodeLock(restic.Lock{
		Time: now, Exclusive: l.mode == Exclusive, Hostname: host, Username: user, PID: os.Getpid(),
		UID: uid, GID: gid, ProcessTable: processTable(),
	})
	if err != nil {
		return err
	}
	h, sealed, err := r.sealDocument(restic.LockFile, doc)
	if err != nil {
		return err
	}
	if err := r.be.Backend.Save(ctx, h, sealed); err != nil {
		// The store may hold it nevertheless. Nobody would ever remove it.
		rm, cancel := lastly(ctx)
		defer cancel()
		if rmErr := r.be.Backend.Remove(rm, h); rmErr != nil && !errors.Is(rmErr, backend.ErrNotExist) {
			err = errors.Join(err, rmErr)
		}
		return fmt.Errorf("%w: %w", ErrCannotLock, err)
	}
	l.id, err = restic.ParseID(h.Name)
	l.at = now.Round(0)
	return err
}

// removeLock removes a lock file; one that is gone already is no error.
func (r *Repository) removeLock(ctx context.Context, id restic.ID) error {
	if r.be.noLock {
		return ErrNoLock
	}
	err := r.be.Backend.Remove(ctx, backend.Handle{Type: restic.LockFile, Name: id.String()})
	if errors.Is(err, backend.ErrNotExist) {
		return nil
	}
	return err
}

// refreshLoop keeps l young until ctx ends, or ends ctx.
func (r *Repository) refreshLoop(ctx context.Context, l *held, cancel context.CancelCauseFunc) {
	tick := time.NewTicker(lockTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		switch old := age(l.at); {
		case old >= lockLost:
			if err := r.revive(ctx, l); err != nil {
				cancel(fmt.Errorf("%w: %w", ErrLockLost, err))
				return
			}
		case old >= lockRefresh:
			// A failure is no matter yet: the next tick tries again, until the lock is lost.
			attempt, stop := context.WithTimeout(ctx, lockTick)
			_ = r.refresh(attempt, l)
			stop()
		}
	}
}

// refresh writes a new lock, then removes the old one.
func (r *Repository) refresh(ctx context.Context, l *held) error {
	old := l.id
	if err := r.writeLock(ctx, l); err != nil {
		return err
	}
	if err := r.removeLock(ctx, old); err != nil {
		rm, cancel := lastly(ctx)
		defer cancel()
		return r.removeLock(rm, old)
	}
	return nil
}

// revive refreshes a lock that others may have taken for stale meanwhile. If the old file is still there, nobody has.
// Nothing is written to the repository while this is being found out.
func (r *Repository) revive(ctx context.Context, l *held) error {
	r.be.mu.Lock()
	defer r.be.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, lockTick)
	defer cancel()
	old := *l
	exists := func() error {
		_, err := r.be.Backend.Stat(ctx, backend.Handle{Type: restic.LockFile, Name: old.id.String()})
		return err
	}
	if err := exists(); err != nil {
		return err
	}
	if err := r.writeLock(ctx, l); err != nil {
		return err
	}
	err := pause(ctx, lockSettle)
	if err == nil {
		err = exists()
	}
	if err != nil {
		return err // the new file is removed by WithLock, which knows its name
	}
	return r.removeLock(ctx, old.id)
}

// pause waits unless ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

// Unlock removes locks whose holders are gone, as restic unlock does, and tells which.
func (r *Repository) Unlock(ctx context.Context) ([]LockInfo, error) {
	return r.unlock(ctx, func(l LockInfo) bool { return l.Stale() })
}

// UnlockAll removes all locks, whoever holds them, and tells which.
func (r *Repository) UnlockAll(ctx context.Context) ([]LockInfo, error) {
	return r.unlock(ctx, func(LockInfo) bool { return true })
}

func (r *Repository) unlock(ctx context.Context, which func(LockInfo) bool) (removed []LockInfo, err error) {
	locks, err := r.Locks(ctx)
	if err != nil {
		return nil, err
	}
	for _, l := range locks {
		if !which(l) {
			continue
		}
		if err := r.removeLock(ctx, l.ID); err != nil {
			return removed, fmt.Errorf("remove lock %s: %w", l.ID.Short(), err)
		}
		removed = append(removed, l)
	}
	return removed, nil
}
