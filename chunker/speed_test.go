//go:build !race

package chunker

// The race detector slows some loops down more than others: under it these figures would mean nothing.

import (
	"bytes"
	"testing"
	"time"
)

// best is the shortest of a few runs of f.
func best(f func()) time.Duration {
	least := time.Hour
	for range 5 {
		start := time.Now()
		f()
		least = min(least, time.Since(start))
	}
	return least
}

func TestZerosAreCutAtTheSpeedOfMemory(t *testing.T) {
	c, err := New(testPol)
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 16<<20)
	ours := best(func() {
		for _, err := range (Plan{Size: int64(len(data))}).Chunks(bytes.NewReader(data), c) {
			if err != nil {
				t.Fatal(err)
			}
		}
	})
	a, b := make([]byte, 1<<20), make([]byte, 1<<20)
	copying := best(func() { // what Chunks must do at least
		for rest := data; len(rest) > 0; rest = rest[len(a):] {
			copy(a, rest)
			copy(b, a)
		}
	})
	t.Logf("%.2f times as long as copying", ours.Seconds()/copying.Seconds())
	if ours > 4*copying {
		t.Errorf("16 MiB of zeros take %v, copying them %v", ours, copying)
	}
}

func TestAtLeastHalfAgainAsFastAsRestic(t *testing.T) {
	c, err := New(testPol)
	if err != nil {
		t.Fatal(err)
	}
	data := samples(16<<20, 1)["random"]
	ours := best(func() {
		for _, err := range (Plan{Size: int64(len(data))}).Chunks(bytes.NewReader(data), c) {
			if err != nil {
				t.Fatal(err)
			}
		}
	})
	restics := best(func() { byRestic(t, data, testPol) })
	t.Logf("%.2f times restic/chunker", restics.Seconds()/ours.Seconds())
	if ours*3 > restics*2 {
		t.Errorf("ours %v, restic/chunker %v", ours, restics)
	}
}
