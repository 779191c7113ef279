package vsphere

import (
	"context"
	"errors"
	"fmt"

	"github.com/vmware/govmomi/vim25/types"
)

// refuse is an [ErrChangeTracking] that says why the machine cannot track changes.
func (v *VM) refuse(reason, remedy string) error {
	return &Error{Kind: ErrChangeTracking, Object: v.label(), Summary: fmt.Sprintf("change tracking of %s cannot be switched: %s", v.label(), reason), Remedy: remedy}
}

// mayTrack checks the rules under which change tracking may be switched. Switching it on under a snapshot is not
// supported, and makes vSphere from 6.5 on answer later queries with wrong areas and no error.
func (v *VM) mayTrack(ctx context.Context) (on bool, err error) {
	vm, err := v.read(ctx, "config.changeTrackingEnabled", "config.version", "config.template", "capability.changeTrackingSupported", "snapshot")
	if err != nil {
		return false, err
	}
	if vm.Config == nil {
		return false, v.refuse("its configuration cannot be read", "bring its host back, or check the account's rights")
	}
	on = vm.Config.ChangeTrackingEnabled != nil && *vm.Config.ChangeTrackingEnabled
	switch {
	case vm.Config.Template:
		return on, v.refuse("it is a template", "nothing to do: templates are read whole, and what is unchanged costs no space")
	case hardware(vm.Config.Version) < 7:
		return on, v.refuse(fmt.Sprintf("its hardware version is %s, 7 is needed", vm.Config.Version), "upgrade the machine's hardware")
	case !vm.Capability.ChangeTrackingSupported:
		return on, v.refuse("its host does not support it", "move the machine to a newer host")
	case vm.Snapshot != nil && len(vm.Snapshot.RootSnapshotList) > 0:
		return on, v.refuse(fmt.Sprintf("it has %d snapshots", countSnapshots(vm.Snapshot.RootSnapshotList)), "remove the snapshots first; until then the disks are read whole")
	}
	return on, nil
}

// EnableCBT switches change tracking on where the rules allow it and verifies it; false: it was on already. It takes
// effect at the machine's next stun: the snapshot of the same backup, which therefore is the first with change ids.
// Refusals are [ErrChangeTracking] with the reason.
func (v *VM) EnableCBT(ctx context.Context, op *Operation) (bool, error) {
	vm, err := v.read(ctx, "config.changeTrackingEnabled")
	if err != nil {
		return false, err
	}
	if vm.Config != nil && vm.Config.ChangeTrackingEnabled != nil && *vm.Config.ChangeTrackingEnabled {
		return false, nil
	}
	if _, err := v.mayTrack(ctx); err != nil {
		return false, err
	}
	x, err := op.announce(entry{Kind: EntryCBT, Server: v.c.about.InstanceUUID, Machine: v.ID(), Path: v.label(), Action: "on"})
	if err != nil {
		return false, err
	}
	err = v.setTracking(ctx, true)
	if err == nil {
		// A snapshot taken in the meantime makes the answers wrong: take it back.
		if _, err = v.mayTrack(ctx); err != nil {
			after, cancel := v.c.afterwards(ctx)
			defer cancel()
			if e := v.setTracking(after, false); e != nil {
				return false, errors.Join(err, e) // the journal keeps it
			}
		}
	}
	return err == nil, errors.Join(err, x.strike())
}

// setTracking switches and verifies.
func (v *VM) setTracking(ctx context.Context, on bool) error {
	word := map[bool]string{true: "on", false: "off"}[on]
	if err := v.reconfigure(ctx, "switch change tracking of "+v.label()+" "+word, types.VirtualMachineConfigSpec{ChangeTrackingEnabled: &on}); err != nil {
		return err
	}
	vm, err := v.read(ctx, "config.changeTrackingEnabled")
	if err != nil {
		return err
	}
	is := vm.Config != nil && vm.Config.ChangeTrackingEnabled != nil && *vm.Config.ChangeTrackingEnabled
	if is != on {
		return v.refuse("vSphere accepted the switch and did not change it", "look at the machine's events")
	}
	return nil
}

// ResetCBT switches change tracking off and on again, with the stuns that it needs: the way to new, trustworthy
// tracking. No snapshots may exist. When it fails half way tracking is switched on again nevertheless.
func (v *VM) ResetCBT(ctx context.Context, op *Operation) (err error) {
	if _, err := v.mayTrack(ctx); err != nil {
		return err
	}
	x, err := op.announce(entry{Kind: EntryCBT, Server: v.c.about.InstanceUUID, Machine: v.ID(), Path: v.label(), Action: "reset"})
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			after, cancel := v.c.afterwards(ctx)
			defer cancel()
			if e := v.setTracking(after, true); e != nil {
				err = errors.Join(err, e) // the journal keeps it
				return
			}
		}
		err = errors.Join(err, x.strike())
	}()
	for _, on := range []bool{false, true} {
		if err := v.setTracking(ctx, on); err != nil {
			return err
		}
		if err := v.stun(ctx, op); err != nil {
			return err
		}
	}
	return nil
}

// stun makes a running machine reopen its disks: a snapshot, taken and removed. A machine that is off has none open.
func (v *VM) stun(ctx context.Context, op *Operation) error {
	now, err := v.power(ctx)
	if err != nil || now == PoweredOff {
		return err
	}
	_, err = v.WithSnapshot(ctx, SnapshotOptions{Operation: op, Quiesce: Quiesce{Best: LevelCrash}}, func(context.Context, *Snapshot) error { return nil })
	return err
}
