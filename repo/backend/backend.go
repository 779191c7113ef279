// Package backend is where the files of a repository lie.
//
// It hides the storage service: a local directory, a REST server, an S3 bucket, an SFTP server. Each lives in a
// package of its own below; [Retry] and [Limit] wrap any of them. The suite in backendtest holds all of them
// to the guarantees listed at [Backend].
package backend

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/vmkeep/vmkeep/repo/restic"
)

// Handle names a file. The name of a [restic.ConfigFile] is empty; all others are 64 hexadecimal digits.
type Handle struct {
	Type restic.FileType
	Name string
}

func (h Handle) String() string {
	if h.Type == restic.ConfigFile {
		return "config"
	}
	return string(h.Type) + "/" + h.Name
}

// FileInfo is what a listing tells of a file. Size is in bytes.
type FileInfo struct {
	Name string
	Size int64
}

// Check refuses handles that do not name a file of a repository, so that no name from a listing, an index or a
// command line ever becomes a path of its own making. The error is an [ErrPermanent].
func (h Handle) Check() error {
	switch h.Type {
	case restic.ConfigFile:
		if h.Name != "" {
			return Permanent(fmt.Errorf("config file with a name of its own, %q", h.Name))
		}
		return nil
	case restic.KeyFile, restic.LockFile, restic.SnapshotFile, restic.IndexFile, restic.PackFile:
		if !IsName(h.Name) {
			return Permanent(fmt.Errorf("%s file %q: a name is 64 lower-case hexadecimal digits", h.Type, h.Name))
		}
		return nil
	}
	return Permanent(fmt.Errorf("file type %q is none of the repository format's", h.Type))
}

// IsName reports whether name is that of a file other than config: 64 lower-case hexadecimal digits. Listings
// skip everything else, which hides temporary files.
func IsName(name string) bool {
	if len(name) != 2*sha256.Size {
		return false
	}
	for i := range len(name) {
		if c := name[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// Backend stores the files of one repository.
//
// What is demanded of it:
//   - Save is atomic and durable: when it returns nil the whole file survives a power cut; when it fails, no
//     reader ever sees a part of it under its name. Files are never changed in place. Saving a name that
//     exists is not an error when the stored file has the same length (content-addressed files are equal
//     then); with another length it fails with [ErrExist]. It never damages the existing file. Saving config
//     twice fails with [ErrExist].
//   - A file is visible to Load, Stat and List, of every client, once Save returned.
//   - Load hands out exactly length bytes from offset (length 0: to the end), or fails. A range that ends beyond
//     the end, or begins there (unless the file is empty), is a permanent error. The reader is valid during fn
//     only; fn's error is returned as it is (wrapped). Under [Retry] fn runs again from the start of the range
//     when reading failed.
//   - A missing file is [ErrNotExist] from Load and Stat. Removing one is that or no error: stores differ, and
//     asking first would double prune's requests.
//   - List tells each file of a type once, in any order, skips names that are not 64 hexadecimal digits, and
//     gives an empty listing where nothing was ever saved. fn's error ends it and is returned.
//   - All methods are safe for concurrent use and return when ctx ends.
type Backend interface {
	// Save stores data under h. data is not kept and not changed.
	Save(ctx context.Context, h Handle, data []byte) error
	Load(ctx context.Context, h Handle, offset, length int64, fn func(io.Reader) error) error
	Stat(ctx context.Context, h Handle) (FileInfo, error)
	List(ctx context.Context, t restic.FileType, fn func(FileInfo) error) error
	Remove(ctx context.Context, h Handle) error
	// Retained is when the store lets h be deleted: the zero time if it does now, or does not tell before it is asked to.
	Retained(ctx context.Context, h Handle) (time.Time, error)
	// Connections is how many concurrent operations the service bears well.
	Connections() int
	// Location tells people where the repository is, without secrets.
	Location() string
	Close() error
}

// Questions callers ask of a backend's error. That there is no space left, or a quota is used up, is
// syscall.ENOSPC or EDQUOT besides, wherever the service tells.
var (
	ErrNotExist  = errors.New("file does not exist")
	ErrExist     = errors.New("file exists already")
	ErrPermanent = errors.New("retrying cannot help")          // bad credentials, range beyond the end, full disk quota, wrong URL
	ErrReadOnly  = errors.New("deletion refused by the store") // append-only server, object lock, retention
	ErrGivenUp   = errors.New("given up")                      // by [Retry]: the store did not answer, or only with failures
)

// Forever is when a file may be deleted that is retained without a date, as under a legal hold.
func Forever() time.Time { return time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC) }

// Permanent is [Mark] with [ErrPermanent].
func Permanent(err error) error { return Mark(err, ErrPermanent) }

// Mark makes err answer to kind as well, without another word in its text: for errors that say what is wrong in
// words of their own.
func Mark(err, kind error) error { return marked{err, kind} }

type marked struct{ err, kind error }

func (m marked) Error() string   { return m.err.Error() }
func (m marked) Unwrap() []error { return []error{m.err, m.kind} }
