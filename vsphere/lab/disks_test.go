package lab_test

import (
	"bytes"
	"os"
	"slices"
	"syscall"
	"testing"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vmkeep/vmkeep/vsphere/lab"
)

func allocatedBytes(t *testing.T, file string) int64 {
	t.Helper()
	st, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	return st.Sys().(*syscall.Stat_t).Blocks * 512
}

func TestDeviceKeys(t *testing.T) {
	two := int32(2)
	b := start(t, lab.Options{Machines: []lab.Machine{{Name: "all", Network: "net1", Disks: []lab.Disk{
		{Size: mib}, {Size: mib}, {Size: mib, Controller: "lsilogic", Bus: 1}, {Size: mib, Controller: "lsilogic", Bus: 1, Unit: &two},
		{Size: mib, Controller: "sata"}, {Size: mib, Controller: "nvme"}, {Size: mib, Controller: "ide", Bus: 1},
		{Size: mib, Controller: "lsilogic-sas", Bus: 2, Thick: true, Datastore: "ds2"},
	}}}})
	var m mo.VirtualMachine
	b.props(b.vm("all").Reference(), &m, "config", "capability", "summary")
	devices := object.VirtualDeviceList(m.Config.Hardware.Device)
	var keys []int32
	uuids := map[string]bool{}
	for _, d := range b.disks(b.vm("all").Reference()) {
		keys = append(keys, d.Key)
		uuids[flat(d).Uuid] = true
		c := devices.FindByKey(d.ControllerKey)
		if c == nil || !slices.Contains(c.(types.BaseVirtualController).GetVirtualController().Device, d.Key) {
			t.Errorf("disk %d is not on its controller %d", d.Key, d.ControllerKey)
		}
		if d.DiskObjectId == "" || d.CapacityInBytes != mib {
			t.Errorf("disk %d: %+v", d.Key, d)
		}
	}
	slices.Sort(keys)
	if want := []int32{2000, 2001, 2016, 2018, 2032, 3002, 16000, 32000}; !slices.Equal(keys, want) {
		t.Errorf("disk keys %v, want %v", keys, want)
	}
	if len(uuids) != len(keys) {
		t.Errorf("%d uuids for %d disks", len(uuids), len(keys))
	}
	for _, k := range []int32{200, 201, 1000, 1001, 1002, 15000, 31000, 4000} {
		if devices.FindByKey(k) == nil {
			t.Errorf("no device %d", k)
		}
	}
	if !m.Capability.SnapshotOperationsSupported || !m.Capability.QuiescedSnapshotsSupported || !m.Capability.ChangeTrackingSupported {
		t.Error("capabilities")
	}
	if !bytes.HasPrefix([]byte(m.Config.InstanceUuid), []byte("50")) || m.Config.Version != "vmx-19" {
		t.Errorf("instanceUuid %s, %s", m.Config.InstanceUuid, m.Config.Version)
	}
	for key, dir := range map[int32]string{2032: "[ds2] all/", 2000: "[ds1] all/"} {
		for _, d := range b.disks(b.vm("all").Reference()) {
			if d.Key == key && !bytes.HasPrefix([]byte(flat(d).FileName), []byte(dir)) {
				t.Errorf("disk %d lies in %s", key, flat(d).FileName)
			}
		}
	}
}

func TestDisksComeAndGo(t *testing.T) {
	b := start(t, lab.Options{Machines: []lab.Machine{oneDisk("web"), oneDisk("other")}})
	web := b.lab.Machine("web")
	key, err := web.AddDisk(lab.Disk{Size: 2 * mib})
	if err != nil || key != 2001 {
		t.Fatalf("added disk %d, %v", key, err)
	}
	b.guest("web", key, 3, 1000, 50_000)
	content := b.live("web", key)
	if err := web.Grow(key, 3*mib); err != nil {
		t.Fatal(err)
	}
	content = append(content, make([]byte, mib)...)
	if !bytes.Equal(b.live("web", key), content) {
		t.Error("growing changed the content")
	}
	if err := web.Grow(key, mib); err == nil {
		t.Error("a disk shrank")
	}
	if !bytes.Equal(b.live("web", key), content) {
		t.Error("the refused change took effect")
	}
	disk := b.disks(web.Ref())[1]

	if err := web.RemoveDisk(key); err != nil {
		t.Fatal(err)
	}
	if n := len(b.disks(web.Ref())); n != 1 {
		t.Fatalf("%d disks left", n)
	}
	// attach it to the other machine, by path alone
	attach := &types.VirtualDisk{}
	attach.Key, attach.ControllerKey = -1, 1000
	attach.Backing = &types.VirtualDiskFlatVer2BackingInfo{VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: flat(disk).FileName}}
	b.must(b.vm("other").Reconfigure(b.ctx, types.VirtualMachineConfigSpec{DeviceChange: []types.BaseVirtualDeviceConfigSpec{
		&types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationAdd, Device: attach}}}))
	there := b.disks(b.vm("other").Reference())[1]
	if there.CapacityInBytes != 3*mib || !bytes.Equal(b.live("other", there.Key), content) {
		t.Errorf("attached: %d bytes, content equal: %v", there.CapacityInBytes, bytes.Equal(b.live("other", there.Key), content))
	}
	// and destroy it
	file, err := b.lab.Machine("other").DiskPath(there.Key)
	if err != nil {
		t.Fatal(err)
	}
	b.must(b.vm("other").Reconfigure(b.ctx, types.VirtualMachineConfigSpec{DeviceChange: []types.BaseVirtualDeviceConfigSpec{
		&types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationRemove, FileOperation: types.VirtualDeviceConfigSpecFileOperationDestroy, Device: there}}}))
	if _, err := os.Stat(file); !os.IsNotExist(err) {
		t.Errorf("the destroyed disk's file: %v", err)
	}
	snap := b.snapshot(b.vm("web"), "s")
	if err := web.Grow(2000, 9*mib); err == nil {
		t.Error("a disk with snapshots grew")
	}
	b.remove(snap)
}

func TestCreateMachine(t *testing.T) {
	b := start(t, lab.Options{Machines: []lab.Machine{oneDisk("web")}})
	dc, err := b.finder.DefaultDatacenter(b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	folders, err := dc.Folders(b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	pool, err := b.finder.ResourcePool(b.ctx, "cluster1/Resources/gold")
	if err != nil {
		t.Fatal(err)
	}
	var web mo.VirtualMachine
	b.props(b.vm("web").Reference(), &web, "config")
	spec := func(name, home string) types.VirtualMachineConfigSpec {
		var l object.VirtualDeviceList
		c, err := l.CreateSCSIController("pvscsi")
		if err != nil {
			t.Fatal(err)
		}
		l = append(l, c)
		d := l.CreateDisk(c.(types.BaseVirtualController), moref{}, "")
		d.CapacityInKB = 4096
		l = append(l, d)
		changes, err := l.ConfigSpec(types.VirtualDeviceConfigSpecOperationAdd)
		if err != nil {
			t.Fatal(err)
		}
		return types.VirtualMachineConfigSpec{Name: name, GuestId: "otherGuest", Version: "vmx-19", InstanceUuid: web.Config.InstanceUuid, Uuid: web.Config.Uuid,
			Files: &types.VirtualMachineFileInfo{VmPathName: home}, DeviceChange: changes}
	}
	made := b.must(folders.VmFolder.CreateVM(b.ctx, spec("new", "[ds2]"), pool, nil)).Result.(moref)
	var m mo.VirtualMachine
	b.props(made, &m, "config", "runtime", "resourcePool")
	disk := b.disks(made)[0]
	if disk.Key != 2000 || flat(disk).FileName != "[ds2] new/new.vmdk" || disk.CapacityInBytes != 4*mib {
		t.Errorf("disk %d %s %d", disk.Key, flat(disk).FileName, disk.CapacityInBytes)
	}
	if m.Config.InstanceUuid == web.Config.InstanceUuid {
		t.Error("two machines with one instanceUuid")
	}
	if m.Config.Uuid != web.Config.Uuid {
		t.Error("a bios uuid may repeat, this one was changed")
	}
	if *m.ResourcePool != pool.Reference() {
		t.Error("another pool")
	}
	full, err := b.lab.Machine("new").DiskPath(2000)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(full); err != nil || st.Size() != 4*mib {
		t.Errorf("flat file: %v, %v", st, err)
	}
	if _, err := b.wait(folders.VmFolder.CreateVM(b.ctx, spec("new", "[ds2]"), pool, nil)); !fault.Is(err, &types.DuplicateName{}) {
		t.Errorf("same name: %v", err)
	}
	if err := b.lab.SetFreeSpace("ds3", 1000); err != nil {
		t.Fatal(err)
	}
	if _, err := b.wait(folders.VmFolder.CreateVM(b.ctx, spec("thick", "[ds3]"), pool, nil)); err == nil {
		thick := b.lab.Machine("thick")
		t.Logf("thin disks may exceed the free space: %v", thick.Ref())
	}
	thickSpec := spec("fat", "[ds3]")
	thickSpec.DeviceChange[1].GetVirtualDeviceConfigSpec().Device.(*types.VirtualDisk).Backing.(*types.VirtualDiskFlatVer2BackingInfo).ThinProvisioned = types.NewBool(false)
	if _, err := b.wait(folders.VmFolder.CreateVM(b.ctx, thickSpec, pool, nil)); !fault.Is(err, &types.NoDiskSpace{}) {
		t.Errorf("thick disk on a full datastore: %v", err)
	}
}

// The keys a caller writes into a specification are only names in it.
func TestCallersKeysAreReplaced(t *testing.T) {
	b := start(t, lab.Options{Machines: []lab.Machine{oneDisk("web")}})
	c := &types.ParaVirtualSCSIController{}
	c.Key, c.BusNumber, c.SharedBus = 77, 1, types.VirtualSCSISharingNoSharing
	d := &types.VirtualDisk{CapacityInBytes: mib}
	d.Key, d.ControllerKey, d.UnitNumber = 78, 77, types.NewInt32(3)
	d.Backing = &types.VirtualDiskFlatVer2BackingInfo{ThinProvisioned: types.NewBool(true)}
	b.must(b.vm("web").Reconfigure(b.ctx, types.VirtualMachineConfigSpec{DeviceChange: []types.BaseVirtualDeviceConfigSpec{
		&types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationAdd, Device: c},
		&types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationAdd, Device: d, FileOperation: types.VirtualDeviceConfigSpecFileOperationCreate}}}))
	if got := b.disks(b.vm("web").Reference())[1]; got.Key != 2019 || got.ControllerKey != 1001 {
		t.Errorf("disk %d on controller %d", got.Key, got.ControllerKey)
	}
}
