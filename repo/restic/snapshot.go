package restic

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Snapshot is the document that makes a state of a machine exist: when, whose, and the root tree.
type Snapshot struct {
	// ID is the name of the file, not part of it. Reading sets it, writing ignores it.
	ID ID `json:"-"`

	Time           time.Time `json:"time"`
	Parent         *ID       `json:"parent,omitempty"`
	Tree           *ID       `json:"tree"`
	Paths          []string  `json:"paths"`
	Hostname       string    `json:"hostname,omitempty"`
	Username       string    `json:"username,omitempty"`
	UID            uint32    `json:"uid,omitempty"`
	GID            uint32    `json:"gid,omitempty"`
	Excludes       []string  `json:"excludes,omitempty"`
	Tags           []string  `json:"tags,omitempty"`
	Original       *ID       `json:"original,omitempty"`
	ProgramVersion string    `json:"program_version,omitempty"`
	Summary        *Summary  `json:"summary,omitempty"`
}

// Summary is what a backup did. Sizes are bytes; restic snapshots prints TotalBytesProcessed as the size.
type Summary struct {
	BackupStart         time.Time `json:"backup_start"`
	BackupEnd           time.Time `json:"backup_end"`
	FilesNew            uint      `json:"files_new"`
	FilesChanged        uint      `json:"files_changed"`
	FilesUnmodified     uint      `json:"files_unmodified"`
	DirsNew             uint      `json:"dirs_new"`
	DirsChanged         uint      `json:"dirs_changed"`
	DirsUnmodified      uint      `json:"dirs_unmodified"`
	DataBlobs           int       `json:"data_blobs"`
	TreeBlobs           int       `json:"tree_blobs"`
	DataAdded           uint64    `json:"data_added"`
	DataAddedPacked     uint64    `json:"data_added_packed"`
	TotalFilesProcessed uint      `json:"total_files_processed"`
	TotalBytesProcessed uint64    `json:"total_bytes_processed"`
}

// EncodeSnapshot is the snapshot file's JSON.
func EncodeSnapshot(s *Snapshot) ([]byte, error) {
	if s.Tree == nil || s.Tree.IsNull() {
		return nil, errors.New("snapshot without a tree")
	}
	b, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	return b, nil
}

// DecodeSnapshot reads a snapshot file's JSON.
func DecodeSnapshot(data []byte) (*Snapshot, error) {
	s := &Snapshot{}
	if err := json.Unmarshal(data, s); err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	if s.Tree == nil || s.Tree.IsNull() {
		return nil, errors.New("snapshot without a tree")
	}
	return s, nil
}

// HasTags reports whether the snapshot carries every tag of the list. The list of one empty tag means: has no tags.
func (s *Snapshot) HasTags(tags []string) bool {
	for _, t := range tags {
		if t == "" && len(s.Tags) == 0 {
			return true
		}
		if !slices.Contains(s.Tags, t) {
			return false
		}
	}
	return true
}

// HasTagList reports whether any of the lists matches, as restic's repeated --tag does. No list matches everything.
func (s *Snapshot) HasTagList(lists [][]string) bool {
	return len(lists) == 0 || slices.ContainsFunc(lists, s.HasTags)
}

// AddTags adds the tags the snapshot does not carry yet and reports whether there were any.
func (s *Snapshot) AddTags(tags []string) (changed bool) {
	for _, t := range tags {
		if !slices.Contains(s.Tags, t) {
			s.Tags, changed = append(s.Tags, t), true
		}
	}
	return changed
}

// RemoveTags removes the tags and reports whether the snapshot carried any of them.
func (s *Snapshot) RemoveTags(tags []string) (changed bool) {
	before := len(s.Tags)
	s.Tags = slices.DeleteFunc(slices.Clone(s.Tags), func(t string) bool { return slices.Contains(tags, t) })
	return len(s.Tags) != before
}

// HasPaths reports whether the snapshot holds all these paths.
func (s *Snapshot) HasPaths(paths []string) bool {
	for _, p := range paths {
		if !slices.Contains(s.Paths, p) {
			return false
		}
	}
	return true
}

// Lock is the document a process leaves in the repository while it works on it.
type Lock struct {
	Time      time.Time `json:"time"`
	Exclusive bool      `json:"exclusive"`
	Hostname  string    `json:"hostname"`
	Username  string    `json:"username"`
	PID       int       `json:"pid"`
	UID       uint32    `json:"uid,omitempty"`
	GID       uint32    `json:"gid,omitempty"`
	// ProcessTable names the process table PID is a number of: two containers may share a host's name. It is not
	// restic's; restic ignores it, and never writes a lock it has read.
	ProcessTable string `json:"process_table,omitempty"`
}

// EncodeLock is the lock file's JSON.
func EncodeLock(l Lock) ([]byte, error) {
	b, err := json.Marshal(l)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	return b, nil
}

// DecodeLock reads a lock file's JSON.
func DecodeLock(data []byte) (Lock, error) {
	var l Lock
	if err := json.Unmarshal(data, &l); err != nil {
		return Lock{}, fmt.Errorf("lock: %w", err)
	}
	return l, nil
}
