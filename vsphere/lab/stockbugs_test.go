package lab_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vmkeep/vmkeep/vsphere/lab"
)

// What stock vcsim v0.56.0 does wrong (spec section 1) must not destroy what the lab keeps. One test per bug.

// Stock: removing one of two snapshots deletes disk1.vmdk or vmware.log.
func TestRemovalDeletesNoOtherFile(t *testing.T) {
	b := start(t, lab.Options{Machines: []lab.Machine{oneDisk("web")}})
	dir := filepath.Join(b.lab.Dir(), "ds1", "web")
	before, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	s1, s2 := b.snapshot(b.vm("web"), "s1"), b.snapshot(b.vm("web"), "s2")
	b.remove(s1)
	b.remove(s2)
	after, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	list := func(es []os.DirEntry) string {
		var s []string
		for _, e := range es {
			s = append(s, e.Name())
		}
		return strings.Join(s, " ")
	}
	if list(before) != list(after) {
		t.Errorf("files before: %s\nafter: %s", list(before), list(after))
	}
}

// Stock: an unknown datastore kills the process, an unknown network panics and leaves the machine locked.
func TestUnknownNamesAreFaults(t *testing.T) {
	b := start(t, lab.Options{Machines: []lab.Machine{oneDisk("web")}})
	dc, err := b.finder.DefaultDatacenter(b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	folders, err := dc.Folders(b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	pool, err := b.finder.ResourcePool(b.ctx, "cluster1/Resources")
	if err != nil {
		t.Fatal(err)
	}
	spec := types.VirtualMachineConfigSpec{Name: "x", Files: &types.VirtualMachineFileInfo{VmPathName: "[nowhere]"}}
	if _, err := b.wait(folders.VmFolder.CreateVM(b.ctx, spec, pool, nil)); !fault.Is(err, &types.InvalidDatastorePath{}) {
		t.Errorf("unknown datastore: %v", err)
	}
	spec.Files.VmPathName = "not a path"
	if _, err := b.wait(folders.VmFolder.CreateVM(b.ctx, spec, pool, nil)); !fault.Is(err, &types.InvalidDatastorePath{}) {
		t.Errorf("no path: %v", err)
	}
	spec.Files.VmPathName = "[ds1] ../../etc/x.vmx"
	if _, err := b.wait(folders.VmFolder.CreateVM(b.ctx, spec, pool, nil)); !fault.Is(err, &types.InvalidDatastorePath{}) {
		t.Errorf("path out of the datastore: %v", err)
	}
	reconfigure := func(d types.BaseVirtualDevice, op types.VirtualDeviceConfigSpecFileOperation) error {
		_, err := b.wait(b.vm("web").Reconfigure(b.ctx, types.VirtualMachineConfigSpec{DeviceChange: []types.BaseVirtualDeviceConfigSpec{
			&types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationAdd, FileOperation: op, Device: d}}}))
		return err
	}
	disk := func(path string) *types.VirtualDisk {
		d := &types.VirtualDisk{CapacityInKB: 1024}
		d.ControllerKey, d.Key = 1000, -1
		d.Backing = &types.VirtualDiskFlatVer2BackingInfo{VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: path}}
		return d
	}
	const create = types.VirtualDeviceConfigSpecFileOperationCreate
	if err := reconfigure(disk("[nowhere] a/a.vmdk"), create); !fault.Is(err, &types.InvalidDatastorePath{}) {
		t.Errorf("disk on an unknown datastore: %v", err)
	}
	if err := reconfigure(disk("[ds1] web/missing.vmdk"), ""); !fault.Is(err, &types.FileNotFound{}) {
		t.Errorf("disk that is not there: %v", err)
	}
	if err := reconfigure(disk("[ds1] web/web.vmdk"), create); !fault.Is(err, &types.FileAlreadyExists{}) {
		t.Errorf("disk that is there: %v", err)
	}
	nic := &types.VirtualVmxnet3{}
	nic.Backing = &types.VirtualEthernetCardNetworkBackingInfo{VirtualDeviceDeviceBackingInfo: types.VirtualDeviceDeviceBackingInfo{DeviceName: "nowhere"}}
	if err := reconfigure(nic, ""); err == nil {
		t.Error("unknown network was accepted")
	}
	noController := disk("")
	noController.ControllerKey = 4711
	if err := reconfigure(noController, create); err == nil {
		t.Error("disk without a controller was accepted")
	}
	// nothing of that left the machine locked or changed
	if n := len(b.disks(b.vm("web").Reference())); n != 1 {
		t.Errorf("%d disks", n)
	}
	b.remove(b.snapshot(b.vm("web"), "still works"))
}

// Stock: a failed edit has already cut the device out of the machine, for it works in place.
func TestFailedEditChangesNothing(t *testing.T) {
	b := start(t, lab.Options{Machines: []lab.Machine{oneDisk("web")}})
	d := b.disks(b.vm("web").Reference())[0]
	d.CapacityInBytes, d.CapacityInKB = mib, 1024
	_, err := b.wait(b.vm("web").Reconfigure(b.ctx, types.VirtualMachineConfigSpec{DeviceChange: []types.BaseVirtualDeviceConfigSpec{
		&types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationEdit, Device: d}}}))
	if err == nil {
		t.Fatal("the disk shrank")
	}
	if got := b.disks(b.vm("web").Reference()); len(got) != 1 || got[0].CapacityInBytes != 8*mib {
		t.Errorf("disks %+v", got)
	}
}

// Stock: Destroy deletes the machine's directory with all that is in it, and leaves disks that lie elsewhere.
func TestDestroyTakesItsOwnFilesOnly(t *testing.T) {
	b := start(t, lab.Options{Machines: []lab.Machine{
		{Name: "web", Disks: []lab.Disk{{Size: mib}, {Size: mib, Datastore: "ds2"}, {Size: mib}}}, oneDisk("other")}})
	web := b.lab.Machine("web")
	if err := web.RemoveDisk(2002); err != nil { // its file stays in the directory
		t.Fatal(err)
	}
	if err := b.lab.Machine("web").Destroy(); err == nil {
		t.Error("a running machine was destroyed")
	}
	b.snapshot(b.vm("web"), "s")
	if err := web.PowerOff(); err != nil {
		t.Fatal(err)
	}
	if err := web.Destroy(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.lab.Lookup("web"); err == nil {
		t.Error("the machine is still there")
	}
	var left []string
	for _, ds := range []string{"ds1/web", "ds2/web"} {
		es, _ := os.ReadDir(filepath.Join(b.lab.Dir(), ds))
		for _, e := range es {
			left = append(left, ds+"/"+e.Name())
		}
	}
	if got := strings.Join(left, " "); got != "ds1/web/web_1-flat.vmdk ds1/web/web_1.vmdk" {
		t.Errorf("left: %s", got)
	}
	if len(b.lab.Links()) != 2 {
		t.Errorf("links %v", b.lab.Links())
	}
}

// Stock: a task holds the machine's lock, so that nobody reads its properties during a slow snapshot.
func TestPropertiesAreReadableDuringTasks(t *testing.T) {
	b := start(t, lab.Options{Machines: []lab.Machine{oneDisk("web")}})
	for _, inTask := range []bool{false, true} {
		if err := b.lab.Machine("web").SetFaults(lab.MachineFaults{TaskDelay: map[string]time.Duration{"createSnapshot": 300 * time.Millisecond}, TaskInProgressInTask: inTask}); err != nil {
			t.Fatal(err)
		}
		slow, err := b.vm("web").CreateSnapshot(b.ctx, "slow", "", false, false)
		if err != nil {
			t.Fatal(err)
		}
		var info mo.Task
		var m mo.VirtualMachine
		b.props(b.vm("web").Reference(), &m, "name", "config.hardware.device")
		b.props(slow.Reference(), &info, "info")
		if info.Info.State != types.TaskInfoStateRunning || info.Info.DescriptionId != "VirtualMachine.createSnapshot" || *info.Info.Entity != b.vm("web").Reference() {
			t.Errorf("the properties came after the task: %+v", info.Info)
		}
		second, err := b.vm("web").CreateSnapshot(b.ctx, "second", "", false, false)
		if inTask != (err == nil) {
			t.Errorf("TaskInProgress in the task: wanted %v, call says %v", inTask, err)
		}
		if err == nil {
			err = second.Wait(b.ctx)
		}
		if !fault.Is(err, &types.TaskInProgress{}) || !fault.IsTransientError(err) {
			t.Errorf("second task: %v", err)
		}
		b.remove(b.must(slow, nil).Result.(moref))
	}
}

// Stock: RegisterVM ignores the .vmx and gives a machine without disks.
func TestRegisteredMachineIsWhatItsFileSays(t *testing.T) {
	b := start(t, lab.Options{Machines: []lab.Machine{{Name: "web", Tracking: true, Network: "net1", Annotation: "two\nlines \"quoted\"",
		Disks: []lab.Disk{{Size: mib}, {Size: mib, Controller: "sata"}, {Size: mib, Controller: "nvme", Datastore: "ds2"}, {Size: mib, Mode: "independent_persistent"}}}}})
	vm := b.vm("web")
	var before, after mo.VirtualMachine
	b.props(vm.Reference(), &before, "config", "resourcePool", "parent")
	keys := map[int32][]byte{}
	for i, d := range b.disks(vm.Reference()) {
		b.guest("web", d.Key, uint64(i), 100, 5000)
		keys[d.Key] = b.live("web", d.Key)
	}
	snap := b.snapshot(vm, "s")
	id := flat(b.disks(snap)[0]).ChangeId
	b.remove(snap)
	if err := vm.Unregister(b.ctx); err == nil {
		t.Error("a running machine was unregistered")
	}
	b.must(vm.PowerOff(b.ctx))
	if err := vm.Unregister(b.ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := b.lab.Lookup("web"); err == nil {
		t.Fatal("still registered")
	}
	folder := object.NewFolder(b.vim, *before.Parent)
	pool := object.NewResourcePool(b.vim, *before.ResourcePool)
	again := b.must(folder.RegisterVM(b.ctx, before.Config.Files.VmPathName, "", false, pool, nil)).Result.(moref)
	b.props(again, &after, "config", "name")
	if after.Name != "web" || after.Config.InstanceUuid != before.Config.InstanceUuid || after.Config.Uuid != before.Config.Uuid ||
		after.Config.Annotation != before.Config.Annotation || after.Config.Version != before.Config.Version {
		t.Errorf("registered %q %s %s %q", after.Name, after.Config.InstanceUuid, after.Config.Uuid, after.Config.Annotation)
	}
	for key, want := range keys {
		if !bytes.Equal(b.live("web", key), want) {
			t.Errorf("disk %d differs", key)
		}
	}
	if len(b.disks(again)) != len(keys) {
		t.Errorf("%d disks", len(b.disks(again)))
	}
	s2 := b.snapshot(b.vm("web"), "s")
	if _, _, err := b.changed(again, &s2, b.disks(s2)[0], id); err != nil {
		t.Errorf("tracking did not survive: %v", err)
	}
	if _, err := b.wait(folder.RegisterVM(b.ctx, "[ds1] nothing/x.vmx", "", false, pool, nil)); !fault.Is(err, &types.FileNotFound{}) {
		t.Errorf("no such file: %v", err)
	}
}

// Stock: clones have empty disks, relocation moves no file.
func TestCloneAndRelocateTakeContentAlong(t *testing.T) {
	b := start(t, lab.Options{Machines: []lab.Machine{oneDisk("web")}})
	vm := b.vm("web")
	b.guest("web", 2000, 1, 0, 100_000)
	s1 := b.snapshot(vm, "s1")
	frozen := b.live("web", 2000)
	b.guest("web", 2000, 2, mib, 100_000)
	now := b.live("web", 2000)

	var m mo.VirtualMachine
	b.props(vm.Reference(), &m, "parent")
	folder := object.NewFolder(b.vim, *m.Parent)
	clone := func(name string, snap *moref) moref {
		return b.must(vm.Clone(b.ctx, folder, name, types.VirtualMachineCloneSpec{Snapshot: snap, Location: types.VirtualMachineRelocateSpec{}})).Result.(moref)
	}
	c1, c2 := clone("copy", nil), clone("copy of the snapshot", &s1)
	if !bytes.Equal(b.live("copy", 2000), now) || !bytes.Equal(b.live("copy of the snapshot", 2000), frozen) {
		t.Error("clones differ from their sources")
	}
	if a, c := flat(b.disks(vm.Reference())[0]).Uuid, flat(b.disks(c1)[0]).Uuid; a == c || c == "" {
		t.Error("the clone's disk has no uuid of its own")
	}
	_ = c2
	if _, err := b.wait(vm.Clone(b.ctx, folder, "copy", types.VirtualMachineCloneSpec{})); !fault.Is(err, &types.DuplicateName{}) {
		t.Errorf("same name: %v", err)
	}

	if err := b.lab.Machine("web").Migrate("esx4", "ds3"); err != nil {
		t.Fatal(err)
	}
	var after mo.VirtualMachine
	b.props(vm.Reference(), &after, "config.files", "datastore", "runtime.host", "resourcePool")
	if after.Config.Files.VmPathName != "[ds3] web/web.vmx" {
		t.Errorf("home is %s", after.Config.Files.VmPathName)
	}
	live, old := flat(b.disks(vm.Reference())[0]), flat(b.disks(s1)[0])
	if live.FileName != "[ds3] web/web-000001.vmdk" || live.Parent.FileName != "[ds3] web/web.vmdk" || old.FileName != "[ds3] web/web.vmdk" {
		t.Errorf("disks are %s on %s, snapshot %s", live.FileName, live.Parent.FileName, old.FileName)
	}
	if !bytes.Equal(b.live("web", 2000), now) || !bytes.Equal(b.link(old.FileName), frozen) {
		t.Error("migration changed content")
	}
	if es, err := os.ReadDir(filepath.Join(b.lab.Dir(), "ds1", "web")); err == nil {
		t.Errorf("left behind: %v", es)
	}
	b.remove(s1)
	if !bytes.Equal(b.live("web", 2000), now) {
		t.Error("removal after migration changed content")
	}
}

// Stock: QueryVirtualDisk... and friends know names only.
func TestDisksWithoutMachine(t *testing.T) {
	b := start(t, lab.Options{Machines: []lab.Machine{oneDisk("web")}})
	dc, err := b.finder.DefaultDatacenter(b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	b.guest("web", 2000, 1, 0, 100_000)
	want := b.live("web", 2000)
	m := object.NewVirtualDiskManager(b.vim)
	b.must(m.CopyVirtualDisk(b.ctx, "[ds1] web/web.vmdk", dc, "[ds2] copies/a.vmdk", dc, nil, false))
	b.must(m.MoveVirtualDisk(b.ctx, "[ds2] copies/a.vmdk", dc, "[ds3] moved/a.vmdk", dc, false))
	if !bytes.Equal(b.link("[ds3] moved/a.vmdk"), want) {
		t.Error("the copy differs")
	}
	if _, err := b.wait(m.DeleteVirtualDisk(b.ctx, "[ds1] web/web.vmdk", dc)); !fault.Is(err, &types.FileLocked{}) {
		t.Errorf("a running machine's disk: %v", err)
	}
	b.must(m.DeleteVirtualDisk(b.ctx, "[ds3] moved/a.vmdk", dc))
	b.must(m.CreateVirtualDisk(b.ctx, "[ds3] moved/b.vmdk", dc, &types.FileBackedVirtualDiskSpec{
		VirtualDiskSpec: types.VirtualDiskSpec{DiskType: "thin", AdapterType: "lsiLogic"}, CapacityKb: 1024}))
	files := object.NewFileManager(b.vim)
	if _, err := b.wait(files.DeleteDatastoreFile(b.ctx, "[ds1] web", dc)); !fault.Is(err, &types.FileLocked{}) {
		t.Errorf("a running machine's directory: %v", err)
	}
	b.must(files.DeleteDatastoreFile(b.ctx, "[ds3] moved", dc))
	if len(b.lab.Links()) != 1 {
		t.Errorf("links %v", b.lab.Links())
	}
	res, err := methods.CurrentTime(b.ctx, b.vim, &types.CurrentTime{This: moref{Type: "ServiceInstance", Value: "ServiceInstance"}})
	if err != nil || res.Returnval.IsZero() {
		t.Error(err)
	}
}
