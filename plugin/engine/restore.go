package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
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
		return op.conn.withRepository(ctx, func(r *repo.Repository) error {
			return r.WithLock(ctx, repo.Shared, func(ctx context.Context) error {
				point, err := findPoint(ctx, r, req.Point, req.Machine)
				if err != nil {
					return err
				}
				job := &restoreJob{op: op, req: req, repo: r, point: point, report: &report, scope: scope{out: op.out, machine: point.manifest.Machine.Name}}
				report.Operation, report.Point = op.id, point.snapshot.ID.String()
				if job.disks, err = job.chosen(); err != nil {
					return err
				}
				defer func() { report.Stats.Seconds = time.Since(started).Seconds() }()
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

// restoreJob is one restore of one point.
type restoreJob struct {
	op     *operation
	req    plugin.RestoreRequest
	repo   *repo.Repository
	point  *loadedPoint
	disks  []manifestDisk
	report *plugin.RestoreReport
	scope  scope
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
	return out, nil
}

// output is where one disk of a point is written to.
type output struct {
	disk   manifestDisk
	target diskTarget
	fresh  bool         // the target reads as zeros
	only   extent.Set   // what to write; nil: everything
	flush  func() error // makes the target durable; nil: closing it does
	reason string       // how only was found
}

// write writes one disk of the point to a target and verifies it where that was asked for. The target stays the
// caller's.
func (j *restoreJob) write(ctx context.Context, o output) error {
	d := o.disk
	parts, err := j.point.partTrees(ctx, d.Name)
	if err != nil {
		return err
	}
	s := j.scope.on(d.Name)
	s.phase("restore")
	m, end := s.meter("restore", d.Capacity)
	w := &diskWriter{repo: j.repo, target: o.target, size: d.Capacity, parts: parts, fresh: o.fresh, only: o.only, allowMissing: j.req.AllowMissing, meter: m}
	err = w.run(ctx)
	end()
	done := plugin.RestoredDisk{Name: d.Name, Capacity: d.Capacity, Written: w.written.Load(), Reason: o.reason}
	for _, e := range w.lost {
		done.Lost = append(done.Lost, plugin.ByteRange{Off: e.Off, Len: e.Len})
	}
	j.report.Stats.Size += d.Capacity
	j.report.Stats.Fetched += w.fetched.Load()
	j.report.Stats.Written += w.written.Load()
	if err == nil && o.flush != nil {
		err = o.flush()
	}
	if err == nil && j.req.Verify {
		s.phase("verify")
		vm, end := s.meter("verify", d.Capacity)
		different, failed := w.whole().verify(ctx, vm)
		end()
		j.report.Stats.Read += vm.read.Load()
		switch err = failed; {
		case err != nil:
		case len(different) > 0:
			err = &plugin.Error{Code: plugin.CodeDifferent, Summary: "the restored disk is not what the point says", Object: d.Name,
				Detail: fmt.Sprintf("%d bytes differ, the first at %d", different.Bytes(), different[0].Off), Remedy: "look at the target's storage, then restore again"}
		default:
			done.Verified = true
		}
	}
	if err != nil {
		return fmt.Errorf("disk %s: %w", d.Name, err)
	}
	j.report.Disks = append(j.report.Disks, done)
	return nil
}

// directory restores to files on this machine.
func (j *restoreJob) directory(ctx context.Context) error {
	if j.req.Directory == "" || j.req.Directory == "-" {
		return invalid("directory", "no directory to restore to", "name one; `vmkeep cat` writes a disk to standard output")
	}
	home := filepath.Join(j.req.Directory, safeName(j.point.manifest.Machine.Name))
	if err := os.MkdirAll(home, 0o755); err != nil {
		return err
	}
	for i := range j.point.dir.Nodes {
		n := &j.point.dir.Nodes[i]
		if n.Subtree != nil || path.Ext(n.Name) == ".vmdk" || n.Name != safeName(n.Name) {
			continue
		}
		data, err := loadFile(ctx, j.repo, n, manifestLimit)
		if err != nil {
			return fmt.Errorf("%s: %w", n.Name, err)
		}
		if err := j.smallFile(filepath.Join(home, n.Name), data); err != nil {
			return err
		}
	}
	for _, d := range j.disks {
		if err := j.diskToFiles(ctx, d, home); err != nil {
			return err
		}
	}
	return nil
}

func (j *restoreJob) smallFile(name string, data []byte) error {
	f, err := j.createFile(name)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	j.report.Files = append(j.report.Files, name)
	return nil
}

// createFile makes a file, or an empty one of an existing where that was allowed.
func (j *restoreJob) createFile(name string) (*os.File, error) {
	flags := os.O_RDWR | os.O_CREATE | os.O_EXCL
	if j.req.Force {
		flags = os.O_RDWR | os.O_CREATE | os.O_TRUNC
	}
	return os.OpenFile(name, flags, 0o644)
}

func (j *restoreJob) diskToFiles(ctx context.Context, d manifestDisk, home string) (err error) {
	files := &fileDisk{size: d.Capacity}
	defer func() { err = errors.Join(err, files.Close()) }()
	switch j.req.Format {
	case plugin.FormatRaw, "":
		f, err := j.createFile(filepath.Join(home, d.Name+".raw"))
		if err != nil {
			return err
		}
		if err := files.add(f, d.Capacity); err != nil {
			return err
		}
	case plugin.FormatSplit:
		if err := j.smallFile(filepath.Join(home, d.Name+".vmdk"), descriptor(d.Name, d.Capacity, d.UUID)); err != nil {
			return err
		}
		files.unit = PartSize
		for n := range partCount(d.Capacity) {
			dir := filepath.Join(home, d.Name, partName(n))
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
			f, err := j.createFile(filepath.Join(dir, partFile))
			if err != nil {
				return err
			}
			if err := files.add(f, partLen(d.Capacity, n)); err != nil {
				return err
			}
		}
	default:
		return invalid("format", fmt.Sprintf("unknown format %q", j.req.Format), "use raw, vmdk, flat, stream or ova")
	}
	for _, f := range files.files {
		j.report.Files = append(j.report.Files, f.Name())
	}
	return j.write(ctx, output{disk: d, target: files, fresh: true, flush: files.sync})
}

// newMachine makes a machine like the saved one and fills its disks.
func (j *restoreJob) newMachine(ctx context.Context) error {
	vc, err := j.op.conn.vsphere(ctx)
	if err != nil {
		return err
	}
	journal, err := j.op.conn.openJournal()
	if err != nil {
		return err
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
	j.scope.phase("plan")
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
	j.scope.phase("create")
	vm, err := vc.CreateMachine(ctx, plan, func(ctx context.Context, vm *vsphere.VM) error { return j.fill(ctx, vc, vm, plan) })
	if err != nil {
		return err
	}
	j.report.Machine, j.report.MachineID = vm.Machine().Path, vm.ID()
	if j.req.PowerOn {
		j.scope.phase("power on")
		return vm.PowerOn(ctx)
	}
	return nil
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
		ResourcePool: t.ResourcePool, Datastore: t.Datastore, Datastores: t.Datastores, Networks: t.Networks, Provision: vsphere.Provisioning(t.Provisioning),
		KeepFailed: j.req.KeepPartial}
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
		if err := j.fillDisk(ctx, vc, vm, d, st.Disks[at]); err != nil {
			return err
		}
	}
	name := safeName(j.point.manifest.Machine.Name) + ".nvram"
	n := j.point.dir.Find(name)
	if n == nil {
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

func (j *restoreJob) fillDisk(ctx context.Context, vc *vsphere.Client, vm *vsphere.VM, d manifestDisk, to vsphere.Disk) (err error) {
	if to.Capacity < d.Capacity {
		return tooSmall(to, d)
	}
	spec := vddk.Spec{VM: vm.ID(), Key: to.Key, Path: to.Path, Capacity: to.Capacity, Write: true}
	disk, err := vddk.Open(ctx, spec, j.op.conn.transports(vc), func(name string, err error) {
		j.scope.on(d.Name).tell(warning(plugin.CodeTransport, "transport "+name+" does not reach the disk", err.Error(), ""))
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, disk.Close()) }()
	return j.write(ctx, output{disk: d, target: disk, fresh: true, flush: flusher(ctx, disk)})
}

func (j *restoreJob) note(d plugin.Diagnostic) {
	j.report.Notes = append(j.report.Notes, d)
	j.scope.tell(d)
}

// fileDisk is a disk that lies in files of unit bytes each; one file where unit is 0.
type fileDisk struct {
	size  int64
	unit  int64
	files []*os.File
}

func (f *fileDisk) add(file *os.File, size int64) error {
	f.files = append(f.files, file)
	return file.Truncate(size)
}

// each calls fn for the piece of p that lies in each file.
func (f *fileDisk) each(p []byte, off int64, fn func(file *os.File, p []byte, off int64) (int, error)) (int, error) {
	if f.unit == 0 {
		return fn(f.files[0], p, off)
	}
	done := 0
	for len(p) > 0 {
		at := off % f.unit
		n := int(min(int64(len(p)), f.unit-at))
		m, err := fn(f.files[off/f.unit], p[:n], at)
		done += m
		if err != nil {
			return done, err
		}
		p, off = p[n:], off+int64(n)
	}
	return done, nil
}

func (f *fileDisk) ReadAt(p []byte, off int64) (int, error) { return f.each(p, off, (*os.File).ReadAt) }

func (f *fileDisk) WriteAt(p []byte, off int64) (int, error) {
	return f.each(p, off, (*os.File).WriteAt)
}

func (f *fileDisk) sync() error {
	for _, x := range f.files {
		if err := x.Sync(); err != nil {
			return err
		}
	}
	return nil
}

func (f *fileDisk) Close() error {
	var err error
	for _, x := range f.files {
		err = errors.Join(err, x.Close())
	}
	return err
}
