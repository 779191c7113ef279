// Package crypto is all of a repository's cryptography: how bytes are sealed and how a password becomes a key.
//
// It hides the construction, Poly1305-AES over AES-256-CTR, chosen by restic and fixed by the format. A sealed unit:
//
//	+--------+----------------------------+---------+
//	| IV 16  | AES-256-CTR(plain), as long | MAC 16  |
//	+--------+----------------------------+---------+
//
// MAC = Poly1305 of the ciphertext alone, with the one-time key r || AES-128_k(IV). Nothing binds a unit to its name or place:
// the hashes in authenticated parents do.
package crypto

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"time"

	"golang.org/x/crypto/poly1305" //lint:ignore SA1019 the format is Poly1305-AES; no other public package offers the bare authenticator
)

const (
	ivSize  = aes.BlockSize
	macSize = poly1305.TagSize
	// Overhead is the number of bytes sealing adds.
	Overhead = ivSize + macSize
)

// ErrAuth says that bytes were not sealed with this key, or were changed since.
var ErrAuth = errors.New("authentication failed: wrong key, or the data is damaged")

// Key seals and opens. Its methods may be called concurrently.
type Key struct {
	enc, mac cipher.Block
	r        [16]byte
}

// NewKey makes a key of its three secrets: the AES-256 key (32 bytes), the AES-128 key that makes Poly1305's nonce
// (16 bytes) and Poly1305's r (16 bytes).
func NewKey(encrypt, macK, macR []byte) (*Key, error) {
	if len(encrypt) != 32 || len(macK) != 16 || len(macR) != 16 {
		return nil, fmt.Errorf("key of %d, %d, %d bytes: want 32, 16, 16", len(encrypt), len(macK), len(macR))
	}
	enc, err := aes.NewCipher(encrypt)
	if err != nil {
		return nil, err
	}
	mac, err := aes.NewCipher(macK)
	if err != nil {
		return nil, err
	}
	k := &Key{enc: enc, mac: mac}
	copy(k.r[:], macR)
	return k, nil
}

// oneTime is Poly1305's key for the unit with this IV.
func (k *Key) oneTime(iv []byte) (key [32]byte) {
	copy(key[:16], k.r[:])
	k.mac.Encrypt(key[16:], iv)
	return key
}

// Seal appends the sealed plain to dst, with a random IV. plain and dst's spare capacity may not overlap.
func (k *Key) Seal(dst, plain []byte) []byte {
	n := len(dst)
	dst = grow(dst, len(plain)+Overhead)
	unit := dst[n:]
	iv, text := unit[:ivSize], unit[ivSize:ivSize+len(plain)]
	for zero := true; zero; { // readers refuse the zero IV; it never comes
		rand.Read(iv) // never fails: it ends the process instead
		for _, b := range iv {
			zero = zero && b == 0
		}
	}
	k.seal(unit, iv, text, plain)
	return dst
}

func (k *Key) seal(unit, iv, text, plain []byte) {
	cipher.NewCTR(k.enc, iv).XORKeyStream(text, plain)
	var tag [macSize]byte
	key := k.oneTime(iv)
	poly1305.Sum(&tag, text, &key)
	copy(unit[len(unit)-macSize:], tag[:])
}

// Open verifies a sealed unit and appends its plaintext to dst. dst's spare capacity may be the unit's own ciphertext
// (opening in place: dst = unit[16:16]).
func (k *Key) Open(dst, unit []byte) ([]byte, error) {
	if len(unit) < Overhead {
		return nil, fmt.Errorf("%w: %d bytes are too short", ErrAuth, len(unit))
	}
	iv, text, mac := unit[:ivSize], unit[ivSize:len(unit)-macSize], unit[len(unit)-macSize:]
	var zero [ivSize]byte
	if subtle.ConstantTimeCompare(iv, zero[:]) == 1 {
		return nil, fmt.Errorf("%w: the IV is zero", ErrAuth)
	}
	key := k.oneTime(iv)
	if !poly1305.Verify((*[macSize]byte)(mac), text, &key) {
		return nil, ErrAuth
	}
	n := len(dst)
	dst = grow(dst, len(text))
	cipher.NewCTR(k.enc, iv).XORKeyStream(dst[n:], text)
	return dst, nil
}

// grow makes dst n bytes longer.
func grow(dst []byte, n int) []byte {
	if cap(dst)-len(dst) >= n {
		return dst[:len(dst)+n]
	}
	out := make([]byte, len(dst)+n)
	copy(out, dst)
	return out
}

// Params are scrypt's cost parameters.
type Params struct{ N, R, P int }

// Derive makes the key a password opens a key file with.
func Derive(password, salt []byte, p Params) (*Key, error) {
	b, err := scrypt(password, salt, p, 64)
	if err != nil {
		return nil, err
	}
	return NewKey(b[:32], b[32:48], b[48:64])
}

// Calibrate finds parameters that take about target on this machine and at most 32 MiB of memory, as restic does:
// r = 8, N as large as memory allows, then p as large as time allows. elapsed measures one derivation. A target of a
// microsecond or less is below what can be measured and gets the cheapest parameters.
func Calibrate(target time.Duration, elapsed func(Params) time.Duration) Params {
	if target <= time.Microsecond {
		return Params{N: 2, R: 8, P: 1}
	}
	p := Params{N: 32768, R: 8, P: 1}
	took := elapsed(p)
	for took > target && p.N > 2 {
		p.N /= 2
		took = elapsed(p)
	}
	if took > 0 {
		p.P = int(max(1, min(int64(target/took), 64)))
	}
	return p
}

// Measure runs one derivation and tells how long it took.
func Measure(p Params) time.Duration {
	start := time.Now()
	if _, err := Derive([]byte("calibration"), make([]byte, 64), p); err != nil {
		panic(err) // the parameters are Calibrate's own
	}
	return time.Since(start)
}
