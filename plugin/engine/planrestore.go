package engine

import (
	"context"
	"errors"
	"fmt"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/repo"
)

// PlanRestore implements [plugin.Service].
func (e *Engine) PlanRestore(ctx context.Context, req plugin.RestoreRequest) (plugin.RestorePlan, error) {
	var out plugin.RestorePlan
	err := e.operate(ctx, "plan-restore", nil, func(ctx context.Context, op *operation) error {
		return op.conn.withRepository(ctx, func(r *repo.Repository) error {
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
			switch req.Mode {
			case plugin.RestoreNew, "":
				return job.planNew(ctx, &out)
			case plugin.RestoreDirectory:
				for _, d := range job.disks {
					out.Steps = append(out.Steps, fmt.Sprintf("write disk %s, %d bytes, to %s", d.Name, d.Capacity, req.Directory))
					out.Write += d.Capacity
				}
				return nil
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
		var e *plugin.Error
		errors.As(failure(p), &e)
		out.Problems = append(out.Problems, e.Diagnostic())
	}
	for _, d := range j.disks {
		out.Write += d.Capacity
	}
	return nil
}
