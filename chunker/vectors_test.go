package chunker

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	old "math/rand"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// vectorData makes the data that testdata/chunks.txt describes.
func vectorData(t *testing.T, spec string) (data []byte) {
	for _, part := range strings.Split(spec, "+") {
		kind, length, _ := strings.Cut(part, ":")
		n, err := strconv.Atoi(length)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, n)
		var v int
		switch {
		case kind == "zero":
		case kind == "rand23":
			r := old.New(old.NewSource(23))
			for i := 0; i < n; i += 4 {
				binary.LittleEndian.PutUint32(b[i:], r.Uint32())
			}
		case sscan(kind, "chacha%d", &v):
			rand.NewChaCha8([32]byte{byte(v)}).Read(b)
		case sscan(kind, "byte%d", &v):
			b = bytes.Repeat([]byte{byte(v)}, n)
		default:
			t.Fatalf("unknown data %q", part)
		}
		data = append(data, b...)
	}
	return data
}

func sscan(s, format string, v *int) bool {
	_, err := fmt.Sscanf(s, format, v)
	return err == nil
}

func TestChunksThatResticMade(t *testing.T) {
	f, err := os.Open("testdata/chunks.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	type vector struct {
		pol  Pol
		data string
		want []string
	}
	var vectors []vector
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line := lines.Text()
		var v vector
		switch {
		case line == "" || line[0] == '#':
		case strings.HasPrefix(line, "cut "):
			if _, err := fmt.Sscanf(line, "cut %x %s", &v.pol, &v.data); err != nil {
				t.Fatal(line, err)
			}
			vectors = append(vectors, v)
		default:
			last := &vectors[len(vectors)-1]
			last.want = append(last.want, line)
		}
	}
	if len(vectors) != 8 {
		t.Fatalf("%d cases, want 8", len(vectors))
	}
	for _, v := range vectors {
		c, err := New(v.pol)
		if err != nil {
			t.Fatal(err)
		}
		data := vectorData(t, v.data)
		lens, sums := collect(t, Plan{Size: int64(len(data))}, bytes.NewReader(data), c, nil)
		var got []string
		for i := range lens {
			got = append(got, fmt.Sprintf("%d %s", lens[i], hex.EncodeToString(sums[i][:])))
		}
		if !slices.Equal(got, v.want) {
			t.Errorf("%s: got\n%s\nwant\n%s", v.data, strings.Join(got, "\n"), strings.Join(v.want, "\n"))
		}
	}
}
