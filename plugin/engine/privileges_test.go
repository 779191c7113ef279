package engine_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/vmware/govmomi/vim25/types"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/plugin/engine"
	"github.com/vmkeep/vmkeep/vsphere/lab"
)

// published are the privileges of the role that is printed for a task.
func published(t *testing.T, task string) []string {
	t.Helper()
	line, err := engine.Role(task)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(strings.ReplaceAll(line, "\\\n", " "))[3:] // govc role.create NAME ...
}

// enough are the privileges for a task in the way of this run.
func enough(t *testing.T, task string) []string {
	t.Helper()
	out := published(t, task)
	if chosen().transport == "hotadd" {
		out = append(out, published(t, "proxy")...)
	}
	return out
}

const accountPassword = "x"

// as lets the engine work with another account.
func (r *rig) as(user string) {
	r.t.Helper()
	c := r.config
	c.VSphere.Username, c.VSphere.Password = user, accountPassword
	r.must(r.Configure(r.t.Context(), c))
}

// estate is a vSphere with a machine for everything that the roles are about, and accounts with exactly these privileges.
func estate(t *testing.T, accounts map[string][]string) lab.Options {
	opt := lab.Options{Machines: []lab.Machine{
		{Name: "db", Host: "esx1", Network: "net1", Firmware: "efi", Disks: []lab.Disk{{Size: 1 << 20}}},
		{Name: "win", Host: "esx2", Guest: "windows2019srv_64Guest", Disks: []lab.Disk{{Size: 1 << 20}}},
		{Name: "cold", Host: "esx1", Off: true, Disks: []lab.Disk{{Size: 1 << 20}}},
	}}
	if chosen().transport == "nbdssl" {
		opt.Machines = append(opt.Machines, lab.Machine{Name: "vault", KeyProvider: "kms", Disks: []lab.Disk{{Size: 1 << 20, Encrypted: true}}})
	}
	for name, privileges := range accounts {
		opt.Users = append(opt.Users, lab.User{Name: name, Password: accountPassword, Privileges: privileges})
	}
	return opt
}

// With the published roles everything works, and doctor finds nothing missing.
func TestPublishedRolesAreEnough(t *testing.T) {
	r := newRig(t, estate(t, map[string][]string{"backup": enough(t, "backup"), "restore": enough(t, "restore")}))
	rng := seeded(91)
	r.as("backup")
	for _, m := range []string{"db", "win", "cold", "vault"} {
		if !slices.Contains(r.machines(), m) {
			continue
		}
		if m != "cold" {
			r.busy(rng, m)
		}
		r.point(m)
		if m != "cold" {
			r.busy(rng, m)
		}
		for _, d := range r.point(m).Disks {
			if !d.Incremental {
				t.Errorf("%s: the second point is full: %s", m, d.Reason)
			}
		}
		r.noTraces(m)
	}
	if p := r.backup("win", func(b *plugin.BackupRequest) { b.ResetCBT = true }); p.Consistency != plugin.ConsistencyApplication {
		t.Errorf("consistency %q", p.Consistency)
	}
	verified, err := r.Verify(t.Context(), plugin.VerifyRequest{Selection: plugin.Selection{Names: []string{"db"}}, Sample: 1}, r.note)
	r.must(err)
	if e := verified.Machines[0].Err; e != nil {
		r.must(e)
	}
	r.leavesASnapshot("db")
	if report, err := r.Recover(t.Context(), nil); err != nil || len(report.Undone) == 0 || len(report.Remaining) > 0 {
		t.Errorf("%+v %v", report, err)
	}
	if bad := r.bad(); len(bad) > 0 {
		t.Errorf("doctor for backups: %+v", bad)
	}

	r.as("restore")
	r.backup("db", nil)
	for _, req := range []plugin.RestoreRequest{
		{Machine: "db", Mode: plugin.RestoreNew, Target: plugin.Target{Name: "db2"}, PowerOn: true, Verify: true},
		{Machine: "cold", Mode: plugin.RestoreAttach},
		{Machine: "cold", Mode: plugin.RestoreAttach, Target: plugin.Target{Positions: map[string]string{"scsi0-0": "scsi0:0"}}},
		{Machine: "win", Mode: plugin.RestoreRollback, PowerOff: true, PowerOn: true},
		{Machine: "win", Mode: plugin.RestoreInPlace, PowerOff: true, PowerOn: true, Verify: true},
	} {
		report, err := r.Restore(t.Context(), req, r.note)
		r.must(err)
		if len(report.Notes) > 0 {
			t.Errorf("%s of %s: %+v", req.Mode, req.Machine, report.Notes)
		}
	}
	r.must(r.lab.Machine("db2").PowerOff()) // it has no VMware Tools
	if bad := r.bad(); len(bad) > 0 {
		t.Errorf("doctor for restores: %+v", bad)
	}
	for _, line := range r.told() {
		if strings.Contains(line, "privilege") || strings.Contains(line, "permission") {
			t.Error(line)
		}
	}
	r.journalIsEmpty()
}

// leavesASnapshot lets a backup leave its snapshot behind.
func (r *rig) leavesASnapshot(machine string) {
	r.t.Helper()
	vm := r.lab.Machine(machine)
	r.must(vm.SetFaults(lab.MachineFaults{RemoveSnapshot: &types.NoPermission{PrivilegeId: "nobody's"}}))
	if res := r.tryBackup(machine, nil); res.Err == nil || vm.SnapshotCount() != 1 {
		r.t.Fatalf("the snapshot did not stay: %v", res.Err)
	}
	r.must(vm.SetFaults(lab.MachineFaults{}))
}

// missed is what happens without a privilege.
type missed struct {
	order order
	soft  bool // it is done all the same, and told
	quiet bool // nor told: that it is not protected is nobody's business
}

// Every privilege of the published roles is needed: without it what needs it fails, or tells what is lost, by the name of
// the privilege; nothing is left; and doctor names it.
func TestEveryPublishedPrivilegeIsNeeded(t *testing.T) {
	backup := func(machine string) order {
		return order{Backup: &plugin.BackupRequest{Selection: plugin.Selection{Names: []string{machine}}}}
	}
	restore := func(machine string, mode plugin.RestoreMode, target plugin.Target) order {
		return order{Restore: &plugin.RestoreRequest{Machine: machine, Mode: mode, Target: target}}
	}
	fresh := restore("db", plugin.RestoreNew, plugin.Target{Name: "db2"})
	inPlaceOf := restore("cold", plugin.RestoreAttach, plugin.Target{Positions: map[string]string{"scsi0-0": "scsi0:0"}})
	off := restore("win", plugin.RestoreInPlace, plugin.Target{})
	off.Restore.PowerOff = true
	on := restore("db", plugin.RestoreNew, plugin.Target{Name: "db2"})
	on.Restore.PowerOn = true
	table := map[string]map[string]missed{
		"backup": {
			"Datastore.AllocateSpace":                    {order: backup("db")},
			"Datastore.Browse":                           {order: backup("db"), soft: true},
			"Datastore.FileManagement":                   {order: backup("db"), soft: true},
			"Global.DisableMethods":                      {order: backup("db"), soft: true, quiet: true},
			"Global.EnableMethods":                       {order: backup("db"), soft: true, quiet: true},
			"VirtualMachine.Config.ChangeTracking":       {order: backup("db"), soft: true},
			"VirtualMachine.Config.DiskLease":            {order: backup("db")},
			"VirtualMachine.Provisioning.DiskRandomRead": {order: backup("db")},
			"VirtualMachine.State.CreateSnapshot":        {order: backup("db")},
			"VirtualMachine.State.RemoveSnapshot":        {order: backup("db")},
		},
		"restore": {
			"Datastore.AllocateSpace":                      {order: fresh},
			"Datastore.Browse":                             {order: fresh, soft: true},
			"Datastore.FileManagement":                     {order: fresh, soft: true},
			"Network.Assign":                               {order: fresh},
			"Resource.AssignVMToPool":                      {order: fresh},
			"VirtualMachine.Config.AddExistingDisk":        {order: inPlaceOf},
			"VirtualMachine.Config.AddNewDisk":             {order: fresh},
			"VirtualMachine.Config.AdvancedConfig":         {order: fresh},
			"VirtualMachine.Config.Annotation":             {order: fresh},
			"VirtualMachine.Config.DiskLease":              {order: fresh},
			"VirtualMachine.Config.RemoveDisk":             {order: inPlaceOf},
			"VirtualMachine.Interact.PowerOff":             {order: off},
			"VirtualMachine.Interact.PowerOn":              {order: on},
			"VirtualMachine.Inventory.Create":              {order: fresh},
			"VirtualMachine.Inventory.Delete":              {order: fresh},
			"VirtualMachine.Provisioning.DiskRandomAccess": {order: fresh},
			"VirtualMachine.State.CreateSnapshot":          {order: restore("cold", plugin.RestoreRollback, plugin.Target{})},
			"VirtualMachine.State.RemoveSnapshot":          {order: restore("cold", plugin.RestoreRollback, plugin.Target{})},
		},
	}
	// Of these the lab does not know who asks for them: VMware's documents do not say either.
	untried := []string{"VirtualMachine.Provisioning.GetVmFiles"}
	if chosen().transport == "nbdssl" {
		table["backup"]["Cryptographer.Access"] = missed{order: backup("vault")}
	} else {
		untried = append(untried, "Cryptographer.Access")
	}
	// Nobody asks the account when the proxy opens a disk that was attached to it, nor when the fake library does.
	unasked := map[string][]string{}
	switch chosen().transport {
	case "vddk":
		unasked["restore"] = []string{"VirtualMachine.Config.DiskLease", "VirtualMachine.Provisioning.DiskRandomAccess"}
		fallthrough
	case "hotadd":
		unasked["backup"] = []string{"VirtualMachine.Config.DiskLease", "VirtualMachine.Provisioning.DiskRandomRead"}
	}
	for task, ids := range unasked {
		untried = append(untried, ids...)
		for _, id := range ids {
			delete(table[task], id)
		}
	}
	accounts := map[string][]string{}
	for task := range table {
		all := enough(t, task)
		for _, id := range all {
			accounts[task+" without "+id] = slices.DeleteFunc(slices.Clone(all), func(p string) bool { return p == id })
		}
	}
	r := newRig(t, estate(t, accounts))
	for _, m := range r.machines() {
		r.point(m)
	}
	machines := r.machines()
	slices.Sort(machines)
	untracked := false
	for task, needs := range table {
		for _, id := range published(t, task) {
			m, known := needs[id]
			if inBackup := task == "restore" && slices.Contains(published(t, "backup"), id); !known && (inBackup || slices.Contains(untried, id)) {
				continue
			}
			if !known {
				t.Errorf("nothing tells why %s needs %s", task, id)
				continue
			}
			r.must(r.lab.Machine("db").Reconfigure(types.VirtualMachineConfigSpec{ChangeTrackingEnabled: &untracked}))
			r.as(task + " without " + id)
			r.events = nil
			err := m.order.doTelling(r, r.note)
			switch {
			case !m.soft:
				failsWith(t, err, plugin.CodePermission, id)
			case err != nil:
				t.Errorf("%s without %s fails: %v", task, id, err)
			case !m.quiet && !says(r.told(), id):
				t.Errorf("%s without %s does not tell: %q", task, id, r.told())
			}
			found := false
			findings, err := r.Doctor(t.Context())
			r.must(err)
			for _, f := range findings {
				found = found || strings.HasPrefix(f.Name, "privileges for ") && strings.Contains(f.Detail, id)
			}
			if !found {
				t.Errorf("doctor does not name %s: %+v", id, findings)
			}
			if slices.Contains(r.machines(), "db2") {
				if id != "VirtualMachine.Interact.PowerOn" && !m.soft {
					t.Errorf("without %s half a machine is left", id)
				}
				_ = r.lab.Machine("db2").PowerOff()
				r.must(r.lab.Machine("db2").Destroy())
			}
			_ = r.lab.Machine("win").PowerOn()
			r.noTraces(machines...)
			r.journalIsEmpty()
			if t.Failed() {
				t.Fatalf("%s without %s", task, id)
			}
		}
	}
}
