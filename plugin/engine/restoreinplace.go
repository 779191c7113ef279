package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/vddk"
	"github.com/vmkeep/vmkeep/vsphere"
)

// Restores over the disks of an existing machine.
//
// While disks are being overwritten the machine carries restoringKey with the point's id in its extra configuration:
// that is the journal entry. A run that finds it knows that the machine is neither what it was nor what it shall be;
// change tracking is then not believed, and running the same restore again completes it.

// restoringKey marks a machine whose disks are being overwritten.
const restoringKey = "vmkeep.restoring"

// inPlace overwrites the disks of the machine: all bytes, or for a rollback those that differ.
func (j *restoreJob) inPlace(ctx context.Context) error {
	return j.onMachine(ctx, func(ctx context.Context, vc *vsphere.Client, vm *vsphere.VM, op *vsphere.Operation) error {
		st, err := vm.State(ctx)
		if err != nil {
			return err
		}
		pairs, problems := j.pairs(st)
		if len(problems) > 0 {
			return problems[0]
		}
		var tracked map[string]tracking
		if j.req.Mode == plugin.RestoreRollback {
			if tracked, err = j.askTracking(ctx, vm, op, st, pairs); err != nil {
				return err
			}
		}
		if err := vm.SetExtra(ctx, map[string]string{restoringKey: j.point.snapshot.ID.String()}); err != nil {
			return err
		}
		for _, p := range pairs {
			if err := j.overwrite(ctx, vc, vm, p, tracked[p.saved.Name]); err != nil {
				return fmt.Errorf("disk %s: %w", p.saved.Name, err)
			}
		}
		return vm.SetExtra(ctx, map[string]string{restoringKey: "", restoredKey: j.op.id})
	})
}

// onMachine finds the machine to write to, makes sure that it is off and has no snapshots, and runs fn with a journal.
func (j *restoreJob) onMachine(ctx context.Context, fn func(context.Context, *vsphere.Client, *vsphere.VM, *vsphere.Operation) error) error {
	vc, err := j.op.conn.vsphere(ctx)
	if err != nil {
		return err
	}
	journal, err := j.op.conn.openJournal()
	if err != nil {
		return err
	}
	vm, st, err := j.target(ctx, vc)
	if err != nil {
		return err
	}
	if problems := j.unsuitable(st); len(problems) > 0 {
		return problems[0]
	}
	if st.Power != vsphere.PoweredOff {
		j.scope.phase("power off")
		if err := vm.PowerOff(ctx); err != nil {
			return err
		}
	}
	operation, err := journal.Begin("", j.repo.ID())
	if err != nil {
		return err
	}
	defer func() {
		if err := operation.End(); err != nil {
			j.note(warning(plugin.CodeLeftover, "something was left on vSphere", err.Error(), "run `vmkeep recover`"))
		}
	}()
	j.report.Machine, j.report.MachineID = st.Path, vm.ID()
	if err := fn(ctx, vc, vm, operation); err != nil {
		return err
	}
	if j.req.PowerOn {
		j.scope.phase("power on")
		return vm.PowerOn(ctx)
	}
	return nil
}

// target finds the machine to write to: the one that was asked for, or the point's own.
func (j *restoreJob) target(ctx context.Context, vc *vsphere.Client) (*vsphere.VM, *vsphere.State, error) {
	want := j.req.Target.Machine
	if want == "" {
		want = j.point.manifest.Machine.InstanceUUID
	}
	vm, err := vc.Find(ctx, want)
	if err != nil {
		return nil, nil, err
	}
	st, err := vm.State(ctx)
	return vm, st, err
}

// unsuitable says why the machine's disks cannot be written to as it is.
func (j *restoreJob) unsuitable(st *vsphere.State) []*plugin.Error {
	var out []*plugin.Error
	if len(st.SnapshotTree) > 0 {
		out = append(out, &plugin.Error{Code: plugin.CodeTargetUnsuitable, Summary: "the machine has snapshots", Object: st.Name,
			Detail: fmt.Sprintf("%d, the first is %q: its disks are what the snapshots are made of", len(st.SnapshotTree), st.SnapshotTree[0].Name), Remedy: "remove them, or restore to a new machine"})
	}
	if st.Power != vsphere.PoweredOff && !j.req.PowerOff {
		out = append(out, &plugin.Error{Code: plugin.CodeTargetUnsuitable, Summary: "the machine is not powered off", Object: st.Name, Detail: string(st.Power),
			Remedy: "power it off first, or let the restore do it (--power-off)"})
	}
	return out
}

// diskPair is a disk of the point and the disk of the machine that it goes to.
type diskPair struct {
	saved manifestDisk
	disk  vsphere.Disk
}

// pairs finds the machine's disk for each disk of the point: the one with the same uuid, else the one at the same place.
func (j *restoreJob) pairs(st *vsphere.State) ([]diskPair, []*plugin.Error) {
	var out []diskPair
	var problems []*plugin.Error
	for _, d := range j.disks {
		i := slices.IndexFunc(st.Disks, func(x vsphere.Disk) bool { return x.UUID == d.UUID && d.UUID != "" })
		if i < 0 {
			i = slices.IndexFunc(st.Disks, func(x vsphere.Disk) bool { return x.Name == d.Name })
		}
		if i < 0 {
			problems = append(problems, &plugin.Error{Code: plugin.CodeTargetUnsuitable, Summary: "the machine has no such disk", Object: d.Name, Detail: st.Name + " has " + diskNames(st.Disks),
				Remedy: "attach the disk instead (mode attach), or choose among the disks that exist"})
			continue
		}
		x := st.Disks[i]
		if x.Capacity < d.Capacity {
			problems = append(problems, tooSmall(x, d))
			continue
		}
		if x.Unprotected != "" && x.Sharing != "" && x.Sharing != "sharingNone" {
			problems = append(problems, &plugin.Error{Code: plugin.CodeTargetUnsuitable, Summary: "other machines may write to the disk", Object: x.Name, Detail: x.Unprotected,
				Remedy: "restore to a new machine"})
			continue
		}
		if x.Capacity > d.Capacity {
			j.note(plugin.Diagnostic{Severity: plugin.SeverityWarning, Code: plugin.CodeTargetUnsuitable, Summary: "the machine's disk is larger than the point's", Object: x.Name,
				Detail: fmt.Sprintf("%d bytes at its end stay as they are", x.Capacity-d.Capacity)})
		}
		out = append(out, diskPair{d, x})
	}
	return out, problems
}

func tooSmall(to vsphere.Disk, d manifestDisk) *plugin.Error {
	return &plugin.Error{Code: plugin.CodeTargetUnsuitable, Summary: "the target disk is too small", Object: to.Path,
		Detail: fmt.Sprintf("%d bytes, the point's disk has %d", to.Capacity, d.Capacity), Remedy: "restore to a disk of at least the same size"}
}

func diskNames(disks []vsphere.Disk) string {
	var names []string
	for _, d := range disks {
		names = append(names, d.Name)
	}
	return strings.Join(names, ", ")
}

// tracking is what change tracking says of a disk since the point.
type tracking struct {
	changed extent.Set
	usable  bool
	reason  string // why it is used or not
}

// askTracking takes a snapshot of the machine, which is off, to ask what changed since the point, and removes it.
func (j *restoreJob) askTracking(ctx context.Context, vm *vsphere.VM, op *vsphere.Operation, st *vsphere.State, pairs []diskPair) (map[string]tracking, error) {
	out := map[string]tracking{}
	if mark := extraConfig(st.ConfigInfo, restoringKey); mark != "" {
		for _, p := range pairs {
			out[p.saved.Name] = tracking{reason: "an earlier restore was interrupted"}
		}
		return out, nil
	}
	machine := machineFacts{restored: restoredMark(st.ConfigInfo), snapshots: j.point.manifest.Machine.Snapshots}
	var err error
	if machine.reverts, err = revertsSince(ctx, vm, j.point.manifest); err != nil {
		return nil, err
	}
	_, err = vm.WithSnapshot(ctx, vsphere.SnapshotOptions{Operation: op, Phase: j.scope.phase,
		Quiesce: vsphere.Quiesce{Best: vsphere.LevelCrash, Worst: vsphere.LevelCrash}}, func(ctx context.Context, s *vsphere.Snapshot) error {
		for _, p := range pairs {
			i := slices.IndexFunc(s.Disks(), func(x vsphere.Disk) bool { return x.Key == p.disk.Key })
			if i < 0 {
				out[p.saved.Name] = tracking{reason: "the snapshot does not hold the disk"}
				continue
			}
			d := s.Disks()[i]
			v := judge(diskFacts{name: d.Name, uuid: d.UUID, capacity: d.Capacity, changeID: string(d.ChangeID), chain: chainOf(d)}, machine, j.point.manifest)
			if v.since == "" {
				out[p.saved.Name] = tracking{reason: v.reason}
				continue
			}
			changed, err := s.Changed(ctx, d, vsphere.ChangeID(v.since))
			switch {
			case err == nil:
				out[p.saved.Name] = tracking{changed: changed, usable: true, reason: v.reason}
			case errors.Is(err, vsphere.ErrChangeTracking):
				out[p.saved.Name] = tracking{reason: err.Error()}
			default:
				return err
			}
		}
		return nil
	})
	return out, err
}

// overwrite writes one disk: all of it, or what differs.
func (j *restoreJob) overwrite(ctx context.Context, vc *vsphere.Client, vm *vsphere.VM, p diskPair, known tracking) (err error) {
	spec := vddk.Spec{VM: vm.ID(), Key: p.disk.Key, Path: p.disk.Path, Capacity: p.disk.Capacity, Write: true}
	disk, err := vddk.Open(ctx, spec, j.op.conn.transports(vc), func(name string, err error) {
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
			if out.only, err = j.compare(ctx, p.saved, disk); err != nil {
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

// compare reads a disk and returns the sectors of the chunks that are not what the point says.
func (j *restoreJob) compare(ctx context.Context, d manifestDisk, disk io.ReaderAt) (extent.Set, error) {
	parts, err := j.point.partTrees(ctx, d.Name)
	if err != nil {
		return nil, err
	}
	s := j.scope.on(d.Name)
	s.phase("compare")
	m, end := s.meter("compare", d.Capacity)
	defer end()
	w := &diskWriter{repo: j.repo, size: d.Capacity, parts: parts, allowMissing: j.req.AllowMissing, meter: m}
	found, err := w.differing(ctx, disk, func(extent.Extent) bool { return false })
	j.report.Stats.Read += m.read.Load()
	return found.Align(vddk.SectorSize, d.Capacity), err
}

// attach makes new disks of the point's disks in an existing machine. Disks that are there stay, or are detached with
// their files kept where a position was asked for that is taken.
func (j *restoreJob) attach(ctx context.Context) error {
	return j.onMachine(ctx, func(ctx context.Context, vc *vsphere.Client, vm *vsphere.VM, op *vsphere.Operation) error {
		for _, d := range j.disks {
			st, err := vm.State(ctx)
			if err != nil {
				return err
			}
			spec := j.diskSpec(d, st)
			spec.Operation = op
			made, err := vm.WithNewDisk(ctx, spec, func(ctx context.Context, to vsphere.Disk) error { return j.fillDisk(ctx, vc, vm, d, to) })
			if err != nil {
				return fmt.Errorf("disk %s: %w", d.Name, err)
			}
			j.scope.on(d.Name).info("", "attached as "+made.Name, made.Path)
		}
		return nil
	})
}

// diskSpec is the disk that is to be made for a disk of the point: at the position that was asked for, else at its own
// where that is free, else at the next free one.
func (j *restoreJob) diskSpec(d manifestDisk, st *vsphere.State) vsphere.DiskSpec {
	spec := vsphere.DiskSpec{Capacity: d.Capacity, Provision: vsphere.Provisioning(j.req.Target.Provisioning), Datastore: j.req.Target.Datastore}
	if on := j.req.Target.Datastores[d.Name]; on != "" {
		spec.Datastore = on
	}
	if place := j.req.Target.Positions[d.Name]; place != "" {
		spec.Place, spec.Replace = place, true
	} else if !slices.ContainsFunc(st.Disks, func(x vsphere.Disk) bool { return x.Name == d.Name }) {
		spec.Place = d.Name
	}
	return spec
}
