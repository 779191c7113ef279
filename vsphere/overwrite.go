package vsphere

import (
	"context"
	"errors"

	"github.com/vmware/govmomi/vim25/types"
)

// Overwrite says what marks a machine whose disks are being overwritten, or filled for the first time.
type Overwrite struct {
	Key   string            // of the machine's ExtraConfig
	Value string            // what the disks are to become, as a point's id
	Done  map[string]string // added to ExtraConfig when all is written
}

// WithOverwrite runs fn, which overwrites disks of the machine. From before the first byte until fn has succeeded the
// machine carries the mark and the journal an entry. When fn fails both stay: what was overwritten cannot be undone, only
// completed, so [Client.Recover] lists the entry until the machine does not carry the mark any more. Once all is written,
// the end of ctx does not keep both from going.
func (v *VM) WithOverwrite(ctx context.Context, op *Operation, mark Overwrite, fn func(context.Context) error) error {
	x, err := op.announce(entry{Kind: EntryOverwrite, Server: v.c.about.InstanceUUID, Machine: v.ID(), Path: v.label(), Object: mark.Value, Name: mark.Key})
	if err != nil {
		return err
	}
	if err := v.SetExtra(ctx, map[string]string{mark.Key: mark.Value}); err != nil {
		after, cancel := v.c.afterwards(ctx)
		defer cancel()
		if half, e := v.willCarry(after, mark.Key); e == nil && !half {
			err = errors.Join(err, x.strike()) // nothing happened
		}
		return err
	}
	if err := fn(ctx); err != nil {
		return err
	}
	after, cancel := v.c.afterwards(ctx)
	defer cancel()
	err = v.c.insist(after, func() error {
		return v.reconfigure(after, "finish "+v.label(), types.VirtualMachineConfigSpec{ExtraConfig: mark.done()})
	})
	if err != nil {
		return err
	}
	return x.strike()
}

// willCarry is carries when all that lost calls began has ended.
func (v *VM) willCarry(ctx context.Context, key string) (bool, error) {
	if err := v.c.quiet(ctx, v.ref(), "reconfig"); err != nil {
		return false, err
	}
	return v.carries(ctx, key)
}

// done is what to change in ExtraConfig when all is written: the mark goes.
func (o Overwrite) done() []types.BaseOptionValue {
	out := extraConfig(o.Done)
	if o.Key != "" {
		out = append(out, &types.OptionValue{Key: o.Key, Value: ""})
	}
	return out
}

// set is what to change in ExtraConfig before anything is written.
func (o Overwrite) set() []types.BaseOptionValue {
	if o.Key == "" {
		return nil
	}
	return []types.BaseOptionValue{&types.OptionValue{Key: o.Key, Value: o.Value}}
}

// errHalf says that the disks of a machine are overwritten in part.
var errHalf = errors.New("the machine carries the mark of a restore that has not ended")

// carries reports whether the machine's ExtraConfig has something under the key. A machine that is gone has nothing.
func (v *VM) carries(ctx context.Context, key string) (bool, error) {
	vm, err := v.read(ctx, "config.extraConfig")
	if isNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if vm.Config == nil {
		return false, nil
	}
	return extraValue(vm.Config.ExtraConfig, key) != "", nil
}

// extraValue is the text under a key; empty when there is none.
func extraValue(list []types.BaseOptionValue, key string) string {
	for _, o := range list {
		if v := o.GetOptionValue(); v.Key == key {
			text, _ := v.Value.(string)
			return text
		}
	}
	return ""
}
