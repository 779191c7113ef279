// Package restic is the repository format of restic, versions 1 and 2, as pure values and codecs:
// no I/O, no goroutines, no clock, no randomness. What is hidden is how the format spells things;
// package repo decides what to write and when.
//
// Words, as restic's design document uses them: a blob is a chunk of file content or a tree, named by the
// SHA-256 of its plaintext; a pack is a file of blobs; an index says which pack holds a blob; a snapshot
// names a root tree. An [ID] is always a SHA-256: of the plaintext for blobs, of the stored bytes for files.
package restic

import (
	"encoding/hex"
	"fmt"

	"github.com/minio/sha256-simd"

	"github.com/vmkeep/vmkeep/repo/internal/sha256x2"
)

// ID names a file or a blob: a SHA-256.
type ID [sha256.Size]byte

// Hash is the ID of data.
func Hash(data []byte) ID { return sha256.Sum256(data) }

// HashAll is the ID of each of the pieces. It hashes two side by side where the processor can, which takes three quarters of the
// time or less.
func HashAll(pieces [][]byte) []ID {
	ids := make([]ID, len(pieces))
	var h sha256x2.Hasher
	for i, data := range pieces {
		_ = h.Add(data, func(hash [sha256x2.Size]byte) error { ids[i] = hash; return nil }) // fails as that function does: never
	}
	_ = h.Flush()
	return ids
}

// ParseID reads 64 hexadecimal digits.
func ParseID(s string) (ID, error) {
	var id ID
	if len(s) != hex.EncodedLen(len(id)) {
		return ID{}, fmt.Errorf("id %q: want %d hexadecimal digits", s, hex.EncodedLen(len(id)))
	}
	if _, err := hex.Decode(id[:], []byte(s)); err != nil {
		return ID{}, fmt.Errorf("id %q: %w", s, err)
	}
	return id, nil
}

func (id ID) String() string { return hex.EncodeToString(id[:]) }

// Short is what people are shown: the first 8 digits, as restic prints.
func (id ID) Short() string { return id.String()[:8] }

// IsNull reports whether the ID is unset. No file or blob can have the null ID.
func (id ID) IsNull() bool { return id == ID{} }

// MarshalText spells the ID as 64 lower-case hexadecimal digits.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText is the strict reverse of MarshalText.
func (id *ID) UnmarshalText(b []byte) (err error) {
	*id, err = ParseID(string(b))
	return err
}

// FileType is one of the six kinds of file a repository consists of. Its text is the directory's name.
type FileType string

// The file types. Every file but the one config is named by the SHA-256 of its content.
const (
	ConfigFile   FileType = "config"
	KeyFile      FileType = "keys"
	LockFile     FileType = "locks"
	SnapshotFile FileType = "snapshots"
	IndexFile    FileType = "index"
	PackFile     FileType = "data"
)
