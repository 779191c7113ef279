package vixdisklib_test

import (
	"fmt"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"github.com/ebitengine/purego"
	"golang.org/x/sys/unix"

	"github.com/vmkeep/vmkeep/vddk/vixdisklib/internal/library"
)

const (
	benchSize = 256 << 20
	request   = 1 << 20
	depth     = 8
)

// BenchmarkRead compares the way through the helper with the library called in this process, eight requests of 1 MiB
// at a time in both. Direct calls leave the data in the library's buffers; a disk must bring it into the caller's, for
// the library cannot be given Go's memory: "direct, copied" does that too, as a disk without a helper would.
//
// The fake serves from the page cache, far faster than any host; with "2ms" every transfer takes that long, which its
// four threads make about 2 GB/s of.
func BenchmarkRead(b *testing.B) { read(b) }

func BenchmarkRead2ms(b *testing.B) { read(b, "fault Read delay=2") }

func read(b *testing.B, control ...string) {
	k := newKit(b, newest())
	k.lib.Control(control...)
	k.Log = nil
	spec, raw := k.disk(benchSize)
	if _, err := raw.WriteAt(random(benchSize), 0); err != nil {
		b.Fatal(err)
	}
	k.lib.Quiet()
	for _, callers := range []int{1, 4} {
		b.Run(fmt.Sprintf("helper/%d", callers), func(b *testing.B) {
			d := k.open(spec)
			b.SetBytes(benchSize)
			for b.Loop() {
				var wg sync.WaitGroup
				for c := range callers {
					wg.Go(func() {
						share := benchSize / callers
						buf := make([]byte, depth*request)
						for at := c * share; at < (c+1)*share; at += len(buf) {
							if _, err := d.ReadAt(buf, int64(at)); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
			}
			if err := d.Close(); err != nil {
				b.Error(err)
			}
		})
	}
	direct := loadHere(b, k, spec.Path)
	for name, into := range map[string][]byte{"direct": nil, "direct, copied": make([]byte, depth*request)} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(benchSize)
			for b.Loop() {
				direct(b, into)
			}
		})
	}
}

// loadHere loads the library into this process, which has no loader path for its neighbour: that is loaded first.
func loadHere(b *testing.B, k *kit, path string) func(*testing.B, []byte) {
	b.Helper()
	if _, err := purego.Dlopen(filepath.Join(k.Dir, "lib64", "libsibling.so"), purego.RTLD_NOW|purego.RTLD_GLOBAL); err != nil {
		b.Fatal(err)
	}
	runtime.LockOSThread()
	b.Cleanup(runtime.UnlockOSThread)
	lib, err := library.Load(k.Dir, func(int, string) {})
	if err != nil {
		b.Fatal(err)
	}
	if err := lib.Init(k.Dir, ""); err != nil {
		b.Fatal(err)
	}
	p, err := lib.NewParams(library.Login{Server: "s", VM: "vm-7", User: "u", Password: "p", Thumbprint: "t"})
	if err != nil {
		b.Fatal(err)
	}
	c, err := lib.Connect(p, library.Access{ReadOnly: true, Modes: "nbdssl"})
	if err != nil {
		b.Fatal(err)
	}
	d, err := lib.Open(c, path, 4)
	if err != nil {
		b.Fatal(err)
	}
	memory, err := unix.Mmap(-1, 0, depth*request, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		for _, err := range []error{lib.Close(d), lib.Disconnect(c), p.Free(), unix.Munmap(memory)} {
			if err != nil {
				b.Error(err)
			}
		}
		lib.Exit()
	})
	free := make(chan int, depth) // pieces of memory
	return func(b *testing.B, into []byte) {
		for i := range depth {
			free <- i
		}
		take := func(at int) (i int) {
			i = <-free
			if at >= depth && into != nil { // what an earlier request brought
				copy(into[i*request:(i+1)*request], memory[i*request:])
			}
			return i
		}
		at := 0
		for ; at < benchSize/request; at++ {
			i := take(at)
			lib.Start(d, library.Transfer{First: uint64(at) * (request / 512), Buf: memory[i*request : (i+1)*request]}, func(err error) {
				if err != nil {
					b.Error(err)
				}
				free <- i
			})
		}
		for range depth {
			take(at)
		}
		if err := lib.Wait(d); err != nil {
			b.Error(err)
		}
	}
}
