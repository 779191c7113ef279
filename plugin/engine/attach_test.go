package engine_test

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/vmware/govmomi/vim25/types"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/vsphere/lab"
)

// files are the datastore paths of a machine's disks by their device keys.
func (r *rig) files(machine string) map[int32]string {
	r.t.Helper()
	disks, err := r.lab.Machine(machine).Disks()
	r.must(err)
	out := map[int32]string{}
	for _, d := range disks {
		out[d.Key] = d.Path
	}
	return out
}

// A disk of the point takes the place of the one that is there now, whose file stays as it is.
func TestDiskIsAttachedAtItsOriginalPlace(t *testing.T) {
	r := newRig(t, littleDisks())
	point := twoDisksAndAPoint(r)
	before, was := r.byPlace("db"), r.files("db")
	replaced := r.live("db", firstKey)
	want := r.pointContent(point, r.disk(point, "scsi0-0"))
	if before["scsi0-0"] == want {
		t.Fatal("the guest changed nothing")
	}
	report, err := r.Restore(t.Context(), plugin.RestoreRequest{Point: point.ID, Mode: plugin.RestoreAttach, Disks: []string{"scsi0-0"}, Verify: true, PowerOn: true,
		Target: plugin.Target{Positions: map[string]string{"scsi0-0": "scsi0:0"}}}, r.note)
	r.must(err)
	if got := r.byPlace("db"); !maps.Equal(got, map[string]content{"scsi0-0": want, "scsi0-1": before["scsi0-1"]}) {
		t.Errorf("the machine's disks are not what they should be, at %v", slices.Sorted(maps.Keys(got)))
	}
	if d := report.Disks; len(d) != 1 || !d[0].Verified {
		t.Errorf("the restore reports %+v", d)
	}
	if slices.Contains(slices.Collect(maps.Values(r.files("db"))), was[firstKey]) {
		t.Error("the disk that was there is still attached")
	}
	kept, err := r.lab.ReadLink(was[firstKey])
	r.must(err)
	if !slices.Equal(kept, replaced) {
		t.Error("the file of the disk that was there has changed")
	}
	r.journalIsEmpty()
	for _, d := range r.point("db").Disks {
		restored := d.Name == "scsi0-0"
		if want := map[bool]string{true: "restored", false: "change tracking"}[restored]; d.Incremental == restored || d.Reason != want {
			t.Errorf("the backup after the restore: disk %s incremental %v, %q", d.Name, d.Incremental, d.Reason)
		}
	}
	r.busy(seeded(203), "db")
	for _, d := range r.point("db").Disks {
		if !d.Incremental {
			t.Errorf("the second backup after the restore: disk %s is full: %s", d.Name, d.Reason)
		}
	}
}

// A second disk that fails takes the first one back, and what they replaced hangs where it did. Disks that are to be kept
// half-filled are not begun where they cannot be.
func TestDisksAreAttachedAllOrNone(t *testing.T) {
	places := map[string]string{"scsi0-0": "scsi0:0", "scsi0-1": "scsi0:1"}
	for name, positions := range map[string]map[string]string{"beside": nil, "in their places": places} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, littleDisks())
			point := twoDisksAndAPoint(r)
			r.must(r.lab.SetFreeSpace("ds2", 0))
			before, files, links := r.byPlace("db"), r.files("db"), slices.Sorted(slices.Values(r.lab.Links()))
			req := plugin.RestoreRequest{Point: point.ID, Mode: plugin.RestoreAttach,
				Target: plugin.Target{Positions: positions, Provisioning: "thin", Datastores: map[string]string{"scsi0-1": "ds2"}}}
			for _, keep := range []bool{false, true} {
				req.KeepPartial = keep
				_, err := r.Restore(t.Context(), req, r.note)
				if keep {
					failsWith(t, err, plugin.CodeTargetUnsuitable, "no directory on datastore ds2")
				} else {
					failsWith(t, err, plugin.CodeSpace, "")
				}
				if got := r.files("db"); !maps.Equal(got, files) || !maps.Equal(r.byPlace("db"), before) {
					t.Errorf("the machine has disks %v, had %v", got, files)
				}
				if now := slices.Sorted(slices.Values(r.lab.Links())); !slices.Equal(now, links) {
					t.Errorf("files of disks before %v, after %v", links, now)
				}
				r.journalIsEmpty()
			}
		})
	}
}

// Whichever call of an attachment fails: the disk is there, whole, or nothing is, and what it was to replace hangs where
// it did.
func TestEveryCallOfAnAttachmentMayFail(t *testing.T) {
	r := newRig(t, lab.Options{Machines: []lab.Machine{{Name: "db", Disks: []lab.Disk{{Size: 2 << 20}}}}})
	r.busy(seeded(204), "db")
	point := r.point("db")
	want := r.pointContent(point, r.disk(point, "scsi0-0"))
	r.busy(seeded(205), "db")
	tried := 0
	for _, name := range []string{"while it runs", "beside", "in its place"} {
		var positions map[string]string
		switch name {
		case "beside":
			r.must(r.lab.Machine("db").PowerOff())
		case "in its place":
			positions = map[string]string{"scsi0-0": "scsi0:0"}
		}
		do := func() error {
			r.must(r.Configure(t.Context(), r.config)) // logs out, and in at the next need
			_, err := r.Restore(noCancel(), plugin.RestoreRequest{Point: point.ID, Mode: plugin.RestoreAttach, Target: plugin.Target{Positions: positions}}, nil)
			return err
		}
		// takeAway removes the disk that was attached beside the machine's own, so that there is always room.
		takeAway := func() {
			t.Helper()
			for key := range r.files("db") {
				if key != firstKey {
					r.must(r.lab.Machine("db").RemoveDisk(key))
				}
			}
		}
		for _, f := range r.trials(tried, func() { r.must(do()) }) {
			takeAway()
			tried++
			files, links, sum := r.files("db"), slices.Sorted(slices.Values(r.lab.Links())), r.sum("db", firstKey, 2<<20)
			undo := r.lab.Inject(f.fault())
			err := do()
			undo()
			r.fails(f, err)
			now := r.files("db")
			if err == nil { // a file that was not there: at another place, or at the same
				place := "scsi0-1"
				if positions != nil {
					place = "scsi0-0"
				}
				if maps.Equal(now, files) || r.byPlace("db")[place] != want {
					t.Errorf("%s, %v: the disk is not there, or not what the point says", name, f)
				}
			} else if after := slices.Sorted(slices.Values(r.lab.Links())); !maps.Equal(now, files) || !slices.Equal(after, links) || r.sum("db", firstKey, 2<<20) != sum {
				t.Errorf("%s, %v: something is left, or missing: disks %v, had %v; files %v, had %v", name, f, now, files, after, links)
			}
			r.journalIsEmpty()
			if m := r.machines(); !slices.Equal(m, []string{"db"}) {
				t.Errorf("machines %v", m)
			}
			if t.Failed() {
				t.Fatalf("after %s, %v: %v", name, f, err)
			}
		}
		takeAway()
	}
	t.Logf("%d faults", tried)
}

// A machine that runs gets disks and goes on running: its guest sees them with their content. What cannot be is said
// before anything is made.
func TestDisksAreHotAddedToARunningMachine(t *testing.T) {
	r := newRig(t, littleDisks())
	r.busy(seeded(731), "db")
	point := r.point("db")
	want := r.byPlace("db")
	r.busy(seeded(732), "db")
	now, files, links := r.byPlace("db"), r.files("db"), len(r.lab.Links())
	req := plugin.RestoreRequest{Point: point.ID, Mode: plugin.RestoreAttach, Verify: true}
	for _, c := range []struct {
		target  plugin.Target
		code    plugin.Code
		mention string
	}{
		{plugin.Target{Positions: map[string]string{"scsi0-0": "scsi0:0"}}, plugin.CodeExists, "scsi0"},
		{plugin.Target{Positions: map[string]string{"scsi0-0": "ide0:0"}}, plugin.CodeTargetUnsuitable, "takes no disks while the machine runs"},
		{plugin.Target{Datastore: "ds2"}, plugin.CodeTargetUnsuitable, "no directory on datastore ds2"},
		{plugin.Target{Datastore: "nosuch"}, plugin.CodeTargetUnsuitable, "nosuch"},
	} {
		bad := req
		bad.Target = c.target
		plan, err := r.PlanRestore(t.Context(), bad)
		r.must(err)
		if len(plan.Problems) == 0 {
			t.Errorf("the plan of %+v has no problem", c.target)
		}
		_, err = r.Restore(t.Context(), bad, r.note)
		failsWith(t, err, c.code, c.mention)
	}
	plan, err := r.PlanRestore(t.Context(), req)
	r.must(err)
	if steps := strings.Join(plan.Steps, "\n"); len(plan.Problems) > 0 || !strings.Contains(steps, "hot-add it") || strings.Contains(steps, "power off") {
		t.Errorf("the plan is %+v", plan)
	}
	if !maps.Equal(r.files("db"), files) || len(r.lab.Links()) != links {
		t.Fatal("something was made already")
	}

	report, err := r.Restore(t.Context(), req, r.note)
	r.must(err)
	maps.Copy(now, map[string]content{"scsi0-2": want["scsi0-0"], "scsi0-3": want["scsi0-1"]})
	if got := r.byPlace("db"); !maps.Equal(got, now) {
		t.Errorf("the machine's disks are not what they should be, at %v", slices.Sorted(maps.Keys(got)))
	}
	if d := report.Disks; len(d) != 2 || !d[0].Verified || !d[1].Verified {
		t.Errorf("the restore reports %+v", d)
	}
	if power, err := r.admin().vm("db").PowerState(t.Context()); err != nil || power != types.VirtualMachinePowerStatePoweredOn {
		t.Errorf("the machine is %s, %v", power, err)
	}
	if m := slices.Sorted(slices.Values(r.machines())); !slices.Equal(m, []string{"db", "other"}) || len(r.lab.Links()) != links+2 {
		t.Errorf("machines %v, files %v", m, r.lab.Links())
	}
	r.journalIsEmpty()
	r.busy(seeded(733), "db") // all four
	for _, d := range r.point("db").Disks {
		added := d.Name == "scsi0-2" || d.Name == "scsi0-3"
		if want := map[bool]string{true: "restored", false: "change tracking"}[added]; d.Incremental == added || d.Reason != want {
			t.Errorf("the backup after the restore: disk %s incremental %v, %q", d.Name, d.Incremental, d.Reason)
		}
	}
}
