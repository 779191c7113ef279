package vixdisklib_test

import (
	"fmt"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ebitengine/purego"
	"golang.org/x/sys/unix"

	"github.com/vmkeep/vmkeep/vddk"
	"github.com/vmkeep/vmkeep/vddk/vixdisklib/internal/library"
)

const (
	benchSize = 256 << 20
	largest   = 1 << 20 // bytes of a request
	deepest   = 16      // requests outstanding
)

// BenchmarkRead compares the way through the helper with the library called in this process, at the same sizes of
// requests and as many outstanding: "helper" reads into memory that the disk lends, as the chunker does, and "direct"
// into memory of the library's caller. The library cannot be given Go's memory: who reads into that pays for a copy,
// "helper-copied" as much as "copied", a disk without a helper. cpu-ms/GB counts the time of all threads of both processes: of two ways that keep every core busy, it says which
// one a busier machine will find slower.
//
// The fake serves from the page cache, far faster than any host; with 2 ms to each transfer, still fast, its four
// threads make about 2 GB/s of requests of 1 MiB.
func BenchmarkRead(b *testing.B) {
	for _, size := range []int{64 << 10, 256 << 10, largest} {
		for _, outstanding := range []int{1, 4, deepest} {
			b.Run(fmt.Sprintf("%dKiB/%d", size>>10, outstanding), func(b *testing.B) { read(b, load{size, outstanding}) })
		}
	}
	b.Run("1024KiB/16/2ms", func(b *testing.B) { read(b, load{largest, deepest}, "fault Read delay=2") })
}

// load is how a disk is read.
type load struct{ size, outstanding int }

func read(b *testing.B, l load, control ...string) {
	k := newKit(b, newest())
	k.lib.Control(control...)
	k.Log = nil
	spec, raw := k.disk(benchSize)
	if _, err := raw.WriteAt(random(benchSize), 0); err != nil {
		b.Fatal(err)
	}
	k.lib.Quiet()
	measure := func(name string, ready func() (once func(*testing.B), end func() error)) {
		b.Run(name, func(b *testing.B) {
			once, end := ready()
			b.SetBytes(benchSize)
			began, n := cpu(b), 0
			for ; b.Loop(); n++ {
				once(b)
			}
			b.StopTimer()
			if err := end(); err != nil {
				b.Error(err)
			}
			b.ReportMetric(float64((cpu(b)-began).Milliseconds())/(float64(n)*benchSize/1e9), "cpu-ms/GB")
		})
	}
	for name, lent := range map[string]bool{"helper": true, "helper-copied": false} {
		measure(name, func() (func(*testing.B), func() error) {
			d := k.open(spec)
			return func(b *testing.B) { readAll(b, d, l, lent) }, d.Close // the helper's time counts once it is gone
		})
	}
	direct := loadHere(b, k, spec.Path)
	for name, into := range map[string][]byte{"direct": nil, "copied": make([]byte, l.outstanding*l.size)} {
		measure(name, func() (func(*testing.B), func() error) {
			return func(b *testing.B) { direct(b, l, into) }, func() error { return nil }
		})
	}
}

// cpu is the time that the threads of this process and its ended children have worked.
func cpu(b *testing.B) (sum time.Duration) {
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		if err := unix.Getrusage(who, &u); err != nil {
			b.Fatal(err)
		}
		sum += time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	return sum
}

// readAll reads the disk, each of the outstanding requests by a caller of its own.
func readAll(b *testing.B, d vddk.Disk, l load, lent bool) {
	var next atomic.Int64
	var wg sync.WaitGroup
	for range l.outstanding {
		wg.Go(func() {
			var buf []byte
			if lent {
				p, giveBack := d.(vddk.Lender).Lend(l.size)
				defer giveBack()
				buf = p
			} else {
				buf = make([]byte, l.size)
			}
			for {
				at := next.Add(int64(l.size)) - int64(l.size)
				if at >= benchSize {
					return
				}
				if _, err := d.ReadAt(buf, at); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// loadHere loads the library into this process, which has no loader path for its neighbour: that is loaded first.
func loadHere(b *testing.B, k *kit, path string) func(*testing.B, load, []byte) {
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
	memory, err := unix.Mmap(-1, 0, deepest*largest, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
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
	return func(b *testing.B, l load, into []byte) {
		free := make(chan int, l.outstanding) // pieces of memory
		for i := range l.outstanding {
			free <- i
		}
		piece := func(p []byte, i int) []byte { return p[i*l.size : (i+1)*l.size] }
		take := func(at int) (i int) {
			i = <-free
			if at >= l.outstanding && into != nil { // what an earlier request brought
				copy(piece(into, i), piece(memory, i))
			}
			return i
		}
		at := 0
		for ; at < benchSize/l.size; at++ {
			i := take(at)
			lib.Start(d, library.Transfer{First: uint64(at) * uint64(l.size/vddk.SectorSize), Buf: piece(memory, i)}, func(err error) {
				if err != nil {
					b.Error(err)
				}
				free <- i
			})
		}
		for range l.outstanding {
			take(at)
		}
		if err := lib.Wait(d); err != nil {
			b.Error(err)
		}
	}
}
