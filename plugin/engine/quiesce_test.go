package engine_test

import (
	"bytes"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmware/govmomi/vim25/types"
	"github.com/vmware/govmomi/vim25/xml"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/vsphere/lab"
)

// tried is how often a snapshot was asked for.
func (r *rig) tried() int {
	return r.lab.Count("CreateSnapshot_Task") + r.lab.Count("CreateSnapshotEx_Task")
}

// The level a machine was quiesced to is in the point and in its tags; what is worse than the machine's best is told.
func TestQuiesceLadder(t *testing.T) {
	const windows = "windows2019srv_64Guest"
	for _, c := range []struct {
		name     string
		machine  lab.Machine
		quiesce  plugin.Quiesce
		fault    types.BaseMethodFault // of quiesced snapshots
		prepare  func(r *rig)
		want     plugin.Consistency // empty: the backup fails
		degraded bool
		tries    int
	}{
		{name: "Windows", machine: lab.Machine{Guest: windows}, want: plugin.ConsistencyApplication, tries: 1},
		{name: "Linux", want: plugin.ConsistencyFileSystem, tries: 1},
		{name: "Windows, file systems are enough", machine: lab.Machine{Guest: windows}, quiesce: plugin.Quiesce{Best: plugin.ConsistencyFileSystem}, want: plugin.ConsistencyFileSystem, tries: 1},
		{name: "nothing is asked for", quiesce: plugin.Quiesce{Best: plugin.ConsistencyCrash}, want: plugin.ConsistencyCrash, tries: 1},
		{name: "writers fail", machine: lab.Machine{Guest: windows}, fault: &types.ApplicationQuiesceFault{}, want: plugin.ConsistencyCrash, degraded: true, tries: 3},
		{name: "file systems cannot be held", fault: &types.FilesystemQuiesceFault{}, want: plugin.ConsistencyCrash, degraded: true, tries: 2},
		{name: "it must not be worse", fault: &types.FilesystemQuiesceFault{}, quiesce: plugin.Quiesce{Worst: plugin.ConsistencyFileSystem}, tries: 1},
		{name: "no VMware Tools", machine: lab.Machine{NoTools: true}, want: plugin.ConsistencyCrash, tries: 1},
		{name: "no VMware Tools, but demanded", machine: lab.Machine{NoTools: true}, quiesce: plugin.Quiesce{Worst: plugin.ConsistencyFileSystem}},
		{name: "powered off", machine: lab.Machine{Off: true}, want: plugin.ConsistencyOff, tries: 1},
		{name: "suspended", prepare: func(r *rig) {
			a := r.admin()
			a.done(a.vm("db").Suspend(r.t.Context()))
		}, want: plugin.ConsistencyCrash, tries: 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := c.machine
			m.Name, m.Disks = "db", []lab.Disk{{Size: 2 << 20}}
			r := newRig(t, lab.Options{Machines: []lab.Machine{m}})
			r.must(r.lab.Machine("db").SetFaults(lab.MachineFaults{Quiesce: c.fault}))
			if c.prepare != nil {
				c.prepare(r)
			}
			res := r.tryBackup("db", func(b *plugin.BackupRequest) { b.Quiesce = c.quiesce })
			r.noTraces("db")
			if n := r.tried(); n != c.tries {
				t.Errorf("%d snapshots were tried, want %d", n, c.tries)
			}
			if c.want == "" {
				if res.Err == nil {
					t.Fatalf("the backup succeeded: %+v", res.Point)
				}
				failsWith(t, res.Err, plugin.CodeQuiesce, "db")
				r.noPoints()
				return
			}
			if res.Err != nil {
				r.must(res.Err)
			}
			if res.Point.Consistency != c.want || !slices.Contains(res.Point.Tags, string(c.want)) || res.Degraded() != c.degraded {
				t.Errorf("consistency %q, tags %v, degraded %v, want %q, %v: %+v", res.Point.Consistency, res.Point.Tags, res.Degraded(), c.want, c.degraded, res.Warnings)
			}
			if c.degraded && (res.Warnings[0].Code != plugin.CodeQuiesce || res.Warnings[0].Remedy == "" || !strings.Contains(res.Warnings[0].Detail, "not ")) {
				t.Errorf("the warning is %+v", res.Warnings[0])
			}
			listed, err := r.Points(t.Context(), plugin.PointFilter{})
			r.must(err)
			if len(listed) != 1 || listed[0].Consistency != c.want {
				t.Errorf("listed: %+v", listed)
			}
		})
	}
}

// Disks that no snapshot holds are not in the point, which says why; a policy can make that a failure.
func TestUnprotectableDisks(t *testing.T) {
	opt := lab.Options{Machines: []lab.Machine{{Name: "db", Disks: []lab.Disk{
		{Size: 2 << 20},
		{Size: 2 << 20, Mode: "independent_persistent"},
		{Size: 2 << 20, Raw: "physicalMode"},
	}}, {Name: "node", Disks: []lab.Disk{{Size: 2 << 20}, {Size: 2 << 20, Controller: "lsilogic", Bus: 1, SharedBus: true}}}}}
	r := newRig(t, opt)
	r.busyOn("db", 2000, 2<<20)
	want := r.sum("db", 2000, 2<<20)
	res := r.tryBackup("db", nil)
	if res.Err != nil {
		r.must(res.Err)
	}
	if !res.Degraded() || len(res.Warnings) != 2 {
		t.Errorf("%d warnings, want 2: %+v", len(res.Warnings), res.Warnings)
	}
	for name, why := range map[string]string{"scsi0-0": "", "scsi0-1": "independent", "scsi0-2": "physical"} {
		d := r.disk(*res.Point, name)
		if !strings.Contains(strings.ToLower(d.Skipped), why) || (why == "") != (d.Skipped == "") {
			t.Errorf("disk %s is skipped because %q, want %q", name, d.Skipped, why)
		}
	}
	if r.pointContent(*res.Point, r.disk(*res.Point, "scsi0-0")) != want {
		t.Error("the protected disk differs")
	}
	r.noTraces("db")

	res = r.tryBackup("db", func(b *plugin.BackupRequest) { b.Unprotected = "fail" })
	if res.Err == nil {
		t.Fatal("the policy to fail is not followed")
	}
	failsWith(t, res.Err, plugin.CodeUnprotected, "scsi0-1")
	r.noTraces("db")

	res = r.tryBackup("db", func(b *plugin.BackupRequest) {
		b.Unprotected, b.ExcludeDisks = "fail", []string{"scsi0-[12]"}
	})
	if res.Err != nil || res.Degraded() {
		t.Errorf("disks that are excluded: %v, %+v", res.Err, res.Warnings)
	}

	// vSphere takes no snapshot of a running machine with a disk on a shared bus.
	failsWith(t, r.tryBackup("node", nil).Err, plugin.CodeSnapshot, "shared bus")
	r.noTraces("node")
	r.must(r.lab.Machine("node").PowerOff())
	res = r.tryBackup("node", nil)
	if res.Err != nil {
		r.must(res.Err)
	}
	if d := r.disk(*res.Point, "scsi1-0"); !res.Degraded() || !strings.Contains(d.Skipped, "bus") {
		t.Errorf("degraded %v, the shared disk is skipped because %q", res.Degraded(), d.Skipped)
	}
}

// busyOn gives a disk some content.
func (r *rig) busyOn(machine string, key int32, size int64) {
	r.t.Helper()
	r.scribble(seeded(73), machine, key, size, 5, 200<<10)
}

// A template is read as it lies, without a snapshot; a second point of it costs nothing.
func TestTemplates(t *testing.T) {
	r := newRig(t, lab.Options{Machines: []lab.Machine{{Name: "golden", Disks: []lab.Disk{{Size: littleSize}}}}})
	r.busyOn("golden", 2000, littleSize)
	want := r.contents("golden")
	r.must(r.lab.Machine("golden").PowerOff())
	a := r.admin()
	r.must(a.vm("golden").MarkAsTemplate(t.Context()))
	take := func() plugin.Point {
		res := r.tryBackup("golden", func(b *plugin.BackupRequest) { b.Selection.Templates = true })
		if res.Err != nil {
			r.must(res.Err)
		}
		r.exact(*res.Point, want)
		return *res.Point
	}
	if p := take(); p.Consistency != plugin.ConsistencyOff {
		t.Errorf("consistency %q", p.Consistency)
	}
	if p := take(); p.Stats.Stored > 64<<10 {
		t.Errorf("the second point of a template added %d bytes", p.Stats.Stored)
	}
	if r.tried() != 0 {
		t.Error("a snapshot of a template was tried")
	}
}

// Machines are quiesced as the first rule says that names them, else as the request does; VSS hears of its options.
func TestQuiesceRules(t *testing.T) {
	const windows = "windows2019srv_64Guest"
	r := newRig(t, lab.Options{Machines: []lab.Machine{{Name: "db-1", Guest: windows, Disks: []lab.Disk{{Size: 1 << 20}}}, {Name: "web", Guest: windows, Disks: []lab.Disk{{Size: 1 << 20}}}}})
	var mu sync.Mutex
	var asked []types.CreateSnapshotEx_Task
	r.lab.Inject(lab.Fault{Method: "CreateSnapshotEx_Task", Times: -1, Do: func(w http.ResponseWriter, q *http.Request, next http.Handler) {
		body, err := io.ReadAll(q.Body)
		if err != nil {
			t.Error(err)
		}
		var e struct {
			Body struct {
				Call types.CreateSnapshotEx_Task `xml:"CreateSnapshotEx_Task"`
			}
		}
		dec := xml.NewDecoder(bytes.NewReader(body))
		dec.TypeFunc = types.TypeFunc()
		if err := dec.Decode(&e); err != nil {
			t.Error(err)
		}
		mu.Lock()
		asked = append(asked, e.Body.Call)
		mu.Unlock()
		q.Body = io.NopCloser(bytes.NewReader(body))
		next.ServeHTTP(w, q)
	}})
	req := plugin.BackupRequest{
		Selection: plugin.Selection{Names: []string{"db-1", "web"}},
		Quiesce:   plugin.Quiesce{Best: plugin.ConsistencyApplication},
		QuiesceRules: []plugin.QuiesceRule{
			{Machine: "DB-*", Quiesce: plugin.Quiesce{Timeout: 20 * time.Minute, VSS: plugin.VSS{Backup: "full", Bootable: true, Partial: true}}},
			{Machine: "db-1", Quiesce: plugin.Quiesce{Best: plugin.ConsistencyCrash}},
		},
	}
	report, err := r.Backup(t.Context(), req, nil)
	r.must(err)
	if len(asked) != 2 || len(report.Machines) != 2 {
		t.Fatalf("%d snapshots, %d machines", len(asked), len(report.Machines))
	}
	for _, a := range asked {
		s, ok := a.QuiesceSpec.(*types.VirtualMachineWindowsQuiesceSpec)
		if !ok {
			t.Fatalf("quiesced by %T", a.QuiesceSpec)
		}
		rule := a.This == r.lab.Machine("db-1").Ref()
		kind, minutes := int32(5), int32(15) // VSS_BT_COPY
		if rule {
			kind, minutes = 1, 20 // VSS_BT_FULL
		}
		if s.VssBackupType != kind || s.Timeout != minutes || *s.VssBootableSystemState != rule || *s.VssPartialFileSupport != rule {
			t.Errorf("%s: %+v", a.This.Value, s)
		}
	}
	req.QuiesceRules[1].Quiesce.VSS.Backup = "everything"
	_, err = r.Backup(t.Context(), req, nil)
	failsWith(t, err, plugin.CodeInvalid, "everything")
}
