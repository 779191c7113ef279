package plugin

import "time"

// Consistency is what a snapshot guarantees of the guest's data.
type Consistency string

// The quiesce ladder, best first.
const (
	ConsistencyApplication Consistency = "app"   // applications flushed (VSS on Windows)
	ConsistencyFileSystem  Consistency = "fs"    // file systems frozen
	ConsistencyCrash       Consistency = "crash" // as after a power cut
	ConsistencyOff         Consistency = "off"   // the machine was powered off: nothing in flight
)

// BackupRequest asks for one point of every selected machine.
type BackupRequest struct {
	Selection    Selection
	Full         bool // read everything; trust no change tracking
	Quiesce      Quiesce
	QuiesceRules []QuiesceRule // the first that matches a machine stands in for Quiesce
	ExcludeDisks []string      // names, labels or keys of disks, or globs over names
	Unprotected  string        // disks that cannot be backed up: "skip" (default, the result is degraded) or "fail"
	ResetCBT     bool          // switch change tracking off and on again first
	Tags         []string      // added to the points
	Files        *FileSelection
	NoImage      bool   // take no disk image; invalid without Files
	Order        string // which machines begin: "path" (default), "largest", or "oldest": those first whose newest point is oldest
}

// Quiesce is how far down the ladder a backup may go.
type Quiesce struct {
	Best    Consistency   // first try; empty: application
	Worst   Consistency   // last resort; empty: crash. Worse is a failure.
	Timeout time.Duration // of one try; 0: the default of the engine
	VSS     VSS
}

// VSS are options of application consistency on Windows.
type VSS struct {
	Backup   string // "copy" (default: leaves logs and other backups' history alone), "full", "incremental", "differential" or "log"
	Bootable bool   // include the bootable system state
	Partial  bool   // writers may give parts of files
}

// QuiesceRule is how certain machines are quiesced.
type QuiesceRule struct {
	Machine string // inventory path, name, managed object id, instanceUuid, or a glob over name or path
	Quiesce Quiesce
}

// FileSelection picks guest files to store as ordinary files beside, or instead of, the disk image.
type FileSelection struct {
	Volumes  []string // mount points, drive letters, labels or globs; empty: all
	Includes []string // globs over guest paths; empty: all
	Excludes []string
}

// BackupReport is the outcome for all selected machines, in the order they were selected.
type BackupReport struct {
	Operation string
	Machines  []MachineResult
}

// MachineResult is the outcome for one machine: a point, or an error.
type MachineResult struct {
	Machine  Machine
	Point    *Point // nil: no point was made
	Err      *Error
	Warnings []Diagnostic // skipped disks, lower consistency than wished, leftovers: the point is degraded
	Started  time.Time
	Finished time.Time
}

// Degraded reports whether the machine was backed up, but not as asked.
func (r MachineResult) Degraded() bool { return r.Err == nil && len(r.Warnings) > 0 }

// Point is a recovery point of one machine.
type Point struct {
	ID           string // of the restic snapshot
	Repository   string // repository id
	Machine      string // name at that time
	VCenter      string // instanceUuid of the vCenter, or of the host
	InstanceUUID string
	Path         string // inventory path at that time
	Time         time.Time
	Consistency  Consistency
	Tags         []string
	Disks        []PointDisk
	Stats        Stats
	Damage       string // why the point cannot be read, empty when it can
	Chunking     string // rule that its disks were cut into chunks by; known where Disks are
}

// PointDisk is one disk of a point.
type PointDisk struct {
	Name        string // "scsi0-0"
	Label       string
	UUID        string
	Path        string // datastore path at that time
	Capacity    int64
	Incremental bool
	Reason      string // why it was read as it was: "change tracking", "no previous point", "capacity changed", ...
	ChangeID    string
	Transport   string // how it was read
	Read        int64  // bytes read from vSphere
	Changed     int64  // bytes that change tracking reported; 0 for a full read
	Skipped     string // why the disk is not in the point
}

// Stats are the bytes of an operation.
type Stats struct {
	Size     int64 // logical bytes of all disks
	Read     int64 // from vSphere
	Reused   int64 // read from the repository instead of vSphere, or kept without reading
	New      int64 // bytes of chunks not stored before, before compression
	Stored   int64 // bytes the repository grew by
	Duration time.Duration
}

// PointFilter narrows [Service.Points]. Fields combine; the zero value lists all points. What fits no point is no error.
type PointFilter struct {
	Machines []string // names, globs, or instanceUuids
	IDs      []string // ids or prefixes; "latest": the newest of each machine
	Tags     []string
	Since    time.Time
	Until    time.Time
	Details  bool // read each manifest: disks and their reasons
}
