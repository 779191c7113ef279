package engine

import (
	"context"
	"strings"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/vsphere"
)

// backupScene is what has to be known of vSphere before machines are backed up.
type backupScene struct {
	scene
	machines []vsphere.Machine
}

// lookAtVSphere needs no repository, so that it is done while that is opened: deriving its key takes as long.
func (op *operation) lookAtVSphere(ctx context.Context, s plugin.Selection) (*backupScene, error) {
	opened, err := op.changing(ctx)
	if err != nil {
		return nil, err
	}
	machines, err := selected(ctx, opened.vc, s)
	return &backupScene{opened, machines}, err
}

// beside runs fn beside its caller and returns what waits for its result.
func beside[T any](fn func() (T, error)) (wait func() (T, error)) {
	var v T
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		v, err = fn()
	}()
	return func() (T, error) {
		<-done
		return v, err
	}
}

// selected lists the machines of a selection; none is an error.
func selected(ctx context.Context, vc *vsphere.Client, s plugin.Selection) ([]vsphere.Machine, error) {
	machines, err := vc.Machines(ctx, selection(s))
	if err != nil {
		return nil, err
	}
	if len(machines) == 0 {
		return nil, &plugin.Error{Code: plugin.CodeMachineNotFound, Summary: "no machine matches the selection", Object: strings.Join(s.Names, ", "),
			Remedy: "list what there is with `vmkeep machines`"}
	}
	return machines, nil
}

// freeSpace is how many bytes a datastore must keep free: what was demanded, else 5 % of it.
func freeSpace(demanded int64) func(vsphere.Datastore) int64 {
	return func(d vsphere.Datastore) int64 {
		if demanded > 0 {
			return demanded
		}
		return d.Capacity / 20
	}
}
