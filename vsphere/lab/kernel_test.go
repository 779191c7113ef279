package lab_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmware/govmomi/vim25/types"

	"github.com/vmkeep/vmkeep/vddk"
	"github.com/vmkeep/vmkeep/vsphere/lab"
)

// A disk that is attached to a machine with a kernel is there as Linux shows it, with what its link holds, until it is
// detached; the machine that it belongs to notices nothing, and its changes are tracked on.
func TestKernelShowsAttachedDisks(t *testing.T) {
	dir := t.TempDir()
	b := start(t, lab.Options{Machines: []lab.Machine{
		{Name: "web", Tracking: true, Disks: []lab.Disk{{Size: 4 * mib}}},
		{Name: "proxy", Kernel: dir, Disks: []lab.Disk{{Size: mib}}},
	}})
	shown := func() string {
		t.Helper()
		entries, err := os.ReadDir(filepath.Join(dir, "sys/block"))
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return strings.Join(names, " ")
	}
	read := func(name string) string {
		t.Helper()
		p, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(p))
	}
	if id := b.vm("proxy").UUID(b.ctx); read("sys/class/dmi/id/product_uuid") != id || shown() != "sda" {
		t.Fatalf("the kernel shows %q of machine %s, want %s", shown(), read("sys/class/dmi/id/product_uuid"), id)
	}
	web := b.vm("web")
	b.guest("web", 2000, 1, 5, 300_000)
	for depth := range 2 { // the frozen link is a base, and a delta
		snap := b.snapshot(web, "s")
		frozen := b.disks(snap)[0]
		path := flat(frozen).FileName
		b.guest("web", 2000, 7, 2*mib, 1000) // not for the frozen link
		disk := &types.VirtualDisk{}
		disk.ControllerKey, disk.UnitNumber = 1000, types.NewInt32(3)
		disk.Backing = &types.VirtualDiskFlatVer2BackingInfo{VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: path},
			DiskMode: string(types.VirtualDiskModeIndependent_nonpersistent)}
		b.must(b.vm("proxy").Reconfigure(b.ctx, types.VirtualMachineConfigSpec{DeviceChange: []types.BaseVirtualDeviceConfigSpec{
			&types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationAdd, Device: disk}}}))
		if shown() != "sda sdb" || read("sys/block/sdb/size") != fmt.Sprint(4*mib/512) ||
			read("sys/block/sdb/device/wwid") != "naa."+strings.ReplaceAll(flat(frozen).Uuid, "-", "") {
			t.Errorf("the kernel shows %q: %s sectors, %s", shown(), read("sys/block/sdb/size"), read("sys/block/sdb/device/wwid"))
		}
		if _, err := os.Stat(filepath.Join(dir, "sys/block/sdb/device/scsi_disk/0:0:3:0")); err != nil {
			t.Error(err)
		}
		if got, err := os.ReadFile(filepath.Join(dir, "dev/sdb")); err != nil || !bytes.Equal(got, b.link(path)) {
			t.Errorf("depth %d: the device does not hold what the link does: %v", depth, err)
		}
		if err := b.lab.Machine("proxy").RemoveDisk(2003); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(filepath.Join(dir, "dev/sdb")); shown() != "sda" || !errors.Is(err, os.ErrNotExist) {
			t.Errorf("after it was detached the kernel shows %q: %v", shown(), err)
		}
	}
	if disks, err := b.lab.Machine("web").Disks(); err != nil || !disks[0].Tracked {
		t.Errorf("the machine's changes are not tracked any more: %v", err)
	}
}

// A link opens as a file under the rules of the disk server.
func TestLinkFile(t *testing.T) {
	b := start(t, lab.Options{Machines: []lab.Machine{oneDisk("web")}})
	b.guest("web", 2000, 1, 5, 300_000)
	refused := func(path string, write bool, want error) {
		t.Helper()
		if _, _, err := b.lab.LinkFile(path, write); !errors.Is(err, want) {
			t.Errorf("%s, write %v: %v, want %v", path, write, err, want)
		}
	}
	refused("[ds1] web/other.vmdk", false, vddk.ErrNotFound)
	web, err := b.lab.Machine("web").Disks()
	if err != nil {
		t.Fatal(err)
	}
	refused(web[0].Path, false, vddk.ErrLocked) // the machine runs
	for range 2 {
		frozen := flat(b.disks(b.snapshot(b.vm("web"), "s"))[0]).FileName
		b.guest("web", 2000, 7, 2*mib, 1000)
		refused(frozen, true, vddk.ErrUnsupported)
		file, release, err := b.lab.LinkFile(frozen, false)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, b.link(frozen)) {
			t.Errorf("the file of %s does not hold what the link does: %v", frozen, err)
		}
		if err := release(); err != nil {
			t.Error(err)
		}
	}
	b.must(b.vm("web").RemoveAllSnapshot(b.ctx, nil))
	b.must(b.vm("web").PowerOff(b.ctx))
	file, release, err := b.lab.LinkFile(web[0].Path, true)
	if err != nil {
		t.Fatal(err)
	}
	refused(web[0].Path, false, vddk.ErrLocked) // it is written to
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt([]byte("written past vSphere"), mib)
	if err := errors.Join(err, f.Close(), release()); err != nil {
		t.Fatal(err)
	}
	if !bytes.HasPrefix(b.live("web", 2000)[mib:], []byte("written past vSphere")) {
		t.Error("what was written to the file is not on the disk")
	}
}
