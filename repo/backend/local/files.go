package local

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// filesystem is the operating system as far as this package needs it. Tests put a model in its place that
// loses and tears what was not synced.
type filesystem interface {
	Stat(name string) (fs.FileInfo, error)
	Open(name string) (readFile, error)
	ReadDir(name string) ([]fs.DirEntry, error)
	// CreateTemp makes a new file in dir whose name is prefix and something random.
	CreateTemp(dir, prefix string) (writeFile, error)
	Chmod(name string, mode fs.FileMode) error
	Link(from, to string) error
	Rename(from, to string) error
	Remove(name string) error
	MkdirAll(name string, mode fs.FileMode) error
	// SyncDir makes the entries of a directory durable.
	SyncDir(name string) error
}

type readFile interface {
	io.ReaderAt
	io.Closer
	Stat() (fs.FileInfo, error)
}

type writeFile interface {
	io.WriteCloser
	Name() string
	Sync() error
}

type osFiles struct{}

func (osFiles) Stat(name string) (fs.FileInfo, error)        { return os.Stat(name) }
func (osFiles) Open(name string) (readFile, error)           { return os.Open(name) }
func (osFiles) ReadDir(name string) ([]fs.DirEntry, error)   { return os.ReadDir(name) }
func (osFiles) Chmod(name string, mode fs.FileMode) error    { return os.Chmod(name, mode) }
func (osFiles) Link(from, to string) error                   { return os.Link(from, to) }
func (osFiles) Rename(from, to string) error                 { return os.Rename(from, to) }
func (osFiles) Remove(name string) error                     { return os.Remove(name) }
func (osFiles) MkdirAll(name string, mode fs.FileMode) error { return os.MkdirAll(name, mode) }

func (osFiles) CreateTemp(dir, prefix string) (writeFile, error) {
	f, err := os.CreateTemp(dir, prefix)
	if err != nil {
		return nil, err // a nil *os.File in an interface would not be nil
	}
	return f, nil
}

func (osFiles) SyncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	err = d.Sync()
	// Some file systems cannot sync a directory; nothing better can be done there. restic goes on as well.
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOTSUP) || errors.Is(err, syscall.ENOTTY) {
		err = nil
	}
	return errors.Join(err, d.Close())
}
