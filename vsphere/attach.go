package vsphere

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/vim25/types"
)

// DiskSpec asks for a new disk in an existing machine.
type DiskSpec struct {
	Operation *Operation // required
	Place     string     // "scsi1:3" or "scsi1-3"; empty: the first free one of a SCSI, NVMe or SATA controller that exists
	Replace   bool       // the place may be taken: the disk there is detached, its file kept
	Hot       bool       // the machine runs and goes on running
	Carried   bool       // the disk is filled before it is attached, see [VM.Carry]; those of machines that run always are
	Datastore string     // empty: the machine's home
	Capacity  int64      // bytes
	Provision Provisioning
}

// hardwareNow reads the machine's devices.
func (v *VM) hardwareNow(ctx context.Context) ([]types.BaseVirtualDevice, error) {
	vm, err := v.read(ctx, "config.hardware.device")
	if err != nil {
		return nil, err
	}
	if vm.Config == nil {
		return nil, unreadable(v)
	}
	return vm.Config.Hardware.Device, nil
}

func unreadable(v *VM) error {
	return &Error{Kind: ErrUnsuitable, Object: v.label(), Summary: "machine " + v.label() + " has no readable configuration", Remedy: "bring its host back"}
}

// units are how many devices a controller of a kind takes; SCSI controllers are unit 7 of themselves.
func units(kind string) int32 {
	return map[string]int32{"scsi": 16, "sata": 30, "nvme": 15, "ide": 2}[kind]
}

// freePlaces lists the free places of the machine's controllers, SCSI first.
func freePlaces(devices []types.BaseVirtualDevice) []string {
	controllers := controllersOf(devices)
	taken := make(map[[2]int32]bool)
	for _, dev := range devices {
		if d := dev.GetVirtualDevice(); d.UnitNumber != nil {
			taken[[2]int32{d.ControllerKey, *d.UnitNumber}] = true
		}
	}
	type at struct {
		rank int
		bus  int32
		key  int32
		kind string
	}
	var order []at
	for key, c := range controllers {
		if i := slices.Index([]string{"scsi", "nvme", "sata"}, c.kind); i >= 0 {
			order = append(order, at{i, c.bus, key, c.kind})
		}
	}
	slices.SortFunc(order, func(a, b at) int {
		if a.rank != b.rank {
			return a.rank - b.rank
		}
		return int(a.bus - b.bus)
	})
	var out []string
	for _, c := range order {
		for u := range units(c.kind) {
			if !taken[[2]int32{c.key, u}] && (c.kind != "scsi" || u != 7) {
				out = append(out, place(c.kind, c.bus, u))
			}
		}
	}
	return out
}

// choosePlace resolves a place: the controller's key, the unit, and the disk that is there.
func (v *VM) choosePlace(devices []types.BaseVirtualDevice, want string, replace bool) (name string, key, unit int32, err error) {
	free := freePlaces(devices)
	if want == "" {
		if len(free) == 0 {
			return "", 0, 0, &Error{Kind: ErrUnsuitable, Object: v.label(), Summary: "machine " + v.label() + " has no free place for a disk", Remedy: "add a controller to it"}
		}
		want = free[0]
	}
	kind, bus, unit, err := parsePlace(want)
	if err != nil {
		return "", 0, 0, err
	}
	name = place(kind, bus, unit)
	for k, c := range controllersOf(devices) {
		if c.kind == kind && c.bus == bus {
			key = k
		}
	}
	if key == 0 || unit >= units(kind) || kind == "scsi" && unit == 7 {
		return "", 0, 0, &Error{Kind: ErrUnsuitable, Object: want, Candidates: free, Summary: fmt.Sprintf("machine %s has no place %s", v.label(), want), Remedy: "choose one of the candidates, or add a controller"}
	}
	for _, dev := range devices {
		d := dev.GetVirtualDevice()
		if d.ControllerKey != key || d.UnitNumber == nil || *d.UnitNumber != unit {
			continue
		}
		if _, isDisk := dev.(*types.VirtualDisk); !isDisk || !replace {
			return "", 0, 0, &Error{Kind: ErrExists, Object: want, Candidates: free, Summary: fmt.Sprintf("the place %s of machine %s is taken by %s", name, v.label(), deviceLabel(dev)), Remedy: "choose one of the candidates, or ask for a replacement"}
		}
	}
	return name, key, unit, nil
}

// WithNewDisk attaches a new disk, empty, and runs fn to fill it. When fn fails or panics the disk is removed with its
// file, and a replaced disk is attached again; a crash leaves that to [Client.Recover]. The machine may run, if its
// controller takes disks then.
func (v *VM) WithNewDisk(ctx context.Context, spec DiskSpec, fn func(context.Context, Disk) error) (_ Disk, err error) {
	if spec.Capacity <= 0 || spec.Capacity%512 != 0 {
		return Disk{}, wrongCapacity(spec.Capacity)
	}
	devices, err := v.hardwareNow(ctx)
	if err != nil {
		return Disk{}, err
	}
	name, key, unit, err := v.choosePlace(devices, spec.Place, spec.Replace)
	if err != nil {
		return Disk{}, err
	}
	if spec.Operation == nil {
		return Disk{}, &Error{Kind: ErrInvalid, Summary: "no operation is given for the disk", Remedy: "begin one with Journal.Begin"}
	}
	vm, err := v.read(ctx, "config.files.vmPathName")
	if err != nil {
		return Disk{}, err
	}
	home := vm.Config.Files.VmPathName
	if spec.Datastore == "" {
		spec.Datastore = datastoreOf(home)
	}
	now := disksOf(devices)
	e := entry{Kind: EntryDisk, Server: v.c.about.InstanceUUID, Machine: v.ID(), Path: v.label(), Name: name, Action: "delete",
		Object: ownFile(spec, name, home, now)}
	for _, d := range now {
		e.Before = append(e.Before, d.Path)
		if d.Name == name {
			e.Old = &oldDisk{Path: d.Path, Mode: d.Mode}
		}
	}
	backing := newBacking(spec.Datastore, string(types.VirtualDiskModePersistent), spec.Provision)
	if e.Object != "" {
		backing.FileName = e.Object
	}
	dev := &types.VirtualDisk{
		VirtualDevice: types.VirtualDevice{Key: -1, ControllerKey: key, UnitNumber: &unit, Backing: backing},
		CapacityInKB:  spec.Capacity >> 10, CapacityInBytes: spec.Capacity,
	}
	var made Disk
	err = v.withDisk(ctx, spec.Operation, e, dev, func(ctx context.Context, d Disk) error {
		made = d
		return fn(ctx, d)
	})
	return made, err
}

func wrongCapacity(bytes int64) error {
	return &Error{Kind: ErrInvalid, Summary: fmt.Sprintf("a disk cannot have %d bytes", bytes), Remedy: "give a positive multiple of 512"}
}

// ownFile names the file of a new disk, so that the journal knows it before it exists: in the directory that the
// machine has on the datastore. Empty where it has none there; vSphere makes one then, and names the file.
func ownFile(spec DiskSpec, place, home string, disks []Disk) string {
	dir := ownDirectory(spec.Datastore, home, disks)
	if dir == "" {
		return ""
	}
	_, name, _ := strings.Cut(dir, "] ")
	return fmt.Sprintf("%s/%s-%s-%s.vmdk", dir, path.Base(name), spec.Operation.id, place)
}

// ownDirectory is the directory that a machine has on a datastore, by its home and its disks; empty: none.
func ownDirectory(datastore, home string, disks []Disk) string {
	files := []string{home}
	for _, d := range disks {
		files = append(files, d.Base)
	}
	for _, f := range files {
		if dir := path.Dir(f); datastoreOf(f) == datastore && dir != "." {
			return dir
		}
	}
	return ""
}

// WithAttached attaches an existing disk, named by its datastore path, for the time of fn, as HotAdd does: independent
// and nonpersistent, so that nothing is written to it. It is detached afterwards and its file kept, always: a disk that
// stays attached locks the file and breaks the removal of the snapshot it belongs to.
func (v *VM) WithAttached(ctx context.Context, op *Operation, path string, fn func(context.Context, Disk) error) error {
	devices, err := v.hardwareNow(ctx)
	if err != nil {
		return err
	}
	want, err := v.scsiPlace(devices)
	if err != nil {
		return err
	}
	name, key, unit, err := v.choosePlace(devices, want, false)
	if err != nil {
		return err
	}
	e := entry{Kind: EntryDisk, Server: v.c.about.InstanceUUID, Machine: v.ID(), Path: v.label(), Name: name, Object: path, Action: "detach"}
	for _, d := range disksOf(devices) {
		e.Before = append(e.Before, d.Path)
	}
	dev := &types.VirtualDisk{VirtualDevice: types.VirtualDevice{Key: -1, ControllerKey: key, UnitNumber: &unit,
		Backing: &types.VirtualDiskFlatVer2BackingInfo{VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: path},
			DiskMode: string(types.VirtualDiskModeIndependent_nonpersistent)}}}
	return v.withDisk(ctx, op, e, dev, fn)
}

// scsiPlace is a free place of a SCSI controller, the only kind that VMware supports HotAdd for: the guest finds a disk
// there by its unit, and by no such number on the others.
func (v *VM) scsiPlace(devices []types.BaseVirtualDevice) (string, error) {
	free := freePlaces(devices)
	if len(free) == 0 || !strings.HasPrefix(free[0], "scsi") {
		return "", &Error{Kind: ErrUnsuitable, Object: v.label(), Summary: "machine " + v.label() + " has no free place on a SCSI controller, and disks are hot-added only there",
			Remedy: "add a SCSI controller to it"}
	}
	return free[0], nil
}

// withDisk attaches dev as e announces, runs fn, and undoes it: for e.Action "delete" when fn failed, for "detach"
// always.
func (v *VM) withDisk(ctx context.Context, op *Operation, e entry, dev *types.VirtualDisk, fn func(context.Context, Disk) error) (err error) {
	undoing := []string{"VirtualMachine.Config.RemoveDisk"}
	if e.Old != nil {
		undoing = append(undoing, "VirtualMachine.Config.AddExistingDisk")
	}
	if err := v.c.mayUndo(ctx, "attach a disk to "+v.label(), v.ref(), undoing...); err != nil {
		return err
	}
	x, err := op.announce(e)
	if err != nil {
		return err
	}
	stays := false
	defer func() {
		if !stays {
			after, cancel := v.c.afterwards(ctx)
			defer cancel()
			if e := v.undoDisk(after, x.current()); e != nil {
				err = errors.Join(err, &Error{Kind: ErrLeftover, Object: v.label(), Summary: fmt.Sprintf("the disk %s of machine %s could not be taken back", x.e.Name, v.label()), Err: e, Remedy: "run vmkeep recover"})
				return
			}
		}
		err = errors.Join(err, x.strike())
	}()
	if e.Old != nil {
		if err := v.detach(ctx, e.Old.Path, false); err != nil {
			return err
		}
	}
	change := &types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationAdd, Device: dev}
	if e.Action == "delete" {
		change.FileOperation = types.VirtualDeviceConfigSpecFileOperationCreate
	}
	if err := v.reconfigure(ctx, "attach a disk to "+v.label(), types.VirtualMachineConfigSpec{DeviceChange: []types.BaseVirtualDeviceConfigSpec{change}}); err != nil {
		return unsuitableDisk(v, err)
	}
	devices, err := v.hardwareNow(ctx)
	if err != nil {
		return err
	}
	for _, d := range disksOf(devices) {
		if d.Name != e.Name || e.foreign(d) || e.Object != "" && !e.is(d) {
			continue
		}
		if err := x.note(d.Path); err != nil {
			return err
		}
		if err := fn(ctx, d); err != nil {
			return err
		}
		stays = e.Action == "delete"
		return nil
	}
	return &Error{Kind: ErrUnsuitable, Object: v.label(), Summary: fmt.Sprintf("vSphere accepted the disk and machine %s has none at %s", v.label(), e.Name), Remedy: "look at the machine's events"}
}

// unsuitableDisk explains why vSphere does not put a disk into a machine, where that is in the machine's nature.
func unsuitableDisk(v *VM, err error) error {
	if !fault.Is(err, &types.InvalidVmConfig{}) {
		return err
	}
	return &Error{Kind: ErrUnsuitable, Object: v.label(), Err: err, Summary: "machine " + v.label() + " cannot have the disk, as it is configured",
		Remedy: "an encrypted disk goes only into a machine that is encrypted itself: encrypt the proxy, or read over nbdssl"}
}

// current is the announced side effect with what was noted since.
func (x *effect) current() entry {
	x.o.mu.Lock()
	defer x.o.mu.Unlock()
	if e, ok := x.o.open[x.e.N]; ok {
		return e
	}
	return x.e
}

// foreign reports whether a disk was there before the side effect.
func (e entry) foreign(d Disk) bool { return slices.Contains(e.Before, d.Path) }

// is reports whether a disk is the file that the side effect attached. A nonpersistent disk of a running machine has a
// redo log on top; its base is what was attached.
func (e entry) is(d Disk) bool { return d.Path == e.Object || d.Base == e.Object }

// errWhose says that a disk may be the one that was made, or another's: it is left alone.
var errWhose = errors.New("nobody knows whose it is")

// ours reports whether a disk of the machine is the one that the side effect attached. Other disks are never touched,
// also not one that somebody put at the same place since. A machine that backs itself up has the attached file below
// its own disk as well, so what is only detached has to hang where it was hung.
func (e entry) ours(d Disk) (bool, error) {
	switch {
	case e.foreign(d):
		return false, nil
	case e.Object != "":
		return e.is(d) && (e.Action != "detach" || d.Name == e.Name), nil
	case d.Name == e.Name:
		// vSphere named the file, and the process died before it wrote the name down.
		return false, fmt.Errorf("the disk %s at %s appeared while one was attached there: %w", d.Path, d.Name, errWhose)
	}
	return false, nil
}

// undoDisk takes an attached disk back, by its file. A machine that is gone has no disk.
func (v *VM) undoDisk(ctx context.Context, e entry) error {
	return v.c.insist(ctx, func() error { return v.undoDiskOnce(ctx, e) })
}

func (v *VM) undoDiskOnce(ctx context.Context, e entry) error {
	err := v.c.quiet(ctx, v.ref(), "reconfig") // an attachment whose answer was lost may still be coming
	var devices []types.BaseVirtualDevice
	if err == nil {
		devices, err = v.hardwareNow(ctx)
	}
	if isNotFound(err) {
		return v.c.discard(ctx, e)
	}
	if err != nil {
		return err
	}
	for _, d := range disksOf(devices) {
		ours, err := e.ours(d)
		if err != nil {
			return err
		}
		if ours {
			if err := v.detach(ctx, d.Path, e.Action != "detach"); err != nil {
				return err
			}
		}
	}
	if e.Old == nil {
		return v.c.discard(ctx, e)
	}
	if devices, err = v.hardwareNow(ctx); err != nil {
		return err
	}
	for _, d := range disksOf(devices) {
		if d.Path == e.Old.Path {
			return nil
		}
	}
	_, key, unit, err := v.choosePlace(devices, e.Name, false)
	if err != nil {
		return err
	}
	return v.reconfigure(ctx, "attach "+e.Old.Path+" to "+v.label()+" again", types.VirtualMachineConfigSpec{DeviceChange: []types.BaseVirtualDeviceConfigSpec{
		&types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationAdd, Device: &types.VirtualDisk{VirtualDevice: types.VirtualDevice{Key: -1, ControllerKey: key, UnitNumber: &unit,
			Backing: &types.VirtualDiskFlatVer2BackingInfo{VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: e.Old.Path}, DiskMode: orText(e.Old.Mode, string(types.VirtualDiskModePersistent))}}}}}})
}

// detach takes the disk with the path out of the machine, with or without its file. A disk that is not there is fine.
func (v *VM) detach(ctx context.Context, path string, destroy bool) error {
	devices, err := v.hardwareNow(ctx)
	if err != nil {
		return err
	}
	for _, dev := range devices {
		disk, ok := dev.(*types.VirtualDisk)
		if !ok || backingOf(disk.Backing).path != path {
			continue
		}
		change := &types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationRemove, Device: disk}
		if destroy {
			change.FileOperation = types.VirtualDeviceConfigSpecFileOperationDestroy
		}
		if err := v.reconfigure(ctx, "detach "+path+" from "+v.label(), types.VirtualMachineConfigSpec{DeviceChange: []types.BaseVirtualDeviceConfigSpec{change}}); err != nil {
			return err
		}
	}
	return nil
}
