package engine

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/repo"
	"github.com/vmkeep/vmkeep/repo/restic"
	"github.com/vmkeep/vmkeep/vddk"
	"github.com/vmkeep/vmkeep/vsphere"
)

// defaultSample is the share of the kept chunks that an audit compares when the request does not say.
const defaultSample = 0.02

// Verify implements [plugin.Service]: the audit of changed-block tracking. Chunks of the newest point that change
// tracking says are unchanged are read from a snapshot of the machine and compared with the names they have in the
// point. vSphere has been known to forget changes without a word; nothing else would notice.
func (e *Engine) Verify(ctx context.Context, req plugin.VerifyRequest, emit func(plugin.Event)) (plugin.VerifyReport, error) {
	var report plugin.VerifyReport
	err := e.operate(ctx, "verify", emit, func(ctx context.Context, op *operation) error {
		report.Operation = op.id
		if req.Sample == 0 {
			req.Sample = defaultSample
		}
		if !(req.Sample > 0 && req.Sample <= 1) {
			return invalid("sample", fmt.Sprintf("a sample of %v", req.Sample), "use a share above 0, up to 1")
		}
		opened, err := op.changing(ctx)
		if err != nil {
			return err
		}
		machines, err := selected(ctx, opened.vc, req.Selection)
		if err != nil {
			return err
		}
		return op.withRepository(ctx, func(r *repo.Repository) error {
			return r.WithLock(ctx, repo.Shared, func(ctx context.Context) error {
				points, err := newestPoints(ctx, r)
				if err != nil {
					return err
				}
				a := &auditRun{scene: opened, op: op, repo: r, sample: req.Sample, points: points}
				report.Machines = make([]plugin.VerifyResult, len(machines))
				lanesOf(op.conn.cfg.Limits).run(ctx, machines, func(ctx context.Context, i int) {
					res, err := a.machine(ctx, machines[i])
					if err != nil {
						errors.As(failure(err), &res.Err)
					}
					report.Machines[i] = res
				})
				return cutShort(ctx, report.Machines, func(m plugin.VerifyResult) *plugin.Error { return m.Err })
			})
		})
	})
	return report, err
}

// auditRun is what the machines of one audit share.
type auditRun struct {
	scene
	op     *operation
	repo   *repo.Repository
	sample float64
	points map[machineIdentity]*restic.Snapshot
}

func (a *auditRun) machine(ctx context.Context, m vsphere.Machine) (res plugin.VerifyResult, err error) {
	res.Machine = m.Name
	snap := a.points[machineIdentity{vcenter: a.vc.About().InstanceUUID, instance: m.InstanceUUID}]
	if snap == nil {
		return res, &plugin.Error{Code: plugin.CodePointNotFound, Summary: "the machine has no point to compare with", Object: m.Name, Remedy: "back it up first"}
	}
	res.Point = snap.ID.String()
	point, err := loadPoint(ctx, a.repo, snap)
	if err != nil {
		return res, err
	}
	note, err := a.op.conn.audit(m.InstanceUUID)
	if err != nil {
		return res, err
	}
	operation, err := a.journal.Begin("", a.repo.ID())
	if err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, operation.End()) }()
	s := scope{out: a.op.out, machine: m.Name}
	vm := a.vc.VM(m)
	var compared atomic.Int64
	var suspects []string
	_, err = vm.WithSnapshot(ctx, vsphere.SnapshotOptions{
		Operation: operation, Phase: s.vspherePhase, Quiesce: vsphere.Quiesce{Best: vsphere.LevelCrash, Worst: vsphere.LevelCrash},
	}, func(ctx context.Context, snapshot *vsphere.Snapshot) error {
		for _, d := range snapshot.Disks() {
			rec := point.manifest.diskByUUID(d.UUID)
			if rec == nil || rec.Skipped != "" || d.Unprotected != "" {
				continue
			}
			different, err := a.disk(ctx, s.on(d.Name), auditedDisk{vm: vm, snapshot: snapshot, disk: d, record: rec, point: point, compared: &compared})
			if err != nil {
				return fmt.Errorf("disk %s: %w", d.Name, err)
			}
			if len(different) == 0 {
				continue
			}
			diff := plugin.DiskDifference{Disk: rec.Name}
			for _, e := range different {
				diff.Ranges = append(diff.Ranges, plugin.ByteRange{Off: e.Off, Len: e.Len})
			}
			res.Different, suspects = append(res.Different, diff), append(suspects, d.UUID)
			s.on(d.Name).tell(plugin.Diagnostic{Severity: plugin.SeverityError, Code: plugin.CodeDifferent, Summary: "change tracking missed changes",
				Detail: fmt.Sprintf("%d bytes differ from the point, the first at %d", different.Bytes(), different[0].Off), Remedy: "back the machine up again: this disk will be read in full"})
		}
		return nil
	})
	res.Compared = compared.Load()
	if len(suspects) > 0 {
		err = errors.Join(err, note.add(suspects, time.Now().UTC()))
	}
	return res, err
}

type auditedDisk struct {
	vm       *vsphere.VM
	snapshot *vsphere.Snapshot
	disk     vsphere.Disk
	record   *manifestDisk
	point    *loadedPoint
	compared *atomic.Int64
}

// disk compares a sample of what change tracking says is unchanged and returns the chunks that differ.
func (a *auditRun) disk(ctx context.Context, s scope, d auditedDisk) (different extent.Set, err error) {
	if d.record.Capacity != d.disk.Capacity || d.record.ChangeID == "" {
		return nil, nil // the next backup reads it in full anyway
	}
	dirty, err := d.snapshot.Changed(ctx, d.disk, vsphere.ChangeID(d.record.ChangeID))
	if errors.Is(err, vsphere.ErrChangeTracking) {
		s.info(plugin.CodeChangeTracking, "nothing to audit: the next backup reads the disk in full", err.Error())
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	parts, err := d.point.partTrees(ctx, d.record.Name)
	if err != nil {
		return nil, err
	}
	spec := vddk.Spec{VM: d.vm.ID(), Snapshot: d.snapshot.ID(), Key: d.disk.Key, Path: d.disk.Path, Capacity: d.disk.Capacity, Encrypted: d.disk.Encrypted}
	disk, err := a.op.conn.openDisk(ctx, a.vc, spec, nil)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, disk.Close()) }()

	clean := dirty.Complement(d.record.Capacity)
	m, end := s.meter(plugin.PhaseAudit, d.record.Capacity)
	defer end()
	c := &chunkMap{repo: a.repo, size: d.record.Capacity, parts: parts, only: clean, meter: m}
	different, err = c.differing(ctx, disk, func(p piece) bool { return !clean.Covers(p.extent()) || !a.chosen(d.record.UUID, p.extent()) })
	d.compared.Add(m.read.Load())
	return different, err
}

// chosen draws the sample: another one for each operation, the same when an operation is looked at again.
func (a *auditRun) chosen(uuid string, e extent.Extent) bool {
	h := fnv.New64a()
	_, _ = io.WriteString(h, a.op.id+uuid) // never fails
	return rand.New(rand.NewPCG(h.Sum64(), uint64(e.Off))).Float64() < a.sample
}
