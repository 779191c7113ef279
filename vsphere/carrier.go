package vsphere

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// New disks for a machine that runs, or that are to be kept when filling them fails.
//
// Nobody but its host can write to a disk of a running machine, so disks that are to be filled first hang in a machine of
// their own: the carrier, which has no network and is never started. Their files lie from the beginning where they shall
// stay, in the directory of the machine they are for. Once they are filled, one reconfiguration takes them all out of the
// carrier, another adds them all to the machine, and the carrier is destroyed.
//
// A machine that is off gets disks that way which are to be kept half-filled: nobody starts it with one of them.

// Carry asks for new disks in a machine, which may run.
type Carry struct {
	Operation *Operation // required; one that [VM.TakeOver] returned is gone on with
	Disks     []DiskSpec // Replace only where they are held, and the machine is off
	// Hold says what the disks are to become, one for each of Disks: neither a failure nor a crash removes them then, see
	// [VM.TakeOver]. Empty: both do.
	Hold []string
	// Mark is what the carrier of disks that are held has in its ExtraConfig.
	Mark map[string]string
	// Fill writes the disks, which hang in the carrier and are in the order of Disks. What it returns is added to the
	// machine's ExtraConfig together with the disks.
	Fill func(ctx context.Context, carrier *VM, disks []Disk) (map[string]string, error)
}

// actionCarry is the action of a disk that is made in a carrier: its file goes, wherever it hangs, if anywhere.
const actionCarry = "carry"

// Carry makes the disks and adds all of them to the machine, or none: when something fails they are removed with their
// files, unless they are held; a crash leaves that to [Client.Recover].
func (v *VM) Carry(ctx context.Context, h Carry) (added []Disk, err error) {
	if h.Operation == nil {
		return nil, &Error{Kind: ErrInvalid, Summary: "no operation is given for the disks", Remedy: "begin one with Journal.Begin"}
	}
	load, err := v.planLoad(ctx, h)
	if err != nil {
		return nil, err
	}
	if len(h.Hold) > 0 {
		return v.addHeld(ctx, h, load)
	}
	var effects []*effect
	defer func() {
		after, cancel := v.c.afterwards(ctx)
		defer cancel()
		for _, x := range effects {
			if added == nil {
				if e := v.undoDisk(after, x.current()); e != nil {
					err = errors.Join(err, &Error{Kind: ErrLeftover, Object: v.label(), Summary: fmt.Sprintf("the disk %s of machine %s could not be taken back", x.e.Name, v.label()), Err: e, Remedy: "run vmkeep recover"})
					continue
				}
			}
			err = errors.Join(err, x.strike())
		}
	}()
	for _, e := range load.entries {
		x, err := h.Operation.announce(e)
		if err != nil {
			return nil, err
		}
		effects = append(effects, x)
	}
	_, err = v.c.CreateMachine(ctx, load.carrier, func(ctx context.Context, carrier *VM) error {
		added, err = v.fillAndTake(ctx, h, load, carrier)
		return err
	})
	if added != nil {
		err = withoutLeftover(err) // the disks are there; of the carrier, which is not gone, the end of the operation tells
	}
	return added, err
}

// fillAndTake has the disks filled that hang in the carrier, in the order of the load, and hangs them over. Without an
// error there are disks.
func (v *VM) fillAndTake(ctx context.Context, h Carry, l *load, carrier *VM) ([]Disk, error) {
	extra, err := h.Fill(ctx, carrier, carrier.machine.Disks)
	if err != nil {
		return nil, err
	}
	if err := carrier.unload(ctx); err != nil {
		return nil, err
	}
	return v.take(ctx, l, extra)
}

// load is what a carrier carries.
type load struct {
	carrier *MachinePlan
	entries []entry // of the journal, one for each disk: its place in the machine and its file
	at      []types.VirtualDevice
}

// planLoad finds places for the disks, and how the carrier looks.
func (v *VM) planLoad(ctx context.Context, h Carry) (*load, error) {
	vm, err := v.read(ctx, "parent", "resourcePool", "runtime.host", "config.version", "config.files.vmPathName", "config.hardware.device")
	if err != nil {
		return nil, err
	}
	t, err := v.c.readTree(ctx)
	if err != nil {
		return nil, err
	}
	at, err := v.beside(ctx, vm, t)
	if err != nil {
		return nil, err
	}
	devices, home := vm.Config.Hardware.Device, vm.Config.Files.VmPathName
	out := &load{carrier: &MachinePlan{Name: snapshotPrefix + h.Operation.id, Folder: t.path(at.folder), asked: MachineSpec{Operation: h.Operation}, at: at, temporary: true}}
	spec := types.VirtualMachineConfigSpec{Name: out.carrier.Name, Version: vm.Config.Version, GuestId: string(types.VirtualMachineGuestOsIdentifierOtherGuest64), NumCPUs: 1, MemoryMB: 128,
		Files: &types.VirtualMachineFileInfo{VmPathName: "[" + datastoreOf(home) + "]"}, ExtraConfig: extraConfig(h.Mark)}
	add := func(dev types.BaseVirtualDevice, op types.VirtualDeviceConfigSpecFileOperation) {
		spec.DeviceChange = append(spec.DeviceChange, &types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationAdd, FileOperation: op, Device: dev})
	}
	for i, d := range h.Disks {
		d.Operation, d.Datastore = h.Operation, orText(d.Datastore, datastoreOf(home))
		name, key, unit, err := v.choosePlace(devices, d.Place, d.Replace && !d.Hot && len(h.Hold) > 0)
		if err == nil {
			err = v.takesCarried(vm, d, key)
		}
		if err != nil {
			return nil, err
		}
		if d.Capacity <= 0 || d.Capacity%512 != 0 {
			return nil, wrongCapacity(d.Capacity)
		}
		taken := types.VirtualDevice{Key: -1000 - int32(i), ControllerKey: key, UnitNumber: &unit}
		devices = append(devices, &types.VirtualDisk{VirtualDevice: taken}) // the next one goes elsewhere
		out.at = append(out.at, taken)
		e := entry{Kind: EntryDisk, Server: v.c.about.InstanceUUID, Machine: v.ID(), Path: v.label(), Name: name, Action: actionCarry, Datacenter: at.dc.Value,
			Object: ownFile(d, name, home, disksOf(vm.Config.Hardware.Device))}
		for _, x := range disksOf(vm.Config.Hardware.Device) {
			e.Before = append(e.Before, x.Path)
			if x.Name == name {
				e.Old = &oldDisk{Path: x.Path, Mode: x.Mode}
			}
		}
		out.entries = append(out.entries, e)

		bus, place := int32(i/15), int32(i%15)
		if place >= 7 { // of a SCSI controller, unit 7 is its own
			place++
		}
		if place == 0 {
			add(&types.ParaVirtualSCSIController{VirtualSCSIController: types.VirtualSCSIController{SharedBus: types.VirtualSCSISharingNoSharing,
				VirtualController: types.VirtualController{BusNumber: bus, VirtualDevice: types.VirtualDevice{Key: -100 - bus}}}}, "")
		}
		backing := newBacking(d.Datastore, string(types.VirtualDiskModePersistent), d.Provision)
		backing.FileName = e.Object
		add(&types.VirtualDisk{VirtualDevice: types.VirtualDevice{Key: taken.Key, ControllerKey: -100 - bus, UnitNumber: &place, Backing: backing},
			CapacityInKB: d.Capacity >> 10, CapacityInBytes: d.Capacity}, types.VirtualDeviceConfigSpecFileOperationCreate)
		out.carrier.Disks = append(out.carrier.Disks, PlannedDisk{Name: fmt.Sprintf("scsi%d-%d", bus, place), Datastore: d.Datastore, Capacity: d.Capacity, Provision: d.Provision})
	}
	out.carrier.spec = spec
	return out, nil
}

// beside is where another machine may be that sees the same datastores: on the machine's host, in its pool and folder.
func (v *VM) beside(ctx context.Context, vm *mo.VirtualMachine, t *tree) (placement, error) {
	var at placement
	if vm.Config == nil || vm.Runtime.Host == nil || vm.ResourcePool == nil {
		return at, &Error{Kind: ErrUnsuitable, Object: v.label(), Summary: "machine " + v.label() + " is on no host, or its configuration cannot be read", Remedy: "bring its host back"}
	}
	at.host, at.pool = *vm.Runtime.Host, *vm.ResourcePool
	at.dc = t.above(at.host, "Datacenter")
	if vm.Parent != nil && vm.Parent.Type == "Folder" {
		at.folder = *vm.Parent
		return at, nil
	}
	var dc mo.Datacenter // the machine is in a vApp
	err := v.c.one(ctx, at.dc, []string{"vmFolder"}, &dc)
	at.folder = dc.VmFolder
	return at, err
}

// unload takes all disks out of the machine and keeps their files.
func (v *VM) unload(ctx context.Context) error {
	devices, err := v.hardwareNow(ctx)
	if err != nil {
		return err
	}
	var changes []types.BaseVirtualDeviceConfigSpec
	for _, dev := range devices {
		if disk, ok := dev.(*types.VirtualDisk); ok {
			changes = append(changes, &types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationRemove, Device: disk})
		}
	}
	return v.reconfigure(ctx, "take the disks out of "+v.label(), types.VirtualMachineConfigSpec{DeviceChange: changes})
}

// take attaches the disks of a load, which hang nowhere, to the machine. What has to make room for them is detached, and
// its file kept.
func (v *VM) take(ctx context.Context, l *load, extra map[string]string) ([]Disk, error) {
	before, err := v.hardwareNow(ctx)
	if err != nil {
		return nil, err
	}
	spec := types.VirtualMachineConfigSpec{ExtraConfig: extraConfig(extra)}
	for i, e := range l.entries {
		for _, dev := range before {
			if old, ok := dev.(*types.VirtualDisk); ok && e.Old != nil && backingOf(old.Backing).path == e.Old.Path {
				spec.DeviceChange = append(spec.DeviceChange, &types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationRemove, Device: old})
			}
		}
		dev := &types.VirtualDisk{VirtualDevice: l.at[i]}
		dev.Backing = &types.VirtualDiskFlatVer2BackingInfo{VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: e.Object}, DiskMode: string(types.VirtualDiskModePersistent)}
		spec.DeviceChange = append(spec.DeviceChange, &types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationAdd, Device: dev})
	}
	if err := v.reconfigure(ctx, "hot-add disks to "+v.label(), spec); err != nil {
		return nil, unsuitableDisk(v, err)
	}
	devices, err := v.hardwareNow(ctx)
	if err != nil {
		return nil, err
	}
	now := disksOf(devices)
	var out []Disk
	for _, e := range l.entries {
		i := slices.IndexFunc(now, func(d Disk) bool { return d.Name == e.Name && e.is(d) })
		if i < 0 {
			return nil, &Error{Kind: ErrUnsuitable, Object: v.label(), Summary: fmt.Sprintf("vSphere accepted the disk and machine %s has none at %s", v.label(), e.Name), Remedy: "look at the machine's events"}
		}
		out = append(out, now[i])
	}
	return out, nil
}

// discard deletes the files of a disk that was made in a carrier, and hangs nowhere now. One that is gone already is
// fine; of other disks the files went with them, or are to stay.
func (c *Client) discard(ctx context.Context, e entry) error {
	if e.Action != actionCarry && e.Action != actionHold {
		return nil
	}
	file := e.Object
	if c.vim.ServiceContent.VirtualDiskManager == nil {
		return &Error{Kind: ErrUnsuitable, Object: file, Summary: "the server has no manager of virtual disks", Remedy: "delete the disk by hand"}
	}
	req := types.DeleteVirtualDisk_Task{This: *c.vim.ServiceContent.VirtualDiskManager, Name: file, Datacenter: &ref{Type: "Datacenter", Value: e.Datacenter}}
	_, err := c.run(ctx, "delete "+file, func(ctx context.Context) (ref, error) {
		res, err := methods.DeleteVirtualDisk_Task(ctx, c.vim, &req)
		if err != nil {
			return ref{}, err
		}
		return res.Returnval, nil
	})
	if fault.Is(err, &types.FileNotFound{}) {
		return nil
	}
	return err
}

// takesCarried says why the controller with the key, or the datastore, cannot take a disk that is filled before it is
// attached; nil: they can.
func (v *VM) takesCarried(vm *mo.VirtualMachine, d DiskSpec, key int32) error {
	if err := v.takesHot(vm, d, key); err != nil {
		return err
	}
	home, disks := vm.Config.Files.VmPathName, disksOf(vm.Config.Hardware.Device)
	if d.Datastore == "" || ownDirectory(d.Datastore, home, disks) != "" {
		return nil
	}
	e := &Error{Kind: ErrUnsuitable, Object: d.Datastore, Summary: fmt.Sprintf("machine %s has no directory on datastore %s, where a disk could be filled before it is attached", v.label(), d.Datastore),
		Remedy: "choose a datastore that it is on, or keep nothing when the restore fails"}
	if d.Hot {
		e.Remedy = "choose a datastore that it is on, or power the machine off first"
	}
	return e
}

// takesHot says why the controller with the key cannot take a disk while the machine runs; nil: it can, or need not.
func (v *VM) takesHot(vm *mo.VirtualMachine, d DiskSpec, key int32) error {
	for _, dev := range vm.Config.Hardware.Device {
		fixed := false
		switch c := dev.(type) {
		case *types.VirtualIDEController:
			fixed = true
		case types.BaseVirtualSCSIController:
			s := c.GetVirtualSCSIController()
			fixed = s.HotAddRemove != nil && !*s.HotAddRemove
		}
		if d.Hot && fixed && dev.GetVirtualDevice().Key == key {
			return &Error{Kind: ErrUnsuitable, Object: deviceLabel(dev), Summary: fmt.Sprintf("the controller %s of machine %s takes no disks while the machine runs", deviceLabel(dev), v.label()),
				Remedy: "choose a place on a SCSI, SATA or NVMe controller, or power the machine off first"}
		}
	}
	return nil
}
