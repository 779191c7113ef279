package lab

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/google/uuid"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// Creating and changing machines. The simulator does the configuration; what it gets wrong or dies of is checked
// or filled in before, and what it leaves out is done after.

// CreateVMTask answers Folder.CreateVM_Task.
func (s *sim) CreateVMTask(_ *simulator.Context, req *types.CreateVM_Task) soap.HasFault {
	body := new(methods.CreateVM_TaskBody)
	if _, ok := s.reg.Get(req.This).(*simulator.Folder); !ok {
		body.Fault_ = notFound(req.This)
		return body
	}
	body.Res = &types.CreateVM_TaskResponse{Returnval: s.start(req.This, "createVm", func(ctx *simulator.Context) (types.AnyType, types.BaseMethodFault) {
		r, fault := s.createVM(ctx, req)
		if fault != nil {
			return nil, fault
		}
		return r, nil
	})}
	return body
}

// createVM makes a machine from a specification and returns its reference.
func (s *sim) createVM(ctx *simulator.Context, req *types.CreateVM_Task) (r ref, fault types.BaseMethodFault) {
	folder, ok := s.reg.Get(req.This).(*simulator.Folder)
	if !ok {
		return r, &types.ManagedObjectNotFound{Obj: req.This}
	}
	if req.Config.Name == "" {
		return r, &types.InvalidVmConfig{Property: "configSpec.name"}
	}
	unlock := s.reg.AcquireLock(ctx, folder)
	defer unlock()
	if taken := s.reg.FindByName(req.Config.Name, folder.ChildEntity); taken != nil {
		return r, &types.DuplicateName{Name: req.Config.Name, Object: taken.Reference()}
	}
	if req.Host, fault = s.placement(req); fault != nil {
		return r, fault
	}
	if fault = s.nameFiles(&req.Config); fault != nil {
		return r, fault
	}
	s.uniqueInstance(&req.Config, ref{})
	if fault = s.prepareDevices(&req.Config, nil); fault != nil {
		return r, fault
	}
	res, fault := s.alone(ctx, func() ref { return folder.CreateVMTask(ctx, req).(*methods.CreateVM_TaskBody).Res.Returnval })
	if fault != nil {
		return r, fault
	}
	r = res.(ref)
	s.withVM(ctx, r, func(vm *simulator.VirtualMachine) { s.finish(ctx, vm) })
	return r, nil
}

// placement picks the host: the one asked for, or the first of the pool's cluster that mounts the datastore. The
// simulator takes a random one and panics if there is none.
func (s *sim) placement(req *types.CreateVM_Task) (*ref, types.BaseMethodFault) {
	if req.Config.Files == nil || req.Config.Files.VmPathName == "" {
		return nil, &types.InvalidVmConfig{Property: "configSpec.files.vmPathName"}
	}
	ds, _, ok := splitPath(req.Config.Files.VmPathName)
	if _, known := s.dirOf(ds); !ok || !known {
		return nil, &types.InvalidDatastorePath{DatastorePath: req.Config.Files.VmPathName}
	}
	if _, ok := s.reg.Get(req.Pool).(mo.Entity); !ok {
		return nil, &types.ManagedObjectNotFound{Obj: req.Pool}
	}
	if req.Host != nil {
		h, ok := s.reg.Get(*req.Host).(*simulator.HostSystem)
		if !ok {
			return nil, &types.ManagedObjectNotFound{Obj: *req.Host}
		}
		if s.reg.FindByName(ds, h.Datastore) == nil {
			return nil, &types.InvalidDatastorePath{DatastorePath: req.Config.Files.VmPathName}
		}
		return req.Host, nil
	}
	for _, h := range s.hostsOfPool(req.Pool) {
		if s.reg.FindByName(ds, h.Datastore) != nil && !h.Runtime.InMaintenanceMode {
			r := h.Self
			return &r, nil
		}
	}
	return nil, &types.InvalidDatastorePath{DatastorePath: req.Config.Files.VmPathName}
}

// hostsOfPool returns the hosts of the compute resource that the pool belongs to.
func (s *sim) hostsOfPool(pool ref) (out []*simulator.HostSystem) {
	r := pool
	for r.Type == "ResourcePool" || r.Type == "VirtualApp" {
		e, ok := s.reg.Get(r).(mo.Entity)
		if !ok || e.Entity().Parent == nil {
			return nil
		}
		r = *e.Entity().Parent
	}
	for _, h := range s.allHosts() {
		if h.Parent != nil && *h.Parent == r {
			out = append(out, h)
		}
	}
	return out
}

func (s *sim) allHosts() []*simulator.HostSystem {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hosts
}

// nameFiles completes the machine's and its new disks' paths: a fresh directory named after the machine, disks
// named after it too. The simulator puts disks into the wrong directory when that is taken.
func (s *sim) nameFiles(spec *types.VirtualMachineConfigSpec) types.BaseMethodFault {
	ds, p, _ := splitPath(spec.Files.VmPathName)
	dir := path.Dir(p)
	if path.Ext(p) != ".vmx" {
		want := p
		if want == "" {
			want = spec.Name
		}
		var fault types.BaseMethodFault
		if dir, fault = s.freshDir(ds, want); fault != nil {
			return fault
		}
		spec.Files.VmPathName = joinPath(ds, path.Join(dir, spec.Name+".vmx"))
	} else if s.exists(spec.Files.VmPathName) {
		return &types.FileAlreadyExists{FileFault: types.FileFault{File: spec.Files.VmPathName}}
	}
	if _, err := s.store.local(spec.Files.VmPathName); err != nil {
		return &types.InvalidDatastorePath{DatastorePath: spec.Files.VmPathName}
	}
	return s.nameDisks(spec, joinPath(ds, dir), spec.Name)
}

// freshDir makes the directory want on the datastore, or want_1, want_2 ... if that is taken.
func (s *sim) freshDir(ds, want string) (string, types.BaseMethodFault) {
	for n, dir := 1, want; ; n++ {
		p, err := s.store.local(joinPath(ds, dir))
		if err != nil {
			return "", &types.InvalidDatastorePath{DatastorePath: joinPath(ds, dir)}
		}
		switch err := os.Mkdir(p, 0o700); {
		case err == nil:
			return dir, nil
		case !errors.Is(err, os.ErrExist):
			return "", &types.CannotCreateFile{FileFault: types.FileFault{File: joinPath(ds, dir)}}
		}
		dir = fmt.Sprintf("%s_%d", want, n)
	}
}

// nameDisks names new disks that have no path yet: in home, on the disk's own datastore if it has one.
func (s *sim) nameDisks(spec *types.VirtualMachineConfigSpec, home, name string) types.BaseMethodFault {
	homeDS, homeDir, _ := splitPath(home)
	named := map[string]bool{}
	for _, ch := range spec.DeviceChange {
		sp := ch.GetVirtualDeviceConfigSpec()
		d, ok := sp.Device.(*types.VirtualDisk)
		if !ok || sp.Operation != types.VirtualDeviceConfigSpecOperationAdd {
			continue
		}
		fb, ok := d.Backing.(types.BaseVirtualDeviceFileBackingInfo)
		if !ok {
			return &types.InvalidDeviceBacking{}
		}
		b := fb.GetVirtualDeviceFileBackingInfo()
		ds, p, _ := splitPath(b.FileName)
		if ds == "" {
			ds = homeDS
			if b.Datastore != nil {
				if o, ok := s.reg.Get(*b.Datastore).(*simulator.Datastore); ok {
					ds = o.Name
				}
			}
		}
		if _, ok := s.dirOf(ds); !ok {
			return &types.InvalidDatastorePath{DatastorePath: b.FileName}
		}
		if p == "" {
			for n := 0; ; n++ {
				p = path.Join(homeDir, name+".vmdk")
				if n > 0 {
					p = path.Join(homeDir, fmt.Sprintf("%s_%d.vmdk", name, n))
				}
				if full := joinPath(ds, p); !named[full] && !s.exists(full) && s.store.find(full) == nil {
					break
				}
			}
		}
		b.FileName = joinPath(ds, p)
		named[b.FileName] = true
		if sp.FileOperation != "" {
			local, err := s.store.local(b.FileName)
			if err != nil {
				return &types.InvalidDatastorePath{DatastorePath: b.FileName}
			}
			if err := os.MkdirAll(filepath.Dir(local), 0o700); err != nil {
				return &types.CannotCreateFile{FileFault: types.FileFault{File: b.FileName}}
			}
		}
	}
	return nil
}

func (s *sim) exists(dsPath string) bool {
	p, err := s.store.local(dsPath)
	if err != nil {
		return false
	}
	_, err = os.Lstat(p)
	return !errors.Is(err, os.ErrNotExist)
}

func (s *sim) dirOf(datastore string) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	dir, ok := s.dirs[datastore]
	return dir, ok
}

// uniqueInstance replaces an instanceUuid that a machine other than self has, as vCenter does. A bios uuid may repeat.
func (s *sim) uniqueInstance(spec *types.VirtualMachineConfigSpec, self ref) {
	taken := spec.InstanceUuid == ""
	s.mu.Lock()
	for r, m := range s.machines {
		if r != self {
			m.mu.Lock()
			taken = taken || strings.EqualFold(m.instance, spec.InstanceUuid)
			m.mu.Unlock()
		}
	}
	s.mu.Unlock()
	if taken {
		spec.InstanceUuid = newInstanceUUID()
	}
}

// newInstanceUUID makes a uuid that begins as vCenter's do.
func newInstanceUUID() string { return "50" + uuid.NewString()[2:] }

// prepareDevices checks and completes the device changes of a specification before the simulator sees them.
func (s *sim) prepareDevices(spec *types.VirtualMachineConfigSpec, existing []types.BaseVirtualDevice) types.BaseMethodFault {
	if f := assignKeys(spec.DeviceChange, existing); f != nil {
		return f
	}
	for i, ch := range spec.DeviceChange {
		sp := ch.GetVirtualDeviceConfigSpec()
		if sp.Device == nil {
			return &types.InvalidDeviceSpec{DeviceIndex: int32(i)}
		}
		switch d := sp.Device.(type) {
		case *types.VirtualDisk:
			if f := s.prepareDisk(int32(i), sp, d, existing); f != nil {
				return f
			}
		case types.BaseVirtualEthernetCard:
			if f := s.checkNetwork(d.GetVirtualEthernetCard()); f != nil {
				return f
			}
		}
	}
	return nil
}

func (s *sim) prepareDisk(index int32, sp *types.VirtualDeviceConfigSpec, d *types.VirtualDisk, existing []types.BaseVirtualDevice) types.BaseMethodFault {
	wrong := func(property string) types.BaseMethodFault {
		return &types.InvalidDeviceSpec{DeviceIndex: index, InvalidVmConfig: types.InvalidVmConfig{Property: property}}
	}
	fb, ok := d.Backing.(types.BaseVirtualDeviceFileBackingInfo)
	if !ok && sp.Operation != types.VirtualDeviceConfigSpecOperationRemove {
		return wrong("virtualDeviceSpec.device.backing")
	}
	var old *types.VirtualDisk
	for _, e := range virtualDisks(existing) {
		if e.Key == d.Key {
			old = e
		}
	}
	switch sp.Operation {
	case types.VirtualDeviceConfigSpecOperationAdd:
		return s.prepareNewDisk(sp, d, fb.GetVirtualDeviceFileBackingInfo())
	case types.VirtualDeviceConfigSpecOperationEdit:
		if old == nil {
			return wrong("virtualDeviceSpec.device.key")
		}
		size := max(d.CapacityInBytes, d.CapacityInKB*1024)
		if size == 0 {
			size = old.CapacityInBytes
		}
		b := flatBacking(old)
		switch {
		case size < old.CapacityInBytes:
			return wrong("virtualDeviceSpec.device.capacityInBytes")
		case size > old.CapacityInBytes && b != nil && b.Parent != nil:
			return wrong("virtualDeviceSpec.device.capacityInBytes") // not while snapshots exist
		}
		d.CapacityInBytes, d.CapacityInKB = size, size/1024
		if b != nil {
			if nb := flatBacking(d); nb != nil { // an edit sends the backing back, perhaps in part
				keep := *b
				keep.DiskMode = nb.DiskMode
				if nb.DiskMode == "" {
					keep.DiskMode = b.DiskMode
				}
				keep.Sharing = nb.Sharing
				d.Backing = &keep
			}
		}
	case types.VirtualDeviceConfigSpecOperationRemove:
		if old == nil {
			return wrong("virtualDeviceSpec.device.key")
		}
		sp.Device = old
		s.keepUUIDs(old)
	}
	return nil
}

// keepUUIDs writes the uuids of disks that leave their machine to where their files are.
func (s *sim) keepUUIDs(devices ...types.BaseVirtualDevice) {
	for _, d := range virtualDisks(devices) {
		b := flatBacking(d)
		if b == nil {
			continue
		}
		if l := s.store.find(b.FileName); l != nil {
			l.vol.mu.Lock()
			l.vol.uuid = b.Uuid
			l.vol.mu.Unlock()
		}
	}
}

// prepareNewDisk readies a disk that is created or attached.
func (s *sim) prepareNewDisk(sp *types.VirtualDeviceConfigSpec, d *types.VirtualDisk, b *types.VirtualDeviceFileBackingInfo) types.BaseMethodFault {
	ds, _, _ := splitPath(b.FileName)
	flat := flatBacking(d)
	if sp.FileOperation != "" {
		size := max(d.CapacityInBytes, d.CapacityInKB*1024)
		if flat != nil && !isTrue(flat.ThinProvisioned) && size > s.freeSpace(ds) || s.freeSpace(ds) <= 0 {
			return &types.NoDiskSpace{FileFault: types.FileFault{File: b.FileName}, Datastore: ds}
		}
		if flat != nil {
			flat.Parent, flat.ChangeId = nil, ""
			if flat.Uuid == "" {
				flat.Uuid = newDiskUUID()
			}
			if flat.DiskMode == "" {
				flat.DiskMode = string(types.VirtualDiskModePersistent)
			}
			if l := s.store.find(b.FileName); l != nil && sp.FileOperation == types.VirtualDeviceConfigSpecFileOperationReplace {
				s.store.drop(l)
			}
		}
		return nil
	}
	if flat == nil {
		return nil
	}
	l := s.store.find(b.FileName)
	if l == nil { // uploaded by hand: a descriptor and a flat file
		var err error
		if l, err = s.store.adopt(b.FileName); err != nil {
			return &types.FileNotFound{FileFault: types.FileFault{File: b.FileName}}
		}
	}
	d.CapacityInBytes, d.CapacityInKB = l.size, l.size/1024
	l.vol.mu.RLock()
	if l.vol.uuid != "" {
		flat.Uuid = l.vol.uuid
	}
	l.vol.mu.RUnlock()
	if flat.DiskMode == "" {
		flat.DiskMode = string(types.VirtualDiskModePersistent)
	}
	if flat.ThinProvisioned == nil {
		flat.ThinProvisioned = types.NewBool(l.thin)
	}
	return nil
}

// checkNetwork refuses networks the simulator would panic about.
func (s *sim) checkNetwork(card *types.VirtualEthernetCard) types.BaseMethodFault {
	switch b := card.Backing.(type) {
	case *types.VirtualEthernetCardNetworkBackingInfo:
		for _, kind := range []string{"Network", "DistributedVirtualPortgroup", "OpaqueNetwork"} {
			for _, e := range s.reg.All(kind) {
				if e.Entity().Name == b.DeviceName || networkName(e) == b.DeviceName {
					return nil
				}
			}
		}
		return &types.InvalidDeviceBacking{InvalidDeviceSpec: types.InvalidDeviceSpec{
			InvalidVmConfig: types.InvalidVmConfig{Property: "virtualDeviceSpec.device.backing.deviceName"}}}
	case *types.VirtualEthernetCardDistributedVirtualPortBackingInfo:
		if s.reg.Get(ref{Type: "DistributedVirtualPortgroup", Value: b.Port.PortgroupKey}) == nil {
			return &types.InvalidDeviceBacking{}
		}
	}
	return nil
}

func networkName(e mo.Entity) string {
	switch n := e.(type) {
	case *mo.Network:
		return n.Name
	case *simulator.DistributedVirtualPortgroup:
		return n.Name
	}
	return ""
}

// finish gives a new or changed machine what the simulator leaves out. Machine lock held.
func (s *sim) finish(ctx *simulator.Context, vm *simulator.VirtualMachine) {
	changes := []types.PropertyChange{
		{Name: "capability.snapshotOperationsSupported", Val: true},
		{Name: "capability.multipleSnapshotsSupported", Val: true},
		{Name: "capability.snapshotConfigSupported", Val: true},
		{Name: "capability.poweredOffSnapshotsSupported", Val: true},
		{Name: "capability.memorySnapshotsSupported", Val: true},
		{Name: "capability.revertToSnapshotSupported", Val: true},
		{Name: "capability.quiescedSnapshotsSupported", Val: true},
		{Name: "capability.changeTrackingSupported", Val: hardwareVersion(vm.Config.Version) >= 7},
		{Name: "capability.consolePreferencesSupported", Val: false},
	}
	if devices, ok := polished(vm.Self.Value, vm.Config.Hardware.Device); ok {
		changes = append(changes, types.PropertyChange{Name: "config.hardware.device", Val: devices})
	}
	ctx.Update(vm, changes)
	m := s.know(vm.Self)
	m.mu.Lock()
	if s.opt.FineGrain > 0 && hardwareVersion(vm.Config.Version) >= 17 {
		m.grain = s.opt.FineGrain
	}
	m.mu.Unlock()
	s.showSpace(ctx)
}

func hardwareVersion(v string) (n int) {
	_, _ = fmt.Sscanf(v, "vmx-%d", &n)
	return n
}

// ReconfigVMTask answers ReconfigVM_Task.
func (s *sim) ReconfigVMTask(_ *simulator.Context, req *types.ReconfigVM_Task) soap.HasFault {
	body := new(methods.ReconfigVM_TaskBody)
	id, fault := s.onMachine(req.This, "reconfigVm", func(ctx *simulator.Context) (_ types.AnyType, fault types.BaseMethodFault) {
		if f := s.know(req.This).currentFaults().Reconfigure; f != nil {
			return nil, f
		}
		if !s.withVM(ctx, req.This, func(vm *simulator.VirtualMachine) { fault = s.reconfigure(ctx, vm, &req.Spec) }) {
			fault = &types.ManagedObjectNotFound{Obj: req.This}
		}
		return nil, fault
	})
	if body.Fault_ = fault; fault == nil {
		body.Res = &types.ReconfigVM_TaskResponse{Returnval: id}
	}
	return body
}

// reconfigure applies spec. Machine lock held.
func (s *sim) reconfigure(ctx *simulator.Context, vm *simulator.VirtualMachine, spec *types.VirtualMachineConfigSpec) types.BaseMethodFault {
	if isTrue(spec.ChangeTrackingEnabled) && hardwareVersion(vm.Config.Version) < 7 {
		return &types.InvalidVmConfig{Property: "configSpec.changeTrackingEnabled"}
	}
	if spec.InstanceUuid != "" && !strings.EqualFold(spec.InstanceUuid, vm.Config.InstanceUuid) {
		s.uniqueInstance(spec, vm.Self)
	}
	if spec.Name != "" && spec.Name != vm.Name {
		if f, ok := s.reg.Get(*vm.Parent).(*simulator.Folder); ok {
			if taken := s.reg.FindByName(spec.Name, f.ChildEntity); taken != nil {
				return &types.DuplicateName{Name: spec.Name, Object: taken.Reference()}
			}
		}
	}
	home := path.Dir(vm.Config.Files.VmPathName)
	if f := s.nameDisks(spec, home, vm.Name); f != nil {
		return f
	}
	if f := s.encryptedIn(vm, spec); f != nil {
		return f
	}
	before := cloneDevices(vm.Config.Hardware.Device)
	if f := s.prepareDevices(spec, before); f != nil {
		return f
	}
	var destroyed []string
	for _, ch := range spec.DeviceChange {
		sp := ch.GetVirtualDeviceConfigSpec()
		if d, ok := sp.Device.(*types.VirtualDisk); ok && sp.Operation == types.VirtualDeviceConfigSpecOperationRemove &&
			sp.FileOperation == types.VirtualDeviceConfigSpecFileOperationDestroy {
			if b := flatBacking(d); b != nil {
				destroyed = append(destroyed, b.FileName)
				if l := s.store.find(b.FileName); l != nil && s.store.held(l) {
					return &types.FileLocked{FileFault: types.FileFault{File: b.FileName}}
				}
			}
			sp.FileOperation = "" // the files are ours to delete
		}
	}
	if _, fault := s.alone(ctx, func() ref {
		return vm.ReconfigVMTask(ctx, &types.ReconfigVM_Task{This: vm.Self, Spec: *spec}).(*methods.ReconfigVM_TaskBody).Res.Returnval
	}); fault != nil {
		ctx.Update(vm, []types.PropertyChange{{Name: "config.hardware.device", Val: before}}) // the simulator edits in place
		return fault
	}
	s.finish(ctx, vm)
	for _, p := range destroyed {
		s.destroyChain(vm.Self, p)
	}
	return nil
}

// destroyChain deletes the link at p and what lies below it, as far as no snapshot or other link needs it.
func (s *sim) destroyChain(vm ref, p string) {
	shown := map[string]bool{}
	for _, sn := range s.snapshotObjects(vm) {
		for _, d := range virtualDisks(sn.Config.Hardware.Device) {
			if b := flatBacking(d); b != nil {
				shown[b.FileName] = true
			}
		}
	}
	for l := s.store.find(p); l != nil; {
		l.vol.mu.Lock()
		below := l.parent
		if shown[l.path] || len(s.store.children(l)) > 0 {
			below = nil
		} else {
			s.store.drop(l)
		}
		vol := l.vol
		l = below
		vol.mu.Unlock()
	}
}
