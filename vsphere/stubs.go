package vsphere

import (
	"context"
	"errors"
)

var errSoon = errors.New("not built yet")

type target struct{}

// PlanMachine says what CreateMachine would do. An error means that the plan could not be made; what makes the
// creation impossible is in Problems.
func (c *Client) PlanMachine(ctx context.Context, spec MachineSpec) (*MachinePlan, error) {
	return nil, errSoon
}

// CreateMachine makes the planned machine and runs fn to fill its disks. When fn fails the machine is destroyed,
// unless KeepPartial was asked for.
func (c *Client) CreateMachine(ctx context.Context, plan *MachinePlan, fn func(context.Context, *VM) error) (*VM, error) {
	return nil, errSoon
}

// WithNewDisk attaches a new disk and runs fn to fill it; when fn fails the disk is removed with its file, and a
// replaced disk is attached again.
func (v *VM) WithNewDisk(ctx context.Context, spec DiskSpec, fn func(context.Context, Disk) error) (Disk, error) {
	return Disk{}, errSoon
}

// WithAttached attaches an existing disk, named by its datastore path, as independent and nonpersistent for the time of fn,
// as HotAdd does, and detaches it, keeping the file.
func (v *VM) WithAttached(ctx context.Context, op *Operation, path string, fn func(context.Context, Disk) error) error {
	return errSoon
}

// DetachDisk takes a disk out of the machine and keeps its file.
func (v *VM) DetachDisk(ctx context.Context, key int32) error { return errSoon }

// WithRelocationDisabled runs fn while the server refuses to migrate the machine's storage (vCenter only).
func (v *VM) WithRelocationDisabled(ctx context.Context, op *Operation, fn func(context.Context) error) error {
	return errSoon
}

// BackupPrivileges is everything a backup needs.
func BackupPrivileges() []Privilege { return nil }

// RestorePrivileges is everything a restore needs beyond [BackupPrivileges].
func RestorePrivileges() []Privilege { return nil }

// MissingPrivileges says what of need the session's account lacks on objects.
func (c *Client) MissingPrivileges(ctx context.Context, need []Privilege) ([]MissingPrivilege, error) {
	return nil, errSoon
}

// Doctor examines session, privileges, hosts, datastores, machines and leftovers. It changes nothing.
func (c *Client) Doctor(ctx context.Context, j *Journal) []Finding { return nil }

// Recover undoes what dead operations left on this server: what the journal knows, and snapshots that carry our mark.
func (c *Client) Recover(ctx context.Context, j *Journal, opts RecoverOptions) (RecoverReport, error) {
	return RecoverReport{}, errSoon
}

// Leftovers lists what Recover would look at. It changes nothing.
func (c *Client) Leftovers(ctx context.Context, j *Journal) ([]Leftover, error) { return nil, errSoon }
