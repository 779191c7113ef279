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
// The next backup reads them in full, which heals the points to come. What change tracking forgot before stays
// forgotten: from a point that is older than the healing it is never asked again.
type auditNote struct {
	file   string
	Disks  map[string]time.Time `json:"disks"`            // uuid -> when the difference was found
	Healed map[string]time.Time `json:"healed,omitempty"` // uuid -> when the point that healed it was begun, by the server's clock
}

// audit loads the note of the machine with the given instanceUuid; it may be empty.
func (c *connections) audit(instance string) (*auditNote, error) {
	dir, err := stateDir(c.cfg)
	if err != nil {
		return nil, err
	}
	n := &auditNote{file: filepath.Join(dir, "audit", safeName(instance)+".json"), Disks: map[string]time.Time{}, Healed: map[string]time.Time{}}
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

// suspects are the uuids of the disks whose change tracking is not to be asked for what changed since a point that was
// begun at since, sorted.
func (n *auditNote) suspects(since time.Time) []string {
	out := slices.Collect(maps.Keys(n.Disks))
	for uuid, healed := range n.Healed {
		if _, twice := n.Disks[uuid]; !twice && since.Before(healed) {
			out = append(out, uuid)
		}
	}
	slices.Sort(out)
	return out
}

// add notes disks, durably.
func (n *auditNote) add(uuids []string, at time.Time) error {
	for _, u := range uuids {
		n.Disks[u] = at
	}
	return n.save()
}

// heal notes that disks were read in full by the point that was begun at.
func (n *auditNote) heal(uuids []string, at time.Time) error {
	healed := false
	for _, u := range uuids {
		if _, ok := n.Disks[u]; ok {
			delete(n.Disks, u)
			n.Healed[u], healed = at, true
		}
	}
	if !healed {
		return nil
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
