package vsphere

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/vim25/types"
)

// Disks that are held: half-filled, in their carrier, for another run to go on with.
//
// The journal has the carrier, and each disk with what it is to become. A run that goes on takes the operation over, not
// only what it made: so every disk has one entry, from before it is filled until it hangs at its machine. A disk that
// hangs there and not in the carrier any more is whole, and stays, whatever the journal says.

// actionHold is the action of a disk that is held, and of a machine that carries such disks.
const actionHold = "hold"

// errHeld says that a disk is held.
var errHeld = errors.New("the disk is in the machine that carries it, and filled in part")

// held are the disks that the operation holds, in the order in which they were announced.
func (o *Operation) held() []*effect {
	all := slices.DeleteFunc(o.effects(), func(x *effect) bool { return x.e.Kind != EntryDisk || x.e.Action != actionHold })
	slices.Reverse(all)
	return all
}

// Holds names the machine in which the operation keeps disks half-filled; empty: it keeps none.
func (o *Operation) Holds() string {
	if x := o.carrier(); x != nil && len(o.held()) > 0 {
		return x.current().Path
	}
	return ""
}

// carrier is the machine that carries what the operation holds; nil: there is none.
func (o *Operation) carrier() *effect {
	for _, x := range o.effects() {
		if x.e.Kind == EntryMachine && x.e.Action == actionHold {
			return x
		}
	}
	return nil
}

// holdsFor reports whether the operation holds disks for a machine that are to become this, and no others.
func (o *Operation) holdsFor(v *VM, fill []string) bool {
	var have []string
	for _, x := range o.held() {
		if x.e.Server != v.c.about.InstanceUUID || x.e.Machine != v.ID() {
			return false
		}
		have = append(have, x.e.Fill)
	}
	return len(fill) > 0 && slices.Equal(have, fill)
}

// Held finds the operation, running or not, that holds disks of the machine which are to become what fill says, see
// [Carry]. Empty: there is none.
func (v *VM) Held(j *Journal, fill []string) (id string, err error) {
	names, err := j.files()
	if err != nil {
		return "", err
	}
	for _, name := range names {
		if o, err := j.look(name); err == nil && o.holdsFor(v, fill) {
			return o.id, nil
		}
	}
	return "", nil // of files that cannot be read a recovery tells
}

// TakeOver takes over the operation that [VM.Held] finds: the next [VM.Carry] goes on with its disks. It has to be
// ended. nil: there is none, or nothing of it is left to go on with, which [Client.Recover] then tidies up.
//
// Where the interrupted run got as far as adding its disks, they are returned and the operation is over.
func (v *VM) TakeOver(ctx context.Context, j *Journal, fill []string) (op *Operation, added []Disk, err error) {
	id, err := v.Held(j, fill)
	if err != nil || id == "" {
		return nil, nil, err
	}
	o, err := j.take(filepath.Join(j.dir, id+".jsonl"), id)
	if errors.Is(err, ErrLive) {
		return nil, nil, &Error{Kind: ErrLive, Object: v.label(), Summary: "another run is filling these disks, or looks after them", Remedy: "wait for it, then try again"}
	}
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if op == nil {
			err = errors.Join(err, withoutLeftover(o.End()))
		}
	}()
	if !o.holdsFor(v, fill) { // somebody was faster
		return nil, nil, nil
	}
	carrier, err := v.carrierOf(ctx, o)
	if err != nil {
		return nil, nil, err
	}
	if added, err = v.hanging(ctx, o, carrier); err != nil {
		return nil, nil, err
	}
	switch {
	case len(added) == len(fill):
		return nil, added, v.c.undoOperation(ctx, o, RecoverOptions{}, &RecoverReport{})
	case carrier == nil:
		return nil, nil, nil
	case len(added) > 0:
		return nil, nil, &Error{Kind: ErrUnsuitable, Object: v.label(), Summary: "only some of the disks that an interrupted run was filling hang at machine " + v.label(),
			Remedy: "destroy machine " + carrier.label() + ", then restore again"}
	}
	return o, nil, nil
}

// withoutLeftover is err without the news that an operation is not over.
func withoutLeftover(err error) error {
	if errors.Is(err, ErrLeftover) {
		return nil
	}
	return err
}

// carrierOf finds the machine that carries what an operation holds, as it is now; nil: it is gone, or somebody has made
// it a machine of his own.
func (v *VM) carrierOf(ctx context.Context, o *Operation) (*VM, error) {
	x := o.carrier()
	if x == nil || x.current().Object == "" {
		return nil, nil
	}
	t, err := v.c.readTree(ctx)
	if err != nil {
		return nil, err
	}
	m, err := v.c.machine(ctx, vmRef(x.current().Object), t)
	if isNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	carrier := v.c.VM(m)
	now, err := carrier.read(ctx, "config.annotation", "config.uuid", "snapshot") // an empty annotation is left out of the answer
	if err != nil {
		return nil, err
	}
	if now.Config == nil {
		return nil, unreadable(carrier)
	}
	if mk, ok := readMark(now.Config.Annotation); !ok || mk.operation != o.id {
		return nil, nil
	}
	if m.Power != PoweredOff || now.Snapshot != nil {
		return nil, &Error{Kind: ErrUnsuitable, Object: m.Path, Summary: "the machine that carries the half-filled disks was started, or has snapshots", Remedy: "destroy it, then restore again"}
	}
	return carrier, nil
}

// hanging are the disks of an operation that hang at the machine they are for, and not in the carrier, which may be nil.
func (v *VM) hanging(ctx context.Context, o *Operation, carrier *VM) (out []Disk, err error) {
	devices, err := v.hardwareNow(ctx)
	if err != nil {
		return nil, err
	}
	for _, x := range o.held() {
		for _, d := range disksOf(devices) {
			if x.current().is(d) && (carrier == nil || !carrier.has(x.current())) {
				out = append(out, d)
			}
		}
	}
	return out, nil
}

// has reports whether a disk hung in the machine when the handle was made.
func (v *VM) has(e entry) bool { return slices.ContainsFunc(v.machine.Disks, e.is) }

// addHeld is Carry of disks that are held. The journal has them until everything else is done: who dies before may run
// the same again, and nothing is made twice.
func (v *VM) addHeld(ctx context.Context, h Carry, l *load) (added []Disk, err error) {
	if len(h.Hold) != len(l.entries) {
		return nil, &Error{Kind: ErrInvalid, Summary: fmt.Sprintf("%d disks are to become %d", len(l.entries), len(h.Hold)), Remedy: "say of each disk what it is to become"}
	}
	if h.Operation.carrier() == nil {
		added, err = v.hold(ctx, h, l)
	} else {
		added, err = v.goOn(ctx, h, l)
	}
	if added == nil {
		return nil, err
	}
	return added, errors.Join(err, h.Operation.strike(h.Operation.held()...))
}

// hold makes the disks of a load, and has them filled and hung over. With disks there is an error only of the journal.
func (v *VM) hold(ctx context.Context, h Carry, l *load) (added []Disk, err error) {
	l.carrier.asked.KeepFailed = true
	_, err = v.c.CreateMachine(ctx, l.carrier, func(ctx context.Context, carrier *VM) error {
		for i, e := range l.entries {
			e.Action, e.Carrier, e.Fill = actionHold, carrier.ID(), h.Hold[i]
			if _, err := h.Operation.announce(e); err != nil {
				return err
			}
		}
		added, err = v.fillAndTake(ctx, h, l, carrier)
		return err
	})
	if added != nil {
		err = withoutLeftover(err) // the disks are there; of the carrier, which is not gone, the end of the operation tells
	}
	return added, err
}

// goOn is hold of disks that an interrupted run has made.
func (v *VM) goOn(ctx context.Context, h Carry, l *load) ([]Disk, error) {
	for i, x := range h.Operation.held() {
		l.entries[i].Object = x.current().Object
	}
	carrier, err := v.carrierOf(ctx, h.Operation)
	if err != nil {
		return nil, err
	}
	if carrier == nil {
		return nil, &Error{Kind: ErrNotFound, Object: h.Operation.Holds(), Summary: "the machine that carries the half-filled disks is gone", Remedy: "restore again, from the beginning"}
	}
	if err := carrier.reload(ctx, l); err != nil {
		return nil, err
	}
	added, err := v.fillAndTake(ctx, h, l, carrier)
	if err != nil {
		return nil, err
	}
	after, cancel := v.c.afterwards(ctx)
	defer cancel()
	x := h.Operation.carrier()
	if err := v.c.undoMachine(after, x.current(), h.Operation.id); err != nil {
		return added, nil // as hold
	}
	return added, x.strike()
}

// reload hangs what an interrupted run took out of the carrier into it again, and has the handle know its disks in the
// order of the load. Whether they were filled by then nobody knows.
func (v *VM) reload(ctx context.Context, l *load) error {
	devices, err := v.hardwareNow(ctx)
	if err != nil {
		return err
	}
	var changes []types.BaseVirtualDeviceConfigSpec
	for i, e := range l.entries {
		if v.has(e) {
			continue
		}
		_, key, unit, err := v.choosePlace(devices, l.carrier.Disks[i].Name, false)
		if err != nil {
			return err
		}
		changes = append(changes, &types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationAdd, Device: &types.VirtualDisk{
			VirtualDevice: types.VirtualDevice{Key: -1 - int32(i), ControllerKey: key, UnitNumber: &unit, Backing: &types.VirtualDiskFlatVer2BackingInfo{
				VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: e.Object}, DiskMode: string(types.VirtualDiskModePersistent)}}}})
	}
	if len(changes) > 0 {
		if err := v.reconfigure(ctx, "hang disks into "+v.label()+" again", types.VirtualMachineConfigSpec{DeviceChange: changes}); err != nil {
			if fault.Is(err, &types.FileNotFound{}) {
				return v.unlike(err)
			}
			return err
		}
		if devices, err = v.hardwareNow(ctx); err != nil {
			return err
		}
	}
	now, in := disksOf(devices), []Disk(nil)
	for i, e := range l.entries {
		at := slices.IndexFunc(now, func(d Disk) bool { return d.Path == e.Object })
		if at < 0 || now[at].Capacity != l.carrier.Disks[i].Capacity {
			return v.unlike(nil)
		}
		in = append(in, now[at])
	}
	v.machine.Disks = in
	return nil
}

// unlike says that the carrier's disks are not as the interrupted run left them.
func (v *VM) unlike(err error) error {
	return &Error{Kind: ErrUnsuitable, Object: v.label(), Err: err, Summary: "the half-filled disks in machine " + v.label() + " are not as the interrupted run left them",
		Remedy: "destroy it, then restore again"}
}

// settle ends the holding of a disk whose carrier is gone: its file goes, unless it hangs at the machine it is for. As
// long as the carrier is there the disk is held.
func (v *VM) settle(ctx context.Context, e entry, operation string) error {
	carrier := v.c.VM(Machine{ID: e.Carrier})
	for _, on := range []*VM{carrier, v} {
		if err := v.c.quiet(ctx, on.ref(), "reconfig"); err != nil && !isNotFound(err) { // what a dead process began may be coming
			return err
		}
	}
	now, err := carrier.read(ctx, "config.annotation", "config.hardware.device")
	if err != nil && !isNotFound(err) {
		return err
	}
	kept := false
	if err == nil {
		if now.Config == nil {
			return unreadable(carrier)
		}
		mk, ok := readMark(now.Config.Annotation)
		kept = ok && mk.operation == operation
		switch in := slices.ContainsFunc(disksOf(now.Config.Hardware.Device), e.is); {
		case in && kept:
			return errHeld
		case in: // somebody has made the carrier a machine of his own, with what it has
			return nil
		}
	}
	devices, err := v.hardwareNow(ctx)
	if err != nil && !isNotFound(err) {
		return err
	}
	switch {
	case slices.ContainsFunc(disksOf(devices), e.is): // whole: it was added
		return nil
	case kept:
		return errHeld
	}
	return v.c.discard(ctx, e)
}
