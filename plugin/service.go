// Package plugin is the contract between a host backup application and vmkeep.
//
// A host loads the program vmkeep-plugin with hashicorp/go-plugin and gets a [Service]; the engine behind it
// implements the same interface, so that a caller cannot tell whether it talks to a process or to a package.
// Hosts in other languages speak the protocol in proto/vmkeep/plugin/v1, which this package translates.
//
// Words. A machine is a virtual machine in a vSphere inventory. A point is a recovery point of one machine: what
// is listed and restored; every point is a full one. A disk is named by its place in the machine ("scsi0-0").
// An operation is one long call (backup, restore, check, ...); its events carry a sequence number.
//
// Rules of the contract:
//   - Expected failures are an [*Error]: a stable code, a summary, a detail and a remedy. It survives the wire.
//   - Cancelling the context of a call cancels the operation; the call returns after everything the operation
//     did to vSphere was undone, or written down for [Service.Recover].
//   - emit is called from one goroutine at a time and must not block for long. It is never called after the
//     call returned. A nil emit is allowed.
//   - Sizes and offsets are bytes, times are UTC.
package plugin

import (
	"context"
	"fmt"
	"slices"
)

// Service is everything a host can ask of vmkeep.
type Service interface {
	// Info tells name, versions and capabilities. It needs no configuration and is a host's first call.
	Info(ctx context.Context) (Info, error)
	// Schema describes the fields of [Config], for hosts that build forms from it.
	Schema(ctx context.Context) ([]Field, error)
	// Validate looks at a configuration without using the network and returns what is wrong with it.
	Validate(ctx context.Context, c Config) ([]Diagnostic, error)
	// Configure sets where machines and repository are. Nothing is contacted before the first call needs it.
	Configure(ctx context.Context, c Config) error

	// InitRepository makes the configured repository. It fails with CodeExists where there is one.
	InitRepository(ctx context.Context) (Repository, error)
	// Machines lists the machines that the selection picks, evaluated now.
	Machines(ctx context.Context, s Selection) ([]Machine, error)
	// Backup makes one point of every machine that the request selects. A machine that fails does not stop the
	// others: its result carries the error, and the call returns nil. A call that is cancelled before all machines are
	// done fails, and its report still tells which of them have a point.
	Backup(ctx context.Context, r BackupRequest, emit func(Event)) (BackupReport, error)
	// Points lists recovery points, newest last.
	Points(ctx context.Context, f PointFilter) ([]Point, error)
	// PlanRestore tells what a restore would do and what it could not, without doing anything.
	PlanRestore(ctx context.Context, r RestoreRequest) (RestorePlan, error)
	Restore(ctx context.Context, r RestoreRequest, emit func(Event)) (RestoreReport, error)
	// ReadDisk streams bytes of a point's disk in ascending order. Frames are valid during the call of fn only.
	ReadDisk(ctx context.Context, r ReadDiskRequest, fn func(Frame) error) error

	// Check verifies the repository.
	Check(ctx context.Context, r CheckRequest, emit func(Event)) (CheckReport, error)
	// Verify compares points with the live machines: the audit of changed-block tracking.
	Verify(ctx context.Context, r VerifyRequest, emit func(Event)) (VerifyReport, error)
	// Forget removes points by policy; Prune frees the space that no point needs any more.
	Forget(ctx context.Context, r ForgetRequest) (ForgetReport, error)
	Prune(ctx context.Context, r PruneRequest, emit func(Event)) (PruneReport, error)

	// Stats tells what each machine's points take in the repository.
	Stats(ctx context.Context) (Statistics, error)
	// Unlock removes locks of the repository that dead processes left.
	Unlock(ctx context.Context, r UnlockRequest) (UnlockReport, error)
	// Keys lists the keys of the repository. AddKey makes one with another password, RemoveKey takes one away by its id or
	// the beginning of it, and ChangePassword replaces the one in use: Configure anew afterwards.
	Keys(ctx context.Context) ([]Key, error)
	AddKey(ctx context.Context, r KeyRequest) (Key, error)
	RemoveKey(ctx context.Context, id string) error
	ChangePassword(ctx context.Context, r KeyRequest) (Key, error)
	// RepairIndex makes the index say what the packs hold; RepairPoints gives points that lost chunks a replacement which
	// restores, with zeros for what is lost.
	RepairIndex(ctx context.Context, r RepairIndexRequest, emit func(Event)) (RepairIndexReport, error)
	RepairPoints(ctx context.Context, r RepairPointsRequest, emit func(Event)) (RepairPointsReport, error)

	// ListFiles lists a directory of a guest file system inside a point.
	ListFiles(ctx context.Context, r FileRequest, fn func(File) error) error
	// StatFile describes one file or directory, by itself.
	StatFile(ctx context.Context, r FileRequest) (File, error)
	// ReadFile streams a guest file; holes are frames without data.
	ReadFile(ctx context.Context, r FileRequest, fn func(Frame) error) error
	// TarFiles streams a tar archive of guest files and directories with their metadata.
	TarFiles(ctx context.Context, r FileRequest, fn func([]byte) error) error

	// Recover undoes what interrupted operations left on vSphere. It also runs at the start of every backup.
	Recover(ctx context.Context, emit func(Event)) (RecoverReport, error)
	// Doctor examines the installation and says what to do.
	Doctor(ctx context.Context) ([]Finding, error)
	// Drain stops accepting operations, cancels the running ones and returns when their cleanup is done or ctx
	// ends. A host calls it before it kills the plugin.
	Drain(ctx context.Context) error
}

// Info is what a plugin says of itself.
type Info struct {
	Name         string   // "vmkeep"
	Version      string   // of the program
	APIVersion   string   // of the protocol: "v1"
	Capabilities []string // what this build can do: see the Capability constants
	Transports   []string // known ways to reach disks, in order of preference
}

// Capabilities a host may find in [Info]. A host ignores those that it does not know.
const (
	CapabilityIncremental = "incremental"
	CapabilityRestore     = "restore"
	CapabilityRollback    = "rollback"
	CapabilityReadDisk    = "read-disk"
	CapabilityFiles       = "files"
	CapabilityVerify      = "verify"
	CapabilityKeeping     = "keeping" // Stats, Unlock, keys and repair of the repository
)

// Require fails with CodeUnsupported unless the plugin has the capabilities. A host asks before it relies on one: an RPC that
// a plugin does not know fails likewise, but a field of a request that it does not know is passed over.
func (i Info) Require(capabilities ...string) error {
	for _, c := range capabilities {
		if !slices.Contains(i.Capabilities, c) {
			e := tooOld(fmt.Sprintf("the plugin lacks the capability %q", c), nil)
			e.Object = i.Name + " " + i.Version
			return e
		}
	}
	return nil
}

// Repository identifies a repository.
type Repository struct {
	ID       string // 64 hexadecimal digits
	Version  int    // of the format: 1 or 2
	Location string // without secrets
}

// Selection picks machines at the time of the call. Fields narrow the choice; the zero value picks all machines.
// Patterns are path.Match globs, compared without case.
type Selection struct {
	Names         []string // inventory path, name, managed object id, instanceUuid, or a glob over name or path
	Folders       []string
	Hosts         []string
	Clusters      []string
	ResourcePools []string
	Datastores    []string
	Tags          []string // "category:tag" or "tag"
	Attributes    []string // custom attributes, "name=value"
	PowerStates   []string // poweredOn, poweredOff, suspended
	Exclude       []string // as Names
	Templates     bool     // templates too
}

// Machine is one virtual machine as listed.
type Machine struct {
	ID           string // managed object id
	Name         string
	Path         string // inventory path
	InstanceUUID string
	BIOSUUID     string
	Host         string
	Cluster      string
	Folder       string
	ResourcePool string
	Datastores   []string
	PowerState   string
	GuestOS      string
	HWVersion    string // "vmx-19"
	Template     bool
	ToolsRunning bool
	CBT          bool // change tracking is switched on
	Snapshots    int  // vSphere snapshots present now
	Tags         []string
	Disks        []MachineDisk
}

// MachineDisk is one disk of a listed machine.
type MachineDisk struct {
	Name     string // place in the machine: "scsi0-0"
	Key      int32
	Label    string
	Path     string // datastore path
	UUID     string
	Capacity int64
	Excluded string // why it cannot be backed up; empty: it can
}
