package lab

import (
	"context"
	"errors"
	"fmt"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"
)

// VM is a machine of the lab, seen from where no client of vSphere can see it: its guest, its files, its faults.
// Methods fail once the machine is gone.
type VM struct {
	lab *Lab
	ref ref
}

// ErrNoMachine is returned for machines that do not exist, or no longer.
var ErrNoMachine = errors.New("no such machine in the lab")

// Machine finds a machine by name; it panics if there is none, for names in tests are constants. See Lookup.
func (l *Lab) Machine(name string) *VM {
	vm, err := l.Lookup(name)
	if err != nil {
		panic(err)
	}
	return vm
}

// Lookup finds a machine by name or by managed object id ("vm-42").
func (l *Lab) Lookup(name string) (*VM, error) {
	for _, r := range l.sim.refs() {
		var found bool
		l.sim.withVM(l.sim.context(), r, func(vm *simulator.VirtualMachine) { found = vm.Name == name || r.Value == name })
		if found {
			return &VM{l, r}, nil
		}
	}
	return nil, fmt.Errorf("%q: %w", name, ErrNoMachine)
}

// At is the machine with that reference, whether it exists or not.
func (l *Lab) At(r types.ManagedObjectReference) *VM { return &VM{l, r} }

// Machines lists the names of all machines, unordered.
func (l *Lab) Machines() (names []string) {
	for _, r := range l.sim.refs() {
		l.sim.withVM(l.sim.context(), r, func(vm *simulator.VirtualMachine) { names = append(names, vm.Name) })
	}
	return names
}

func (s *sim) refs() (out []ref) {
	for _, e := range s.reg.AllReference("VirtualMachine") {
		if vm, ok := e.(*simulator.VirtualMachine); ok {
			out = append(out, vm.Self)
		}
	}
	return out
}

// Ref is the machine's reference.
func (v *VM) Ref() types.ManagedObjectReference { return v.ref }

func (v *VM) known() (*machine, error) {
	m := v.lab.sim.machine(v.ref)
	if m == nil {
		return nil, fmt.Errorf("%s: %w", v.ref.Value, ErrNoMachine)
	}
	return m, nil
}

// DiskInfo is a disk of a machine as it is now.
type DiskInfo struct {
	Key     int32
	Size    int64
	Path    string // datastore path of the live link
	File    string // file on this machine with the live link's own content; the whole disk if it has no snapshot
	UUID    string
	Tracked bool // change tracking is active
}

// Disks lists the machine's disks in device order. Raw mappings have no File.
func (v *VM) Disks() (out []DiskInfo, err error) {
	m, err := v.known()
	if err != nil {
		return nil, err
	}
	v.lab.sim.withVM(v.lab.sim.context(), v.ref, func(vm *simulator.VirtualMachine) {
		m.gate.RLock()
		defer m.gate.RUnlock()
		for _, d := range virtualDisks(vm.Config.Hardware.Device) {
			i := DiskInfo{Key: d.Key, Size: d.CapacityInBytes}
			if b := flatBacking(d); b != nil {
				i.Path, i.UUID = b.FileName, b.Uuid
			}
			if l := m.live[d.Key]; l != nil {
				if _, e := l.open(); e != nil {
					err = e
					continue
				}
				l.vol.mu.RLock()
				i.Tracked = l.vol.track != nil
				l.vol.mu.RUnlock()
				i.File = l.name()
			}
			out = append(out, i)
		}
	})
	return out, err
}

// DiskPath is the file on this machine that holds the live disk: a raw image while the machine has no snapshot.
func (v *VM) DiskPath(key int32) (string, error) {
	ds, err := v.Disks()
	if err != nil {
		return "", err
	}
	for _, d := range ds {
		if d.Key == key && d.File != "" {
			return d.File, nil
		}
	}
	return "", fmt.Errorf("%s has no disk %d", v.ref.Value, key)
}

// Write is the guest: it writes p at byte off of the running disk. Change tracking sees it.
func (v *VM) Write(key int32, p []byte, off int64) error {
	m, err := v.known()
	if err != nil {
		return err
	}
	return m.guestWrite(key, p, off)
}

// Read fills p from byte off of the running disk, as the guest sees it.
func (v *VM) Read(key int32, p []byte, off int64) error {
	m, err := v.known()
	if err != nil {
		return err
	}
	m.gate.RLock()
	defer m.gate.RUnlock()
	l := m.live[key]
	if l == nil {
		return fmt.Errorf("%s has no disk %d", v.ref.Value, key)
	}
	return l.read(p, off)
}

// ReadLive returns the whole running disk.
func (v *VM) ReadLive(key int32) ([]byte, error) {
	ds, err := v.Disks()
	if err != nil {
		return nil, err
	}
	for _, d := range ds {
		if d.Key == key {
			p := make([]byte, d.Size)
			return p, v.Read(key, p, 0)
		}
	}
	return nil, fmt.Errorf("%s has no disk %d", v.ref.Value, key)
}

// ReadLink returns the whole composed content of any link, live or frozen, by datastore path.
func (l *Lab) ReadLink(path string) ([]byte, error) {
	k := l.sim.store.find(path)
	if k == nil {
		return nil, fmt.Errorf("no disk %q", path)
	}
	p := make([]byte, k.size)
	return p, k.read(p, 0)
}

// Links lists the datastore paths of all links, unordered.
func (l *Lab) Links() (out []string) {
	st := l.sim.store
	st.mu.Lock()
	defer st.mu.Unlock()
	for p := range st.links {
		out = append(out, p)
	}
	return out
}

// SetFaults says what goes wrong with the machine from now on, replacing what was said before.
func (v *VM) SetFaults(f MachineFaults) error {
	m, err := v.known()
	if err != nil {
		return err
	}
	m.setFaults(f)
	return nil
}

// PowerCut resets change tracking as an unclean shutdown does; the machine runs on.
func (v *VM) PowerCut() error {
	if !v.lab.sim.powerCut(v.ref) {
		return fmt.Errorf("%s: %w", v.ref.Value, ErrNoMachine)
	}
	return nil
}

// PowerOn and PowerOff run the power tasks.
func (v *VM) PowerOn() error {
	return v.wait(v.lab.sim.PowerOnVMTask(nil, &types.PowerOnVM_Task{This: v.ref}).(*methods.PowerOnVM_TaskBody))
}

// PowerOff turns the machine off.
func (v *VM) PowerOff() error {
	return v.wait(v.lab.sim.PowerOffVMTask(nil, &types.PowerOffVM_Task{This: v.ref}).(*methods.PowerOffVM_TaskBody))
}

// Snapshot takes a snapshot, as somebody else than the client under test would.
func (v *VM) Snapshot(name string) (types.ManagedObjectReference, error) {
	b := v.lab.sim.CreateSnapshotTask(nil, &types.CreateSnapshot_Task{This: v.ref, Name: name}).(*methods.CreateSnapshot_TaskBody)
	if b.Fault_ != nil {
		return ref{}, errors.New(b.Fault_.String)
	}
	res, fault := v.lab.sim.inner(v.lab.sim.context(), b.Res.Returnval)
	if fault != nil {
		return ref{}, errors.New(describe(fault))
	}
	return res.(ref), nil
}

// Revert takes the machine back to a snapshot.
func (v *VM) Revert(snapshot types.ManagedObjectReference) error {
	return v.wait(v.lab.sim.RevertToSnapshotTask(nil, &types.RevertToSnapshot_Task{This: snapshot}).(*methods.RevertToSnapshot_TaskBody))
}

// RemoveSnapshot removes one snapshot and merges its content.
func (v *VM) RemoveSnapshot(snapshot types.ManagedObjectReference) error {
	return v.wait(v.lab.sim.RemoveSnapshotTask(nil, &types.RemoveSnapshot_Task{This: snapshot}).(*methods.RemoveSnapshot_TaskBody))
}

// Reconfigure changes the machine.
func (v *VM) Reconfigure(spec types.VirtualMachineConfigSpec) error {
	return v.wait(v.lab.sim.ReconfigVMTask(nil, &types.ReconfigVM_Task{This: v.ref, Spec: spec}).(*methods.ReconfigVM_TaskBody))
}

// wait waits for the task that a method's answer carries.
func (v *VM) wait(answer taskAnswer) error {
	id, fault := taskOf(answer)
	if fault != nil {
		return fmt.Errorf("%s: %s", v.ref.Value, fault.String)
	}
	if _, f := v.lab.sim.inner(v.lab.sim.context(), id); f != nil {
		return fmt.Errorf("%s: %s", v.ref.Value, describe(f))
	}
	return nil
}

// AddDisk gives the machine another disk and returns its key.
func (v *VM) AddDisk(d Disk) (int32, error) {
	had := map[int32]bool{}
	before, err := v.Disks()
	if err != nil {
		return 0, err
	}
	for _, x := range before {
		had[x.Key] = true
	}
	var spec types.VirtualMachineConfigSpec
	v.lab.sim.withVM(v.lab.sim.context(), v.ref, func(vm *simulator.VirtualMachine) {
		err = addDiskSpec(&spec, vm.Config.Hardware.Device, d)
	})
	if err != nil {
		return 0, err
	}
	if err := v.Reconfigure(spec); err != nil {
		return 0, err
	}
	after, err := v.Disks()
	if err != nil {
		return 0, err
	}
	for _, x := range after {
		if !had[x.Key] {
			return x.Key, nil
		}
	}
	return 0, fmt.Errorf("%s: the new disk did not appear", v.ref.Value)
}

// addDiskSpec completes spec by a disk and, if the machine lacks it, its controller.
func addDiskSpec(spec *types.VirtualMachineConfigSpec, devices []types.BaseVirtualDevice, d Disk) error {
	kind := d.Controller
	if kind == "" {
		kind = "pvscsi"
	}
	c, err := newController(kind, d.Bus, d.SharedBus)
	if err != nil {
		return err
	}
	_, key, _ := busOf(c)
	exists := false
	for _, x := range devices {
		exists = exists || x.GetVirtualDevice().Key == key
	}
	if !exists {
		key = -100
		c.GetVirtualDevice().Key = key
		spec.DeviceChange = append(spec.DeviceChange, &types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationAdd, Device: c})
	}
	spec.DeviceChange = append(spec.DeviceChange, &types.VirtualDeviceConfigSpec{
		Operation: types.VirtualDeviceConfigSpecOperationAdd, FileOperation: d.operation(), Device: d.device(key, -1000)})
	return nil
}

// RemoveDisk takes a disk away from the machine and keeps its files.
func (v *VM) RemoveDisk(key int32) error {
	d := &types.VirtualDisk{}
	d.Key = key
	return v.Reconfigure(types.VirtualMachineConfigSpec{DeviceChange: []types.BaseVirtualDeviceConfigSpec{
		&types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationRemove, Device: d}}})
}

// Grow makes a disk larger.
func (v *VM) Grow(key int32, size int64) error {
	var disk *types.VirtualDisk
	v.lab.sim.withVM(v.lab.sim.context(), v.ref, func(vm *simulator.VirtualMachine) {
		for _, d := range virtualDisks(cloneDevices(vm.Config.Hardware.Device)) {
			if d.Key == key {
				disk = d
			}
		}
	})
	if disk == nil {
		return fmt.Errorf("%s has no disk %d", v.ref.Value, key)
	}
	disk.CapacityInBytes, disk.CapacityInKB = size, size/1024
	return v.Reconfigure(types.VirtualMachineConfigSpec{DeviceChange: []types.BaseVirtualDeviceConfigSpec{
		&types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationEdit, Device: disk}}})
}

// Snapshots is the machine's snapshot tree, nil without snapshots.
func (v *VM) Snapshots() (tree []types.VirtualMachineSnapshotTree) {
	v.lab.sim.withVM(v.lab.sim.context(), v.ref, func(vm *simulator.VirtualMachine) {
		if vm.Snapshot != nil {
			tree = types.MustDeepCopy(*vm.Snapshot).RootSnapshotList
		}
	})
	return tree
}

// SnapshotCount is the number of snapshots the machine has.
func (v *VM) SnapshotCount() int { return len(allSnapshots(v.Snapshots())) }

// ConsolidationNeeded is runtime.consolidationNeeded.
func (v *VM) ConsolidationNeeded() (needed bool) {
	v.lab.sim.withVM(v.lab.sim.context(), v.ref, func(vm *simulator.VirtualMachine) { needed = vm.Runtime.ConsolidationNeeded })
	return needed
}

// Idle waits until no task works on the machine.
func (v *VM) Idle(ctx context.Context) error {
	s := v.lab.sim
	for {
		m, err := v.known()
		if err != nil {
			return err
		}
		m.mu.Lock()
		busy := m.busy
		m.mu.Unlock()
		if busy == nil {
			return nil
		}
		t, ok := s.reg.Get(*busy).(*simulator.Task)
		if !ok {
			continue // about to be
		}
		done := s.watch(*busy)
		var running bool
		s.reg.WithLock(new(simulator.Context), t, func() { running = t.Info.State == types.TaskInfoStateRunning })
		if !running {
			s.unwatch(*busy)
			continue
		}
		select {
		case <-done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
