package vixdisklib

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/vmkeep/vmkeep/vddk"
	"github.com/vmkeep/vmkeep/vddk/vixdisklib/internal/wire"
)

const flagReadOnly = 4 // of the library's Open

// open opens a disk in the helper of s, and starts one if there is none alive.
func (t *Transport) open(ctx context.Context, s *shared, spec vddk.Spec) (*disk, error) {
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if s.p != nil && s.p.lost() != nil {
		s.p = nil // its disks still hold it
	}
	if s.p == nil {
		p, err := t.connect(ctx, spec)
		if err != nil {
			return nil, err
		}
		s.p, s.free = p, s.free[:0]
		for i := range uint32(wire.Disks) {
			s.free = append(s.free, wire.Disks-1-i)
		}
	}
	d, err := t.openIn(ctx, s, spec)
	if err != nil && s.p != nil && s.p.users == 0 {
		p := s.p
		s.p = nil
		return nil, errors.Join(err, t.part(ctx, p))
	}
	return d, err
}

// connect starts a helper and has it connect.
func (t *Transport) connect(ctx context.Context, spec vddk.Spec) (_ *process, err error) {
	modes := t.modes(spec.Encrypted)
	var use *attaching
	if slices.Contains(modes, "hotadd") {
		if use, err = t.attach(ctx, spec.VM); err != nil {
			return nil, err
		}
	}
	p, to, err := t.start(ctx, spec.VM, use)
	if err != nil {
		use.settle(nil) // nothing is open
		return nil, err
	}
	p.to = to
	to.Snapshot, to.ReadOnly, to.Modes = spec.Snapshot, !spec.Write, strings.Join(modes, ":")
	if _, err := p.call(ctx, wire.Connect, wire.Encode(to), t.timeouts().Open); err != nil {
		err = errors.Join(err, p.end(t.grace(ctx)))
		use.settle(nil)
		return nil, err
	}
	return p, nil
}

// start asks for credentials and starts a helper that has loaded the library. use is what it may attach, if anything.
func (t *Transport) start(ctx context.Context, vm string, use *attaching) (*process, wire.Connection, error) {
	for _, m := range t.modes(false) {
		if !slices.Contains([]string{"nbdssl", "nbd", "hotadd", "san", "file"}, m) {
			return nil, wire.Connection{}, fmt.Errorf("the library has no mode %q: give some of nbdssl, nbd, hotadd, san, file: %w", m, vddk.ErrUnsupported)
		}
	}
	c, err := t.Credentials(ctx)
	if err != nil {
		return nil, wire.Connection{}, fmt.Errorf("credentials: %w", err)
	}
	if h, _, err := net.SplitHostPort(c.Server); err == nil {
		return nil, wire.Connection{}, fmt.Errorf("server %q names a port: give the host %q and the port apart", c.Server, h)
	}
	for _, s := range []string{c.Server, c.User, c.Password, c.Cookie, c.Thumbprint} {
		if strings.IndexByte(s, 0) >= 0 {
			return nil, wire.Connection{}, errors.New("credentials have a zero byte, which the library cannot be given")
		}
	}
	p, err := t.launch(ctx, newRedactor(c.Password, c.Cookie, c.Thumbprint), use)
	return p, wire.Connection{Server: c.Server, Port: uint32(c.Port), User: c.User, Password: c.Password, Cookie: c.Cookie, Thumbprint: c.Thumbprint, VM: vm}, err
}

func (t *Transport) openIn(ctx context.Context, s *shared, spec vddk.Spec) (*disk, error) {
	if len(s.free) == 0 {
		return nil, fmt.Errorf("%d disks of the machine are open already: %w", wire.Disks, vddk.ErrUnsupported)
	}
	p, number := s.p, s.free[len(s.free)-1]
	s.free = s.free[:len(s.free)-1]
	flags := uint32(t.Compression)
	if !spec.Write {
		flags |= flagReadOnly
	}
	answer, err := p.call(ctx, wire.Open, wire.Encode(wire.Opening{Disk: number, Path: spec.Path, Flags: flags}), t.timeouts().Open)
	if ctx.Err() != nil && err != nil {
		// The helper may open it yet, and closes it next: requests to its main thread keep their order. The number is
		// not used again.
		p.post(wire.Close, wire.Encode(wire.One{Disk: number}), func(uint64, []byte) {})
		return nil, err
	}
	var opened wire.Opened
	if err == nil {
		opened, err = wire.Decode[wire.Opened](answer)
	}
	if err != nil {
		s.free = append(s.free, number)
		return nil, err
	}
	d := &disk{p: p, ctx: ctx, spec: spec, number: number, size: int64(opened.Sectors) * vddk.SectorSize, patience: t.timeouts().Transfer,
		free: make(chan struct{}, wire.Depth), describe: strings.TrimSpace(opened.Mode+" "+p.servingHost()) + " through " + p.libraryName()}
	for range wire.Depth {
		d.free <- struct{}{}
	}
	p.users++
	switch {
	case opened.Sectors == 0 || opened.Sectors > 1<<54:
		err = fmt.Errorf("the library says that the disk has %d sectors: %w", opened.Sectors, vddk.ErrUnsupported)
	case !slices.Contains(t.modes(spec.Encrypted), opened.Mode):
		err = fmt.Errorf("the library fell back to %q, and only %s was asked for: see why in its log: %w", opened.Mode, strings.Join(t.modes(spec.Encrypted), ", "), vddk.ErrUnsupported)
	default:
		return d, nil
	}
	return nil, errors.Join(err, t.closeIn(s, d))
}

// closeIn closes a disk in its helper, and ends the helper when it was the last. The turn is held.
func (t *Transport) closeIn(s *shared, d *disk) error {
	p := d.p
	_, err := p.call(context.Background(), wire.Close, wire.Encode(wire.One{Disk: d.number}), t.timeouts().Open)
	if p == s.p {
		s.free = append(s.free, d.number)
	}
	p.users--
	if p.users > 0 {
		return err
	}
	if p == s.p {
		s.p = nil
	}
	return errors.Join(err, t.part(context.Background(), p))
}

// leave closes d, if it is not nil, and takes the user of a helper away.
func (t *Transport) leave(key helperKey, s *shared, d *disk) error {
	var err error
	if d != nil {
		s.turn <- struct{}{} // whoever has it is bounded by timeouts
		err = t.closeIn(s, d)
		<-s.turn
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.users--; s.users == 0 {
		delete(t.helpers, key)
	}
	return err
}
