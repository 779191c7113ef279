package engine_test

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/vmware/govmomi/vim25/types"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/vsphere/lab"
)

// farm is a vSphere with nine machines on three datastores and two hosts.
func farm() lab.Options {
	var opt lab.Options
	for n := range 9 {
		opt.Machines = append(opt.Machines, lab.Machine{Name: fmt.Sprintf("vm%d", n), Folder: []string{"prod", "test"}[n%2], Host: fmt.Sprintf("esx%d", 1+n%2),
			Datastore: fmt.Sprintf("ds%d", 1+n%3), Disks: []lab.Disk{{Size: 1 << 20}}})
	}
	return opt
}

// results backs machines up and sorts them by outcome.
func (r *rig) results(req plugin.BackupRequest) (made []string, failed map[string]plugin.Code) {
	r.t.Helper()
	req.Selection.Exclude = append(slices.Clone(req.Selection.Exclude), proxyName)
	report, err := r.Backup(context.WithoutCancel(r.t.Context()), req, r.note)
	r.must(err)
	failed = map[string]plugin.Code{}
	for _, m := range report.Machines {
		switch {
		case m.Err != nil && m.Point == nil:
			failed[m.Machine.Name] = m.Err.Code
		case m.Err == nil && m.Point != nil:
			made = append(made, m.Machine.Name)
			r.exact(*m.Point, r.contents(m.Machine.Name))
		default:
			r.t.Errorf("%s has a point and an error, or neither: %+v", m.Machine.Name, m)
		}
	}
	slices.Sort(made)
	return made, failed
}

// One machine that fails, or one datastore without space, stops nothing else.
func TestMachinesFailAlone(t *testing.T) {
	r := newRig(t, farm())
	r.must(r.lab.Machine("vm4").SetFaults(lab.MachineFaults{Snapshot: &types.SnapshotFault{}}))
	r.must(r.lab.SetFreeSpace("ds3", 1<<20))
	made, failed := r.results(plugin.BackupRequest{})
	if want := []string{"vm0", "vm1", "vm3", "vm6", "vm7"}; !slices.Equal(made, want) {
		t.Errorf("points of %v, want %v", made, want)
	}
	for _, n := range []string{"vm2", "vm5", "vm8"} { // on ds3
		if failed[n] != plugin.CodeSpace {
			t.Errorf("%s: %q, want %q", n, failed[n], plugin.CodeSpace)
		}
	}
	if failed["vm4"] != plugin.CodeSnapshot {
		t.Errorf("vm4: %q, want %q", failed["vm4"], plugin.CodeSnapshot)
	}
	r.noTraces(r.machines()...)
}

// A backup that is cancelled between two machines says so, and tells which machines have a point.
func TestCancelledBetweenMachines(t *testing.T) {
	r := newRig(t, farm())
	one := r.config
	one.Limits.Machines = 1
	r.must(r.Configure(t.Context(), one))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	names := []string{"vm0", "vm1", "vm2"}
	report, err := r.Backup(ctx, plugin.BackupRequest{Selection: plugin.Selection{Names: names}}, func(e plugin.Event) {
		if e.Kind == plugin.EventResult {
			cancel()
		}
	})
	failsWith(t, err, plugin.CodeCancelled, "")
	points, missed := 0, 0
	for _, m := range report.Machines {
		switch {
		case m.Point != nil && m.Err == nil:
			points++
		case m.Point == nil && m.Err != nil && m.Err.Code == plugin.CodeCancelled:
			missed++
		}
	}
	if points == 0 || missed == 0 || points+missed != len(names) {
		t.Errorf("%d points and %d that were cancelled in %+v", points, missed, report.Machines)
	}
	r.noTraces(names...)
}

// What is backed up is decided when the backup starts.
func TestSelectionIsEvaluatedAtRunTime(t *testing.T) {
	r := newRig(t, farm())
	for _, c := range []struct {
		name string
		pick plugin.Selection
		want []string
	}{
		{"all machines of a host", plugin.Selection{Hosts: []string{"esx1"}}, []string{"vm0", "vm2", "vm4", "vm6", "vm8"}},
		{"folder", plugin.Selection{Folders: []string{"test"}}, []string{"vm1", "vm3", "vm5", "vm7"}},
		{"datastore of a host, one left out", plugin.Selection{Datastores: []string{"ds1"}, Exclude: []string{"vm3"}}, []string{"vm0", "vm6"}},
		{"glob", plugin.Selection{Names: []string{"vm[12]"}}, []string{"vm1", "vm2"}},
	} {
		if made, failed := r.results(plugin.BackupRequest{Selection: c.pick}); !slices.Equal(made, c.want) || len(failed) > 0 {
			t.Errorf("%s: points of %v, want %v; failed %v", c.name, made, c.want, failed)
		}
	}
	r.must(r.lab.Machine("vm1").Migrate("esx1", ""))
	if made, _ := r.results(plugin.BackupRequest{Selection: plugin.Selection{Hosts: []string{"esx2"}}}); !slices.Equal(made, []string{"vm3", "vm5", "vm7"}) {
		t.Errorf("after vm1 moved away: %v", made)
	}
}

// Whatever happens in the middle of a backup that can be survived is survived: the point is that of its snapshot.
func TestBackupSurvives(t *testing.T) {
	for _, c := range []struct {
		name  string
		phase string
		do    func(r *rig)
	}{
		{"vCenter restarts before the snapshot", "snapshot", func(r *rig) { r.lab.ExpireSessions() }},
		{"vCenter restarts while disks are read", "read", func(r *rig) { r.lab.ExpireSessions() }},
		{"vCenter restarts before the snapshot is removed", "remove", func(r *rig) { r.lab.ExpireSessions() }},
		{"vCenter does not answer for a while", "read", func(r *rig) { r.lab.Inject(lab.Fault{Times: 3, Do: lab.HTTPStatus(503)}) }},
		{"a proxy answers", "remove", func(r *rig) { r.lab.Inject(lab.Fault{Times: 2, Do: lab.HTTPStatus(502)}) }},
		{"connections are reset", "snapshot", func(r *rig) { r.lab.Inject(lab.Fault{Times: 2, Do: lab.Reset()}) }},
		{"disk connections are cut", "read", func(r *rig) { r.lab.NFC().CutAll() }},
		{"vMotion", "read", func(r *rig) { r.must(r.lab.Machine("db").Migrate("esx2", "")) }},
		{"the guest writes", "read", func(r *rig) { r.busy(seeded(97), "db") }},
		{"somebody else takes a snapshot", "read", func(r *rig) {
			_, err := r.lab.Machine("db").Snapshot("foreign")
			r.must(err)
		}},
		{"a removal that does not merge", "remove", func(r *rig) { r.must(r.lab.Machine("db").SetFaults(lab.MachineFaults{LeaveDelta: 1})) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			opt := littleDisks()
			opt.Machines[0].Host = "esx1"
			r := newRig(t, opt)
			rng := seeded(95)
			r.busy(rng, "db")
			r.point("db")
			r.busy(rng, "db")
			want := r.contents("db")
			done := false
			report, err := r.Backup(t.Context(), plugin.BackupRequest{Selection: plugin.Selection{Names: []string{"db"}}}, func(ev plugin.Event) {
				if ev.Kind == plugin.EventPhase && string(ev.Phase) == c.phase && !done {
					done = true
					c.do(r)
				}
			})
			r.must(err)
			if e := report.Machines[0].Err; e != nil {
				r.must(e)
			}
			if !done {
				t.Errorf("no phase %q", c.phase)
			}
			r.exact(*report.Machines[0].Point, want)
			foreign := 0
			for _, s := range r.lab.Machine("db").Snapshots() {
				if s.Name != "foreign" {
					t.Errorf("snapshot %q is left", s.Name)
				}
				foreign++
			}
			if wanted := c.name == "somebody else takes a snapshot"; (foreign == 1) != wanted {
				t.Errorf("%d foreign snapshots", foreign)
			}
			if foreign == 0 {
				r.noTraces("db")
			}
			r.must(r.lab.Machine("db").SetFaults(lab.MachineFaults{}))
			r.point("db")
		})
	}
}
