package vsphere

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vapi/rest"
	"github.com/vmware/govmomi/vapi/tags"
	"github.com/vmware/govmomi/vim25/mo"

	"github.com/vmkeep/vmkeep/vsphere/lab"
)

func fleet() lab.Options {
	return lab.Options{Machines: []lab.Machine{
		{Name: "web1", Folder: "prod/web", Host: "esx1", Pool: "gold"},
		{Name: "web2", Folder: "prod/web", Host: "esx2", Pool: "silver", Datastore: "ds2"},
		{Name: "db1", Folder: "prod/db", Host: "esx3", Off: true},
		{Name: "test1", Folder: "test", Host: "esx5"},
		{Name: "web1", Folder: "test", Host: "esx5"},
		{Name: "[a] b", Folder: "test", Host: "esx5"},
		{Name: "gold", Template: true, Host: "esx5"},
	}}
}

func (w *world) annotate() {
	w.Helper()
	cfm, err := object.GetCustomFieldsManager(w.c.vim)
	must(w, err)
	def, err := cfm.Add(w.ctx, "tier", "VirtualMachine", nil, nil)
	must(w, err)
	for name, tier := range map[string]string{"db1": "one", "web2": "two"} {
		must(w, cfm.Set(w.ctx, w.lab.Machine(name).Ref(), def.Key, tier))
	}
	rc := rest.NewClient(w.c.vim)
	must(w, rc.Login(w.ctx, w.c.s.user))
	tm := tags.NewManager(rc)
	cat, err := tm.CreateCategory(w.ctx, &tags.Category{Name: "backup", Cardinality: "MULTIPLE"})
	must(w, err)
	tag, err := tm.CreateTag(w.ctx, &tags.Tag{Name: "daily", CategoryID: cat})
	must(w, err)
	must(w, tm.AttachTag(w.ctx, tag, mo.Reference(w.lab.Machine("db1").Ref())))
	must(w, rc.Logout(w.ctx))
}

func TestSelection(t *testing.T) {
	w := start(t, fleet())
	w.annotate()
	id := w.lab.Machine("db1").Ref().Value
	for _, c := range []struct {
		name string
		sel  Selection
		want string
	}{
		{"all", Selection{}, "prod/db/db1 prod/web/web1 prod/web/web2 test/[a] b test/test1 test/web1"},
		{"templates too", Selection{Templates: true, Names: []string{"g*"}}, "gold"},
		{"a template by name", Selection{Names: []string{"gold"}}, "gold"},
		{"name", Selection{Names: []string{"db1"}}, "prod/db/db1"},
		{"case", Selection{Names: []string{"DB1"}}, "prod/db/db1"},
		{"brackets", Selection{Names: []string{"[a] b"}}, "test/[a] b"},
		{"same names", Selection{Names: []string{"web1"}}, "prod/web/web1 test/web1"},
		{"glob", Selection{Names: []string{"web*"}}, "prod/web/web1 prod/web/web2 test/web1"},
		{"path", Selection{Names: []string{"/dc1/vm/test/web1"}}, "test/web1"},
		{"path glob", Selection{Names: []string{"/dc1/vm/prod/*/*1"}}, "prod/db/db1 prod/web/web1"},
		{"id", Selection{Names: []string{id}}, "prod/db/db1"},
		{"folder", Selection{Folders: []string{"prod"}}, "prod/db/db1 prod/web/web1 prod/web/web2"},
		{"folder path", Selection{Folders: []string{"/dc1/vm/prod/web"}}, "prod/web/web1 prod/web/web2"},
		{"folder glob", Selection{Folders: []string{"w*"}}, "prod/web/web1 prod/web/web2"},
		{"host", Selection{Hosts: []string{"esx5"}}, "test/[a] b test/test1 test/web1"},
		{"cluster", Selection{Clusters: []string{"cluster1"}}, "prod/web/web1 prod/web/web2"},
		{"clusters", Selection{Clusters: []string{"cluster*"}}, "prod/db/db1 prod/web/web1 prod/web/web2"},
		{"pool", Selection{ResourcePools: []string{"gold"}}, "prod/web/web1"},
		{"pool above", Selection{ResourcePools: []string{"/dc1/host/cluster1/Resources"}}, "prod/web/web1 prod/web/web2"},
		{"datastore", Selection{Datastores: []string{"ds2"}}, "prod/web/web2"},
		{"power", Selection{Power: []PowerState{PoweredOff}}, "prod/db/db1"},
		{"exclude", Selection{Names: []string{"web*"}, Exclude: []string{"/dc1/vm/test/*"}}, "prod/web/web1 prod/web/web2"},
		{"attribute", Selection{Attributes: []string{"tier=o*"}}, "prod/db/db1"},
		{"any attribute", Selection{Attributes: []string{"tier=*"}}, "prod/db/db1 prod/web/web2"},
		{"tag", Selection{Tags: []string{"daily"}}, "prod/db/db1"},
		{"tag with category", Selection{Tags: []string{"backup:d*"}}, "prod/db/db1"},
		{"no such tag", Selection{Tags: []string{"weekly"}}, ""},
		{"combined", Selection{Folders: []string{"prod"}, Hosts: []string{"esx2"}}, "prod/web/web2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			list, err := w.c.Machines(w.ctx, c.sel)
			must(t, err)
			var got []string
			for _, m := range list {
				got = append(got, strings.TrimPrefix(m.Path, "/dc1/vm/"))
			}
			if g := strings.Join(got, " "); g != c.want {
				t.Errorf("got  %s\nwant %s", g, c.want)
			}
		})
	}
	for _, c := range []struct {
		name string
		sel  Selection
		err  error
		says string
	}{
		{"unknown machine", Selection{Names: []string{"wbe1"}}, ErrNotFound, "/dc1/vm/prod/web/web1"},
		{"unknown host", Selection{Hosts: []string{"esx55"}}, ErrNotFound, "esx5"},
		{"unknown folder", Selection{Folders: []string{"prid"}}, ErrNotFound, "/dc1/vm/prod"},
		{"unknown cluster", Selection{Clusters: []string{"cluster9"}}, ErrNotFound, "cluster1"},
		{"unknown pool", Selection{ResourcePools: []string{"bronze"}}, ErrNotFound, "gold"},
		{"unknown datastore", Selection{Datastores: []string{"ds9"}}, ErrNotFound, "ds1"},
		{"bad glob", Selection{Names: []string{"[a"}}, ErrInvalid, "[a"},
		{"bad attribute", Selection{Attributes: []string{"tier"}}, ErrInvalid, "tier"},
		{"bad power", Selection{Power: []PowerState{"on"}}, ErrInvalid, "on"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := w.c.Machines(w.ctx, c.sel)
			if !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestMachineIsDescribed(t *testing.T) {
	w := start(t, lab.Options{Machines: []lab.Machine{{Name: "web", Folder: "a/b", Host: "esx1", Pool: "gold", Network: "net1", Tracking: true, Guest: "ubuntu64Guest", Disks: []lab.Disk{
		{Size: 8 * mib, Thick: true}, {Size: 4 * mib, Controller: "nvme", Datastore: "ds2"}, {Size: mib, Mode: "independent_persistent"}, {Size: mib, Controller: "ide"},
		{Size: mib, Raw: "physicalMode"}, {Size: mib, Controller: "lsilogic", Bus: 2, SharedBus: true},
	}}}})
	list, err := w.c.Machines(w.ctx, Selection{})
	must(t, err)
	m := list[0]
	if m.Host != "esx1" || m.Cluster != "cluster1" || m.Datacenter != "dc1" || m.Folder != "/dc1/vm/a/b" || m.ResourcePool != "/dc1/host/cluster1/Resources/gold" ||
		fmt.Sprint(m.Datastores) != "[ds1 ds2]" || fmt.Sprint(m.Networks) != "[net1]" || m.Power != PoweredOn || m.HWVersion != "vmx-19" || !m.CBT || !m.ToolsRunning ||
		m.InstanceUUID == "" || m.BIOSUUID == "" || m.Connection != "connected" || m.GuestID != "ubuntu64Guest" {
		t.Errorf("%+v", m)
	}
	var got []string
	for _, d := range m.Disks {
		got = append(got, fmt.Sprintf("%s:%s:%s:%d:%v", d.Name, d.Datastore, d.Backing, d.Capacity/mib, d.Unprotected != ""))
		if d.Base == "" || d.Controller == "" || d.Label == "" {
			t.Errorf("%+v", d)
		}
	}
	want := "ide0-0:ds1:flat:1:false nvme0-0:ds2:flat:4:false scsi0-0:ds1:flat:8:false scsi0-1:ds1:flat:1:true scsi0-2:ds1:rdm-physical:1:true scsi2-0:ds1:flat:1:true"
	if g := strings.Join(got, " "); g != want {
		t.Errorf("disks\n%s, want\n%s", g, want)
	}
	s := w.state(w.find("web"))
	if len(s.NICs) != 1 || s.NICs[0].Network != "net1" || s.NICs[0].MAC == "" || !s.Trackable || s.VMX == "" || s.HostVersion == "" || s.VCenter != w.c.About().InstanceUUID {
		t.Errorf("%+v", s.NICs)
	}
	ci, err := decodeConfig(s.ConfigInfo)
	must(t, err)
	if len(disksOf(ci.Hardware.Device)) != 6 || ci.Name != "web" {
		t.Errorf("the configuration does not survive: %s", s.ConfigInfo)
	}
}

func TestFind(t *testing.T) {
	w := start(t, fleet())
	db := w.lab.Machine("db1").Ref().Value
	list, err := w.c.Machines(w.ctx, Selection{Names: []string{"db1"}})
	must(t, err)
	for _, name := range []string{"db1", "DB1", db, "VirtualMachine:" + db, list[0].InstanceUUID, "/dc1/vm/prod/db/db1", "dc1/vm/prod/db/db1"} {
		v, err := w.c.Find(w.ctx, name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if v.ID() != db || v.Machine().Path != "/dc1/vm/prod/db/db1" {
			t.Errorf("%s: found %+v", name, v.Machine())
		}
	}
	var e *Error
	_, err = w.c.Find(w.ctx, "web1")
	if !errors.As(err, &e) || e.Kind != ErrAmbiguous || len(e.Candidates) != 2 {
		t.Errorf("ambiguous: %v", err)
	}
	_, err = w.c.Find(w.ctx, "db2")
	if !errors.As(err, &e) || e.Kind != ErrNotFound || e.Candidates[0] != "/dc1/vm/prod/db/db1" {
		t.Errorf("unknown: %v", err)
	}
	if _, err = w.c.Find(w.ctx, " "); !errors.Is(err, ErrInvalid) {
		t.Errorf("empty: %v", err)
	}
}

func TestHostsAndDatastores(t *testing.T) {
	w := start(t, fleet())
	hosts, err := w.c.Hosts(w.ctx)
	must(t, err)
	if len(hosts) != 5 || hosts[0].Name != "esx1" || hosts[0].Cluster != "cluster1" || !hosts[0].Connected || hosts[0].CPUs == 0 || len(hosts[0].Datastores) != 3 || hosts[4].Cluster != "" || hosts[4].Machines != 4 {
		t.Errorf("%+v", hosts)
	}
	must(t, w.lab.SetFreeSpace("ds2", 77*mib))
	list, err := w.c.Datastores(w.ctx)
	must(t, err)
	if len(list) != 3 || list[1].Name != "ds2" || list[1].Free != 77*mib || !list[1].Accessible || list[1].Path != "/dc1/datastore/ds2" {
		t.Errorf("%+v", list)
	}
}

func TestThousandMachines(t *testing.T) {
	var opt lab.Options
	for i := range 1000 {
		opt.Machines = append(opt.Machines, lab.Machine{Name: fmt.Sprintf("m%04d", i), Off: true, Disks: []lab.Disk{{Size: mib}}})
	}
	w := start(t, opt)
	w.lab.ResetCalls()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	began := time.Now()
	list, err := w.c.Machines(w.ctx, Selection{})
	took := time.Since(began)
	must(t, err)
	runtime.GC()
	runtime.ReadMemStats(&after)
	if len(list) != 1000 || len(list[999].Disks) != 1 {
		t.Fatalf("%d machines", len(list))
	}
	calls := len(w.lab.Calls())
	t.Logf("%d machines in %v, %d calls, %d KiB kept (lab's garbage included)", len(list), took, calls, (int64(after.HeapAlloc)-int64(before.HeapAlloc))>>10)
	if calls > 20 {
		t.Errorf("%d calls for 1000 machines", calls)
	}
	if kept := int64(after.HeapAlloc) - int64(before.HeapAlloc); kept > 8*mib {
		t.Errorf("%d bytes kept", kept)
	}
	runtime.KeepAlive(list)
}

func TestNamesWithSlashes(t *testing.T) {
	for _, s := range []string{"a/b", `a\b`, "100%", "%2f", "plain"} {
		if got := unescape(escape(s)); got != s {
			t.Errorf("%q becomes %q", s, got)
		}
	}
}

func TestPlaces(t *testing.T) {
	for _, s := range []string{"scsi0:3", "SCSI0-3"} {
		if k, b, u, err := parsePlace(s); err != nil || place(k, b, u) != "scsi0-3" {
			t.Errorf("%s: %s %d %d %v", s, k, b, u, err)
		}
	}
	for _, s := range []string{"", "scsi", "scsi0", "scsi0:", "0:1", "usb0:1", "scsi0:-1", "scsi-1:0", "scsi0:1:2"} {
		if _, _, _, err := parsePlace(s); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", s, err)
		}
	}
}
