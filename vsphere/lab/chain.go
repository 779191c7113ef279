package lab

import (
	"os"
	"slices"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// RemoveSnapshotTask answers RemoveSnapshot_Task. The simulator's own removes a wrong file of the machine.
func (s *sim) RemoveSnapshotTask(_ *simulator.Context, req *types.RemoveSnapshot_Task) soap.HasFault {
	body := new(methods.RemoveSnapshot_TaskBody)
	snap, _ := s.reg.Get(req.This).(*simulator.VirtualMachineSnapshot)
	if snap == nil {
		body.Fault_ = notFound(req.This)
		return body
	}
	merge := req.Consolidate == nil || *req.Consolidate
	id, fault := s.onMachine(snap.Vm, "removeSnapshot", func(ctx *simulator.Context) (types.AnyType, types.BaseMethodFault) {
		return nil, s.removeSnapshots(ctx, snap.Vm, removal{only: &req.This, children: req.RemoveChildren, merge: merge})
	})
	if body.Fault_ = fault; fault == nil {
		body.Res = &types.RemoveSnapshot_TaskResponse{Returnval: id}
	}
	return body
}

// RemoveAllSnapshotsTask answers RemoveAllSnapshots_Task.
func (s *sim) RemoveAllSnapshotsTask(_ *simulator.Context, req *types.RemoveAllSnapshots_Task) soap.HasFault {
	body := new(methods.RemoveAllSnapshots_TaskBody)
	id, fault := s.onMachine(req.This, "removeAllSnapshots", func(ctx *simulator.Context) (types.AnyType, types.BaseMethodFault) {
		return nil, s.removeSnapshots(ctx, req.This, removal{merge: req.Consolidate == nil || *req.Consolidate})
	})
	if body.Fault_ = fault; fault == nil {
		body.Res = &types.RemoveAllSnapshots_TaskResponse{Returnval: id}
	}
	return body
}

// ConsolidateVMDisksTask answers ConsolidateVMDisks_Task.
func (s *sim) ConsolidateVMDisksTask(_ *simulator.Context, req *types.ConsolidateVMDisks_Task) soap.HasFault {
	body := new(methods.ConsolidateVMDisks_TaskBody)
	id, fault := s.onMachine(req.This, "consolidateDisks", func(ctx *simulator.Context) (types.AnyType, types.BaseMethodFault) {
		m := s.know(req.This)
		if f := m.currentFaults().Consolidate; f != nil {
			return nil, f
		}
		s.awaitReaders(m)
		var fault types.BaseMethodFault
		if !s.withVM(ctx, req.This, func(vm *simulator.VirtualMachine) {
			live := cloneDevices(vm.Config.Hardware.Device)
			fault = s.consolidate(ctx, vm, live)
			s.publish(ctx, vm, vm.Snapshot, live)
		}) {
			fault = &types.ManagedObjectNotFound{Obj: req.This}
		}
		return nil, fault
	})
	if body.Fault_ = fault; fault == nil {
		body.Res = &types.ConsolidateVMDisks_TaskResponse{Returnval: id}
	}
	return body
}

// RenameSnapshot answers RenameSnapshot, which the simulator lacks.
func (s *sim) RenameSnapshot(ctx *simulator.Context, req *types.RenameSnapshot) soap.HasFault {
	body := new(methods.RenameSnapshotBody)
	snap, _ := s.reg.Get(req.This).(*simulator.VirtualMachineSnapshot)
	if snap == nil {
		body.Fault_ = notFound(req.This)
		return body
	}
	s.withVM(ctx, snap.Vm, func(vm *simulator.VirtualMachine) {
		info := types.MustDeepCopy(*vm.Snapshot)
		n := findSnapshot(info.RootSnapshotList, req.This)
		if req.Name != "" {
			n.Name = req.Name
		}
		if req.Description != "" {
			n.Description = req.Description
		}
		ctx.Update(vm, []types.PropertyChange{{Name: "snapshot", Val: &info}})
	})
	body.Res = new(types.RenameSnapshotResponse)
	return body
}

// removal says which snapshots go.
type removal struct {
	only     *ref // nil: all
	children bool
	merge    bool
}

func (s *sim) removeSnapshots(ctx *simulator.Context, r ref, rm removal) (fault types.BaseMethodFault) {
	m := s.know(r)
	if f := m.currentFaults().RemoveSnapshot; f != nil {
		return f
	}
	if rm.merge {
		s.awaitReaders(m)
	}
	if !s.withVM(ctx, r, func(vm *simulator.VirtualMachine) { fault = s.prune(ctx, vm, rm) }) {
		return &types.ManagedObjectNotFound{Obj: r}
	}
	return fault
}

// prune removes snapshots from the tree and merges what no snapshot needs any more. Machine lock held.
func (s *sim) prune(ctx *simulator.Context, vm *simulator.VirtualMachine, rm removal) types.BaseMethodFault {
	if vm.Snapshot == nil {
		if rm.only != nil {
			return &types.ManagedObjectNotFound{Obj: *rm.only}
		}
		return nil
	}
	info := types.MustDeepCopy(*vm.Snapshot)
	var gone []ref
	if rm.only == nil {
		gone = allSnapshots(info.RootSnapshotList)
		info.RootSnapshotList, info.CurrentSnapshot = nil, nil
	} else {
		var parent *ref
		info.RootSnapshotList, gone, parent = prune(info.RootSnapshotList, *rm.only, rm.children, nil)
		if len(gone) == 0 {
			return &types.ManagedObjectNotFound{Obj: *rm.only}
		}
		if info.CurrentSnapshot != nil && slices.Contains(gone, *info.CurrentSnapshot) {
			info.CurrentSnapshot = parent
		}
	}
	m := s.know(vm.Self)
	m.mu.Lock()
	if m.faults.LeaveDelta > 0 && rm.merge {
		m.faults.LeaveDelta--
		rm.merge = false
	}
	var files []string
	for _, r := range gone {
		if st := m.snaps[r]; st != nil {
			files = append(files, st.vmsn)
			delete(m.snaps, r)
		}
	}
	m.mu.Unlock()
	for _, f := range files {
		if p, err := s.local(vm.Config.Files.SnapshotDirectory, f); err == nil {
			_ = os.Remove(p)
		}
	}
	for _, r := range gone {
		s.reg.Remove(ctx, r)
	}
	live := cloneDevices(vm.Config.Hardware.Device)
	var fault types.BaseMethodFault
	if rm.merge {
		fault = s.consolidate(ctx, vm, live)
	} else {
		s.showConsolidationNeeded(ctx, vm, true)
	}
	s.publish(ctx, vm, &info, live)
	m.gate.Lock()
	s.stun(m, live)
	m.gate.Unlock()
	return fault
}

func (s *sim) showConsolidationNeeded(ctx *simulator.Context, vm *simulator.VirtualMachine, needed bool) {
	ctx.Update(vm, []types.PropertyChange{
		{Name: "runtime.consolidationNeeded", Val: needed},
		{Name: "summary.runtime.consolidationNeeded", Val: needed},
	})
}

// awaitReaders gives NFC clients a moment to let go of the machine's disks: Options.LockPatience.
func (s *sim) awaitReaders(m *machine) {
	for end := time.Now().Add(s.opt.LockPatience); time.Now().Before(end) && s.heldBelow(m); {
		s.sleep(10 * time.Millisecond)
	}
}

func (s *sim) heldBelow(m *machine) bool {
	m.gate.RLock()
	defer m.gate.RUnlock()
	for _, l := range m.live {
		if s.store.chainHeld(l) {
			return true
		}
	}
	return false
}

// snapshotObjects returns the machine's snapshots.
func (s *sim) snapshotObjects(vm ref) (out []*simulator.VirtualMachineSnapshot) {
	for _, r := range s.reg.AllReference("VirtualMachineSnapshot") {
		if sn, ok := r.(*simulator.VirtualMachineSnapshot); ok && sn.Vm == vm {
			out = append(out, sn)
		}
	}
	return out
}

// consolidate merges every link that neither a snapshot nor the running machine shows into the one below, and
// makes live (a copy of the machine's devices) and the snapshots' configurations follow. Machine lock held.
//
// A link is superfluous when no snapshot shows it and exactly one child sits on it: the child's blocks go down into
// it and the child disappears. That covers the first, a middle, the last, all, and what earlier removals left.
func (s *sim) consolidate(ctx *simulator.Context, vm *simulator.VirtualMachine, live []types.BaseVirtualDevice) types.BaseMethodFault {
	m := s.know(vm.Self)
	snaps := s.snapshotObjects(vm.Self)
	work := [][]types.BaseVirtualDevice{live} // copies: readers of a snapshot take the snapshot's lock, not the machine's
	shown := map[string]bool{}
	for _, sn := range snaps {
		devs := cloneDevices(sn.Config.Hardware.Device)
		work = append(work, devs)
		for _, d := range virtualDisks(devs) {
			if b := flatBacking(d); b != nil && snapshottable(d) {
				shown[b.FileName] = true
			}
		}
	}
	m.gate.Lock()
	var locked types.BaseMethodFault
	for _, l := range m.live {
		if f := s.flatten(m, l, shown, work); f != nil {
			locked = f
		}
	}
	m.gate.Unlock()
	for i, sn := range snaps {
		ctx.WithLock(sn, func() {
			ctx.Update(sn, []types.PropertyChange{{Name: "config.hardware.device", Val: work[i+1]}})
		})
	}
	s.showConsolidationNeeded(ctx, vm, locked != nil)
	return locked
}

// flatten merges the superfluous links below leaf. The gate is held exclusively.
func (s *sim) flatten(m *machine, leaf *link, shown map[string]bool, work [][]types.BaseVirtualDevice) types.BaseMethodFault {
	leaf.vol.mu.Lock()
	defer leaf.vol.mu.Unlock()
	var root *link
	for root = leaf; root.parent != nil; root = root.parent {
	}
	var locked types.BaseMethodFault
	var visit func(l *link)
	visit = func(l *link) {
		for {
			kids := s.store.children(l)
			if len(kids) != 1 || shown[l.path] {
				for _, k := range kids {
					visit(k)
				}
				if len(s.store.children(l)) == len(kids) {
					break
				}
				continue // a dead branch fell off, perhaps one child is left
			}
			child := kids[0]
			if s.store.held(l) || s.store.held(child) {
				locked = &types.FileLocked{FileFault: types.FileFault{File: l.path}}
				visit(child)
				break
			}
			if err := child.merge(); err != nil {
				locked = &types.FileFault{File: child.path}
				return
			}
			s.replace(m, child, l, shown, work)
		}
		// the end of a branch that a revert left and whose snapshots are gone
		if !shown[l.path] && l.parent != nil && len(s.store.children(l)) == 0 && !m.runs(l) && !s.store.held(l) {
			s.store.drop(l)
		}
	}
	visit(root)
	return locked
}

// replace makes everything that referred to the merged child refer to l, and deletes the child's files.
func (s *sim) replace(m *machine, child, l *link, shown map[string]bool, work [][]types.BaseVirtualDevice) {
	for _, k := range s.store.children(child) {
		s.store.reparent(k, l)
		_ = s.store.writeDescriptor(k)
	}
	for key, x := range m.live {
		if x == child {
			m.live[key] = l
		}
	}
	if shown[child.path] {
		delete(shown, child.path)
		shown[l.path] = true
	}
	for _, devs := range work {
		for _, d := range virtualDisks(devs) {
			for b := flatBacking(d); b != nil; b = b.Parent {
				if b.FileName == child.path && b.Parent != nil {
					thin, changeID, below := b.Parent.ThinProvisioned, b.ChangeId, b.Parent.Parent
					b.FileName, b.Parent, b.ThinProvisioned, b.ChangeId = l.path, below, thin, changeID
					if below == nil {
						b.DeltaDiskFormat = ""
					}
				}
			}
		}
	}
	s.store.drop(child)
}
