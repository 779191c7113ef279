package vixdisklib_test

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmkeep/vmkeep/vddk"
	"github.com/vmkeep/vmkeep/vddk/vixdisklib"
	"github.com/vmkeep/vmkeep/vddk/vixdisklib/vixtest"
)

// account keeps what is announced and settled.
type account struct {
	mu   sync.Mutex
	said []string
	left error // the last one
}

func (a *account) announce(_ context.Context, vm string) (func(error), error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.said = append(a.said, "announced "+vm)
	return func(left error) {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.said, a.left = append(a.said, "settled "+vm), left
	}, nil
}

func hotadding(t *testing.T) (*kit, *account) {
	k, a := newKit(t, newest()), &account{}
	k.Modes, k.Announce = []string{"hotadd"}, a.announce
	return k, a
}

func (k *kit) attached() int {
	k.t.Helper()
	files, err := vixtest.Attached(k.TempDir)
	if err != nil {
		k.t.Fatal(err)
	}
	return len(files)
}

func TestWhatIsAttachedIsAnnouncedAndSettled(t *testing.T) {
	why := errors.New("why")
	for name, c := range map[string]struct {
		control string
		kill    bool
		left    string // words; empty: nothing
		stays   int
		starts  int // of the library
	}{
		"in order":       {starts: 1},
		"helper dies":    {kill: true, starts: 2},
		"cleanup fails":  {control: "fault Cleanup code=1", left: "Cleanup", starts: 1},
		"cleanup panics": {control: "fault Cleanup panic", left: "panicked", starts: 2},
		"some stay":      {control: "stay-attached=1", kill: true, left: "1 disks of vm-7 stay attached", stays: 1, starts: 2},
	} {
		t.Run(name, func(t *testing.T) {
			k, a := hotadding(t)
			spec, _ := k.disk(1 << 20)
			d := k.open(spec)
			if k.attached() != 1 || !slices.Equal(a.said, []string{"announced vm-7"}) {
				t.Errorf("%d are attached, and it is said %q", k.attached(), a.said)
			}
			if c.control != "" {
				k.lib.Control(c.control)
			}
			if c.kill {
				k.killHelpers()
				until(t, func() bool { _, err := d.ReadAt(make([]byte, 512), 0); return errors.Is(err, vddk.ErrConnectionLost) })
			}
			if err := d.Close(); err != nil {
				t.Errorf("closing a disk that was read gives %v", err)
			}
			if !slices.Equal(a.said, []string{"announced vm-7", "settled vm-7"}) || (a.left == nil) != (c.left == "") || a.left != nil && !strings.Contains(a.left.Error(), c.left) {
				t.Errorf("it is said %q, left is %v", a.said, a.left)
			}
			if n := k.attached(); n != c.stays {
				t.Errorf("%d stay attached", n)
			}
			starts, cleanups := 0, 0
			for _, call := range k.calls() {
				switch call {
				case "InitEx":
					starts++
				case "Cleanup":
					cleanups++
				case "broken":
					if c.control == "" {
						t.Error("a rule of the library was broken")
					}
				}
			}
			if starts != c.starts || cleanups != starts && !c.kill {
				t.Errorf("%d starts, %d cleanups", starts, cleanups)
			}
		})
	}
	t.Run("not announced", func(t *testing.T) {
		k, _ := hotadding(t)
		k.Announce = func(context.Context, string) (func(error), error) { return nil, why }
		spec, _ := k.disk(1 << 20)
		if _, err := k.Open(t.Context(), spec); !errors.Is(err, why) || len(k.calls()) > 0 {
			t.Errorf("it gives %v, after %q", err, k.calls())
		}
	})
	t.Run("other modes", func(t *testing.T) {
		k, a := hotadding(t)
		k.Modes = nil
		spec, _ := k.disk(1 << 20)
		if err := k.open(spec).Close(); err != nil || len(a.said) > 0 || slices.Contains(k.calls(), "Cleanup") {
			t.Errorf("nothing can be attached, and it is said %q (%v)", a.said, err)
		}
	})
}

// The library would detach what another helper reads. Of two the last cleans up.
func TestNothingInUseIsDetached(t *testing.T) {
	k, a := hotadding(t)
	k.Timeouts.End = time.Second
	content := random(1 << 20)
	spec, raw := k.disk(1 << 20)
	if _, err := raw.WriteAt(content, 0); err != nil {
		t.Fatal(err)
	}
	first := k.open(spec)
	spec.Snapshot = "snapshot-9" // another helper
	second := k.open(spec)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if slices.Contains(k.calls(), "Cleanup") || a.left != nil {
		t.Error("what is in use is cleaned up")
	}
	if _, err := k.Cleanup(t.Context(), "vm-7"); !errors.Is(err, vddk.ErrLocked) {
		t.Errorf("cleaning up what is in use gives %v", err)
	}
	got := make([]byte, len(content))
	if _, err := second.ReadAt(got, 0); err != nil || !bytes.Equal(got, content) {
		t.Errorf("the other disk reads otherwise (%v)", err)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
	if !slices.Contains(k.calls(), "Cleanup") || slices.Contains(k.calls(), "broken") {
		t.Error("the last does not clean up")
	}
}

func TestCleanupDetachesWhatADeadRunLeft(t *testing.T) {
	k, _ := hotadding(t)
	var disks []vddk.Disk
	for _, vm := range []string{"vm-7", "vm-8"} {
		spec, _ := k.disk(1 << 20)
		spec.VM = vm
		disks = append(disks, k.open(spec))
	}
	k.lib.Control("fault Cleanup code=1")
	k.killHelpers()
	for _, d := range disks {
		until(t, func() bool { _, err := d.ReadAt(make([]byte, 512), 0); return errors.Is(err, vddk.ErrConnectionLost) })
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	k.lib.Control()
	before := k.attached()
	got, err := k.Cleanup(t.Context(), "vm-7")
	if want := (vixdisklib.Leftovers{Detached: 1}); got != want || err != nil || before != 2 || k.attached() != 1 {
		t.Errorf("%+v, %v; %d and then %d are attached", got, err, before, k.attached())
	}
	k.lib.Control("fault Cleanup code=4000")
	if _, err := k.Cleanup(t.Context(), "vm-8"); !errors.Is(err, vddk.ErrNotFound) {
		t.Error(err)
	}
}
