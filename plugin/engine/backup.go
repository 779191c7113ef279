package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/vmkeep/vmkeep/chunker"
	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/repo"
	"github.com/vmkeep/vmkeep/repo/restic"
	"github.com/vmkeep/vmkeep/vddk"
	"github.com/vmkeep/vmkeep/vsphere"
)

// Backup implements [plugin.Service].
func (e *Engine) Backup(ctx context.Context, req plugin.BackupRequest, emit func(plugin.Event)) (plugin.BackupReport, error) {
	var report plugin.BackupReport
	err := e.operate(ctx, "backup", emit, func(ctx context.Context, op *operation) error {
		report.Operation = op.id
		if req.Unprotected != "" && req.Unprotected != "skip" && req.Unprotected != "fail" {
			return invalid("unprotected", fmt.Sprintf("unknown policy %q", req.Unprotected), "use skip or fail")
		}
		if op.conn.cfg.Repository.NoLock { // before anything is done to a machine
			return repo.ErrNoLock
		}
		if req.NoImage && req.Files == nil {
			return invalid("noImage", "neither images nor files are asked for", "ask for files, or leave the images in")
		}
		for _, q := range append([]plugin.QuiesceRule{{Quiesce: req.Quiesce}}, req.QuiesceRules...) {
			if err := quiesceOf(q.Quiesce).Validate(); err != nil {
				return err
			}
		}
		vctx, stop := context.WithCancel(ctx)
		scene := beside(func() (*backupScene, error) { return op.lookAtVSphere(vctx, req.Selection) })
		defer func() { stop(); _, _ = scene() }()
		return op.withRepository(ctx, func(r *repo.Repository) error {
			scene, err := scene()
			if err != nil {
				return err
			}
			return r.WithEarlyLock(ctx, func(ctx context.Context) error {
				run := &backupRun{op: op, req: req, backupScene: scene, repo: r, memory: newReadable(r)}
				if run.previous, err = newestPoints(ctx, r); err != nil {
					return err
				}
				if err := arrange(scene.machines, req.Order, run.previous); err != nil {
					return err
				}
				if err := run.chooseChunking(ctx); err != nil {
					return err
				}
				report.Machines = make([]plugin.MachineResult, len(scene.machines))
				lanesOf(op.conn.cfg.Limits).run(ctx, scene.machines, func(ctx context.Context, i int) {
					report.Machines[i] = run.machine(ctx, scene.machines[i])
				})
				return cutShort(ctx, report.Machines, func(m plugin.MachineResult) *plugin.Error { return m.Err })
			})
		})
	})
	return report, err
}

// backupRun is what the machines of one backup share.
type backupRun struct {
	*backupScene
	op       *operation
	req      plugin.BackupRequest
	repo     *repo.Repository
	previous map[machineIdentity]*restic.Snapshot
	chunking string // the rule of cutter
	cutter   *chunker.Cutter
	memory   *readable
}

// machine backs one machine up and never fails but in its result.
func (b *backupRun) machine(ctx context.Context, m vsphere.Machine) plugin.MachineResult {
	s := scope{out: b.op.out, machine: m.Name}
	job := &machineBackup{run: b, machine: m, scope: s}
	res := plugin.MachineResult{Machine: machineOf(m), Started: time.Now().UTC()}
	err := context.Cause(ctx)
	if err == nil {
		res.Point, err = job.make(ctx)
	}
	if err != nil {
		var asError *plugin.Error
		errors.As(failureOf(ctx, err), &asError)
		failed := *asError
		if failed.Object == "" {
			failed.Object = m.Name
		}
		res.Err = &failed
		b.op.log.Warn("backup failed", "machine", m.Name, "error", err)
	}
	res.Warnings = job.warnings
	res.Finished = time.Now().UTC()
	b.op.out.send(plugin.Event{Machine: m.Name, Kind: plugin.EventResult, Result: &res})
	return res
}

// machineBackup makes one point of one machine.
type machineBackup struct {
	run      *backupRun
	machine  vsphere.Machine
	scope    scope
	manifest manifest
	warnings []plugin.Diagnostic

	mu     sync.Mutex
	images []*diskImage // of the disks that are read

	facts machineFacts
	files *restic.ID // tree of the guest's files; nil: none were asked for
}

// diskImage is one disk on its way into the repository.
type diskImage struct {
	record  manifestDisk
	imaging *imaging
	trees   []restic.ID
}

func (j *machineBackup) warn(d plugin.Diagnostic) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if d.Object == "" {
		d.Object = j.machine.Name
	}
	j.warnings = append(j.warnings, d)
	j.scope.tell(d)
}

func (j *machineBackup) make(ctx context.Context) (*plugin.Point, error) {
	b := j.run
	started := time.Now()
	j.scope.phase(plugin.PhasePrepare)
	vm := b.vc.VM(j.machine)
	operation, err := b.journal.Begin("", b.repo.ID())
	if err != nil {
		return nil, err
	}
	defer func() {
		if err := operation.End(); err != nil {
			j.warn(warning(plugin.CodeLeftover, "something was left on vSphere", err.Error(), "run `vmkeep recover`"))
		}
	}()
	if err := j.track(ctx, vm, operation); err != nil {
		return nil, err
	}
	prev, err := j.previousPoint(ctx)
	if err != nil {
		return nil, err
	}
	j.tellChunking(prev)
	audit, err := b.op.conn.audit(j.machine.InstanceUUID)
	if err != nil {
		return nil, err
	}
	if prev != nil && prev.manifest != nil {
		j.facts.suspects = audit.suspects(prev.manifest.begun())
	}
	if j.manifest.Begun, err = b.vc.Now(ctx); err != nil {
		return nil, err
	}

	var point *plugin.Point
	id, err := b.repo.Commit(ctx, func(ctx context.Context, w *repo.Writer) (*restic.Snapshot, error) {
		files, err := j.read(ctx, vm, operation, w, prev)
		if err != nil {
			return nil, err
		}
		j.scope.phase(plugin.PhaseStore)
		tree, err := j.tree(w, files)
		if err != nil {
			return nil, err
		}
		st := w.Stats()
		point = j.point(st, time.Since(started))
		return j.document(tree, st, started, prev), nil
	})
	if err != nil {
		return nil, err
	}
	if err := audit.heal(j.healedDisks(), j.manifest.begun()); err != nil {
		j.warn(warning(plugin.CodeFile, "the audit's note could not be changed: the next backup is full again", err.Error(), "check the state directory"))
	}
	point.ID = id.String()
	point.Repository = b.repo.ID()
	return point, nil
}

// track makes sure that change tracking is on. A machine that cannot track is backed up all the same.
func (j *machineBackup) track(ctx context.Context, vm *vsphere.VM, op *vsphere.Operation) error {
	if j.run.req.ResetCBT {
		j.scope.phase(plugin.PhaseResetTracking)
		if err := vm.ResetCBT(ctx, op); err != nil {
			return err
		}
		return nil
	}
	if j.machine.CBT || j.machine.Template {
		return nil
	}
	_, err := vm.EnableCBT(ctx, op)
	if errors.Is(err, vsphere.ErrChangeTracking) || errors.Is(err, vsphere.ErrPermission) {
		j.scope.info(plugin.CodeChangeTracking, "change tracking stays off: every backup reads the whole machine", err.Error())
		return nil
	}
	return err
}

// errRepaired is the damage of a point that a repair made restorable.
var errRepaired = errors.New(reasonRepaired)

// previousPoint loads the newest point of the machine; nil when there is none or it cannot be read.
func (j *machineBackup) previousPoint(ctx context.Context) (*loadedPoint, error) {
	snap := j.run.previous[machineIdentity{vcenter: j.run.vc.About().InstanceUUID, instance: j.machine.InstanceUUID}]
	if snap == nil {
		return nil, nil
	}
	p, err := loadPoint(ctx, j.run.repo, snap)
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if storageFailed(err) {
			return nil, err
		}
		j.warn(warning(plugin.CodeDamaged, "the previous point cannot be read: the machine is read in full", err.Error(), "check the repository: `vmkeep check --read-data`"))
		return &loadedPoint{snapshot: snap, damage: err}, nil
	}
	if slices.Contains(snap.Tags, repo.RepairedTag) { // it has zeros where chunks were lost: nothing of it may be kept
		return &loadedPoint{snapshot: snap, damage: errRepaired}, nil
	}
	return p, nil
}

// read takes the snapshot and reads everything that needs it. The snapshot is gone when it returns.
func (j *machineBackup) read(ctx context.Context, vm *vsphere.VM, op *vsphere.Operation, w *repo.Writer, prev *loadedPoint) (map[string][]byte, error) {
	b := j.run
	limits := b.op.conn.cfg.Limits
	parts := limits.PartsPerMachine
	if parts == 0 {
		parts = cpus() + 1
	}
	var told func()
	j.scope, told = j.scope.tallied()
	defer told()
	files := map[string][]byte{}
	job := &reading{slots: make(chan struct{}, parts), writer: w, vm: vm, prev: prev}
	fromSnapshot := func(ctx context.Context, s *vsphere.Snapshot) error {
		if err := j.describe(s); err != nil {
			return err
		}
		if err := j.look(ctx, vm, prev); err != nil {
			return err
		}
		j.homeFiles(ctx, vm, s.State(), files)
		if err := j.someLeft(s.Disks()); err != nil {
			return err
		}
		disks, dctx := errgroup.WithContext(ctx)
		for _, d := range s.Disks() {
			image, err := j.decide(d, s, prev)
			if err != nil {
				return err
			}
			if image == nil {
				continue
			}
			j.scope.tally.expect(d.Name, plugin.PhaseRead, d.Capacity)
			disks.Go(func() error { return j.readDisk(dctx, job, s, d, image) })
		}
		if err := disks.Wait(); err != nil || b.req.Files == nil {
			return err
		}
		return j.guestFiles(ctx, job, s)
	}
	var report vsphere.SnapshotReport
	protected, err := vm.WithRelocationDisabled(ctx, op, func(ctx context.Context) (err error) {
		report, err = vm.WithSnapshot(ctx, vsphere.SnapshotOptions{Operation: op, MinFree: freeSpace(limits.FreeSpace), Phase: j.scope.vspherePhase, Quiesce: b.quiesce(j.machine)}, fromSnapshot)
		return err
	})
	b.op.log.Debug("read", "machine", j.machine.Name, "relocationDisabled", protected)
	sealed := job.finish.Wait() // chunks are sealed while, and after, the snapshot goes
	for _, text := range report.Warnings {
		j.warn(warning(plugin.CodeLeftover, "after the snapshot", text, "look at the machine's snapshots in vSphere"))
	}
	if err != nil {
		return nil, err
	}
	if sealed != nil {
		return nil, sealed
	}
	if lowered := report.Lowered; len(lowered) > 0 {
		for _, l := range lowered {
			j.manifest.Quiesce = append(j.manifest.Quiesce, fmt.Sprintf("not %s: %s", l.From, l.Reason))
		}
		worry := slices.ContainsFunc(lowered, func(l vsphere.Lowered) bool { return !l.Natural })
		if report.Level == vsphere.LevelCrash && worry && j.machine.ToolsRunning {
			j.warn(warning(plugin.CodeQuiesce, "the point is only crash consistent", strings.Join(j.manifest.Quiesce, "; "), "look at VMware Tools and the VSS writers in the guest"))
		}
	}
	return files, nil
}

// describe fills the manifest's head from the machine as it is in the snapshot.
func (j *machineBackup) describe(s *vsphere.Snapshot) error {
	st := s.State()
	about := j.run.vc.About()
	m := manifestMachine{
		Name: st.Name, Path: st.Path, ID: st.ID, InstanceUUID: st.InstanceUUID, BIOSUUID: st.BIOSUUID, VCenter: about.InstanceUUID,
		APIVersion: about.APIVersion, Host: st.Host, Folder: st.Folder, ResourcePool: st.ResourcePool, HostBuild: st.HostBuild, GuestOS: st.GuestOS, HWVersion: st.HWVersion,
		PowerState: string(st.Power), Template: st.Template, Encrypted: st.Encrypted, VTPM: st.VTPM, Restored: restoredMark(st.ConfigInfo),
	}
	if st.Encrypted {
		j.scope.info("", "vSphere keeps the machine encrypted: the point holds its disks in clear below the repository's own encryption", "")
	}
	if st.VTPM {
		j.scope.info("", "what the virtual TPM holds is not in the point: keep recovery keys of what the guest sealed with it", "")
	}
	if half := extraConfig(st.ConfigInfo, restoringKey); half != "" {
		m.Restored += " restoring " + half
		j.warn(warning(plugin.CodeDegraded, "a restore into this machine was interrupted: its disks are neither old nor new", "of point "+half, "run the restore again"))
	}
	m.Snapshots = foreignSnapshots(st)
	for _, n := range st.NICs {
		j.manifest.Networks = append(j.manifest.Networks, manifestNIC(n))
	}
	if m.InstanceUUID == "" {
		return &plugin.Error{Code: plugin.CodeUnsupported, Summary: "the machine has no instanceUuid", Object: st.Name,
			Detail: "its points could not be told from another machine's", Remedy: "register the machine again, which gives it one"}
	}
	j.manifest.Version, j.manifest.Tool, j.manifest.Machine = manifestVersion, "vmkeep "+j.run.op.conn.version, m
	j.manifest.Chunking = j.run.chunking
	j.manifest.Time, j.manifest.Config, j.manifest.Consistency = s.Taken().UTC(), st.ConfigInfo, plugin.Consistency(s.Level())
	return nil
}

// foreignSnapshots are the ids of the machine's snapshots that are not ours, sorted.
func foreignSnapshots(st *vsphere.State) []string {
	var out []string
	for _, t := range st.SnapshotTree {
		if t.Operation == "" {
			out = append(out, t.ID)
		}
	}
	slices.Sort(out)
	return out
}

// look completes what has to be known of the machine before change ids are trusted. It comes after the snapshot: what
// happens to the machine from now on is not in this point.
func (j *machineBackup) look(ctx context.Context, vm *vsphere.VM, prev *loadedPoint) (err error) {
	if j.manifest.Frozen, err = j.run.vc.Now(ctx); err != nil {
		return err
	}
	j.facts.restored, j.facts.snapshots, j.facts.attached = j.manifest.Machine.Restored, j.manifest.Machine.Snapshots, attachedDisks(j.manifest.Config)
	if prev == nil || prev.manifest == nil || j.run.req.Full {
		return nil
	}
	j.facts.reverts, err = revertsSince(ctx, vm, prev.manifest)
	return err
}

// homeFiles takes the machine's small files along. They are a convenience for people: a restore needs only the
// manifest, so their absence is no failure.
func (j *machineBackup) homeFiles(ctx context.Context, vm *vsphere.VM, st *vsphere.State, files map[string][]byte) {
	for _, f := range []struct{ ext, from string }{{".vmx", st.VMX}, {".nvram", st.NVRAM}} {
		if f.from == "" {
			continue
		}
		var b bytes.Buffer
		if _, err := vm.Download(ctx, f.from, &b); err != nil {
			j.scope.info(plugin.CodeFile, "the machine's "+f.ext+" file is not in the point", err.Error())
			continue
		}
		files[safeName(j.machine.Name)+f.ext] = b.Bytes()
	}
}

// someLeft refuses an exclusion of all disks: the point would be empty, be the latest, and count as one that is kept.
func (j *machineBackup) someLeft(disks []vsphere.Disk) error {
	for _, d := range disks {
		if !excluded(d, j.run.req.ExcludeDisks) {
			return nil
		}
	}
	if len(disks) == 0 || j.run.req.NoImage {
		return nil
	}
	return &plugin.Error{Code: plugin.CodeInvalid, Summary: "all disks of the machine are excluded", Object: j.machine.Name,
		Remedy: "exclude the machine, or fewer of its disks"}
}

// decide judges one disk and records it in the manifest; nil: the disk is not read.
func (j *machineBackup) decide(d vsphere.Disk, s *vsphere.Snapshot, prev *loadedPoint) (*diskImage, error) {
	rec := manifestDisk{Name: d.Name, Key: d.Key, Label: d.Label, UUID: d.UUID, Path: d.Path, Chain: chainOf(d), Capacity: d.Capacity, ChangeID: string(d.ChangeID), Encrypted: d.Encrypted}
	skip := func(why string) {
		rec.Skipped = why
		rec.Reason = "skipped"
		j.manifest.Disks = append(j.manifest.Disks, rec)
	}
	switch {
	case j.run.req.NoImage:
		skip(noImage)
		return nil, nil
	case excluded(d, j.run.req.ExcludeDisks):
		skip("excluded by request")
		return nil, nil
	case d.Unprotected != "" && j.run.req.Unprotected == "fail":
		return nil, &plugin.Error{Code: plugin.CodeUnprotected, Summary: "a disk cannot be backed up", Detail: d.Name + ": " + d.Unprotected,
			Object: j.machine.Name, Remedy: "exclude the disk, or let unprotected disks be skipped"}
	case d.Unprotected != "":
		skip(d.Unprotected)
		j.warn(warning(plugin.CodeUnprotected, "a disk is not in the point", d.Name+": "+d.Unprotected, "exclude it to say that this is wanted"))
		return nil, nil
	}
	facts := diskFacts{name: d.Name, uuid: d.UUID, capacity: d.Capacity, changeID: string(d.ChangeID), chain: rec.Chain}
	var v verdict
	switch {
	case j.run.req.Full:
		v = verdict{reason: reasonRequested}
	case prev != nil && errors.Is(prev.damage, errRepaired):
		v = verdict{reason: reasonRepaired}
	case prev != nil && prev.damage != nil:
		v = verdict{reason: reasonUnreadable}
	case prev != nil:
		if v = judge(facts, j.facts, prev.manifest); v.since != "" && prev.manifest.chunking() != j.run.chunking {
			v = verdict{reason: reasonChunking}
		}
	default:
		v = judge(facts, j.facts, nil)
	}
	rec.Reason, rec.Incremental = v.reason, v.since != ""
	image := &diskImage{record: rec}
	j.mu.Lock()
	j.images = append(j.images, image)
	j.mu.Unlock()
	return image, nil
}

// reading is what the disks of one machine share while they are read.
type reading struct {
	slots  chan struct{} // one for each part that is read at a time
	finish errgroup.Group
	writer *repo.Writer
	vm     *vsphere.VM
	prev   *loadedPoint
}

// readDisk reads one disk. It returns when the disk is not needed any more.
func (j *machineBackup) readDisk(ctx context.Context, r *reading, snapshot *vsphere.Snapshot, d vsphere.Disk, image *diskImage) (err error) {
	rec := &image.record
	s := j.scope.on(rec.Name)
	defer func() {
		if err != nil {
			err = fmt.Errorf("disk %s: %w", rec.Name, err)
		}
	}()
	whole := extent.Of(extent.Extent{Off: 0, Len: rec.Capacity})
	dirty := whole
	var old []*restic.ID
	if rec.Incremental {
		before := r.prev.manifest.diskByUUID(rec.UUID)
		dirty, err = snapshot.Changed(ctx, d, vsphere.ChangeID(before.ChangeID))
		var refused *vsphere.ChangeTrackingError
		switch {
		case err == nil:
			rec.Changed = dirty.Bytes()
			old, err = r.prev.partTrees(ctx, before.Name)
			if err != nil {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				old, dirty, rec.Incremental, rec.Changed, rec.Reason = nil, whole, false, 0, reasonUnreadable
			}
		case errors.As(err, &refused):
			rec.Incremental, rec.Reason, dirty = false, refused.Reason, whole
			if refused.Reason == vsphere.ReasonRefused && refused.Err != nil {
				rec.Reason = "query failed: " + refused.Err.Error()
			}
		default:
			return err
		}
	}

	disk, transport, err := j.openDisk(ctx, vddk.Spec{VM: r.vm.ID(), Snapshot: snapshot.ID(), Key: d.Key, Path: d.Path, Capacity: d.Capacity, Encrypted: d.Encrypted}, s)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, disk.Close()) }()
	rec.Transport = transport
	if disk.Size() != rec.Capacity {
		return &plugin.Error{Code: plugin.CodeTransport, Summary: "the disk has another size than vSphere says", Object: rec.Path,
			Detail: fmt.Sprintf("%d bytes, vSphere says %d", disk.Size(), rec.Capacity), Remedy: "try again; if it stays, open an issue with the log"}
	}
	var holes extent.Set
	if !rec.Incremental {
		holes = j.holes(ctx, snapshot, d, disk)
	}
	how := "full: " + rec.Reason
	if rec.Incremental {
		how = "incremental: " + rec.Reason
	}
	s.info("", how, "")
	s.tally.expect(rec.Name, plugin.PhaseRead, dirty.Subtract(holes).Bytes())
	m, end := s.meter(plugin.PhaseRead, rec.Capacity)
	defer end()
	image.imaging = &imaging{repo: j.run.repo, writer: r.writer, cutter: j.run.cutter, disk: disk, size: rec.Capacity,
		dirty: dirty, holes: holes, old: old, meter: m, memory: j.run.memory}
	image.trees, err = image.imaging.run(ctx, r.slots, &r.finish)
	return err
}

// holes asks what of the disk was never written: the transport first, which looks at the disk itself, then change
// tracking. Where neither knows, everything is read.
func (j *machineBackup) holes(ctx context.Context, s *vsphere.Snapshot, d vsphere.Disk, disk vddk.Disk) extent.Set {
	if a, ok := disk.(vddk.Allocator); ok {
		if set, err := a.Allocated(ctx, extent.Extent{Off: 0, Len: disk.Size()}); err == nil {
			return set.Complement(disk.Size())
		}
	}
	if j.run.req.Full || d.ChangeID == "" {
		return nil
	}
	set, err := s.Allocated(ctx, d)
	if err != nil {
		return nil
	}
	return set.Complement(disk.Size())
}

// openDisk opens the frozen link of the disk through the first transport that can.
func (j *machineBackup) openDisk(ctx context.Context, spec vddk.Spec, s scope) (vddk.Disk, string, error) {
	disk, err := j.run.op.conn.openDisk(ctx, j.run.vc, spec, func(name string, err error) {
		s.tell(warning(plugin.CodeTransport, "transport "+name+" does not reach the disk", err.Error(), ""))
	})
	if err != nil {
		return nil, "", err
	}
	how := "unknown"
	if d, ok := disk.(vddk.Describer); ok {
		how = d.Describe()
	}
	return disk, how, nil
}

// chainOf lists the links of a disk, from the frozen one down to the base.
func chainOf(d vsphere.Disk) []string {
	if len(d.Chain) == 0 {
		return []string{d.Path}
	}
	return d.Chain
}

// excluded reports whether a disk is named by a pattern: its name, label or key, or a glob over the name.
func excluded(d vsphere.Disk, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		ok, _ := path.Match(p, d.Name)
		return ok || p == d.Label || p == strconv.Itoa(int(d.Key))
	})
}

func firstOf(a, b time.Duration) time.Duration {
	if a != 0 {
		return a
	}
	return b
}
