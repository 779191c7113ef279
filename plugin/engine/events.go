package engine

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmkeep/vmkeep/plugin"
)

// progressEvery is how often running meters are told to the host.
const progressEvery = 300 * time.Millisecond

// emitter numbers the events of one operation and hands them to the host one at a time.
type emitter struct {
	operation string
	emit      func(plugin.Event)

	mu      sync.Mutex
	seq     uint64
	meters  []*meter
	tallies []*tally
	stop    chan struct{}
	done    chan struct{}
}

func newEmitter(operation string, emit func(plugin.Event)) *emitter {
	o := &emitter{operation: operation, emit: emit, stop: make(chan struct{}), done: make(chan struct{})}
	go o.tick()
	return o
}

// close ends the reporting of progress. No event is emitted after it returned.
func (o *emitter) close() {
	close(o.stop)
	<-o.done
}

func (o *emitter) send(ev plugin.Event) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.sendLocked(ev)
}

func (o *emitter) sendLocked(ev plugin.Event) {
	if o.emit == nil {
		return
	}
	o.seq++
	ev.Seq, ev.Time, ev.Operation = o.seq, time.Now().UTC(), o.operation
	o.emit(ev)
}

// tick reports the meters and tallies that moved until close.
func (o *emitter) tick() {
	defer close(o.done)
	t := time.NewTicker(progressEvery)
	defer t.Stop()
	for {
		select {
		case <-o.stop:
			return
		case <-t.C:
		}
		o.mu.Lock()
		for _, m := range o.meters {
			if ev, moved := m.event(); moved {
				o.sendLocked(ev)
			}
		}
		for _, t := range o.tallies {
			if ev, moved := t.event(time.Now()); moved {
				o.sendLocked(ev)
			}
		}
		o.mu.Unlock()
	}
}

// scope is where in an operation something happens: a machine, and perhaps one of its disks.
type scope struct {
	out     *emitter
	machine string
	disk    string
	tally   *tally // of the machine's disks; nil: nobody keeps one
}

// tallied is the scope of a machine whose disks' work is also told of as a whole, until the returned function is called.
func (s scope) tallied() (scope, func()) {
	t, o := &tally{scope: s}, s.out
	s.tally = t
	o.mu.Lock()
	o.tallies = append(o.tallies, t)
	o.mu.Unlock()
	return s, func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.tallies = slices.DeleteFunc(o.tallies, func(x *tally) bool { return x == t })
		if ev, moved := t.event(time.Now()); moved {
			o.sendLocked(ev)
		}
	}
}

func (s scope) phase(name plugin.Phase) {
	s.out.send(plugin.Event{Machine: s.machine, Disk: s.disk, Kind: plugin.EventPhase, Phase: name})
}

// vspherePhase is phase for package vsphere, whose words for what it does with a snapshot are the contract's.
func (s scope) vspherePhase(name string) { s.phase(plugin.Phase(name)) }

func (s scope) tell(d plugin.Diagnostic) {
	if d.Object == "" {
		d.Object = s.machine
		if s.disk != "" {
			d.Object += " " + s.disk
		}
	}
	s.out.send(plugin.Event{Machine: s.machine, Disk: s.disk, Kind: plugin.EventDiagnostic, Diagnostic: &d})
}

func (s scope) info(code plugin.Code, summary, detail string) {
	s.tell(plugin.Diagnostic{Severity: plugin.SeverityInfo, Code: code, Summary: summary, Detail: detail})
}

func (s scope) on(disk string) scope { s.disk = disk; return s }

// meter counts the work on one thing. Its counters may be changed from any goroutine.
type meter struct {
	scope scope
	phase plugin.Phase
	start time.Time

	done, total, read, stored atomic.Int64
	// moved are the bytes that took time; free is the part of done that took none; ahead is work that is known to come,
	// where that is known.
	moved, free, ahead atomic.Int64
	told               [4]int64 // what the last event said
}

// meter starts reporting a piece of work of total bytes until the returned function is called.
func (s scope) meter(phase plugin.Phase, total int64) (*meter, func()) {
	m := &meter{scope: s, phase: phase, start: time.Now()}
	m.total.Store(total)
	o := s.out
	o.mu.Lock()
	o.meters = append(o.meters, m)
	o.mu.Unlock()
	ended := func() {}
	if s.tally != nil && s.disk != "" {
		ended = s.tally.begin(m)
	}
	return m, func() {
		ended()
		o.mu.Lock()
		defer o.mu.Unlock()
		for i, x := range o.meters {
			if x == m {
				o.meters = append(o.meters[:i:i], o.meters[i+1:]...)
				break
			}
		}
		if ev, moved := m.event(); moved {
			o.sendLocked(ev)
		}
	}
}

func (m *meter) event() (plugin.Event, bool) {
	now := [4]int64{m.done.Load(), m.total.Load(), m.read.Load(), m.stored.Load()}
	if now == m.told {
		return plugin.Event{}, false
	}
	m.told = now
	p := &plugin.Progress{Done: now[0], Total: now[1], Read: now[2], Stored: now[3]}
	if spent := time.Since(m.start); spent > time.Second {
		p.ETA = m.eta(spent).Round(time.Second)
	}
	return plugin.Event{Machine: m.scope.machine, Disk: m.scope.disk, Kind: plugin.EventProgress, Phase: m.phase, Progress: p}, true
}

// work counts n bytes as done and moved.
func (m *meter) work(n int64) {
	m.moved.Add(n)
	m.done.Add(n)
}

// skip counts n bytes as done that took no time.
func (m *meter) skip(n int64) {
	m.free.Add(n)
	m.done.Add(n)
}

// eta is how long the rest will take after so much time: what is known to be work at the speed of the work so far, of
// what is not known yet the share that was work until now. 0 means that there is no telling, or nothing left.
func (m *meter) eta(spent time.Duration) time.Duration {
	done, free, ahead, total := m.done.Load(), m.free.Load(), m.ahead.Load(), m.total.Load()
	worked, unknown := done-free, total-done-ahead
	if worked <= 0 || total <= done {
		return 0
	}
	share := float64(worked+ahead) / float64(done+ahead)
	return time.Duration(float64(spent) * (float64(ahead) + share*float64(max(0, unknown))) / float64(worked))
}

// stages reports work that goes through one stage after the other, each with a meter of its own.
type stages struct {
	scope scope
	name  plugin.Phase
	meter *meter
	stop  func()
}

func newStages(s scope) *stages { return &stages{scope: s} }

// at tells how far which stage is. Calls must not overlap.
func (s *stages) at(name plugin.Phase, done, total int64) {
	if name != s.name {
		s.end()
		s.name = name
		s.scope.phase(name)
		s.meter, s.stop = s.scope.meter(name, total)
	}
	s.meter.total.Store(total)
	s.meter.done.Store(done)
}

func (s *stages) end() {
	if s.stop != nil {
		s.stop()
	}
	s.stop = nil
}
