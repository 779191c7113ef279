package vsphere

import (
	"context"
	"errors"
	"fmt"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"
)

// relocation is the method that moves a machine's storage; a machine whose disks are read over NFC should stay.
const relocation = "RelocateVM_Task"

// methodSource names us as the one who disabled a method: enabling needs the same source.
func methodSource(operation string) string { return snapshotPrefix + operation }

// WithRelocationDisabled runs fn while vCenter refuses to move the machine's storage. It is optional: on an ESXi host,
// or without the privileges Global.DisableMethods and Global.EnableMethods, fn runs unprotected, and the answer is
// false.
func (v *VM) WithRelocationDisabled(ctx context.Context, op *Operation, fn func(context.Context) error) (protected bool, err error) {
	if !v.c.about.VCenter || v.c.vim.ServiceContent.AuthorizationManager == nil || v.c.lacks(ctx, v.ref(), "Global.DisableMethods", "Global.EnableMethods") != "" {
		return false, fn(ctx)
	}
	x, err := op.announce(entry{Kind: EntryMethod, Server: v.c.about.InstanceUUID, Machine: v.ID(), Path: v.label(), Object: relocation})
	if err != nil {
		return false, err
	}
	refused := false // nothing was disabled
	defer func() {
		if refused {
			err = errors.Join(err, x.strike())
			return
		}
		after, cancel := v.c.afterwards(ctx)
		defer cancel()
		if e := v.enableMethods(after, op.id); e != nil {
			err = errors.Join(err, &Error{Kind: ErrLeftover, Object: v.label(), Summary: fmt.Sprintf("moving machine %s could not be allowed again", v.label()), Err: e, Remedy: "run vmkeep recover"})
			return
		}
		err = errors.Join(err, x.strike())
	}()
	am := object.NewAuthorizationManager(v.c.vim)
	if e := am.DisableMethods(ctx, []ref{v.ref()}, []object.DisabledMethodRequest{{Method: relocation, Reason: "backup"}}, methodSource(op.id)); e != nil {
		if ctx.Err() != nil {
			return false, context.Cause(ctx)
		}
		var already *types.MethodAlreadyDisabledFault
		if !asFault(e, &already) || already.SourceId != methodSource(op.id) { // by us: an answer was lost
			v.c.log.Debug("relocation not disabled", "machine", v.label(), "error", e)
			refused = isFault(e)
			return false, fn(ctx)
		}
	}
	return true, fn(ctx)
}

// enableMethods undoes WithRelocationDisabled. Methods that are enabled already, and machines that are gone, are fine.
func (v *VM) enableMethods(ctx context.Context, operation string) error {
	err := v.c.insist(ctx, func() error {
		err := object.NewAuthorizationManager(v.c.vim).EnableMethods(ctx, []ref{v.ref()}, []string{relocation}, methodSource(operation))
		if isUnsupported(err) {
			return nil
		}
		return err
	})
	if isNotFound(err) {
		return nil
	}
	return err
}
