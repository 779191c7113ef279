package nfc

import (
	"context"
	"sync"
	"time"

	"github.com/vmkeep/vmkeep/vddk/nfc/internal/wire"
)

// Limits VMware documents for one host reached through vCenter; they cannot be changed there.
const (
	DefaultConnections = 48       // of 50: one or two are left to others
	DefaultMemory      = 40 << 20 // bytes of 48 MiB
	DefaultOpenings    = 4        // handshakes at a time: authd drops connections that come in bursts
	minMemory          = 2 << 20  // a host that complains is not asked for less
	calmAfter          = 5 * time.Minute
)

// Limiter keeps what all disks together demand of each host within its means. Share one among all transports of a
// process; the zero value is ready. Fields may be set before first use.
//
// The memory of a host goes to those who open first. Later ones get smaller buffers, down to one of 64 KiB,
// for which room is always kept: a disk waits only when the connections are used up.
type Limiter struct {
	Connections int   // at a time and host, 0: [DefaultConnections]
	Memory      int64 // bytes of buffers at a time and host, 0: [DefaultMemory]
	Openings    int   // handshakes at a time and host, 0: [DefaultOpenings]

	mu    sync.Mutex
	hosts map[string]*host
	now   func() time.Time // nil: time.Now
}

// host is the account of one host.
type host struct {
	connections, openings int
	memory                int64
	budget                int64 // 0: the limiter's; less after the host complained
	complained            time.Time
	noRandom              bool          // it refuses CLIENTRANDOM
	changed               chan struct{} // closed when something was given back
}

// buffers are what OPEN_SESSION asks for.
type buffers struct{ size, count int }

func (b buffers) bytes() int64 { return int64(b.size) * int64(b.count) }

// least is what every session gets, and every host grants.
func least() buffers { return buffers{wire.DefaultBuffer, 1} }

// lease is a share of a host, held by one connection.
type lease struct {
	limiter *Limiter
	host    *host
	buffers buffers
	opening bool
}

func or[T int | int64](v, other T) T {
	if v == 0 {
		return other
	}
	return v
}

// acquire waits for a connection to the host at addr and takes at most want of its memory. waited says that it was
// not granted at once.
func (l *Limiter) acquire(ctx context.Context, addr string, want buffers) (_ *lease, waited bool, _ error) {
	for {
		l.mu.Lock()
		h := l.of(addr)
		if h.connections < or(l.Connections, DefaultConnections) && h.openings < or(l.Openings, DefaultOpenings) {
			got := l.fit(h, want)
			h.connections++
			h.openings++
			h.memory += got.bytes()
			l.mu.Unlock()
			return &lease{limiter: l, host: h, buffers: got, opening: true}, waited, nil
		}
		changed := h.changed
		l.mu.Unlock()
		waited = true
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, waited, context.Cause(ctx)
		}
	}
}

// of finds the account of a host; l.mu is held.
func (l *Limiter) of(addr string) *host {
	h := l.hosts[addr]
	if h == nil {
		if l.hosts == nil {
			l.hosts = map[string]*host{}
		}
		h = &host{changed: make(chan struct{})}
		l.hosts[addr] = h
	}
	return h
}

func (l *Limiter) time() time.Time {
	if l.now != nil {
		return l.now()
	}
	return time.Now()
}

// fit shrinks want to what the host has left, keeping 64 KiB for every connection that may yet come.
func (l *Limiter) fit(h *host, want buffers) buffers {
	budget := or(l.Memory, DefaultMemory)
	if h.budget > 0 {
		if l.time().Sub(h.complained) < calmAfter {
			budget = min(budget, h.budget)
		} else {
			h.budget = 0
		}
	}
	others := int64(or(l.Connections, DefaultConnections) - h.connections - 1)
	room := budget - h.memory - others*least().bytes()
	for want.bytes() > room && want.count > 1 {
		want.count--
	}
	for want.bytes() > room && want.size > wire.DefaultBuffer {
		want.size /= 2
	}
	want.size = max(want.size, wire.DefaultBuffer)
	return want
}

func (l *Limiter) wake(h *host) {
	close(h.changed)
	h.changed = make(chan struct{})
}

// opened says that the handshake is over, well or not.
func (e *lease) opened() {
	e.limiter.mu.Lock()
	defer e.limiter.mu.Unlock()
	if e.opening {
		e.opening = false
		e.host.openings--
		e.limiter.wake(e.host)
	}
}

// shrink gives buffers back that the host did not grant.
func (e *lease) shrink(to buffers) {
	e.limiter.mu.Lock()
	defer e.limiter.mu.Unlock()
	e.host.memory += to.bytes() - e.buffers.bytes()
	e.buffers = to
}

// release gives everything back. It may be called once.
func (e *lease) release() {
	e.opened()
	e.limiter.mu.Lock()
	defer e.limiter.mu.Unlock()
	e.host.connections--
	e.host.memory -= e.buffers.bytes()
	e.limiter.wake(e.host)
}

// complain notes that the host ran out of memory: for a while less is asked of it.
func (l *Limiter) complain(addr string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.of(addr)
	h.budget = max(min(or(l.Memory, DefaultMemory), max(h.memory, minMemory))/2, minMemory)
	h.complained = l.time()
}

// random says whether the host takes CLIENTRANDOM, as far as known; refuses notes that it does not.
func (l *Limiter) random(addr string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.of(addr).noRandom
}

func (l *Limiter) refusesRandom(addr string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.of(addr).noRandom = true
}
