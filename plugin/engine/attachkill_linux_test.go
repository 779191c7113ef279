package engine_test

import (
	"maps"
	"slices"
	"testing"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/vsphere/lab"
)

// The plugin is killed at every step of adding a disk to a running machine: the next start leaves the machine as it was,
// or with the whole disk, with no other machine and no other file, and the disk can be added again.
func TestKilledAtEveryStepOfAHotAdd(t *testing.T) {
	r := newRig(t, lab.Options{Machines: []lab.Machine{{Name: "db", Disks: []lab.Disk{{Size: 2 << 20}}}}})
	r.busy(seeded(741), "db")
	point := r.point("db")
	want := r.byPlace("db")["scsi0-0"]
	r.busy(seeded(742), "db")
	o := order{Restore: &plugin.RestoreRequest{Point: point.ID, Mode: plugin.RestoreAttach}}
	takeAway := func() {
		for key := range r.files("db") {
			if key != firstKey {
				r.must(r.lab.Machine("db").RemoveDisk(key))
			}
		}
	}
	program := ownPlugin(t)
	kills := 0
	for _, m := range r.moments(func() { r.must(o.do(r)) }) {
		takeAway()
		files, links := r.files("db"), slices.Sorted(slices.Values(r.lab.Links()))
		kills++
		killPlugin(r, program, o, m)
		report, err := r.Recover(t.Context(), nil)
		r.must(err)
		if len(report.Remaining) > 0 {
			t.Errorf("%v: not undone: %+v", m, report.Remaining)
		}
		if got := r.byPlace("db"); len(got) > 1 {
			if got["scsi0-1"] != want || len(r.lab.Links()) != len(links)+1 {
				t.Errorf("%v: the disk that was added is not what the point says, or files are left: %v", m, r.lab.Links())
			}
		} else if now := slices.Sorted(slices.Values(r.lab.Links())); !maps.Equal(r.files("db"), files) || !slices.Equal(now, links) {
			t.Errorf("%v: disks %v, had %v; files %v, had %v", m, r.files("db"), files, now, links)
		}
		if got := r.machines(); !slices.Equal(got, []string{"db"}) {
			t.Errorf("%v: machines %v", m, got)
		}
		r.journalIsEmpty()
		if t.Failed() {
			t.FailNow()
		}
	}
	takeAway()
	r.must(o.do(r))
	if r.byPlace("db")["scsi0-1"] != want {
		t.Error("the disk is not what the point says")
	}
	t.Logf("%d kills", kills)
}
