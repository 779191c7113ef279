package vsphere

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/vmware/govmomi/vim25/types"

	"github.com/vmkeep/vmkeep/vsphere/lab"
)

// paths are the disks of a machine, as "place path".
func (w *world) paths(name string) []string {
	w.Helper()
	s, err := w.find(name).State(w.ctx)
	must(w, err)
	var out []string
	for _, d := range s.Disks {
		out = append(out, d.Name+" "+d.Path)
	}
	return out
}

func TestNewDiskIsAttached(t *testing.T) {
	w := start(t, lab.Options{Machines: []lab.Machine{{Name: "web", Disks: []lab.Disk{{Size: 8 * mib}, {Size: mib, Controller: "nvme"}}}}})
	v := w.find("web")
	for _, c := range []struct{ place, want, datastore string }{{"", "scsi0-1", ""}, {"scsi0:9", "scsi0-9", ""}, {"nvme0-3", "nvme0-3", "ds2"}} {
		d, err := v.WithNewDisk(w.ctx, DiskSpec{Operation: w.begin(), Place: c.place, Capacity: 2 * mib, Provision: ProvisionThin, Datastore: c.datastore}, func(ctx context.Context, d Disk) error {
			if d.Name != c.want || d.Capacity != 2*mib {
				t.Errorf("%+v", d)
			}
			return nil
		})
		must(t, err)
		if d.Name != c.want || d.Datastore != orText(c.datastore, "ds1") {
			t.Errorf("%+v", d)
		}
	}
	if n := len(w.paths("web")); n != 5 {
		t.Errorf("%d disks", n)
	}
}

func TestNewDiskGoesWhenFillingFails(t *testing.T) {
	w := start(t, machines("web"))
	v := w.find("web")
	before, links := w.paths("web"), len(w.lab.Links())
	boom := errors.New("boom")
	for name, fn := range map[string]func() error{"error": func() error { return boom }, "session lost": func() error { w.lab.ExpireSessions(); return boom }, "panic": func() error { panic(boom) }} {
		for _, replace := range []bool{false, true} {
			func() {
				defer func() { _ = recover() }()
				spec := DiskSpec{Operation: w.begin(), Capacity: 2 * mib}
				if replace {
					spec.Place, spec.Replace = "scsi0:0", true
				}
				_, err := v.WithNewDisk(w.ctx, spec, func(context.Context, Disk) error { return fn() })
				if !errors.Is(err, boom) {
					t.Errorf("%s: %v", name, err)
				}
			}()
			if now := w.paths("web"); !slices.Equal(now, before) {
				t.Errorf("%s, replace %v: disks %v, were %v", name, replace, now, before)
			}
			if n := len(w.lab.Links()); n != links {
				t.Errorf("%s, replace %v: %d files, were %d", name, replace, n, links)
			}
		}
	}
}

func TestReplacedDiskIsKept(t *testing.T) {
	w := start(t, machines("web"))
	v := w.find("web")
	old := v.Machine().Disks[0]
	d, err := v.WithNewDisk(w.ctx, DiskSpec{Operation: w.begin(), Place: "scsi0:0", Replace: true, Capacity: 2 * mib}, func(context.Context, Disk) error { return nil })
	must(t, err)
	if now := w.paths("web"); len(now) != 1 || now[0] != "scsi0-0 "+d.Path || d.Path == old.Path {
		t.Errorf("disks %v", now)
	}
	if !slices.Contains(w.lab.Links(), old.Path) {
		t.Errorf("the old disk's file is gone: %v", w.lab.Links())
	}
}

// dies leaves in the journal what an attachment leaves whose process died: at is what it knew of the file.
func (w *world) dies(v *VM, place, at, action string) {
	w.Helper()
	op, err := w.j.Begin("", "repo1")
	must(w, err)
	e := entry{Kind: EntryDisk, Server: w.c.about.InstanceUUID, Machine: v.ID(), Path: v.label(), Name: place, Object: at, Action: action}
	for _, d := range w.state(v).Disks {
		e.Before = append(e.Before, d.Path)
	}
	_, err = op.announce(e)
	must(w, err)
	if err := op.End(); !errors.Is(err, ErrLeftover) {
		w.Fatal(err)
	}
}

// newDisk attaches an empty disk as somebody else would.
func (w *world) newDisk(v *VM, place string) string {
	w.Helper()
	d, err := v.WithNewDisk(w.ctx, DiskSpec{Operation: w.begin(), Place: place, Capacity: mib}, func(context.Context, Disk) error { return nil })
	must(w, err)
	return d.Path
}

// An attachment dies, and somebody puts a disk of his own at that place. A recovery may take back only what it knows to
// be its own, and never deletes another's file.
func TestRecoverySparesDisksOfOthers(t *testing.T) {
	for _, c := range []struct {
		name, at, action string
		kept             int
	}{
		{"never made", "[ds1] web/web-dead-scsi0-3.vmdk", "delete", 0},
		{"hot-added", "[ds1] other/other.vmdk", "detach", 0},
		{"file unknown", "", "delete", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := start(t, machines("web"))
			v := w.find("web")
			w.dies(v, "scsi0-3", c.at, c.action)
			theirs := w.newDisk(v, "scsi0-3")
			before := w.paths("web")
			report, err := w.c.Recover(w.ctx, w.j, RecoverOptions{})
			must(t, err)
			if len(report.Failed) > 0 || len(report.Kept) != c.kept {
				t.Errorf("%+v", report)
			}
			if now := w.paths("web"); !slices.Equal(now, before) || !slices.Contains(w.lab.Links(), theirs) {
				t.Errorf("disks %v, were %v; files %v", now, before, w.lab.Links())
			}
			// What could not be told is settled once the place is free.
			must(t, v.detach(w.ctx, theirs, false))
			report, err = w.c.Recover(w.ctx, w.j, RecoverOptions{})
			must(t, err)
			if len(report.Failed)+len(report.Kept) > 0 || len(report.Undone) != c.kept {
				t.Errorf("then %+v", report)
			}
		})
	}
}

// An attachment dies, and the user runs it again, at the same place. The disk of the first run goes; the second's stays.
func TestRecoverySparesTheSecondTry(t *testing.T) {
	w := start(t, machines("web"))
	v := w.find("web")
	first := "[ds1] web/web-first-scsi0-3.vmdk"
	w.dies(v, "scsi0-3", first, "delete")
	devices, err := v.hardwareNow(w.ctx)
	must(t, err)
	_, key, unit, err := v.choosePlace(devices, "scsi0-3", false)
	must(t, err)
	backing := newBacking("ds1", string(types.VirtualDiskModePersistent), ProvisionThin)
	backing.FileName = first
	must(t, v.reconfigure(w.ctx, "attach", types.VirtualMachineConfigSpec{DeviceChange: []types.BaseVirtualDeviceConfigSpec{&types.VirtualDeviceConfigSpec{
		Operation: types.VirtualDeviceConfigSpecOperationAdd, FileOperation: types.VirtualDeviceConfigSpecFileOperationCreate,
		Device: &types.VirtualDisk{VirtualDevice: types.VirtualDevice{Key: -1, ControllerKey: key, UnitNumber: &unit, Backing: backing}, CapacityInBytes: mib, CapacityInKB: mib >> 10}}}}))

	second, err := v.WithNewDisk(w.ctx, DiskSpec{Operation: w.begin(), Place: "scsi0-3", Replace: true, Capacity: mib}, func(context.Context, Disk) error { return nil })
	must(t, err)
	report, err := w.c.Recover(w.ctx, w.j, RecoverOptions{})
	must(t, err)
	if len(report.Failed)+len(report.Kept) > 0 || len(report.Undone) != 1 {
		t.Errorf("%+v", report)
	}
	if now := w.paths("web"); len(now) != 2 || now[1] != "scsi0-3 "+second.Path {
		t.Errorf("disks %v", now)
	}
}

// The answer to an attachment is lost while its task still runs: undoing waits for it.
func TestLateAttachmentIsUndone(t *testing.T) {
	w := start(t, machines("web", "proxy"))
	web := w.find("web").Machine().Disks[0].Path
	for name, attach := range map[string]func(v *VM, op *Operation) error{
		"new": func(v *VM, op *Operation) error {
			_, err := v.WithNewDisk(w.ctx, DiskSpec{Operation: op, Capacity: mib}, func(context.Context, Disk) error { return nil })
			return err
		},
		"existing": func(v *VM, op *Operation) error {
			return v.WithAttached(w.ctx, op, web, func(context.Context, Disk) error { return nil })
		},
	} {
		t.Run(name, func(t *testing.T) {
			v := w.find("proxy")
			before := w.paths("proxy")
			must(t, w.lab.Machine("proxy").SetFaults(lab.MachineFaults{TaskDelay: map[string]time.Duration{"reconfigVm": 300 * time.Millisecond}}))
			w.lab.Inject(lab.Fault{Method: "ReconfigVM_Task", Do: lab.LoseAnswer()})
			if err := attach(v, w.begin()); err == nil {
				t.Error("no error")
			}
			w.lab.ClearFaults()
			must(t, w.lab.Machine("proxy").Idle(w.ctx))
			if now := w.paths("proxy"); !slices.Equal(now, before) {
				t.Errorf("disks %v, were %v", now, before)
			}
		})
	}
}

func TestDiskPlacesAreChecked(t *testing.T) {
	w := start(t, machines("web"))
	v := w.find("web")
	for place, kind := range map[string]error{"scsi0:0": ErrExists, "scsi0:7": ErrUnsuitable, "scsi3:0": ErrUnsuitable, "scsi0:99": ErrUnsuitable, "hda": ErrInvalid} {
		_, err := v.WithNewDisk(w.ctx, DiskSpec{Operation: w.begin(), Place: place, Capacity: mib}, func(context.Context, Disk) error { return nil })
		if !errors.Is(err, kind) {
			t.Errorf("%s: %v", place, err)
		}
	}
	if _, err := v.WithNewDisk(w.ctx, DiskSpec{Operation: w.begin(), Capacity: 100}, nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("odd size: %v", err)
	}
	if _, err := v.WithNewDisk(w.ctx, DiskSpec{Capacity: mib}, nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("no operation: %v", err)
	}
}

// SATA and NVMe have free places, and none that hot-add can use: nothing is attached there.
func TestHotAddNeedsSCSI(t *testing.T) {
	w := start(t, lab.Options{Machines: []lab.Machine{{Name: "web", Disks: []lab.Disk{{Size: mib}}},
		{Name: "proxy", Disks: []lab.Disk{{Size: mib, Controller: "sata"}, {Size: mib, Controller: "nvme"}}}}})
	proxy := w.find("proxy")
	before := w.paths("proxy")
	err := proxy.WithAttached(w.ctx, w.begin(), w.find("web").Machine().Disks[0].Path, func(context.Context, Disk) error {
		t.Error("a disk is attached")
		return nil
	})
	if e := new(Error); !errors.As(err, &e) || e.Kind != ErrUnsuitable || e.Remedy != "add a SCSI controller to it" {
		t.Errorf("error %v", err)
	}
	if now := w.paths("proxy"); !slices.Equal(now, before) {
		t.Errorf("disks %v, were %v", now, before)
	}
}

// A proxy takes another machine's frozen disk and gives it back, whatever happens.
func TestHotAddGivesBack(t *testing.T) {
	w := start(t, machines("web", "proxy"))
	v, proxy := w.find("web"), w.find("proxy")
	before := w.paths("proxy")
	boom := errors.New("boom")
	for _, fail := range []error{nil, boom} {
		op := w.begin()
		_, err := v.WithSnapshot(w.ctx, SnapshotOptions{Operation: op}, func(ctx context.Context, s *Snapshot) error {
			path := s.Disks()[0].Path
			return proxy.WithAttached(ctx, op, path, func(_ context.Context, d Disk) error {
				if d.Base != path || len(w.paths("proxy")) != 2 {
					t.Errorf("attached %+v", d)
				}
				w.lab.ExpireSessions()
				return fail
			})
		})
		if !errors.Is(err, fail) {
			t.Errorf("error %v", err)
		}
		if now := w.paths("proxy"); !slices.Equal(now, before) {
			t.Errorf("disks of the proxy %v", now)
		}
	}
	w.clean("web", "proxy")
	if len(w.paths("web")) != 1 {
		t.Error("the machine lost its disk")
	}
}

func TestPower(t *testing.T) {
	w := start(t, machines("web"))
	v := w.find("web")
	for _, step := range []struct {
		do   func(context.Context) error
		want PowerState
	}{{v.PowerOn, PoweredOn}, {v.PowerOff, PoweredOff}, {v.PowerOff, PoweredOff}, {v.PowerOn, PoweredOn}, {v.Shutdown, PoweredOff}} {
		must(t, step.do(w.ctx))
		if now, err := v.power(w.ctx); err != nil || now != step.want {
			t.Errorf("%s %v, want %s", now, err, step.want)
		}
	}
	must(t, w.lab.Machine("web").SetFaults(lab.MachineFaults{PowerOn: &types.InsufficientResourcesFault{}}))
	if err := v.PowerOn(w.ctx); err == nil {
		t.Error("no error")
	}
	must(t, v.Destroy(w.ctx))
	must(t, v.Destroy(w.ctx))
	if _, err := v.State(w.ctx); !errors.Is(err, ErrNotFound) {
		t.Errorf("after Destroy: %v", err)
	}
}

// What became of a machine's tasks is asked for in one call, however many disks it was given and lost lately.
func TestTasksOfAMachineAreReadAtOnce(t *testing.T) {
	w := start(t, machines("web", "proxy"))
	v, web := w.find("proxy"), w.find("web").Machine().Disks[0].Path
	calls := func() (n int) {
		w.lab.ResetCalls()
		must(t, v.WithAttached(w.ctx, w.begin(), web, func(context.Context, Disk) error { return nil }))
		for _, c := range w.lab.Calls() {
			if c.Method == "RetrievePropertiesEx" {
				n++
			}
		}
		return n
	}
	calls()
	first := calls()
	for range 20 {
		calls()
	}
	if last := calls(); last > first+10 { // how often tasks are looked at differs from run to run
		t.Errorf("an attachment reads %d times, the first one %d times", last, first)
	}
	tasks, err := v.c.recentTasks(w.ctx, v.ref())
	must(t, err)
	if len(tasks) < 40 {
		t.Errorf("%d tasks", len(tasks))
	}
}
