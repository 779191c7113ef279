package lab

import (
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// postTask makes the event that says that a task began. Machine lock held.
func (s *sim) postTask(ctx *simulator.Context, vm *simulator.VirtualMachine, description string) {
	event := &types.TaskEvent{Info: types.TaskInfo{DescriptionId: description, Entity: &vm.Self, EntityName: vm.Name, QueueTime: time.Now(),
		State: types.TaskInfoStateRunning}}
	event.Vm = &types.VmEventArgument{EntityEventArgument: types.EntityEventArgument{Name: vm.Name}, Vm: vm.Self}
	m := s.reg.EventManager()
	ctx.WithLock(m, func() { m.PostEvent(ctx, &types.PostEvent{This: m.Self, EventToPost: event}) })
}

// PurgeEvents forgets all events that happened until now, as a vCenter does with old ones.
func (l *Lab) PurgeEvents() {
	l.sim.mu.Lock()
	defer l.sim.mu.Unlock()
	l.sim.purged = time.Now()
}

// CreateCollectorForEvents answers EventManager.CreateCollectorForEvents: what was purged is not seen.
func (s *sim) CreateCollectorForEvents(ctx *simulator.Context, req *types.CreateCollectorForEvents) (res soap.HasFault) {
	s.mu.Lock()
	from := s.purged
	s.mu.Unlock()
	if !from.IsZero() {
		t := types.EventFilterSpecByTime{}
		if req.Filter.Time != nil {
			t = *req.Filter.Time
		}
		if t.BeginTime == nil || t.BeginTime.Before(from) {
			t.BeginTime = &from
		}
		req.Filter.Time = &t
	}
	m := s.reg.EventManager()
	ctx.WithLock(m, func() { res = m.CreateCollectorForEvents(ctx, req) })
	return res
}
