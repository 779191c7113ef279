package mounttest

import (
	"fmt"
	"os"
	"runtime"
	"runtime/metrics"
	"strconv"
	"testing"
	"time"
)

// Bounds on what one damaged input may cost.
const (
	maxMemory  = 256 << 20
	maxTime    = 20 * time.Second // a hang, on a machine that does much else
	tryDefault = 300
)

// Tried is what came of a damaged input.
type Tried struct {
	Opened          bool
	Entries, Errors int
}

// Damage tries damaged inputs of one format: 300, or as many as the variable VMKEEP_MUTANTS says. Each must end
// within 20 s and 256 MiB, and may not panic.
//
// Memory is judged by all that was allocated for an input, freed or not: no peak can be higher, and none is missed.
// So nothing else may run beside it.
type Damage struct {
	// Try makes input n and uses everything of it; the same n is the same input.
	Try func(n uint64) Tried
	// Opens is how many of a hundred must open at least, else the inputs try nothing but the first look.
	Opens int
}

// Run is the test.
func (d Damage) Run(t *testing.T) {
	t.Helper()
	count := tryDefault
	if v := os.Getenv("VMKEEP_MUTANTS"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil {
			t.Fatalf("VMKEEP_MUTANTS: %v", err)
		}
		count = n
	}
	var opened, entries, failures int
	var most uint64
	var longest time.Duration
	for n := range uint64(count) {
		before, start := allocated(), time.Now()
		tried := d.within(t, n)
		used, took := allocated()-before, time.Since(start)
		if used > maxMemory {
			t.Errorf("input %d: %d MiB of memory", n, used>>20)
		}
		most, longest = max(most, used), max(longest, took)
		if tried.Opened {
			opened++
		}
		entries, failures = entries+tried.Entries, failures+tried.Errors
	}
	t.Logf("%d of %d opened, %d entries, %d errors; at most %d MiB allocated and %v for one", opened, count, entries, failures, most>>20, longest.Round(time.Millisecond))
	if opened*100 < d.Opens*count || failures+count-opened == 0 {
		t.Errorf("%d of %d opened with %d errors: that tries nothing", opened, count, failures)
	}
}

// within fails the test with all stacks when an input takes too long.
func (d Damage) within(t *testing.T, n uint64) (tried Tried) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		tried = d.Try(n)
	}()
	late := time.NewTimer(maxTime)
	defer late.Stop()
	select {
	case <-done:
		return tried
	case <-late.C:
		b := make([]byte, 1<<20)
		panic(fmt.Sprintf("input %d takes longer than %v\n%s", n, maxTime, b[:runtime.Stack(b, true)]))
	}
}

// allocated is how many bytes this process has allocated since it began.
func allocated() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}
