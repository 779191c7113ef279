package lab

import (
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// DestroyTask answers Destroy_Task: the machine's own files go with it, others in its directory stay. (The simulator
// deletes the whole directory, and leaves disks that lie elsewhere.)
func (s *sim) DestroyTask(_ *simulator.Context, req *types.Destroy_Task) soap.HasFault {
	body := new(methods.Destroy_TaskBody)
	id, fault := s.onMachine(req.This, "destroy", func(ctx *simulator.Context) (_ types.AnyType, fault types.BaseMethodFault) {
		m := s.know(req.This)
		if f := m.currentFaults().Destroy; f != nil {
			return nil, f
		}
		if !s.withVM(ctx, req.This, func(vm *simulator.VirtualMachine) { fault = s.destroy(ctx, vm, m) }) {
			fault = &types.ManagedObjectNotFound{Obj: req.This}
		}
		return nil, fault
	})
	if body.Fault_ = fault; fault == nil {
		body.Res = &types.Destroy_TaskResponse{Returnval: id}
	}
	return body
}

func (s *sim) destroy(ctx *simulator.Context, vm *simulator.VirtualMachine, m *machine) types.BaseMethodFault {
	if vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn {
		return &types.InvalidPowerState{RequestedState: types.VirtualMachinePowerStatePoweredOff, ExistingState: vm.Runtime.PowerState}
	}
	s.awaitReaders(m)
	if s.heldBelow(m) {
		return &types.FileLocked{FileFault: types.FileFault{File: vm.Config.Files.VmPathName}}
	}
	links := s.linksOf(vm, m.leaves())
	dir := path.Dir(vm.Config.Files.VmPathName)
	files := []string{path.Base(vm.Config.Files.VmPathName), vm.Config.Name + ".nvram", "vmware.log"}
	m.mu.Lock()
	for _, st := range m.snaps {
		files = append(files, st.vmsn)
	}
	m.mu.Unlock()
	ds, p, _ := splitPath(dir)
	vm.Config.Files.LogDirectory = joinPath(ds, path.Join(p, ".destroyed")) // what the simulator deletes
	if _, f := s.alone(ctx, func() ref {
		return vm.DestroyTask(ctx, &types.Destroy_Task{This: vm.Self}).(*methods.Destroy_TaskBody).Res.Returnval
	}); f != nil {
		return f
	}
	for _, sn := range s.snapshotObjects(vm.Self) {
		s.reg.Remove(ctx, sn.Self)
	}
	for _, l := range links {
		l.vol.mu.Lock()
		s.store.drop(l)
		l.vol.mu.Unlock()
	}
	for _, f := range files {
		if local, err := s.local(dir, f); err == nil {
			_ = os.Remove(local)
		}
	}
	if local, err := s.store.local(dir); err == nil && p != "." {
		_ = os.Remove(local) // only if nothing is left in it
	}
	return nil
}

// linksOf returns every link of the machine's disks, live and frozen, bases first. leaves are the live ones.
func (s *sim) linksOf(vm *simulator.VirtualMachine, leaves []*link) (out []*link) {
	vols := map[*volume]bool{}
	for _, l := range leaves {
		vols[l.vol] = true
	}
	for _, sn := range s.snapshotObjects(vm.Self) {
		for _, d := range virtualDisks(sn.Config.Hardware.Device) {
			if b := flatBacking(d); b != nil {
				if l := s.store.find(b.FileName); l != nil {
					vols[l.vol] = true
				}
			}
		}
	}
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	for _, l := range s.store.links {
		if vols[l.vol] {
			out = append(out, l)
		}
	}
	slices.SortFunc(out, func(a, b *link) int { return len(a.path) - len(b.path) })
	return out
}

// UnregisterVM answers UnregisterVM: the files stay.
func (s *sim) UnregisterVM(ctx *simulator.Context, req *types.UnregisterVM) soap.HasFault {
	var res soap.HasFault
	if !s.withVM(ctx, req.This, func(vm *simulator.VirtualMachine) {
		snaps := s.snapshotObjects(vm.Self)
		s.keepUUIDs(vm.Config.Hardware.Device...)
		s.storage.Lock()
		res = vm.UnregisterVM(ctx, req)
		s.storage.Unlock()
		if res.Fault() == nil {
			for _, sn := range snaps {
				s.reg.Remove(ctx, sn.Self)
			}
		}
	}) {
		return &methods.UnregisterVMBody{Fault_: notFound(req.This)}
	}
	return res
}

// RegisterVMTask answers RegisterVM_Task: the machine is what its .vmx says. (The simulator ignores it.)
func (s *sim) RegisterVMTask(_ *simulator.Context, req *types.RegisterVM_Task) soap.HasFault {
	body := new(methods.RegisterVM_TaskBody)
	if _, ok := s.reg.Get(req.This).(*simulator.Folder); !ok {
		body.Fault_ = notFound(req.This)
		return body
	}
	body.Res = &types.RegisterVM_TaskResponse{Returnval: s.start(req.This, "registerVm", func(ctx *simulator.Context) (types.AnyType, types.BaseMethodFault) {
		r, fault := s.register(ctx, req)
		if fault != nil {
			return nil, fault
		}
		return r, nil
	})}
	return body
}

func (s *sim) register(ctx *simulator.Context, req *types.RegisterVM_Task) (r ref, fault types.BaseMethodFault) {
	folder := s.reg.Get(req.This).(*simulator.Folder)
	file, err := s.store.local(req.Path)
	if err != nil {
		return r, &types.InvalidDatastorePath{DatastorePath: req.Path}
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return r, &types.FileNotFound{FileFault: types.FileFault{File: req.Path}}
	}
	set, err := parseVMX(text)
	if err != nil {
		return r, &types.InvalidVmConfig{Property: "path"}
	}
	spec := specOfVMX(req.Path, set)
	if req.Name != "" {
		spec.Name = req.Name
	}
	if spec.Name == "" {
		spec.Name = strings.TrimSuffix(path.Base(req.Path), ".vmx")
	}
	pool := req.Pool
	if pool == nil && req.Host != nil {
		if h, ok := s.reg.Get(*req.Host).(*simulator.HostSystem); ok {
			pool = s.rootPool(h)
		}
	}
	if pool == nil {
		return r, &types.InvalidArgument{InvalidProperty: "pool"}
	}
	unlock := s.reg.AcquireLock(ctx, folder)
	defer unlock()
	if taken := s.reg.FindByName(spec.Name, folder.ChildEntity); taken != nil {
		return r, &types.DuplicateName{Name: spec.Name, Object: taken.Reference()}
	}
	host, fault := s.placement(&types.CreateVM_Task{Pool: *pool, Host: req.Host,
		Config: types.VirtualMachineConfigSpec{Files: &types.VirtualMachineFileInfo{VmPathName: req.Path}}})
	if fault != nil {
		return r, fault
	}
	for _, f := range []string{spec.Name + ".nvram", "vmware.log"} { // the simulator wants to find them
		if p, err := s.local(path.Dir(req.Path), f); err == nil {
			if f, err := os.OpenFile(p, os.O_CREATE|os.O_RDWR, 0o600); err == nil {
				_ = f.Close()
			}
		}
	}
	res, fault := s.alone(ctx, func() ref {
		return folder.RegisterVMTask(ctx, &types.RegisterVM_Task{
			This: req.This, Path: req.Path, Name: spec.Name, AsTemplate: false, Pool: pool, Host: host}).(*methods.RegisterVM_TaskBody).Res.Returnval
	})
	if fault != nil {
		return r, fault
	}
	r = res.(ref)
	spec.Name = ""
	s.withVM(ctx, r, func(vm *simulator.VirtualMachine) {
		if fault = s.reconfigure(ctx, vm, spec); fault == nil {
			fault = s.adoptDeltas(ctx, vm)
		}
		if fault == nil && req.AsTemplate {
			ctx.Update(vm, []types.PropertyChange{{Name: "config.template", Val: true}, {Name: "summary.config.template", Val: true}})
		}
	})
	if fault != nil {
		s.UnregisterVM(ctx, &types.UnregisterVM{This: r})
	}
	return r, fault
}

// adoptDeltas shows the parents of disks that were registered with a delta on top, and says that it should be merged:
// the snapshots are not known any more. Machine lock held.
func (s *sim) adoptDeltas(ctx *simulator.Context, vm *simulator.VirtualMachine) types.BaseMethodFault {
	devices := cloneDevices(vm.Config.Hardware.Device)
	deltas := false
	for _, d := range virtualDisks(devices) {
		b := flatBacking(d)
		if b == nil {
			continue
		}
		for l := s.store.find(b.FileName); l != nil && l.parent != nil; l = l.parent {
			deltas = true
			parent := *b
			parent.FileName, parent.Parent = l.parent.path, nil
			b.Parent = &parent
			b = &parent
		}
	}
	if deltas {
		ctx.Update(vm, []types.PropertyChange{{Name: "config.hardware.device", Val: devices}})
		s.showConsolidationNeeded(ctx, vm, true)
	}
	return nil
}

// rootPool is the root resource pool of the host's cluster or of the host.
func (s *sim) rootPool(h *simulator.HostSystem) *ref {
	switch p := s.reg.Get(*h.Parent).(type) {
	case *simulator.ClusterComputeResource:
		return p.ResourcePool
	case *mo.ComputeResource:
		return p.ResourcePool
	}
	return nil
}

// CloneVMTask answers CloneVM_Task: a full copy with content. The clone's disks have uuids and tracking of their own.
func (s *sim) CloneVMTask(_ *simulator.Context, req *types.CloneVM_Task) soap.HasFault {
	body := new(methods.CloneVM_TaskBody)
	id, fault := s.onMachine(req.This, "cloneVm", func(ctx *simulator.Context) (types.AnyType, types.BaseMethodFault) {
		r, fault := s.clone(ctx, req)
		if fault != nil {
			return nil, fault
		}
		return r, nil
	})
	if body.Fault_ = fault; fault == nil {
		body.Res = &types.CloneVM_TaskResponse{Returnval: id}
	}
	return body
}

func (s *sim) clone(ctx *simulator.Context, req *types.CloneVM_Task) (r ref, fault types.BaseMethodFault) {
	var spec *types.VirtualMachineConfigSpec
	var sources []*link
	pool, host := req.Spec.Location.Pool, req.Spec.Location.Host
	if !s.withVM(ctx, req.This, func(vm *simulator.VirtualMachine) {
		config := vm.Config
		if req.Spec.Snapshot != nil {
			if sn, ok := s.reg.Get(*req.Spec.Snapshot).(*simulator.VirtualMachineSnapshot); ok && sn.Vm == vm.Self {
				config = &sn.Config
			} else {
				fault = &types.ManagedObjectNotFound{Obj: *req.Spec.Snapshot}
				return
			}
		}
		if pool == nil {
			pool = vm.ResourcePool
		}
		ds, _, _ := splitPath(vm.Config.Files.VmPathName)
		if d := req.Spec.Location.Datastore; d != nil {
			if o, ok := s.reg.Get(*d).(*simulator.Datastore); ok {
				ds = o.Name
			}
		} else if host == nil {
			host = vm.Runtime.Host
		}
		spec, sources = s.cloneSpec(config, req.Name, ds)
	}) {
		return r, &types.ManagedObjectNotFound{Obj: req.This}
	}
	if fault != nil {
		return r, fault
	}
	if pool == nil {
		return r, &types.InvalidArgument{InvalidProperty: "spec.location.pool"}
	}
	r, fault = s.createVM(ctx, &types.CreateVM_Task{This: req.Folder, Config: *spec, Pool: *pool, Host: host})
	if fault != nil {
		return r, fault
	}
	if fault = s.fillClone(ctx, r, sources); fault != nil {
		return r, fault
	}
	s.withVM(ctx, r, func(vm *simulator.VirtualMachine) {
		if req.Spec.Config != nil {
			if fault = s.reconfigure(ctx, vm, req.Spec.Config); fault != nil {
				return
			}
		}
		if req.Spec.Template {
			ctx.Update(vm, []types.PropertyChange{{Name: "config.template", Val: true}, {Name: "summary.config.template", Val: true}})
		} else if req.Spec.PowerOn {
			_, fault = s.inner(ctx, powerOn(ctx, vm))
		}
	})
	return r, fault
}

// cloneSpec is the specification of a copy of config, and where its disks' content comes from.
func (s *sim) cloneSpec(config *types.VirtualMachineConfigInfo, name, datastore string) (*types.VirtualMachineConfigSpec, []*link) {
	spec := &types.VirtualMachineConfigSpec{
		Name: name, Version: config.Version, GuestId: config.GuestId, Firmware: config.Firmware, Annotation: config.Annotation,
		NumCPUs: config.Hardware.NumCPU, MemoryMB: int64(config.Hardware.MemoryMB), ChangeTrackingEnabled: config.ChangeTrackingEnabled,
		Uuid: "42" + newInstanceUUID()[2:], Files: &types.VirtualMachineFileInfo{VmPathName: "[" + datastore + "]"},
	}
	var sources []*link
	for _, d := range cloneDevices(config.Hardware.Device) {
		op := types.VirtualDeviceConfigSpecFileOperation("")
		switch d := d.(type) {
		case *types.VirtualDisk:
			b := flatBacking(d)
			if b == nil {
				continue
			}
			sources = append(sources, s.store.find(b.FileName))
			b.FileName, b.Parent, b.Uuid, b.ChangeId, b.Datastore, b.DeltaDiskFormat = "", nil, "", "", nil, ""
			op = types.VirtualDeviceConfigSpecFileOperationCreate
		case types.BaseVirtualEthernetCard:
			d.GetVirtualEthernetCard().MacAddress = ""
		case types.BaseVirtualController:
			d.GetVirtualController().Device = nil
			if _, _, onBus := busOf(d.(types.BaseVirtualDevice)); !onBus {
				continue
			}
			if _, ide := d.(*types.VirtualIDEController); ide {
				continue
			}
		default:
			continue // devices every machine has
		}
		spec.DeviceChange = append(spec.DeviceChange, &types.VirtualDeviceConfigSpec{
			Operation: types.VirtualDeviceConfigSpecOperationAdd, Device: d, FileOperation: op})
	}
	return spec, sources
}

func (s *sim) fillClone(ctx *simulator.Context, r ref, sources []*link) (fault types.BaseMethodFault) {
	var targets []*link
	s.withVM(ctx, r, func(vm *simulator.VirtualMachine) {
		for _, d := range virtualDisks(vm.Config.Hardware.Device) {
			targets = append(targets, s.store.find(flatBacking(d).FileName))
		}
	})
	for i, t := range targets {
		if i < len(sources) && sources[i] != nil && t != nil {
			if err := copyContent(t, sources[i]); err != nil {
				return &types.SystemErrorFault{Reason: fmt.Sprintf("copy %s: %v", sources[i].path, err)}
			}
		}
	}
	return nil
}
