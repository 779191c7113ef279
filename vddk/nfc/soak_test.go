package nfc_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"runtime"
	"strconv"
	"testing"

	"github.com/vmkeep/vmkeep/vddk/nfc"
	"github.com/vmkeep/vmkeep/vddk/nfc/nfctest"
)

// soakVariable asks for another number of cycles, for example 20000 over night.
const soakVariable = "VMKEEP_SOAK_CYCLES"

// TestSoak lives through hundreds of disks, each opened, read, broken in some way, closed: descriptors, goroutines and
// memory must be what they were.
func TestSoak(t *testing.T) {
	cycles := 250
	if v := os.Getenv(soakVariable); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 {
			t.Fatalf("%s=%s: a positive number is needed", soakVariable, v)
		}
		cycles = n
	}
	k := start(t, nfc.NBDSSL, 256<<10)
	k.nfc.Options.Buffer, k.nfc.Options.Compression = 64<<10, nfc.FastLZ
	k.nfc.Options.Retries = 2
	buf := make([]byte, 256<<10)
	why := errors.New("why")
	cycle := func(i int) {
		k.nfc.Mode = modes[i%2]
		ctx, cancel := context.WithCancelCause(t.Context())
		defer cancel(nil)
		d, err := k.open(ctx)
		if err != nil {
			t.Fatal(err)
		}
		switch i % 5 {
		case 1:
			k.CutAll()
		case 2:
			cancel(why)
		case 3:
			k.SetScenario(nfctest.Scenario{Faults: []nfctest.Fault{{Kind: nfctest.FaultKind(1 + i/5%int(nfctest.NoMemory)), Nth: 1}}})
		case 4:
			k.SetScenario(nfctest.Scenario{OpenFails: &nfctest.Failure{Code: 1, Text: nfctest.TextLocked}})
			if _, err := k.open(ctx); err == nil {
				t.Fatal("a locked disk is opened")
			}
			k.SetScenario(nfctest.Scenario{})
		}
		_, err = d.ReadAt(buf, 0)
		switch {
		case i%5 == 2 && !errors.Is(err, why):
			t.Fatalf("cycle %d: %v", i, err)
		case i%5 != 2 && i%5 != 3 && (err != nil || !bytes.Equal(buf, k.content)):
			t.Fatalf("cycle %d: %v", i, err)
		}
		if err := d.Close(); err != nil {
			t.Fatalf("cycle %d: close: %v", i, err)
		}
		k.SetScenario(nfctest.Scenario{})
		k.quietAnyway()
		k.mu.Lock()
		k.log.Reset()
		k.tickets = k.tickets[:0]
		k.mu.Unlock()
	}
	measure := func() (fds, goroutines int, heap uint64) {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			entries, err = os.ReadDir("/dev/fd")
		}
		if err != nil {
			t.Fatal(err)
		}
		return len(entries), runtime.NumGoroutine(), m.HeapAlloc
	}
	for i := range 50 {
		cycle(i)
	}
	fds, goroutines, heap := measure()
	for i := range cycles {
		cycle(i)
	}
	fds2, goroutines2, heap2 := measure()
	t.Logf("%d cycles: descriptors %d, %d; goroutines %d, %d; heap %d, %d KiB", cycles, fds, fds2, goroutines, goroutines2, heap>>10, heap2>>10)
	if fds2 > fds+2 || goroutines2 > goroutines+2 || heap2 > heap+2<<20 {
		t.Errorf("after %d cycles: %d descriptors (before %d), %d goroutines (%d), %d bytes (%d)",
			cycles, fds2, fds, goroutines2, goroutines, heap2, heap)
	}
	if s := k.Stats(); s.OpenFiles != 0 || s.Memory != 0 {
		t.Errorf("left on the server: %+v", s)
	}
}
