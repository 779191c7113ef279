package hotadd

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vmkeep/vmkeep/vddk"
	"github.com/vmkeep/vmkeep/vddk/disktest"
)

func TestConformance(t *testing.T) {
	p, tr := newProxy(t)
	var cut atomic.Int64
	var hold atomic.Pointer[chan struct{}]
	tr.wrap = func(d device) device { return gate{d, &cut, cut.Load(), &hold} }
	disktest.Run(t, disktest.Harness{
		Transport: tr,
		New: func(t *testing.T, size int64) disktest.Target {
			path := "[ds1] " + t.Name() + ".vmdk"
			return disktest.Target{
				Spec: vddk.Spec{VM: "vm-7", Key: 2000, Path: path, Capacity: size},
				Raw:  p.add(t, path, size),
				Cut:  func() { cut.Add(1) },
				Stall: func() func() {
					c := make(chan struct{})
					hold.Store(&c)
					return func() { hold.Store(nil); close(c) }
				},
			}
		},
		Lacks: map[disktest.Ability]string{
			disktest.Allocation: "the kernel does not tell of a SCSI disk what of it is allocated",
			disktest.Lending:    "the kernel copies into any memory",
		},
	})
	if len(p.deleted) == 0 {
		t.Error("no device was dropped")
	}
	if b, err := os.ReadFile(filepath.Join(p.root, "sys/class/scsi_host/host0/scan")); err != nil || !strings.HasPrefix(string(b), "- - -") {
		t.Errorf("controllers were not asked to look: %q, %v", b, err)
	}
}

func TestRightDeviceIsFound(t *testing.T) {
	const size = 1 << 20
	for name, c := range map[string]struct {
		noIDs bool
		there func(p *proxy) // devices that were there before
		late  func(p *proxy) // and that appear beside it
		want  string         // "": none
		says  string
	}{
		"by identity among equals":        {there: func(p *proxy) { p.appear("sdx", uuid(77), 1, size) }, want: "sdb"},
		"by identity among new equals":    {late: func(p *proxy) { p.appear("sdx", uuid(77), 1, size) }, want: "sdb"},
		"by unit":                         {noIDs: true, want: "sdb"},
		"by unit, others were there":      {noIDs: true, there: func(p *proxy) { p.appear("sdx", "", 1, size) }, want: "sdb"},
		"by unit, other sizes are new":    {noIDs: true, late: func(p *proxy) { p.appear("sdx", "", 1, 2*size) }, want: "sdb"},
		"by unit, other units are new":    {noIDs: true, late: func(p *proxy) { p.appear("sdx", "", 9, size) }, want: "sdb"},
		"two fit":                         {noIDs: true, late: func(p *proxy) { p.appear("sdx", "", 1, size) }, says: "disk.EnableUUID"},
		"another is new with an identity": {noIDs: true, late: func(p *proxy) { p.appear("sdx", uuid(77), 1, size) }, want: "sdb"},
	} {
		t.Run(name, func(t *testing.T) {
			p, tr := newProxy(t)
			p.noIDs = c.noIDs
			p.add(t, "[a] b", size)
			if c.there != nil {
				c.there(p)
			}
			tr.Attacher = beside{p, c.late}
			d, err := tr.Open(t.Context(), vddk.Spec{Path: "[a] b"})
			if c.want == "" {
				if !errors.Is(err, vddk.ErrUnsupported) || !strings.Contains(err.Error(), c.says) {
					t.Errorf("it gives %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := d.(vddk.Describer).Describe(); got != "hotadd "+c.want {
				t.Errorf("found %s, not %s", got, c.want)
			}
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// beside has other devices appear with the attached one.
type beside struct {
	*proxy
	late func(*proxy)
}

func (b beside) WithAttached(ctx context.Context, a Attachment, fn func(context.Context, Attached) error) error {
	if b.late != nil {
		b.late(b.proxy)
	}
	return b.proxy.WithAttached(ctx, a, fn)
}

// elsewhere attaches to another machine than this program runs in.
type elsewhere struct{}

func (elsewhere) WithAttached(ctx context.Context, _ Attachment, fn func(context.Context, Attached) error) error {
	return fn(ctx, Attached{UUID: uuid(1), Unit: 1, Capacity: 1 << 20})
}

func TestDeviceThatNeverAppears(t *testing.T) {
	_, tr := newProxy(t)
	tr.Attacher, tr.Settle = elsewhere{}, 50*time.Millisecond
	if _, err := tr.Open(t.Context(), vddk.Spec{Path: "[a] b"}); !errors.Is(err, vddk.ErrUnsupported) || !strings.Contains(err.Error(), "proxy") {
		t.Errorf("it gives %v", err)
	}
	tr.Settle = 0
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("why")
	time.AfterFunc(30*time.Millisecond, func() { cancel(why) })
	if _, err := tr.Open(ctx, vddk.Spec{Path: "[a] b"}); !errors.Is(err, why) {
		t.Errorf("cancelled while waiting: %v", err)
	}
}

func TestLeftoverIsTold(t *testing.T) {
	p, tr := newProxy(t)
	p.add(t, "[a] b", 1<<20)
	p.fail = errors.New("the disk stays attached")
	d, err := tr.Open(t.Context(), vddk.Spec{Path: "[a] b"})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); !errors.Is(err, p.fail) {
		t.Errorf("closing gives %v", err)
	}
}

func TestWithoutBlockDevices(t *testing.T) {
	_, tr := newProxy(t)
	tr.Sys = filepath.Join(t.TempDir(), "none")
	if _, err := tr.Open(t.Context(), vddk.Spec{Path: "[a] b"}); !errors.Is(err, vddk.ErrUnsupported) {
		t.Errorf("it gives %v", err)
	}
}
