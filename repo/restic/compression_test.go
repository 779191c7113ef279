package restic

import (
	"bytes"
	"crypto/rand"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// realChunks are pieces of what disks hold: a program, and source code.
func realChunks(t testing.TB) (chunks [][]byte) {
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	const enough = 12 << 20
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(filepath.Join(strings.TrimSpace(string(root)), "src"), func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		if len(data) > enough {
			return fs.SkipAll
		}
		text, err := os.ReadFile(name)
		data = append(data, text...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return slices.Collect(slices.Chunk(data, 1<<20))
}

func codec(t testing.TB, level Compression) *Zstd {
	z, err := NewZstd(level)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(z.Close)
	return z
}

func TestChunksTakeHardlyMoreThanAtResticsLevel(t *testing.T) {
	z, fastest := codec(t, CompressionAuto), codec(t, CompressionFastest)
	var ours, restics int
	levels := map[bool]int{}
	for _, chunk := range realChunks(t) {
		got := z.CompressChunk(nil, chunk)
		whole := z.Compress(nil, chunk)
		fast := fastest.CompressChunk(nil, chunk)
		if !bytes.Equal(got, whole) && !bytes.Equal(got, fast) {
			t.Fatal("a chunk is compressed at neither level")
		}
		levels[bytes.Equal(got, fast)]++
		ours, restics = ours+len(got), restics+len(whole)
		back := make([]byte, len(chunk))
		if err := z.Decompress(back, got); err != nil || !bytes.Equal(back, chunk) {
			t.Fatalf("a chunk does not come back: %v", err)
		}
		if again := z.CompressChunk(make([]byte, 0, 64), chunk); !bytes.Equal(again, got) {
			t.Error("the same chunk is compressed otherwise the next time")
		}
	}
	t.Logf("%.3f of restic's size; %d chunks fast, %d not", float64(ours)/float64(restics), levels[true], levels[false])
	if ours*100 > restics*105 {
		t.Errorf("%d bytes, at restic's level %d", ours, restics)
	}
	if levels[true] == 0 {
		t.Error("no chunk of real data is compressed fast")
	}
}

func TestShortChunksAreCompressed(t *testing.T) {
	z := codec(t, CompressionAuto)
	noise := make([]byte, 2*sampleSize)
	rand.Read(noise)
	for _, n := range []int{1, 64, sampleSize - 1, sampleSize, sampleSize + 1} {
		for _, chunk := range [][]byte{noise[:n], bytes.Repeat([]byte("row;"), n)[:n]} {
			frame := z.CompressChunk(nil, chunk)
			back := make([]byte, n)
			if err := z.Decompress(back, frame); err != nil || !bytes.Equal(back, chunk) {
				t.Errorf("%d bytes do not come back: %v", n, err)
			}
		}
	}
}

func BenchmarkCompressChunk(b *testing.B) {
	chunks := realChunks(b)
	var size int64
	for _, c := range chunks {
		size += int64(len(c))
	}
	noise := make([]byte, 1<<20)
	rand.Read(noise)
	for _, level := range []Compression{CompressionAuto, CompressionFastest, CompressionBetter} {
		z := codec(b, level)
		run := func(name string, size int64, chunks ...[]byte) {
			b.Run(string(level)+"/"+name, func(b *testing.B) {
				b.SetBytes(size)
				var dst []byte
				for b.Loop() {
					for _, c := range chunks {
						dst = z.CompressChunk(dst[:0], c)
					}
				}
			})
		}
		run("real", size, chunks...)
		run("noise", 1<<20, noise)
	}
}
