package engine_test

import (
	"slices"
	"testing"

	"github.com/vmkeep/vmkeep/plugin"
)

// pointAndChange backs the machine up, remembers its disk, and lets the guest change a little.
func pointAndChange(r *rig) (plugin.Point, [32]byte) {
	r.scribble(seeded(31), "db", bigKey, mediumSize, 10, 2<<20)
	r.backup("db", nil)
	r.scribble(seeded(32), "db", bigKey, mediumSize, 3, 100<<10)
	point := r.backup("db", nil)
	want := r.sum("db", bigKey, mediumSize)
	r.scribble(seeded(33), "db", bigKey, mediumSize, 4, 100<<10)
	if r.sum("db", bigKey, mediumSize) == want {
		r.t.Fatal("the guest changed nothing")
	}
	return point, want
}

// backsUpAgain demands that a restored machine is backed up in full once, because it was restored, and incrementally then.
func (r *rig) backsUpAgain(machine string) {
	r.t.Helper()
	r.must(r.lab.Machine(machine).PowerOn())
	first := r.backup(machine, nil)
	if d := r.disk(first, "scsi0-0"); d.Incremental || d.Reason != "restored" {
		r.t.Errorf("the first backup after the restore: incremental %v, %q", d.Incremental, d.Reason)
	}
	r.scribble(seeded(34), machine, bigKey, mediumSize, 2, 64<<10)
	second := r.backup(machine, nil)
	if d := r.disk(second, "scsi0-0"); !d.Incremental {
		r.t.Errorf("the second backup after the restore is full: %s", d.Reason)
	}
}

func TestRollbackWritesOnlyWhatDiffers(t *testing.T) {
	r := newRig(t, oneDisk())
	point, want := pointAndChange(r)
	req := plugin.RestoreRequest{Point: point.ID, Mode: plugin.RestoreRollback}
	_, err := r.Restore(t.Context(), req, r.note)
	failsWith(t, err, plugin.CodeTargetUnsuitable, "power")
	req.PowerOff = true
	report, err := r.Restore(t.Context(), req, r.note)
	r.must(err)
	if r.sum("db", bigKey, mediumSize) != want {
		t.Fatal("the disk is not what the point says")
	}
	if d := report.Disks[0]; d.Written == 0 || d.Written > 4*(100+128)<<10 || d.Reason != "change tracking" {
		t.Errorf("rollback wrote %d bytes, reason %q", d.Written, d.Reason)
	}
	r.noTraces("db")
	r.backsUpAgain("db")
}

func TestRollbackWithoutTrackingComparesContent(t *testing.T) {
	r := newRig(t, oneDisk())
	point, want := pointAndChange(r)
	r.must(r.lab.Machine("db").PowerCut()) // tracking starts anew
	r.must(r.lab.Machine("db").PowerOff())
	report, err := r.Restore(t.Context(), plugin.RestoreRequest{Point: point.ID, Mode: plugin.RestoreRollback}, r.note)
	r.must(err)
	if r.sum("db", bigKey, mediumSize) != want {
		t.Fatal("the disk is not what the point says")
	}
	if d := report.Disks[0]; d.Written == 0 || d.Written > mediumSize/2 || d.Reason != "compared by content: tracking restarted" {
		t.Errorf("rollback wrote %d bytes, reason %q", d.Written, d.Reason)
	}
	r.backsUpAgain("db")
}

func TestWholeMachineIsRestoredInPlace(t *testing.T) {
	r := newRig(t, oneDisk())
	point, want := pointAndChange(r)
	_, err := r.Restore(t.Context(), plugin.RestoreRequest{Point: point.ID, Mode: plugin.RestoreInPlace, PowerOff: true, Verify: true}, r.note)
	r.must(err)
	if r.sum("db", bigKey, mediumSize) != want {
		t.Fatal("the disk is not what the point says")
	}
	r.backsUpAgain("db")
}

func TestDiskIsAttachedBesideTheOldOne(t *testing.T) {
	r := newRig(t, oneDisk())
	point, want := pointAndChange(r)
	r.must(r.lab.Machine("db").PowerOff())
	old := r.sum("db", bigKey, mediumSize)
	_, err := r.Restore(t.Context(), plugin.RestoreRequest{Point: point.ID, Mode: plugin.RestoreAttach, Verify: true}, r.note)
	r.must(err)
	disks, err := r.lab.Machine("db").Disks()
	r.must(err)
	if len(disks) != 2 {
		t.Fatalf("the machine has %d disks, want 2", len(disks))
	}
	if r.sum("db", disks[1].Key, mediumSize) != want {
		t.Error("the attached disk is not what the point says")
	}
	if r.sum("db", bigKey, mediumSize) != old {
		t.Error("the disk that was there changed")
	}
}

// inAll is the last that the events since the index told of all disks of a machine together.
func (r *rig) inAll(since int) plugin.Progress {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, ev := range slices.Backward(r.events[since:]) {
		if ev.Phase == plugin.PhaseDisks {
			if ev.Machine != "db" || ev.Disk != "" || ev.Kind != plugin.EventProgress {
				r.t.Errorf("the machine as a whole is told of by %+v", ev)
			}
			return *ev.Progress
		}
	}
	r.t.Fatal("nothing is told of all disks together")
	return plugin.Progress{}
}

// Of all disks of a machine together it is told how many bytes are moved, and zeros are not.
func TestProgressOfAllDisksCountsWhatIsMoved(t *testing.T) {
	r := newRig(t, littleDisks())
	p := make([]byte, 1<<20)
	fill(seeded(721), p)
	r.guest("db", firstKey, p, 2<<20)
	r.guest("db", secondKey, p, 4<<20)
	expect := func(what string, least, most int64, do func()) {
		t.Helper()
		began := len(r.events)
		do()
		if got := r.inAll(began); got.Done != got.Total || got.Done < least || got.Done > most {
			t.Errorf("%s: %d bytes of %d are moved, want %d to %d", what, got.Done, got.Total, least, most)
		}
	}
	var point plugin.Point
	expect("backup", 2<<20, 4<<20, func() { point = r.backup("db", nil) })
	restore := func(req plugin.RestoreRequest) func() {
		req.Point = point.ID
		return func() {
			_, err := r.Restore(t.Context(), req, r.note)
			r.must(err)
		}
	}
	expect("restore", 2<<20, 5<<20, restore(plugin.RestoreRequest{Target: plugin.Target{Name: "db2"}}))
	expect("verified restore", 2<<20+2*littleSize, 5<<20+2*littleSize, restore(plugin.RestoreRequest{Target: plugin.Target{Name: "db3"}, Verify: true}))
	r.guest("db", firstKey, p[:64<<10], 0)
	expect("rollback", 64<<10, 1<<20, restore(plugin.RestoreRequest{Mode: plugin.RestoreRollback, PowerOff: true}))
}
