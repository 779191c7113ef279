package vsphere

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// CreateMachine makes the planned machine, off, and runs fn to fill its disks. When fn fails or panics the machine is
// destroyed; a crash leaves that to [Client.Recover]. Until fn has succeeded the machine's notes say that it is not
// complete, and it carries the mark that was asked for.
//
// Where KeepFailed was asked for, neither a failure nor a crash destroys it. It stays in the journal until another run
// has gone on with it (see [MachinePlan]), or somebody has destroyed it. A machine that is returned beside an error was
// kept.
func (c *Client) CreateMachine(ctx context.Context, p *MachinePlan, fn func(context.Context, *VM) error) (made *VM, err error) {
	if len(p.Problems) > 0 {
		return nil, p.Problems[0]
	}
	op := p.asked.Operation
	if op == nil {
		return nil, &Error{Kind: ErrInvalid, Summary: "no operation is given for the machine", Remedy: "begin one with Journal.Begin"}
	}
	if err := c.mayUndo(ctx, "create machine "+p.Name, p.at.folder, "VirtualMachine.Inventory.Delete"); err != nil {
		return nil, err
	}
	spec := p.spec
	spec.Annotation = op.mark()
	e := entry{Kind: EntryMachine, Server: c.about.InstanceUUID, Machine: p.at.folder.Value, Path: path.Join(p.Folder, p.Name), Name: p.Name}
	keep := p.asked.KeepFailed || p.Begun
	switch {
	case keep && p.temporary:
		e.Action = actionHold
	case keep:
		e.Action = actionKeep
	}
	x, err := op.announce(e)
	if err != nil {
		return nil, err
	}
	creation := &making{c: c, op: op, folder: p.at.folder, name: p.Name}
	var vm *VM
	done := false
	defer func() {
		if done || vm != nil && keep {
			made = vm
			return
		}
		after, cancel := c.afterwards(ctx)
		defer cancel()
		if e := creation.destroy(after, vm); e != nil {
			err = errors.Join(err, &Error{Kind: ErrLeftover, Object: p.Name, Summary: "the half-made machine " + p.Name + " could not be removed", Err: e, Remedy: "run vmkeep recover"})
			return
		}
		err = errors.Join(err, x.strike())
	}()
	if p.Begun {
		vm, err = creation.takeOver(ctx, p.begun)
	} else {
		vm, err = creation.create(ctx, spec, p.at)
	}
	if err != nil {
		return nil, fmt.Errorf("create machine %s: %w", p.Name, err)
	}
	if err := x.note(vm.ID()); err != nil {
		return nil, err
	}
	if err := p.verify(vm); err != nil {
		return nil, err
	}
	if err := fn(ctx, vm); err != nil {
		return nil, err
	}
	if p.temporary {
		keep = false
		return nil, nil
	}
	if err := vm.reconfigure(ctx, "finish "+p.Name, types.VirtualMachineConfigSpec{Annotation: orText(p.final, " "), ExtraConfig: p.asked.Mark.done()}); err != nil {
		return nil, err
	}
	done = true
	return vm, x.strike()
}

// verify checks that every planned disk is where it was planned, with its size.
func (p *MachinePlan) verify(vm *VM) error {
	for _, want := range p.Disks {
		i := slices.IndexFunc(vm.machine.Disks, func(d Disk) bool { return d.Name == want.Name })
		if i < 0 || vm.machine.Disks[i].Capacity != want.Capacity {
			return &Error{Kind: ErrUnsuitable, Object: want.Name, Summary: fmt.Sprintf("vSphere made machine %s without the disk %s of %d bytes", p.Name, want.Name, want.Capacity),
				Remedy: "look at the machine's events; the target may not support the controller"}
		}
	}
	return nil
}

// making is the creation of a machine. It remembers what a cleanup needs to know.
type making struct {
	c       *Client
	op      *Operation
	folder  ref
	name    string
	task    ref
	unknown bool // the answer was lost: the machine may be there
}

func (m *making) create(ctx context.Context, spec types.VirtualMachineConfigSpec, at placement) (*VM, error) {
	result, err := m.c.run(ctx, "create machine "+m.name, func(ctx context.Context) (ref, error) {
		req := types.CreateVM_Task{This: m.folder, Config: spec, Pool: at.pool}
		if at.host.Value != "" {
			req.Host = &at.host
		}
		res, err := methods.CreateVM_Task(ctx, m.c.vim, &req)
		if err != nil {
			m.unknown = m.unknown || !isFault(err)
			return ref{}, err
		}
		m.task = res.Returnval
		return res.Returnval, nil
	})
	if err != nil {
		return nil, err
	}
	r, ok := result.(ref)
	if !ok {
		return nil, fmt.Errorf("the task returned %T instead of a machine", result)
	}
	return m.found(ctx, r)
}

// takeOver makes a machine that an interrupted operation left half-made this operation's own.
func (m *making) takeOver(ctx context.Context, begun ref) (*VM, error) {
	vm, err := m.found(ctx, begun)
	if err != nil {
		return nil, err
	}
	now, err := vm.read(ctx, "config.annotation", "config.uuid", "snapshot")
	if err != nil {
		return nil, err
	}
	if now.Config == nil {
		return nil, &Error{Kind: ErrUnsuitable, Object: m.name, Summary: "the machine has no readable configuration", Remedy: "bring its host back"}
	}
	mk, ok := readMark(now.Config.Annotation)
	switch {
	case !ok:
		return nil, &Error{Kind: ErrExists, Object: m.name, Summary: "another run has completed the machine", Remedy: "choose another name or folder"}
	case mk.journal != m.op.j.id:
		return nil, &Error{Kind: ErrExists, Object: m.name, Summary: "another installation of vmkeep, on " + mk.host + ", has begun to make the machine", Remedy: "go on there, or destroy the machine"}
	case m.op.j.running(mk.operation):
		return nil, &Error{Kind: ErrLive, Object: m.name, Summary: "another run is making the machine", Remedy: "wait for it, or choose another name or folder"}
	case vm.machine.Power != PoweredOff || now.Snapshot != nil:
		return nil, &Error{Kind: ErrUnsuitable, Object: m.name, Summary: "the half-made machine was started, or has snapshots", Remedy: "destroy it, or choose another name or folder"}
	}
	return vm, vm.reconfigure(ctx, "take over "+m.name, types.VirtualMachineConfigSpec{Annotation: m.op.mark()})
}

// found is a machine that is there, with everything that is to be known of it.
func (m *making) found(ctx context.Context, r ref) (*VM, error) {
	t, err := m.c.readTree(ctx)
	if err != nil {
		return nil, err
	}
	machine, err := m.c.machine(ctx, r, t)
	if err != nil {
		return nil, err
	}
	return m.c.VM(machine), nil
}

// destroy removes what was made: vm, or what a lost answer left.
func (m *making) destroy(ctx context.Context, vm *VM) error {
	return m.c.insist(ctx, func() error { return m.destroyOnce(ctx, vm) })
}

func (m *making) destroyOnce(ctx context.Context, vm *VM) error {
	if vm != nil {
		if err := vm.PowerOff(ctx); err != nil && !isNotFound(err) {
			return err
		}
		return vm.Destroy(ctx)
	}
	if m.task.Value != "" {
		var ended faultError
		if _, err := m.c.wait(ctx, m.task); err != nil && !errors.As(err, &ended) && !isNotFound(err) {
			return err
		}
	} else if !m.unknown {
		return nil
	}
	if err := m.c.quiet(ctx, m.folder, "createvm"); err != nil {
		return err
	}
	return m.c.destroyMarked(ctx, m.folder, m.name, m.op.id)
}

// children reads the machines that lie directly in a folder; none when the folder is gone.
func (c *Client) children(ctx context.Context, folder ref, paths []string) ([]mo.VirtualMachine, error) {
	for attempt := 0; ; attempt++ {
		var f mo.Folder
		if err := c.one(ctx, folder, []string{"childEntity"}, &f); err != nil {
			if isNotFound(err) {
				return nil, nil
			}
			return nil, err
		}
		var ids []ref
		for _, r := range f.ChildEntity {
			if r.Type == "VirtualMachine" {
				ids = append(ids, r)
			}
		}
		var vms []mo.VirtualMachine
		err := c.retrieve(ctx, ids, paths, &vms)
		if isNotFound(err) && attempt < cleanupTries {
			continue // one of them went between the two calls: list again
		}
		return vms, err
	}
}

// marked are the machines of a folder that carry a name and the mark of an operation.
func (c *Client) marked(ctx context.Context, folder ref, name, operation string) (out []*VM, err error) {
	vms, err := c.children(ctx, folder, []string{"name", "config.annotation"})
	for _, v := range vms {
		if v.Config == nil || unescape(v.Name) != name {
			continue
		}
		if mk, ok := readMark(v.Config.Annotation); ok && mk.operation == operation {
			out = append(out, c.VM(Machine{ID: v.Self.Value, Name: name}))
		}
	}
	return out, err
}

// destroyMarked destroys the machines of a folder that carry a name and the mark of an operation.
func (c *Client) destroyMarked(ctx context.Context, folder ref, name, operation string) error {
	vms, err := c.marked(ctx, folder, name, operation)
	if err != nil {
		return err
	}
	for _, vm := range vms {
		if err := vm.PowerOff(ctx); err != nil && !isNotFound(err) {
			return err
		}
		if err := vm.Destroy(ctx); err != nil {
			return err
		}
	}
	return nil
}
