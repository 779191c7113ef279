package chunker

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/restic/chunker"
)

// testPol is an irreducible polynomial of degree 53, as in a repository.
const testPol = Pol(0x3DA3358B4DC173)

// polynomials are testPol, others of its degree, and one of the smallest degree allowed.
func polynomials(t testing.TB) []Pol {
	ps := []Pol{testPol}
	src := rand.NewChaCha8([32]byte{'p', 'o', 'l'})
	for range 3 {
		p, err := chunker.DerivePolynomial(src)
		if err != nil {
			t.Fatal(err)
		}
		ps = append(ps, p)
	}
	for p := Pol(1<<minDegree | 1); ; p += 2 {
		if p.Irreducible() {
			return append(ps, p)
		}
	}
}

// samples are n bytes each of data that cuts differently, by name.
func samples(n int, seed byte) map[string][]byte {
	src := rand.NewChaCha8([32]byte{seed})
	rng := rand.New(src)
	random := make([]byte, n)
	src.Read(random)
	text := bytes.Repeat([]byte("Whoso would be a backup must first be a restore. "), n/49+1)[:n]
	few := make([]byte, n)
	for i := range few {
		few[i] = "ab"[rng.IntN(2)]
	}
	mixed := bytes.Clone(random)
	for range 8 {
		at, l := rng.IntN(n), rng.IntN(n/4)
		b := mixed[at:min(n, at+l)]
		switch rng.IntN(4) {
		case 0:
			for i := range b {
				b[i] = 0xFF
			}
		case 1:
			copy(b, text)
		default:
			clear(b)
		}
	}
	return map[string][]byte{
		"random": random, "zero": make([]byte, n), "ones": bytes.Repeat([]byte{1}, n),
		"text": text, "few": few, "mixed": mixed,
	}
}

// byRestic are the lengths of the chunks that restic's own chunker makes.
func byRestic(t testing.TB, b []byte, pol Pol) (lens []int) {
	c := chunker.New(bytes.NewReader(b), pol)
	buf := make([]byte, 0, chunker.MaxSize)
	for {
		ch, err := c.Next(buf)
		if errors.Is(err, io.EOF) {
			return lens
		}
		if err != nil {
			t.Fatal(err)
		}
		lens = append(lens, int(ch.Length))
	}
}

type sum = [sha256.Size]byte

// collect runs a plan: the lengths of its chunks and the sums of their data; sums of old chunks are taken from old.
func collect(t testing.TB, p Plan, r io.ReaderAt, c *Cutter, old []sum) (lens []int, sums []sum) {
	t.Helper()
	zero := sha256.Sum256(make([]byte, c.Zero()))
	off := int64(0)
	for ch, err := range p.Chunks(r, c) {
		if err != nil {
			t.Fatal(err)
		}
		if ch.Off != off || ch.Len <= 0 {
			t.Fatalf("chunk at %d of %d bytes, want one at %d", ch.Off, ch.Len, off)
		}
		off += int64(ch.Len)
		lens = append(lens, ch.Len)
		switch {
		case ch.Zero:
			if ch.Data != nil || ch.Len != c.Zero() || ch.Old != -1 {
				t.Fatalf("a zero chunk %+v", ch)
			}
			sums = append(sums, zero)
		case ch.Data == nil:
			if ch.Len != p.Old[ch.Old] {
				t.Fatalf("an old chunk of %d bytes, was %d", ch.Len, p.Old[ch.Old])
			}
			sums = append(sums, old[ch.Old])
		default:
			if len(ch.Data) != ch.Len || ch.Old != -1 {
				t.Fatalf("a new chunk of %d bytes with %d: %d", ch.Len, len(ch.Data), ch.Old)
			}
			sums = append(sums, sha256.Sum256(ch.Data))
			for i := range ch.Data {
				ch.Data[i] = 0xA5 // ours until the next chunk: nothing may depend on it afterwards
			}
		}
	}
	if off != p.Size {
		t.Fatalf("chunks end at %d of %d", off, p.Size)
	}
	return lens, sums
}
