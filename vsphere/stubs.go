package vsphere

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/vmkeep/vmkeep/chunker/extent"
)

var errSoon = errors.New("not built yet")

type target struct{}

// Client is a session with a vCenter or an ESXi host. It is safe for concurrent use and has to be closed.
type Client struct{}

// Dial connects, checks the certificate and logs in. ctx bounds only the dialing, not the session.
func Dial(ctx context.Context, cfg Config) (*Client, error) { return nil, errSoon }

// Close logs out and ends the keep-alive. It has its own deadline and is safe to call twice.
func (c *Client) Close() error { return errSoon }

// About is what the server said of itself at login.
func (c *Client) About() About { return About{} }

// Now is the server's clock.
func (c *Client) Now(ctx context.Context) (time.Time, error) { return time.Time{}, errSoon }

// Machines lists the machines that match, in the order of their paths.
func (c *Client) Machines(ctx context.Context, sel Selection) ([]Machine, error) { return nil, errSoon }

// Find finds one machine by inventory path, name, managed object id or instanceUuid. [ErrNotFound], [ErrAmbiguous].
func (c *Client) Find(ctx context.Context, name string) (*VM, error) { return nil, errSoon }

// VM is the handle of the machine, as [Client.Machines] listed it, without asking the server.
func (c *Client) VM(m Machine) *VM { return nil }

// Datastore is a datastore's present state.
type Datastore struct {
	ID, Name, Type, Path string
	Capacity, Free       int64
	Accessible           bool
	Maintenance          string // "normal", or the mode it is in
}

// Datastores lists all datastores.
func (c *Client) Datastores(ctx context.Context) ([]Datastore, error) { return nil, errSoon }

// Host is an ESXi host's present state.
type Host struct {
	ID, Name, Path, Cluster string
	Version, Build          string
	Connected, Maintenance  bool
	Machines                int
	CPUs                    int
	Memory                  int64
	Datastores, Networks    []string
	Licence                 string // key of the licence's edition; empty: not told
}

// Hosts lists all hosts.
func (c *Client) Hosts(ctx context.Context) ([]Host, error) { return nil, errSoon }

// VM is a handle of a virtual machine.
type VM struct{ machine Machine }

// ID is the managed object id.
func (v *VM) ID() string { return v.machine.ID }

// Machine is the machine as it was when the handle was made.
func (v *VM) Machine() Machine { return v.machine }

// State asks for the machine as it is now.
func (v *VM) State(ctx context.Context) (*State, error) { return nil, errSoon }

// Download writes a file of the machine, named by its datastore path, to w. Missing: [ErrNotFound].
func (v *VM) Download(ctx context.Context, path string, w io.Writer) (int64, error) {
	return 0, errSoon
}

// UploadNVRAM replaces the machine's .nvram. The machine must be powered off.
func (v *VM) UploadNVRAM(ctx context.Context, data []byte) error { return errSoon }

// EnableCBT switches change tracking on where it is allowed and verifies it; false: it was on already.
// Refusals are [ErrChangeTracking] with the reason: snapshots exist, hardware version, ...
func (v *VM) EnableCBT(ctx context.Context, op *Operation) (bool, error) { return false, errSoon }

// ResetCBT switches change tracking off and on again, with the stuns that it needs. No snapshots may exist.
func (v *VM) ResetCBT(ctx context.Context, op *Operation) error { return errSoon }

// WithSnapshot runs fn with a snapshot and removes it, whatever happens: see the package comment.
// The report is valid also when an error is returned. fn's error comes back wrapped at most once.
func (v *VM) WithSnapshot(ctx context.Context, opts SnapshotOptions, fn func(context.Context, *Snapshot) error) (SnapshotReport, error) {
	return SnapshotReport{}, errSoon
}

// Changed are the bytes of the disk that changed between the state since and the snapshot.
// It fails with [*ChangeTrackingError] when the whole disk has to be read.
func (s *Snapshot) Changed(ctx context.Context, d Disk, since ChangeID) (extent.Set, error) {
	return nil, errSoon
}

// Allocated are the bytes of the disk that were ever written, as change tracking knows ("*").
// The rest reads as zeros. It fails with [*ChangeTrackingError].
func (s *Snapshot) Allocated(ctx context.Context, d Disk) (extent.Set, error) { return nil, errSoon }

// Reverted reports whether the machine was reverted to a snapshot after since, as far as the server's events tell.
func (v *VM) Reverted(ctx context.Context, since time.Time) (bool, error) { return false, errSoon }

// ReadTicket admits to reading the machine's disks once.
func (v *VM) ReadTicket(ctx context.Context, key int32) (Ticket, error) { return Ticket{}, errSoon }

// WriteTicket admits to reading and writing one disk of the machine once.
func (v *VM) WriteTicket(ctx context.Context, key int32) (Ticket, error) { return Ticket{}, errSoon }

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

// PowerOn starts the machine.
func (v *VM) PowerOn(ctx context.Context) error { return errSoon }

// PowerOff stops the machine at once, as a power cut.
func (v *VM) PowerOff(ctx context.Context) error { return errSoon }

// Shutdown asks the guest to shut down and waits until it is off or ctx ends.
func (v *VM) Shutdown(ctx context.Context) error { return errSoon }

// Destroy deletes the machine and its disks.
func (v *VM) Destroy(ctx context.Context) error { return errSoon }

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

// Journal keeps side effects on vSphere in a state directory, so that they can be undone after a crash.
type Journal struct{}

// OpenJournal opens the journal in dir, which is made when missing.
func OpenJournal(dir string) (*Journal, error) { return nil, errSoon }

// Begin starts an operation. id names its snapshots ("vmkeep-<id>"), empty: a new one; repository is the id of the
// repository that profits. The operation has to be ended.
func (j *Journal) Begin(id, repository string) (*Operation, error) { return nil, errSoon }

// Operation is a run with side effects.
type Operation struct{}

// ID names the operation.
func (o *Operation) ID() string { return "" }

// End gives the operation up: its file disappears when everything was undone, else a recovery may take it.
func (o *Operation) End() error { return errSoon }

// Recover undoes what dead operations left on this server: what the journal knows, and snapshots that carry our mark.
func (c *Client) Recover(ctx context.Context, j *Journal, opts RecoverOptions) (RecoverReport, error) {
	return RecoverReport{}, errSoon
}

// Leftovers lists what Recover would look at. It changes nothing.
func (c *Client) Leftovers(ctx context.Context, j *Journal) ([]Leftover, error) { return nil, errSoon }
