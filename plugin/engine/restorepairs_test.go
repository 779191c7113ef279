package engine_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/vsphere/lab"
)

const firstKey, secondKey = int32(2000), int32(2001) // device keys of littleDisks

// twoDisksAndAPoint makes a point of a machine of two disks and lets its guest write on; the machine is off then.
func twoDisksAndAPoint(r *rig) plugin.Point {
	r.t.Helper()
	r.busy(seeded(201), "db")
	point := r.point("db")
	r.busy(seeded(202), "db")
	r.must(r.lab.Machine("db").PowerOff())
	return point
}

// A disk that was moved to the place of another one of the point is not taken for it.
func TestDiskAtAnothersPlaceIsNotOverwritten(t *testing.T) {
	for _, mode := range []plugin.RestoreMode{plugin.RestoreInPlace, plugin.RestoreRollback} {
		for _, disks := range [][]string{{"scsi0-0"}, nil} {
			t.Run(fmt.Sprintf("%s %q", mode, disks), func(t *testing.T) {
				r := newRig(t, littleDisks())
				point := twoDisksAndAPoint(r)
				r.must(r.lab.Machine("db").RemoveDisk(firstKey))
				r.moveDisk("db", secondKey, "db")
				before := r.contents("db")
				_, err := r.Restore(t.Context(), plugin.RestoreRequest{Point: point.ID, Mode: mode, Disks: disks}, r.note)
				failsWith(t, err, plugin.CodeTargetUnsuitable, "another disk of the point")
				for uuid, was := range before {
					if r.contents("db")[uuid] != was {
						t.Errorf("%s of %v: a disk was overwritten with another's bytes", mode, disks)
					}
				}
				// The disk itself is found wherever it is.
				report, err := r.Restore(t.Context(), plugin.RestoreRequest{Point: point.ID, Mode: mode, Disks: []string{"scsi0-1"}}, r.note)
				r.must(err)
				want := r.pointContent(point, r.disk(point, "scsi0-1"))
				if got := r.contents("db")[r.disk(point, "scsi0-1").UUID]; got != want {
					t.Errorf("%s: the moved disk is not what the point says: %+v", mode, report)
				}
			})
		}
	}
}

// What the point lacks of the machine is told by every restore and plan, and a restore over its disks does not begin where
// the point has none. To leave out all of them on purpose makes no point.
func TestDisksThatThePointLacksAreTold(t *testing.T) {
	opt := littleDisks()
	opt.Machines[1].Disks = []lab.Disk{{Size: littleSize, Mode: "independent_persistent"}}
	r := newRig(t, opt)
	failsWith(t, r.tryBackup("db", func(b *plugin.BackupRequest) { b.ExcludeDisks = []string{"scsi0-*"} }).Err, plugin.CodeInvalid, "db")
	r.noTraces("db")
	point := r.backup("db", func(b *plugin.BackupRequest) { b.ExcludeDisks = []string{"scsi0-1"} })
	tells := func(what plugin.RestoreRequest, notes []plugin.Diagnostic) {
		t.Helper()
		told := slices.ContainsFunc(notes, func(d plugin.Diagnostic) bool {
			return d.Severity == plugin.SeverityWarning && d.Object == "scsi0-1" && strings.Contains(d.Detail, "excluded by request")
		})
		if want := len(what.Disks) == 0; told != want {
			t.Errorf("%s of disks %v: told %v that a disk is not in the point, want %v: %+v", what.Mode, what.Disks, told, want, notes)
		}
	}
	for _, req := range []plugin.RestoreRequest{
		{Mode: plugin.RestoreNew, Target: plugin.Target{Name: "copy"}},
		{Mode: plugin.RestoreDirectory, Directory: t.TempDir()},
		{Mode: plugin.RestoreInPlace, PowerOff: true},
		{Mode: plugin.RestoreRollback, PowerOff: true},
		{Mode: plugin.RestoreRollback, PowerOff: true, Disks: []string{"scsi0-0"}},
	} {
		req.Point = point.ID
		plan, err := r.PlanRestore(t.Context(), req)
		r.must(err)
		tells(req, plan.Notes)
		report, err := r.Restore(t.Context(), req, r.note)
		r.must(err)
		tells(req, report.Notes)
	}
	none := r.tryBackup("other", nil)
	if none.Err != nil {
		t.Fatal(none.Err)
	}
	for _, mode := range []plugin.RestoreMode{plugin.RestoreInPlace, plugin.RestoreRollback, plugin.RestoreAttach} {
		_, err := r.Restore(t.Context(), plugin.RestoreRequest{Point: none.Point.ID, Mode: mode, PowerOff: true}, r.note)
		failsWith(t, err, plugin.CodePointNotFound, "no disk")
	}
	r.noTraces("db", "other")
}

// A disk in the place of one that is gone is overwritten, which is said, and never by what change tracking knows of it.
func TestStrangeDiskIsOverwrittenWithANote(t *testing.T) {
	r := newRig(t, littleDisks())
	point := twoDisksAndAPoint(r)
	vm := r.lab.Machine("db")
	r.must(vm.RemoveDisk(firstKey))
	key, err := vm.AddDisk(lab.Disk{Size: littleSize})
	r.must(err)
	report, err := r.Restore(t.Context(), plugin.RestoreRequest{Point: point.ID, Mode: plugin.RestoreRollback}, r.note)
	r.must(err)
	if r.sum("db", key, littleSize) != r.pointContent(point, r.disk(point, "scsi0-0")) {
		t.Error("the new disk is not what the point says")
	}
	if !slices.ContainsFunc(report.Notes, func(d plugin.Diagnostic) bool { return strings.Contains(d.Summary, "not the point's own") }) {
		t.Errorf("nothing is said of the strange disk: %+v", report.Notes)
	}
	if d := report.Disks[0]; d.Name != "scsi0-0" || d.Reason != "compared by content: disk is new in this machine" {
		t.Errorf("the strange disk: %+v", d)
	}
}

// What change tracking forgot once it does not know for any older point, though the disk was read in full since.
func TestRollbackDistrustsTrackingThatLied(t *testing.T) {
	r := newRig(t, littleDisks())
	r.busy(seeded(211), "db")
	old := r.point("db")
	want := r.contents("db")
	for off := int64(0); off < littleSize; off += 1 << 20 {
		p := make([]byte, 64<<10)
		fill(seeded(uint64(off)), p)
		r.guest("db", firstKey, p, off)
	}
	lying := lab.MachineFaults{Query: lab.DropAreas(2)}
	r.must(r.lab.Machine("db").SetFaults(lying))
	r.backup("db", nil)
	if res := r.audit("db", 1); len(res.Different) == 0 {
		t.Fatal("the audit found nothing")
	}
	r.backup("db", nil) // heals
	report, err := r.Restore(t.Context(), plugin.RestoreRequest{Point: old.ID, Mode: plugin.RestoreRollback, PowerOff: true}, r.note)
	r.must(err)
	if d := report.Disks[0]; d.Reason != "compared by content: an audit found a difference" {
		t.Errorf("the disk that lied: %q", d.Reason)
	}
	if d := report.Disks[1]; d.Reason != "change tracking" {
		t.Errorf("the other disk: %q", d.Reason)
	}
	for uuid, sum := range want {
		if r.contents("db")[uuid] != sum {
			t.Error("a disk is not what the point says")
		}
	}
	r.must(r.lab.Machine("db").PowerOn())
	r.must(r.lab.Machine("db").SetFaults(lab.MachineFaults{}))
	r.point("db")
	if d := r.disk(r.point("db"), "scsi0-0"); !d.Incremental {
		t.Errorf("backups distrust the disk for ever: %s", d.Reason)
	}
}

// Snapshots of others that came or went since the point end the trust in change tracking, as for a backup.
func TestRollbackDistrustsTrackingAcrossSnapshots(t *testing.T) {
	r := newRig(t, littleDisks())
	r.busy(seeded(221), "db")
	r.backup("db", nil) // switches tracking on
	vm := r.lab.Machine("db")
	id, err := vm.Snapshot("of another")
	r.must(err)
	point := r.point("db")
	want := r.contents("db")
	r.busy(seeded(222), "db")
	r.must(vm.RemoveSnapshot(id))
	report, err := r.Restore(t.Context(), plugin.RestoreRequest{Point: point.ID, Mode: plugin.RestoreRollback, PowerOff: true}, r.note)
	r.must(err)
	for _, d := range report.Disks {
		if d.Reason != "compared by content: snapshots of others changed" {
			t.Errorf("disk %s: %q", d.Name, d.Reason)
		}
	}
	for uuid, sum := range want {
		if r.contents("db")[uuid] != sum {
			t.Error("a disk is not what the point says")
		}
	}
}

// A snapshot that leaves its deltas behind ends a rollback before a byte is written under them.
func TestRollbackStopsAtDisksThatNeedConsolidation(t *testing.T) {
	r := newRig(t, littleDisks())
	point := twoDisksAndAPoint(r)
	vm := r.lab.Machine("db")
	r.must(vm.PowerOn())
	before := r.contents("db")
	r.must(vm.SetFaults(lab.MachineFaults{LeaveDelta: 1, Consolidate: &types.FileFault{}}))
	req := plugin.RestoreRequest{Point: point.ID, Mode: plugin.RestoreRollback, PowerOff: true}
	report, err := r.Restore(t.Context(), req, r.note)
	failsWith(t, err, plugin.CodeTargetUnsuitable, "consolidat")
	if !slices.ContainsFunc(report.Notes, func(d plugin.Diagnostic) bool { return d.Summary == "after the snapshot" }) {
		t.Errorf("nothing is said of the failed consolidation: %+v", report.Notes)
	}
	for uuid, sum := range r.contents("db") {
		if before[uuid] != sum {
			t.Error("a disk was written to")
		}
	}
	a := r.admin()
	if state, err := a.vm("db").PowerState(t.Context()); err != nil || state != types.VirtualMachinePowerStatePoweredOn {
		t.Errorf("the machine was switched off for nothing and is %s: %v", state, err)
	}
	r.must(vm.SetFaults(lab.MachineFaults{}))
	_, err = r.Recover(t.Context(), nil)
	r.must(err)
	task, err := methods.ConsolidateVMDisks_Task(t.Context(), a.client, &types.ConsolidateVMDisks_Task{This: vm.Ref()})
	r.must(err)
	a.done(object.NewTask(a.client.Client, task.Returnval), nil)
	_, err = r.Restore(t.Context(), req, r.note)
	r.must(err)
	r.noTraces("db")
}

// What makes a restore impossible is found before the machine is stopped; a guest that can is asked to shut down.
func TestMachineIsStoppedOnlyForARestoreThatCanBe(t *testing.T) {
	r := newRig(t, littleDisks())
	r.busy(seeded(231), "db")
	point := r.point("db")
	vm := r.lab.Machine("db")
	calls := func(fn func()) (out []string) {
		for _, p := range r.positions(fn) {
			out = append(out, p.method)
		}
		return out
	}
	r.must(vm.RemoveDisk(secondKey))
	small, err := vm.AddDisk(lab.Disk{Size: littleSize / 2})
	r.must(err)
	for _, req := range []plugin.RestoreRequest{
		{Mode: plugin.RestoreInPlace}, {Mode: plugin.RestoreRollback},
		{Mode: plugin.RestoreAttach, Target: plugin.Target{Positions: map[string]string{"scsi0-0": "scsi7:0"}}},
		{Mode: plugin.RestoreAttach, Target: plugin.Target{Positions: map[string]string{"scsi0-0": "scsi0:5", "scsi0-1": "scsi0:5"}}},
		{Mode: plugin.RestoreAttach, Target: plugin.Target{Datastore: "nosuch"}},
	} {
		req.Point, req.PowerOff = point.ID, true
		did := calls(func() {
			_, err := r.Restore(t.Context(), req, r.note)
			failsWith(t, err, plugin.CodeTargetUnsuitable, "")
		})
		if slices.Contains(did, "PowerOffVM_Task") || slices.Contains(did, "ShutdownGuest") {
			t.Errorf("%s %+v: the machine was stopped in vain", req.Mode, req.Target)
		}
	}
	r.must(vm.RemoveDisk(small))
	req := plugin.RestoreRequest{Point: point.ID, Mode: plugin.RestoreInPlace, Disks: []string{"scsi0-0"}, PowerOff: true, PowerOn: true}
	did := calls(func() {
		_, err := r.Restore(t.Context(), req, r.note)
		r.must(err)
	})
	if !slices.Contains(did, "ShutdownGuest") || slices.Contains(did, "PowerOffVM_Task") {
		t.Errorf("the guest was not asked to shut down: %v", did)
	}
	undo := r.lab.Inject(lab.Fault{Method: "ShutdownGuest", Do: lab.Fail(&types.ToolsUnavailable{})})
	did = calls(func() {
		_, err := r.Restore(t.Context(), req, r.note)
		r.must(err)
	})
	undo()
	if !slices.Contains(did, "PowerOffVM_Task") {
		t.Errorf("the machine whose guest does not shut down was not switched off: %v", did)
	}
}
