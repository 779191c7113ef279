package vsphere

import (
	"context"
	"testing"
	"time"

	"github.com/vmware/govmomi/vim25/types"

	"github.com/vmkeep/vmkeep/vsphere/lab"
)

// overwrites runs fn as what overwrites disks of "web", and reports whether the machine carries the mark of it
// afterwards, and whether the journal knows of it.
func (w *world) overwrites(ctx context.Context, fn func(context.Context) error) (marked, known bool, err error) {
	w.Helper()
	op, e := w.j.Begin("", "repo1")
	must(w, e)
	v := w.find("web")
	err = v.WithOverwrite(ctx, op, Overwrite{Key: "vmkeep.restoring", Value: "point1"}, fn)
	known = op.End() != nil
	must(w, w.lab.Machine("web").Idle(w.ctx))
	marked, e = v.carries(w.ctx, "vmkeep.restoring")
	must(w, e)
	return marked, known, err
}

// When all is written, neither the end of the caller nor a call that fails makes a half-written machine of it.
func TestEndOfAnOverwriteIsNotMissed(t *testing.T) {
	for name, do := range map[string]lab.Effect{
		"cancelled": nil, "answer lost": lab.LoseAnswer(), "fault": lab.Fail(&types.SystemErrorFault{Reason: "a fault of the lab"}),
	} {
		t.Run(name, func(t *testing.T) {
			w := start(t, machines("web"))
			ctx, cancel := context.WithCancel(w.ctx)
			defer cancel()
			marked, known, err := w.overwrites(ctx, func(context.Context) error {
				if do == nil {
					cancel()
				} else {
					w.lab.Inject(lab.Fault{Method: "ReconfigVM_Task", Do: do})
				}
				return nil
			})
			if marked || known || err != nil {
				t.Errorf("marked %v, in the journal %v, error %v", marked, known, err)
			}
		})
	}
}

// A mark whose answer was lost, and that comes late, is in the journal.
func TestLateMarkOfAnOverwriteIsKnown(t *testing.T) {
	w := start(t, machines("web"))
	must(t, w.lab.Machine("web").SetFaults(lab.MachineFaults{TaskDelay: map[string]time.Duration{"reconfigVm": 300 * time.Millisecond}}))
	w.lab.Inject(lab.Fault{Method: "ReconfigVM_Task", Do: lab.LoseAnswer()})
	marked, known, err := w.overwrites(w.ctx, nil)
	if !marked || !known || err == nil {
		t.Errorf("marked %v, in the journal %v, error %v", marked, known, err)
	}
}
