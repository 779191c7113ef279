package vsphere

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/vmware/govmomi/vim25/types"
)

// half asks for two disks that are held, and has fill fill them.
func half(op *Operation, fill func(*VM, []Disk) error) Carry {
	return Carry{Operation: op, Disks: []DiskSpec{{Carried: true, Capacity: mib}, {Carried: true, Capacity: 2 * mib}}, Hold: []string{"one", "two"},
		Fill: func(_ context.Context, carrier *VM, disks []Disk) (map[string]string, error) {
			return nil, fill(carrier, disks)
		}}
}

// dead leaves two half-filled disks of a machine, as a run does that has died.
func (w *world) dead(v *VM) (carrier *VM, disks []Disk) {
	w.Helper()
	op, err := w.j.Begin("", "repo1")
	must(w, err)
	boom := errors.New("boom")
	_, err = v.Carry(w.ctx, half(op, func(on *VM, made []Disk) error {
		carrier, disks = on, made
		if _, _, err := v.TakeOver(w.ctx, w.j, []string{"one", "two"}); !errors.Is(err, ErrLive) {
			w.Errorf("taking over from a run that is alive: %v", err)
		}
		return boom
	}))
	if !errors.Is(err, boom) || op.Holds() == "" {
		w.Fatalf("%v, held in %q", err, op.Holds())
	}
	if err := op.End(); !errors.Is(err, ErrLeftover) {
		w.Fatal(err)
	}
	return carrier, disks
}

// put attaches the file of a disk to a machine, as somebody does by hand, or a run right before it dies.
func (w *world) put(v *VM, d Disk, place string) {
	w.Helper()
	devices, err := v.hardwareNow(w.ctx)
	must(w, err)
	_, key, unit, err := v.choosePlace(devices, place, false)
	must(w, err)
	must(w, v.reconfigure(w.ctx, "attach", types.VirtualMachineConfigSpec{DeviceChange: []types.BaseVirtualDeviceConfigSpec{&types.VirtualDeviceConfigSpec{
		Operation: types.VirtualDeviceConfigSpecOperationAdd, Device: &types.VirtualDisk{VirtualDevice: types.VirtualDevice{Key: -1, ControllerKey: key, UnitNumber: &unit,
			Backing: &types.VirtualDiskFlatVer2BackingInfo{VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: d.Path}, DiskMode: string(types.VirtualDiskModePersistent)}}}}}}))
}

// Whatever became of half-filled disks since: they are gone on with, or were added already, or it is said why not, and
// nothing of them is touched then.
func TestHeldDisksAreGoneOnWith(t *testing.T) {
	fill := []string{"one", "two"}
	for name, c := range map[string]struct {
		since func(w *world, v, carrier *VM, disks []Disk)
		err   error // of taking over, or of going on
	}{
		"nothing happened": {since: func(*world, *VM, *VM, []Disk) {}},
		"taken out":        {since: func(w *world, _, carrier *VM, _ []Disk) { must(w, carrier.unload(w.ctx)) }},
		"one taken out":    {since: func(w *world, _, carrier *VM, d []Disk) { must(w, carrier.detach(w.ctx, d[0].Path, false)) }},
		"a file is gone":   {since: func(w *world, _, carrier *VM, d []Disk) { must(w, carrier.detach(w.ctx, d[1].Path, true)) }, err: ErrUnsuitable},
		"grown": {since: func(w *world, _, carrier *VM, d []Disk) {
			must(w, w.lab.Machine(carrier.machine.Name).Grow(d[0].Key, 4*mib))
		}, err: ErrUnsuitable},
		"started": {since: func(w *world, _, carrier *VM, _ []Disk) { must(w, carrier.PowerOn(w.ctx)) }, err: ErrUnsuitable},
		"one is added": {since: func(w *world, v, carrier *VM, d []Disk) {
			must(w, carrier.unload(w.ctx))
			w.put(v, d[0], "scsi0-5")
		}, err: ErrUnsuitable},
	} {
		t.Run(name, func(t *testing.T) {
			w := start(t, machines("web"))
			v := w.find("web")
			carrier, disks := w.dead(v)
			c.since(w, v, carrier, disks)
			before, links := w.paths("web"), slices.Sorted(slices.Values(w.lab.Links()))
			op, added, err := v.TakeOver(w.ctx, w.j, fill)
			if err == nil && op == nil || len(added) > 0 {
				t.Fatalf("taken over %v, added %v", op, added)
			}
			if err == nil {
				added, err = v.Carry(w.ctx, half(op, func(_ *VM, again []Disk) error {
					if len(again) != 2 || again[0].Path != disks[0].Path || again[1].Path != disks[1].Path {
						t.Errorf("to be filled are %+v", again)
					}
					return nil
				}))
				if e := op.End(); (e == nil) != (c.err == nil) {
					t.Errorf("the operation ends with %v", e)
				}
			}
			if !errors.Is(err, c.err) {
				t.Fatalf("error %v", err)
			}
			if c.err != nil {
				if now := slices.Sorted(slices.Values(w.lab.Links())); !slices.Equal(w.paths("web"), before) || !slices.Equal(now, links) {
					t.Errorf("disks %v, had %v; files %v, had %v", w.paths("web"), before, now, links)
				}
				return
			}
			if len(added) != 2 || !slices.Equal(w.paths("web"), append(before, "scsi0-1 "+disks[0].Path, "scsi0-2 "+disks[1].Path)) || !slices.Equal(w.lab.Machines(), []string{"web"}) {
				t.Errorf("added %+v, disks %v, machines %v", added, w.paths("web"), w.lab.Machines())
			}
			if left, err := w.c.Leftovers(w.ctx, w.j); err != nil || len(left) > 0 {
				t.Errorf("left: %+v, %v", left, err)
			}
		})
	}
}

// Of a run that died when its disks hung at their machine nothing is left to do but to tidy up, which the next run does,
// or a recovery. The disks stay.
func TestHeldDisksThatWereAddedStay(t *testing.T) {
	for _, recovery := range []bool{false, true} {
		w := start(t, machines("web"))
		v := w.find("web")
		carrier, disks := w.dead(v)
		must(t, carrier.unload(w.ctx))
		w.put(v, disks[0], "scsi0-5")
		w.put(v, disks[1], "scsi0-6")
		before := w.paths("web")
		if recovery {
			report, err := w.c.Recover(w.ctx, w.j, RecoverOptions{})
			if must(t, err); len(report.Undone) != 3 || len(report.Kept)+len(report.Failed) > 0 {
				t.Errorf("%+v", report)
			}
		} else if op, added, err := v.TakeOver(w.ctx, w.j, []string{"one", "two"}); op != nil || len(added) != 2 || err != nil {
			t.Errorf("taken over %v, added %v, %v", op, added, err)
		}
		if now := w.paths("web"); !slices.Equal(now, before) || !slices.Equal(w.lab.Machines(), []string{"web"}) {
			t.Errorf("disks %v, had %v; machines %v", now, before, w.lab.Machines())
		}
		if left, err := w.c.Leftovers(w.ctx, w.j); err != nil || len(left) > 0 {
			t.Errorf("left: %+v, %v", left, err)
		}
	}
}

// Who takes the mark off a carrier has made it his own: it stays, with its disks, and nobody goes on with them.
func TestCarrierWithoutItsMarkIsSpared(t *testing.T) {
	w := start(t, machines("web"))
	v := w.find("web")
	carrier, disks := w.dead(v)
	must(t, carrier.reconfigure(w.ctx, "rename", types.VirtualMachineConfigSpec{Annotation: "mine"}))
	if op, added, err := v.TakeOver(w.ctx, w.j, []string{"one", "two"}); op != nil || added != nil || err != nil {
		t.Errorf("taken over %v, added %v, %v", op, added, err)
	}
	report, err := w.c.Recover(w.ctx, w.j, RecoverOptions{})
	if must(t, err); len(report.Undone) != 3 || len(report.Kept)+len(report.Failed) > 0 {
		t.Errorf("%+v", report)
	}
	links := w.lab.Links()
	if now := w.state(carrier).Disks; len(now) != 2 || !slices.Contains(links, disks[0].Path) || !slices.Contains(links, disks[1].Path) {
		t.Errorf("the machine has the disks %+v; files %v", now, links)
	}
}
