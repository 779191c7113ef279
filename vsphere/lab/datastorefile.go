package lab

import (
	"errors"
	"fmt"
	"os"

	"github.com/vmkeep/vmkeep/vddk"
)

// LinkFile opens a link as a transport does that reads datastores by itself: as a file of this machine with the whole
// content of the disk. The rules are the disk server's: what a running machine writes to is locked, what is frozen opens
// for reading only, and a link that is open keeps its snapshot from being removed, until release is called.
//
// The file is the link's own where it has no parent, else a copy made now.
func (l *Lab) LinkFile(path string, write bool) (file string, release func() error, err error) {
	s := l.sim
	k := s.store.find(path)
	switch {
	case k == nil:
		return "", nil, fmt.Errorf("%s: %w", path, vddk.ErrNotFound)
	case s.runningWith(k, ref{}) != nil:
		return "", nil, fmt.Errorf("%s is in use by a running machine: %w", path, vddk.ErrLocked)
	case write && (k.parent != nil || len(s.store.children(k)) > 0):
		return "", nil, fmt.Errorf("%s is not the only link of its disk: %w", path, vddk.ErrUnsupported)
	}
	h, ok := s.store.hold(k, write)
	if !ok {
		return "", nil, fmt.Errorf("%s: %w", path, vddk.ErrLocked)
	}
	file, remove, err := s.store.flat(k)
	if err != nil {
		s.store.release(k, h)
		return "", nil, err
	}
	return file, func() error { s.store.release(k, h); return remove() }, nil
}

// flat gives the composed content of l as one file: its own, or a copy that remove removes.
func (s *store) flat(l *link) (file string, remove func() error, err error) {
	if l.parent == nil {
		if _, err := l.open(); err != nil { // it is made at the first touch
			return "", nil, err
		}
		return l.name(), func() error { return nil }, nil
	}
	f, err := os.CreateTemp("", "vmkeep-lab-link-")
	if err != nil {
		return "", nil, err
	}
	err = f.Truncate(l.size)
	if err == nil {
		err = copyContent(&link{vol: &volume{}, path: f.Name(), size: l.size, data: f}, l)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return "", nil, errors.Join(err, os.Remove(f.Name()))
	}
	return f.Name(), func() error { return os.Remove(f.Name()) }, nil
}
