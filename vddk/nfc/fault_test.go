package nfc_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/vddk"
	"github.com/vmkeep/vmkeep/vddk/nfc"
	"github.com/vmkeep/vmkeep/vddk/nfc/nfctest"
)

// TestFragments reads answers cut into odd sizes, out of order, interleaved, packed differently piece by piece.
func TestFragments(t *testing.T) {
	const request = 150 << 10
	sizes := []int{1000, 65536, 7, 3000, 64536}
	for name, sc := range map[string]nfctest.Scenario{
		"sizes":       {Fragments: sizes},
		"odd first":   {Fragments: sizes, OddFirst: true},
		"interleaved": {Fragments: sizes, Hold: 5, Interleave: true},
		"backwards":   {Fragments: sizes, Hold: 5, Interleave: true, OddFirst: true},
		"mixed":       {Fragments: sizes, Mixed: true},
		"ignored":     {Uncompress: true},
		"raw skipz":   {Fragments: []int{4096}, RawSkipz: true},
	} {
		t.Run(name, func(t *testing.T) {
			for c := nfc.None; c <= nfc.Skipz; c++ {
				both(t, 5*request, func(t *testing.T, k *kit) {
					k.SetScenario(sc)
					k.nfc.Options.Compression, k.nfc.Options.MaxRequest = c, request
					d := k.must()
					k.all(d)
					s := d.Stats()
					if s.Reads != 5 || s.RawBytes != 5*request || s.Retries != 0 || s.Reconnects != 0 || s.P99 == 0 || s.P50 > s.P99 {
						t.Errorf("%+v", s)
					}
					if got := s.WireBytes < s.RawBytes; got != (c != nfc.None && !sc.Uncompress) {
						t.Errorf("%d of %d bytes on the wire", s.WireBytes, s.RawBytes)
					}
					if k.Stats().WireBytes != s.WireBytes {
						t.Errorf("the server sent %d bytes, %d were counted", k.Stats().WireBytes, s.WireBytes)
					}
					k.close(d)
				})
			}
		})
	}
}

// TestPipelining: the server answers nothing until it holds 16 requests, then the newest first. A client that waits for
// answers before it asks on would wait for ever.
func TestPipelining(t *testing.T) {
	both(t, 16<<20, func(t *testing.T, k *kit) {
		k.SetScenario(nfctest.Scenario{Hold: 16, Interleave: true, Fragments: []int{100 << 10}})
		d := k.must()
		k.all(d)
		var wg sync.WaitGroup
		for i := range 16 {
			wg.Go(func() {
				buf := make([]byte, 64<<10)
				if _, err := d.ReadAt(buf, int64(i)<<20); err != nil || !bytes.Equal(buf, k.content[i<<20:i<<20+64<<10]) {
					t.Errorf("concurrent read: %v", err)
				}
			})
		}
		wg.Wait()
		if n := k.Stats().MaxInFlight; n != 16 {
			t.Errorf("%d requests in flight", n)
		}
		k.close(d)
	})
}

// TestWritesArePipelined: the server acknowledges nothing until it has 16 writes, then the newest first. What one caller
// writes and what sixteen do is in flight together.
func TestWritesArePipelined(t *testing.T) {
	both(t, 32<<20, func(t *testing.T, k *kit) {
		k.write = true
		k.SetScenario(nfctest.Scenario{HoldWrites: 16})
		d := k.must()
		if _, err := d.WriteAt(k.content[:16<<20], 16<<20); err != nil {
			t.Fatal(err)
		}
		copy(k.content[16<<20:], k.content[:16<<20])
		var wg sync.WaitGroup
		for i := range 16 {
			wg.Go(func() {
				if _, err := d.WriteAt(k.content[(15-i)<<20:(16-i)<<20], int64(i)<<20); err != nil {
					t.Errorf("concurrent write: %v", err)
				}
			})
		}
		wg.Wait()
		k.SetScenario(nfctest.Scenario{})
		got := make([]byte, 16<<20)
		if _, err := d.ReadAt(got, 16<<20); err != nil || !bytes.Equal(got, k.content[16<<20:]) {
			t.Errorf("the second half reads otherwise (%v)", err)
		}
		for i := range 16 {
			if _, err := d.ReadAt(got[:1<<20], int64(i)<<20); err != nil || !bytes.Equal(got[:1<<20], k.content[(15-i)<<20:(16-i)<<20]) {
				t.Errorf("piece %d reads otherwise (%v)", i, err)
			}
		}
		k.close(d)
	})
}

// TestReadFaults makes the second read of a disk fail in every known way: once, then always.
func TestReadFaults(t *testing.T) {
	const request = 64 << 10
	type want struct {
		once       error // nil: it recovers
		reconnects int64 // when it recovers
		always     error
	}
	refused := errors.New("any refusal")
	violation := want{nil, 1, nfc.ErrProtocol}
	lost := want{nil, 1, vddk.ErrConnectionLost}
	faults := map[nfctest.FaultKind]want{
		nfctest.BadStatus: {once: refused, always: refused}, nfctest.Refused: {once: refused, always: refused},
		nfctest.RefusedLate: {once: refused, always: refused}, nfctest.NoMemory: {always: vddk.ErrHostMemory},
		nfctest.Overlap: violation, nfctest.Duplicate: violation, nfctest.OutOfRange: violation,
		nfctest.WrongTotal: violation, nfctest.WrongBase: violation, nfctest.TooLong: violation,
		nfctest.HugeWire: violation, nfctest.WrongMagic: violation, nfctest.UnknownID: violation,
		nfctest.HugePayload: violation, nfctest.WrongType: violation,
		nfctest.Missing: lost, nfctest.Stall: lost, nfctest.Cut: lost,
		nfctest.Corrupt: {always: nil}, nfctest.OverrunRecord: {always: refused},
	}
	for kind := nfctest.BadStatus; kind <= nfctest.Stall; kind++ {
		w, ok := faults[kind]
		if !ok {
			t.Fatalf("fault %d is not in the table", kind)
		}
		t.Run(fmt.Sprint(kind), func(t *testing.T) {
			t.Parallel()
			compressions, patience := []nfc.Compression{nfc.None, nfc.Zlib, nfc.FastLZ, nfc.Skipz}, time.Minute
			if kind == nfctest.Missing || kind == nfctest.Stall { // only waiting shows these
				compressions, patience = compressions[:1], time.Second
			}
			for _, c := range compressions {
				for _, m := range modes {
					k := start(t, m, 3*request)
					k.nfc.Options.Compression, k.nfc.Options.MaxRequest = c, request
					k.nfc.Options.IOTimeout, k.nfc.Options.Retries = patience, 2
					k.SetScenario(nfctest.Scenario{Faults: []nfctest.Fault{{Kind: kind, Nth: 2}}})
					d := k.must()
					got := make([]byte, len(k.content))
					_, err := d.ReadAt(got, 0)
					switch {
					case w.once == nil && (err != nil || !bytes.Equal(got, k.content)):
						t.Errorf("%s %s: a single fault is not recovered from: %v", m, c, err)
					case w.once == nil && d.Stats().Reconnects != w.reconnects:
						t.Errorf("%s %s: %d reconnections", m, c, d.Stats().Reconnects)
					case w.once != nil && (err == nil || !strings.Contains(err.Error(), path)):
						t.Errorf("%s %s: gives %v", m, c, err)
					}
					k.all(d) // it works on
					if err := d.Close(); err != nil {
						t.Errorf("%s %s: close: %v", m, c, err)
					}

					k.SetScenario(nfctest.Scenario{Faults: []nfctest.Fault{{Kind: kind}}})
					d = k.must()
					_, err = d.ReadAt(got, 0)
					switch {
					case w.always == nil && err != nil:
						t.Errorf("%s %s always: %v", m, c, err)
					case w.always == refused && err == nil, w.always != nil && w.always != refused && !errors.Is(err, w.always):
						t.Errorf("%s %s always: gives %v", m, c, err)
					}
					if err != nil {
						k.secret(err.Error())
					}
					if err := d.Close(); err != nil {
						t.Errorf("%s %s: close: %v", m, c, err)
					}
				}
			}
		})
	}
}

// dropAfter is more than two requests of 1 MiB: of the two that are in flight one gets through before a connection is cut.
const dropAfter = 2300000

// TestDroppedInMidRead cuts connections in mid-fragment, again and again.
func TestDroppedInMidRead(t *testing.T) {
	both(t, 12<<20, func(t *testing.T, k *kit) {
		k.SetScenario(nfctest.Scenario{DropAfter: dropAfter, Fragments: []int{50000}})
		k.nfc.Options.Depth = 2
		d := k.must()
		k.all(d)
		if n := d.Stats().Reconnects; n < 3 {
			t.Errorf("%d reconnections", n)
		}
		if n := int64(len(k.tickets)); n != d.Stats().Reconnects+1 {
			t.Errorf("%d tickets for %d connections", n, d.Stats().Reconnects+1)
		}
		k.close(d)
	})
}

// Only so many connections are cut; the next one is used to the end.
func TestReconnectsAsOftenAsItIsCut(t *testing.T) {
	both(t, 12<<20, func(t *testing.T, k *kit) {
		k.SetScenario(nfctest.Scenario{DropAfter: dropAfter, DropCount: 2, Fragments: []int{50000}})
		k.nfc.Options.Depth = 2
		d := k.must()
		k.all(d)
		if n := d.Stats().Reconnects; n != 2 {
			t.Errorf("%d reconnections", n)
		}
		k.close(d)
	})
}

// Answers that come late, each after another while, and through a thin line, are waited for: nothing is asked for twice.
func TestUnevenLine(t *testing.T) {
	both(t, 8<<20, func(t *testing.T, k *kit) {
		k.SetScenario(nfctest.Scenario{Latency: time.Millisecond, Jitter: 20 * time.Millisecond, Bandwidth: 100e6})
		k.nfc.Options.MaxRequest = 128 << 10
		d := k.must()
		k.all(d)
		if s := d.Stats(); s.Reads != 64 || s.Retries != 0 || s.Reconnects != 0 {
			t.Errorf("%+v", s)
		}
		k.close(d)
	})
}

func TestReconnectIsBounded(t *testing.T) {
	both(t, 2<<20, func(t *testing.T, k *kit) {
		k.nfc.Options.Retries = 2
		d := k.must()
		k.SetScenario(nfctest.Scenario{Greeting: nfctest.Garbage})
		k.CutAll()
		_, err := d.ReadAt(make([]byte, 512), 0)
		if !errors.Is(err, vddk.ErrConnectionLost) || !strings.Contains(err.Error(), k.Addr().String()) {
			t.Errorf("gives %v", err)
		}
		k.secret(err.Error())
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestGrownWhileReconnecting(t *testing.T) {
	k := start(t, nfc.NBDSSL, 1<<20)
	d := k.must()
	k.SetScenario(nfctest.Scenario{GrowBy: 512})
	k.CutAll()
	if _, err := d.ReadAt(make([]byte, 512), 0); err == nil || !strings.Contains(err.Error(), "after reconnecting") {
		t.Errorf("gives %v", err)
	}
	k.close(d)
}

func TestCancelWhileReconnecting(t *testing.T) {
	why := errors.New("why")
	both(t, 1<<20, func(t *testing.T, k *kit) {
		ctx, cancel := context.WithCancelCause(t.Context())
		d, err := k.open(ctx)
		if err != nil {
			t.Fatal(err)
		}
		k.SetScenario(nfctest.Scenario{Greeting: nfctest.Silent})
		k.CutAll()
		done := make(chan error)
		go func() {
			_, err := d.ReadAt(make([]byte, 512), 0)
			done <- err
		}()
		k.await("reconnecting")
		cancel(why)
		if err := <-done; !errors.Is(err, why) {
			t.Errorf("gives %v", err)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestCloseWhileReconnecting(t *testing.T) {
	k := start(t, nfc.NBDSSL, 1<<20)
	d := k.must()
	k.SetScenario(nfctest.Scenario{Greeting: nfctest.Silent})
	k.CutAll()
	done := make(chan error)
	go func() {
		_, err := d.ReadAt(make([]byte, 512), 0)
		done <- err
	}()
	k.await("reconnecting")
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; !errors.Is(err, vddk.ErrClosed) {
		t.Errorf("gives %v", err)
	}
}

func TestCancelWhileOpening(t *testing.T) {
	why := errors.New("why")
	for name, sc := range map[string]nfctest.Scenario{
		"greeting": {Greeting: nfctest.Silent}, "memory": {Memory: 1},
	} {
		t.Run(name, func(t *testing.T) {
			k := start(t, nfc.NBDSSL, 1<<20)
			k.nfc.Options.Retries, k.nfc.Options.Backoff = 1000, time.Hour
			k.SetScenario(sc)
			ctx, cancel := context.WithCancelCause(t.Context())
			time.AfterFunc(50*time.Millisecond, func() { cancel(why) })
			if _, err := k.open(ctx); !errors.Is(err, why) {
				t.Errorf("gives %v", err)
			}
			k.quiet()
		})
	}
}

func TestWriteFaults(t *testing.T) {
	both(t, 4<<20, func(t *testing.T, k *kit) {
		k.write = true
		k.nfc.Options.Buffer = 64 << 10

		k.SetScenario(nfctest.Scenario{WriteFails: &nfctest.Failure{Code: 1, Text: "DiskLib error 13: no space left on device"}})
		d := k.must()
		if _, err := d.WriteAt(make([]byte, 1<<20), 0); err == nil || !strings.Contains(err.Error(), "no space left") {
			t.Errorf("gives %v", err)
		}
		k.all(d) // nothing was written, and the connection is sound
		k.close(d)

		k.SetScenario(nfctest.Scenario{CloseFails: &nfctest.Failure{Code: 1, Text: "DiskLib error 5: I/O error"}})
		d = k.must()
		if _, err := d.WriteAt(k.content[:512], 0); err != nil {
			t.Error(err)
		}
		if err := d.Close(); err == nil || !strings.Contains(err.Error(), "I/O error") {
			t.Errorf("a failed close gives %v", err)
		}
		k.quietAnyway()

		k.SetScenario(nfctest.Scenario{CloseSilent: true})
		k.nfc.Options.IOTimeout = 200 * time.Millisecond
		d = k.must()
		if _, err := d.WriteAt(k.content[:512], 0); err != nil {
			t.Error(err)
		}
		if err := d.Close(); !errors.Is(err, vddk.ErrConnectionLost) {
			t.Errorf("a close without answer gives %v", err)
		}
		k.quietAnyway()

		k.SetScenario(nfctest.Scenario{WriteDelay: 20 * time.Millisecond, Latency: time.Millisecond})
		k.nfc.Options.IOTimeout = 0
		d = k.must()
		if _, err := d.WriteAt(k.content, 0); err != nil {
			t.Error(err)
		}
		k.all(d)
		k.close(d)
		if s := k.Stats(); s.Writes != 6 || s.WrittenBytes != 4<<20+1024 {
			t.Errorf("%+v", s)
		}
	})
}

func TestAllocatedBlocks(t *testing.T) {
	k := start(t, nfc.NBDSSL, 1<<20)
	whole := extent.Extent{Len: 1 << 20}
	t.Run("refused", func(t *testing.T) {
		k.SetScenario(nfctest.Scenario{QueryFails: &nfctest.Failure{Code: 22, Text: "not implemented"}})
		d := k.must()
		if _, err := d.Allocated(t.Context(), whole); !errors.Is(err, vddk.ErrUnsupported) {
			t.Errorf("gives %v", err)
		}
		k.close(d)
	})
	t.Run("stale on a handle that writes", func(t *testing.T) {
		k.store.Add(path, 1<<20)
		k.SetScenario(nfctest.Scenario{Stale: true})
		k.write = true
		d := k.must()
		if s, err := d.Allocated(t.Context(), whole); err != nil || len(s) != 0 {
			t.Errorf("an empty disk has %v (%v)", s, err)
		}
		if _, err := d.WriteAt(make([]byte, 512), 0); err != nil {
			t.Error(err)
		}
		if _, err := d.Allocated(t.Context(), whole); !errors.Is(err, vddk.ErrUnsupported) {
			t.Errorf("after a write: %v", err)
		}
		k.close(d)
	})
	t.Run("large", func(t *testing.T) {
		k.write = false
		k.SetScenario(nfctest.Scenario{})
		disk := k.store.Add(path, 62<<40) // 62 TiB: the largest disk of vSphere
		at := int64(40)<<40 + 64<<10
		if _, err := disk.WriteAt([]byte("x"), at); err != nil {
			t.Fatal(err)
		}
		d := k.must()
		e := extent.Extent{Off: 40 << 40, Len: 100 << 30}
		if s, err := d.Allocated(t.Context(), e); err != nil || len(s) != 1 || s[0] != (extent.Extent{Off: at, Len: 64 << 10}) {
			t.Errorf("%v (%v)", s, err)
		}
		k.close(d)
	})
}

func TestDatabase(t *testing.T) {
	k := start(t, nfc.NBDSSL, 1<<20)
	k.disk.Entries = map[string]string{"adapterType": "lsilogic", "uuid": "60 00 C2 9a"}
	d := k.must()
	for key, want := range map[string]string{"adapterType": "lsilogic", "uuid": "60 00 C2 9a", "none": ""} {
		if got, err := d.DDB(t.Context(), key); err != nil || got != want {
			t.Errorf("%s is %q (%v)", key, got, err)
		}
	}
	if got := d.Describe(); got != "nbdssl "+k.Addr().String() {
		t.Errorf("described as %q", got)
	}
	k.CutAll() // also calls come through
	if got, err := d.DDB(t.Context(), "uuid"); err != nil || got == "" {
		t.Errorf("after a cut: %q (%v)", got, err)
	}
	k.close(d)
}

func TestIdleHosts(t *testing.T) {
	t.Run("dropped", func(t *testing.T) {
		k := start(t, nfc.NBDSSL, 1<<20)
		k.SetScenario(nfctest.Scenario{IdleTimeout: 50 * time.Millisecond})
		d := k.must()
		k.await(" end: ")
		k.SetScenario(nfctest.Scenario{})
		k.all(d)
		if n := d.Stats().Reconnects; n != 1 {
			t.Errorf("%d reconnections", n)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Run("kept alive", func(t *testing.T) {
		k := start(t, nfc.NBDSSL, 1<<20)
		k.SetScenario(nfctest.Scenario{IdleTimeout: 2 * time.Second})
		k.nfc.Options.KeepAlive = 20 * time.Millisecond
		d := k.must()
		k.await("IO read id 9")
		if n := d.Stats().Reconnects; n != 0 {
			t.Errorf("%d reconnections", n)
		}
		k.close(d)
	})
}
