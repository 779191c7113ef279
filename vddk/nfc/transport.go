package nfc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/vmkeep/vmkeep/vddk"
	"github.com/vmkeep/vmkeep/vddk/nfc/internal/wire"
)

// Mode is what NFC runs over.
type Mode string

// Modes, named as VMware names the transports.
const (
	NBDSSL Mode = "nbdssl" // TLS
	NBD    Mode = "nbd"    // clear: sector data are readable on the way
)

// Transport opens disks over NFC. It is safe for concurrent use; its fields are set before first use.
type Transport struct {
	Mode Mode // empty: NBDSSL
	// Ticket asks vSphere for a ticket. It is called for every connection, also when a broken one is replaced, until
	// the disk is closed. What it returns may wrap sentinels of package vddk.
	Ticket  func(context.Context, vddk.Spec) (Ticket, error)
	Limiter *Limiter // shared by all transports of a process; nil: one of its own
	Log     *slog.Logger
	Options Options

	own Limiter
}

// Options are how disks are read and written. The zero value is right for most hosts.
type Options struct {
	Buffer         int           // bytes of data per fragment, 64 KiB to 2 MiB; 0: 1 MiB
	Buffers        int           // of that size, kept by the host for the session; 0: 4
	MaxRequest     int           // bytes of one operation, larger ones are split; 0: 1 MiB
	Depth          int           // operations in flight, at most 32; 0: 16
	Compression    Compression   // of data on the wire; zero: Auto
	ConnectTimeout time.Duration // from dialling to the first frame; 0: 30 s
	IOTimeout      time.Duration // without any answer, then the connection counts as lost; 0: 60 s
	CloseTimeout   time.Duration // for closing in good order once the context ended; 0: 3 s
	Retries        int           // attempts after the first, at opening and at reading; 0: 5, negative: none
	Backoff        time.Duration // before the second attempt, then doubling to 30 s; 0: 1 s
	KeepAlive      time.Duration // sector 0 is read when a disk was idle for so long; 0: never
}

// Bounds of options.
const (
	maxBuffer  = 2 << 20 // vSphere 8 accepts 2 MiB and refuses 16
	maxDepth   = 32
	maxBackoff = 30 * time.Second
)

func (o *Options) depth() int { return min(or(o.Depth, 16), maxDepth) }
func (o *Options) maxRequest() int {
	return or(o.MaxRequest, 1<<20) / vddk.SectorSize * vddk.SectorSize
}
func (o *Options) connectTimeout() time.Duration { return orTime(o.ConnectTimeout, 30*time.Second) }
func (o *Options) ioTimeout() time.Duration      { return orTime(o.IOTimeout, time.Minute) }
func (o *Options) closeTimeout() time.Duration   { return orTime(o.CloseTimeout, 3*time.Second) }
func (o *Options) retries() int                  { return max(or(o.Retries, 5), 0) }

func orTime(v, other time.Duration) time.Duration {
	if v == 0 {
		return other
	}
	return v
}

func (o *Options) check() error {
	switch {
	case o.Buffer != 0 && (o.Buffer < wire.DefaultBuffer || o.Buffer > maxBuffer || o.Buffer%vddk.SectorSize != 0):
		return fmt.Errorf("NFC buffers of %d bytes: between 64 KiB and 2 MiB, in multiples of 512, are possible", o.Buffer)
	case o.Buffers < 0 || o.Buffers > 16:
		return fmt.Errorf("%d NFC buffers: between 1 and 16 are possible", o.Buffers)
	case o.MaxRequest != 0 && (o.MaxRequest < vddk.SectorSize || o.MaxRequest > 32<<20):
		return fmt.Errorf("NFC requests of %d bytes: between 512 bytes and 32 MiB are possible", o.MaxRequest)
	case o.Depth < 0 || o.Depth > maxDepth:
		return fmt.Errorf("%d NFC requests in flight: between 1 and %d are possible", o.Depth, maxDepth)
	case o.Compression < Auto || o.Compression > Skipz:
		return fmt.Errorf("unknown NFC compression %d", o.Compression)
	}
	return nil
}

// pause is how long to wait before attempt n (from 1), with jitter so that many disks do not come back at once.
func (o *Options) pause(n int) time.Duration {
	d := orTime(o.Backoff, time.Second) << min(n-1, 10)
	d = min(d, maxBackoff)
	return d/2 + rand.N(d/2+1)
}

// sleep waits, or returns the context's cause.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Name is the mode.
func (t *Transport) Name() string {
	if t.Mode == "" {
		return string(NBDSSL)
	}
	return string(t.Mode)
}

func (t *Transport) limiter() *Limiter {
	if t.Limiter != nil {
		return t.Limiter
	}
	return &t.own
}

func (t *Transport) log() *slog.Logger {
	if t.Log != nil {
		return t.Log
	}
	return slog.New(slog.DiscardHandler)
}

var _ vddk.Transport = (*Transport)(nil)

// Open opens the disk at spec.Path. Refusals of the host become the sentinels of package vddk, with what can be done
// about them; a certificate that is not the ticket's gives [ErrUntrusted].
func (t *Transport) Open(ctx context.Context, spec vddk.Spec) (vddk.Disk, error) {
	if err := t.Options.check(); err != nil {
		return nil, err
	}
	if t.Mode != "" && t.Mode != NBD && t.Mode != NBDSSL {
		return nil, fmt.Errorf("unknown NFC mode %q: nbd and nbdssl are possible: %w", t.Mode, vddk.ErrUnsupported)
	}
	if spec.Encrypted && t.Mode == NBD {
		return nil, vddk.ErrInClear
	}
	if spec.Path == "" || len(spec.Path) > wire.MaxPath {
		return nil, fmt.Errorf("a datastore path of %d bytes: %w", len(spec.Path), vddk.ErrNotFound)
	}
	d := &Disk{transport: t, spec: spec, ctx: ctx, left: make(chan struct{}), gone: make(chan struct{})}
	d.link, d.unlink = context.WithCancelCause(ctx)
	d.rule.fixed = t.Options.Compression
	d.idle.cond = sync.NewCond(&d.idle.mu)
	s, err := d.connect()
	if err != nil {
		d.unlink(nil)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, withRemedy(err, spec)
	}
	if err := d.adopt(s); err != nil {
		d.unlink(nil)
		return nil, errors.Join(err, s.close(time.Now().Add(t.Options.closeTimeout())))
	}
	d.start()
	return d, nil
}

// attempt is what the next try to connect does differently.
type attempt struct {
	small  bool // smallest buffers
	ticket bool // a second ticket was tried
	random bool // trying without CLIENTRANDOM was tried
}

// next says whether another attempt promises anything after err, and whether to pause before. A disk that was open
// before is worth more patience than one that never was.
func (a *attempt) next(err error, patient bool) (again, pause bool) {
	first := func(tried *bool) (bool, bool) {
		again := !*tried
		*tried = true
		return again || patient, !again
	}
	switch {
	case errors.Is(err, errRandom):
		// The refusal says nothing about its reason. If CLIENTRANDOM was it, the next attempt succeeds.
		return first(&a.random)
	case errors.Is(err, errTicket):
		return first(&a.ticket)
	case errors.Is(err, errBuffers):
		return first(&a.small)
	case errors.Is(err, vddk.ErrHostMemory):
		a.small = true
		return true, true
	case errors.Is(err, ErrUntrusted), errors.Is(err, vddk.ErrUnsupported), errors.Is(err, vddk.ErrPermission),
		errors.Is(err, vddk.ErrNotFound):
		return false, false
	}
	return patient || errors.Is(err, vddk.ErrConnectionLost), true
}

// connect makes a session with the disk open, in as many attempts as promise anything. Each takes a ticket of its own.
func (d *Disk) connect() (*session, error) {
	t := d.transport
	var a attempt
	for n := 1; ; n++ {
		s, addr, err := t.try(d.link, d.spec, &d.stats, a)
		if err == nil {
			return s, nil
		}
		if d.link.Err() != nil {
			return nil, context.Cause(d.link)
		}
		switch {
		case errors.Is(err, errRandom):
			t.limiter().refusesRandom(addr)
		case errors.Is(err, vddk.ErrHostMemory):
			t.limiter().complain(addr)
		}
		again, pause := a.next(err, d.session != nil)
		if !again || n > t.Options.retries() {
			return nil, err
		}
		t.log().Debug("NFC connection failed, trying again", "disk", d.spec.Path, "host", addr, "attempt", n, "error", err)
		if pause {
			if err := sleep(d.link, t.Options.pause(n)); err != nil {
				return nil, err
			}
		}
	}
}

// staleAfter is how long a ticket is kept while waiting for the host; then a new one is taken.
const staleAfter = 10 * time.Second

// try is one attempt: a ticket, a share of the host, a connection, a session, the disk.
func (t *Transport) try(ctx context.Context, spec vddk.Spec, stats *counters, a attempt) (_ *session, addr string, err error) {
	var k Ticket
	var e *lease
	for e == nil {
		if k, err = t.Ticket(ctx, spec); err != nil {
			return nil, "", fmt.Errorf("take an NFC ticket: %w", err)
		}
		if k.Host == "" {
			return nil, "", errors.New("the NFC ticket names no host, and neither did its taker")
		}
		addr = k.Addr()
		want := buffers{or(t.Options.Buffer, 1<<20), or(t.Options.Buffers, 4)}
		if a.small {
			want = least()
		}
		asked := time.Now()
		got, waited, err := t.limiter().acquire(ctx, addr, want)
		if err != nil {
			return nil, addr, err
		}
		if waited && time.Since(asked) > staleAfter {
			got.release()
			continue
		}
		e = got
	}
	l, err := t.dial(ctx, k, t.limiter().random(addr))
	if err != nil {
		e.release()
		return nil, addr, err
	}
	s := newSession(l, &t.Options, stats)
	s.addr, s.secret, s.lease, s.buffers = addr, k.SessionID, e, e.buffers
	// An open under way is seen through, within bounds: a file half open would stay locked on the host.
	stop := context.AfterFunc(ctx, func() { s.end(time.Now().Add(t.Options.closeTimeout())) })
	err = s.open(spec)
	e.opened()
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		// The close is a courtesy here: what matters is why opening failed.
		_ = s.close(time.Now().Add(t.Options.closeTimeout()))
		return nil, addr, fmt.Errorf("%s: %w", addr, err)
	}
	return s, addr, nil
}

// open makes a fresh session ready: buffers, then the file.
func (s *session) open(spec vddk.Spec) error {
	ask := func(b buffers) error {
		p := wire.AppendSession(nil, wire.Session{BufSize: uint32(b.size), BufCount: uint32(b.count)})
		_, _, err := s.call(wire.OpenSession, p, nil)
		return err
	}
	err := ask(s.buffers)
	if f := (*failure)(nil); errors.As(err, &f) && s.buffers != least() {
		s.lease.shrink(least())
		s.buffers = least()
		err = ask(s.buffers)
	}
	if errors.Is(err, vddk.ErrConnectionLost) && s.buffers != least() {
		err = fmt.Errorf("%w: %w", errBuffers, err)
	}
	if err != nil {
		return fmt.Errorf("open an NFC session: %w", err)
	}
	s.ready = true
	// Tuning: a host that does not know it says so, and all goes on.
	for _, c := range []struct {
		typ     wire.Type
		payload []byte
	}{{wire.SetSockOpts, make([]byte, wire.SockOptsSize)}, {wire.SetResPool, []byte{1, 0, 0, 0}}} {
		if _, _, err := s.call(c.typ, c.payload, nil); err != nil && !errors.As(err, new(*failure)) {
			return fmt.Errorf("%s: %w", c.typ, err)
		}
	}
	r := wire.OpenRequest{PathLen: uint32(len(spec.Path)), FileType: wire.NFCDisk, Flags: wire.OpenReadOnly}
	if spec.Write {
		r.Flags = wire.OpenReadWrite
	}
	p, _, err := s.call(wire.OpenFile, wire.AppendOpen(nil, r), []byte(spec.Path))
	if err != nil {
		return fmt.Errorf("open %s: %w", spec.Path, err)
	}
	f, err := wire.ParseFile(p)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	if f.Status != 0 {
		return fmt.Errorf("open %s: %w", spec.Path, newFailure(f.Status, "the disk cannot be opened", ""))
	}
	s.file = f
	return s.usable(spec)
}

// usable checks what the host says of the file it opened.
func (s *session) usable(spec vddk.Spec) error {
	f := &s.file
	if f.SectorSize == 0 {
		f.SectorSize = vddk.SectorSize
	}
	switch {
	case f.FileType != wire.NFCDisk && f.FileType != wire.NFCDeltaDisk && f.FileType != wire.NFCRDM:
		return fmt.Errorf("%s is not a disk to the host, but a file of type %d: %w", spec.Path, f.FileType, vddk.ErrUnsupported)
	case f.SectorSize != vddk.SectorSize:
		return fmt.Errorf("%s has sectors of %d bytes, only 512 are supported: %w", spec.Path, f.SectorSize, vddk.ErrUnsupported)
	case f.Capacity == 0 || f.Capacity%vddk.SectorSize != 0 || f.Capacity > 1<<62:
		return fmt.Errorf("%w: %s has a capacity of %d bytes", ErrProtocol, spec.Path, f.Capacity)
	case spec.Capacity != 0 && spec.Capacity != int64(f.Capacity):
		return fmt.Errorf("%s has %d bytes on the host, but %d in the machine's configuration: the disk was changed meanwhile, or the path is of another", spec.Path, f.Capacity, spec.Capacity)
	}
	return nil
}
