package engine

import (
	"context"
	"errors"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/repo"
	"github.com/vmkeep/vmkeep/repo/backend/location"
	"github.com/vmkeep/vmkeep/vsphere"
)

// InitRepository implements [plugin.Service].
func (e *Engine) InitRepository(ctx context.Context) (plugin.Repository, error) {
	var out plugin.Repository
	err := e.operate(ctx, "init", nil, func(ctx context.Context, op *operation) error {
		rc := op.conn.cfg.Repository
		where, err := location.Parse(rc.Location)
		if err != nil {
			return invalid("repository.location", err.Error(), "use one of restic's forms: /path, rest:URL, s3:URL, sftp:user@host:/path")
		}
		be, err := location.Create(ctx, where, op.conn.storage())
		if err != nil {
			return err
		}
		r, err := repo.Init(ctx, be, repo.InitOptions{Password: rc.Password})
		if err != nil {
			return errors.Join(err, be.Close())
		}
		out = repositoryOf(r)
		return errors.Join(r.Close(), be.Close())
	})
	return out, err
}

func repositoryOf(r *repo.Repository) plugin.Repository {
	return plugin.Repository{ID: r.ID(), Version: r.Config().Version, Location: r.Location()}
}

// Machines implements [plugin.Service].
func (e *Engine) Machines(ctx context.Context, s plugin.Selection) ([]plugin.Machine, error) {
	var out []plugin.Machine
	err := e.operate(ctx, "machines", nil, func(ctx context.Context, op *operation) error {
		vc, err := op.conn.vsphere(ctx)
		if err != nil {
			return err
		}
		list, err := vc.Machines(ctx, selection(s))
		for _, m := range list {
			out = append(out, machineOf(m))
		}
		return err
	})
	return out, err
}

// Recover implements [plugin.Service].
func (e *Engine) Recover(ctx context.Context, emit func(plugin.Event)) (plugin.RecoverReport, error) {
	var out plugin.RecoverReport
	err := e.operate(ctx, "recover", emit, func(ctx context.Context, op *operation) error {
		vc, err := op.conn.vsphere(ctx)
		if err != nil {
			return err
		}
		j, err := op.conn.openJournal()
		if err != nil {
			return err
		}
		report, err := vc.Recover(ctx, j, vsphere.RecoverOptions{})
		for _, l := range report.Undone {
			out.Undone = append(out.Undone, leftoverOf(l, nil))
		}
		for _, l := range report.Kept {
			out.Remaining = append(out.Remaining, leftoverOf(l, &plugin.Error{Code: plugin.CodeLeftover, Summary: "left alone", Detail: l.Keep}))
		}
		for _, l := range report.Failed {
			var why *plugin.Error
			errors.As(failure(l.Err), &why)
			out.Remaining = append(out.Remaining, leftoverOf(l.Leftover, why))
		}
		return err
	})
	return out, err
}

func leftoverOf(l vsphere.Leftover, err *plugin.Error) plugin.Leftover {
	return plugin.Leftover{Operation: l.Operation, Kind: string(l.Kind), Machine: l.Machine, Detail: l.Object, Err: err}
}
