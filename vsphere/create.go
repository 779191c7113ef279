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
// destroyed, unless KeepFailed was asked for; a crash leaves it to [Client.Recover]. Until fn has succeeded the
// machine's notes say that it is not complete. A machine that is returned beside an error was kept.
func (c *Client) CreateMachine(ctx context.Context, p *MachinePlan, fn func(context.Context, *VM) error) (made *VM, err error) {
	if len(p.Problems) > 0 {
		return nil, p.Problems[0]
	}
	op := p.asked.Operation
	if op == nil {
		return nil, &Error{Kind: ErrInvalid, Summary: "no operation is given for the machine", Remedy: "begin one with Journal.Begin"}
	}
	spec := p.spec
	spec.Annotation = op.mark()
	x, err := op.announce(entry{Kind: EntryMachine, Server: c.about.InstanceUUID, Machine: p.at.folder.Value, Path: path.Join(p.Folder, p.Name), Name: p.Name})
	if err != nil {
		return nil, err
	}
	creation := &making{c: c, op: op, folder: p.at.folder, name: p.Name}
	var vm *VM
	done := false
	defer func() {
		if done || vm != nil && p.asked.KeepFailed {
			if vm != nil && !done {
				made, err = vm, errors.Join(err, x.strike())
			}
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
	if vm, err = creation.create(ctx, spec, p.at); err != nil {
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
	if err := vm.reconfigure(ctx, "finish "+p.Name, types.VirtualMachineConfigSpec{Annotation: orText(p.final, " ")}); err != nil {
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

// destroyMarked destroys the machines of a folder that carry a name and the mark of an operation.
func (c *Client) destroyMarked(ctx context.Context, folder ref, name, operation string) error {
	vms, err := c.children(ctx, folder, []string{"name", "config.annotation"})
	if err != nil {
		return err
	}
	for _, v := range vms {
		if v.Config == nil || unescape(v.Name) != name {
			continue
		}
		if mk, ok := readMark(v.Config.Annotation); ok && mk.operation == operation {
			vm := c.VM(Machine{ID: v.Self.Value, Name: name})
			if err := vm.PowerOff(ctx); err != nil && !isNotFound(err) {
				return err
			}
			if err := vm.Destroy(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}
