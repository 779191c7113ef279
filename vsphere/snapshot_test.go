package vsphere

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmware/govmomi/vim25/types"

	"github.com/vmkeep/vmkeep/vsphere/lab"
)

func nothing(context.Context, *Snapshot) error { return nil }

func TestSnapshotFreezesAndGoes(t *testing.T) {
	w := start(t, lab.Options{Machines: []lab.Machine{{Name: "web", Tracking: true, Disks: []lab.Disk{{Size: 8 * mib}, {Size: 4 * mib, Controller: "sata"}}}}})
	v := w.find("web")
	key := v.Machine().Disks[1].Key
	w.guestWrite("web", key, 0, mib)
	before, err := w.lab.Machine("web").ReadLive(key)
	must(t, err)
	report, err := v.WithSnapshot(w.ctx, SnapshotOptions{Operation: w.begin()}, func(ctx context.Context, s *Snapshot) error {
		w.guestWrite("web", key, 2*mib, mib)
		d := s.Disks()
		if len(d) != 2 || d[0].Name != "sata0-0" || d[1].Name != "scsi0-0" {
			t.Errorf("disks %+v", d)
		}
		frozen, err := w.lab.ReadLink(d[1].Path)
		if err != nil || string(frozen) != string(before) {
			t.Errorf("the link %s is not frozen: %v", d[1].Path, err)
		}
		if len(s.State().ConfigInfo) < 1000 || s.State().VMX == "" {
			t.Errorf("state %+v", s.State())
		}
		if n := w.lab.Machine("web").SnapshotCount(); n != 1 {
			t.Errorf("%d snapshots", n)
		}
		return nil
	})
	must(t, err)
	if !report.Removed || report.Level != LevelFileSystem || len(report.Lowered) != 1 || !report.Lowered[0].Natural || report.Consolidated || report.Taken.IsZero() {
		t.Errorf("report %+v", report)
	}
	w.clean("web")
}

func TestSnapshotGoesWhateverHappens(t *testing.T) {
	boom := errors.New("boom")
	for _, c := range []struct {
		name string
		fn   func(w *world, cancel context.CancelFunc) error
		want error
	}{
		{"error", func(*world, context.CancelFunc) error { return boom }, boom},
		{"cancelled", func(_ *world, cancel context.CancelFunc) error { cancel(); return context.Canceled }, context.Canceled},
		{"session lost", func(w *world, _ context.CancelFunc) error { w.lab.ExpireSessions(); return nil }, nil},
		{"cancelled and session lost", func(w *world, cancel context.CancelFunc) error {
			w.lab.ExpireSessions()
			cancel()
			return context.Canceled
		}, context.Canceled},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := start(t, machines("web"))
			ctx, cancel := context.WithCancel(w.ctx)
			defer cancel()
			report, err := w.find("web").WithSnapshot(ctx, SnapshotOptions{Operation: w.begin()}, func(context.Context, *Snapshot) error { return c.fn(w, cancel) })
			if !errors.Is(err, c.want) {
				t.Errorf("error %v, want %v", err, c.want)
			}
			if !report.Removed {
				t.Error("not reported as removed")
			}
			w.clean("web")
		})
	}
}

func TestSnapshotGoesAfterPanic(t *testing.T) {
	w := start(t, machines("web"))
	v, op := w.find("web"), w.begin()
	func() {
		defer func() {
			if r := recover(); r != "boom" {
				t.Errorf("recovered %v", r)
			}
		}()
		_, _ = v.WithSnapshot(w.ctx, SnapshotOptions{Operation: op}, func(context.Context, *Snapshot) error { panic("boom") })
	}()
	w.clean("web")
}

func TestSnapshotCancelledWhileTaken(t *testing.T) {
	w := start(t, machines("web"))
	must(t, w.lab.Machine("web").SetFaults(lab.MachineFaults{TaskDelay: map[string]time.Duration{"createSnapshot": 200 * time.Millisecond}}))
	v, op := w.find("web"), w.begin()
	ctx, cancel := context.WithCancel(w.ctx)
	defer cancel()
	w.c.poll = func(int) time.Duration { cancel(); return time.Millisecond }
	_, err := v.WithSnapshot(ctx, SnapshotOptions{Operation: op}, nothing)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	must(t, w.lab.Machine("web").Idle(w.ctx))
	w.clean("web")
}

// Every call of a snapshot's life fails in turn, in each of the ways calls fail. No snapshot may stay, and an
// operation that ends well must have been one.
func TestSnapshotSurvivesEveryFault(t *testing.T) {
	w := start(t, machines("web"))
	v := w.find("web")
	run := func() (SnapshotReport, error) {
		op := w.begin()
		ran := false
		r, err := v.WithSnapshot(w.ctx, SnapshotOptions{Operation: op, Quiesce: Quiesce{Best: LevelCrash}}, func(context.Context, *Snapshot) error { ran = true; return nil })
		if err == nil && !ran {
			t.Error("no error, and fn did not run")
		}
		if e := op.End(); e != nil {
			t.Errorf("%v (after %v)", e, err)
		}
		return r, err
	}
	w.lab.ResetCalls()
	_, err := run()
	must(t, err)
	calls := len(w.lab.Calls())
	if calls < 10 {
		t.Fatalf("only %d calls", calls)
	}
	for name, do := range map[string]lab.Effect{
		"503": lab.HTTPStatus(503), "lost answer": lab.LoseAnswer(), "half an answer": lab.Truncate(),
		"not authenticated": lab.Fail(&types.NotAuthenticated{}), "fault": lab.Fail(&types.SystemError{Reason: "injected"}),
	} {
		for n := 1; n <= calls; n++ {
			remove := w.lab.Inject(lab.Fault{Nth: n, Do: do})
			_, err := run()
			remove()
			if err != nil && name != "fault" && name != "503" && name != "half an answer" && name != "lost answer" {
				t.Errorf("%s at call %d: %v", name, n, err)
			}
			if err != nil && strings.Contains(err.Error(), password) {
				t.Errorf("the error holds the password: %v", err)
			}
			if k := w.lab.Machine("web").SnapshotCount(); k != 0 {
				t.Fatalf("%s at call %d (%v): %d snapshots stay", name, n, err, k)
			}
		}
	}
}

func TestForeignSnapshotsStay(t *testing.T) {
	w := start(t, machines("web"))
	m := w.lab.Machine("web")
	_, err := m.Snapshot("below")
	must(t, err)
	_, err = w.find("web").WithSnapshot(w.ctx, SnapshotOptions{Operation: w.begin()}, func(context.Context, *Snapshot) error {
		_, err := m.Snapshot("above")
		return err
	})
	must(t, err)
	_, err = m.Snapshot("vmkeep-imitation")
	must(t, err)
	_, err = w.c.Recover(w.ctx, w.j, RecoverOptions{Others: 1})
	must(t, err)
	var names []string
	list, err := w.find("web").snapshots(w.ctx)
	must(t, err)
	for _, s := range list {
		names = append(names, s.Name)
	}
	if got := strings.Join(names, " "); got != "below above vmkeep-imitation" {
		t.Errorf("snapshots now: %s", got)
	}
}

// What cannot be asked for is told in words that say what can.
func TestQuiesceThatIsNone(t *testing.T) {
	for says, q := range map[string]Quiesce{
		`there is no consistency "no"`: {Best: "no"}, `there is no consistency "vss"`: {Best: LevelFileSystem, Worst: "vss"}, "crash is tried first and is worse than app": {Best: LevelCrash, Worst: LevelApplication},
	} {
		var e *Error
		if err := q.Validate(); !errors.Is(err, ErrInvalid) || !errors.As(err, &e) || !strings.Contains(e.Summary, says) || !strings.Contains(e.Remedy, "crash") {
			t.Errorf("%+v: %v, want %q", q, err, says)
		}
	}
}

func TestQuiesceLadder(t *testing.T) {
	win := func(m lab.Machine) lab.Machine { m.Guest = "windows2019srv_64Guest"; return m }
	for _, c := range []struct {
		name    string
		machine lab.Machine
		faults  lab.MachineFaults
		q       Quiesce
		want    Level
		lowered int
		err     error
	}{
		{name: "windows", machine: win(lab.Machine{}), want: LevelApplication},
		{name: "linux", want: LevelFileSystem, lowered: 1},
		{name: "no tools", machine: lab.Machine{NoTools: true}, want: LevelCrash, lowered: 2},
		{name: "no tools, demanded", machine: lab.Machine{NoTools: true}, q: Quiesce{Worst: LevelFileSystem}, err: ErrQuiesce},
		{name: "off", machine: lab.Machine{Off: true}, want: LevelOff},
		{name: "off, demanded", machine: lab.Machine{Off: true}, q: Quiesce{Worst: LevelApplication}, want: LevelOff},
		{name: "crash asked", machine: win(lab.Machine{}), q: Quiesce{Best: LevelCrash}, want: LevelCrash},
		{name: "VSS fails", machine: win(lab.Machine{}), faults: lab.MachineFaults{Quiesce: &types.ApplicationQuiesceFault{}}, want: LevelCrash, lowered: 2},
		{name: "VSS fails, demanded", machine: win(lab.Machine{}), faults: lab.MachineFaults{Quiesce: &types.ApplicationQuiesceFault{}}, q: Quiesce{Worst: LevelApplication}, err: ErrQuiesce},
		{name: "file system fails", faults: lab.MachineFaults{Quiesce: &types.FilesystemQuiesceFault{}}, want: LevelCrash, lowered: 2},
		{name: "every snapshot fails", faults: lab.MachineFaults{Snapshot: &types.SnapshotFault{}}, err: ErrSnapshot},
		{name: "too many levels", faults: lab.MachineFaults{Snapshot: &types.TooManySnapshotLevels{}}, err: ErrSnapshot},
		{name: "upside down", q: Quiesce{Best: LevelCrash, Worst: LevelApplication}, err: ErrInvalid},
		{name: "VSS type", q: Quiesce{VSS: VSS{Backup: "sometimes"}}, err: ErrInvalid},
		{name: "template", machine: lab.Machine{Template: true}, want: LevelOff},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.machine.Name = "m"
			w := start(t, lab.Options{Machines: []lab.Machine{c.machine}})
			must(t, w.lab.Machine("m").SetFaults(c.faults))
			v, err := w.c.Find(w.ctx, "m")
			must(t, err)
			ran := false
			report, err := v.WithSnapshot(w.ctx, SnapshotOptions{Operation: w.begin(), Quiesce: c.q}, func(_ context.Context, s *Snapshot) error {
				ran = true
				if s.Level() != c.want {
					t.Errorf("level %s in fn, want %s", s.Level(), c.want)
				}
				return nil
			})
			if !errors.Is(err, c.err) {
				t.Fatalf("error %v, want %v", err, c.err)
			}
			if ran != (c.err == nil) {
				t.Errorf("fn ran: %v", ran)
			}
			if c.err == nil && (report.Level != c.want || len(report.Lowered) != c.lowered) {
				t.Errorf("level %s %+v, want %s lowered %d times", report.Level, report.Lowered, c.want, c.lowered)
			}
			w.clean("m")
		})
	}
}

func TestVSSOptionsReachVSphere(t *testing.T) {
	s := Quiesce{Timeout: time.Minute, VSS: VSS{Backup: "full", Bootable: true}}.vss(LevelApplication)
	if s.VssBackupType != 1 || !*s.VssBootableSystemState || *s.VssPartialFileSupport || s.VssBackupContext != "ctx_auto" || s.Timeout != 5 {
		t.Errorf("%+v", s)
	}
	if s := (Quiesce{Timeout: 900 * time.Minute}).vss(LevelFileSystem); s.VssBackupContext != "ctx_file_share_backup" || s.VssBackupType != 5 || s.Timeout != 240 {
		t.Errorf("%+v", s)
	}
}

func TestSlowSnapshotIsTakenWhenItComes(t *testing.T) {
	w := start(t, machines("web"))
	must(t, w.lab.Machine("web").SetFaults(lab.MachineFaults{TaskDelay: map[string]time.Duration{"createSnapshot": 300 * time.Millisecond}}))
	v := w.find("web")
	report, err := v.WithSnapshot(w.ctx, SnapshotOptions{Operation: w.begin(), Quiesce: Quiesce{Best: LevelFileSystem, Timeout: 50 * time.Millisecond}}, nothing)
	must(t, err)
	if report.Level != LevelFileSystem {
		t.Errorf("%+v", report)
	}
	must(t, w.lab.Machine("web").Idle(w.ctx))
	w.clean("web")
}

func TestConsolidation(t *testing.T) {
	t.Run("done", func(t *testing.T) {
		w := start(t, machines("web"))
		must(t, w.lab.Machine("web").SetFaults(lab.MachineFaults{LeaveDelta: 1}))
		report, err := w.find("web").WithSnapshot(w.ctx, SnapshotOptions{Operation: w.begin()}, nothing)
		must(t, err)
		if !report.Consolidated || len(report.Warnings) > 0 || w.lab.Machine("web").ConsolidationNeeded() {
			t.Errorf("%+v", report)
		}
	})
	t.Run("reported", func(t *testing.T) {
		w := start(t, machines("web"))
		must(t, w.lab.Machine("web").SetFaults(lab.MachineFaults{LeaveDelta: 1, Consolidate: &types.FileLocked{}}))
		report, err := w.find("web").WithSnapshot(w.ctx, SnapshotOptions{Operation: w.begin()}, nothing)
		must(t, err)
		if report.Consolidated || len(report.Warnings) != 1 || !report.Removed {
			t.Errorf("%+v", report)
		}
	})
}

func TestSnapshotThatCannotBeRemoved(t *testing.T) {
	w := start(t, machines("web"))
	m := w.lab.Machine("web")
	must(t, m.SetFaults(lab.MachineFaults{RemoveSnapshot: &types.FileLocked{}}))
	op, err := w.j.Begin("stuck", "repo1")
	must(t, err)
	report, err := w.find("web").WithSnapshot(w.ctx, SnapshotOptions{Operation: op}, nothing)
	if !errors.Is(err, ErrLeftover) || report.Removed {
		t.Fatalf("%+v %v", report, err)
	}
	if err := op.End(); !errors.Is(err, ErrLeftover) {
		t.Errorf("the journal forgot it: %v", err)
	}
	left, err := w.c.Leftovers(w.ctx, w.j)
	must(t, err)
	if len(left) != 1 || left[0].Operation != "stuck" || left[0].Keep != "" || left[0].Machine != "/dc1/vm/web" {
		t.Errorf("leftovers %+v", left)
	}
	must(t, m.SetFaults(lab.MachineFaults{}))
	rec, err := w.c.Recover(w.ctx, w.j, RecoverOptions{})
	must(t, err)
	if len(rec.Undone) != 1 || len(rec.Failed) != 0 {
		t.Errorf("recovery %+v", rec)
	}
	w.clean("web")
}

func TestOtherTasksAreWaitedFor(t *testing.T) {
	for _, inTask := range []bool{false, true} {
		t.Run(fmt.Sprint("in task ", inTask), func(t *testing.T) {
			w := start(t, machines("web"))
			m := w.lab.Machine("web")
			must(t, m.SetFaults(lab.MachineFaults{TaskDelay: map[string]time.Duration{"reconfigVm": 100 * time.Millisecond}, TaskInProgressInTask: inTask}))
			v := w.find("web")
			done := make(chan error, 1)
			go func() { done <- m.Reconfigure(types.VirtualMachineConfigSpec{Annotation: "busy"}) }()
			_, err := v.WithSnapshot(w.ctx, SnapshotOptions{Operation: w.begin()}, nothing)
			must(t, err)
			must(t, <-done)
			w.clean("web")
		})
	}
}

func TestSpaceGuard(t *testing.T) {
	w := start(t, lab.Options{Machines: []lab.Machine{{Name: "web", Disks: []lab.Disk{{Size: 8 * mib}, {Size: 8 * mib, Datastore: "ds2"}}}}})
	v := w.find("web")
	atLeast := func(n int64) func(Datastore) int64 { return func(Datastore) int64 { return n } }
	must(t, w.lab.SetFreeSpace("ds1", 10*mib))
	try := func(least func(Datastore) int64) error {
		_, err := v.WithSnapshot(w.ctx, SnapshotOptions{Operation: w.begin(), MinFree: least}, nothing)
		return err
	}
	if err := try(atLeast(20 * mib)); !errors.Is(err, ErrSpace) {
		t.Errorf("before: %v", err)
	}
	// Each datastore has a limit of its own.
	must(t, try(func(d Datastore) int64 { return map[string]int64{"ds1": 5 * mib, "ds2": 20 * mib}[d.Name] }))
	must(t, w.lab.SetFreeSpace("ds2", mib))
	if err := try(atLeast(5 * mib)); !errors.Is(err, ErrSpace) {
		t.Errorf("a disk's datastore: %v", err)
	}
	must(t, w.lab.SetFreeSpace("ds2", 10*mib))
	_, err := v.WithSnapshot(w.ctx, SnapshotOptions{Operation: w.begin(), MinFree: atLeast(5 * mib), Watch: time.Millisecond}, func(ctx context.Context, _ *Snapshot) error {
		must(t, w.lab.SetFreeSpace("ds1", mib))
		<-ctx.Done()
		return ctx.Err()
	})
	if !errors.Is(err, ErrSpace) {
		t.Errorf("while it lives: %v", err)
	}
	w.clean("web")
}

// A datastore on which no delta will grow may be as full as it likes: that of an independent disk, for example.
func TestSpaceGuardIgnoresOtherDatastores(t *testing.T) {
	w := start(t, lab.Options{Machines: []lab.Machine{{Name: "web", Disks: []lab.Disk{{Size: 8 * mib}, {Size: 8 * mib, Datastore: "ds2", Mode: "independent_persistent"}}}}})
	must(t, w.lab.SetFreeSpace("ds2", mib/2))
	v := w.find("web")
	if on := w.state(v).Datastores; !slices.Contains(on, "ds2") {
		t.Fatalf("the machine is on %v", on)
	}
	_, err := v.WithSnapshot(w.ctx, SnapshotOptions{Operation: w.begin(), MinFree: func(Datastore) int64 { return mib }}, nothing)
	must(t, err)
}

func TestTemplateChangedWhileRead(t *testing.T) {
	w := start(t, lab.Options{Machines: []lab.Machine{{Name: "gold", Template: true}}})
	v := w.find("gold")
	_, err := v.WithSnapshot(w.ctx, SnapshotOptions{Operation: w.begin()}, func(ctx context.Context, s *Snapshot) error {
		if s.ID() != "" {
			t.Error("a template was snapshotted")
		}
		if _, err := s.Changed(ctx, s.Disks()[0], "x/1"); !errors.Is(err, ErrChangeTracking) {
			t.Errorf("changes of a template: %v", err)
		}
		return w.lab.Machine("gold").Reconfigure(types.VirtualMachineConfigSpec{Annotation: "changed"})
	})
	if !errors.Is(err, ErrSnapshot) {
		t.Errorf("error %v", err)
	}
}

func TestSnapshotOfMachineThatGoes(t *testing.T) {
	w := start(t, lab.Options{Machines: []lab.Machine{{Name: "web", Off: true}}})
	v := w.find("web")
	report, err := v.WithSnapshot(w.ctx, SnapshotOptions{Operation: w.begin()}, func(ctx context.Context, _ *Snapshot) error { return v.Destroy(ctx) })
	must(t, err)
	if !report.Removed {
		t.Errorf("%+v", report)
	}
}
