package vixdisklib

import (
	"context"
	"errors"
	"fmt"

	"github.com/vmkeep/vmkeep/vddk"
	"github.com/vmkeep/vmkeep/vddk/vixdisklib/internal/wire"
)

// once runs fn with a helper of its own, which holds the lock of use, if there is one, and is gone afterwards, also when fn
// panics.
func (t *Transport) once(ctx context.Context, vm string, use *attaching, fn func(*process, wire.Connection) error) (err error) {
	p, to, err := t.start(ctx, vm, use)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.end(t.grace(ctx))) }()
	return fn(p, to)
}

// WithAccess keeps the machine where it is, by the library's PrepareForAccess, while fn runs: a snapshot is made, read
// and removed within fn. identity, of 1 to 50 bytes and the same at every run, says who does it; another one that
// already does is refused with code 5. Access is ended always, also when ctx ended or the helper died meanwhile: else
// the machine could not be moved any more. When this process dies, the helper ends it.
func (t *Transport) WithAccess(ctx context.Context, vm, identity string, fn func(context.Context) error) error {
	if len(identity) == 0 || len(identity) > 50 {
		return fmt.Errorf("identity %q: it must have 1 to 50 bytes", identity)
	}
	return t.once(ctx, vm, nil, func(p *process, to wire.Connection) (err error) {
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
	return t.once(ctx, vm, nil, func(p *process, to wire.Connection) error {
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
