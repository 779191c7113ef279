package nfc_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/vddk"
	"github.com/vmkeep/vmkeep/vddk/nfc"
	"github.com/vmkeep/vmkeep/vddk/nfc/nfctest"
)

// flat is a store of one disk, shared by all who open it: bytes that are lent, so that the server costs no copy.
type flat []byte

func (f flat) Open(context.Context, nfctest.OpenRequest) (nfctest.File, error) { return f, nil }
func (f flat) Size() int64                                                     { return int64(len(f)) }
func (f flat) Close() error                                                    { return nil }

func (f flat) ReadAt(p []byte, off int64) (int, error) {
	n := copy(p, f[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
func (f flat) WriteAt(p []byte, off int64) (int, error) { return copy(f[off:], p), nil }

func (f flat) Allocated(e extent.Extent) (extent.Set, error) { return extent.Of(e), nil }

func (f flat) View(off int64, n int) ([]byte, func(), bool) {
	return f[off : off+int64(n)], func() {}, true
}

const (
	benchSize = 256 << 20
	flying    = 16 // requests in flight, unless a benchmark says otherwise
)

// bench is a server with one large disk and a transport to it.
func bench(b *testing.B, mode nfc.Mode, o nfc.Options, sc nfctest.Scenario) (*nfc.Transport, *nfctest.Server) {
	disk := make(flat, benchSize)
	fill(disk[:benchSize/8])
	for i := 1; i < 8; i++ {
		copy(disk[i*benchSize/8:], disk[:benchSize/8])
	}
	s, err := nfctest.Start(nfctest.Config{Store: disk})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	s.SetScenario(sc)
	return &nfc.Transport{Mode: mode, Options: o, Ticket: func(_ context.Context, spec vddk.Spec) (nfc.Ticket, error) {
		return s.Grant(nfctest.Grant{Write: spec.Write}), nil
	}}, s
}

// run moves b.N times what the transport has in flight, on each of n disks at once: requests of 1 MiB, each by its own
// goroutine.
func run(b *testing.B, t *nfc.Transport, n int, write bool) {
	const request = 1 << 20
	depth := t.Options.Depth
	disks := make([]vddk.Disk, n)
	bufs := make([][]byte, n*depth)
	for i := range disks {
		d, err := t.Open(b.Context(), vddk.Spec{Path: "[ds1] a/a.vmdk", Write: write})
		if err != nil {
			b.Fatal(err)
		}
		disks[i] = d
	}
	for i := range bufs {
		bufs[i] = make([]byte, request)
		fill(bufs[i])
	}
	b.SetBytes(int64(request * len(bufs)))
	b.ReportAllocs()
	b.ResetTimer()
	cpu := cpuTime()
	var wg sync.WaitGroup
	for i, buf := range bufs {
		wg.Go(func() {
			d := disks[i/depth]
			for k := range b.N {
				var err error
				if off := int64((k*depth+i%depth)*request) % benchSize; write {
					_, err = d.WriteAt(buf, off)
				} else {
					_, err = d.ReadAt(buf, off)
				}
				if err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	// What both ends cost together; unlike MB/s it hardly depends on what else the machine does.
	b.ReportMetric(float64(b.N)*float64(request*len(bufs))/1e6/(cpuTime()-cpu).Seconds(), "MB/cpu-s")
	for _, d := range disks {
		if err := d.Close(); err != nil {
			b.Error(err)
		}
	}
}

// cpuTime is what the process and its ended children used so far, in user and kernel mode.
func cpuTime() (sum time.Duration) {
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var u syscall.Rusage
		if err := syscall.Getrusage(who, &u); err != nil {
			return 0
		}
		sum += time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	return sum
}

func BenchmarkRead(b *testing.B)  { direction(b, false) }
func BenchmarkWrite(b *testing.B) { direction(b, true) }

func direction(b *testing.B, write bool) {
	for _, m := range modes {
		for c := nfc.None; c <= nfc.Skipz; c++ {
			for _, delay := range []time.Duration{0, 5 * time.Millisecond} {
				for _, disks := range []int{1, 8} {
					b.Run(fmt.Sprintf("%s/%s/latency=%s/disks=%d", m, c, delay, disks), func(b *testing.B) {
						t, _ := bench(b, m, nfc.Options{Compression: c, Depth: flying}, nfctest.Scenario{Latency: delay})
						run(b, t, disks, write)
					})
				}
			}
		}
	}
}

// BenchmarkDepth holds a delay against the requests in flight: 16 MiB within 5 ms are 3.4 GB/s at most, which is about what
// loopback carries without any delay. Then it is the depth that limits, not what is done per request.
func BenchmarkDepth(b *testing.B) {
	for _, depth := range []int{8, 16, 32} {
		for _, delay := range []time.Duration{0, 5 * time.Millisecond} {
			b.Run(fmt.Sprintf("requests=%d/latency=%s", depth, delay), func(b *testing.B) {
				t, _ := bench(b, nfc.NBD, nfc.Options{Depth: depth}, nfctest.Scenario{Latency: delay})
				run(b, t, 1, false)
			})
		}
	}
}

// BenchmarkYardstick reads what others move over the loopback interface: nbdkit serves a file that lies in the page cache
// to nbdcopy, 16 requests of 1 MiB on one connection, as nbd/none/latency=0s/disks=1 of BenchmarkRead does.
func BenchmarkYardstick(b *testing.B) {
	file := filepath.Join(b.TempDir(), "disk")
	content := make([]byte, benchSize)
	fill(content)
	if err := os.WriteFile(file, content, 0o600); err != nil {
		b.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err := errors.Join(err, l.Close()); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(benchSize)
	cpu, n := cpuTime(), 0
	for ; b.Loop(); n++ {
		cmd := exec.Command("nbdkit", "-r", "-i", "127.0.0.1", "-p", port, "file", file,
			"--run", `nbdcopy --connections=1 --requests=16 --request-size=1048576 "$uri" null:`)
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("%v (\"make tools\" installs nbdkit and nbdcopy): %s", err, out)
		}
	}
	b.ReportMetric(float64(n)*benchSize/1e6/(cpuTime()-cpu).Seconds(), "MB/cpu-s")
}

// BenchmarkThinLine reads through 40 MB/s with 5 ms, by the automatic rule and without compression.
func BenchmarkThinLine(b *testing.B) {
	for _, c := range []nfc.Compression{nfc.None, nfc.FastLZ, nfc.Auto} {
		b.Run(c.String(), func(b *testing.B) {
			t, _ := bench(b, nfc.NBDSSL, nfc.Options{Compression: c, Depth: flying}, nfctest.Scenario{Latency: 5 * time.Millisecond, Bandwidth: 40e6})
			run(b, t, 1, false)
		})
	}
}

// BenchmarkOpen opens and closes a disk: dialogue, two TLS handshakes, session.
func BenchmarkOpen(b *testing.B) {
	for _, m := range modes {
		b.Run(string(m), func(b *testing.B) {
			t, _ := bench(b, m, nfc.Options{}, nfctest.Scenario{})
			for b.Loop() {
				d, err := t.Open(b.Context(), vddk.Spec{Path: "[ds1] a/a.vmdk"})
				if err != nil {
					b.Fatal(err)
				}
				if err := d.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
