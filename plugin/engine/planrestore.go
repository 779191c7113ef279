package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/repo"
	"github.com/vmkeep/vmkeep/vsphere"
)

// PlanRestore implements [plugin.Service].
func (e *Engine) PlanRestore(ctx context.Context, req plugin.RestoreRequest) (plugin.RestorePlan, error) {
	var out plugin.RestorePlan
	err := e.operate(ctx, "plan-restore", nil, func(ctx context.Context, op *operation) error {
		return op.withRepository(ctx, func(r *repo.Repository) error {
			point, err := findPoint(ctx, r, req.Point, req.Machine)
			if err != nil {
				return err
			}
			job := &restoreJob{op: op, req: req, repo: r, point: point, report: &plugin.RestoreReport{}, scope: scope{out: op.out}}
			if job.disks, err = job.chosen(); err != nil {
				return err
			}
			if out.Point, err = summarize(ctx, r, point.snapshot, true); err != nil {
				return err
			}
			out.Notes = job.missing()
			switch req.Mode {
			case plugin.RestoreNew, "":
				return job.planNew(ctx, &out)
			case plugin.RestoreDirectory:
				return job.planDirectory(&out)
			case plugin.RestoreInPlace, plugin.RestoreRollback, plugin.RestoreAttach:
				return job.planOnMachine(ctx, &out)
			}
			return invalid("mode", fmt.Sprintf("unknown mode of restore %q", req.Mode), "use new, in-place, rollback, attach or directory")
		})
	})
	return out, err
}

func (j *restoreJob) planNew(ctx context.Context, out *plugin.RestorePlan) error {
	vc, err := j.op.conn.vsphere(ctx)
	if err != nil {
		return err
	}
	plan, err := j.planMachine(ctx, vc, nil)
	if err != nil {
		return err
	}
	out.Steps = plan.Steps
	for _, n := range plan.Notes {
		out.Notes = append(out.Notes, plugin.Diagnostic{Severity: plugin.SeverityInfo, Summary: n})
	}
	for _, p := range plan.Problems {
		problem(out, p)
	}
	for _, d := range j.disks {
		out.Write += d.Capacity
	}
	return nil
}

// problem adds what makes a restore impossible.
func problem(out *plugin.RestorePlan, err error) {
	var e *plugin.Error
	errors.As(failure(err), &e)
	out.Problems = append(out.Problems, e.Diagnostic())
}

func (j *restoreJob) planDirectory(out *plugin.RestorePlan) error {
	home := filepath.Join(j.req.Directory, safeName(j.point.manifest.Machine.Name))
	suffix, ok := map[plugin.RestoreFormat]string{"": ".raw", plugin.FormatRaw: ".raw", plugin.FormatSplit: ".vmdk", plugin.FormatFlat: "-flat.vmdk", plugin.FormatStreamOptimized: ".vmdk", plugin.FormatOVA: ""}[j.req.Format]
	switch {
	case !ok:
		problem(out, invalid("format", fmt.Sprintf("unknown format %q", j.req.Format), "use raw, vmdk, flat, stream or ova"))
		return nil
	case j.req.Directory == "" || j.req.Directory == "-":
		problem(out, invalid("directory", "no directory to restore to", "name one; `vmkeep cat` writes a disk to standard output"))
		return nil
	}
	for _, d := range j.disks {
		base, file := filepath.Join(home, d.Name), filepath.Join(home, d.Name)+suffix
		if j.req.Format == plugin.FormatOVA {
			base, file = home, home+".ova"
		}
		switch _, err := os.Stat(file); {
		case err != nil:
			out.Steps = append(out.Steps, fmt.Sprintf("write disk %s, %d bytes, to %s", d.Name, d.Capacity, file))
		case exists(base + incompleteSuffix):
			out.Steps = append(out.Steps, fmt.Sprintf("go on writing disk %s, %d bytes, to %s", d.Name, d.Capacity, file))
		case j.req.Force:
			out.Steps = append(out.Steps, fmt.Sprintf("overwrite %s with disk %s, %d bytes", file, d.Name, d.Capacity))
		default:
			problem(out, &plugin.Error{Code: plugin.CodeExists, Summary: "the file exists already", Detail: file, Object: file, Remedy: "choose another place, or force overwriting"})
		}
		out.Write += d.Capacity
	}
	return nil
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

// planOnMachine plans a restore onto an existing machine.
func (j *restoreJob) planOnMachine(ctx context.Context, out *plugin.RestorePlan) error {
	vc, err := j.op.conn.vsphere(ctx)
	if err != nil {
		return err
	}
	vm, err := j.target(ctx, vc)
	if errors.Is(err, vsphere.ErrNotFound) || errors.Is(err, vsphere.ErrAmbiguous) {
		problem(out, err)
		return nil
	}
	if err != nil {
		return err
	}
	st, err := vm.State(ctx)
	if err != nil {
		return err
	}
	for _, p := range j.unsuitable(st) {
		problem(out, p)
	}
	if st.Power != vsphere.PoweredOff && !j.hot(st) {
		out.Steps = append(out.Steps, "power off "+st.Path)
	}
	if j.req.Mode == plugin.RestoreAttach {
		journal, err := j.op.conn.openJournal()
		if err != nil {
			return err
		}
		held, err := vm.Held(journal, j.becoming())
		if err != nil {
			return err
		}
		j.begun = held != ""
		if err := j.planAttach(ctx, &machineTarget{vc: vc, vm: vm, state: st}, out); err != nil {
			return err
		}
	} else {
		j.planOverwrite(st, out)
	}
	if j.req.PowerOn {
		out.Steps = append(out.Steps, "power on "+st.Path)
	}
	return nil
}

func (j *restoreJob) planOverwrite(st *vsphere.State, out *plugin.RestorePlan) {
	found := j.pair(st)
	out.Notes = append(out.Notes, found.notes...)
	for _, p := range found.problems {
		problem(out, p)
	}
	if extraConfig(st.ConfigInfo, restoringKey) != "" {
		out.Notes = append(out.Notes, plugin.Diagnostic{Severity: plugin.SeverityWarning, Summary: "an earlier restore of the machine was interrupted", Object: st.Path,
			Detail: "change tracking is not believed, its disks are compared by content", Remedy: "run this restore to complete it"})
	}
	for _, p := range found.pairs {
		if j.req.Mode == plugin.RestoreRollback {
			out.Steps = append(out.Steps, fmt.Sprintf("find what differs on %s (%s) from the point, by change tracking or by content, and overwrite it", p.disk.Name, p.disk.Path))
		} else {
			out.Steps = append(out.Steps, fmt.Sprintf("overwrite %s (%s) with %d bytes", p.disk.Name, p.disk.Path, p.saved.Capacity))
		}
		out.Write += p.saved.Capacity
	}
	if j.req.Mode == plugin.RestoreRollback {
		out.Write = -1
	}
}
