package engine_test

import (
	"cmp"
	"crypto/sha256"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/vsphere/lab"
)

// everyController is a vSphere with a machine "zoo" that has a small disk on every kind of controller.
func everyController() lab.Options {
	const mib = 1 << 20
	return lab.Options{Machines: []lab.Machine{{Name: "zoo", Folder: "prod", Network: "net1", Firmware: "efi", CPUs: 2, MemoryMB: 512, Disks: []lab.Disk{
		{Size: 4 * mib}, {Size: 3 * mib, Controller: "lsilogic", Bus: 1}, {Size: 2 * mib, Controller: "lsilogic-sas", Bus: 2, Thick: true, Datastore: "ds2"},
		{Size: 2 * mib, Controller: "buslogic", Bus: 3}, {Size: 3 * mib, Controller: "sata"}, {Size: 3 * mib, Controller: "nvme"}, {Size: 2 * mib, Controller: "ide"}}}}}
}

type content = [sha256.Size]byte

// byPlace hashes the disks of a machine by their places: "sata0-0".
func (r *rig) byPlace(machine string) map[string]content {
	r.t.Helper()
	list, err := r.Machines(r.t.Context(), plugin.Selection{Names: []string{machine}})
	r.must(err)
	out := map[string]content{}
	for _, d := range list[0].Disks {
		out[d.Name] = r.sum(machine, d.Key, d.Capacity)
	}
	return out
}

// backsUpAgainWhole demands of every disk of a restored machine what backsUpAgain does of one.
func (r *rig) backsUpAgainWhole(machine string) {
	r.t.Helper()
	r.must(r.lab.Machine(machine).PowerOn())
	for _, d := range r.point(machine).Disks {
		if d.Incremental || d.Reason != "restored" {
			r.t.Errorf("the first backup of %s of %s: incremental %v, %q", d.Name, machine, d.Incremental, d.Reason)
		}
	}
	r.busy(seeded(301), machine)
	for _, d := range r.point(machine).Disks {
		if !d.Incremental {
			r.t.Errorf("the second backup of %s of %s is full: %s", d.Name, machine, d.Reason)
		}
	}
}

// Chosen disks of a machine are overwritten wherever they hang, and nothing else of it is touched.
func TestOnlyTheChosenDisksAreTouched(t *testing.T) {
	r := newRig(t, everyController())
	r.busy(seeded(302), "zoo")
	point := r.point("zoo")
	saved := r.byPlace("zoo")
	if len(saved) != 7 {
		t.Fatalf("the machine has disks at %v", slices.Sorted(maps.Keys(saved)))
	}
	a := r.admin()
	for i, c := range []struct {
		mode  plugin.RestoreMode
		disks []string
	}{
		{plugin.RestoreInPlace, []string{"sata0-0", "nvme0-0"}}, {plugin.RestoreRollback, []string{"ide0-0", "scsi1-0", "scsi3-0"}},
		{plugin.RestoreInPlace, nil}, {plugin.RestoreRollback, nil},
	} {
		r.busy(seeded(uint64(310+i)), "zoo")
		before, was := r.byPlace("zoo"), a.config("zoo")
		report, err := r.Restore(t.Context(), plugin.RestoreRequest{Point: point.ID, Mode: c.mode, Disks: c.disks, PowerOff: true, PowerOn: true, Verify: i == 0}, r.note)
		r.must(err)
		for name, sum := range r.byPlace("zoo") {
			want := before[name]
			if c.disks == nil || slices.Contains(c.disks, name) {
				want = saved[name]
			}
			if sum != want {
				t.Errorf("%s of %v: disk %s is not what it should be", c.mode, c.disks, name)
			}
		}
		if n := len(report.Disks); c.disks != nil && n != len(c.disks) || c.disks == nil && n != len(saved) {
			t.Errorf("%s of %v reports %+v", c.mode, c.disks, report.Disks)
		}
		now := a.config("zoo")
		if len(now.Hardware.Device) != len(was.Hardware.Device) || now.Uuid != was.Uuid || now.InstanceUuid != was.InstanceUuid || now.Annotation != was.Annotation {
			t.Errorf("%s of %v changed the machine", c.mode, c.disks)
		}
		r.noTraces("zoo")
		r.journalIsEmpty()
	}
	for _, d := range r.point("zoo").Disks {
		if d.Incremental || d.Reason != "restored" {
			t.Errorf("the backup after the restores: disk %s incremental %v, %q", d.Name, d.Incremental, d.Reason)
		}
	}
}

// nvram is the file with a machine's firmware settings.
func (r *rig) nvram(machine string) string {
	r.t.Helper()
	disks, err := r.lab.Machine(machine).Disks()
	r.must(err)
	home, _, _ := strings.Cut(r.admin().config(machine).Files.VmPathName, "/")
	for _, d := range disks {
		if strings.HasPrefix(d.Path, home+"/") {
			return filepath.Join(filepath.Dir(d.File), machine+".nvram")
		}
	}
	r.t.Fatalf("no disk of %s lies in its home %s", machine, home)
	return ""
}

// isPlaced demands folder, host and the last name of the resource pool of a machine, as far as they are given.
func (r *rig) isPlaced(machine, want string) {
	r.t.Helper()
	list, err := r.Machines(r.t.Context(), plugin.Selection{Names: []string{machine}})
	r.must(err)
	got := []string{list[0].Folder, list[0].Host, path.Base(list[0].ResourcePool)}
	for i, w := range strings.Split(want, " ") {
		if w != "" && w != got[i] {
			r.t.Errorf("%s is at %q, want %q", machine, got, want)
		}
	}
}

// liesOn demands datastore and allotment of a machine's disks, by place; "" stands for those that are not named.
func (r *rig) liesOn(machine string, want map[string]string) {
	r.t.Helper()
	list, err := r.Machines(r.t.Context(), plugin.Selection{Names: []string{machine}})
	r.must(err)
	is := func(b *bool) bool { return b != nil && *b }
	for _, dev := range object.VirtualDeviceList(r.admin().config(machine).Hardware.Device).SelectByType((*types.VirtualDisk)(nil)) {
		b := dev.(*types.VirtualDisk).Backing.(*types.VirtualDiskFlatVer2BackingInfo)
		store, _, _ := strings.Cut(b.FileName, " ")
		how := "thick"
		if is(b.ThinProvisioned) {
			how = "thin"
		} else if is(b.EagerlyScrub) {
			how = "eager"
		}
		i := slices.IndexFunc(list[0].Disks, func(d plugin.MachineDisk) bool { return d.Key == dev.GetVirtualDevice().Key })
		if w := cmp.Or(want[list[0].Disks[i].Name], want[""]); store+" "+how != w {
			r.t.Errorf("disk %s of %s lies on %s %s, want %s", list[0].Disks[i].Name, machine, store, how, w)
		}
	}
}

// A machine with every kind of controller comes back with its bytes wherever it is mapped to; what cannot come along is
// said.
func TestNewMachineIsMappedAsAskedFor(t *testing.T) {
	r := newRig(t, everyController())
	a := r.admin()
	vm := r.lab.Machine("zoo")
	devices, err := a.vm("zoo").Device(t.Context())
	r.must(err)
	ide, err := devices.FindIDEController("")
	r.must(err)
	cd, err := devices.CreateCdrom(ide)
	r.must(err)
	r.must(a.vm("zoo").AddDevice(t.Context(), devices.InsertIso(cd, "[ds1] tools.iso")))
	floppy, err := devices.CreateFloppy()
	if err != nil {
		var sio types.VirtualSIOController
		sio.Key = 400
		floppy = &types.VirtualFloppy{VirtualDevice: types.VirtualDevice{ControllerKey: 400}}
	}
	r.must(a.vm("zoo").AddDevice(t.Context(), devices.InsertImg(floppy, "[ds1] boot.flp")))
	serial := &types.VirtualSerialPort{VirtualDevice: types.VirtualDevice{Key: -1, ControllerKey: 400,
		Backing: &types.VirtualSerialPortURIBackingInfo{VirtualDeviceURIBackingInfo: types.VirtualDeviceURIBackingInfo{ServiceURI: "telnet://:12345", Direction: "server"}}}}
	r.must(a.vm("zoo").AddDevice(t.Context(), serial))
	firmware := make([]byte, 8684)
	fill(seeded(321), firmware)
	r.must(os.WriteFile(r.nvram("zoo"), firmware, 0o600))
	r.busy(seeded(320), "zoo")
	point := r.point("zoo")
	saved, was := r.byPlace("zoo"), a.config("zoo")
	r.must(vm.PowerOff())
	r.must(vm.Destroy())
	for _, c := range []struct {
		name   string
		target plugin.Target
		place  string            // folder, host and pool; "": anything
		disks  map[string]string // datastore and allotment by place; "": of all others
		check  func(t *testing.T, name string)
	}{
		{"placed on a host, thin, on one datastore", plugin.Target{Folder: "/dc1/vm", Host: "esx5", Datastore: "ds3", Provisioning: "thin", Networks: map[string]string{"net1": "net2"}}, "/dc1/vm esx5 ", map[string]string{"": "[ds3] thin"}, func(t *testing.T, name string) {
			now := a.config(name)
			if now.InstanceUuid == was.InstanceUuid || now.Uuid == was.Uuid {
				t.Error("the new machine has the identity of the old one")
			}
		}},
		{"in a cluster's pool, disks on several datastores, same identity", plugin.Target{Cluster: "cluster2", ResourcePool: "silver", Datastore: "ds1", Datastores: map[string]string{"nvme0-0": "ds2", "ide0-0": "ds3"},
			KeepIdentity: true, KeepMAC: true, Provisioning: "eager"}, "/dc1/vm/prod  silver", map[string]string{"": "[ds1] eager", "nvme0-0": "[ds2] eager", "ide0-0": "[ds3] eager"}, func(t *testing.T, name string) {
			now := a.config(name)
			if now.InstanceUuid != was.InstanceUuid || now.Uuid != was.Uuid || now.Firmware != "efi" || now.Hardware.NumCPU != 2 {
				t.Errorf("the new machine has another identity or other hardware: %+v", now)
			}
			mac := func(c *types.VirtualMachineConfigInfo) string {
				return object.VirtualDeviceList(c.Hardware.Device).PrimaryMacAddress()
			}
			if mac(now) != mac(was) || mac(now) == "" {
				t.Errorf("MAC %q, was %q", mac(now), mac(was))
			}
		}},
		{"where its network does not exist", plugin.Target{Networks: map[string]string{"net1": "nosuch"}, NoNetworks: true}, "/dc1/vm/prod  Resources", map[string]string{"": "[ds1] thin", "scsi2-0": "[ds2] thick"}, func(t *testing.T, name string) {
			for _, d := range object.VirtualDeviceList(a.config(name).Hardware.Device).SelectByType((*types.VirtualEthernetCard)(nil)) {
				if x := d.GetVirtualDevice().Connectable; x == nil || x.StartConnected {
					t.Errorf("the card connects: %+v", x)
				}
			}
		}},
		{"thick, where it was", plugin.Target{Provisioning: "thick"}, "/dc1/vm/prod  Resources", map[string]string{"": "[ds1] thick", "scsi2-0": "[ds2] thick"}, func(*testing.T, string) {}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.target.Name = "back"
			req := plugin.RestoreRequest{Point: point.ID, Mode: plugin.RestoreNew, Target: c.target, Verify: true}
			report, err := r.Restore(t.Context(), req, r.note)
			r.must(err)
			if got := r.byPlace("back"); !maps.Equal(got, saved) {
				t.Errorf("the new machine's disks differ: %v", slices.Sorted(maps.Keys(got)))
			}
			said := ""
			for _, n := range report.Notes {
				said += n.Summary + "\n"
			}
			for _, want := range []string{"ISO image is not inserted", "floppy image is not inserted", "(VirtualSerialPort) is left out"} {
				if !strings.Contains(said, want) {
					t.Errorf("nothing is said like %q: %s", want, said)
				}
			}
			r.isPlaced("back", c.place)
			r.liesOn("back", c.disks)
			if got, err := os.ReadFile(r.nvram("back")); err != nil || !slices.Equal(got, firmware) {
				t.Errorf("the firmware's settings are not the saved ones: %v", err)
			}
			c.check(t, "back")
			r.backsUpAgainWhole("back")
			r.must(r.lab.Machine("back").PowerOff())
			r.must(r.lab.Machine("back").Destroy())
		})
	}
	_, err = r.Restore(t.Context(), plugin.RestoreRequest{Point: point.ID, Target: plugin.Target{Name: "back", Networks: map[string]string{"net1": "nosuch"}}}, r.note)
	failsWith(t, err, plugin.CodeTargetUnsuitable, "net2")
}

// A point goes to a vSphere that never saw its machine: another vCenter, and an ESXi host alone.
func TestNewMachineElsewhere(t *testing.T) {
	r := newRig(t, everyController())
	r.busy(seeded(330), "zoo")
	point := r.point("zoo")
	saved := r.byPlace("zoo")
	for name, c := range map[string]struct {
		opt     lab.Options
		cluster string
	}{
		"another vCenter": {lab.Options{Dir: t.TempDir(), Inventory: lab.Inventory{Clusters: 1, HostsPerCluster: 1, Pools: []string{}}}, "cluster1"},
		"an ESXi host":    {lab.Options{Dir: t.TempDir(), ESX: true}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := lab.Start(t.Context(), c.opt)
			r.must(err)
			defer func() { r.must(l.Close()) }()
			there := &rig{t: t, lab: l, at: r.at, config: r.config, Service: r.at.service(t)}
			there.config.Transports, there.config.VDDKDir = []string{"nbdssl"}, "" // proxy and library are the other vSphere's
			there.config.VSphere = plugin.VSphere{URL: l.URL().String(), Thumbprint: l.Thumbprint()}
			there.config.StateDir = t.TempDir()
			there.must(there.Configure(t.Context(), there.config))
			_, err = there.Restore(t.Context(), plugin.RestoreRequest{Point: point.ID, Target: plugin.Target{Cluster: c.cluster, NoNetworks: true, Datastore: "ds1", KeepIdentity: true}, Verify: true}, there.note)
			there.must(err)
			if got := there.byPlace("zoo"); !maps.Equal(got, saved) {
				t.Errorf("the machine's disks differ: %v", slices.Sorted(maps.Keys(got)))
			}
			there.backsUpAgainWhole("zoo")
		})
	}
}
