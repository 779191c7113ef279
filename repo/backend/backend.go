// Package backend is where the files of a repository lie.
//
// It hides the storage service: a local directory, a REST server, an S3 bucket, an SFTP server. Each lives in a
// package of its own below; [Retry] and [Limit] wrap any of them. The suite in backendtest holds all of them
// to the guarantees listed at [Backend].
package backend

import (
	"context"
	"errors"
	"io"

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

// Backend stores the files of one repository.
//
// What is demanded of it:
//   - Save is atomic and durable: when it returns nil the whole file survives a power cut; when it fails, no
//     reader ever sees a part of it under its name. Files are never changed in place. Saving a name that
//     exists is not an error when the stored file has the same length (content-addressed files are equal
//     then); it never damages the existing file. Saving config twice fails with [ErrExist].
//   - A file is visible to Load, Stat and List, of every client, once Save returned.
//   - Load hands out exactly length bytes from offset (length 0: to the end), or fails. A range beyond the end
//     is a permanent error. The reader is valid during fn only; fn's error is returned as it is (wrapped).
//   - A missing file is [ErrNotExist] from Load, Stat and Remove.
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
	// Connections is how many concurrent operations the service bears well.
	Connections() int
	// Location tells people where the repository is, without secrets.
	Location() string
	Close() error
}

// Questions callers ask of a backend's error.
var (
	ErrNotExist  = errors.New("file does not exist")
	ErrExist     = errors.New("file exists already")
	ErrPermanent = errors.New("retrying cannot help")          // bad credentials, range beyond the end, full disk quota, wrong URL
	ErrReadOnly  = errors.New("deletion refused by the store") // append-only server, object lock, retention
)
