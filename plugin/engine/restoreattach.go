package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/vsphere"
)

// attach makes new disks of the point's disks in an existing machine. Disks that are there stay, or are detached with
// their files kept where a position was asked for that is taken. All disks are attached or none.
//
// A machine that runs goes on running, and gets all disks at once when they are filled, see [vsphere.VM.Carry]. So does
// one that is off where half-filled disks are to be kept for the same restore to go on with.
func (j *restoreJob) attach(ctx context.Context) error {
	done, err := j.takeOver(ctx)
	if done || err != nil {
		return err
	}
	if j.held != nil {
		defer j.held.End() // twice does nothing, and who ends it before tells what is left
	}
	return j.onMachine(ctx, j.misplaced, func(ctx context.Context, t *machineTarget) error {
		if j.carried(t.state) {
			return j.carry(ctx, t)
		}
		return j.attachAll(ctx, t, j.disks)
	})
}

// takeOver finds the disks that an interrupted run of the same restore left half-filled. done: it had added them, and
// nothing is left to do.
func (j *restoreJob) takeOver(ctx context.Context) (done bool, err error) {
	vc, err := j.op.conn.vsphere(ctx)
	if err != nil {
		return false, err
	}
	journal, err := j.op.conn.openJournal()
	if err != nil {
		return false, err
	}
	vm, err := j.target(ctx, vc)
	if err != nil {
		return false, err
	}
	op, added, err := vm.TakeOver(ctx, journal, j.becoming())
	if err != nil || len(added) == 0 {
		j.held, j.begun = op, op != nil
		return false, err
	}
	j.report.Machine, j.report.MachineID = vm.Machine().Path, vm.ID()
	for i, d := range j.disks {
		j.report.Disks = append(j.report.Disks, plugin.RestoredDisk{Name: d.Name, Capacity: d.Capacity, Reason: reasonContinued})
		j.scope.on(d.Name).info("", "the interrupted run has attached it as "+added[i].Name, added[i].Path)
	}
	return true, j.powerOn(ctx, vm)
}

// becoming says what the chosen disks become when they are attached: the same text for the same restore.
func (j *restoreJob) becoming() (out []string) {
	for _, d := range j.disks {
		out = append(out, j.point.snapshot.ID.String()+" "+d.Name)
	}
	return out
}

// hot reports whether disks are attached to the machine while it runs.
func (j *restoreJob) hot(st *vsphere.State) bool {
	return j.req.Mode == plugin.RestoreAttach && st.Power == vsphere.PoweredOn && !j.req.PowerOff
}

// carried reports whether disks are filled before they are attached to the machine.
func (j *restoreJob) carried(st *vsphere.State) bool {
	return j.hot(st) || j.req.KeepPartial || j.begun
}

// carry fills disks and adds them to a machine, which may run.
func (j *restoreJob) carry(ctx context.Context, t *machineTarget) error {
	h := vsphere.Carry{Operation: t.op, Fill: func(ctx context.Context, carrier *vsphere.VM, made []vsphere.Disk) (map[string]string, error) {
		var uuids []string
		for i, d := range j.disks {
			if err := j.fillDisk(ctx, d, fillTarget{t.vc, carrier, made[i], j.begun}); err != nil {
				return nil, err
			}
			uuids = append(uuids, made[i].UUID)
		}
		st, err := t.vm.State(ctx)
		if err != nil {
			return nil, err
		}
		return map[string]string{attachedKey: attachedMark(st, uuids...)}, nil
	}}
	if j.req.KeepPartial || j.begun { // what was kept is not thrown away by a run that does not say so
		h.Hold, h.Mark = j.becoming(), map[string]string{restoringKey: j.point.snapshot.ID.String()}
	}
	for _, d := range j.disks {
		h.Disks = append(h.Disks, j.diskSpec(d, t.state))
	}
	made, err := t.vm.Carry(ctx, h)
	for i, d := range made {
		t.touched = true
		j.scope.on(j.disks[i].Name).info("", "attached as "+d.Name, d.Path)
	}
	if carrier := t.op.Holds(); err != nil && carrier != "" {
		j.note(warning(plugin.CodeDegraded, "the half-filled disks are kept", carrier, "run the restore again: it goes on where this one stopped; or destroy the machine"))
	}
	return err
}

// attachAll attaches the first disk and, while that can still be undone, the rest.
func (j *restoreJob) attachAll(ctx context.Context, t *machineTarget, disks []manifestDisk) error {
	if len(disks) == 0 {
		return nil
	}
	d := disks[0]
	st, err := t.vm.State(ctx)
	if err != nil {
		return err
	}
	spec := j.diskSpec(d, st)
	spec.Operation = t.op
	var rest error
	made, err := t.vm.WithNewDisk(ctx, spec, func(ctx context.Context, to vsphere.Disk) error {
		if err := j.fillDisk(ctx, d, fillTarget{vc: t.vc, vm: t.vm, disk: to}); err != nil {
			return err
		}
		if err := t.vm.SetExtra(ctx, map[string]string{attachedKey: attachedMark(st, to.UUID)}); err != nil {
			return err
		}
		rest = j.attachAll(ctx, t, disks[1:])
		return rest
	})
	switch {
	case rest != nil:
		return err // it tells of its own disk
	case err != nil:
		return fmt.Errorf("disk %s: %w", d.Name, err)
	}
	t.touched = true
	j.scope.on(d.Name).info("", "attached as "+made.Name, made.Path)
	return nil
}

// attachedMark lists the uuids of the disks that restores attached to the machine, with others, less those that are
// gone.
func attachedMark(st *vsphere.State, uuids ...string) string {
	out := slices.DeleteFunc(attachedDisks(st.ConfigInfo), func(u string) bool {
		return !slices.ContainsFunc(st.Disks, func(d vsphere.Disk) bool { return d.UUID == u })
	})
	return strings.Join(append(out, uuids...), ",")
}

// diskSpec is the disk that is to be made for a disk of the point: at the position that was asked for, else at its own
// where that is free, else at the next free one.
func (j *restoreJob) diskSpec(d manifestDisk, st *vsphere.State) vsphere.DiskSpec {
	spec := vsphere.DiskSpec{Capacity: d.Capacity, Provision: vsphere.Provisioning(j.req.Target.Provisioning), Datastore: cmp.Or(j.req.Target.Datastores[d.Name], j.req.Target.Datastore)}
	spec.Hot, spec.Carried = j.hot(st), j.carried(st)
	if place := j.req.Target.Positions[d.Name]; place != "" {
		spec.Place, spec.Replace = place, !spec.Hot
	} else if spec.Hot && strings.HasPrefix(d.Name, "ide") {
		spec.Place = "" // IDE takes no disks while the machine runs
	} else if !slices.ContainsFunc(st.Disks, func(x vsphere.Disk) bool { return x.Name == d.Name }) {
		spec.Place = d.Name
	}
	return spec
}

// newDisk is a disk as it will be attached.
type newDisk struct {
	saved manifestDisk
	spec  vsphere.DiskSpec
	place string
	old   string // datastore path of the disk that makes room; empty: none
}

// planDisks finds where each disk goes, and why it cannot.
func (j *restoreJob) planDisks(ctx context.Context, t *machineTarget) (out []newDisk, problems []error, err error) {
	taken := map[string]string{} // place -> disk of the point
	for _, d := range j.disks {
		n := newDisk{saved: d, spec: j.diskSpec(d, t.state)}
		n.spec.Datastore = cmp.Or(n.spec.Datastore, homeStore(t.state))
		n.place, n.old, err = t.vm.PlanDisk(ctx, n.spec)
		var known *vsphere.Error
		switch other := taken[n.place]; {
		case errors.As(err, &known) && (errors.Is(err, vsphere.ErrExists) || errors.Is(err, vsphere.ErrUnsuitable) || errors.Is(err, vsphere.ErrInvalid)):
			problems = append(problems, err)
		case err != nil:
			return nil, nil, err
		case other != "" && n.spec.Place != "":
			problems = append(problems, &plugin.Error{Code: plugin.CodeTargetUnsuitable, Summary: "two disks cannot have the same place", Object: n.place, Detail: other + " and " + d.Name, Remedy: "choose a place for each"})
		case n.old != "" && len(t.state.SnapshotTree) > 0:
			problems = append(problems, hasSnapshots(t.state))
		}
		taken[n.place] = d.Name
		out = append(out, n)
	}
	if j.begun { // they have their room already
		return out, problems, nil
	}
	full, err := j.room(ctx, t, out)
	return out, append(problems, full...), err
}

// homeStore is the datastore of the machine's home.
func homeStore(st *vsphere.State) string {
	name, _, _ := strings.Cut(strings.TrimPrefix(st.VMX, "["), "]")
	return name
}

// room says which datastores do not exist, or have too little space for the disks that are allotted in full.
func (j *restoreJob) room(ctx context.Context, t *machineTarget, disks []newDisk) (problems []error, err error) {
	stores, err := t.vc.Datastores(ctx)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, s := range stores {
		names = append(names, s.Name)
	}
	need := map[string]int64{}
	for _, n := range disks {
		on := n.spec.Datastore
		i := slices.IndexFunc(stores, func(s vsphere.Datastore) bool { return s.Name == on })
		switch {
		case i < 0:
			problems = append(problems, &plugin.Error{Code: plugin.CodeTargetUnsuitable, Summary: fmt.Sprintf("no datastore %q", on), Object: n.saved.Name, Remedy: "choose among " + strings.Join(names, ", ")})
		case n.spec.Provision != vsphere.ProvisionThin:
			if need[on] += n.saved.Capacity; need[on] > stores[i].Free {
				problems = append(problems, &plugin.Error{Code: plugin.CodeSpace, Summary: "the datastore has too little space", Object: on,
					Detail: fmt.Sprintf("%d bytes are free, the disks to attach take %d", stores[i].Free, need[on]), Remedy: "choose another, or thin provisioning"})
			}
		}
	}
	return problems, nil
}

// misplaced says why the disks cannot be attached where they shall be.
func (j *restoreJob) misplaced(ctx context.Context, t *machineTarget) error {
	_, problems, err := j.planDisks(ctx, t)
	if err == nil && len(problems) > 0 {
		err = problems[0]
	}
	return err
}

func (j *restoreJob) planAttach(ctx context.Context, t *machineTarget, out *plugin.RestorePlan) error {
	disks, problems, err := j.planDisks(ctx, t)
	if err != nil {
		return err
	}
	for _, p := range problems {
		problem(out, p)
	}
	for _, n := range disks {
		at := n.place
		if n.spec.Place == "" {
			at = "the next free position" // the disks before it may have taken this one by then
		}
		step := fmt.Sprintf("make a disk of %d bytes at %s on %s and fill it with %s", n.saved.Capacity, at, n.spec.Datastore, n.saved.Name)
		add := "add"
		if n.spec.Hot {
			add = "hot-add"
		}
		switch {
		case j.begun:
			step = fmt.Sprintf("go on with the disk of %d bytes that an interrupted run has begun to fill with %s: compare it, write what is missing, and %s it at %s", n.saved.Capacity, n.saved.Name, add, at)
		case n.spec.Carried:
			step = fmt.Sprintf("make a disk of %d bytes on %s in a machine of its own, fill it with %s, and %s it at %s", n.saved.Capacity, n.spec.Datastore, n.saved.Name, add, at)
		}
		if n.old != "" {
			step += fmt.Sprintf("; the disk that is there is detached, its file %s stays", n.old)
		}
		out.Steps = append(out.Steps, step)
		out.Write += n.saved.Capacity
	}
	return nil
}
