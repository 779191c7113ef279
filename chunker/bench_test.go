package chunker

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/restic/chunker"

	"github.com/vmkeep/vmkeep/chunker/extent"
)

const benchSize = 64 << 20

// goSource is real data: the first benchSize bytes of the Go tree's files in a row, sources and binaries.
func goSource(b *testing.B) []byte {
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		b.Fatal(err)
	}
	var buf bytes.Buffer
	err = filepath.WalkDir(strings.TrimSpace(string(out)), func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		if buf.Len() >= benchSize {
			return fs.SkipAll
		}
		data, err := os.ReadFile(name)
		buf.Write(data)
		return err
	})
	if err != nil || buf.Len() < benchSize {
		b.Fatalf("the Go tree gave %d bytes, want %d: %v", buf.Len(), benchSize, err)
	}
	return buf.Bytes()[:benchSize]
}

// eachSample runs f on data of every kind that disks hold.
func eachSample(b *testing.B, f func(b *testing.B, data []byte)) {
	s := samples(benchSize, 1)
	for _, kind := range []struct {
		name string
		data []byte
	}{{"random", s["random"]}, {"zero", s["zero"]}, {"source", goSource(b)}} {
		b.Run(kind.name, func(b *testing.B) {
			b.SetBytes(int64(len(kind.data)))
			b.ReportAllocs()
			f(b, kind.data)
		})
	}
}

func cutAll(b *testing.B, c *Cutter, data []byte) {
	for ch, err := range (Plan{Size: int64(len(data))}).Chunks(bytes.NewReader(data), c) {
		if err != nil {
			b.Fatal(err)
		}
		runtime.KeepAlive(ch)
	}
}

func resticAll(b *testing.B, buf, data []byte) {
	c := chunker.New(bytes.NewReader(data), testPol)
	for {
		if _, err := c.Next(buf); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCut is Chunks from memory, with all its copying, beside BenchmarkRestic; -cpu 1 compares per core.
func BenchmarkCut(b *testing.B) {
	c, err := New(testPol)
	if err != nil {
		b.Fatal(err)
	}
	eachSample(b, func(b *testing.B, data []byte) {
		for b.Loop() {
			cutAll(b, c, data)
		}
	})
}

func BenchmarkRestic(b *testing.B) {
	buf := make([]byte, 0, chunker.MaxSize)
	eachSample(b, func(b *testing.B, data []byte) {
		for b.Loop() {
			resticAll(b, buf, data)
		}
	})
}

// BenchmarkRatio runs both in turn, so that a busy machine slows both, and reports how many times as fast Cut is.
func BenchmarkRatio(b *testing.B) {
	c, err := New(testPol)
	if err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, 0, chunker.MaxSize)
	eachSample(b, func(b *testing.B, data []byte) {
		var ours, restics time.Duration
		for b.Loop() {
			start := time.Now()
			cutAll(b, c, data)
			middle := time.Now()
			resticAll(b, buf, data)
			ours, restics = ours+middle.Sub(start), restics+time.Since(middle)
		}
		b.ReportMetric(restics.Seconds()/ours.Seconds(), "times-restic")
	})
}

// BenchmarkCores cuts as many parts at once as there are CPUs, and reports how many times as fast that is as one alone:
// a machine with other work shows less than its CPUs.
func BenchmarkCores(b *testing.B) {
	c, err := New(testPol)
	if err != nil {
		b.Fatal(err)
	}
	n := runtime.GOMAXPROCS(0)
	data := samples(benchSize, 1)["random"]
	b.SetBytes(int64(n) * benchSize)
	var alone, together time.Duration
	for b.Loop() {
		start := time.Now()
		cutAll(b, c, data)
		middle := time.Now()
		var parts sync.WaitGroup
		for range n {
			parts.Go(func() { cutAll(b, c, data) })
		}
		parts.Wait()
		alone, together = alone+middle.Sub(start), together+time.Since(middle)
	}
	b.ReportMetric(float64(n)*alone.Seconds()/together.Seconds(), "times-one")
	b.ReportMetric(float64(n), "CPUs")
}

// BenchmarkZeros cuts zeros that nobody knew to be zeros, and reports how many times as long as copying twice, which is the
// least that it must do, that takes.
func BenchmarkZeros(b *testing.B) {
	c, err := New(testPol)
	if err != nil {
		b.Fatal(err)
	}
	data, to := make([]byte, benchSize), make([]byte, 1<<20)
	b.SetBytes(benchSize)
	var ours, copying time.Duration
	for b.Loop() {
		start := time.Now()
		cutAll(b, c, data)
		middle := time.Now()
		for rest := data; len(rest) > 0; rest = rest[len(to):] {
			copy(to, rest)
			copy(to, rest)
		}
		ours, copying = ours+middle.Sub(start), copying+time.Since(middle)
	}
	b.ReportMetric(ours.Seconds()/copying.Seconds(), "times-copying")
}

// BenchmarkScan is the search for candidates alone, beside restic/chunker's without copying.
func BenchmarkScan(b *testing.B) {
	c, err := New(testPol)
	if err != nil {
		b.Fatal(err)
	}
	data := samples(benchSize, 1)["random"]
	b.Run("vmkeep", func(b *testing.B) {
		b.SetBytes(benchSize)
		for b.Loop() {
			for rest := data; len(rest) > 0; rest = rest[c.Next(rest):] {
			}
		}
	})
	b.Run("restic", func(b *testing.B) {
		b.SetBytes(benchSize)
		for b.Loop() {
			ref := chunker.NewBase(testPol)
			for rest := data; len(rest) > 0; {
				n := ref.NextSplitPoint(rest)
				if n < 0 {
					n = len(rest)
				}
				rest = rest[n:]
			}
		}
	})
}

// BenchmarkChange cuts again around changes of 64 KiB far apart, and reports per change: chunks that are new though
// none of their bytes changed, because the cuts had not met again yet; and bytes read.
func BenchmarkChange(b *testing.B) {
	c, err := New(testPol)
	if err != nil {
		b.Fatal(err)
	}
	old := samples(benchSize, 1)["random"]
	now := bytes.Clone(old)
	lens, _ := full(old, c)
	var more, read, changes int
	for b.Loop() {
		for at := 0; at+8<<20 <= benchSize; at += 8 << 20 {
			at := at + rand.IntN(8<<20-64<<10)/sector*sector
			e := extent.Extent{Off: int64(at), Len: 64 << 10}
			for i := range e.Len {
				now[e.Off+i] = byte(rand.Uint32())
			}
			p := Plan{Size: benchSize, Old: lens, Dirty: extent.Of(e)}
			reads, err := p.Reads(c)
			if err != nil {
				b.Fatal(err)
			}
			certain := reads[0]
			for ch, err := range p.Chunks(bytes.NewReader(now), c) {
				if err != nil {
					b.Fatal(err)
				}
				if ch.Data != nil {
					read += ch.Len
					if ch.Off+int64(ch.Len) > certain.End() {
						more++
					}
				}
			}
			copy(now[e.Off:e.End()], old[e.Off:])
			changes++
		}
	}
	b.ReportMetric(float64(more)/float64(changes), "more-chunks")
	b.ReportMetric(float64(read)/float64(changes)/(1<<20), "MiB-read")
}

// BenchmarkKeep is an incremental pass over a part of which nothing changed.
func BenchmarkKeep(b *testing.B) {
	c, err := New(testPol)
	if err != nil {
		b.Fatal(err)
	}
	data := samples(benchSize, 1)["random"]
	old, _ := collect(b, Plan{Size: benchSize}, bytes.NewReader(data), c, nil)
	b.SetBytes(benchSize)
	b.ReportAllocs()
	for b.Loop() {
		for _, err := range (Plan{Size: benchSize, Old: old}).Chunks(nil, c) {
			if err != nil {
				b.Fatal(err)
			}
		}
	}
}
