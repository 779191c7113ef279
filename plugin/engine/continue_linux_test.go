package engine_test

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmware/govmomi/object"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/vddk/nfc/nfctest"
	"github.com/vmkeep/vmkeep/vsphere/lab"
)

// twoFullDisks makes a point of a machine both of whose disks are full of noise, and returns what they hold.
func twoFullDisks(r *rig) (plugin.Point, map[string]content) {
	r.t.Helper()
	for key, seed := range map[int32]uint64{firstKey: 701, secondKey: 702} {
		p := make([]byte, littleSize)
		fill(seeded(seed), p)
		r.guest("db", key, p, 0)
	}
	return r.point("db"), r.byPlace("db")
}

// slowly makes every write to a disk take 20 milliseconds, so that a restore can be caught writing; the returned
// function ends that.
func (r *rig) slowly() (end func()) {
	r.lab.NFC().SetScenario(nfctest.Scenario{WriteDelay: 20 * time.Millisecond})
	r.at.control("fault Write delay=20")
	return func() {
		r.lab.NFC().SetScenario(nfctest.Scenario{})
		r.at.control()
	}
}

// once is a function for events that calls fn when a disk begins to be written.
func once(disk string, fn func()) func(plugin.Event) {
	var first sync.Once
	return func(ev plugin.Event) {
		if ev.Disk == disk && ev.Phase == plugin.PhaseRestore {
			first.Do(fn)
		}
	}
}

// begun demands that a machine is half-made and stays: it says so of itself, and recovery lists it and leaves it alone.
func (r *rig) begun(machine string, point plugin.Point) {
	r.t.Helper()
	config := r.admin().config(machine)
	if !strings.Contains(config.Annotation, "vmkeep") || r.extra(machine, "vmkeep.restoring") != point.ID {
		r.t.Errorf("the half-made machine says %q, restoring %q", config.Annotation, r.extra(machine, "vmkeep.restoring"))
	}
	report, err := r.Recover(r.t.Context(), nil)
	r.must(err)
	undone := slices.DeleteFunc(report.Undone, func(l plugin.Leftover) bool { return l.Kind == "library" }) // looked after whatever dies
	if len(undone) > 0 || len(report.Remaining) != 1 || !strings.Contains(report.Remaining[0].Err.Detail, "run the restore again") {
		r.t.Errorf("recovery says %+v", report)
	}
	if !slices.Contains(r.machines(), machine) {
		r.t.Fatal("the machine that was to be kept is gone")
	}
}

// extra is an entry of a machine's ExtraConfig.
func (r *rig) extra(machine, key string) string {
	r.t.Helper()
	text, _ := object.OptionValueList(r.admin().config(machine).ExtraConfig).GetString(key)
	return text
}

// interruptions are the ways in which a restore may end while it writes the disk scsi0-1.
func interruptions() map[string]func(*rig, plugin.RestoreRequest) error {
	return map[string]func(*rig, plugin.RestoreRequest) error{
		"cancelled": func(r *rig, req plugin.RestoreRequest) error {
			ctx, cancel := context.WithCancel(noCancel())
			defer cancel()
			_, err := r.Restore(ctx, req, once("scsi0-1", cancel))
			failsWith(r.t, err, plugin.CodeCancelled, "")
			return err
		},
		"datastore full": func(r *rig, req plugin.RestoreRequest) error {
			first := once("scsi0-0", func() { // for the connection to the next disk
				r.lab.NFC().SetScenario(nfctest.Scenario{WriteFails: &nfctest.Failure{Code: 8, Text: "There is not enough space on the file system"}})
			})
			second := once("scsi0-1", func() { r.at.control("fault Write code=8") })
			_, err := r.Restore(noCancel(), req, func(ev plugin.Event) { first(ev); second(ev) })
			failsWith(r.t, err, plugin.CodeSpace, "")
			return err
		},
		"killed": func(r *rig, req plugin.RestoreRequest) error { return r.killedIn(req) },
	}
}

// A restore to a new machine that is to be kept half-made, and ends while it writes the second disk, goes on when it is
// run again: it writes no more than what is missing, and the machine is as if nothing had happened.
func TestNewMachineIsGoneOnWith(t *testing.T) {
	for name, interrupt := range interruptions() {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, littleDisks())
			point, saved := twoFullDisks(r)
			req := plugin.RestoreRequest{Point: point.ID, Target: plugin.Target{Name: "db2"}, KeepPartial: true}
			end := r.slowly()
			if err := interrupt(r, req); err == nil {
				t.Fatal("the restore was not interrupted")
			}
			end()
			r.begun("db2", point)
			plan, err := r.PlanRestore(t.Context(), req)
			r.must(err)
			if len(plan.Problems) > 0 || !strings.Contains(strings.Join(plan.Steps, "\n"), "go on with machine db2") {
				t.Errorf("the plan to go on is %+v", plan)
			}

			served := r.hostRead()
			req.Verify, req.KeepPartial = true, false // what was kept is not thrown away by a run that does not say so
			report, err := r.Restore(t.Context(), req, r.note)
			r.must(err)
			if got := r.byPlace("db2"); !maps.Equal(got, saved) {
				t.Error("the machine's disks are not what the point says")
			}
			if d := report.Disks; len(d) != 2 || d[0].Written != 0 || d[1].Written == 0 || d[0].Reason != "continued" || !d[0].Verified || !d[1].Verified {
				t.Errorf("the second run reports %+v", d)
			}
			// The first disk is read once, and the second, which is empty where it is full, only to verify it.
			if n := r.hostRead() - served; name == "datastore full" && n > 2*littleSize+1<<20 {
				t.Errorf("the host served %d bytes", n)
			}
			r.journalIsEmpty()
			if now, was := r.admin().config("db2"), r.admin().config("db"); strings.TrimSpace(now.Annotation) != strings.TrimSpace(was.Annotation) || r.extra("db2", "vmkeep.restoring") != "" {
				t.Errorf("the complete machine says %q, restoring %q", now.Annotation, r.extra("db2", "vmkeep.restoring"))
			}
			_, err = r.Restore(t.Context(), req, r.note) // it is a machine like any other now
			failsWith(t, err, plugin.CodeExists, "db2")
			r.backsUpAgainWhole("db2")
		})
	}
}

// What is half-made is gone on with only by the restore that began it, and only where it is as that left it.
func TestHalfMadeMachineOfAnotherRestoreIsLeftAlone(t *testing.T) {
	r := newRig(t, littleDisks())
	point, _ := twoFullDisks(r)
	r.busy(seeded(711), "db")
	other := r.point("db")
	req := plugin.RestoreRequest{Point: point.ID, Target: plugin.Target{Name: "db2"}, KeepPartial: true}
	end := r.slowly()
	ctx, cancel := context.WithCancel(noCancel())
	defer cancel()
	_, err := r.Restore(ctx, req, once("scsi0-0", cancel))
	failsWith(t, err, plugin.CodeCancelled, "")
	end()
	again := func(change func(*plugin.RestoreRequest)) error {
		req := req
		change(&req)
		_, err := r.Restore(noCancel(), req, nil)
		return err
	}
	failsWith(t, again(func(q *plugin.RestoreRequest) { q.Point = other.ID }), plugin.CodeExists, "db2")
	failsWith(t, again(func(q *plugin.RestoreRequest) { q.Disks = []string{"scsi0-0"} }), plugin.CodeExists, "db2")
	a := r.admin()
	a.done(a.vm("db2").CreateSnapshot(t.Context(), "of another", "", false, false))
	failsWith(t, again(func(*plugin.RestoreRequest) {}), plugin.CodeTargetUnsuitable, "snapshots")
	r.begun("db2", point)

	// Whoever does not want it any more destroys it, and nothing of it is left.
	r.must(r.lab.Machine("db2").Destroy())
	r.must(again(func(*plugin.RestoreRequest) {}))
	r.journalIsEmpty()
}

// killedIn runs a restore in a plugin process of its own, which is killed when the second disk begins to be written.
func (r *rig) killedIn(req plugin.RestoreRequest) error {
	r.t.Helper()
	program := ownPlugin(r.t)
	loaded, err := r.at.load(r.t, program)
	r.must(err)
	defer loaded.Kill()
	r.must(loaded.Configure(r.t.Context(), r.config))
	_, err = loaded.Restore(noCancel(), req, once("scsi0-1", func() {
		if err := kill(program); err != nil {
			r.t.Error(err)
		}
	}))
	return err
}

// Whichever call fails of a restore whose half-made machine is to be kept: running it again completes it, and there is
// one machine then, whole, and nothing in the journal.
func TestEveryCallOfAKeptRestoreMayFail(t *testing.T) {
	r := newRig(t, lab.Options{Machines: []lab.Machine{{Name: "db", Disks: []lab.Disk{{Size: 2 << 20}}}}})
	r.busy(seeded(751), "db")
	point := r.point("db")
	want := r.byPlace("db")
	do := func() error {
		r.must(r.Configure(t.Context(), r.config)) // logs out, and in at the next need
		_, err := r.Restore(noCancel(), plugin.RestoreRequest{Point: point.ID, Target: plugin.Target{Name: "db2"}, KeepPartial: true}, nil)
		return err
	}
	tried, kept := 0, 0
	destroy := func() { r.must(r.lab.Machine("db2").Destroy()) }
	trials := r.trials(0, func() { r.must(do()) })
	destroy()
	for _, f := range trials {
		tried++
		err := r.meets(f, do)
		if err != nil {
			if slices.Contains(r.machines(), "db2") {
				kept++
			}
			if err := do(); plugin.CodeOf(err) != plugin.CodeExists { // but for an answer that was lost when all was done
				r.must(err)
			}
		}
		if got := r.byPlace("db2"); !maps.Equal(got, want) || r.extra("db2", "vmkeep.restoring") != "" {
			t.Errorf("%v: the machine is not what the point says, or not complete", f)
		}
		report, err := r.Recover(t.Context(), nil)
		r.must(err)
		if m := slices.Sorted(slices.Values(r.machines())); len(report.Remaining) > 0 || !slices.Equal(m, []string{"db", "db2"}) {
			t.Errorf("%v: machines %v, remaining %+v", f, m, report.Remaining)
		}
		r.journalIsEmpty()
		if t.Failed() {
			t.FailNow()
		}
		destroy()
	}
	t.Logf("%d faults, %d half-made machines", tried, kept)
}
