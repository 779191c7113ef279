package engine_test

import (
	"bytes"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/vddk"
	"github.com/vmkeep/vmkeep/vsphere/lab"
)

// carrier is the machine that carries half-filled disks; nil: there is none.
func (r *rig) carrier() *lab.VM {
	r.t.Helper()
	for _, m := range r.machines() {
		if strings.HasPrefix(m, "vmkeep-") {
			return r.lab.Machine(m)
		}
	}
	return nil
}

// held demands that half-filled disks are kept: they hang in a machine that says of itself what it is, and recovery lists
// them and leaves them alone.
func (r *rig) held(disks int) {
	r.t.Helper()
	report, err := r.Recover(r.t.Context(), nil)
	r.must(err)
	undone := slices.DeleteFunc(report.Undone, func(l plugin.Leftover) bool { return l.Kind == "library" }) // looked after whatever dies
	if len(undone) > 0 || len(report.Remaining) != disks+1 {
		r.t.Errorf("recovery says %+v", report)
	}
	for _, l := range report.Remaining {
		if !strings.Contains(l.Err.Detail, "run the restore again") {
			r.t.Errorf("remaining: %+v", l)
		}
	}
	carrier := r.carrier()
	if carrier == nil {
		r.t.Fatal("the disks that were to be kept are gone")
	}
	has, err := carrier.Disks()
	r.must(err)
	if len(has) != disks {
		r.t.Errorf("%d half-filled disks are kept, want %d", len(has), disks)
	}
}

// unlike is how many bytes the sectors have in which a half-filled disk is not what it is to become.
func (r *rig) unlike(key int32, want []byte) (n int64) {
	r.t.Helper()
	disks, err := r.carrier().Disks()
	r.must(err)
	i := slices.IndexFunc(disks, func(d lab.DiskInfo) bool { return d.Key == key })
	if i < 0 {
		r.t.Fatalf("the carrier has no disk %d: %+v", key, disks)
	}
	got, err := r.lab.ReadLink(disks[i].Path)
	r.must(err)
	for off := 0; off < len(want); off += vddk.SectorSize {
		if !bytes.Equal(got[off:off+vddk.SectorSize], want[off:off+vddk.SectorSize]) {
			n += vddk.SectorSize
		}
	}
	return n
}

// Disks that are to be attached, and kept when that is interrupted, are gone on with when the restore is run again: not a
// byte more is written than is missing, and the machine, which nothing happened to before, has them as if nothing had
// happened.
func TestAttachmentIsGoneOnWith(t *testing.T) {
	inPlace := map[string]string{"scsi0-0": "scsi0:0", "scsi0-1": "scsi0:1"}
	for name, interrupt := range interruptions() {
		for _, how := range []string{"while it runs", "beside", "in their places", "started meanwhile"} {
			t.Run(name+" "+how, func(t *testing.T) {
				r := newRig(t, littleDisks())
				point, want := twoFullDisks(r)
				second := r.live("db", secondKey)
				r.busy(seeded(761), "db")
				places := map[string]string{"scsi0-2": "scsi0-0", "scsi0-3": "scsi0-1"}
				now, files, links := r.byPlace("db"), r.files("db"), len(r.lab.Links())
				req := plugin.RestoreRequest{Point: point.ID, Mode: plugin.RestoreAttach, KeepPartial: true}
				if how != "while it runs" {
					r.must(r.lab.Machine("db").PowerOff())
				}
				if how == "in their places" {
					req.Target.Positions, places = inPlace, map[string]string{"scsi0-0": "scsi0-0", "scsi0-1": "scsi0-1"}
				}
				end := r.slowly()
				if err := interrupt(r, req); err == nil {
					t.Fatal("the restore was not interrupted")
				}
				end()
				r.held(2)
				if !maps.Equal(r.files("db"), files) || !maps.Equal(r.byPlace("db"), now) {
					t.Error("the interrupted restore has changed the machine")
				}
				if how == "started meanwhile" {
					r.must(r.lab.Machine("db").PowerOn())
				}
				plan, err := r.PlanRestore(t.Context(), req)
				r.must(err)
				if len(plan.Problems) > 0 || !strings.Contains(strings.Join(plan.Steps, "\n"), "go on with the disk") {
					t.Errorf("the plan to go on is %+v", plan)
				}
				missing := r.unlike(secondKey, second)

				req.Verify, req.KeepPartial = true, false // what was kept is not thrown away by a run that does not say so
				report, err := r.Restore(t.Context(), req, r.note)
				r.must(err)
				if d := report.Disks; len(d) != 2 || d[0].Written != 0 || d[1].Written != missing || missing == 0 || d[0].Reason != "continued" || !d[0].Verified || !d[1].Verified {
					t.Errorf("%d bytes were missing, and the second run reports %+v", missing, d)
				}
				for place, disk := range places {
					now[place] = want[disk]
				}
				if got := r.byPlace("db"); !maps.Equal(got, now) {
					t.Errorf("the machine's disks are not what they should be, at %v", slices.Sorted(maps.Keys(got)))
				}
				if m := slices.Sorted(slices.Values(r.machines())); !slices.Equal(m, []string{"db", "other"}) || len(r.lab.Links()) != links+2 {
					t.Errorf("machines %v, files %v", m, r.lab.Links())
				}
				for _, file := range files {
					if !slices.Contains(r.lab.Links(), file) {
						t.Errorf("the file %s is gone", file)
					}
				}
				r.journalIsEmpty()
				if how == "beside" || how == "in their places" {
					r.must(r.lab.Machine("db").PowerOn())
				}
				r.busy(seeded(762), "db")
				for _, d := range r.point("db").Disks {
					if _, added := places[d.Name]; d.Incremental == added || added && d.Reason != "restored" {
						t.Errorf("the backup after the restore: disk %s incremental %v, %q", d.Name, d.Incremental, d.Reason)
					}
				}
			})
		}
	}
}

// holding leaves disks half-filled, and returns the restore that is to be run again.
func holding(r *rig) plugin.RestoreRequest {
	r.t.Helper()
	point, _ := twoFullDisks(r)
	req := plugin.RestoreRequest{Point: point.ID, Mode: plugin.RestoreAttach, KeepPartial: true}
	end := r.slowly()
	if err := interruptions()["cancelled"](r, req); err == nil {
		r.t.Fatal("the restore was not interrupted")
	}
	end()
	r.held(2)
	return req
}

// Half-filled disks are gone on with only by the restore that began them, and only where they are as that left them.
// Another one begins anew, beside them.
func TestHalfFilledDisksOfAnotherRestoreAreLeftAlone(t *testing.T) {
	r := newRig(t, littleDisks())
	req := holding(r)
	was := r.carrier()
	other := req
	other.Disks, other.KeepPartial = []string{"scsi0-1"}, false
	report, err := r.Restore(noCancel(), other, nil)
	r.must(err)
	if d := report.Disks; len(d) != 1 || d[0].Reason != "" || d[0].Written != littleSize {
		t.Errorf("another restore reports %+v", d)
	}
	r.held(2)

	taken := req
	taken.Target.Positions = map[string]string{"scsi0-0": "scsi0:1"}
	_, err = r.Restore(noCancel(), taken, nil)
	failsWith(t, err, plugin.CodeExists, "scsi0")
	r.held(2)

	_, err = was.Snapshot("of another")
	r.must(err)
	_, err = r.Restore(noCancel(), req, nil)
	failsWith(t, err, plugin.CodeTargetUnsuitable, "has snapshots")
	r.held(2)

	r.must(r.lab.Machine("other").PowerOff())
	r.must(r.lab.Machine("other").Destroy())
	gone := req
	gone.Target.Machine = "other"
	_, err = r.Restore(noCancel(), gone, nil)
	failsWith(t, err, plugin.CodeMachineNotFound, "other")
	r.held(2)
}

// Whoever does not want half-filled disks any more destroys the machine that carries them: a recovery then leaves nothing
// of them, and the same restore begins anew.
func TestHalfFilledDisksGoWithTheirCarrier(t *testing.T) {
	for name, taken := range map[string]bool{"with its disks": false, "without its disks": true} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, littleDisks())
			links := len(r.lab.Links())
			req := holding(r)
			carrier := r.carrier()
			if taken { // its files stay behind
				for _, key := range []int32{firstKey, secondKey} {
					r.must(carrier.RemoveDisk(key))
				}
			}
			r.must(carrier.Destroy())
			report, err := r.Recover(t.Context(), nil)
			r.must(err)
			if len(report.Remaining) > 0 || len(report.Undone) != 3 || len(r.lab.Links()) != links {
				t.Errorf("recovery says %+v; files %v", report, r.lab.Links())
			}
			r.journalIsEmpty()
			again, err := r.Restore(t.Context(), req, r.note)
			r.must(err)
			if d := again.Disks; len(d) != 2 || d[0].Written != littleSize || d[0].Reason != "" {
				t.Errorf("the second run reports %+v", d)
			}
			r.journalIsEmpty()
		})
	}
}

// The half-filled disks of a machine that is gone go with their carrier, too.
func TestHalfFilledDisksOfADestroyedMachine(t *testing.T) {
	r := newRig(t, littleDisks())
	req := holding(r)
	r.must(r.lab.Machine("db").PowerOff())
	r.must(r.lab.Machine("db").Destroy())
	_, err := r.Restore(noCancel(), req, nil)
	failsWith(t, err, plugin.CodeMachineNotFound, "")
	r.held(2)
	r.must(r.carrier().Destroy())
	report, err := r.Recover(t.Context(), nil)
	r.must(err)
	if m := r.machines(); len(report.Remaining) > 0 || !slices.Equal(m, []string{"other"}) {
		t.Errorf("recovery says %+v; machines %v", report, m)
	}
	r.journalIsEmpty()
}

// attachesAgain runs a restore again that was to be kept, and demands one disk beside the machine's own then, whole, and
// nothing else: one file more than there were. A disk that hung there already is not made twice.
func (r *rig) attachesAgain(o order, want content, files int) {
	r.t.Helper()
	open, err := filepath.Glob(filepath.Join(r.config.StateDir, "*.jsonl"))
	r.must(err)
	if len(r.files("db")) == 1 || len(open) > 0 {
		r.must(o.do(r))
	}
	if got := r.byPlace("db"); len(got) != 2 || got["scsi0-1"] != want {
		r.t.Errorf("the machine has disks at %v, or the new one is not what the point says", slices.Sorted(maps.Keys(got)))
	}
	report, err := r.Recover(r.t.Context(), nil)
	r.must(err)
	if m := r.machines(); len(report.Remaining) > 0 || !slices.Equal(m, []string{"db"}) || len(r.lab.Links()) != files+1 {
		r.t.Errorf("machines %v, files %v, remaining %+v", m, r.lab.Links(), report.Remaining)
	}
	r.journalIsEmpty()
}

// oneToAttach is a machine with a point of its little disk, and an order to attach that, kept when it is interrupted.
func oneToAttach(t *testing.T) (r *rig, o order, want content) {
	r = newRig(t, lab.Options{Machines: []lab.Machine{{Name: "db", Disks: []lab.Disk{{Size: 2 << 20}}}}})
	r.busy(seeded(771), "db")
	point := r.point("db")
	want = r.byPlace("db")["scsi0-0"]
	r.busy(seeded(772), "db")
	return r, order{Restore: &plugin.RestoreRequest{Point: point.ID, Mode: plugin.RestoreAttach, KeepPartial: true}}, want
}

// takeAway removes all disks but the machine's own. Their files stay.
func (r *rig) takeAway() {
	r.t.Helper()
	for key := range r.files("db") {
		if key != firstKey {
			r.must(r.lab.Machine("db").RemoveDisk(key))
		}
	}
}

// The plugin is killed at every step of attaching a disk that is to be kept, with and without a recovery before the next
// run: that completes it, and there is one disk then.
func TestKilledAtEveryStepOfAKeptAttachment(t *testing.T) {
	r, o, want := oneToAttach(t)
	program := ownPlugin(t)
	kills, kept := 0, 0
	for _, m := range r.moments(func() { r.must(o.do(r)) }) {
		r.takeAway()
		files := len(r.lab.Links())
		kills++
		killPlugin(r, program, o, m)
		if r.carrier() != nil {
			kept++
		}
		if kills%2 == 0 && len(r.files("db")) == 1 {
			_, err := r.Recover(t.Context(), nil)
			r.must(err)
		}
		r.attachesAgain(o, want, files)
		if t.Failed() {
			t.Fatalf("killed %v", m)
		}
	}
	t.Logf("%d kills, %d times half-filled disks", kills, kept)
}

// Whichever call fails of attaching a disk that is to be kept: running it again completes it.
func TestEveryCallOfAKeptAttachmentMayFail(t *testing.T) {
	r, o, want := oneToAttach(t)
	do := func() error {
		r.must(r.Configure(t.Context(), r.config)) // logs out, and in at the next need
		return o.do(r)
	}
	tried, kept := 0, 0
	for _, f := range r.trials(0, func() { r.must(do()) }) {
		r.takeAway()
		files := len(r.lab.Links())
		tried++
		err := r.meets(f, do)
		if err != nil {
			if r.carrier() != nil {
				kept++
			}
		}
		r.attachesAgain(o, want, files)
		if t.Failed() {
			t.Fatalf("after %v: %v", f, err)
		}
	}
	t.Logf("%d faults, %d times half-filled disks", tried, kept)
}
