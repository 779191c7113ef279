// Package repo is a restic repository: what a backup writes into and a restore reads from.
//
// It hides how blobs become files: deduplication, compression, sealing, packing, indexing, locking, and the order
// of writes that makes a crash at any point harmless. What it writes any restic reads, and the reverse.
//
// Words: content is cut into chunks; a chunk or a tree as stored is a blob, named by its SHA-256; blobs lie in packs;
// an index says where; a snapshot names a root tree; a commit is the one write that makes a snapshot exist.
//
// The order that everything here keeps: packs, then the index that names them, then the snapshot that needs them, each
// durable before the next; what is deleted goes in the reverse order, under an exclusive lock. So at any point a crash
// leaves at most files nobody refers to.
package repo

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/user"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/internal/crypto"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// Questions callers ask of an error.
var (
	ErrWrongPassword = errors.New("wrong password, or no key of the repository fits it")
	ErrNoRepository  = errors.New("there is no repository")
	ErrExists        = errors.New("there is a repository already")
	ErrDamaged       = errors.New("damaged")
	ErrNotFound      = errors.New("not in the repository")
	// ErrUnopenable is the damage or loss of the config or of all keys: nothing can be read, whatever the password.
	ErrUnopenable = fmt.Errorf("%w", ErrDamaged)
	// ErrCannotLock is a store that takes no lock file.
	ErrCannotLock = errors.New("write lock")
	// ErrNoLock is what all that writes fails with, or needs an exclusive lock, under [OpenOptions.NoLock].
	ErrNoLock = errors.New("opened without locks, to be read only")
)

// InitOptions say how a repository is made. Only the password is required.
type InitOptions struct {
	Password string
	// Version of the format, 1 or 2; 0 means 2.
	Version int
	// Polynomial is the chunker's, to share chunks with another repository (copying between them then finds
	// duplicates); 0 means a random one.
	Polynomial uint64
	// KeyTime is how long deriving the key from a password shall take on this machine; 0 means 500 ms, as restic does.
	KeyTime time.Duration
}

// OpenOptions say how a repository is used. Only the password is required.
type OpenOptions struct {
	Password string
	// Compression of what is written; empty means auto.
	Compression restic.Compression
	// PackSize is the size at which a pack is closed, in bytes, 4 to 128 MiB; 0 means 16 MiB.
	PackSize int
	// CacheDir is where indexes, snapshots and trees are kept for the next time; empty means nowhere. A directory
	// per repository is made in it. It may be deleted at any time.
	CacheDir string
	// CacheSize bounds what is kept in CacheDir, of all repositories together, in bytes; 0 means 2 GiB. What was not used for
	// longest goes first, but nothing of other repositories that are open.
	CacheSize int64
	// BlobCache bounds the decoded chunks kept in memory for [Repository.Reader], in bytes; 0 means 32 MiB.
	BlobCache int64
	// LockWait is how long to wait for the locks of others that conflict; 0 means not at all.
	LockWait time.Duration
	// NoLock is for stores that cannot be written: nothing is, what reads takes no lock. A prune by another process meanwhile looks
	// like damage.
	NoLock bool
}

const (
	defaultPackSize = 16 << 20
	minPackSize     = 4 << 20
	maxPackSize     = 128 << 20
)

// Repository is an open repository. Its methods may be called concurrently.
type Repository struct {
	be     *gate
	config restic.Config
	key    *crypto.Key
	master restic.MasterKey
	keyID  atomic.Pointer[restic.ID] // the key file that opened it
	zstd   *restic.Zstd
	cache  *diskCache // nil without

	packSize int
	lockWait time.Duration
	index    indexHolder
	sessions sessionHolder
	blobs    *blobCache
	sealed   sync.Pool // of *[]byte: blobs as stored, while one is read
	zeros    []byte    // 512 KiB of zeros
	room     *room
}

// Init makes a repository and opens it with default options. The store must hold none.
func Init(ctx context.Context, be backend.Backend, o InitOptions) (*Repository, error) {
	if o.Password == "" {
		return nil, errors.New("a repository needs a password that is not empty")
	}
	if o.Version == 0 {
		o.Version = 2
	}
	if o.Version != 1 && o.Version != 2 {
		return nil, fmt.Errorf("repository format version %d is not known here; versions 1 and 2 are", o.Version)
	}
	if o.Polynomial == 0 {
		o.Polynomial = randomPolynomial()
	}
	if !restic.ValidPolynomial(o.Polynomial) {
		return nil, fmt.Errorf("chunker polynomial %#x is not an irreducible one of degree 53", o.Polynomial)
	}
	if err := vacant(ctx, be); err != nil {
		return nil, err
	}
	var secrets [64 + 32]byte
	rand.Read(secrets[:])
	master := restic.MasterKey{Encrypt: secrets[0:32], MACK: secrets[32:48], MACR: secrets[48:64]}
	config := restic.Config{Version: o.Version, ID: hex.EncodeToString(secrets[64:]), Polynomial: o.Polynomial}
	key, err := crypto.NewKey(master.Encrypt, master.MACK, master.MACR)
	if err != nil {
		return nil, err
	}
	id, err := saveKey(ctx, be, master, newKey{password: o.Password, keyTime: o.KeyTime})
	if err != nil {
		return nil, fmt.Errorf("make repository: %w", err)
	}
	sealed := key.Seal(nil, restic.EncodeConfig(config))
	if err := be.Save(ctx, backend.Handle{Type: restic.ConfigFile}, sealed); err != nil {
		// A key without a config would keep the next attempt out.
		cleanup, cancel := lastly(ctx)
		defer cancel()
		if rmErr := be.Remove(cleanup, backend.Handle{Type: restic.KeyFile, Name: id.String()}); rmErr != nil && !errors.Is(rmErr, backend.ErrNotExist) {
			err = errors.Join(err, rmErr)
		}
		if errors.Is(err, backend.ErrExist) {
			return nil, fmt.Errorf("%s: %w", be.Location(), ErrExists)
		}
		return nil, fmt.Errorf("make repository: %w", err)
	}
	return Open(ctx, be, OpenOptions{Password: o.Password})
}

// vacant reports whether the store can take a new repository: restic too refuses one with a config, keys or snapshots.
func vacant(ctx context.Context, be backend.Backend) error {
	_, err := be.Stat(ctx, backend.Handle{Type: restic.ConfigFile})
	if err == nil {
		return fmt.Errorf("%s: %w", be.Location(), ErrExists)
	}
	if !errors.Is(err, backend.ErrNotExist) {
		return fmt.Errorf("look for a repository: %w", err)
	}
	for _, t := range []restic.FileType{restic.KeyFile, restic.SnapshotFile} {
		err := be.List(ctx, t, func(info backend.FileInfo) error {
			return fmt.Errorf("%s: %w: it has no config, but %s/%s", be.Location(), ErrExists, t, info.Name)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// randomPolynomial draws until it is irreducible: one in 53 of degree 53 is.
func randomPolynomial() uint64 {
	for {
		var b [8]byte
		rand.Read(b[:])
		p := binary.LittleEndian.Uint64(b[:])&(1<<restic.PolynomialDegree-1) | 1<<restic.PolynomialDegree | 1
		if restic.ValidPolynomial(p) {
			return p
		}
	}
}

// Open opens the repository in a store with a password. The store stays the caller's to close, after [Repository.Close].
func Open(ctx context.Context, be backend.Backend, o OpenOptions) (*Repository, error) {
	if o.PackSize == 0 {
		o.PackSize = defaultPackSize
	}
	if o.PackSize < minPackSize || o.PackSize > maxPackSize {
		return nil, fmt.Errorf("pack size %d is not between %d and %d bytes", o.PackSize, minPackSize, maxPackSize)
	}
	if o.BlobCache == 0 {
		o.BlobCache = 32 << 20
	}
	sealed, err := loadWhole(ctx, be, backend.Handle{Type: restic.ConfigFile})
	if errors.Is(err, backend.ErrNotExist) {
		return nil, noConfig(ctx, be)
	}
	if err != nil {
		return nil, fmt.Errorf("open repository: %w", err)
	}
	master, keyID, err := openKey(ctx, be, o.Password)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", be.Location(), err)
	}
	key, err := crypto.NewKey(master.Encrypt, master.MACK, master.MACR)
	if err != nil {
		return nil, err
	}
	plain, err := key.Open(nil, sealed)
	if err != nil {
		return nil, fmt.Errorf("config: %w: %w", ErrUnopenable, err)
	}
	config, err := restic.DecodeConfig(plain)
	if err != nil {
		return nil, err
	}
	z, err := restic.NewZstd(o.Compression)
	if err != nil {
		return nil, err
	}
	r := &Repository{
		config: config, key: key, master: master, zstd: z,
		packSize: o.PackSize, lockWait: o.LockWait, blobs: newBlobCache(o.BlobCache), zeros: make([]byte, restic.ZeroChunkSize),
		room: newRoom(roomSize),
	}
	if o.CacheDir != "" {
		r.cache, err = openDiskCache(o.CacheDir, config.ID, o.CacheSize)
		if err != nil {
			z.Close()
			return nil, err
		}
	}
	r.be = &gate{Backend: be, noLock: o.NoLock}
	r.keyID.Store(&keyID)
	return r, nil
}

// noConfig tells a repository that lost its config from none.
func noConfig(ctx context.Context, be backend.Backend) error {
	keys := 0
	if err := be.List(ctx, restic.KeyFile, func(backend.FileInfo) error { keys++; return nil }); err == nil && keys > 0 {
		return fmt.Errorf("%s: %w: there are keys, but no config file", be.Location(), ErrUnopenable)
	}
	return fmt.Errorf("%s: %w: it has no config file", be.Location(), ErrNoRepository)
}

// Close frees what Open took. No other method may run or be called after.
func (r *Repository) Close() error {
	r.zstd.Close()
	return r.cache.close()
}

// Config tells the repository's format version, identity and chunker polynomial.
func (r *Repository) Config() restic.Config { return r.config }

// ID identifies the repository: 64 hexadecimal digits.
func (r *Repository) ID() string { return r.config.ID }

// Location tells people where the repository is, without secrets.
func (r *Repository) Location() string { return r.be.Location() }

// gate is the store as all but locks use it: what changes it is stopped while a lock's fate is unknown.
type gate struct {
	backend.Backend
	mu     sync.RWMutex
	noLock bool
}

var _ backend.Backend = (*gate)(nil)

func (g *gate) Save(ctx context.Context, h backend.Handle, data []byte) error {
	if g.noLock {
		return fmt.Errorf("save %s: %w", h, ErrNoLock)
	}
	g.mu.RLock()
	defer g.mu.RUnlock()
	if err := context.Cause(ctx); err != nil { // it may have ended while the gate was shut
		return err
	}
	return g.Backend.Save(ctx, h, data)
}

func (g *gate) Remove(ctx context.Context, h backend.Handle) error {
	if g.noLock {
		return fmt.Errorf("remove %s: %w", h, ErrNoLock)
	}
	g.mu.RLock()
	defer g.mu.RUnlock()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return g.Backend.Remove(ctx, h)
}

// lastly is a context for what must still be done after ctx ended, with a minute to do it in.
func lastly(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
}

// identity is who we are to others who look at locks, keys and snapshots.
func identity() (hostname, username string, uid, gid uint32) {
	hostname, err := os.Hostname()
	if err != nil {
		hostname = "unknown"
	}
	if u, err := user.Current(); err == nil {
		username = u.Username
	}
	return hostname, username, uint32(max(0, os.Getuid())), uint32(max(0, os.Getgid()))
}
