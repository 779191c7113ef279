package engine

import (
	"sync"
	"time"

	"github.com/vmkeep/vmkeep/plugin"
)

// tally is the work on all disks of a machine: in bytes that are really moved, done and still to come. Where a disk is
// empty, unchanged or already right nothing is moved.
type tally struct {
	scope scope

	mu     sync.Mutex
	stages []*stage
	pace   pace
	told   [2]int64
}

// stage is one pass over one disk.
type stage struct {
	disk  string
	phase plugin.Phase
	work  int64  // bytes to be moved at most; -1: nobody has said yet
	meter *meter // nil: not begun
	ended bool
}

// expect says that a disk will be passed, or is being passed, and how many bytes that moves at most. Of what is said more
// than once the least counts.
func (t *tally) expect(disk string, phase plugin.Phase, bytes int64) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.stage(disk, phase); s.work < 0 || bytes < s.work {
		s.work = bytes
	}
}

// stage finds a stage, or adds it. t.mu is held.
func (t *tally) stage(disk string, phase plugin.Phase) *stage {
	for _, s := range t.stages {
		if s.disk == disk && s.phase == phase {
			return s
		}
	}
	s := &stage{disk: disk, phase: phase, work: -1}
	t.stages = append(t.stages, s)
	return s
}

// begin gives a stage its meter. The returned function ends it.
func (t *tally) begin(m *meter) (end func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.stage(m.scope.disk, m.phase)
	if s.meter = m; s.work < 0 {
		s.work = m.total.Load()
	}
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		s.ended = true
	}
}

// left is how many bytes the stage still moves at most.
func (s *stage) left() int64 {
	switch {
	case s.ended:
		return 0
	case s.meter == nil:
		return s.work
	}
	m := s.meter
	return max(0, min(s.work-m.moved.Load(), m.total.Load()-m.done.Load()))
}

// event is what there is to tell now.
func (t *tally) event(now time.Time) (plugin.Event, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := &plugin.Progress{}
	left := int64(0)
	for _, s := range t.stages {
		left += s.left()
		if s.meter != nil {
			p.Done += s.meter.moved.Load()
			p.Read += s.meter.read.Load()
			p.Stored += s.meter.stored.Load()
		}
	}
	p.Total = p.Done + left
	t.pace.look(now, p.Done)
	p.ETA = t.pace.left(left)
	figures := [2]int64{p.Done, p.Total}
	if figures == t.told {
		return plugin.Event{}, false
	}
	t.told = figures
	return plugin.Event{Machine: t.scope.machine, Kind: plugin.EventProgress, Phase: plugin.PhaseDisks, Progress: p}, true
}
