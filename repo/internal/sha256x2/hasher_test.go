package sha256x2

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
)

// hashers are one that hashes side by side, if this processor can, and one that does not.
func hashers() map[string]*Hasher {
	return map[string]*Hasher{"side by side": {}, "alone": {alone: true}}
}

// check hashes messages, each of which lies in the buffer of its lane only until it is hashed.
func check(t *testing.T, h *Hasher, messages ...[]byte) {
	t.Helper()
	var buffers [2][]byte
	hashed := make([]int, len(messages))
	finished := 0
	for i, m := range messages {
		lane := h.Free()
		buffers[lane] = append(buffers[lane][:0], m...)
		if err := h.Add(buffers[lane], func(hash [sha256.Size]byte) error {
			if hash != sha256.Sum256(m) {
				t.Errorf("message %d of %d, of %d bytes, has another hash", i, len(messages), len(m))
			}
			hashed[i]++
			finished++
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if finished < i {
			t.Fatalf("of %d messages, %d wait", i+1, i+1-finished)
		}
	}
	if err := h.Flush(); err != nil {
		t.Fatal(err)
	}
	for i, n := range hashed {
		if n != 1 {
			t.Fatalf("message %d of %d was hashed %d times", i, len(messages), n)
		}
	}
}

func random(seed uint64, n int) []byte {
	p := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(p)
	return p
}

func TestEveryPairOfShortLengths(t *testing.T) {
	const longest = 200
	p, q := random(1, longest), random(2, longest)
	for name, h := range hashers() {
		t.Run(name, func(t *testing.T) {
			for i := range longest + 1 {
				for j := range longest + 1 {
					check(t, h, p[:i], q[longest-j:])
				}
			}
		})
	}
}

func TestManyMessagesOfAnyLength(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	for name, h := range hashers() {
		t.Run(name, func(t *testing.T) {
			for range 100 {
				messages := make([][]byte, r.IntN(9))
				for i := range messages {
					messages[i] = random(r.Uint64(), r.IntN(1<<r.IntN(17)))
				}
				check(t, h, messages...)
			}
		})
	}
}

func TestMessagesLieAnywhere(t *testing.T) {
	p := random(4, 1000)
	for name, h := range hashers() {
		for i := range 64 {
			sum := func(m []byte) func([sha256.Size]byte) error {
				return func(hash [sha256.Size]byte) error {
					if hash != sha256.Sum256(m) {
						return fmt.Errorf("%d bytes from %d", len(m), i)
					}
					return nil
				}
			}
			err := errors.Join(h.Add(p[i:], sum(p[i:])), h.Add(p[i/3:500], sum(p[i/3:500])), h.Flush())
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

func TestAnErrorEndsIt(t *testing.T) {
	want := errors.New("no")
	for name, h := range hashers() {
		for _, lengths := range [][2]int{{100, 100}, {100, 1000}, {1000, 100}} {
			h := &Hasher{alone: h.alone}
			calls := 0
			no := func([sha256.Size]byte) error { calls++; return want }
			err := h.Add(make([]byte, lengths[0]), no)
			if err == nil {
				err = h.Add(make([]byte, lengths[1]), no)
			}
			if err != want || calls != 1 {
				t.Errorf("%s: %v: %v after %d calls", name, lengths, err, calls)
			}
		}
		h := &Hasher{alone: h.alone}
		no := func([sha256.Size]byte) error { return want }
		if err := errors.Join(h.Add(nil, no), h.Flush()); !errors.Is(err, want) {
			t.Errorf("%s: the last: %v", name, err)
		}
	}
}

func FuzzHasher(f *testing.F) {
	f.Add([]byte("abc"), uint(1), uint(2))
	f.Add(bytes.Repeat([]byte("abc"), 100), uint(64), uint(129))
	f.Fuzz(func(t *testing.T, p []byte, i, j uint) {
		i %= uint(len(p)) + 1
		j %= uint(len(p)) + 1
		for _, h := range hashers() {
			check(t, h, p[:i], p[i:], p[j:], p[:j])
		}
	})
}

func BenchmarkMessages(b *testing.B) {
	p, q := random(1, 1<<20), random(2, 1<<20)
	for name, h := range hashers() {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(p) + len(q)))
			for b.Loop() {
				nothing := func([sha256.Size]byte) error { return nil }
				_ = h.Add(p, nothing)
				_ = h.Add(q, nothing)
			}
		})
	}
}
