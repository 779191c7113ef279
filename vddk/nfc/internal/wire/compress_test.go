package wire

import (
	"bytes"
	"compress/zlib"
	"errors"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
)

// samples are fragments of all sorts: text, noise, zeros, long runs, far repetitions.
func samples() map[string][]byte {
	noise := make([]byte, 1<<20)
	rand.NewChaCha8([32]byte{3}).Read(noise)
	text := []byte(strings.Repeat("the quick brown fox jumps over the lazy dog; ", 30000))
	mixed := make([]byte, 256<<10)
	for i := 0; i < len(mixed); i += 4096 {
		if i/4096%3 != 0 {
			copy(mixed[i:i+4096], text[i:])
		}
	}
	out := map[string][]byte{
		"zeros": make([]byte, 128<<10), "one": {7}, "sector": text[:512], "short": []byte("abcabcabcabcabca"),
		"noise": noise[:70000], "text": text, "text64k": text[:64<<10], "textBelow64k": text[:64<<10-1],
		"mixed": mixed, "runs": bytes.Repeat([]byte{1}, 100000),
	}
	for _, d := range []int{8189, 8190, 8191, 8192, 8193, 20000, 65535 + 8191, 65535 + 8192, 65535 + 8193} {
		far := append(bytes.Clone(noise[:d]), noise[:3000]...)
		out["repeat at "+strconv.Itoa(d)] = append(far, noise[500000:500064]...)
	}
	for n := 3; n < 600; n += 7 {
		out["match of "+strconv.Itoa(n)] = append(append(bytes.Clone(noise[:1000]), noise[100:100+n]...), noise[9000:9010]...)
	}
	return out
}

func TestPackingIsReversible(t *testing.T) {
	var k Codec
	for name, src := range samples() {
		for c := Zlib; c <= Skipz; c++ {
			prefix := []byte("head")
			out, used := k.Encode(prefix, src, c)
			if !bytes.HasPrefix(out, prefix) {
				t.Fatalf("%s %s: what was before is gone", c, name)
			}
			out = out[len(prefix):]
			if used == None {
				if len(out) != 0 {
					t.Errorf("%s %s: not packed, but %d bytes are there", c, name, len(out))
				}
				continue
			}
			if used != c || len(out) >= len(src) {
				t.Errorf("%s %s: %s with %d bytes of %d", c, name, used, len(out), len(src))
			}
			dst := bytes.Repeat([]byte{0xee}, len(src))
			if err := k.Decode(dst, out, c); err != nil {
				t.Errorf("%s %s: %v", c, name, err)
			} else if !bytes.Equal(dst, src) {
				t.Errorf("%s %s: content differs", c, name)
			}
		}
	}
}

func TestPackingPays(t *testing.T) {
	var k Codec
	s := samples()
	for _, c := range []struct {
		name string
		c    Compression
		most int // per mille
	}{{"text", FastLZ, 50}, {"zeros", FastLZ, 20}, {"text", Zlib, 50}, {"mixed", FastLZ, 100}, {"mixed", Skipz, 680}, {"zeros", Skipz, 1}, {"repeat at 73726", FastLZ, 995}} {
		src := s[c.name]
		out, used := k.Encode(nil, src, c.c)
		if used != c.c || len(out)*1000 > len(src)*c.most {
			t.Errorf("%s of %s: %s, %d of %d bytes", c.c, c.name, used, len(out), len(src))
		}
	}
}

// TestFastLZByHand decodes blocks assembled from the description of the format.
func TestFastLZByHand(t *testing.T) {
	abc := []byte("abc")
	for _, c := range []struct {
		name string
		in   []byte
		want []byte
	}{
		{"level 1 literals", append([]byte{2}, abc...), abc},
		{"level 1 short match", []byte{2, 'a', 'b', 'c', 1 << 5, 2}, []byte("abcabc")},
		{"level 1 longest short match", []byte{0, 'a', 6 << 5, 0}, []byte("aaaaaaaaa")},
		{"level 1 long match", []byte{0, 'a', 7 << 5, 3, 0}, bytes.Repeat([]byte{'a'}, 13)},
		{"level 1 long match of 255", []byte{0, 'a', 7 << 5, 255, 0}, bytes.Repeat([]byte{'a'}, 1+9+255)},
		{"level 2 short match", []byte{1<<5 | 2, 'a', 'b', 'c', 1 << 5, 2}, []byte("abcabc")},
		{"level 2 long match", []byte{1 << 5, 'a', 7 << 5, 255, 3, 0}, bytes.Repeat([]byte{'a'}, 1+9+255+3)},
	} {
		got := make([]byte, len(c.want))
		if err := decodeFast(got, c.in); err != nil || !bytes.Equal(got, c.want) {
			t.Errorf("%s: %q (%v)", c.name, got, err)
		}
	}
	// A far match at level 2: 8192 + 100 back.
	var in []byte
	noise := make([]byte, 8192+100+32-(8192+100)%32)
	rand.NewChaCha8([32]byte{4}).Read(noise)
	for i := 0; i < len(noise); i += 32 {
		in = append(append(in, 31), noise[i:i+32]...)
	}
	in[0] |= 1 << 5
	in = append(in, 2<<5|31, 255, 0, 100) // four bytes
	want := append(bytes.Clone(noise), noise[len(noise)-8292:len(noise)-8288]...)
	got := make([]byte, len(want))
	if err := decodeFast(got, in); err != nil || !bytes.Equal(got, want) {
		t.Errorf("far match: %v", err)
	}
}

func TestDamageIsFound(t *testing.T) {
	var k Codec
	src := samples()["mixed"]
	for c := Zlib; c <= Skipz; c++ {
		out, _ := k.Encode(nil, src, c)
		dst := make([]byte, len(src))
		for _, cut := range []int{0, 1, 7, len(out) / 2, len(out) - 1} {
			if err := k.Decode(dst, out[:cut], c); !errors.Is(err, ErrPacked) {
				t.Errorf("%s cut at %d gives %v", c, cut, err)
			}
		}
		if err := k.Decode(dst[:len(dst)-1], out, c); !errors.Is(err, ErrPacked) {
			t.Errorf("%s into a smaller fragment gives %v", c, err)
		}
		if err := k.Decode(append(dst, 0), out, c); !errors.Is(err, ErrPacked) {
			t.Errorf("%s into a larger fragment gives %v", c, err)
		}
	}
	// A zlib stream whose checksum is wrong has all the data.
	var b bytes.Buffer
	w := zlib.NewWriter(&b)
	w.Write(src)
	w.Close()
	bad := b.Bytes()
	bad[len(bad)-1] ^= 1
	if err := k.Decode(make([]byte, len(src)), bad, Zlib); !errors.Is(err, ErrPacked) {
		t.Errorf("zlib with a wrong checksum gives %v", err)
	}
}

func TestSkipz(t *testing.T) {
	u32 := func(vs ...uint32) (b []byte) {
		for _, v := range vs {
			b = le.AppendUint32(b, v)
		}
		return b
	}
	decode := func(n int, src []byte) ([]byte, error) {
		dst := bytes.Repeat([]byte{0xee}, n)
		return dst, decodeSkipz(dst, src)
	}
	if got, err := decode(64, u32(64, 0)); err != nil || !bytes.Equal(got, make([]byte, 64)) {
		t.Errorf("all zeros: %v", err)
	}
	two := append(append(u32(64, 0, 3, 2), 1, 2), append(u32(60, 4), 3, 4, 5, 6)...)
	want := make([]byte, 64)
	copy(want[3:], []byte{1, 2})
	copy(want[60:], []byte{3, 4, 5, 6})
	if got, err := decode(64, two); err != nil || !bytes.Equal(got, want) {
		t.Errorf("two records: %x (%v)", got, err)
	}
	raw := bytes.Repeat([]byte{9}, 64)
	if got, err := decode(64, raw); err != nil || !bytes.Equal(got, raw) {
		t.Errorf("raw data stated as skipz: %v", err)
	}
	sly := append(u32(64, 0, 8, 48), bytes.Repeat([]byte{9}, 48)...) // what a guest may write into its sector
	if _, err := decode(64, sly); !errors.Is(err, ErrAmbiguous) {
		t.Errorf("data that are both gives %v", err)
	}
	for name, src := range map[string][]byte{
		"overlap":    append(append(u32(64, 0, 8, 2), 1, 2), append(u32(9, 1), 3)...),
		"descending": append(append(u32(64, 0, 8, 1), 1), append(u32(2, 1), 3)...),
		"beyond":     append(u32(64, 0, 60, 8), make([]byte, 8)...),
		"overflow":   append(u32(64, 0, 0xffffffff, 8), make([]byte, 8)...),
		"cut":        append(u32(64, 0, 0, 8), 1, 2, 3),
		"length":     u32(65, 0),
		"head":       u32(64, 1),
		"short":      {64, 0, 0},
	} {
		if _, err := decode(64, src); !errors.Is(err, ErrPacked) {
			t.Errorf("%s gives %v", name, err)
		}
	}
}
