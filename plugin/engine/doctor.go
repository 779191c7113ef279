package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/repo"
	"github.com/vmkeep/vmkeep/vddk/vixdisklib"
	"github.com/vmkeep/vmkeep/vsphere"
)

// Doctor implements [plugin.Service]. It changes nothing.
func (e *Engine) Doctor(ctx context.Context) ([]plugin.Finding, error) {
	var out []plugin.Finding
	err := e.operate(ctx, "doctor", nil, func(ctx context.Context, op *operation) error {
		out = append(out, op.examineRepository(ctx))
		var library int // its version
		if dir := op.conn.cfg.VDDKDir; dir != "" {
			var found []vixdisklib.Finding
			found, library = vixdisklib.Examine(ctx, dir, "")
			for _, f := range found {
				out = append(out, ofLibrary(f))
			}
		}
		journal, err := op.conn.openJournal()
		state := plugin.Finding{Name: "state directory", OK: err == nil}
		if err != nil {
			state.Detail, state.Remedy = err.Error(), "make it writable, or set stateDir"
			out = append(out, state)
			return nil
		}
		out = append(out, state)
		vc, err := op.conn.vsphere(ctx)
		if err != nil {
			out = append(out, failed("vSphere session", err))
			return context.Cause(ctx)
		}
		if library > 0 {
			out = append(out, ofLibrary(vixdisklib.Fits(library, vc.About().Version)))
		}
		for _, f := range vc.Doctor(ctx, journal) {
			out = append(out, plugin.Finding{Name: f.Name, OK: f.OK, Detail: f.Detail, Remedy: f.Remedy})
		}
		if slices.Contains(chosenTransports(op.conn.cfg), "hotadd") {
			out = append(out, op.examineProxy(ctx, vc))
		}
		return context.Cause(ctx)
	})
	return out, err
}

// examineProxy looks at the machine that this program runs in, which disks are to be hot-added to.
func (op *operation) examineProxy(ctx context.Context, vc *vsphere.Client) plugin.Finding {
	const name = "hot-add"
	proxy, err := attacher{conn: op.conn, vc: vc}.proxy(ctx)
	if err != nil {
		f := failed(name, err)
		f.Remedy = "run vmkeep as root in a machine of this vCenter, or take hotadd out of the transports"
		return f
	}
	missing, err := vc.MissingPrivileges(ctx, vsphere.ProxyPrivileges(), []string{proxy.ID()})
	if err != nil {
		return failed(name, err)
	}
	if len(missing) == 0 {
		return plugin.Finding{Name: name, OK: true, Detail: "disks are attached to " + proxy.Machine().Path}
	}
	var ids []string
	for _, m := range missing {
		ids = append(ids, m.ID)
	}
	return plugin.Finding{Name: name, Detail: fmt.Sprintf("on %s the account lacks %s", proxy.Machine().Path, strings.Join(ids, ", ")),
		Remedy: "give the account a role with them on that machine: vsphere/roles/proxy.sh makes it"}
}

func ofLibrary(f vixdisklib.Finding) plugin.Finding {
	return plugin.Finding{Name: "VMware's library: " + f.Name, OK: f.OK, Detail: f.Detail, Remedy: f.Remedy}
}

// failed is a finding made of an error.
func failed(name string, err error) plugin.Finding {
	var e *plugin.Error
	errors.As(failure(err), &e)
	return plugin.Finding{Name: name, Detail: e.Error(), Remedy: e.Remedy}
}

func (op *operation) examineRepository(ctx context.Context) plugin.Finding {
	f := plugin.Finding{Name: "repository"}
	err := op.withRepository(ctx, func(r *repo.Repository) error {
		locks, err := r.Locks(ctx)
		if err != nil {
			return err
		}
		f.OK, f.Detail = true, fmt.Sprintf("format version %d at %s, id %.8s", r.Config().Version, r.Location(), r.ID())
		if n := len(locks); n > 0 {
			f.Detail += fmt.Sprintf(", %d locks", n)
		}
		return nil
	})
	if err != nil {
		return failed("repository", err)
	}
	return f
}
