package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/repo"
	"github.com/vmkeep/vmkeep/vddk"
	"github.com/vmkeep/vmkeep/vsphere"
)

// Restore implements [plugin.Service].
func (e *Engine) Restore(ctx context.Context, req plugin.RestoreRequest, emit func(plugin.Event)) (plugin.RestoreReport, error) {
	var report plugin.RestoreReport
	err := e.operate(ctx, "restore", emit, func(ctx context.Context, op *operation) error {
		started := time.Now()
		changing, stop := op.ahead(ctx, req.Mode)
		defer stop()
		return op.withRepository(ctx, func(r *repo.Repository) error {
			return r.WithEarlyLock(ctx, func(ctx context.Context) error {
				point, err := findPoint(ctx, r, req.Point, req.Machine)
				if err != nil {
					return err
				}
				job := &restoreJob{op: op, req: req, changing: changing, repo: r, point: point, report: &report,
					scope: scope{out: op.out, machine: point.manifest.Machine.Name}}
				report.Operation, report.Point = op.id, point.snapshot.ID.String()
				if job.disks, err = job.chosen(); err != nil {
					return err
				}
				if err := r.Settled(ctx); err != nil {
					return err
				}
				defer func() { report.Stats.Seconds = time.Since(started).Seconds() }()
				var told func()
				job.scope, told = job.scope.tallied()
				defer told()
				defer job.weigh(ctx)()
				for _, d := range job.missing() {
					job.note(d)
				}
				switch req.Mode {
				case plugin.RestoreNew, "":
					return job.newMachine(ctx)
				case plugin.RestoreDirectory:
					return job.directory(ctx)
				case plugin.RestoreInPlace, plugin.RestoreRollback:
					return job.inPlace(ctx)
				case plugin.RestoreAttach:
					return job.attach(ctx)
				}
				return invalid("mode", fmt.Sprintf("unknown mode of restore %q", req.Mode), "use new, in-place, rollback, attach or directory")
			})
		})
	})
	return report, err
}

// ahead begins to open the scene of a restore while the repository is opened and locked, which takes as long, and returns
// what waits for it. An attachment first takes over what opening the scene would undo: it opens it itself.
func (op *operation) ahead(ctx context.Context, mode plugin.RestoreMode) (changing func(context.Context) (scene, error), stop func()) {
	switch mode {
	case plugin.RestoreNew, "", plugin.RestoreInPlace, plugin.RestoreRollback:
	default:
		return op.changing, func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	opened := beside(func() (scene, error) { return op.changing(ctx) })
	return func(context.Context) (scene, error) { return opened() }, func() { cancel(); _, _ = opened() }
}

// restoreJob is one restore of one point.
type restoreJob struct {
	op       *operation
	req      plugin.RestoreRequest
	changing func(context.Context) (scene, error)
	repo     *repo.Repository
	point    *loadedPoint
	disks    []manifestDisk
	report   *plugin.RestoreReport
	scope    scope

	// Of an attachment that goes on where an interrupted run stopped.
	begun bool               // the disks are filled in part
	held  *vsphere.Operation // the run's, taken over
}

// chosen are the disks that the request names, all of them where it names none.
func (j *restoreJob) chosen() ([]manifestDisk, error) {
	var out []manifestDisk
	var have []string
	for _, d := range j.point.manifest.Disks {
		if d.Skipped != "" {
			if slices.Contains(j.req.Disks, d.Name) {
				return nil, &plugin.Error{Code: plugin.CodePointNotFound, Summary: "the disk is not in the point", Object: d.Name, Detail: d.Skipped}
			}
			continue
		}
		have = append(have, d.Name)
		if len(j.req.Disks) == 0 || slices.Contains(j.req.Disks, d.Name) {
			out = append(out, d)
		}
	}
	for _, want := range j.req.Disks {
		if !slices.Contains(have, want) {
			return nil, &plugin.Error{Code: plugin.CodePointNotFound, Summary: fmt.Sprintf("the point has no disk %q", want), Object: want,
				Remedy: "choose among " + strings.Join(have, ", ")}
		}
	}
	if len(out) == 0 && (j.req.Mode == plugin.RestoreInPlace || j.req.Mode == plugin.RestoreRollback || j.req.Mode == plugin.RestoreAttach) {
		return nil, &plugin.Error{Code: plugin.CodePointNotFound, Summary: "the point holds no disk", Remedy: "take another point"}
	}
	return out, j.placesKnown()
}

// missing tells of disks that the machine had and the point has not, where all were to be restored.
func (j *restoreJob) missing() (out []plugin.Diagnostic) {
	for _, d := range j.point.manifest.Disks {
		if d.Skipped != "" && len(j.req.Disks) == 0 {
			w := warning(plugin.CodeDegraded, "a disk of the machine is not in the point", d.Name+": "+d.Skipped, "")
			w.Object = d.Name
			out = append(out, w)
		}
	}
	return out
}

// placesKnown refuses a place for a disk that the point does not know: what was meant would go elsewhere.
func (j *restoreJob) placesKnown() error {
	for _, places := range []map[string]string{j.req.Target.Datastores, j.req.Target.Positions} {
		for name := range places {
			if !slices.ContainsFunc(j.point.manifest.Disks, func(d manifestDisk) bool { return d.Name == name }) {
				return &plugin.Error{Code: plugin.CodePointNotFound, Summary: fmt.Sprintf("the point has no disk %q to place", name), Object: name,
					Remedy: "list the point's disks with `vmkeep points --disks`"}
			}
		}
	}
	return nil
}

// weigh says how many bytes there are to move at most, and finds out beside the restore how many there are on disks that
// are empty: only the lists of all their chunks tell. The returned function ends that.
func (j *restoreJob) weigh(ctx context.Context) (stop func()) {
	rollback, overwrite := j.req.Mode == plugin.RestoreRollback, j.req.Mode == plugin.RestoreInPlace
	for _, d := range j.disks {
		if !rollback { // which finds out later how much there is to write
			j.scope.tally.expect(d.Name, plugin.PhaseRestore, d.Capacity)
		}
		if j.req.Verify {
			j.scope.tally.expect(d.Name, plugin.PhaseVerify, d.Capacity)
		}
	}
	if rollback || overwrite {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, d := range j.disks {
			parts, err := j.point.partTrees(ctx, d.Name)
			if err != nil {
				return // the restore meets it, too
			}
			c := &chunkMap{repo: j.repo, size: d.Capacity, parts: parts, meter: &meter{}}
			n, err := c.dataBytes(ctx)
			if err != nil {
				return
			}
			j.scope.tally.expect(d.Name, plugin.PhaseRestore, n)
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// output is where one disk of a point is written to.
type output struct {
	disk   manifestDisk
	target diskTarget
	fresh  bool         // the target reads as zeros
	only   extent.Set   // what to write; nil: everything
	flush  func() error // makes the target durable; nil: closing it does
	there  io.ReaderAt  // what the target holds before it is written to; nil: reading the target tells
	patch  bool         // only was found by comparing: of it, sectors that differ are written, the rest is known to be right
	reason string       // how only was found
}

// write writes one disk of the point to a target and verifies it where that was asked for. The target stays the
// caller's.
func (j *restoreJob) write(ctx context.Context, o output) error {
	if o.only != nil {
		j.scope.tally.expect(o.disk.Name, plugin.PhaseRestore, o.only.Bytes())
	}
	return j.restoreDisk(ctx, o.disk, o.reason, func(ctx context.Context, w *diskWriter) (io.ReaderAt, error) {
		w.target, w.there, w.fresh, w.only, w.patch = o.target, o.there, o.fresh, o.only, o.patch
		err := w.run(ctx)
		if err == nil && o.flush != nil {
			err = o.flush()
		}
		return o.target, err
	})
}

// restoreDisk runs fn, which writes a disk durably and returns what can be read back, verifies that where it was asked
// for, and reports.
func (j *restoreJob) restoreDisk(ctx context.Context, d manifestDisk, reason string, fn func(context.Context, *diskWriter) (io.ReaderAt, error)) error {
	parts, err := j.point.partTrees(ctx, d.Name)
	if err != nil {
		return err
	}
	s := j.scope.on(d.Name)
	s.phase(plugin.PhaseRestore)
	m, end := s.meter(plugin.PhaseRestore, d.Capacity)
	w := &diskWriter{chunkMap: &chunkMap{repo: j.repo, size: d.Capacity, parts: parts, allowMissing: j.req.AllowMissing, meter: m}}
	written, err := fn(ctx, w)
	end()
	done := plugin.RestoredDisk{Name: d.Name, Capacity: d.Capacity, Written: w.written.Load(), Reason: reason}
	j.report.Stats.Size += d.Capacity
	j.report.Stats.Fetched += w.fetched.Load()
	j.report.Stats.Written += w.written.Load()
	if err == nil && j.req.Verify {
		done.Verified, err = j.readBack(ctx, d, w, written)
	}
	for _, e := range extent.Of(w.lost...) {
		done.Lost = append(done.Lost, plugin.ByteRange{Off: e.Off, Len: e.Len})
	}
	if err != nil {
		return fmt.Errorf("disk %s: %w", d.Name, err)
	}
	if len(done.Lost) > 0 {
		there := "zeros stand where the repository lost data"
		if j.req.Mode == plugin.RestoreInPlace || j.req.Mode == plugin.RestoreRollback {
			there = "the disk stays as it was where the repository lost data"
		}
		j.note(plugin.Diagnostic{Severity: plugin.SeverityWarning, Code: plugin.CodeDamaged, Summary: there, Object: d.Name,
			Detail: lostText(w.lost), Remedy: "take these bytes from another point"})
	}
	j.report.Disks = append(j.report.Disks, done)
	return nil
}

// readBack compares what was written with the point.
func (j *restoreJob) readBack(ctx context.Context, d manifestDisk, w *diskWriter, from io.ReaderAt) (bool, error) {
	s := j.scope.on(d.Name)
	s.phase(plugin.PhaseVerify)
	if w.patch {
		s.tally.expect(d.Name, plugin.PhaseVerify, w.only.Bytes())
	}
	m, end := s.meter(plugin.PhaseVerify, d.Capacity)
	lost := extent.Of(w.lost...) // has nothing to be compared with
	c := w.whole(m)
	if w.patch {
		c.only = w.only // the rest was compared before
	}
	different, err := c.differing(ctx, from, func(p piece) bool { return lost.Overlaps(p.extent()) })
	end()
	j.report.Stats.Read += m.read.Load()
	if err == nil && len(different) > 0 {
		err = &plugin.Error{Code: plugin.CodeDifferent, Summary: "the restored disk is not what the point says", Object: d.Name,
			Detail: fmt.Sprintf("%d bytes differ, the first at %d", different.Bytes(), different[0].Off), Remedy: "look at the target's storage, then restore again"}
	}
	return err == nil, err
}

// newMachine makes a machine like the saved one and fills its disks.
func (j *restoreJob) newMachine(ctx context.Context) error {
	opened, err := j.changing(ctx)
	if err != nil {
		return err
	}
	vc := opened.vc
	operation, err := opened.journal.Begin("", j.repo.ID())
	if err != nil {
		return err
	}
	defer func() {
		if err := operation.End(); err != nil {
			j.note(warning(plugin.CodeLeftover, "something was left on vSphere", err.Error(), "run the restore again, or `vmkeep recover`"))
		}
	}()
	j.scope.phase(plugin.PhasePlan)
	plan, err := j.planMachine(ctx, vc, operation)
	if err != nil {
		return err
	}
	if len(plan.Problems) > 0 {
		return plan.Problems[0]
	}
	for _, n := range plan.Notes {
		j.note(plugin.Diagnostic{Severity: plugin.SeverityInfo, Summary: n})
	}
	j.scope.phase(plugin.PhaseCreate)
	vm, err := vc.CreateMachine(ctx, plan, func(ctx context.Context, vm *vsphere.VM) error { return j.fill(ctx, vc, vm, plan) })
	if vm != nil {
		j.report.Machine, j.report.MachineID = vm.Machine().Path, vm.ID()
	}
	if err != nil {
		if vm != nil {
			j.note(warning(plugin.CodeDegraded, "the half-made machine is kept", vm.Machine().Path, "run the restore again: it goes on where this one stopped; or destroy the machine"))
		}
		return err
	}
	if plan.Begun {
		j.clearJournal(ctx, opened)
	}
	return j.powerOn(ctx, vm)
}

// powerOn starts the machine where that was asked for.
func (j *restoreJob) powerOn(ctx context.Context, vm *vsphere.VM) error {
	if !j.req.PowerOn {
		return nil
	}
	j.scope.phase(plugin.PhasePowerOn)
	return vm.PowerOn(ctx)
}

// clearJournal strikes from the journal what an interrupted run has announced and this one has completed.
func (j *restoreJob) clearJournal(ctx context.Context, s scene) {
	if _, err := s.vc.Recover(ctx, s.journal, vsphere.RecoverOptions{}); err != nil {
		j.note(warning(plugin.CodeLeftover, "the entry of the interrupted restore is still in the journal", err.Error(), "run `vmkeep recover`"))
	}
}

// planMachine plans the new machine. What the request does not place goes where the saved machine was, as far as that
// place exists here.
func (j *restoreJob) planMachine(ctx context.Context, vc *vsphere.Client, op *vsphere.Operation) (*vsphere.MachinePlan, error) {
	spec, saved := j.machineSpec(op), j.point.manifest.Machine
	placed := spec
	if spec.Folder == "" {
		placed.Folder = saved.Folder
	}
	if spec.Host == "" && spec.Cluster == "" && spec.ResourcePool == "" {
		placed.ResourcePool = saved.ResourcePool
	}
	plan, err := vc.PlanMachine(ctx, placed)
	if elsewhere := errors.Is(err, vsphere.ErrNotFound) || err == nil && slices.ContainsFunc(plan.Problems, func(p *vsphere.Error) bool { return errors.Is(p, vsphere.ErrNotFound) }); !elsewhere {
		return plan, err
	}
	return vc.PlanMachine(ctx, spec)
}

func (j *restoreJob) machineSpec(op *vsphere.Operation) vsphere.MachineSpec {
	t := j.req.Target
	spec := vsphere.MachineSpec{Operation: op, ConfigInfo: j.point.manifest.Config, NICs: j.point.manifest.networkCards(), Name: t.Name, Folder: t.Folder, Host: t.Host, Cluster: t.Cluster,
		ResourcePool: t.ResourcePool, Datastore: t.Datastore, Datastores: t.Datastores, Networks: t.Networks, NoNetworks: t.NoNetworks, Provision: vsphere.Provisioning(t.Provisioning),
		Mark: vsphere.Overwrite{Key: restoringKey, Value: strings.Join(append([]string{j.point.snapshot.ID.String()}, j.req.Disks...), " ")}, KeepFailed: j.req.KeepPartial}
	if t.KeepIdentity {
		spec.Identity = vsphere.IdentityKeep
	}
	if t.KeepMAC {
		spec.MAC = vsphere.IdentityKeep
	}
	for _, d := range j.point.manifest.Disks {
		if !slices.ContainsFunc(j.disks, func(c manifestDisk) bool { return c.Name == d.Name }) {
			spec.OmitDisks = append(spec.OmitDisks, d.Name)
		}
	}
	return spec
}

// fill writes the disks of a machine that was just made.
func (j *restoreJob) fill(ctx context.Context, vc *vsphere.Client, vm *vsphere.VM, plan *vsphere.MachinePlan) error {
	if err := vm.SetExtra(ctx, map[string]string{restoredKey: j.op.id}); err != nil {
		return err
	}
	st, err := vm.State(ctx)
	if err != nil {
		return err
	}
	for _, d := range j.disks {
		i := slices.IndexFunc(plan.Disks, func(p vsphere.PlannedDisk) bool { return p.SavedKey == d.Key })
		if i < 0 {
			return fmt.Errorf("disk %s is not in the plan", d.Name)
		}
		at := slices.IndexFunc(st.Disks, func(x vsphere.Disk) bool { return x.Name == plan.Disks[i].Name })
		if at < 0 {
			return fmt.Errorf("the new machine has no disk %s", plan.Disks[i].Name)
		}
		if err := j.fillDisk(ctx, d, fillTarget{vc, vm, st.Disks[at], plan.Begun}); err != nil {
			return err
		}
	}
	name := safeName(j.point.manifest.Machine.Name) + ".nvram"
	n := j.point.dir.Find(name)
	if n == nil || j.point.manifest.Machine.Encrypted { // the plan says so
		return nil
	}
	data, err := loadFile(ctx, j.repo, n, manifestLimit)
	if err == nil {
		err = vm.UploadNVRAM(ctx, data)
	}
	if err != nil {
		j.note(warning(plugin.CodeFile, "the firmware's settings were not restored", err.Error(), "set the boot order by hand where the guest needs it"))
	}
	return nil
}

// fillTarget is a disk that was made for a disk of the point.
type fillTarget struct {
	vc    *vsphere.Client
	vm    *vsphere.VM
	disk  vsphere.Disk
	begun bool // by an earlier run: nobody knows what it holds
}

func (j *restoreJob) fillDisk(ctx context.Context, d manifestDisk, to fillTarget) (err error) {
	if to.disk.Capacity < d.Capacity {
		return tooSmall(to.disk, d)
	}
	spec := vddk.Spec{VM: to.vm.ID(), Key: to.disk.Key, Path: to.disk.Path, Capacity: to.disk.Capacity, Write: true, Encrypted: to.disk.Encrypted}
	disk, err := j.op.conn.openDisk(ctx, to.vc, spec, func(name string, err error) {
		j.scope.on(d.Name).tell(warning(plugin.CodeTransport, "transport "+name+" does not reach the disk", err.Error(), ""))
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, disk.Close()) }()
	out := output{disk: d, target: disk, fresh: true, flush: flusher(ctx, disk)}
	if to.begun {
		out.reason = reasonContinued
		if err := j.onlyDifferent(ctx, &out); err != nil {
			return err
		}
	}
	return j.write(ctx, out)
}

// reasonContinued is how what to write was found of a disk that an interrupted run has begun to write.
const reasonContinued = "continued"

func (j *restoreJob) note(d plugin.Diagnostic) {
	j.report.Notes = append(j.report.Notes, d)
	j.scope.tell(d)
}
