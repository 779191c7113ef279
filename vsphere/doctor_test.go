package vsphere

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/vmware/govmomi/vim25/types"

	"github.com/vmkeep/vmkeep/vsphere/lab"
)

func finding(t *testing.T, list []Finding, name string) Finding {
	t.Helper()
	for _, f := range list {
		if f.Name == name {
			return f
		}
	}
	t.Fatalf("no finding %q in %+v", name, list)
	return Finding{}
}

func TestDoctor(t *testing.T) {
	w := start(t, lab.Options{Machines: []lab.Machine{{Name: "fine", Tracking: true}, {Name: "bare", NoTools: true, Tracking: true}, {Name: "snapped"}, {Name: "old", Hardware: 4},
		{Name: "odd", Tracking: true, Disks: []lab.Disk{{Size: mib, Mode: "independent_persistent"}}}},
		Users: []lab.User{{Name: "weak", Password: password, Privileges: []string{"VirtualMachine.State.CreateSnapshot"}}}})
	_, err := w.lab.Machine("snapped").Snapshot("theirs")
	must(t, err)
	must(t, w.lab.SetFreeSpace("ds2", mib))
	w.orphan(w.j, "fine")
	list := w.c.Doctor(w.ctx, w.j)
	for name, want := range map[string]struct {
		ok   bool
		says string
	}{
		"vSphere session": {true, "vCenter"}, "clock": {true, "differs"}, "machines": {true, "5"}, "VMware Tools": {false, "/dc1/vm/bare"}, "change tracking": {false, "/dc1/vm/snapped"},
		"hardware version": {false, "/dc1/vm/old"}, "unprotected disks": {false, "/dc1/vm/odd scsi0-0"}, "consolidation": {true, ""}, "datastore ds1": {true, "GiB"}, "datastore ds2": {false, "GiB"},
		"privileges for backup": {true, ""}, "privileges for restore": {true, ""}, "leftovers": {false, "/dc1/vm/fine"},
	} {
		f := finding(t, list, name)
		if f.OK != want.ok || !strings.Contains(f.Detail, want.says) || (f.Remedy == "") != f.OK {
			t.Errorf("%+v", f)
		}
	}
	if w.lab.Machine("fine").SnapshotCount() != 1 {
		t.Error("doctor changed something")
	}
	must(t, w.lab.Machine("fine").RemoveSnapshot(types.ManagedObjectReference{Type: "VirtualMachineSnapshot", Value: w.state(w.find("fine")).SnapshotTree[0].ID}))
}

func TestMissingPrivileges(t *testing.T) {
	w := start(t, lab.Options{Machines: []lab.Machine{{Name: "web"}}, Users: []lab.User{
		{Name: "weak", Password: password, Privileges: []string{"VirtualMachine.State.CreateSnapshot"}},
		{Name: "backup", Password: password, Privileges: RoleIDs(BackupPrivileges())}}})
	weak := w.dial(Config{Username: "weak"})
	missing, err := weak.MissingPrivileges(w.ctx, BackupPrivileges(), nil)
	must(t, err)
	lacks := func(id string) bool {
		for _, m := range missing {
			if m.ID == id && len(m.Objects) > 0 && m.Why != "" {
				return true
			}
		}
		return false
	}
	if lacks("VirtualMachine.State.CreateSnapshot") || !lacks("VirtualMachine.State.RemoveSnapshot") || !lacks("Datastore.Browse") || lacks("System.Read") {
		t.Errorf("%+v", missing)
	}
	f := finding(t, weak.Doctor(w.ctx, nil), "privileges for backup")
	if f.OK || !strings.Contains(f.Detail, "VirtualMachine.State.RemoveSnapshot") || !strings.Contains(f.Remedy, "govc role.create vmkeep-backup ") {
		t.Errorf("%+v", f)
	}
	if missing, err = w.dial(Config{Username: "backup"}).MissingPrivileges(w.ctx, BackupPrivileges(), []string{w.find("web").ID()}); err != nil || len(missing) > 0 {
		t.Errorf("%+v %v", missing, err)
	}
}

// To hot-add a disk the role of the proxy is needed besides that of backups, and is enough.
func TestProxyRoleSuffices(t *testing.T) {
	both := append(BackupPrivileges(), ProxyPrivileges()...)
	w := start(t, lab.Options{Machines: []lab.Machine{{Name: "web"}, {Name: "proxy"}}, Users: []lab.User{
		{Name: "backup", Password: password, Privileges: RoleIDs(BackupPrivileges())}, {Name: "both", Password: password, Privileges: RoleIDs(both)}}})
	for user, want := range map[string]error{"backup": ErrPermission, "both": nil} {
		w.c = w.dial(Config{Username: user})
		op := w.begin()
		_, err := w.find("web").WithSnapshot(w.ctx, SnapshotOptions{Operation: op}, func(ctx context.Context, s *Snapshot) error {
			return w.find("proxy").WithAttached(ctx, op, s.Disks()[0].Path, func(context.Context, Disk) error { return nil })
		})
		if !errors.Is(err, want) {
			t.Errorf("%s: %v", user, err)
		}
	}
	w.clean("web", "proxy")
}

// The role for backups is enough for everything a backup does, and the one for restores for everything a restore does.
func TestRolesSuffice(t *testing.T) {
	w := start(t, lab.Options{Machines: []lab.Machine{{Name: "web", Host: "esx5"}}, Users: []lab.User{
		{Name: "backup", Password: password, Privileges: RoleIDs(BackupPrivileges())}, {Name: "restore", Password: password, Privileges: RoleIDs(RestorePrivileges())}}})
	w.c = w.dial(Config{Username: "backup"})
	v := w.find("web")
	_, err := v.EnableCBT(w.ctx, w.begin())
	must(t, err)
	w.changeIDs(v)
	_, err = v.ReadTicket(w.ctx, v.Machine().Disks[0].Key)
	must(t, err)
	var vmx strings.Builder
	if _, err = v.Download(w.ctx, w.state(v).VMX, &vmx); err != nil || vmx.Len() == 0 {
		t.Errorf("vmx: %q %v", vmx.String(), err)
	}
	protected, err := v.WithRelocationDisabled(w.ctx, w.begin(), func(ctx context.Context) error { return nil })
	if err != nil || !protected {
		t.Errorf("relocation: %v %v", protected, err)
	}
	_, spec := w.saved("web")
	w.c = w.dial(Config{Username: "restore"})
	spec.Operation = w.begin()
	made, err := w.c.CreateMachine(w.ctx, w.plan(spec), func(ctx context.Context, v *VM) error {
		_, err := v.WriteTicket(ctx, v.Machine().Disks[0].Key)
		return err
	})
	must(t, err)
	_, err = made.WithNewDisk(w.ctx, DiskSpec{Operation: w.begin(), Place: "scsi0:0", Replace: true, Capacity: mib}, func(context.Context, Disk) error { return nil })
	must(t, err)
	must(t, made.UploadNVRAM(w.ctx, []byte("x")))
	must(t, made.PowerOn(w.ctx))
	must(t, made.PowerOff(w.ctx))
	must(t, made.Destroy(w.ctx))
}

func TestRolesAreExact(t *testing.T) {
	ids := RoleIDs(BackupPrivileges())
	for i, id := range ids {
		if strings.HasPrefix(id, "System.") || i > 0 && id <= ids[i-1] {
			t.Errorf("%v", ids)
		}
	}
	for _, p := range append(BackupPrivileges(), RestorePrivileges()...) {
		if p.Why == "" || p.On == "" {
			t.Errorf("%+v", p)
		}
	}
}
