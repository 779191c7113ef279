package engine_test

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"github.com/vmware/govmomi/vim25/types"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/vsphere/lab"
)

// Whatever changes something on vSphere first removes what an interrupted run left there, and says so.
func TestOperationsBeginByRecovering(t *testing.T) {
	r := newRig(t, lab.Options{Machines: []lab.Machine{{Name: "db", Disks: []lab.Disk{{Size: 2 << 20}}}}})
	point := r.point("db").ID
	only := plugin.Selection{Names: []string{"db"}}
	for name, do := range map[string]func() error{
		"backup": func() error {
			_, err := r.Backup(noCancel(), plugin.BackupRequest{Selection: only}, r.note)
			return err
		},
		"verify": func() error {
			_, err := r.Verify(noCancel(), plugin.VerifyRequest{Selection: only}, r.note)
			return err
		},
		"new machine": func() error {
			_, err := r.Restore(noCancel(), plugin.RestoreRequest{Point: point, Target: plugin.Target{Name: "db2"}}, r.note)
			return err
		},
		"rollback": func() error { // which refuses a machine with snapshots
			_, err := r.Restore(noCancel(), plugin.RestoreRequest{Point: point, Mode: plugin.RestoreRollback, PowerOff: true}, r.note)
			return err
		},
		"attach": func() error {
			_, err := r.Restore(noCancel(), plugin.RestoreRequest{Point: point, Mode: plugin.RestoreAttach, PowerOff: true}, r.note)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			db := r.lab.Machine("db")
			r.must(db.SetFaults(lab.MachineFaults{RemoveSnapshot: &types.NoPermission{PrivilegeId: "VirtualMachine.State.RemoveSnapshot"}}))
			r.tryBackup("db", nil)
			r.must(db.SetFaults(lab.MachineFaults{}))
			if db.SnapshotCount() != 1 {
				t.Fatal("nothing was left behind")
			}
			r.events = nil
			r.must(do())
			r.noTraces("db")
			told := 0
			for _, e := range r.events {
				if d := e.Diagnostic; d != nil && d.Code == plugin.CodeLeftover && strings.Contains(d.Summary, "removed what an interrupted run had left") {
					told++
				}
			}
			if told != 1 {
				t.Errorf("the recovery was told %d times", told)
			}
		})
	}
}

// Where an operation is cancelled while it looks for leftovers, nobody is told that they could not be looked for.
func TestALookThatIsBrokenOffIsNotTold(t *testing.T) {
	r := newRig(t, lab.Options{Machines: []lab.Machine{{Name: "db", Disks: []lab.Disk{{Size: 2 << 20}}}}})
	point := r.point("db").ID
	db := r.lab.Machine("db")
	r.must(db.SetFaults(lab.MachineFaults{RemoveSnapshot: &types.NoPermission{PrivilegeId: "VirtualMachine.State.RemoveSnapshot"}}))
	r.tryBackup("db", nil)
	r.must(db.SetFaults(lab.MachineFaults{}))

	ctx, cancel := context.WithCancel(t.Context())
	release := r.lab.Inject(lab.Fault{Method: "RemoveSnapshot_Task", Do: func(http.ResponseWriter, *http.Request, http.Handler) {
		cancel()
		panic(http.ErrAbortHandler)
	}})
	r.events = nil
	_, err := r.Restore(ctx, plugin.RestoreRequest{Point: point, Mode: plugin.RestoreRollback, PowerOff: true}, r.note)
	failsWith(t, err, plugin.CodeCancelled, "cancel")
	for _, e := range r.events {
		if e.Diagnostic != nil {
			t.Errorf("told: %+v", e.Diagnostic)
		}
	}
	release()
	_, err = r.Recover(t.Context(), nil)
	r.must(err)
	r.noTraces("db")
}
