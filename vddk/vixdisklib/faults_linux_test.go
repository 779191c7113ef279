package vixdisklib_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/vddk"
	"github.com/vmkeep/vmkeep/vddk/vixdisklib"
	"github.com/vmkeep/vmkeep/vddk/vixdisklib/vixtest"
)

func random(n int) []byte {
	p := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(p)
	return p
}

// ends wants f to end while somebody still waits.
func ends(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatalf("%s does not end", what)
	}
}

// until waits for what another process does, which tells nobody.
func until(t *testing.T, f func() bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for tick := time.Tick(time.Millisecond); !f(); {
		select {
		case <-tick:
		case <-deadline:
			t.Fatal("it does not happen")
		}
	}
}

func TestCodesOfOpenBecomeQuestionsOfPackageVddk(t *testing.T) {
	for _, c := range []struct {
		control string
		want    error
		says    string
	}{
		{"fault Open code=2", vddk.ErrHostMemory, "fewer disks"},
		{"fault Open code=4", vddk.ErrNotFound, "not found"},
		{"fault Open code=5", vddk.ErrLocked, "busy"},
		{"fault Open code=31", vddk.ErrLocked, "try again"},
		{"fault Open code=1000", nil, "report"},
		{"fault Open code=1002", nil, "report"},
		{"fault Open code=6", vddk.ErrUnsupported, ""},
		{"sector=4096", vddk.ErrUnsupported, "sectors of 4096 bytes"},
		{"fault Open code=13", vddk.ErrPermission, "DiskLease"},
		{"fault Open code=15", vddk.ErrLocked, "already in use"},
		{"fault Open code=13014", vddk.ErrLocked, ""},
		{"fault Open code=14009", vddk.ErrConnectionLost, "port 902"},
		{"fault Open code=16064", vddk.ErrUnsupported, "licence"},
		{"fault Open code=16014", vddk.ErrUnsupported, "encrypted"},
		{"fault Open code=65540", vddk.ErrNotFound, "code 4"}, // upper bits say more, and do not count
		{"fault ConnectEx code=4000", vddk.ErrNotFound, "another server"},
		{"fault ConnectEx code=3046", nil, "sessions"},
		{"fault GetInfo code=36", vddk.ErrConnectionLost, "GetInfo"},
		{"fault InitEx code=16053", vddk.ErrUnsupported, "vmkeep doctor"},
		{"password=another", vddk.ErrPermission, "code 3014"},
		{"thumbprint=00:11", nil, "wrong thumbprint"},
		{"modes=file", vddk.ErrUnsupported, "fell back"},
	} {
		t.Run(strings.ReplaceAll(c.control, " ", "_"), func(t *testing.T) {
			k := newKit(t, newest())
			if c.control == "modes=file" {
				k.Modes = []string{"hotadd"}
			}
			k.lib.Control(c.control)
			spec, _ := k.disk(1 << 20)
			d, err := k.Open(t.Context(), spec)
			if err == nil {
				d.Close()
				t.Fatal("it opens")
			}
			if c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("the error is %v", err)
			}
			if k.lib.Exits() != 1 && !strings.Contains(c.control, "InitEx") {
				t.Errorf("the helper ended in order %d times; calls: %v", k.lib.Exits(), k.calls())
			}
			// It was the disk's or the server's fault; the next opening begins anew.
			k.Modes = nil
			k.lib.Control()
			k.open(spec)
		})
	}
}

func TestSnapshotIsGivenToTheConnection(t *testing.T) {
	k := newKit(t, newest())
	k.lib.Control("needs-snapshot=1")
	spec, _ := k.disk(1 << 20)
	k.open(spec)
	spec.Snapshot = ""
	if _, err := k.Open(t.Context(), spec); !errors.Is(err, vddk.ErrPermission) {
		t.Errorf("without a snapshot: %v", err)
	}
}

func TestLockedDiskOpensLater(t *testing.T) {
	k := newKit(t, newest())
	spec, _ := k.disk(1 << 20)
	spec.Write = true
	first := k.open(spec)
	spec.VM = "vm-9" // another connection, as another program would have
	if _, err := k.Open(t.Context(), spec); !errors.Is(err, vddk.ErrLocked) {
		t.Errorf("a disk that is open for writing: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	k.open(spec)
}

func TestFaultsOfReading(t *testing.T) {
	const size = 8 << 20
	for _, c := range []struct {
		control string
		want    error
		says    string
	}{
		{"fault Read lba=8192-8200 code=14010", vddk.ErrConnectionLost, "code 14010"},
		{"fault Read lba=8192-8200 code=16007 partial", nil, "code 16007"},
		{"fault Read nth=3 code=2", vddk.ErrHostMemory, ""},
		{"fault ReadAsync nth=3 code=2", vddk.ErrHostMemory, "ReadAsync"},
		{"fault Read nth=3 abort", vddk.ErrConnectionLost, "helper process"},
		{"fault Read nth=3 segv", vddk.ErrConnectionLost, "helper process"},
		{"fault ReadAsync nth=3 panic", vddk.ErrConnectionLost, "VERIFY bora/lib/fake"},
		{"fault Read nth=3 drop", vddk.ErrConnectionLost, "killed"},
		{"fault Read nth=3 stuck", vddk.ErrConnectionLost, "killed"},
		{"fault ReadAsync nth=3 stuck", vddk.ErrConnectionLost, "killed"},
	} {
		t.Run(strings.ReplaceAll(c.control, " ", "_"), func(t *testing.T) {
			k := newKit(t, newest())
			if c.says == "killed" {
				k.Timeouts.Transfer = 500 * time.Millisecond
			}
			spec, raw := k.disk(size)
			content := random(size)
			if _, err := raw.WriteAt(content, 0); err != nil {
				t.Fatal(err)
			}
			d := k.open(spec)
			k.lib.Control(c.control)
			got := make([]byte, size)
			ends(t, "reading", func() {
				_, err := d.ReadAt(got, 0)
				if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
					t.Errorf("the error is %v", err)
				}
			})
			k.lib.Control()
			ends(t, "closing", func() {
				if err := d.Close(); err != nil {
					t.Errorf("closing a disk that was only read gives %v", err)
				}
			})
			again := k.open(spec)
			if _, err := again.ReadAt(got, 0); err != nil || !bytes.Equal(got, content) {
				t.Errorf("the next opening reads otherwise (%v)", err)
			}
		})
	}
}

func TestOneErrorLeavesTheDiskUsable(t *testing.T) {
	k := newKit(t, newest())
	spec, raw := k.disk(4 << 20)
	content := random(4 << 20)
	if _, err := raw.WriteAt(content, 0); err != nil {
		t.Fatal(err)
	}
	d := k.open(spec)
	got := make([]byte, len(content))
	for range 30 { // more often than requests may be in flight
		k.lib.Control("fault Read lba=4096-4097 code=2")
		if _, err := d.ReadAt(got, 0); !errors.Is(err, vddk.ErrHostMemory) {
			t.Fatal(err)
		}
		k.lib.Control()
		clear(got)
		if _, err := d.ReadAt(got, 0); err != nil || !bytes.Equal(got, content) {
			t.Fatalf("after an error the disk reads otherwise (%v)", err)
		}
	}
}

func TestFaultsOfWriting(t *testing.T) {
	for _, c := range []struct {
		control string
		want    error
		lost    bool
	}{
		{"fault Write nth=2 code=8", nil, false},
		{"fault Write nth=2 code=36 partial", vddk.ErrConnectionLost, true},
		{"fault WriteAsync nth=2 abort", vddk.ErrConnectionLost, true},
		{"fault Flush code=36", nil, true},
	} {
		t.Run(strings.ReplaceAll(c.control, " ", "_"), func(t *testing.T) {
			k := newKit(t, newest())
			spec, _ := k.disk(8 << 20)
			spec.Write = true
			d, err := k.Open(t.Context(), spec)
			if err != nil {
				t.Fatal(err)
			}
			k.lib.Control(c.control)
			if _, err := d.WriteAt(random(4<<20), 0); (err == nil) != strings.Contains(c.control, "Flush") || c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("writing gives %v", err)
			}
			if err := d.Close(); errors.Is(err, vddk.ErrConnectionLost) != c.lost || !c.lost && err != nil {
				t.Errorf("closing gives %v", err)
			}
		})
	}
}

func TestTransfersCompletedInsideTheCall(t *testing.T) {
	k := newKit(t, newest())
	k.Modes = []string{"hotadd"}
	k.lib.Control("fault ReadAsync sync", "fault WriteAsync sync")
	spec, raw := k.disk(20 << 20)
	spec.Write = true
	d := k.open(spec)
	content := random(20 << 20)
	if _, err := d.WriteAt(content, 0); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(content))
	if _, err := d.ReadAt(got, 0); err != nil || !bytes.Equal(got, content) {
		t.Errorf("reading gives others (%v)", err)
	}
	if _, err := raw.ReadAt(got, 0); err != nil && err != io.EOF || !bytes.Equal(got, content) {
		t.Errorf("the file has others (%v)", err)
	}
	if s := d.(vddk.Describer).Describe(); !strings.HasPrefix(s, "hotadd ") || !strings.Contains(s, "esx1.example.com:902") || !strings.Contains(s, "libvixDiskLib.so.8.0.1") {
		t.Errorf("it describes itself as %q", s)
	}
}

func TestHangsAreEnded(t *testing.T) {
	for _, call := range []string{"InitEx", "ConnectEx", "Open", "GetInfo"} {
		t.Run(call, func(t *testing.T) {
			k := newKit(t, newest())
			k.Timeouts = vixdisklib.Timeouts{Start: time.Second, Open: time.Second}
			if call != "InitEx" {
				k.Timeouts.Start = 0
			}
			k.lib.Control("fault " + call + " stuck")
			spec, _ := k.disk(1 << 20)
			ends(t, "opening", func() {
				if _, err := k.Open(t.Context(), spec); !errors.Is(err, vddk.ErrConnectionLost) || !strings.Contains(err.Error(), "was killed") {
					t.Errorf("opening gives %v", err)
				}
			})
			if p := k.pids(); len(p) > 0 {
				t.Errorf("helpers live on: %v", p)
			}
		})
	}
	t.Run("Close", func(t *testing.T) {
		k := newKit(t, newest())
		spec, _ := k.disk(1 << 20)
		spec.Write = true
		k.Timeouts.Open = 10 * time.Second
		d := k.open(spec)
		k.lib.Control("fault Close stuck")
		ends(t, "closing", func() {
			if err := d.Close(); !errors.Is(err, vddk.ErrConnectionLost) {
				t.Errorf("closing gives %v", err)
			}
		})
	})
}

// A cancelled opening must not wait for a library that hangs, nor leave the disk open in a helper others use.
func TestCancelledOpening(t *testing.T) {
	k := newKit(t, newest())
	spec, _ := k.disk(1 << 20)
	other := spec
	other.Path += "2"
	k.lib.Add(other.Path, 1<<20)
	spec.Write, other.Write = true, true
	d := k.open(other)
	k.lib.Control("fault Open hold")
	before := len(k.calls())
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	why := errors.New("enough")
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := k.Open(ctx, spec); !errors.Is(err, why) {
			t.Errorf("a cancelled opening gives %v", err)
		}
	})
	until(t, func() bool { return slices.Contains(k.calls()[before:], "Open") })
	cancel(why)
	ends(t, "a cancelled opening", wg.Wait)
	// The library is still in Open, and what closes the disk again waits for it: other disks are served.
	ends(t, "reading another disk meanwhile", func() {
		if _, err := d.ReadAt(make([]byte, 512), 0); err != nil {
			t.Error(err)
		}
	})
	k.lib.Control()
	again := k.open(spec) // not locked: what was opened late was closed
	if err := errors.Join(again.Close(), d.Close()); err != nil {
		t.Error(err)
	}
	if k.lib.Exits() != 1 {
		t.Errorf("orderly ends: %d", k.lib.Exits())
	}
}

func TestKilledInMidRead(t *testing.T) {
	k := newKit(t, newest())
	spec, _ := k.disk(64 << 20)
	d := k.open(spec)
	k.lib.Control("fault Read hold")
	before := len(k.calls())
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			if _, err := d.ReadAt(make([]byte, 8<<20), int64(i)<<23); !errors.Is(err, vddk.ErrConnectionLost) {
				t.Errorf("a read in flight gives %v", err)
			}
		})
	}
	until(t, func() bool { return slices.Contains(k.calls()[before:], "ReadAsync") })
	k.killHelpers()
	ends(t, "reads in flight", wg.Wait)
	k.lib.Control()
	ends(t, "opening again while the old one is not closed", func() {
		if _, err := k.open(spec).ReadAt(make([]byte, 512), 0); err != nil {
			t.Error(err)
		}
	})
}

// An answer that comes when nobody waits for it any more must not change memory that was lent anew.
func TestLateAnswersStayInTheirMemory(t *testing.T) {
	const size = 1 << 20
	k := newKit(t, newest())
	spec, raw := k.disk(size)
	content := random(size)
	if _, err := raw.WriteAt(content, 0); err != nil {
		t.Fatal(err)
	}
	stays := k.open(spec).(vddk.Lender)
	ctx, cancel := context.WithCancel(t.Context())
	d, err := k.Open(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	k.lib.Control("fault Read hold")
	p, giveBack := d.(vddk.Lender).Lend(size)
	before := len(k.calls())
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := d.ReadAt(p, 0); !errors.Is(err, context.Canceled) {
			t.Errorf("a cancelled read gives %v", err)
		}
	})
	until(t, func() bool { return slices.Contains(k.calls()[before:], "ReadAsync") })
	cancel()
	ends(t, "a cancelled read", wg.Wait)
	giveBack()
	next, giveBack := stays.Lend(size)
	defer giveBack()
	clear(next)
	k.lib.Control()
	if err := d.Close(); err != nil { // once the library has answered
		t.Error(err)
	}
	if !bytes.Equal(p, content) {
		t.Error("the late answer did not come: the test shows nothing")
	}
	if !bytes.Equal(next, make([]byte, size)) {
		t.Error("a late answer changed memory that was lent anew")
	}
}

func TestDisksShareAConnection(t *testing.T) {
	k := newKit(t, newest())
	spec, _ := k.disk(1 << 20)
	var disks []vddk.Disk
	for i := range 70 {
		s := spec
		s.Path += string(rune('0' + i))
		k.lib.Add(s.Path, 1<<20)
		d, err := k.Open(t.Context(), s)
		if i >= 64 {
			if !errors.Is(err, vddk.ErrUnsupported) {
				t.Errorf("disk %d: %v", i, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		disks = append(disks, d)
	}
	var wg sync.WaitGroup
	for _, d := range disks {
		wg.Go(func() {
			if _, err := d.ReadAt(make([]byte, 1<<20), 0); err != nil {
				t.Error(err)
			}
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	calls := k.calls()
	count := func(name string) (n int) {
		for _, c := range calls {
			if c == name {
				n++
			}
		}
		return n
	}
	for name, want := range map[string]int{"InitEx": 1, "ConnectEx": 1, "Disconnect": 1, "Exit": 1, "Open": 64, "Close": 64, "Wait": 64} {
		if count(name) != want {
			t.Errorf("%s was called %d times, not %d", name, count(name), want)
		}
	}
	if i := slices.Index(calls, "Disconnect"); slices.Contains(calls[i:], "Close") || calls[len(calls)-1] != "Exit" {
		t.Errorf("out of order: %v", calls[i:])
	}
}

func TestAllocationThatCannotBeTold(t *testing.T) {
	for _, v := range []vixtest.Variant{{Major: 6, Minor: 5}, newest()} {
		k := newKit(t, v)
		spec, _ := k.disk(1 << 20)
		d := k.open(spec)
		k.lib.Control("fault QueryAllocatedBlocks code=1")
		if _, err := d.(vddk.Allocator).Allocated(t.Context(), extent.Extent{Len: 1 << 20}); !errors.Is(err, vddk.ErrUnsupported) {
			t.Errorf("%s: %v", v, err)
		}
		if _, err := d.ReadAt(make([]byte, 1<<20), 0); err != nil {
			t.Errorf("%s: the disk is not usable any more: %v", v, err)
		}
	}
}

func TestLogComesThroughWhole(t *testing.T) {
	k := newKit(t, newest())
	k.lib.Control("chatter=1")
	spec, _ := k.disk(1 << 20)
	d := k.open(spec)
	for _, w := range []string{"thread 2: words -1 1099511627776 (nil) 2.50 c 7 ff", strings.Repeat("x", 2999), "no newline at the end", "Get CEIP status failed: 404"} {
		until(t, func() bool { return strings.Contains(k.logged(), w) })
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}
