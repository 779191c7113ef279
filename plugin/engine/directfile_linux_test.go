package engine

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
)

// refusing is a file system that takes some writes past the cache and then says that it does not.
type refusing struct {
	past
	mu   sync.Mutex
	good int
	err  error
}

func (r *refusing) WriteAt(p []byte, off int64) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.good--; r.good < 0 {
		return 0, r.err
	}
	return r.past.WriteAt(p, off)
}

// Writers of pieces of any length side by side, as chunks arrive: whatever way each takes, the file is what they wrote.
func TestWritesPastTheCache(t *testing.T) {
	for name, wrap := range map[string]func(past) past{
		"all the way":      func(p past) past { return p },
		"refused at first": func(p past) past { return &refusing{past: p, err: syscall.EINVAL} },
		"refused later":    func(p past) past { return &refusing{past: p, good: 5, err: syscall.EINVAL} },
		"not possible":     func(p past) past { _ = p.Close(); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(1, 2))
			want := make([]byte, 24<<20+512)
			for i := range want {
				want[i] = byte(rng.Uint32() >> 7)
			}
			d := openForRestore(t, wrap)
			var cuts []int
			for at := 0; at < len(want); at += 512 * (1 + rng.IntN(6000)) {
				cuts = append(cuts, at)
			}
			var writers sync.WaitGroup
			for lane := range 4 {
				writers.Go(func() {
					for i := lane; i < len(cuts); i += 4 {
						end := len(want)
						if i+1 < len(cuts) {
							end = cuts[i+1]
						}
						if n, err := d.WriteAt(want[cuts[i]:end], int64(cuts[i])); err != nil || n != end-cuts[i] {
							t.Errorf("%d of %d bytes at %d: %v", n, end-cuts[i], cuts[i], err)
						}
					}
				})
			}
			writers.Wait()
			if got, err := os.ReadFile(d.Name()); err != nil || !bytes.Equal(got, want) {
				t.Errorf("the file is another than what was written: %v", err)
			}
		})
	}
}

// An error past the cache is told with how much was written before it.
func TestErrorPastTheCacheIsTold(t *testing.T) {
	full := errors.New("full")
	d := openForRestore(t, func(p past) past { return &refusing{past: p, good: 2, err: full} })
	n, err := d.WriteAt(make([]byte, 4<<20), directBlock-512)
	if !errors.Is(err, full) || n != 512+2*directPiece {
		t.Errorf("%d bytes written, %v", n, err)
	}
}

func openForRestore(t *testing.T, wrap func(past) past) *directFile {
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	d := &directFile{File: f, past: openDirect(f)}
	if d.past == nil {
		if os.Getenv("CI") == "" {
			t.Skipf("the file system of %s takes no writes past the cache: set TMPDIR to one that does", f.Name())
		}
		t.Fatalf("the file system of %s takes no writes past the cache", f.Name())
	}
	d.past = wrap(d.past)
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}
