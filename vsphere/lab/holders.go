package lab

import "slices"

// Who has a link open decides what may be done with it: a disk that is open cannot be merged, and an open for
// writing is exclusive.

// hold notes that somebody opens l; release undoes it. ok is false if others hold it in a way that excludes this.
func (s *store) hold(l *link, write bool) (h *holder, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range l.holders {
		if o.write || write {
			return nil, false
		}
	}
	h = &holder{write: write}
	l.holders = append(l.holders, h)
	return h, true
}

func (s *store) release(l *link, h *holder) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l.holders = slices.DeleteFunc(l.holders, func(o *holder) bool { return o == h })
}

func (s *store) held(l *link) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(l.holders) > 0
}

// chainHeld tells whether l or a link below it is open.
func (s *store) chainHeld(l *link) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ; l != nil; l = l.parent {
		if len(l.holders) > 0 {
			return true
		}
	}
	return false
}

// reparent moves k onto l. The volume's lock is held exclusively; the store's makes children see one state.
func (s *store) reparent(k, l *link) {
	s.mu.Lock()
	k.parent = l
	s.mu.Unlock()
}
