package repo

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vmkeep/vmkeep/repo/backend/local"
)

// Ten million blobs are 15 TiB of chunks, in index files as large as those of real repositories, on a disk. Making
// them takes longer than opening and is not in the time. The peak is the process's own, with what making them took
// subtracted by asking the kernel to begin anew.
func BenchmarkOpenWithTenMillionBlobs(b *testing.B) {
	be, err := local.Create(b.TempDir()+"/repository", 2)
	if err != nil {
		b.Fatal(err)
	}
	defer be.Close()
	bigIndex(b, create(b, be), 10_000_000)
	before := heapInUse()
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil { // proc(5): resets the peak
		b.Fatal(err)
	}
	for b.Loop() {
		r := reopen(b, be)
		started := time.Now()
		x, err := r.idx(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(time.Since(started).Nanoseconds())/float64(x.Len()), "ns/blob")
		b.ReportMetric(float64(peakResident(b)-int64(before))/(1<<20), "peak-MiB")
		b.ReportMetric(float64(heapInUse()-before)/float64(x.Len()), "B/blob")
	}
}

// peakResident is the largest resident set of this process, in bytes.
func peakResident(b *testing.B) (kib int64) {
	b.Helper()
	f, err := os.Open("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if v, ok := strings.CutPrefix(s.Text(), "VmHWM:"); ok {
			if _, err := fmt.Sscan(v, &kib); err != nil {
				b.Fatal(err)
			}
		}
	}
	return kib << 10
}
