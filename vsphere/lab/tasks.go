package lab

import (
	"fmt"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// work is the body of a task. It returns the task's result or the fault that fails it.
type work func(ctx *simulator.Context) (types.AnyType, types.BaseMethodFault)

// start runs fn as a task on entity and returns the task's reference.
//
// The simulator's own runner holds the entity's lock while a task runs, so that nobody can read a machine's
// properties during a slow snapshot, and a panic in a task ends the process. This one takes no lock (fn does, for
// as long as it needs) and turns a panic into a fault.
func (s *sim) start(entity ref, name string, fn work) ref {
	t := simulator.CreateTask(entity, name, nil)
	s.mu.Lock()
	s.taskSeq++
	t.Self = ref{Type: "Task", Value: fmt.Sprintf("task-%d", 1_000_000+s.taskSeq)}
	s.tasks.Add(1)
	s.mu.Unlock()
	t.Info.Key, t.Info.Task = t.Self.Value, t.Self
	t.Info.StartTime = types.NewTime(time.Now())
	t.Info.State = types.TaskInfoStateRunning
	s.reg.Put(t)
	id := t.Self

	go func() {
		defer s.tasks.Done()
		ctx := s.context()
		res, fault := guard(ctx, fn)
		changes := []types.PropertyChange{
			{Name: "info.completeTime", Val: time.Now()},
			{Name: "info.progress", Val: int32(100)},
		}
		if fault != nil {
			changes = append(changes,
				types.PropertyChange{Name: "info.error", Val: types.LocalizedMethodFault{Fault: fault, LocalizedMessage: describe(fault)}},
				types.PropertyChange{Name: "info.state", Val: types.TaskInfoStateError})
		} else {
			changes = append(changes,
				types.PropertyChange{Name: "info.result", Val: res},
				types.PropertyChange{Name: "info.state", Val: types.TaskInfoStateSuccess})
		}
		s.reg.AtomicUpdate(ctx, t, changes)
	}()
	return id
}

func guard(ctx *simulator.Context, fn work) (res types.AnyType, fault types.BaseMethodFault) {
	defer func() {
		if p := recover(); p != nil {
			fault = &types.SystemErrorFault{Reason: fmt.Sprint("panic in the lab: ", p)}
		}
	}()
	return fn(ctx)
}

// describe is the text vSphere puts beside a fault, for those that clients show or match.
func describe(f types.BaseMethodFault) string {
	switch f := f.(type) {
	case *types.TaskInProgress:
		return "Another task is already in progress."
	case *types.ApplicationQuiesceFault:
		return "An error occurred while quiescing the virtual machine. See the virtual machine's event log for details."
	case *types.FilesystemQuiesceFault:
		return "An error occurred while saving the snapshot: Failed to quiesce the virtual machine."
	case *types.FileLocked:
		return "Unable to access file " + f.File + " since it is locked"
	case *types.NoDiskSpace:
		return "Insufficient disk space on datastore '" + f.Datastore + "'."
	case *types.DuplicateName:
		return "The name '" + f.Name + "' already exists."
	case *types.SystemErrorFault:
		return f.Reason
	case *types.InvalidPowerState:
		return "The attempted operation cannot be performed in the current state (" + string(f.ExistingState) + ")."
	}
	return fmt.Sprintf("%T", f)[len("*types."):]
}

// onMachine runs fn as a task that has the machine for itself: a second one is refused with TaskInProgress, as the
// answer of the call or, when the machine's fault knob says so, in the task.
func (s *sim) onMachine(r ref, name string, fn work) (ref, *soap.Fault) {
	m := s.machine(r)
	if m == nil {
		return ref{}, notFound(r)
	}
	m.mu.Lock()
	if busy := m.busy; busy != nil {
		inTask := m.faults.TaskInProgressInTask
		m.mu.Unlock()
		fault := &types.TaskInProgress{Task: *busy}
		if !inTask {
			return ref{}, simulator.Fault(describe(fault), fault)
		}
		return s.start(r, name, func(*simulator.Context) (types.AnyType, types.BaseMethodFault) { return nil, fault }), nil
	}
	m.busy = &ref{Type: "Task", Value: "task-0"}
	delay := m.faults.TaskDelay[name]
	m.mu.Unlock()

	ready := make(chan struct{})
	id := s.start(r, name, func(ctx *simulator.Context) (types.AnyType, types.BaseMethodFault) {
		<-ready
		defer func() {
			m.mu.Lock()
			m.busy = nil
			m.mu.Unlock()
		}()
		s.sleep(delay)
		return fn(ctx)
	})
	m.mu.Lock()
	m.busy = &id
	m.mu.Unlock()
	close(ready)
	return id, nil
}

// inner waits for a task that a method of the simulator started, and removes it: clients see only ours.
func (s *sim) inner(ctx *simulator.Context, id ref) (types.AnyType, types.BaseMethodFault) {
	t, ok := s.reg.Get(id).(*simulator.Task)
	if !ok {
		return nil, &types.SystemErrorFault{Reason: "the simulator lost its task " + id.Value}
	}
	done := s.watch(id)
	var info types.TaskInfo
	read := func() bool {
		s.reg.WithLock(new(simulator.Context), t, func() { info = t.Info })
		return info.State == types.TaskInfoStateSuccess || info.State == types.TaskInfoStateError
	}
	if !read() {
		<-done
		read()
	}
	s.unwatch(id)
	s.reg.Remove(ctx, id)
	if info.Error != nil {
		return nil, info.Error.Fault
	}
	return info.Result, nil
}

// alone is inner for methods that touch datastores: start calls the method. The simulator copies datastore objects
// without taking their locks, while it changes them under their locks; so only one such method runs at a time.
func (s *sim) alone(ctx *simulator.Context, start func() ref) (types.AnyType, types.BaseMethodFault) {
	s.storage.Lock()
	defer s.storage.Unlock()
	return s.inner(ctx, start())
}

// watch returns a channel that is closed when the task ends; UpdateObject sees it (the simulator's own Task.Wait
// polls every 10 ms).
func (s *sim) watch(id ref) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	ch := s.watched[id]
	if ch == nil {
		ch = make(chan struct{})
		s.watched[id] = ch
	}
	return ch
}

// unwatch is for who saw the task's end without waiting: the end is announced under the task's lock, so nobody else
// can be waiting either.
func (s *sim) unwatch(id ref) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.watched, id)
}

// taskChanged wakes whoever watches the task.
func (s *sim) taskChanged(t *mo.Task) {
	if t.Info.State != types.TaskInfoStateSuccess && t.Info.State != types.TaskInfoStateError {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if ch, ok := s.watched[t.Self]; ok {
		close(ch)
		delete(s.watched, t.Self)
	}
}
