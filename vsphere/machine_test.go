package vsphere

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/vmware/govmomi/vim25/types"

	"github.com/vmkeep/vmkeep/vsphere/lab"
)

// original is a machine with a bit of everything.
func original() lab.Machine {
	return lab.Machine{Name: "web", Folder: "prod", Host: "esx1", Pool: "gold", Network: "net1", Firmware: "efi", Guest: "ubuntu64Guest", CPUs: 2, MemoryMB: 1024, Annotation: "the web server", Tracking: true,
		InstanceUUID: "50000000-0000-4000-8000-00000000000a", BiosUUID: "42000000-0000-4000-8000-00000000000a",
		Disks: []lab.Disk{{Size: 8 * mib}, {Size: 4 * mib, Controller: "nvme", Datastore: "ds2", Thick: true}, {Size: 2 * mib, Controller: "sata"}, {Size: mib, Controller: "ide"}, {Size: mib, Controller: "lsilogic-sas", Bus: 1}}}
}

// saved is the state of the machine named.
func (w *world) saved(name string) (*State, MachineSpec) {
	w.Helper()
	s := w.state(w.find(name))
	return s, MachineSpec{ConfigInfo: s.ConfigInfo, NICs: s.NICs, Name: "restored", Host: "esx5"}
}

func (w *world) plan(spec MachineSpec) *MachinePlan {
	w.Helper()
	p, err := w.c.PlanMachine(w.ctx, spec)
	must(w, err)
	return p
}

func noFill(context.Context, *VM) error { return nil }

func TestRestoredMachineIsAlike(t *testing.T) {
	w := start(t, lab.Options{Machines: []lab.Machine{original()}})
	s, spec := w.saved("web")
	spec.Operation = w.begin()
	spec.Folder = "/dc1/vm/prod"
	spec.Extra = map[string]string{"vmkeep.restored": "yes"}
	p := w.plan(spec)
	if len(p.Problems) > 0 || p.Host != "esx5" || p.Home != "ds1" || p.Folder != "/dc1/vm/prod" || len(p.Disks) != 5 || len(p.Steps) != 7 {
		t.Fatalf("plan %+v, problems %v", p, p.Problems)
	}
	v, err := w.c.CreateMachine(w.ctx, p, func(ctx context.Context, v *VM) error {
		for i, d := range v.Machine().Disks {
			k, err := v.WriteTicket(ctx, d.Key)
			if err != nil || k.SessionID == "" {
				t.Errorf("disk %d: %v", i, err)
			}
		}
		m, err := v.read(ctx, "config.annotation")
		must(t, err)
		if _, ok := readMark(m.Config.Annotation); !ok {
			t.Error("the machine does not say that it is half-made")
		}
		return nil
	})
	must(t, err)
	n := w.state(v)
	if n.Name != "restored" || n.Folder != "/dc1/vm/prod" || n.Host != "esx5" || n.Power != PoweredOff || n.GuestID != s.GuestID || n.HWVersion != s.HWVersion ||
		n.InstanceUUID == s.InstanceUUID || n.BIOSUUID == s.BIOSUUID || fmt.Sprint(n.Networks) != "[net1]" {
		t.Errorf("restored %+v", n.Machine)
	}
	if n.NICs[0].MAC == s.NICs[0].MAC || n.NICs[0].Kind != s.NICs[0].Kind || n.NICs[0].Network != "net1" {
		t.Errorf("card %+v was %+v", n.NICs, s.NICs)
	}
	for i, d := range n.Disks {
		o := s.Disks[i]
		if d.Name != o.Name || d.Capacity != o.Capacity || d.Datastore != o.Datastore || d.Thin != o.Thin || d.Controller != o.Controller || d.UUID == o.UUID || d.Path == o.Path || d.ChangeID != "" {
			t.Errorf("disk %+v\nwas %+v", d, o)
		}
	}
	ci, err := decodeConfig(n.ConfigInfo)
	must(t, err)
	if ci.Annotation != "the web server" || ci.Firmware != "efi" || ci.Hardware.NumCPU != 2 || ci.Hardware.MemoryMB != 1024 {
		t.Errorf("%q %s %d %d", ci.Annotation, ci.Firmware, ci.Hardware.NumCPU, ci.Hardware.MemoryMB)
	}
	extra := false
	for _, o := range ci.ExtraConfig {
		extra = extra || o.GetOptionValue().Key == "vmkeep.restored" && fmt.Sprint(o.GetOptionValue().Value) == "yes"
	}
	if !extra {
		t.Error("the extra setting is missing")
	}
	// The restored machine is a machine like any other: it tracks, and is snapshotted.
	_, err = v.EnableCBT(w.ctx, w.begin())
	must(t, err)
	must(t, v.PowerOn(w.ctx))
	ids := w.changeIDs(v)
	if len(ids) != 5 {
		t.Errorf("change ids %v", ids)
	}
	must(t, v.UploadNVRAMRefused(w))
	must(t, v.PowerOff(w.ctx))
	must(t, v.UploadNVRAM(w.ctx, []byte("nvram of old")))
	var got strings.Builder
	_, err = v.Download(w.ctx, w.state(v).NVRAM, &got)
	if err != nil || got.String() != "nvram of old" {
		t.Errorf("NVRAM %q %v", got.String(), err)
	}
}

// UploadNVRAMRefused checks that a running machine's NVRAM is left alone.
func (v *VM) UploadNVRAMRefused(w *world) error {
	if err := v.UploadNVRAM(w.ctx, []byte("x")); !errors.Is(err, ErrPowerState) {
		return fmt.Errorf("NVRAM of a running machine: %v", err)
	}
	return nil
}

func TestRestoreWithMappings(t *testing.T) {
	w := start(t, lab.Options{Machines: []lab.Machine{original()}})
	must(t, w.find("web").PowerOff(w.ctx))
	s, spec := w.saved("web")
	must(t, w.find("web").Destroy(w.ctx))
	spec.Operation, spec.Name = w.begin(), ""
	spec.Host, spec.Cluster, spec.ResourcePool = "", "cluster2", "silver"
	spec.Datastore, spec.Datastores = "ds3", map[string]string{"nvme0-0": "ds1"}
	spec.Networks = map[string]string{"NET1": "net2"}
	spec.Identity, spec.MAC, spec.Provision = IdentityKeep, IdentityKeep, ProvisionThin
	spec.OmitDisks = []string{"ide0-0"}
	p := w.plan(spec)
	v, err := w.c.CreateMachine(w.ctx, p, noFill)
	must(t, err)
	n := w.state(v)
	if n.Name != "web" || n.Cluster != "cluster2" || n.ResourcePool != "/dc1/host/cluster2/Resources/silver" || n.InstanceUUID != s.InstanceUUID || n.BIOSUUID != s.BIOSUUID ||
		n.NICs[0].MAC != s.NICs[0].MAC || n.NICs[0].Network != "net2" || len(n.Disks) != 4 {
		t.Errorf("%+v %+v", n.Machine, n.NICs)
	}
	for _, d := range n.Disks {
		want := "ds3"
		if d.Name == "nvme0-0" {
			want = "ds1"
		}
		if d.Datastore != want || !d.Thin {
			t.Errorf("%+v", d)
		}
	}
	if !strings.Contains(strings.Join(p.Notes, "\n"), "ide0-0") {
		t.Errorf("notes %v", p.Notes)
	}
}

func TestPlanFindsProblems(t *testing.T) {
	w := start(t, lab.Options{Machines: []lab.Machine{original()}})
	must(t, w.lab.SetFreeSpace("ds3", mib))
	_, base := w.saved("web")
	for _, c := range []struct {
		name  string
		edit  func(*MachineSpec)
		kind  error
		says  string
		hints string
	}{
		{"fine", func(*MachineSpec) {}, nil, "", ""},
		{"host", func(s *MachineSpec) { s.Host = "esx9" }, ErrNotFound, "esx9", "esx5"},
		{"nowhere", func(s *MachineSpec) { s.Host = "" }, ErrUnsuitable, "no host", "/dc1/host/cluster1"},
		{"host of another cluster", func(s *MachineSpec) { s.Cluster = "cluster1" }, ErrUnsuitable, "not in cluster", ""},
		{"cluster", func(s *MachineSpec) { s.Host, s.Cluster = "", "c" }, ErrNotFound, "c", "cluster1"},
		{"ambiguous pool", func(s *MachineSpec) { s.Host, s.ResourcePool = "", "gold" }, ErrAmbiguous, "gold", "cluster2"},
		{"pool", func(s *MachineSpec) { s.ResourcePool = "bronze" }, ErrNotFound, "bronze", ""},
		{"folder", func(s *MachineSpec) { s.Folder = "prud" }, ErrNotFound, "prud", "/dc1/vm/prod"},
		{"datastore", func(s *MachineSpec) { s.Datastore = "ds9" }, ErrUnsuitable, "ds9", "ds1"},
		{"datastore of a disk", func(s *MachineSpec) { s.Datastores = map[string]string{"sata0-0": "ds9"} }, ErrUnsuitable, "ds9", "ds2"},
		{"network", func(s *MachineSpec) { s.Networks = map[string]string{"net1": "net9"} }, ErrUnsuitable, "net9", "net2"},
		{"network, not wanted", func(s *MachineSpec) { s.Networks, s.NoNetworks = map[string]string{"net1": "net9"}, true }, nil, "", ""},
		{"network that no card is on", func(s *MachineSpec) { s.Networks = map[string]string{"net11": "net2"} }, ErrInvalid, "net11", "net1"},
		{"network of another machine", func(s *MachineSpec) { s.Networks = map[string]string{"net11": "net2", "net1": "net2"} }, nil, "", ""},
		{"network of another machine, no card connected", func(s *MachineSpec) {
			s.Networks, s.NICs, s.NoNetworks = map[string]string{"net11": "net2"}, []NIC{{Key: s.NICs[0].Key, Network: "net9"}}, true
		}, nil, "", ""},
		{"name", func(s *MachineSpec) { s.Name, s.Folder = "WEB", "prod" }, ErrExists, "WEB", ""},
		{"identity", func(s *MachineSpec) { s.Identity = IdentityKeep }, ErrExists, "/dc1/vm/prod/web", ""},
		{"space", func(s *MachineSpec) { s.Datastore, s.Provision = "ds3", ProvisionThick }, ErrSpace, "ds3", "ds1"},
		{"space, thin", func(s *MachineSpec) { s.Datastore, s.Provision = "ds3", ProvisionThin }, nil, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			spec := base
			c.edit(&spec)
			p := w.plan(spec)
			if c.kind == nil {
				if len(p.Problems) > 0 {
					t.Errorf("problems %v", p.Problems)
				}
				return
			}
			if len(p.Problems) == 0 || !errors.Is(p.Problems[0], c.kind) || !strings.Contains(p.Problems[0].Error(), c.says) || p.Problems[0].Remedy == "" {
				t.Fatalf("problems %v", p.Problems)
			}
			if c.hints != "" && !strings.Contains(strings.Join(p.Problems[0].Candidates, " "), c.hints) {
				t.Errorf("candidates %v", p.Problems[0].Candidates)
			}
			p.asked.Operation = w.begin()
			if _, err := w.c.CreateMachine(w.ctx, p, noFill); !errors.Is(err, c.kind) {
				t.Errorf("created nevertheless: %v", err)
			}
		})
	}
	for name, spec := range map[string]MachineSpec{"nonsense": {ConfigInfo: []byte("{")}, "identity": {ConfigInfo: base.ConfigInfo, Identity: "x"}, "provision": {ConfigInfo: base.ConfigInfo, Provision: "x"}} {
		if _, err := w.c.PlanMachine(w.ctx, spec); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := len(w.lab.Machines()); n != 1 {
		t.Errorf("%d machines", n)
	}
}

// A machine whose filling fails goes, whatever fails.
func TestHalfMadeMachineGoes(t *testing.T) {
	w := start(t, lab.Options{Machines: []lab.Machine{original()}})
	_, spec := w.saved("web")
	boom := errors.New("boom")
	make := func(fn func(context.Context, *VM) error) error {
		spec.Operation = w.begin()
		_, err := w.c.CreateMachine(w.ctx, w.plan(spec), fn)
		return err
	}
	if err := make(func(context.Context, *VM) error { return boom }); !errors.Is(err, boom) {
		t.Errorf("error %v", err)
	}
	if err := make(func(context.Context, *VM) error { w.lab.ExpireSessions(); return boom }); !errors.Is(err, boom) {
		t.Errorf("error %v", err)
	}
	func() {
		defer func() { _ = recover() }()
		_ = make(func(context.Context, *VM) error { panic("boom") })
	}()
	ctx := w.ctx
	var cancel context.CancelFunc
	w.ctx, cancel = context.WithCancel(ctx)
	if err := make(func(context.Context, *VM) error { cancel(); return context.Canceled }); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	w.ctx = ctx
	if n := w.lab.Machines(); len(n) != 1 {
		t.Errorf("machines %v", n)
	}
	spec.KeepFailed, spec.Mark = true, Overwrite{Key: "vmkeep.half", Value: "point", Done: map[string]string{"vmkeep.done": "yes"}}
	op, err := w.j.Begin("", "repo1")
	must(t, err)
	spec.Operation = op
	kept, err := w.c.CreateMachine(w.ctx, w.plan(spec), func(context.Context, *VM) error { return boom })
	if !errors.Is(err, boom) || kept == nil {
		t.Errorf("error %v", err)
	}
	again := spec
	again.Operation = w.begin()
	if _, err := w.c.CreateMachine(w.ctx, w.plan(again), noFill); !errors.Is(err, ErrLive) {
		t.Errorf("going on beside the run that makes the machine: %v", err)
	}
	if err := op.End(); !errors.Is(err, ErrLeftover) {
		t.Errorf("the operation that left half a machine ends with %v", err)
	}
	report, err := w.c.Recover(w.ctx, w.j, RecoverOptions{})
	must(t, err)
	if len(report.Kept) != 1 || report.Kept[0].Keep != keepBegun || len(report.Undone) > 0 {
		t.Errorf("%+v", report)
	}
	if n := w.lab.Machines(); len(n) != 2 {
		t.Errorf("machines %v, one was to be kept", n)
	}

	// Another run goes on with the machine, and it is like any other then.
	other := spec
	other.Mark.Value = "another point"
	if p := w.plan(other); p.Begun || len(p.Problems) == 0 {
		t.Errorf("a machine that is to become something else is gone on with: %+v", p)
	}
	spec.KeepFailed, spec.Operation = false, w.begin()
	p := w.plan(spec)
	if !p.Begun {
		t.Fatal("the machine is not found again")
	}
	done, err := w.c.CreateMachine(w.ctx, p, noFill)
	must(t, err)
	if done.ID() != kept.ID() {
		t.Error("another machine was made")
	}
	if report, err = w.c.Recover(w.ctx, w.j, RecoverOptions{}); err != nil || len(report.Undone) != 1 || len(report.Kept) > 0 {
		t.Errorf("%+v, %v", report, err)
	}
	for key, want := range map[string]bool{"vmkeep.half": false, "vmkeep.done": true} {
		if has, err := done.carries(w.ctx, key); err != nil || has != want {
			t.Errorf("the machine carries %s: %v, %v", key, has, err)
		}
	}
	must(t, done.Destroy(w.ctx))
	for _, l := range w.lab.Links() {
		if strings.Contains(l, "restored") && !strings.Contains(l, "restored/") {
			t.Errorf("disk %s stays", l)
		}
	}
}

func TestMachineCreationSurvivesEveryFault(t *testing.T) {
	w := start(t, lab.Options{Machines: []lab.Machine{original()}})
	_, spec := w.saved("web")
	spec.Operation = w.begin()
	p := w.plan(spec)
	run := func(remove func()) error {
		op := w.begin()
		q := *p
		q.asked.Operation = op
		v, err := w.c.CreateMachine(w.ctx, &q, noFill)
		remove()
		if e := op.End(); e != nil {
			t.Errorf("%v (after %v)", e, err)
		}
		if err == nil {
			must(t, v.Destroy(w.ctx))
		}
		return err
	}
	w.lab.ResetCalls()
	calls := 0
	must(t, run(func() { calls = len(w.lab.Calls()) }))
	for name, do := range map[string]lab.Effect{"lost answer": lab.LoseAnswer(), "fault": lab.Fail(&types.SystemError{})} {
		for n := 1; n <= calls; n++ {
			err := run(w.lab.Inject(lab.Fault{Nth: n, Do: do}))
			if names := w.lab.Machines(); len(names) != 1 {
				t.Fatalf("%s at call %d (%v): machines %v", name, n, err, names)
			}
		}
	}
}

func TestCleaningDropsTheOldMachine(t *testing.T) {
	for key, drop := range map[string]bool{"nvram": true, "scsi0:0.ctkEnabled": true, "ctkEnabled": true, "migrate.hostLog": true, "sched.swap.derivedName": true, "SET.guest.x": true, "vmkeep.restored": true,
		"disk.EnableUUID": false, "ethernet0.pciSlotNumber": false, "scsi0.pciSlotNumber": false, "guestinfo.userdata": false, "pciBridge0.present": false, "isolation.tools.copy.disable": false} {
		if droppedExtra(key) != drop {
			t.Errorf("%s: dropped is %v", key, !drop)
		}
	}
}

// Devices that stand for something of the old host are left out, each with a note.
func TestForeignDevicesAreLeftOutWithANote(t *testing.T) {
	w := start(t, lab.Options{Machines: []lab.Machine{original()}})
	s, spec := w.saved("web")
	ci, err := decodeConfig(s.ConfigInfo)
	must(t, err)
	label := func(s string) types.VirtualDevice {
		return types.VirtualDevice{Key: int32(20000 + len(s)), DeviceInfo: &types.Description{Label: s}}
	}
	ci.Hardware.Device = append(ci.Hardware.Device,
		&types.VirtualTPM{VirtualDevice: label("the TPM")}, &types.VirtualPCIPassthrough{VirtualDevice: label("the GPU of it")}, &types.VirtualSerialPort{VirtualDevice: label("serial")},
		&types.VirtualUSB{VirtualDevice: label("the stick")}, &types.VirtualSriovEthernetCard{VirtualEthernetCard: types.VirtualEthernetCard{VirtualDevice: label("sriov nic")}})
	ci.KeyId = &types.CryptoKeyId{KeyId: "k"}
	ci.ManagedBy = &types.ManagedByInfo{ExtensionKey: "com.example"}
	spec.ConfigInfo, err = encodeConfig(ci)
	must(t, err)
	spec.Operation = w.begin()
	p := w.plan(spec)
	if len(p.Problems) > 0 {
		t.Fatal(p.Problems)
	}
	notes := strings.Join(p.Notes, "\n")
	for _, want := range []string{"the TPM", "the GPU of it", "serial", "the stick", "sriov nic", "encrypted", "com.example"} {
		if !strings.Contains(notes, want) {
			t.Errorf("no note about %s in\n%s", want, notes)
		}
	}
	_, err = w.c.CreateMachine(w.ctx, p, noFill)
	must(t, err)
}
