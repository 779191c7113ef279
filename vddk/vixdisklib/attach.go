package vixdisklib

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/vmkeep/vmkeep/vddk"
	"github.com/vmkeep/vmkeep/vddk/vixdisklib/internal/wire"
)

// Leftovers counts disks of earlier runs that were attached for hotadd.
type Leftovers struct{ Detached, Remaining int }

// attaching is what a helper may attach: disks of a machine.
//
// Its lock is a file below TempDir. It is shared by all helpers that may have disks of the machine attached, whosever they
// are, and held alone by who detaches what was left: the library would detach what is in use as well. A helper inherits
// the lock, for it may outlive the process that started it.
type attaching struct {
	lock    *os.File
	settled func(left error) // of Announce
}

// attach takes the lock on a machine and announces that its disks may be attached.
func (t *Transport) attach(ctx context.Context, vm string) (*attaching, error) {
	lock, err := t.machineLock(vm)
	if err != nil {
		return nil, err
	}
	err = lockShared(ctx, lock)
	a := &attaching{lock: lock, settled: func(error) {}}
	if err == nil && t.Announce != nil {
		a.settled, err = t.Announce(ctx, vm)
	}
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return a, nil
}

// machineLock opens the lock on a machine. Its file stays: who removes one may remove another's.
func (t *Transport) machineLock(vm string) (*os.File, error) {
	dir, err := t.tempDir()
	if err != nil {
		return nil, err
	}
	return os.OpenFile(filepath.Join(dir, url.PathEscape(vm)+".lock"), os.O_RDWR|os.O_CREATE, 0o600)
}

// settle tells what is left, and gives the lock back.
func (a *attaching) settle(left error) {
	if a == nil {
		return
	}
	a.settled(left)
	_ = a.lock.Close() // nothing was written
}

// part ends a helper of which no disk is open any more. What may be left attached of the machine's disks, by it or by an
// earlier run, is detached first, unless others may have some attached: then the last of those does it.
func (t *Transport) part(ctx context.Context, p *process) error {
	if p.use == nil {
		return p.end(t.grace(ctx))
	}
	alone, left := lockAlone(p.use.lock)
	if alone {
		patience := t.timeouts().Open
		if ctx.Err() != nil {
			patience = t.grace(ctx)
		}
		_, left = p.cleanUp(context.WithoutCancel(ctx), p.to, patience)
	}
	err := p.end(t.grace(ctx))
	if alone && errors.Is(left, vddk.ErrConnectionLost) && ctx.Err() == nil {
		_, left = t.cleanUpWith(ctx, p.to.VM, p.use)
	}
	p.use.settle(left)
	return err
}

// cleanUp has a helper detach what is left of a machine's disks.
func (p *process) cleanUp(ctx context.Context, to wire.Connection, patience time.Duration) (Leftovers, error) {
	answer, err := p.call(ctx, wire.Cleanup, wire.Encode(to), patience)
	if err != nil {
		return Leftovers{}, fmt.Errorf("clean up after hotadd to %s: %w", to.VM, err)
	}
	got, err := wire.Decode[wire.Leftovers](answer)
	if err == nil && got.Remaining > 0 {
		err = fmt.Errorf("%d disks of %s stay attached to this machine, %d were detached", got.Remaining, to.VM, got.Cleaned)
	}
	return Leftovers{int(got.Cleaned), int(got.Remaining)}, err
}

// cleanUpWith does it with a helper of its own. The lock is held alone.
func (t *Transport) cleanUpWith(ctx context.Context, vm string, use *attaching) (out Leftovers, err error) {
	err = t.once(ctx, vm, use, func(p *process, to wire.Connection) error {
		out, err = p.cleanUp(ctx, to, t.timeouts().Open)
		return err
	})
	return out, err
}

// Cleanup detaches disks of a machine that an earlier run left attached, for hotadd, to the machine this process runs in.
// The library finds them by its state below TempDir. Disks that stay attached are an error. While a helper of whatever
// process may have disks of the machine attached nothing is done, and the error is [vddk.ErrLocked]; a helper whose process
// has died is waited for.
func (t *Transport) Cleanup(ctx context.Context, vm string) (out Leftovers, err error) {
	lock, err := t.machineLock(vm)
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	last := time.Now().Add(t.timeouts().End + time.Second)
	for alone := false; !alone; {
		if alone, err = lockAlone(lock); err != nil {
			return out, err
		}
		if !alone && time.Now().After(last) {
			return out, fmt.Errorf("disks of %s may be attached for another backup that runs: %w", vm, vddk.ErrLocked)
		}
		if !alone {
			err = pause(ctx)
		}
		if err != nil {
			return out, err
		}
	}
	return t.cleanUpWith(ctx, vm, &attaching{lock: lock})
}

// lockShared takes a lock as one of several. Who holds it alone does not hold it for long.
func lockShared(ctx context.Context, f *os.File) error {
	for {
		got, err := tryLock(f, false)
		if got || err != nil {
			return err
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

// lockAlone takes a lock, or one that is held as one of several, alone; false: others hold it.
func lockAlone(f *os.File) (bool, error) { return tryLock(f, true) }

// pause waits until a lock may be free.
func pause(ctx context.Context) error {
	select {
	case <-time.After(50 * time.Millisecond):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
