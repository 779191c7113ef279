package engine

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// auditNote remembers, in the state directory, which disks of a machine an audit found to differ from their point.
// The next backup reads them in full, which heals the points to come, and clears the note.
type auditNote struct {
	file  string
	Disks map[string]time.Time `json:"disks"` // uuid -> when
}

// audit loads the note of the machine with the given instanceUuid; it may be empty.
func (c *connections) audit(instance string) (*auditNote, error) {
	dir, err := stateDir(c.cfg)
	if err != nil {
		return nil, err
	}
	n := &auditNote{file: filepath.Join(dir, "audit", safeName(instance)+".json"), Disks: map[string]time.Time{}}
	b, err := os.ReadFile(n.file)
	if errors.Is(err, fs.ErrNotExist) {
		return n, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, n); err != nil {
		return nil, fmt.Errorf("%s: %w", n.file, err)
	}
	return n, nil
}

func (n *auditNote) suspects() []string { return slices.Sorted(maps.Keys(n.Disks)) }

// add notes disks, durably.
func (n *auditNote) add(uuids []string, at time.Time) error {
	for _, u := range uuids {
		n.Disks[u] = at
	}
	return n.save()
}

// clear strikes disks that were read in full since.
func (n *auditNote) clear(uuids []string) error {
	before := len(n.Disks)
	for _, u := range uuids {
		delete(n.Disks, u)
	}
	if len(n.Disks) == before {
		return nil
	}
	if len(n.Disks) == 0 {
		return os.Remove(n.file)
	}
	return n.save()
}

func (n *auditNote) save() error {
	b, err := json.Marshal(n)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(n.file), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(n.file), "note-")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return os.Rename(f.Name(), n.file)
}
