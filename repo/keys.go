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
		return restic.MasterKey{}, restic.ID{}, fmt.Errorf("%w: the repository has no key file left; without a copy of one nobody can read it", ErrDamaged)
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
