package chunker

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/restic/chunker"

	"github.com/vmkeep/vmkeep/chunker/extent"
)

func TestPolynomialsThatCannotBeUsed(t *testing.T) {
	for range 3 {
		p, err := RandomPol()
		if err != nil {
			t.Fatal(err)
		}
		if err := CheckPol(p); err != nil || p.Deg() != 53 {
			t.Errorf("RandomPol gives %v: %v", p, err)
		}
	}
	for pol, says := range map[Pol]string{
		0:            "degree -1",
		1 << 20:      "degree 20",
		1<<54 | 1:    "degree 54",
		1<<53 | 1<<1: "not irreducible",
		testPol ^ 1:  "not irreducible",
	} {
		if _, err := New(pol); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v: %v, want %q", pol, err, says)
		}
	}
}

func TestLimitsAreRestics(t *testing.T) {
	c, err := New(testPol)
	if err != nil {
		t.Fatal(err)
	}
	if c.Min() != chunker.MinSize || c.Max() != chunker.MaxSize || MinSize != chunker.MinSize || MaxSize != chunker.MaxSize {
		t.Errorf("chunks of %d to %d bytes", c.Min(), c.Max())
	}
}

func TestFixedChunks(t *testing.T) {
	for _, size := range []int{0, -512, 511, 1000, MaxSize + 512} {
		if _, err := Fixed(size); err == nil {
			t.Errorf("chunks of %d bytes are made", size)
		}
	}
	for _, size := range []int{512, 512 << 10, 1 << 20, 8 << 20} {
		c, err := Fixed(size)
		if err != nil {
			t.Fatal(err)
		}
		old := samples(5<<20+512, 1)["random"]
		now := append(bytes.Clone(old), 1, 2, 3)
		now[3<<20] ^= 1
		lens, _ := full(old, c)
		for i, n := range lens {
			if n != size && (i < len(lens)-1 || n != len(old)%size) {
				t.Fatalf("chunk %d has %d bytes, want %d", i, n, size)
			}
		}
		checkIncremental(t, c, Plan{Dirty: extent.Of(extent.Extent{Off: 3 << 20, Len: 1})}, old, now)
	}
}

// Every byte and every length near the limits: only zeros are a zero chunk.
func TestZeroChunks(t *testing.T) {
	c, err := New(testPol)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{MinSize - 1, MinSize, MinSize + 1} {
		zeros := 0
		for ch, err := range (Plan{Size: int64(n)}).Chunks(bytes.NewReader(make([]byte, n)), c) {
			if err != nil {
				t.Fatal(err)
			}
			if ch.Zero {
				zeros++
			}
		}
		if zeros != n/MinSize {
			t.Errorf("%d zero bytes give %d zero chunks", n, zeros)
		}
	}
	b := make([]byte, 300)
	if !zero(b) {
		t.Error("zeros are not zero")
	}
	for i := range b {
		b[i] = 1
		if zero(b) {
			t.Errorf("a one at %d is not seen", i)
		}
		b[i] = 0
	}
}

// However short chunks are, zeros lie in chunks of restic's length: holes that are known, and zeros that are read. Only what
// is left of them before other data or the end is cut otherwise.
func TestZerosAreCutTheSameUnderEveryRule(t *testing.T) {
	const size = 16 << 20
	data := make([]byte, size)
	copy(data, samples(3<<20, 1)["random"])
	copy(data[12<<20:], samples(1<<20, 2)["random"])
	hole := extent.Of(extent.Extent{Off: 3 << 20, Len: 9 << 20})
	for halvings := range 4 {
		c, err := Scaled(testPol, halvings)
		if err != nil {
			t.Fatal(err)
		}
		lens, sums := collect(t, Plan{Size: size}, bytes.NewReader(data), c, nil)
		known, knownSums := collect(t, Plan{Size: size, Holes: hole}, bytes.NewReader(data), c, nil)
		if !slices.Equal(lens, known) || !slices.Equal(sums, knownSums) {
			t.Errorf("halved %d times: chunks differ where the hole is known", halvings)
		}
		zeros := 0
		for ch, err := range (Plan{Size: size}).Chunks(bytes.NewReader(data), c) {
			switch {
			case err != nil:
				t.Fatal(err)
			case ch.Zero:
				zeros++
			case ch.Off+int64(ch.Len) < size && zero(ch.Data):
				t.Errorf("halved %d times: %d zeros at %d are a chunk of their own", halvings, ch.Len, ch.Off)
			}
		}
		if zeros < 9<<20/MinSize-2+3<<20/MinSize-1 {
			t.Errorf("halved %d times: %d zero chunks", halvings, zeros)
		}
	}
}

// A hole costs nothing whatever its size, and nothing of it is read.
func TestHolesAreNotRead(t *testing.T) {
	c, err := New(testPol)
	if err != nil {
		t.Fatal(err)
	}
	const size = 1 << 40
	head, tail := samples(3<<20, 1)["random"], samples(2<<20, 2)["random"]
	hole := extent.Extent{Off: int64(len(head)), Len: size - int64(len(head)) - int64(len(tail))}
	disk := readerFunc(func(p []byte, off int64) (int, error) {
		switch {
		case off+int64(len(p)) <= hole.Off:
			copy(p, head[off:])
		case off >= hole.End():
			copy(p, tail[off-hole.End():])
		default:
			t.Errorf("the hole is read: %d bytes at %d", len(p), off)
		}
		return len(p), nil
	})
	zeros := 0
	for ch, err := range (Plan{Size: size, Holes: extent.Of(hole)}).Chunks(disk, c) {
		if err != nil {
			t.Fatal(err)
		}
		if ch.Zero {
			zeros++
		}
	}
	if most := int(hole.Len / MinSize); zeros > most || zeros < most-2 {
		t.Errorf("%d zero chunks, want about %d", zeros, most)
	}
}

func TestScaledChunks(t *testing.T) {
	data := samples(8<<20, 1)["random"]
	restics, err := New(testPol)
	if err != nil {
		t.Fatal(err)
	}
	want, _ := full(data, restics)
	for halvings := -1; halvings <= 4; halvings++ {
		c, err := Scaled(testPol, halvings)
		if valid := halvings >= 0 && halvings <= 3; (err == nil) != valid {
			t.Errorf("halved %d times: %v", halvings, err)
		}
		if err != nil {
			continue
		}
		lens, _ := full(data, c)
		if halvings == 0 && !slices.Equal(lens, want) {
			t.Error("not halved at all is not restic's rule")
		}
		if c.Zero() != MinSize || c.Min() != MinSize>>halvings || c.Max() != MaxSize>>halvings || len(lens) < len(want)<<halvings/2 {
			t.Errorf("halved %d times: %d to %d bytes, %d chunks", halvings, c.Min(), c.Max(), len(lens))
		}
	}
}
