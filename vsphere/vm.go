package vsphere

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"path"
	"strings"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// VM is a handle of a virtual machine.
type VM struct {
	c       *Client
	machine Machine
}

// VM is the handle of a machine that [Client.Machines] listed, without asking the server.
func (c *Client) VM(m Machine) *VM { return &VM{c: c, machine: m} }

// ID is the managed object id.
func (v *VM) ID() string { return v.machine.ID }

// Machine is the machine as it was when the handle was made.
func (v *VM) Machine() Machine { return v.machine }

func (v *VM) ref() ref { return vmRef(v.machine.ID) }

// label names the machine in messages.
func (v *VM) label() string { return orText(v.machine.Path, v.machine.ID) }

// read loads properties of the machine.
func (v *VM) read(ctx context.Context, paths ...string) (*mo.VirtualMachine, error) {
	var vm mo.VirtualMachine
	if err := v.c.one(ctx, v.ref(), paths, &vm); err != nil {
		return nil, fmt.Errorf("read machine %s: %w", v.label(), err)
	}
	return &vm, nil
}

// State asks for the machine as it is now.
func (v *VM) State(ctx context.Context) (*State, error) {
	t, err := v.c.readTree(ctx)
	if err != nil {
		return nil, fmt.Errorf("machine %s: %w", v.label(), err)
	}
	m, err := v.c.machine(ctx, v.ref(), t)
	if err != nil {
		return nil, fmt.Errorf("machine %s: %w", v.label(), err)
	}
	vm, err := v.read(ctx, "config", "layoutEx.file", "snapshot", "capability.changeTrackingSupported", "runtime.host")
	if err != nil {
		return nil, err
	}
	if vm.Config == nil {
		return nil, &Error{Kind: ErrUnsuitable, Object: v.label(), Summary: fmt.Sprintf("machine %s has no readable configuration (%s)", v.label(), orText(m.Connection, "no reason given")),
			Remedy: "bring its host back, or check the privilege System.Read on it"}
	}
	m.Tags = v.machine.Tags
	s := &State{Machine: m, ChangeVersion: vm.Config.ChangeVersion, VMX: vm.Config.Files.VmPathName, VCenter: v.c.about.InstanceUUID}
	if s.ConfigInfo, err = encodeConfig(*vm.Config); err != nil {
		return nil, fmt.Errorf("machine %s: %w", v.label(), err)
	}
	s.NVRAM, s.NICs = nvramOf(vm), nicsOf(vm.Config.Hardware.Device, t)
	if vm.Snapshot != nil {
		s.SnapshotTree = flatten(vm.Snapshot)
	}
	s.Trackable = vm.Capability.ChangeTrackingSupported && hardware(m.HWVersion) >= 7
	if vm.Runtime.Host != nil {
		var h mo.HostSystem
		if err := v.c.one(ctx, *vm.Runtime.Host, []string{"config.product"}, &h); err == nil && h.Config != nil {
			s.HostVersion, s.HostBuild = h.Config.Product.Version, h.Config.Product.Build
		} // a host the account may not see costs the version, nothing else
	}
	return s, nil
}

// hardware is the number in "vmx-19", 0 when there is none.
func hardware(version string) int {
	n := 0
	if _, err := fmt.Sscanf(version, "vmx-%d", &n); err != nil {
		return 0
	}
	return n
}

// nvramOf finds the .nvram, which only the file layout names with its directory.
func nvramOf(vm *mo.VirtualMachine) string {
	if vm.LayoutEx != nil {
		for _, f := range vm.LayoutEx.File {
			if f.Type == string(types.VirtualMachineFileLayoutExFileTypeNvram) {
				return f.Name
			}
		}
	}
	if vm.Config != nil {
		for _, o := range vm.Config.ExtraConfig {
			if v := o.GetOptionValue(); v.Key == "nvram" {
				if name, ok := v.Value.(string); ok && name != "" && !strings.Contains(name, "/") {
					return path.Dir(vm.Config.Files.VmPathName) + "/" + name
				}
			}
		}
	}
	return ""
}

// encodeConfig writes a configuration in the JSON of the vim25 API: types of polymorphic values are in "_typeName".
func encodeConfig(ci types.VirtualMachineConfigInfo) (json.RawMessage, error) {
	var buf bytes.Buffer
	if err := types.NewJSONEncoder(&buf).Encode(ci); err != nil {
		return nil, fmt.Errorf("encode the configuration: %w", err)
	}
	return bytes.TrimSpace(buf.Bytes()), nil
}

// decodeConfig reads what encodeConfig wrote.
func decodeConfig(data json.RawMessage) (types.VirtualMachineConfigInfo, error) {
	var ci types.VirtualMachineConfigInfo
	dec := types.NewJSONDecoder(bytes.NewReader(data))
	if err := dec.Decode(&ci); err != nil {
		return ci, &Error{Kind: ErrInvalid, Summary: "the saved configuration cannot be read", Err: err, Remedy: "the point's vm.json is damaged or of a newer version"}
	}
	return ci, nil
}

// flatten lists a snapshot tree depth first.
func flatten(info *types.VirtualMachineSnapshotInfo) []SnapshotInfo {
	var out []SnapshotInfo
	var visit func(list []types.VirtualMachineSnapshotTree, parent string)
	visit = func(list []types.VirtualMachineSnapshotTree, parent string) {
		for _, s := range list {
			si := SnapshotInfo{ID: s.Snapshot.Value, Number: s.Id, Name: s.Name, Description: s.Description, Created: s.CreateTime,
				Quiesced: s.Quiesced, Parent: parent, Current: info.CurrentSnapshot != nil && *info.CurrentSnapshot == s.Snapshot}
			if mk, ok := parseMark(s.Name, s.Description); ok {
				si.Operation = mk.operation
			}
			out = append(out, si)
			visit(s.ChildSnapshotList, s.Snapshot.Value)
		}
	}
	visit(info.RootSnapshotList, "")
	return out
}

// snapshots lists the machine's snapshots now.
func (v *VM) snapshots(ctx context.Context) ([]SnapshotInfo, error) {
	vm, err := v.read(ctx, "snapshot")
	if err != nil {
		return nil, err
	}
	if vm.Snapshot == nil {
		return nil, nil
	}
	return flatten(vm.Snapshot), nil
}

// power reads the power state.
func (v *VM) power(ctx context.Context) (PowerState, error) {
	vm, err := v.read(ctx, "runtime.powerState")
	if err != nil {
		return "", err
	}
	return PowerState(vm.Runtime.PowerState), nil
}

// PowerOn starts the machine. A machine that runs already is fine.
func (v *VM) PowerOn(ctx context.Context) error {
	return v.toPower(ctx, PoweredOn, "power on "+v.label(), func(ctx context.Context) (ref, error) {
		res, err := methods.PowerOnVM_Task(ctx, v.c.vim, &types.PowerOnVM_Task{This: v.ref()})
		if err != nil {
			return ref{}, err
		}
		return res.Returnval, nil
	})
}

// PowerOff stops the machine at once, as a power cut does. A machine that is off already is fine.
func (v *VM) PowerOff(ctx context.Context) error {
	return v.toPower(ctx, PoweredOff, "power off "+v.label(), func(ctx context.Context) (ref, error) {
		res, err := methods.PowerOffVM_Task(ctx, v.c.vim, &types.PowerOffVM_Task{This: v.ref()})
		if err != nil {
			return ref{}, err
		}
		return res.Returnval, nil
	})
}

func (v *VM) toPower(ctx context.Context, want PowerState, what string, start func(context.Context) (ref, error)) error {
	if now, err := v.power(ctx); err != nil || now == want {
		return err
	}
	_, err := v.c.run(ctx, what, start)
	if err == nil {
		return nil
	}
	if now, e := v.power(ctx); e == nil && now == want {
		return nil // somebody else did it, or the answer was lost
	}
	return err
}

// Shutdown asks the guest to shut down and waits until the machine is off or ctx ends.
func (v *VM) Shutdown(ctx context.Context) error {
	now, err := v.power(ctx)
	if err != nil || now == PoweredOff {
		return err
	}
	if _, err := methods.ShutdownGuest(ctx, v.c.vim, &types.ShutdownGuest{This: v.ref()}); err != nil {
		return fmt.Errorf("shut down %s: %w", v.label(), err)
	}
	for attempt := 0; ; attempt++ {
		if now, err := v.power(ctx); err != nil || now == PoweredOff {
			return err
		}
		if err := sleep(ctx, v.c.poll(attempt)); err != nil {
			return fmt.Errorf("shut down %s: %w", v.label(), err)
		}
	}
}

// Destroy deletes the machine and its disks. It must be off. A machine that is gone already is fine.
func (v *VM) Destroy(ctx context.Context) error {
	_, err := v.c.run(ctx, "destroy "+v.label(), func(ctx context.Context) (ref, error) {
		res, err := methods.Destroy_Task(ctx, v.c.vim, &types.Destroy_Task{This: v.ref()})
		if err != nil {
			return ref{}, err
		}
		return res.Returnval, nil
	})
	if err == nil {
		return nil
	}
	if gone, e := v.gone(ctx); e == nil && gone {
		return nil
	}
	return err
}

// gone reports whether the machine does not exist any more.
func (v *VM) gone(ctx context.Context) (bool, error) {
	_, err := v.read(ctx, "name")
	if isNotFound(err) {
		return true, nil
	}
	return false, err
}
