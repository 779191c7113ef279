package lab

import (
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// RevertToSnapshotTask answers RevertToSnapshot_Task: content and configuration go back.
func (s *sim) RevertToSnapshotTask(_ *simulator.Context, req *types.RevertToSnapshot_Task) soap.HasFault {
	body := new(methods.RevertToSnapshot_TaskBody)
	snap, _ := s.reg.Get(req.This).(*simulator.VirtualMachineSnapshot)
	if snap == nil {
		body.Fault_ = notFound(req.This)
		return body
	}
	id, fault := s.onMachine(snap.Vm, "revertToSnapshot", func(ctx *simulator.Context) (types.AnyType, types.BaseMethodFault) {
		return nil, s.revert(ctx, snap.Vm, &req.This)
	})
	if body.Fault_ = fault; fault == nil {
		body.Res = &types.RevertToSnapshot_TaskResponse{Returnval: id}
	}
	return body
}

// RevertToCurrentSnapshotTask answers RevertToCurrentSnapshot_Task.
func (s *sim) RevertToCurrentSnapshotTask(_ *simulator.Context, req *types.RevertToCurrentSnapshot_Task) soap.HasFault {
	body := new(methods.RevertToCurrentSnapshot_TaskBody)
	id, fault := s.onMachine(req.This, "revertToCurrentSnapshot", func(ctx *simulator.Context) (types.AnyType, types.BaseMethodFault) {
		return nil, s.revert(ctx, req.This, nil)
	})
	if body.Fault_ = fault; fault == nil {
		body.Res = &types.RevertToCurrentSnapshot_TaskResponse{Returnval: id}
	}
	return body
}

// revert takes the machine back to the snapshot which, nil: the current one.
func (s *sim) revert(ctx *simulator.Context, r ref, which *ref) (fault types.BaseMethodFault) {
	name := "VirtualMachine.revertToSnapshot"
	if which == nil {
		name = "VirtualMachine.revertToCurrentSnapshot"
	}
	if !s.withVM(ctx, r, func(vm *simulator.VirtualMachine) {
		s.postTask(ctx, vm, name)
		fault = s.goBack(ctx, vm, which)
	}) {
		return &types.ManagedObjectNotFound{Obj: r}
	}
	return fault
}

func (s *sim) goBack(ctx *simulator.Context, vm *simulator.VirtualMachine, which *ref) types.BaseMethodFault {
	if which == nil {
		if vm.Snapshot == nil || vm.Snapshot.CurrentSnapshot == nil {
			return &types.NotFound{}
		}
		which = vm.Snapshot.CurrentSnapshot
	}
	snap, _ := s.reg.Get(*which).(*simulator.VirtualMachineSnapshot)
	m := s.know(vm.Self)
	m.mu.Lock()
	st := m.snaps[*which]
	m.mu.Unlock()
	if snap == nil || st == nil {
		return &types.ManagedObjectNotFound{Obj: *which}
	}
	config := types.MustDeepCopy(snap.Config)
	if f := s.rewind(m, config.Hardware.Device, st); f != nil {
		return f
	}
	info := types.MustDeepCopy(*vm.Snapshot)
	info.CurrentSnapshot = which
	config.Files, config.ChangeVersion = vm.Config.Files, vm.Config.ChangeVersion
	config.Modified = vm.Config.Modified
	ctx.Update(vm, []types.PropertyChange{
		{Name: "config", Val: &config},
		{Name: "name", Val: config.Name},
		{Name: "summary.config.name", Val: config.Name},
		{Name: "runtime.powerState", Val: st.power},
		{Name: "summary.runtime.powerState", Val: st.power},
	})
	s.publish(ctx, vm, &info, config.Hardware.Device)
	s.noteSettings(&vm.VirtualMachine)
	return nil
}

// rewind puts a fresh leaf on every frozen disk of the snapshot and deletes the leaves that were running. devices
// is the snapshot's device list and gets the leaves.
func (s *sim) rewind(m *machine, devices []types.BaseVirtualDevice, st *snapshotState) types.BaseMethodFault {
	m.gate.Lock()
	defer m.gate.Unlock()
	for _, l := range m.live {
		if s.store.held(l) {
			return &types.FileLocked{FileFault: types.FileFault{File: l.path}}
		}
	}
	now := map[int32]*link{}
	keep := map[*link]bool{}
	for _, d := range virtualDisks(devices) {
		b := flatBacking(d)
		if b == nil {
			continue
		}
		frozen := s.store.find(b.FileName)
		if frozen == nil {
			return &types.FileNotFound{FileFault: types.FileFault{File: b.FileName}}
		}
		if !snapshottable(d) { // independent disks do not go back
			now[d.Key], keep[frozen] = frozen, true
			continue
		}
		frozen.vol.mu.Lock()
		leaf, err := s.store.grow(frozen, s.store.freePath(frozen))
		if err != nil {
			frozen.vol.mu.Unlock()
			return &types.FileFault{File: b.FileName}
		}
		_ = s.store.writeDescriptor(leaf)
		switch t := st.tracks[d.Key]; {
		case t == nil || s.opt.RevertRestartsTracking:
			frozen.vol.track = nil
		default:
			// The tracking file of the snapshot comes back with it, sequence number and all: a changeId from the
			// abandoned branch is accepted and answered wrongly. That is the trap of reverts, and why a backup has to
			// read everything after one.
			frozen.vol.track = t.revive()
		}
		parent := *b
		d.Backing = leafOf(&parent, leaf.path)
		if frozen.vol.track != nil {
			flatBacking(d).ChangeId = frozen.vol.track.view().changeID()
		}
		now[d.Key], keep[leaf] = leaf, true
		frozen.vol.mu.Unlock()
	}
	for _, l := range m.live {
		if l.parent != nil && !keep[l] && len(s.store.children(l)) == 0 {
			s.store.drop(l)
		}
	}
	m.live = now
	return nil
}
