package engine

import (
	"context"
	"errors"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/vsphere"
)

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
		report, err := vc.Recover(ctx, j, op.conn.recoverOptions(vc))
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

// scene is what an operation needs that changes something on vSphere.
type scene struct {
	vc      *vsphere.Client
	journal *vsphere.Journal
}

// changing opens the scene, after it undid what former runs left there. What cannot be undone is told, and stops nothing.
func (op *operation) changing(ctx context.Context) (scene, error) {
	vc, err := op.conn.vsphere(ctx)
	if err != nil {
		return scene{}, err
	}
	j, err := op.conn.openJournal()
	if err != nil {
		return scene{}, err
	}
	s := scope{out: op.out}
	report, err := vc.Recover(ctx, j, op.conn.recoverOptions(vc))
	for _, l := range report.Undone {
		s.info(plugin.CodeLeftover, "removed what an interrupted run had left", leftoverText(l))
	}
	if ctx.Err() != nil {
		return scene{}, context.Cause(ctx)
	}
	if err != nil {
		s.tell(warning(plugin.CodeLeftover, "leftovers of former runs could not be looked for", err.Error(), "run `vmkeep recover`"))
	}
	for _, l := range report.Failed {
		s.tell(warning(plugin.CodeLeftover, "a trace of an interrupted run could not be removed", leftoverText(l.Leftover)+": "+l.Err.Error(), "run `vmkeep recover` when the machine is free"))
	}
	return scene{vc, j}, nil
}
