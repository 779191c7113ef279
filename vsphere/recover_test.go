package vsphere

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vmkeep/vmkeep/vsphere/lab"
)

// everything has every side effect of the package, one inside the other.
func everything(ctx context.Context, c *Client, j *Journal) (err error) {
	op, err := j.Begin("", "repo1")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, op.End()) }()
	v, err := c.Find(ctx, "web")
	if err != nil {
		return err
	}
	if err := v.ResetCBT(ctx, op); err != nil {
		return err
	}
	if _, err := v.WithRelocationDisabled(ctx, op, func(ctx context.Context) error {
		_, err := v.WithSnapshot(ctx, SnapshotOptions{Operation: op}, func(ctx context.Context, s *Snapshot) error {
			proxy, err := c.Find(ctx, "proxy")
			if err != nil {
				return err
			}
			return proxy.WithAttached(ctx, op, s.Disks()[0].Path, func(context.Context, Disk) error { return nil })
		})
		return err
	}); err != nil {
		return err
	}
	s, err := v.State(ctx)
	if err != nil {
		return err
	}
	p, err := c.PlanMachine(ctx, MachineSpec{Operation: op, ConfigInfo: s.ConfigInfo, Name: "restored", Host: "esx5"})
	if err != nil {
		return err
	}
	boom := errors.New("boom")
	_, err = c.CreateMachine(ctx, p, func(ctx context.Context, v *VM) error {
		_, err := v.WithNewDisk(ctx, DiskSpec{Operation: op, Place: "scsi0:0", Replace: true, Capacity: mib}, func(context.Context, Disk) error { return boom })
		return err
	})
	if !errors.Is(err, boom) {
		return err
	}
	return nil
}

// crashEnv tells the test binary to be the process that gets killed.
const crashEnv = "VMKEEP_TEST_CRASH"

// TestCrashChild is no test: it is what TestKilledAtAnyCall starts, and kills.
func TestCrashChild(t *testing.T) {
	url, dir, ok := strings.Cut(os.Getenv(crashEnv), " ")
	if !ok {
		return
	}
	c, err := Dial(t.Context(), Config{URL: url, Insecure: true})
	must(t, err)
	defer c.Close()
	c.quick()
	must(t, everything(t.Context(), c, openJournal(t, dir)))
}

// kill runs the child and kills it at its n-th call, before or after the server performed it. false: the child ended
// before.
func (w *world) kill(n int, after bool) bool {
	w.Helper()
	dir := filepath.Dir(w.j.dir) + "/" + filepath.Base(w.j.dir)
	cmd := exec.Command(os.Args[0], "-test.run=^TestCrashChild$", "-test.count=1")
	cmd.Env = append(os.Environ(), crashEnv+"="+w.lab.URL().String()+" "+dir)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	killed := false
	started := make(chan struct{})
	if n > 0 {
		defer w.lab.Inject(lab.Fault{Nth: n, Do: func(rw http.ResponseWriter, r *http.Request, next http.Handler) {
			<-started
			if after {
				next.ServeHTTP(discard{}, r)
			}
			killed = true
			_ = cmd.Process.Kill()
			panic(http.ErrAbortHandler)
		}})()
	}
	must(w, cmd.Start())
	close(started)
	if err := cmd.Wait(); err != nil && !killed {
		w.Fatalf("the child failed: %v\n%s", err, out.String())
	}
	return killed
}

type discard struct{}

func (discard) Header() http.Header         { return http.Header{} }
func (discard) Write(p []byte) (int, error) { return len(p), nil }
func (discard) WriteHeader(int)             {}

// exhaustive reports whether the fault tests try everything, instead of a sample: VMKEEP_FAULTS=all.
func exhaustive() bool { return os.Getenv("VMKEEP_FAULTS") == "all" }

// A process with every side effect is killed at its calls in turn, before or after the server performed them. The next
// start leaves nothing of it. By default at a sample of calls, with VMKEEP_FAULTS=all at each, before and after.
func TestKilledAtAnyCall(t *testing.T) {
	w := start(t, lab.Options{Machines: []lab.Machine{{Name: "web", Tracking: true, Host: "esx5"}, {Name: "proxy", Host: "esx5"}}})
	was := map[string][]string{"web": w.paths("web"), "proxy": w.paths("proxy")}
	w.lab.ResetCalls()
	w.kill(0, false)
	calls := len(w.lab.Calls())
	if calls < 50 {
		t.Fatalf("the child makes %d calls", calls)
	}
	first, stride := 3, 7 // of the about hundred calls; odd, so that "before" and "after" alternate
	if exhaustive() {
		first, stride = 1, 1
	}
	kills := 0
	for n := first; n <= calls; n += stride {
		afters := []bool{n%2 == 0}
		if exhaustive() {
			afters = []bool{false, true}
		}
		for _, after := range afters {
			if !w.kill(n, after) {
				if n < calls*9/10 { // how often tasks are looked at differs from run to run
					t.Fatalf("the child ended before call %d of %d", n, calls)
				}
				continue
			}
			kills++
			if w.recovers(was); t.Failed() {
				t.Fatalf("killed at call %d of %d, after it was performed: %v", n, calls, after)
			}
		}
	}
	t.Logf("%d kills at %d calls", kills, calls)
}

// recovers demands that recovery leaves nothing of a process that was killed: each machine has the disks that it had,
// tracks its changes, can be moved, and nothing else is there.
func (w *world) recovers(was map[string][]string) {
	w.Helper()
	report, err := w.c.Recover(w.ctx, w.j, RecoverOptions{})
	if err != nil || len(report.Failed) > 0 || len(report.Kept) > 0 {
		w.Errorf("recovery %+v %v", report, err)
	}
	w.clean("web", "proxy")
	if names := w.lab.Machines(); len(names) != len(was) {
		w.Errorf("machines %v", names)
	}
	for name, disks := range was {
		if now := w.paths(name); !slices.Equal(now, disks) {
			w.Errorf("the disks of %s are %v, were %v", name, now, disks)
		}
	}
	if !w.state(w.find("web")).CBT {
		w.Error("change tracking is off")
	}
	if m, err := w.find("web").read(w.ctx, "disabledMethod"); err != nil || slices.Contains(m.DisabledMethod, relocation) {
		w.Errorf("the machine cannot be moved: %v", err)
	}
	if left, err := w.c.Leftovers(w.ctx, w.j); err != nil || len(left) > 0 {
		w.Errorf("leftovers %v %v", left, err)
	}
	if files, _ := filepath.Glob(w.j.dir + "/*.jsonl"); len(files) > 0 {
		w.Errorf("the journal holds %v", files)
	}
}

func TestRecoverLeavesTheLivingAlone(t *testing.T) {
	w := start(t, machines("web", "db"))
	_, err := w.find("web").WithSnapshot(w.ctx, SnapshotOptions{Operation: w.begin()}, func(ctx context.Context, s *Snapshot) error {
		report, err := w.c.Recover(ctx, w.j, RecoverOptions{Others: 1})
		must(t, err)
		if len(report.Undone) != 0 || len(report.Kept) != 1 || report.Kept[0].Keep != keepRunning || report.Kept[0].Object != s.ID() {
			t.Errorf("%+v", report)
		}
		if w.lab.Machine("web").SnapshotCount() != 1 {
			t.Error("the living snapshot is gone")
		}
		return nil
	})
	must(t, err)
}

// orphan leaves a snapshot with the mark of an operation of j that nobody runs, and nothing in the journal.
func (w *world) orphan(j *Journal, name string) {
	w.Helper()
	op, err := j.Begin("", "repo1")
	must(w, err)
	v := object.NewVirtualMachine(w.c.vim, w.lab.Machine(name).Ref())
	task, err := v.CreateSnapshot(w.ctx, op.snapshotName(), op.mark(), false, false)
	must(w, err)
	must(w, task.Wait(w.ctx))
	must(w, op.End())
}

func TestHunterFindsOursWithoutTheJournal(t *testing.T) {
	w := start(t, machines("web"))
	w.orphan(w.j, "web")
	report, err := w.c.Recover(w.ctx, w.j, RecoverOptions{})
	must(t, err)
	if len(report.Undone) != 1 || report.Undone[0].Machine != "/dc1/vm/web" {
		t.Errorf("%+v", report)
	}
	w.clean("web")
}

// The admin gives our snapshot a name of his own. The journal knows it by its id.
func TestRenamedSnapshotIsRecovered(t *testing.T) {
	w := start(t, machines("web"))
	op, err := w.j.Begin("", "repo1")
	must(t, err)
	v := w.find("web")
	x, err := op.announce(entry{Kind: EntrySnapshot, Server: w.c.about.InstanceUUID, Machine: v.ID(), Object: op.snapshotName()})
	must(t, err)
	task, err := object.NewVirtualMachine(w.c.vim, v.ref()).CreateSnapshot(w.ctx, "before the upgrade", "do not touch", false, false)
	must(t, err)
	info, err := task.WaitForResult(w.ctx)
	must(t, err)
	must(t, x.note(info.Result.(types.ManagedObjectReference).Value))
	_ = op.End()
	report, err := w.c.Recover(w.ctx, w.j, RecoverOptions{})
	must(t, err)
	if len(report.Undone) != 1 {
		t.Errorf("%+v", report)
	}
	w.clean("web")
}

// A hot-added disk hangs at the proxy when the process dies. Its operation began after the snapshot's, and is undone
// before: a snapshot whose disk is in use cannot be removed.
func TestRecoveryGoesBackwards(t *testing.T) {
	w := start(t, machines("web", "proxy"))
	v, proxy := w.find("web"), w.find("proxy")
	before := w.paths("proxy")
	begin := func(id string, e entry) *effect {
		op, err := w.j.Begin(id, "repo1")
		must(t, err)
		e.Server = w.c.about.InstanceUUID
		x, err := op.announce(e)
		must(t, err)
		return x
	}
	x := begin("a-snapshot", entry{Kind: EntrySnapshot, Machine: v.ID(), Object: "vmkeep-a-snapshot"})
	task, err := object.NewVirtualMachine(w.c.vim, v.ref()).CreateSnapshot(w.ctx, x.o.snapshotName(), x.o.mark(), false, false)
	must(t, err)
	must(t, task.Wait(w.ctx))
	path := v.Machine().Disks[0].Path
	y := begin("b-hotadd", entry{Kind: EntryDisk, Machine: proxy.ID(), Name: "scsi0-5", Object: path, Action: "detach"})
	devices, err := proxy.hardwareNow(w.ctx)
	must(t, err)
	_, key, unit, err := proxy.choosePlace(devices, "scsi0-5", false)
	must(t, err)
	must(t, proxy.reconfigure(w.ctx, "attach", types.VirtualMachineConfigSpec{DeviceChange: []types.BaseVirtualDeviceConfigSpec{&types.VirtualDeviceConfigSpec{
		Operation: types.VirtualDeviceConfigSpecOperationAdd, Device: &types.VirtualDisk{VirtualDevice: types.VirtualDevice{Key: -1, ControllerKey: key, UnitNumber: &unit,
			Backing: &types.VirtualDiskFlatVer2BackingInfo{VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: path},
				DiskMode: string(types.VirtualDiskModeIndependent_nonpersistent)}}}}}}))
	_, _ = x.o.End(), y.o.End()
	report, err := w.c.Recover(w.ctx, w.j, RecoverOptions{})
	must(t, err)
	if len(report.Undone) != 2 || report.Undone[0].Kind != EntryDisk || report.Undone[1].Kind != EntrySnapshot {
		t.Errorf("%+v", report)
	}
	w.clean("web", "proxy")
	if now := w.paths("proxy"); !slices.Equal(now, before) {
		t.Errorf("disks of the proxy %v", now)
	}
}

func TestHunterRespectsOthers(t *testing.T) {
	w := start(t, machines("web"))
	w.orphan(w.journal(), "web")
	report, err := w.c.Recover(w.ctx, w.j, RecoverOptions{})
	must(t, err)
	if len(report.Kept) != 1 || report.Kept[0].Keep != keepOther || report.Kept[0].Host == "" {
		t.Errorf("%+v", report)
	}
	report, err = w.c.Recover(w.ctx, w.j, RecoverOptions{Others: time.Hour})
	must(t, err)
	if len(report.Kept) != 1 {
		t.Errorf("too young: %+v", report)
	}
	report, err = w.c.Recover(w.ctx, w.j, RecoverOptions{Others: time.Nanosecond})
	must(t, err)
	if len(report.Undone) != 1 {
		t.Errorf("old enough: %+v", report)
	}
	w.clean("web")
}

func TestRecoverKeepsWhatFails(t *testing.T) {
	w := start(t, machines("web"))
	w.orphan(w.j, "web")
	must(t, w.lab.Machine("web").SetFaults(lab.MachineFaults{RemoveSnapshot: &types.FileLocked{}}))
	report, err := w.c.Recover(w.ctx, w.j, RecoverOptions{})
	must(t, err)
	if len(report.Failed) != 1 || !errors.Is(report.Err(), ErrLeftover) || !strings.Contains(report.Err().Error(), "/dc1/vm/web") {
		t.Errorf("%+v %v", report, report.Err())
	}
	must(t, w.lab.Machine("web").SetFaults(lab.MachineFaults{}))
	report, err = w.c.Recover(w.ctx, w.j, RecoverOptions{})
	must(t, err)
	if len(report.Undone) != 1 || report.Err() != nil {
		t.Errorf("%+v", report)
	}
}

func TestRecoverOfAnotherServer(t *testing.T) {
	w := start(t, machines("web"))
	op, err := w.j.Begin("op1", "")
	must(t, err)
	_, err = op.announce(entry{Kind: EntrySnapshot, Server: "another", Machine: "vm-1", Object: "vmkeep-op1"})
	must(t, err)
	_ = op.End()
	report, err := w.c.Recover(w.ctx, w.j, RecoverOptions{})
	must(t, err)
	if len(report.Kept) != 1 || report.Kept[0].Keep != keepServer {
		t.Errorf("%+v", report)
	}
	if files, _ := filepath.Glob(w.j.dir + "/*.jsonl"); len(files) != 1 {
		t.Errorf("the journal forgot the other server: %v", files)
	}
}

// A machine that was finished is no half-made one, even when the journal was not struck in time.
func TestRecoverSparesFinishedMachines(t *testing.T) {
	w := start(t, machines("web"))
	op, err := w.j.Begin("op1", "")
	must(t, err)
	m := w.lab.Machine("web").Ref()
	_, err = op.announce(entry{Kind: EntryMachine, Server: w.c.about.InstanceUUID, Machine: "group-v1", Object: m.Value, Name: "web"})
	must(t, err)
	_ = op.End()
	report, err := w.c.Recover(w.ctx, w.j, RecoverOptions{})
	must(t, err)
	if len(report.Failed) > 0 || len(w.lab.Machines()) != 1 {
		t.Errorf("%+v (%v), machines %v", report, report.Err(), w.lab.Machines())
	}
	// One that says it is half-made, and is not in the journal, is reported only.
	must(t, w.lab.Machine("web").Reconfigure(types.VirtualMachineConfigSpec{Annotation: op.mark()}))
	left, err := w.c.Leftovers(w.ctx, w.j)
	must(t, err)
	if len(left) != 1 || left[0].Kind != EntryMachine || left[0].Keep != keepUnknown {
		t.Errorf("leftovers %+v", left)
	}
}

// disabler disables and enables methods of machines, as other programs do.
func (w *world) disabler(v *VM, source string) (off, on func()) {
	am := object.NewAuthorizationManager(w.c.vim)
	return func() {
			must(w, am.DisableMethods(w.ctx, []ref{v.ref()}, []object.DisabledMethodRequest{{Method: relocation, Reason: "test"}}, source))
		}, func() {
			must(w, am.EnableMethods(w.ctx, []ref{v.ref()}, []string{relocation}, source))
		}
}

// While fn runs vCenter refuses to move the machine's storage, and it allows that again afterwards, also when fn failed
// or an answer was lost.
func TestRelocationIsDisabledAndEnabled(t *testing.T) {
	w := start(t, machines("web"))
	v, disabled := w.find("web"), w.lab.Machine("web").DisabledMethods
	boom := errors.New("boom")
	for name, c := range map[string]struct {
		fault lab.Fault
		err   error
	}{
		"nothing":                     {},
		"fn fails":                    {err: boom},
		"disabling, the answer lost":  {fault: lab.Fault{Method: "DisableMethods", Do: lab.LoseAnswer()}},
		"enabling, the answer lost":   {fault: lab.Fault{Method: "EnableMethods", Do: lab.LoseAnswer()}},
		"enabling fails at the first": {fault: lab.Fault{Method: "EnableMethods", Do: lab.Fail(&types.SystemErrorFault{})}},
	} {
		if c.fault.Do != nil {
			w.lab.Inject(c.fault)
		}
		op := w.begin()
		protected, err := v.WithRelocationDisabled(w.ctx, op, func(context.Context) error {
			if got := disabled(); got[relocation] != methodSource(op.id) {
				t.Errorf("%s: disabled are %v", name, got)
			}
			if err := w.lab.Machine("web").Migrate("", "ds2"); err == nil {
				t.Errorf("%s: the machine moves while it is read", name)
			}
			return c.err
		})
		w.lab.ClearFaults()
		if !protected || !errors.Is(err, c.err) || len(disabled()) > 0 {
			t.Errorf("%s: protected %v, %v, disabled are %v", name, protected, err, disabled())
		}
	}
	must(t, w.lab.Machine("web").Migrate("", "ds2"))
	// A dead operation's switch is turned back.
	op, err := w.j.Begin("dead", "")
	must(t, err)
	_, err = op.announce(entry{Kind: EntryMethod, Server: w.c.about.InstanceUUID, Machine: v.ID(), Object: relocation})
	must(t, err)
	off, _ := w.disabler(v, methodSource(op.id))
	off()
	_ = op.End()
	report, err := w.c.Recover(w.ctx, w.j, RecoverOptions{})
	if err != nil || len(report.Undone) != 1 || len(disabled()) > 0 {
		t.Errorf("%+v %v, disabled are %v", report, err, disabled())
	}
}

// Where relocation cannot be disabled, or is by somebody else, fn runs unprotected, and nothing of others is undone.
func TestRelocationOfOthersIsLeftAlone(t *testing.T) {
	w := start(t, lab.Options{Machines: []lab.Machine{{Name: "web"}}, Users: []lab.User{{Name: "weak", Password: password, Privileges: []string{"Global.EnableMethods"}}}})
	unprotected := func(v *VM) {
		t.Helper()
		ran := false
		protected, err := v.WithRelocationDisabled(w.ctx, w.begin(), func(context.Context) error { ran = true; return nil })
		if protected || err != nil || !ran {
			t.Errorf("protected %v, %v, ran %v", protected, err, ran)
		}
	}
	off, on := w.disabler(w.find("web"), "another")
	off()
	unprotected(w.find("web"))
	if got := w.lab.Machine("web").DisabledMethods(); got[relocation] != "another" {
		t.Errorf("disabled are %v", got)
	}
	on()
	w.c = w.dial(Config{Username: "weak"})
	unprotected(w.find("web"))
}

func TestRevertTasksAreRecognized(t *testing.T) {
	task := func(id string) types.BaseEvent {
		return &types.TaskEvent{Info: types.TaskInfo{DescriptionId: id}}
	}
	for _, id := range []string{"VirtualMachine.revertToCurrentSnapshot", "vm.Snapshot.revert"} {
		if !isRevert(task(id)) {
			t.Errorf("%s is not seen", id)
		}
	}
	if isRevert(task("VirtualMachine.createSnapshot")) || isRevert(&types.VmPoweredOnEvent{}) {
		t.Error("something else is taken for a revert")
	}
}
