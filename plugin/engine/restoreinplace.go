package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/vddk"
	"github.com/vmkeep/vmkeep/vsphere"
)

// Restores over the disks of an existing machine.
//
// While disks are being overwritten the machine carries restoringKey with the point's id in its extra configuration, and
// the journal an entry. A run that finds the mark knows that the machine is neither what it was nor what it shall be;
// change tracking is then not believed, and running the same restore again completes it and clears the entry.

// restoringKey marks a machine whose disks are being overwritten.
const restoringKey = "vmkeep.restoring"

// inPlace overwrites the disks of the machine: all bytes, or for a rollback those that differ.
func (j *restoreJob) inPlace(ctx context.Context) error {
	check := func(_ context.Context, t *machineTarget) error {
		if problems := j.pair(t.state).problems; len(problems) > 0 {
			return problems[0]
		}
		return nil
	}
	return j.onMachine(ctx, check, func(ctx context.Context, t *machineTarget) error {
		var tracked map[string]tracking
		if j.req.Mode == plugin.RestoreRollback {
			var err error
			if tracked, err = j.findChanges(ctx, t, j.pair(t.state).pairs); err != nil {
				return err
			}
			// The snapshot is gone, and may have left the disks on other files than those that were paired.
			if err := t.look(ctx, j, check); err != nil {
				return err
			}
		}
		found := j.pair(t.state)
		for _, n := range found.notes {
			j.note(n)
		}
		t.touched = true
		mark := vsphere.Overwrite{Key: restoringKey, Value: j.point.snapshot.ID.String(), Done: map[string]string{restoredKey: j.op.id}}
		return t.vm.WithOverwrite(ctx, t.op, mark, func(ctx context.Context) error {
			for _, p := range found.pairs {
				if err := j.overwrite(ctx, t, p, tracked[p.saved.Name]); err != nil {
					return fmt.Errorf("disk %s: %w", p.saved.Name, err)
				}
			}
			return nil
		})
	})
}

// machineTarget is the existing machine that a restore writes to.
type machineTarget struct {
	vc      *vsphere.Client
	vm      *vsphere.VM
	op      *vsphere.Operation
	state   *vsphere.State
	touched bool // it is not what it was before
}

// look reads the machine's state anew and says why it cannot be written to: for reasons of the mode, and of every mode.
func (t *machineTarget) look(ctx context.Context, j *restoreJob, check func(context.Context, *machineTarget) error) error {
	st, err := t.vm.State(ctx)
	if err != nil {
		return err
	}
	t.state = st
	if problems := j.unsuitable(st); len(problems) > 0 {
		return problems[0]
	}
	return check(ctx, t)
}

// onMachine finds the machine to write to, makes sure that it can be written to before anything is done to it, that it
// is off where it has to be, and runs fn with a journal. A machine that was switched off and could not be written to runs again.
func (j *restoreJob) onMachine(ctx context.Context, check func(context.Context, *machineTarget) error, fn func(context.Context, *machineTarget) error) (err error) {
	opened, err := j.changing(ctx)
	if err != nil {
		return err
	}
	t := &machineTarget{vc: opened.vc}
	if t.vm, err = j.target(ctx, t.vc); err != nil {
		return err
	}
	if err := t.look(ctx, j, check); err != nil {
		return err
	}
	if t.state.Power != vsphere.PoweredOff && !j.hot(t.state) {
		was := t.state.Power
		if err := j.powerOff(ctx, t); err != nil {
			return err
		}
		defer func() {
			if err != nil && !t.touched && was == vsphere.PoweredOn {
				err = errors.Join(err, t.vm.PowerOn(context.WithoutCancel(ctx)))
			}
		}()
		if err := t.look(ctx, j, check); err != nil {
			return err
		}
	}
	if t.op = j.held; t.op == nil {
		if t.op, err = opened.journal.Begin("", j.repo.ID()); err != nil {
			return err
		}
	}
	defer func() {
		if err := t.op.End(); err != nil {
			j.note(warning(plugin.CodeLeftover, "something was left on vSphere", err.Error(), "run the restore again, or `vmkeep recover`"))
		}
	}()
	j.report.Machine, j.report.MachineID = t.state.Path, t.vm.ID()
	interrupted := extraConfig(t.state.ConfigInfo, restoringKey) != ""
	if err := fn(ctx, t); err != nil {
		return err
	}
	if interrupted {
		j.clearJournal(ctx, opened)
	}
	return j.powerOn(ctx, t.vm)
}

// shutdownTime is how long a guest may take to shut down before its machine is switched off.
const shutdownTime = 5 * time.Minute

// powerOff stops the machine: its guest shuts down where VMware Tools can ask it to, so that disks that are not written
// to are whole; else the machine is switched off.
func (j *restoreJob) powerOff(ctx context.Context, t *machineTarget) error {
	j.scope.phase(plugin.PhasePowerOff)
	if t.state.Power == vsphere.PoweredOn && t.state.ToolsRunning {
		polite, cancel := context.WithTimeout(ctx, shutdownTime)
		err := t.vm.Shutdown(polite)
		cancel()
		if err == nil || ctx.Err() != nil {
			return err
		}
		j.note(warning(plugin.CodeDegraded, "the guest did not shut down: its machine is switched off", err.Error(), "look at the file systems of disks that are not restored"))
	}
	return t.vm.PowerOff(ctx)
}

// target finds the machine to write to: the one that was asked for, or the point's own.
func (j *restoreJob) target(ctx context.Context, vc *vsphere.Client) (*vsphere.VM, error) {
	return vc.Find(ctx, cmp.Or(j.req.Target.Machine, j.point.manifest.Machine.InstanceUUID))
}

// unsuitable says why the machine's disks cannot be written to as it is.
func (j *restoreJob) unsuitable(st *vsphere.State) []*plugin.Error {
	var out []*plugin.Error
	if j.req.Mode != plugin.RestoreAttach { // a new disk is nothing that snapshots know
		if len(st.SnapshotTree) > 0 {
			out = append(out, hasSnapshots(st))
		}
		if st.Consolidate {
			out = append(out, &plugin.Error{Code: plugin.CodeTargetUnsuitable, Summary: "the machine's disks need consolidation", Object: st.Name,
				Detail: "they run on what a removed snapshot left behind", Remedy: "consolidate them in vSphere first"})
		}
	}
	if st.Power != vsphere.PoweredOff && !j.req.PowerOff && !j.hot(st) {
		out = append(out, &plugin.Error{Code: plugin.CodeTargetUnsuitable, Summary: "the machine is not powered off", Object: st.Name, Detail: string(st.Power),
			Remedy: "power it off first, or let the restore do it (--power-off)"})
	}
	return out
}

func hasSnapshots(st *vsphere.State) *plugin.Error {
	return &plugin.Error{Code: plugin.CodeTargetUnsuitable, Summary: "the machine has snapshots", Object: st.Name,
		Detail: fmt.Sprintf("%d, the first is %q: its disks are what the snapshots are made of", len(st.SnapshotTree), st.SnapshotTree[0].Name), Remedy: "remove them, or restore to a new machine"}
}

// overwrite writes one disk: all of it, or what differs.
func (j *restoreJob) overwrite(ctx context.Context, t *machineTarget, p diskPair, known tracking) (err error) {
	spec := vddk.Spec{VM: t.vm.ID(), Key: p.disk.Key, Path: p.disk.Path, Capacity: p.disk.Capacity, Write: true, Encrypted: p.disk.Encrypted}
	disk, err := j.op.conn.openDisk(ctx, t.vc, spec, func(name string, err error) {
		j.scope.on(p.saved.Name).tell(warning(plugin.CodeTransport, "transport "+name+" does not reach the disk", err.Error(), ""))
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, disk.Close()) }()
	out := output{disk: p.saved, target: disk, flush: flusher(ctx, disk)}
	if j.req.Mode == plugin.RestoreRollback {
		out.reason = known.reason
		if known.usable {
			out.only = known.changed.Clip(extent.Extent{Len: p.saved.Capacity}).Align(vddk.SectorSize, p.saved.Capacity)
		} else {
			out.reason = "compared by content: " + known.reason
			if err := j.onlyDifferent(ctx, &out); err != nil {
				return err
			}
		}
		if out.only == nil {
			out.only = extent.Set{}
		}
	}
	return j.write(ctx, out)
}

// flusher makes a disk's writes durable where the disk can before it is closed.
func flusher(ctx context.Context, disk vddk.Disk) func() error {
	f, ok := disk.(vddk.Flusher)
	if !ok {
		return nil
	}
	return func() error { return f.Flush(ctx) }
}

// onlyDifferent compares what is there with the point, and has what differs written.
func (j *restoreJob) onlyDifferent(ctx context.Context, o *output) (err error) {
	o.fresh, o.patch = false, true
	there := &held{disk: o.target, allocated: extent.Of(extent.Extent{Len: o.disk.Capacity})}
	if a, ok := o.target.(vddk.Allocator); ok {
		if set, err := a.Allocated(ctx, there.allocated[0]); err == nil {
			there.allocated = set
		}
	}
	o.there = there
	if o.only, err = j.compare(ctx, o.disk, there); o.only == nil {
		o.only = extent.Set{}
	}
	return err
}

// compare reads a disk and returns the sectors of the chunks that are not, or may not be, what the point says. Zeros are
// not looked for where the disk itself says that nothing is.
func (j *restoreJob) compare(ctx context.Context, d manifestDisk, there *held) (extent.Set, error) {
	parts, err := j.point.partTrees(ctx, d.Name)
	if err != nil {
		return nil, err
	}
	s := j.scope.on(d.Name)
	s.phase(plugin.PhaseCompare)
	m, end := s.meter(plugin.PhaseCompare, d.Capacity)
	defer end()
	c := &chunkMap{repo: j.repo, size: d.Capacity, parts: parts, allowMissing: j.req.AllowMissing, meter: m}
	found, err := c.differing(ctx, there, func(p piece) bool { return p.zero() && !there.allocated.Overlaps(p.extent()) })
	j.report.Stats.Read += m.read.Load() - there.spared.Load()
	return found.Union(extent.Of(c.lost...)).Align(vddk.SectorSize, d.Capacity), err // nobody knows of what was lost
}
