// Package sftp keeps a repository on an SFTP server, reached with the system's ssh as restic does, in the layout
// restic calls default. Keys, agents, jump hosts and known hosts are ssh's business and its configuration's.
//
// It hides the session: one ssh process carries all requests, is started on first use and again after it was
// lost, and is given up when it does not answer. ssh runs without a terminal, so it never waits for somebody to
// type; what it says is part of the error.
package sftp

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/sync/errgroup"

	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// DefaultConnections is how many concurrent operations a server bears well; restic's figure. They share one
// session.
const DefaultConnections = 5

// OpenSSH's extensions to the protocol (its file PROTOCOL, section 4).
const (
	extFsync       = "fsync@openssh.com"
	extPosixRename = "posix-rename@openssh.com"
)

// Config says which server and how to reach it.
type Config struct {
	// User, Host and Port go to ssh; User and Port may be empty.
	User, Host, Port string
	// Path is absolute, or relative to the user's home.
	Path string
	// Args are further arguments for ssh.
	Args []string
	// Command replaces ssh and all arguments: a program that speaks SFTP on its standard input and output.
	Command []string
	// Connections 0 means DefaultConnections.
	Connections int
	// Upload and Download bound the session; nil means no bound.
	Upload, Download *backend.Throttle
}

// Backend is a directory on an SFTP server. Its methods are those of [backend.Backend].
type Backend struct {
	cfg Config

	mu       sync.Mutex
	current  *session // nil before first use and after a loss
	closed   bool
	dirMode  fs.FileMode
	fileMode fs.FileMode
}

var _ backend.Backend = (*Backend)(nil)

// Open uses the repository at cfg.Path. It writes nothing; a missing directory is [backend.ErrNotExist].
func Open(ctx context.Context, cfg Config) (*Backend, error) {
	b, err := newBackend(cfg)
	if err != nil {
		return nil, err
	}
	err = b.with(ctx, func(s *session) error {
		info, err := s.Stat(b.cfg.Path)
		if err != nil {
			return err
		}
		if !info.IsDir() {
			return backend.Permanent(errors.New("not a directory"))
		}
		// As restic does: a config that the group may read says that the group shares the repository.
		if info, err := s.Stat(path.Join(b.cfg.Path, "config")); err == nil && info.Mode()&0o040 != 0 {
			b.dirMode, b.fileMode = 0o750, 0o440
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open %s: %w", b.Location(), err), b.Close())
	}
	return b, nil
}

// Create makes the directories of a repository at cfg.Path, which may exist. Those for packs come as needed.
func Create(ctx context.Context, cfg Config) (*Backend, error) {
	b, err := newBackend(cfg)
	if err != nil {
		return nil, err
	}
	err = b.with(ctx, func(s *session) error {
		for _, dir := range []string{"", "keys", "locks", "snapshots", "index", "data"} {
			if err := b.makeDir(s, path.Join(b.cfg.Path, dir)); err != nil {
				return err
			}
		}
		return nil
	})
	err = errors.Join(err, b.Close())
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", b.Location(), err)
	}
	return Open(ctx, cfg)
}

func newBackend(cfg Config) (*Backend, error) {
	if len(cfg.Command) == 0 && (cfg.Host == "" || strings.HasPrefix(cfg.Host, "-") || strings.HasPrefix(cfg.User, "-")) {
		return nil, backend.Permanent(errors.New("SFTP repositories need a host, as in sftp:user@host:/path"))
	}
	if cfg.Connections <= 0 {
		cfg.Connections = DefaultConnections
	}
	cfg.Path = path.Clean(cfg.Path)
	return &Backend{cfg: cfg, dirMode: 0o700, fileMode: 0o400}, nil
}

// makeDir makes dir and what is missing above it.
func (b *Backend) makeDir(s *session, dir string) error {
	if info, err := s.Stat(dir); err == nil && info.IsDir() {
		return nil
	}
	if parent := path.Dir(dir); parent != dir {
		if err := b.makeDir(s, parent); err != nil {
			return err
		}
	}
	err := s.Mkdir(dir)
	if info, statErr := s.Stat(dir); err != nil && statErr == nil && info.IsDir() {
		return nil // somebody else made it in between
	}
	if err != nil {
		return fmt.Errorf("make directory %s: %w", dir, err)
	}
	return s.Chmod(dir, b.dirMode)
}

func (b *Backend) path(h backend.Handle) string {
	switch h.Type {
	case restic.ConfigFile:
		return path.Join(b.cfg.Path, "config")
	case restic.PackFile:
		return path.Join(b.cfg.Path, string(h.Type), h.Name[:2], h.Name)
	}
	return path.Join(b.cfg.Path, string(h.Type), h.Name)
}

// do runs fn on a session and explains its error.
func (b *Backend) do(ctx context.Context, verb string, h backend.Handle, fn func(*session) error) error {
	if err := h.Check(); err != nil {
		return err
	}
	if err := b.with(ctx, fn); err != nil {
		return fmt.Errorf("%s %s: %w", verb, h, err)
	}
	return nil
}

// Save writes data as h: temporary file in the same directory, synced where the server can, renamed.
func (b *Backend) Save(ctx context.Context, h backend.Handle, data []byte) error {
	return b.do(ctx, "save", h, func(s *session) error {
		final := b.path(h)
		if info, err := s.Stat(final); err == nil {
			switch {
			case h.Type == restic.ConfigFile:
				return backend.ErrExist
			case info.Size() != int64(len(data)):
				return fmt.Errorf("%d bytes are stored under this name, not %d: %w", info.Size(), len(data), backend.ErrExist)
			}
			return nil
		}
		temp := final + "-tmp-" + randomName()
		err := b.write(ctx, s, temp, data)
		if errors.Is(err, fs.ErrNotExist) {
			if err = b.makeDir(s, path.Dir(final)); err == nil {
				err = b.write(ctx, s, temp, data)
			}
		}
		if err == nil {
			err = b.publish(s, temp, h, int64(len(data)))
		}
		if err != nil {
			if removeErr := s.Remove(temp); removeErr != nil && !errors.Is(removeErr, fs.ErrNotExist) {
				err = errors.Join(err, fmt.Errorf("remove %s: %w", path.Base(temp), removeErr))
			}
		}
		return err
	})
}

func randomName() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// pieceSize bounds how much is sent after ctx ended, and is enough for all requests the session keeps in flight.
const pieceSize = 4 << 20

func (b *Backend) write(ctx context.Context, s *session, name string, data []byte) (err error) {
	f, err := s.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for rest := data; len(rest) > 0; {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		n, err := f.Write(rest[:min(len(rest), pieceSize)])
		if err != nil {
			return err
		}
		rest = rest[n:]
	}
	if _, ok := s.HasExtension(extFsync); ok {
		if err := f.Sync(); err != nil {
			return err
		}
	}
	return f.Chmod(b.fileMode)
}

// publish makes the temporary file visible under its name.
func (b *Backend) publish(s *session, temp string, h backend.Handle, size int64) error {
	final := b.path(h)
	_, posix := s.HasExtension(extPosixRename)
	if posix && h.Type != restic.ConfigFile {
		if err := s.PosixRename(temp, final); err != nil {
			return err
		}
	} else if err := s.Rename(temp, final); err != nil {
		// The protocol's own rename does not replace: the one way to lose a race of two inits with an error.
		info, statErr := s.Stat(final)
		switch {
		case statErr != nil:
			return err
		case h.Type == restic.ConfigFile || info.Size() != size:
			return errors.Join(err, backend.ErrExist)
		}
		return s.Remove(temp) // somebody saved the same file meanwhile
	}
	// The protocol has no word for syncing a directory. OpenSSH opens one like a file, and syncs it; where that
	// is refused nothing better can be done.
	if _, ok := s.HasExtension(extFsync); ok {
		if dir, err := s.Client.Open(path.Dir(final)); err == nil {
			_ = dir.Sync()
			_ = dir.Close()
		}
	}
	return nil
}

// Load reads a range.
func (b *Backend) Load(ctx context.Context, h backend.Handle, offset, length int64, fn func(io.Reader) error) error {
	return b.do(ctx, "load", h, func(s *session) (err error) {
		f, err := s.Client.Open(b.path(h))
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		n, err := backend.CheckRange(offset, length, info.Size())
		if err != nil {
			return err
		}
		// Small reads would each cost a round trip; large ones go out as many requests at once.
		r := bufio.NewReaderSize(io.NewSectionReader(f, offset, n), int(min(max(n, 16), 1<<20)))
		return backend.Deliver(ctx, r, n, fn)
	})
}

// Stat tells a file's size.
func (b *Backend) Stat(ctx context.Context, h backend.Handle) (result backend.FileInfo, err error) {
	err = b.do(ctx, "stat", h, func(s *session) error {
		info, err := s.Stat(b.path(h))
		if err == nil {
			result = backend.FileInfo{Name: h.Name, Size: info.Size()}
		}
		return err
	})
	return result, err
}

// List reads the directories of t.
func (b *Backend) List(ctx context.Context, t restic.FileType, fn func(backend.FileInfo) error) error {
	if t == restic.ConfigFile {
		return backend.Permanent(errors.New("list config: it is one file, not a directory"))
	}
	var infos []backend.FileInfo
	err := b.with(ctx, func(s *session) (err error) {
		dir := path.Join(b.cfg.Path, string(t))
		if t == restic.PackFile {
			infos, err = b.listPacks(ctx, s, dir)
		} else {
			infos, err = listDir(ctx, s, dir)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("list %s: %w", t, err)
	}
	for _, info := range infos {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if err := fn(info); err != nil {
			return err
		}
	}
	return nil
}

// listPacks reads the 256 directories several at a time, for each costs three round trips.
func (b *Backend) listPacks(ctx context.Context, s *session, dir string) ([]backend.FileInfo, error) {
	entries, err := s.ReadDirContext(ctx, dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []backend.FileInfo
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for _, e := range entries {
		if !e.IsDir() || len(e.Name()) != 2 {
			continue
		}
		g.Go(func() error {
			infos, err := listDir(ctx, s, path.Join(dir, e.Name()))
			mu.Lock()
			defer mu.Unlock()
			all = append(all, infos...)
			return err
		})
	}
	return all, g.Wait()
}

func listDir(ctx context.Context, s *session, dir string) ([]backend.FileInfo, error) {
	entries, err := s.ReadDirContext(ctx, dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var infos []backend.FileInfo
	for _, e := range entries {
		if e.Mode().IsRegular() && backend.IsName(e.Name()) {
			infos = append(infos, backend.FileInfo{Name: e.Name(), Size: e.Size()})
		}
	}
	return infos, nil
}

// Remove deletes a file.
func (b *Backend) Remove(ctx context.Context, h backend.Handle) error {
	return b.do(ctx, "remove", h, func(s *session) error {
		err := s.Remove(b.path(h))
		if errors.Is(err, fs.ErrPermission) {
			return fmt.Errorf("%w: %w", err, backend.ErrReadOnly)
		}
		return err
	})
}

// Connections is the figure given at Open.
func (b *Backend) Connections() int { return b.cfg.Connections }

// Location is user, host and path.
func (b *Backend) Location() string {
	host := b.cfg.Host
	if b.cfg.User != "" {
		host = b.cfg.User + "@" + host
	}
	if b.cfg.Port == "" {
		return "sftp:" + host + ":" + b.cfg.Path
	}
	return "sftp://" + host + ":" + b.cfg.Port + "/" + b.cfg.Path
}

// explain adds what callers ask of an error.
func explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return backend.Mark(err, backend.ErrNotExist)
	case errors.Is(err, fs.ErrExist):
		return backend.Mark(err, backend.ErrExist)
	case errors.Is(err, fs.ErrPermission):
		return backend.Permanent(err)
	}
	var status *sftp.StatusError
	if errors.As(err, &status) && status.FxCode() == sftp.ErrSSHFxOpUnsupported {
		return backend.Permanent(err)
	}
	return err
}

// Retained is not known here.
func (*Backend) Retained(context.Context, backend.Handle) (time.Time, error) { return time.Time{}, nil }
