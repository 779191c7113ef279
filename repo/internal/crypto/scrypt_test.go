package crypto

import (
	"bytes"
	"encoding/hex"
	"testing"

	reference "golang.org/x/crypto/scrypt"
)

func TestScryptIsThatOfTheRFC(t *testing.T) {
	// RFC 7914, section 12.
	for _, v := range []struct {
		password, salt string
		p              Params
		want           string
	}{
		{"", "", Params{N: 16, R: 1, P: 1}, "77d6576238657b203b19ca42c18a0497f16b4844e3074ae8dfdffa3fede21442fcd0069ded0948f8326a753a0fc81f17e8d3e0fb2e0d3628cf35e20c38d18906"},
		{"password", "NaCl", Params{N: 1024, R: 8, P: 16}, "fdbabe1c9d3472007856e7190d01e9fe7c6ad7cbc8237830e77376634b3731622eaf30d92e22a3886ff109279d9830dac727afb94a83ee6d8360cbdfa2cc0640"},
		{"pleaseletmein", "SodiumChloride", Params{N: 16384, R: 8, P: 1}, "7023bdcb3afd7348461c06cd81fd38ebfda8fbba904f8e3ea9b543f6545da1f2d5432955613f0fcf62d49705242a9af9e61e85dc0d651e40dfcf017b45575887"},
	} {
		got, err := scrypt([]byte(v.password), []byte(v.salt), v.p, 64)
		if err != nil || hex.EncodeToString(got) != v.want {
			t.Errorf("%+v: %x, %v", v.p, got, err)
		}
	}
}

func TestScryptIsThatOfOthers(t *testing.T) {
	for _, p := range []Params{{2, 8, 1}, {4, 1, 7}, {64, 3, 5}, {32768, 8, 3}} {
		got, err := scrypt([]byte("geheim"), []byte("salt"), p, 48)
		want, refErr := reference.Key([]byte("geheim"), []byte("salt"), p.N, p.R, p.P, 48)
		if err != nil || refErr != nil || !bytes.Equal(got, want) {
			t.Errorf("%+v: %x, %v; want %x, %v", p, got, err, want, refErr)
		}
	}
}

func TestScryptRefusesBadParameters(t *testing.T) {
	for _, p := range []Params{{}, {1, 8, 1}, {3, 8, 1}, {-2, 8, 1}, {2, 0, 1}, {2, 8, 0}, {2, -1, 1}, {2, 1 << 20, 1 << 20}, {1 << 40, 8, 1}, {2, 1, -1}} {
		if _, err := scrypt(nil, nil, p, 64); err == nil {
			t.Errorf("%+v is taken", p)
		}
	}
}

func BenchmarkScrypt(b *testing.B) {
	p := Params{N: 32768, R: 8, P: 4} // about what restic init chooses
	b.Run("vmkeep", func(b *testing.B) {
		for b.Loop() {
			if _, err := scrypt([]byte("geheim"), []byte("salt"), p, 64); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("x-crypto", func(b *testing.B) {
		for b.Loop() {
			if _, err := reference.Key([]byte("geheim"), []byte("salt"), p.N, p.R, p.P, 64); err != nil {
				b.Fatal(err)
			}
		}
	})
}
