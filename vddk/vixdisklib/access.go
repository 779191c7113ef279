package vixdisklib

import (
	"context"
	"errors"
	"fmt"

	"github.com/vmkeep/vmkeep/vddk"
	"github.com/vmkeep/vmkeep/vddk/vixdisklib/internal/wire"
)

// Leftovers counts disks of earlier runs that were attached for hotadd.
type Leftovers struct{ Detached, Remaining int }

// once runs fn with a helper of its own, which is gone afterwards, also when fn panics.
func (t *Transport) once(ctx context.Context, vm string, fn func(*process, wire.Connection) error) (err error) {
	p, to, err := t.start(ctx, vm)
	if err != nil {
		return err
	}
	defer func() {
		grace := farewell
		if ctx.Err() != nil {
			grace = shortFarewell
		}
		err = errors.Join(err, p.end(grace))
	}()
	return fn(p, to)
}

// Cleanup detaches disks that an earlier run left attached for hotadd to the machine this process runs in. The library
// finds them by its state below TempDir. It is called before a snapshot that was read through hotadd is removed.
func (t *Transport) Cleanup(ctx context.Context, vm string) (Leftovers, error) {
	var out Leftovers
	err := t.once(ctx, vm, func(p *process, to wire.Connection) error {
		answer, err := p.call(ctx, wire.Cleanup, wire.Encode(to), t.timeouts().Open)
		if err != nil {
			return err
		}
		got, err := wire.Decode[wire.Leftovers](answer)
		out = Leftovers{int(got.Cleaned), int(got.Remaining)}
		return err
	})
	if err != nil {
		return out, fmt.Errorf("clean up after hotadd to %s: %w", vm, err)
	}
	return out, nil
}

// WithAccess keeps the machine where it is, by the library's PrepareForAccess, while fn runs: a snapshot is made, read
// and removed within fn. identity, of 1 to 50 bytes and the same at every run, says who does it; another one that
// already does is refused with code 5. Access is ended always, also when ctx ended or the helper died meanwhile: else
// the machine could not be moved any more. When this process dies, the helper ends it.
func (t *Transport) WithAccess(ctx context.Context, vm, identity string, fn func(context.Context) error) error {
	if len(identity) == 0 || len(identity) > 50 {
		return fmt.Errorf("identity %q: it must have 1 to 50 bytes", identity)
	}
	return t.once(ctx, vm, func(p *process, to wire.Connection) (err error) {
		to.Identity = identity
		if _, err := p.call(ctx, wire.Prepare, wire.Encode(to), t.timeouts().Open); err != nil {
			if ctx.Err() != nil || errors.Is(err, vddk.ErrConnectionLost) { // it may have been prepared
				err = errors.Join(err, t.endAccess(ctx, p, vm, identity))
			}
			return fmt.Errorf("prepare access to %s: %w", vm, err)
		}
		defer func() {
			err = errors.Join(err, t.endAccess(ctx, p, vm, identity))
		}()
		return fn(ctx)
	})
}

// EndAccess ends what a process that is gone has prepared with the same identity.
func (t *Transport) EndAccess(ctx context.Context, vm, identity string) error {
	return t.once(ctx, vm, func(p *process, to wire.Connection) error {
		to.Identity = identity
		if _, err := p.call(ctx, wire.EndAccess, wire.Encode(to), t.timeouts().Open); err != nil {
			return fmt.Errorf("end access to %s: %w", vm, err)
		}
		return nil
	})
}

// endAccess ends access by p, or when it is gone by another helper, for the same identity may.
func (t *Transport) endAccess(ctx context.Context, p *process, vm, identity string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), t.timeouts().Open)
	defer cancel()
	if p.lost() != nil {
		return t.EndAccess(ctx, vm, identity)
	}
	_, err := p.call(ctx, wire.EndAccess, wire.Encode(wire.Connection{VM: vm, Identity: identity}), t.timeouts().Open)
	if errors.Is(err, vddk.ErrConnectionLost) {
		return t.EndAccess(ctx, vm, identity)
	}
	if err != nil {
		return fmt.Errorf("end access to %s: %w", vm, err)
	}
	return nil
}
