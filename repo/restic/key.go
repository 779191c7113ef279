package restic

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"
)

// Key is a key file: how a password opens the master key. It is the only file that is not encrypted as a whole.
type Key struct {
	Created  time.Time `json:"created"`
	Username string    `json:"username"`
	Hostname string    `json:"hostname"`
	KDF      string    `json:"kdf"` // "scrypt"
	N        int       `json:"N"`
	R        int       `json:"r"`
	P        int       `json:"p"`
	Salt     []byte    `json:"salt"` // 64 bytes
	Data     []byte    `json:"data"` // the master key's JSON, sealed by the key derived from the password
}

// Limits for key files. restic accepts what needs 2 GiB of memory; who can put a key file into a repository should
// not be able to exhaust the host of everyone who opens it. restic itself writes N = 32768, r = 8 (32 MiB).
const (
	KeySaltSize        = 64
	MaxKeyMemory       = 1 << 30 // bytes: 128*N*r
	MaxKeyWork         = 1 << 27 // N*r*p: about half a minute
	maxKeyFileDataSize = 4 << 10
)

// EncodeKey is the content of the key file.
func EncodeKey(k Key) ([]byte, error) {
	b, err := json.Marshal(k)
	if err != nil {
		return nil, fmt.Errorf("key file: %w", err)
	}
	return b, nil
}

// DecodeKey reads a key file and refuses parameters that would exhaust memory or time.
func DecodeKey(data []byte) (Key, error) {
	var k Key
	if err := json.Unmarshal(data, &k); err != nil {
		return Key{}, fmt.Errorf("key file: %w", err)
	}
	switch {
	case k.KDF != "scrypt":
		return Key{}, fmt.Errorf("key file: key derivation %q is not known, only scrypt", k.KDF)
	case len(k.Salt) != KeySaltSize:
		return Key{}, fmt.Errorf("key file: salt has %d bytes, not %d", len(k.Salt), KeySaltSize)
	case len(k.Data) < Sealed || len(k.Data) > maxKeyFileDataSize:
		return Key{}, fmt.Errorf("key file: sealed key has %d bytes", len(k.Data))
	case k.N <= 1 || k.N > math.MaxInt32 || k.N&(k.N-1) != 0 || k.R < 1 || k.P < 1 || k.R > math.MaxInt16 || k.P > math.MaxInt16:
		return Key{}, fmt.Errorf("key file: scrypt parameters N=%d r=%d p=%d are invalid", k.N, k.R, k.P)
	case int64(k.N)*int64(k.R)*128 > MaxKeyMemory:
		return Key{}, fmt.Errorf("key file: scrypt parameters N=%d r=%d ask for more than 1 GiB of memory", k.N, k.R)
	case int64(k.N)*int64(k.R)*int64(k.P) > MaxKeyWork:
		return Key{}, fmt.Errorf("key file: scrypt parameters N=%d r=%d p=%d ask for unreasonably much work", k.N, k.R, k.P)
	}
	return k, nil
}

// MasterKey is what all of a repository's key files hold: the keys everything is sealed with.
type MasterKey struct {
	Encrypt []byte // AES-256: 32 bytes
	MACK    []byte // AES-128 that makes Poly1305's nonce: 16 bytes
	MACR    []byte // Poly1305's r, not clamped: 16 bytes
}

type masterKeyJSON struct {
	MAC struct {
		K []byte `json:"k"`
		R []byte `json:"r"`
	} `json:"mac"`
	Encrypt []byte `json:"encrypt"`
}

// EncodeMasterKey is the plaintext of a key file's Data.
func EncodeMasterKey(k MasterKey) ([]byte, error) {
	var j masterKeyJSON
	j.MAC.K, j.MAC.R, j.Encrypt = k.MACK, k.MACR, k.Encrypt
	return json.Marshal(j)
}

// DecodeMasterKey reads the plaintext of a key file's Data.
func DecodeMasterKey(data []byte) (MasterKey, error) {
	var j masterKeyJSON
	if err := json.Unmarshal(data, &j); err != nil {
		// The text is secret: the error may not quote it.
		return MasterKey{}, errors.New("master key: malformed JSON")
	}
	k := MasterKey{j.Encrypt, j.MAC.K, j.MAC.R}
	for _, part := range []struct {
		name string
		b    []byte
		want int
	}{{"encryption key", k.Encrypt, 32}, {"mac key k", k.MACK, 16}, {"mac key r", k.MACR, 16}} {
		zero := true
		for _, b := range part.b {
			zero = zero && b == 0
		}
		if len(part.b) != part.want || zero {
			return MasterKey{}, fmt.Errorf("master key: %s is unusable", part.name)
		}
	}
	return k, nil
}
