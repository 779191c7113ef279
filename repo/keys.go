package repo

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/internal/crypto"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// maxKeys is how many key files restic tries before it gives up.
const maxKeys = 20

const defaultKeyTime = 500 * time.Millisecond

// newKey is what a key file is made of besides the master key.
type newKey struct {
	password           string
	username, hostname string // empty: this process'
	keyTime            time.Duration
}

// saveKey writes a key file that opens the master key with a password.
func saveKey(ctx context.Context, be backend.Backend, master restic.MasterKey, n newKey) (restic.ID, error) {
	if n.keyTime == 0 {
		n.keyTime = defaultKeyTime
	}
	hostname, username, _, _ := identity()
	p := crypto.Calibrate(n.keyTime, crypto.Measure)
	k := restic.Key{
		Created: time.Now(), Username: cmp.Or(n.username, username), Hostname: cmp.Or(n.hostname, hostname),
		KDF: "scrypt", N: p.N, R: p.R, P: p.P, Salt: make([]byte, restic.KeySaltSize),
	}
	rand.Read(k.Salt)
	derived, err := crypto.Derive([]byte(n.password), k.Salt, p)
	if err != nil {
		return restic.ID{}, err
	}
	plain, err := restic.EncodeMasterKey(master)
	if err != nil {
		return restic.ID{}, err
	}
	k.Data = derived.Seal(nil, plain)
	data, err := restic.EncodeKey(k)
	if err != nil {
		return restic.ID{}, err
	}
	id := restic.Hash(data)
	if err := be.Save(ctx, backend.Handle{Type: restic.KeyFile, Name: id.String()}, data); err != nil {
		return restic.ID{}, fmt.Errorf("save key: %w", err)
	}
	return id, nil
}

// openKey tries the key files with a password.
func openKey(ctx context.Context, be backend.Backend, password string) (restic.MasterKey, restic.ID, error) {
	var names []string
	if err := be.List(ctx, restic.KeyFile, func(info backend.FileInfo) error {
		names = append(names, info.Name)
		return nil
	}); err != nil {
		return restic.MasterKey{}, restic.ID{}, fmt.Errorf("list keys: %w", err)
	}
	if len(names) == 0 {
		return restic.MasterKey{}, restic.ID{}, fmt.Errorf("%w: the repository has no key file left; without a copy of one nobody can read it", ErrUnopenable)
	}
	slices.Sort(names) // the same order every time
	var broken error
	for i, name := range names {
		if i == maxKeys {
			break
		}
		master, err := tryKey(ctx, be, name, password)
		switch {
		case err == nil:
			id, err := restic.ParseID(name)
			return master, id, err
		case errors.Is(err, crypto.ErrAuth):
		case errors.Is(err, ErrDamaged):
			broken = errors.Join(broken, err)
		case errors.Is(err, backend.ErrNotExist): // removed just now
		default:
			return restic.MasterKey{}, restic.ID{}, err
		}
	}
	if broken != nil {
		return restic.MasterKey{}, restic.ID{}, fmt.Errorf("%w; these keys could not be tried: %w", ErrWrongPassword, broken)
	}
	return restic.MasterKey{}, restic.ID{}, ErrWrongPassword
}

// tryKey opens one key file. It fails with crypto.ErrAuth if the password is another key's.
func tryKey(ctx context.Context, be backend.Backend, name, password string) (restic.MasterKey, error) {
	data, err := loadWhole(ctx, be, backend.Handle{Type: restic.KeyFile, Name: name})
	if err != nil {
		return restic.MasterKey{}, err
	}
	k, err := restic.DecodeKey(data)
	if err != nil {
		return restic.MasterKey{}, fmt.Errorf("keys/%s: %w: %w", name, ErrDamaged, err)
	}
	derived, err := crypto.Derive([]byte(password), k.Salt, crypto.Params{N: k.N, R: k.R, P: k.P})
	if err != nil {
		return restic.MasterKey{}, fmt.Errorf("keys/%s: %w: %w", name, ErrDamaged, err)
	}
	plain, err := derived.Open(nil, k.Data)
	if err != nil {
		return restic.MasterKey{}, err
	}
	master, err := restic.DecodeMasterKey(plain)
	if err != nil {
		return restic.MasterKey{}, fmt.Errorf("keys/%s: %w: %w", name, ErrDamaged, err)
	}
	return master, nil
}

// KeyInfo is a key file. Err is set, and only ID besides, if it cannot be used.
type KeyInfo struct {
	ID                 restic.ID
	Created            time.Time
	Username, Hostname string
	Current            bool // it opened this Repository
	Err                error
}

// Keys lists the key files, the oldest first.
func (r *Repository) Keys(ctx context.Context) ([]KeyInfo, error) {
	names, err := r.list(ctx, restic.KeyFile)
	if err != nil {
		return nil, err
	}
	var out []KeyInfo
	for id := range names {
		info := KeyInfo{ID: id, Current: id == *r.keyID.Load()}
		data, err := loadWhole(ctx, r.be, backend.Handle{Type: restic.KeyFile, Name: id.String()})
		switch {
		case errors.Is(err, backend.ErrNotExist):
			continue
		case errors.Is(err, ErrDamaged):
			info.Err = err
		case err != nil:
			return nil, err
		default:
			k, err := restic.DecodeKey(data)
			info.Created, info.Username, info.Hostname, info.Err = k.Created, k.Username, k.Hostname, err
		}
		out = append(out, info)
	}
	slices.SortFunc(out, func(a, b KeyInfo) int {
		return cmp.Or(a.Created.Compare(b.Created), slices.Compare(a.ID[:], b.ID[:]))
	})
	return out, nil
}

// KeyOptions describe a new key. Only the password is required.
type KeyOptions struct {
	Password string
	// Username and Hostname are what the list of keys shows; empty means this process'.
	Username, Hostname string
	// KeyTime is how long deriving the key from the password shall take; 0 means 500 ms.
	KeyTime time.Duration
}

// AddKey makes the repository open with another password too.
func (r *Repository) AddKey(ctx context.Context, o KeyOptions) (id restic.ID, err error) {
	if o.Password == "" {
		return id, errors.New("a key needs a password that is not empty")
	}
	err = r.WithLock(ctx, Shared, func(ctx context.Context) error {
		id, err = saveKey(ctx, r.be, r.master, newKey{o.Password, o.Username, o.Hostname, o.KeyTime})
		return err
	})
	return id, err
}

// RemoveKey makes the repository open no more with a key's password. The key that opened this Repository cannot be removed.
// Who has opened the repository with it before may have copied the master key, which does not change.
func (r *Repository) RemoveKey(ctx context.Context, id restic.ID) error {
	if id == *r.keyID.Load() {
		return fmt.Errorf("key %s is the one in use; open the repository with another password to remove it", id.Short())
	}
	return r.WithLock(ctx, Exclusive, func(ctx context.Context) error {
		err := r.be.Remove(ctx, backend.Handle{Type: restic.KeyFile, Name: id.String()})
		if errors.Is(err, backend.ErrNotExist) {
			return fmt.Errorf("key %s: %w", id.Short(), ErrNotFound)
		}
		return err
	})
}

// ChangePassword replaces the key that opened this Repository by one with another password, and returns the new key's ID. The
// new key is proven to open the repository before the old one is removed.
func (r *Repository) ChangePassword(ctx context.Context, o KeyOptions) (id restic.ID, err error) {
	if o.Password == "" {
		return id, errors.New("a key needs a password that is not empty")
	}
	err = r.WithLock(ctx, Exclusive, func(ctx context.Context) error {
		if id, err = saveKey(ctx, r.be, r.master, newKey{o.Password, o.Username, o.Hostname, o.KeyTime}); err != nil {
			return err
		}
		if _, err := tryKey(ctx, r.be, id.String(), o.Password); err != nil {
			return fmt.Errorf("verify the new key: %w", err)
		}
		old := *r.keyID.Load()
		err := r.be.Remove(ctx, backend.Handle{Type: restic.KeyFile, Name: old.String()})
		if err != nil && !errors.Is(err, backend.ErrNotExist) {
			return fmt.Errorf("the new password works, but so does the old one: remove key %s: %w", old.Short(), err)
		}
		r.keyID.Store(&id)
		return nil
	})
	return id, err
}
