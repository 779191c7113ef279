package crypto

import (
	"bytes"
	"encoding/hex"
	"errors"
	"testing"
	"time"
)

func testKey(t testing.TB) *Key {
	t.Helper()
	k, err := NewKey(bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 16), bytes.Repeat([]byte{3}, 16))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestSealedOpens(t *testing.T) {
	k := testKey(t)
	for _, n := range []int{0, 1, 15, 16, 17, 1000, 1 << 20} {
		plain := bytes.Repeat([]byte("x"), n)
		prefix := []byte("before")
		unit := k.Seal(bytes.Clone(prefix), plain)
		if !bytes.HasPrefix(unit, prefix) || len(unit) != len(prefix)+n+Overhead {
			t.Fatalf("%d bytes became %d", n, len(unit))
		}
		unit = unit[len(prefix):]
		got, err := k.Open(bytes.Clone(prefix), unit)
		if err != nil || !bytes.Equal(got, append(prefix, plain...)) {
			t.Fatalf("%d bytes: %v", n, err)
		}
		inPlace, err := k.Open(unit[16:16], unit)
		if err != nil || !bytes.Equal(inPlace, plain) {
			t.Fatalf("%d bytes in place: %v", n, err)
		}
	}
}

func TestSealsDiffer(t *testing.T) {
	k := testKey(t)
	if bytes.Equal(k.Seal(nil, []byte("same")), k.Seal(nil, []byte("same"))) {
		t.Error("two seals of the same bytes are equal")
	}
}

// The bytes follow from the construction, computed independently with openssl (AES) and Poly1305's definition.
func TestSealIsPoly1305AESOverAESCTR(t *testing.T) {
	k := testKey(t)
	iv := bytes.Repeat([]byte{0xff}, 16) // the counter wraps over the whole block
	plain := bytes.Repeat([]byte{0}, 40)
	unit := make([]byte, len(plain)+Overhead)
	copy(unit, iv)
	k.seal(unit, unit[:16], unit[16:16+len(plain)], plain)
	const want = "ffffffffffffffffffffffffffffffff" +
		"0c538d65095587c749d66bb2104e3ae37298caa565031eadc6ce23d23ea66378aea8ae8944b639cd" +
		"d3d763042a325f346e0508016f14c889"
	if got := hex.EncodeToString(unit); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestEveryFlippedBitIsNoticed(t *testing.T) {
	k := testKey(t)
	unit := k.Seal(nil, []byte("some plaintext"))
	for i := range unit {
		for bit := range 8 {
			bad := bytes.Clone(unit)
			bad[i] ^= 1 << bit
			if out, err := k.Open(nil, bad); !errors.Is(err, ErrAuth) || out != nil {
				t.Fatalf("byte %d, bit %d: %q, %v", i, bit, out, err)
			}
		}
	}
	for n := range unit {
		if _, err := k.Open(nil, unit[:n]); !errors.Is(err, ErrAuth) {
			t.Fatalf("the first %d bytes open: %v", n, err)
		}
	}
}

func TestZeroIVIsRefused(t *testing.T) {
	k := testKey(t)
	unit := make([]byte, 20+Overhead)
	k.seal(unit, unit[:16], unit[16:36], make([]byte, 20))
	if _, err := k.Open(nil, unit); !errors.Is(err, ErrAuth) {
		t.Errorf("%v", err)
	}
}

func TestKeysOfWrongLengthAreRefused(t *testing.T) {
	if _, err := NewKey(make([]byte, 16), make([]byte, 16), make([]byte, 16)); err == nil {
		t.Error("AES-128 was accepted")
	}
}

func TestDerivedKeyDependsOnEverything(t *testing.T) {
	p := Params{N: 16, R: 8, P: 1}
	base, err := Derive([]byte("a"), []byte("salt"), p)
	if err != nil {
		t.Fatal(err)
	}
	unit := base.Seal(nil, []byte("x"))
	for what, derive := range map[string]func() (*Key, error){
		"password": func() (*Key, error) { return Derive([]byte("b"), []byte("salt"), p) },
		"salt":     func() (*Key, error) { return Derive([]byte("a"), []byte("salz"), p) },
		"N":        func() (*Key, error) { return Derive([]byte("a"), []byte("salt"), Params{32, 8, 1}) },
	} {
		k, err := derive()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := k.Open(nil, unit); !errors.Is(err, ErrAuth) {
			t.Errorf("another %s opens too", what)
		}
	}
	again, err := Derive([]byte("a"), []byte("salt"), p)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := again.Open(nil, unit); err != nil || string(out) != "x" {
		t.Errorf("the same key: %q, %v", out, err)
	}
	if _, err := Derive([]byte("a"), []byte("salt"), Params{15, 8, 1}); err == nil {
		t.Error("N = 15 was accepted")
	}
}

func TestCalibrationFindsTheCostOfTheMachine(t *testing.T) {
	perN := func(ns float64) func(Params) time.Duration {
		return func(p Params) time.Duration { return time.Duration(ns * float64(p.N*p.P)) }
	}
	for _, c := range []struct {
		what string
		ns   float64
		want Params
	}{
		{"fast", 1000, Params{32768, 8, 15}},
		{"usual", 3000, Params{32768, 8, 5}},
		{"slow", 40000, Params{8192, 8, 1}},
		{"no clock", 0, Params{32768, 8, 1}},
	} {
		if got := Calibrate(500*time.Millisecond, perN(c.ns)); got != c.want {
			t.Errorf("%s: %+v", c.what, got)
		}
	}
}

func TestSealingNeedsNoMemoryBesidesTheDestination(t *testing.T) {
	k := testKey(t)
	plain := make([]byte, 1<<20)
	dst := make([]byte, 0, len(plain)+Overhead)
	var bytesPerOp int64
	r := testing.Benchmark(func(b *testing.B) {
		for b.Loop() {
			unit := k.Seal(dst, plain)
			if _, err := k.Open(unit[16:16], unit); err != nil {
				b.Fatal(err)
			}
		}
	})
	if bytesPerOp = r.AllocedBytesPerOp(); bytesPerOp > 4096 {
		t.Errorf("%d bytes are allocated to seal and open a MiB", bytesPerOp)
	}
}

func BenchmarkSeal(b *testing.B) {
	k := testKey(b)
	plain := make([]byte, 1<<20)
	dst := make([]byte, 0, len(plain)+Overhead)
	b.SetBytes(int64(len(plain)))
	for b.Loop() {
		k.Seal(dst, plain)
	}
}
