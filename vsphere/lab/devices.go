package lab

import (
	"crypto/rand"
	"fmt"
	"strings"

	"github.com/vmware/govmomi/vim25/types"
)

func isTrue(b *bool) bool { return b != nil && *b }

func virtualDisks(devices []types.BaseVirtualDevice) (out []*types.VirtualDisk) {
	for _, d := range devices {
		if vd, ok := d.(*types.VirtualDisk); ok {
			out = append(out, vd)
		}
	}
	return out
}

// flatBacking is the disk's backing if the lab keeps content for it; raw device mappings have none.
func flatBacking(d *types.VirtualDisk) *types.VirtualDiskFlatVer2BackingInfo {
	b, _ := d.Backing.(*types.VirtualDiskFlatVer2BackingInfo)
	return b
}

// snapshottable tells whether snapshots freeze the disk: independent disks and physical mappings stay as they are.
func snapshottable(d *types.VirtualDisk) bool {
	b := flatBacking(d)
	return b != nil && !strings.HasPrefix(b.DiskMode, "independent")
}

// trackable tells whether change tracking works on the disk (KB 320557: not on independent disks, physical
// mappings or a shared SCSI bus).
func trackable(devices []types.BaseVirtualDevice, d *types.VirtualDisk) bool {
	return snapshottable(d) && !onSharedBus(devices, d)
}

func onSharedBus(devices []types.BaseVirtualDevice, d *types.VirtualDisk) bool {
	for _, c := range devices {
		if sc, ok := c.(types.BaseVirtualSCSIController); ok && c.GetVirtualDevice().Key == d.ControllerKey {
			return sc.GetVirtualSCSIController().SharedBus == types.VirtualSCSISharingPhysicalSharing ||
				sc.GetVirtualSCSIController().SharedBus == types.VirtualSCSISharingVirtualSharing
		}
	}
	return false
}

// cloneDevices copies devices deeply: properties are replaced, never changed in place, for readers copy them
// under the machine's lock and encode them outside.
func cloneDevices(in []types.BaseVirtualDevice) []types.BaseVirtualDevice {
	return types.MustDeepCopy(types.ArrayOfVirtualDevice{VirtualDevice: in}).VirtualDevice
}

// newDiskUUID makes a disk uuid as ESXi does: with VMware's SCSI vendor prefix.
func newDiskUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	b[0], b[1], b[2], b[3] = 0x60, 0x00, 0xc2, 0x90|b[3]&0x0f
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// Device keys as vSphere gives them: the key tells the bus and unit.
const (
	keyIDE, keySCSI, keySATA, keyNVMe       = 200, 1000, 15000, 31000 // controllers: + bus number
	keyOnIDE, keyOnSCSI, keyOnSATA          = 3000, 2000, 16000       // + devices per bus * bus + unit
	keyOnNVMe, keyNIC, keyFloppy            = 32000, 4000, 8000
	unitsIDE, unitsSCSI, unitsSATA          = 2, 16, 30
	unitsNVMe                               = 64
	firstNICUnit                            = 7
	scsiOwnUnit                       int32 = 7 // the unit the SCSI controller itself takes
)

// bus describes a controller's place in the numbering.
type bus struct {
	number, base, units int32
	scsi                bool
}

func busOf(d types.BaseVirtualDevice) (b bus, key int32, ok bool) {
	switch c := d.(type) {
	case *types.VirtualIDEController:
		return bus{c.BusNumber, keyOnIDE, unitsIDE, false}, keyIDE + c.BusNumber, true
	case types.BaseVirtualSCSIController:
		n := c.GetVirtualSCSIController().BusNumber
		return bus{n, keyOnSCSI, unitsSCSI, true}, keySCSI + n, true
	case types.BaseVirtualSATAController:
		n := c.GetVirtualSATAController().BusNumber
		return bus{n, keyOnSATA, unitsSATA, false}, keySATA + n, true
	case *types.VirtualNVMEController:
		return bus{c.BusNumber, keyOnNVMe, unitsNVMe, false}, keyNVMe + c.BusNumber, true
	}
	return bus{}, 0, false
}

// assignKeys gives the devices a specification adds the keys vSphere gives them, whatever the caller wrote: those only
// tie devices of one specification together. Units are chosen where the caller left them open. The simulator would
// number them 202, 204 ...
func assignKeys(changes []types.BaseVirtualDeviceConfigSpec, existing []types.BaseVirtualDevice) types.BaseMethodFault {
	used := map[int32]bool{}
	buses := map[int32]bus{}
	units := map[int32]map[int32]bool{}
	take := func(controller int32, unit *int32) {
		if unit == nil {
			return
		}
		if units[controller] == nil {
			units[controller] = map[int32]bool{}
		}
		units[controller][*unit] = true
	}
	for _, d := range existing {
		v := d.GetVirtualDevice()
		used[v.Key] = true
		if b, _, ok := busOf(d); ok {
			buses[v.Key] = b
		}
		take(v.ControllerKey, v.UnitNumber)
	}
	buses[keyIDE], buses[keyIDE+1] = bus{0, keyOnIDE, unitsIDE, false}, bus{1, keyOnIDE, unitsIDE, false} // always there
	renamed := map[int32]int32{}
	var adds []types.BaseVirtualDevice
	for _, ch := range changes {
		sp := ch.GetVirtualDeviceConfigSpec()
		if sp.Operation == types.VirtualDeviceConfigSpecOperationAdd && sp.Device != nil {
			adds = append(adds, sp.Device)
		}
		if sp.Operation == types.VirtualDeviceConfigSpecOperationRemove && sp.Device != nil {
			v := sp.Device.GetVirtualDevice() // its place is free for what is added in the same call
			for _, d := range existing {
				if e := d.GetVirtualDevice(); e.Key == v.Key && e.UnitNumber != nil {
					delete(units[e.ControllerKey], *e.UnitNumber)
					delete(used, v.Key)
				}
			}
		}
	}
	for _, d := range adds { // controllers first: the others depend on their keys
		b, want, ok := busOf(d)
		if !ok {
			continue
		}
		v := d.GetVirtualDevice()
		for used[want] {
			want++
		}
		renamed[v.Key] = want
		v.Key = want
		used[want] = true
		buses[v.Key] = b
	}
	for i, d := range adds {
		v := d.GetVirtualDevice()
		if _, _, ok := busOf(d); ok {
			continue
		}
		if k, ok := renamed[v.ControllerKey]; ok {
			v.ControllerKey = k
		}
		b, onBus := buses[v.ControllerKey]
		_, disk := d.(*types.VirtualDisk)
		if disk && !onBus {
			return &types.InvalidDeviceSpec{DeviceIndex: int32(i), InvalidVmConfig: types.InvalidVmConfig{Property: "virtualDeviceSpec.device.controllerKey"}}
		}
		if onBus && v.UnitNumber == nil {
			n := int32(0)
			for n < b.units && (units[v.ControllerKey][n] || b.scsi && n == scsiOwnUnit) {
				n++
			}
			if n == b.units {
				return &types.InvalidDeviceSpec{DeviceIndex: int32(i)}
			}
			v.UnitNumber = &n
		}
		if disk && b.scsi && *v.UnitNumber == scsiOwnUnit {
			return &types.InvalidDeviceSpec{DeviceIndex: int32(i), InvalidVmConfig: types.InvalidVmConfig{Property: "virtualDeviceSpec.device.unitNumber"}}
		}
		if disk && units[v.ControllerKey][*v.UnitNumber] {
			return &types.InvalidDeviceSpec{DeviceIndex: int32(i), InvalidVmConfig: types.InvalidVmConfig{Property: "virtualDeviceSpec.device.unitNumber"}}
		}
		if onBus {
			take(v.ControllerKey, v.UnitNumber)
		}
		var want int32
		switch {
		case onBus:
			want = b.base + b.units*b.number + *v.UnitNumber
		default:
			if _, ok := d.(types.BaseVirtualEthernetCard); ok {
				want = keyNIC
				if v.UnitNumber != nil && *v.UnitNumber >= firstNICUnit {
					want += *v.UnitNumber - firstNICUnit
				}
			} else if _, ok := d.(*types.VirtualFloppy); ok {
				want = keyFloppy
			} else {
				continue // the simulator's choice is as good
			}
		}
		for used[want] {
			want++
		}
		v.Key = want
		used[want] = true
	}
	return nil
}

// polished returns the devices as vSphere shows them: controllers list their children, disks have their labels
// and object ids. ok is false if nothing had to change.
func polished(vm string, devices []types.BaseVirtualDevice) (out []types.BaseVirtualDevice, ok bool) {
	out = cloneDevices(devices)
	children := map[int32][]int32{}
	for _, d := range out {
		v := d.GetVirtualDevice()
		if v.ControllerKey != 0 {
			children[v.ControllerKey] = append(children[v.ControllerKey], v.Key)
		}
	}
	n := 0
	for _, d := range out {
		if c, is := d.(types.BaseVirtualController); is {
			vc := c.GetVirtualController()
			if fmt.Sprint(vc.Device) != fmt.Sprint(children[vc.Key]) {
				vc.Device, ok = children[vc.Key], true
			}
		}
		if disk, is := d.(*types.VirtualDisk); is {
			n++
			label := fmt.Sprintf("Hard disk %d", n)
			if desc, is := disk.DeviceInfo.(*types.Description); is && desc.Label != label {
				desc.Label, ok = label, true
			}
			if id := fmt.Sprintf("%s-%d", strings.TrimPrefix(vm, "vm-"), disk.Key); disk.DiskObjectId != id {
				disk.DiskObjectId, ok = id, true
			}
		}
	}
	return out, ok
}
