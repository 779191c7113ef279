package lab

import (
	"slices"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// power runs one of the simulator's power tasks with the machine to itself.
func (s *sim) power(r ref, name string, call func(ctx *simulator.Context, vm *simulator.VirtualMachine) ref) (ref, *soap.Fault) {
	return s.onMachine(r, name, func(ctx *simulator.Context) (_ types.AnyType, fault types.BaseMethodFault) {
		if !s.withVM(ctx, r, func(vm *simulator.VirtualMachine) {
			if name == "powerOn" {
				if fault = s.mayPowerOn(vm); fault != nil {
					return
				}
			}
			_, fault = s.inner(ctx, call(ctx, vm))
		}) {
			fault = &types.ManagedObjectNotFound{Obj: r}
		}
		return nil, fault
	})
}

// mayPowerOn refuses machines whose disks somebody else has open. Machine lock held.
func (s *sim) mayPowerOn(vm *simulator.VirtualMachine) types.BaseMethodFault {
	m := s.know(vm.Self)
	if f := m.currentFaults().PowerOn; f != nil {
		return f
	}
	s.awaitReaders(m)
	for _, l := range m.leaves() {
		if s.store.held(l) {
			return &types.FileLocked{FileFault: types.FileFault{File: l.path}}
		}
		if other := s.runningWith(l, vm.Self); other != nil {
			return &types.FileLocked{FileFault: types.FileFault{File: l.path}}
		}
	}
	return nil
}

// runningWith returns a running machine other than not that has l as a live disk.
func (s *sim) runningWith(l *link, not ref) *machine {
	s.mu.Lock()
	all := make([]*machine, 0, len(s.machines))
	for r, m := range s.machines {
		if r != not {
			all = append(all, m)
		}
	}
	s.mu.Unlock()
	for _, m := range all {
		m.mu.Lock()
		on := m.powered == types.VirtualMachinePowerStatePoweredOn
		m.mu.Unlock()
		if !on {
			continue
		}
		if slices.Contains(m.leaves(), l) {
			return m
		}
	}
	return nil
}

// PowerOnVMTask answers PowerOnVM_Task.
func (s *sim) PowerOnVMTask(_ *simulator.Context, req *types.PowerOnVM_Task) soap.HasFault {
	body := new(methods.PowerOnVM_TaskBody)
	if vm := s.vm(req.This); vm != nil && vm.Config != nil && vm.Config.Template {
		body.Fault_ = simulator.Fault("cannot power on a template", &types.InvalidState{})
		return body
	}
	id, fault := s.power(req.This, "powerOn", func(ctx *simulator.Context, vm *simulator.VirtualMachine) ref {
		return powerOn(ctx, vm)
	})
	if body.Fault_ = fault; fault == nil {
		body.Res = &types.PowerOnVM_TaskResponse{Returnval: id}
	}
	return body
}

// PowerOffVMTask answers PowerOffVM_Task.
func (s *sim) PowerOffVMTask(_ *simulator.Context, req *types.PowerOffVM_Task) soap.HasFault {
	body := new(methods.PowerOffVM_TaskBody)
	id, fault := s.power(req.This, "powerOff", func(ctx *simulator.Context, vm *simulator.VirtualMachine) ref {
		return vm.PowerOffVMTask(ctx, req).(*methods.PowerOffVM_TaskBody).Res.Returnval
	})
	if body.Fault_ = fault; fault == nil {
		body.Res = &types.PowerOffVM_TaskResponse{Returnval: id}
	}
	return body
}

// SuspendVMTask answers SuspendVM_Task.
func (s *sim) SuspendVMTask(_ *simulator.Context, req *types.SuspendVM_Task) soap.HasFault {
	body := new(methods.SuspendVM_TaskBody)
	id, fault := s.power(req.This, "suspend", func(ctx *simulator.Context, vm *simulator.VirtualMachine) ref {
		return vm.SuspendVMTask(ctx, req).(*methods.SuspendVM_TaskBody).Res.Returnval
	})
	if body.Fault_ = fault; fault == nil {
		body.Res = &types.SuspendVM_TaskResponse{Returnval: id}
	}
	return body
}

// ResetVMTask answers ResetVM_Task.
func (s *sim) ResetVMTask(_ *simulator.Context, req *types.ResetVM_Task) soap.HasFault {
	body := new(methods.ResetVM_TaskBody)
	id, fault := s.power(req.This, "reset", func(ctx *simulator.Context, vm *simulator.VirtualMachine) ref {
		return vm.ResetVMTask(ctx, req).(*methods.ResetVM_TaskBody).Res.Returnval
	})
	if body.Fault_ = fault; fault == nil {
		body.Res = &types.ResetVM_TaskResponse{Returnval: id}
	}
	return body
}

func powerOn(ctx *simulator.Context, vm *simulator.VirtualMachine) ref {
	return vm.PowerOnVMTask(ctx, &types.PowerOnVM_Task{This: vm.Self}).(*methods.PowerOnVM_TaskBody).Res.Returnval
}
