package restic

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/bits"
	"strconv"
)

// Config is the one file every repository has: format version, identity, and the polynomial its chunks are cut by.
type Config struct {
	Version int // 1 or 2
	// ID names the repository: 64 hexadecimal digits, random.
	ID string
	// Polynomial is irreducible over GF(2) and of degree 53, a bit for each power of x.
	Polynomial uint64
}

type configJSON struct {
	Version    int    `json:"version"`
	ID         string `json:"id"`
	Polynomial string `json:"chunker_polynomial"`
}

// EncodeConfig is the config file's plaintext. It is sealed as it is: neither compressed nor marked with a version byte.
func EncodeConfig(c Config) []byte {
	b, err := json.Marshal(configJSON{c.Version, c.ID, strconv.FormatUint(c.Polynomial, 16)})
	if err != nil {
		panic(err) // strings and numbers always marshal
	}
	return b
}

// DecodeConfig reads a config file's plaintext and refuses what restic would: other versions, a reducible polynomial.
func DecodeConfig(data []byte) (Config, error) {
	var j configJSON
	if err := json.Unmarshal(data, &j); err != nil {
		return Config{}, fmt.Errorf("config: %w", err)
	}
	if j.Version != 1 && j.Version != 2 {
		return Config{}, fmt.Errorf("config: repository format version %d is not known here; versions 1 and 2 are", j.Version)
	}
	if b, err := hex.DecodeString(j.ID); err != nil || len(b) != 32 {
		return Config{}, fmt.Errorf("config: repository id %q is not 64 hexadecimal digits", j.ID)
	}
	pol, err := strconv.ParseUint(j.Polynomial, 16, 64)
	if err != nil || !ValidPolynomial(pol) {
		return Config{}, fmt.Errorf("config: chunker polynomial %q is not an irreducible one of degree 53", j.Polynomial)
	}
	return Config{j.Version, j.ID, pol}, nil
}

// PolynomialDegree is the degree of every repository's polynomial.
const PolynomialDegree = 53

// ValidPolynomial reports whether p has degree 53 and is irreducible over GF(2), by Ben-Or's test: no irreducible
// factor of degree i <= 26, that is gcd(p, x^(2^i) - x) = 1.
func ValidPolynomial(p uint64) bool {
	if bits.Len64(p) != PolynomialDegree+1 {
		return false
	}
	q := uint64(2) // x
	for range PolynomialDegree / 2 {
		q = mulMod(q, q, p)
		if gcd(p, q^2) != 1 {
			return false
		}
	}
	return true
}

// mulMod is a*b mod p for a, b of lower degree than p.
func mulMod(a, b, p uint64) (r uint64) {
	top := uint64(1) << (bits.Len64(p) - 1)
	for ; b != 0; b >>= 1 {
		if b&1 != 0 {
			r ^= a
		}
		if a <<= 1; a&top != 0 {
			a ^= p
		}
	}
	return r
}

func gcd(a, b uint64) uint64 {
	for b != 0 {
		for d := bits.Len64(a) - bits.Len64(b); d >= 0 && a != 0; d = bits.Len64(a) - bits.Len64(b) {
			a ^= b << d
		}
		a, b = b, a
	}
	return a
}
