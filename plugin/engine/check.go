package engine

import (
	"context"
	"fmt"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/repo"
)

// Check implements [plugin.Service].
func (e *Engine) Check(ctx context.Context, req plugin.CheckRequest, emit func(plugin.Event)) (plugin.CheckReport, error) {
	var out plugin.CheckReport
	err := e.operate(ctx, "check", emit, func(ctx context.Context, op *operation) error {
		var opt repo.CheckOptions
		subset := req.Subset
		if subset == "" && req.ReadData {
			subset = "all"
		}
		if subset != "" {
			data, err := repo.ParseReadData(subset)
			if err != nil {
				return invalid("subset", err.Error(), "use n/t, p% or a size")
			}
			opt.ReadData = data
		}
		return op.withRepository(ctx, func(r *repo.Repository) error {
			stages := newStages(scope{out: op.out})
			defer stages.end()
			opt.Progress = func(p repo.CheckProgress) {
				stages.at(plugin.Phase(p.Stage), p.Bytes, p.TotalBytes) // counts of files are not told: progress is bytes
			}
			report, err := r.Check(ctx, opt)
			if err != nil {
				return err
			}
			out = plugin.CheckReport{Repository: repositoryOf(r), Snapshots: report.Snapshots, Packs: report.Packs,
				PacksRead: report.PacksRead, BytesRead: report.BytesRead, Blobs: int64(report.Blobs)}
			for _, f := range report.Findings {
				d := findingOf(f)
				if f.Severity == repo.Error {
					out.Errors = append(out.Errors, d)
				} else {
					out.Hints = append(out.Hints, d)
				}
			}
			if n := report.FindingsOmitted; n > 0 {
				out.Errors = append(out.Errors, plugin.Diagnostic{Severity: plugin.SeverityError, Code: plugin.CodeDamaged, Summary: fmt.Sprintf("%d more findings", n)})
			}
			return nil
		})
	})
	return out, err
}

// findingOf is one finding of a check in the contract's form.
func findingOf(f repo.Finding) plugin.Diagnostic {
	d := plugin.Diagnostic{Severity: plugin.SeverityInfo, Code: plugin.CodeDamaged, Summary: f.Text, Remedy: f.Remedy, Object: f.File}
	if f.Severity == repo.Error {
		d.Severity = plugin.SeverityError
	}
	if f.Path != "" {
		d.Object = f.Path
		if !f.Snapshot.IsNull() {
			d.Object = f.Snapshot.Short() + ":" + f.Path
		}
	}
	if f.Length > 0 {
		d.Detail = fmt.Sprintf("%d bytes at %d", f.Length, f.Offset)
	}
	return d
}
