package lab

import (
	"os"
	"path"
	"path/filepath"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// RelocateVMTask answers RelocateVM_Task: to another host, pool, folder or datastore, with content and snapshots.
func (s *sim) RelocateVMTask(_ *simulator.Context, req *types.RelocateVM_Task) soap.HasFault {
	body := new(methods.RelocateVM_TaskBody)
	id, fault := s.onMachine(req.This, "relocateVm", func(ctx *simulator.Context) (_ types.AnyType, fault types.BaseMethodFault) {
		if !s.withVM(ctx, req.This, func(vm *simulator.VirtualMachine) { fault = s.relocate(ctx, vm, &req.Spec) }) {
			fault = &types.ManagedObjectNotFound{Obj: req.This}
		}
		return nil, fault
	})
	if body.Fault_ = fault; fault == nil {
		body.Res = &types.RelocateVM_TaskResponse{Returnval: id}
	}
	return body
}

// relocate moves the machine. Machine lock held.
func (s *sim) relocate(ctx *simulator.Context, vm *simulator.VirtualMachine, spec *types.VirtualMachineRelocateSpec) types.BaseMethodFault {
	if spec.Host != nil {
		if _, ok := s.reg.Get(*spec.Host).(*simulator.HostSystem); !ok {
			return &types.ManagedObjectNotFound{Obj: *spec.Host}
		}
	}
	m := s.know(vm.Self)
	if spec.Datastore != nil {
		if source := m.disabledBy("RelocateVM_Task"); source != "" {
			return &types.MethodDisabled{Source: source}
		}
		ds, ok := s.reg.Get(*spec.Datastore).(*simulator.Datastore)
		if !ok {
			return &types.ManagedObjectNotFound{Obj: *spec.Datastore}
		}
		if f := s.moveFiles(ctx, vm, m, ds); f != nil {
			return f
		}
	}
	var changes []types.PropertyChange
	if spec.Host != nil && *spec.Host != *vm.Runtime.Host {
		if h, ok := s.reg.Get(*vm.Runtime.Host).(*simulator.HostSystem); ok {
			s.reg.RemoveReference(ctx, h, &h.Vm, vm.Self)
		}
		h := s.reg.Get(*spec.Host).(*simulator.HostSystem)
		s.reg.AddReference(ctx, h, &h.Vm, vm.Self)
		changes = append(changes, types.PropertyChange{Name: "runtime.host", Val: spec.Host},
			types.PropertyChange{Name: "summary.runtime.host", Val: spec.Host})
	}
	if spec.Pool != nil && (vm.ResourcePool == nil || *spec.Pool != *vm.ResourcePool) {
		to, ok := s.reg.Get(*spec.Pool).(*simulator.ResourcePool)
		if !ok {
			return &types.ManagedObjectNotFound{Obj: *spec.Pool}
		}
		if vm.ResourcePool != nil {
			if from, ok := s.reg.Get(*vm.ResourcePool).(*simulator.ResourcePool); ok {
				s.reg.RemoveReference(ctx, from, &from.Vm, vm.Self)
			}
		}
		s.reg.AddReference(ctx, to, &to.Vm, vm.Self)
		changes = append(changes, types.PropertyChange{Name: "resourcePool", Val: spec.Pool})
	}
	if len(changes) > 0 {
		ctx.Update(vm, changes)
	}
	if spec.Folder != nil {
		f, ok := s.reg.Get(*spec.Folder).(*simulator.Folder)
		if !ok {
			return &types.ManagedObjectNotFound{Obj: *spec.Folder}
		}
		res := f.MoveIntoFolderTask(ctx, &types.MoveIntoFolder_Task{This: f.Self, List: []ref{vm.Self}})
		if _, fault := s.inner(ctx, res.(*methods.MoveIntoFolder_TaskBody).Res.Returnval); fault != nil {
			return fault
		}
	}
	m.gate.Lock() // the migration is a stun
	s.stun(m, vm.Config.Hardware.Device)
	m.gate.Unlock()
	return nil
}

// moveFiles takes the machine's disks, links and all, and its other files to another datastore. Machine lock held.
func (s *sim) moveFiles(ctx *simulator.Context, vm *simulator.VirtualMachine, m *machine, to *simulator.Datastore) types.BaseMethodFault {
	moved := map[string]string{}
	links := s.linksOf(vm, m.leaves())
	m.gate.Lock()
	for _, l := range links {
		old := l.path
		_, p, _ := splitPath(old)
		next := joinPath(to.Name, p)
		if next == old {
			continue
		}
		if f := s.moveLink(l, next); f != nil {
			m.gate.Unlock()
			return f
		}
		moved[old] = next
	}
	if !s.opt.MoveKeepsTracking && len(moved) > 0 {
		for _, l := range m.live {
			l.vol.mu.Lock()
			l.vol.track = nil
			l.vol.mu.Unlock()
		}
	}
	m.gate.Unlock()

	rewrite := func(devices []types.BaseVirtualDevice) []types.BaseVirtualDevice {
		out := cloneDevices(devices)
		for _, d := range virtualDisks(out) {
			for b := flatBacking(d); b != nil; b = b.Parent {
				if next, ok := moved[b.FileName]; ok {
					r := to.Self
					b.FileName, b.Datastore = next, &r
				}
			}
		}
		return out
	}
	for _, sn := range s.snapshotObjects(vm.Self) {
		ctx.WithLock(sn, func() {
			ctx.Update(sn, []types.PropertyChange{{Name: "config.hardware.device", Val: rewrite(sn.Config.Hardware.Device)}})
		})
	}
	files, fault := s.moveHome(vm, to.Name)
	if fault != nil {
		return fault
	}
	s.storage.Lock()
	for _, r := range vm.Datastore {
		if from, ok := s.reg.Get(r).(*simulator.Datastore); ok && r != to.Self {
			s.reg.RemoveReference(ctx, from, &from.Vm, vm.Self)
		}
	}
	s.reg.AddReference(ctx, to, &to.Vm, vm.Self)
	s.storage.Unlock()
	ctx.Update(vm, []types.PropertyChange{
		{Name: "config.files", Val: files},
		{Name: "summary.config.vmPathName", Val: files.VmPathName},
		{Name: "datastore", Val: []ref{to.Self}},
		{Name: "config.hardware.device", Val: rewrite(vm.Config.Hardware.Device)},
	})
	s.refreshLayout(ctx, vm)
	return nil
}

// moveLink gives the link another path and its files their place there.
func (s *sim) moveLink(l *link, next string) types.BaseMethodFault {
	l.vol.mu.Lock()
	defer l.vol.mu.Unlock()
	name := flatName(next)
	if l.parent != nil {
		name = deltaName(next)
	}
	to, err := s.store.local(name)
	if err != nil {
		return &types.InvalidDatastorePath{DatastorePath: next}
	}
	if s.store.find(next) != nil {
		return &types.FileAlreadyExists{FileFault: types.FileFault{File: next}}
	}
	if _, err := l.open(); err != nil { // the file exists from here on
		return &types.FileFault{File: l.path}
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return &types.CannotCreateFile{FileFault: types.FileFault{File: next}}
	}
	if err := os.Rename(l.file, to); err != nil {
		return &types.FileFault{File: l.path}
	}
	if old, err := s.store.local(l.path); err == nil {
		_ = os.Remove(old)
	}
	s.store.mu.Lock()
	delete(s.store.links, l.path)
	l.path = next
	s.store.links[next] = l
	s.store.mu.Unlock()
	l.once.Lock()
	l.file = to
	l.once.Unlock()
	if err := s.store.writeDescriptor(l); err != nil {
		return &types.FileFault{File: next}
	}
	return nil
}

// moveHome moves .vmx, .nvram and the log.
func (s *sim) moveHome(vm *simulator.VirtualMachine, datastore string) (types.VirtualMachineFileInfo, types.BaseMethodFault) {
	files := vm.Config.Files
	_, p, _ := splitPath(files.VmPathName)
	from, err1 := s.local(path.Dir(files.VmPathName), "")
	to, err2 := s.store.local(joinPath(datastore, path.Dir(p)))
	if err1 != nil || err2 != nil {
		return files, &types.InvalidDatastorePath{DatastorePath: files.VmPathName}
	}
	if err := os.MkdirAll(to, 0o700); err != nil {
		return files, &types.CannotCreateFile{FileFault: types.FileFault{File: files.VmPathName}}
	}
	m := s.know(vm.Self)
	names := []string{path.Base(p), vm.Config.Name + ".nvram", "vmware.log"}
	m.mu.Lock()
	for _, st := range m.snaps {
		names = append(names, st.vmsn)
	}
	m.mu.Unlock()
	for _, n := range names {
		_ = os.Rename(filepath.Join(from, n), filepath.Join(to, n))
	}
	_ = os.Remove(from)
	home := joinPath(datastore, path.Dir(p))
	files.VmPathName = joinPath(datastore, p)
	files.SnapshotDirectory, files.SuspendDirectory, files.LogDirectory = home, home, home
	return files, nil
}

// Migrate moves the machine to a host, a datastore or both; empty: as it is. To another datastore it is not moved while
// relocation is disabled. DRS, which moves machines to other hosts, does so by another method.
func (v *VM) Migrate(host, datastore string) error {
	s := v.lab.sim
	var spec types.VirtualMachineRelocateSpec
	for _, h := range s.allHosts() {
		if h.Name == host {
			r := h.Self
			spec.Host = &r
			spec.Pool = s.rootPool(h)
		}
	}
	for _, e := range s.reg.All("Datastore") {
		if e.Entity().Name == datastore {
			r := e.Reference()
			spec.Datastore = &r
		}
	}
	return v.wait(s.RelocateVMTask(nil, &types.RelocateVM_Task{This: v.ref, Spec: spec}).(*methods.RelocateVM_TaskBody))
}

// Destroy deletes the machine and its files; it must be off.
func (v *VM) Destroy() error {
	return v.wait(v.lab.sim.DestroyTask(nil, &types.Destroy_Task{This: v.ref}).(*methods.Destroy_TaskBody))
}
