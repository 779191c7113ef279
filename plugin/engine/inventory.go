package engine

import (
	"context"
	"errors"
	"syscall"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/repo"
	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/backend/location"
)

// InitRepository implements [plugin.Service].
func (e *Engine) InitRepository(ctx context.Context) (plugin.Repository, error) {
	var out plugin.Repository
	err := e.operate(ctx, "init", nil, func(ctx context.Context, op *operation) error {
		rc := op.conn.cfg.Repository
		if missing := noRepositoryIn(op.conn.cfg); missing != nil {
			return missing
		}
		where, err := location.Parse(rc.Location)
		if err != nil {
			return invalid("repository.location", err.Error(), "use one of "+locationForms)
		}
		be, err := location.Create(ctx, where, op.storage())
		if err != nil {
			return noPlace(err)
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

// noPlace says that no repository can be made at a place. Want of space, which has its own remedy, is told as everywhere.
func noPlace(err error) error {
	if !errors.Is(err, backend.ErrNotExist) && !errors.Is(err, backend.ErrPermanent) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return err
	}
	return &plugin.Error{Code: plugin.CodeRepository, Object: "repository.location", Summary: "no repository can be made there", Detail: err.Error(), Err: err,
		Remedy: "choose a directory that can be made or written to; for a server, check address, path and credentials"}
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
