package vsphere

import "time"

// Level is how consistent a snapshot is.
type Level string

// The levels, best first.
const (
	LevelApplication Level = "app"   // applications flushed: VSS on Windows, custom scripts on Linux
	LevelFileSystem  Level = "fs"    // file systems frozen by VMware Tools
	LevelCrash       Level = "crash" // as after a power cut
	LevelOff         Level = "off"   // the machine was off: nothing in flight
)

// Quiesce is the ladder a snapshot climbs down until a rung holds.
type Quiesce struct {
	Best    Level         // first try; empty: LevelApplication
	Worst   Level         // last resort; empty: LevelCrash. Below it [ErrQuiesce].
	Timeout time.Duration // of one try; 0: 15 minutes
	VSS     VSS           // LevelApplication on Windows
}

// VSS are the options of an application-consistent snapshot of a Windows guest
// (VirtualMachineWindowsQuiesceSpec in the API, from 6.5 on).
type VSS struct {
	Backup      string        // VSS backup type: "full", "copy" (default), "incremental", "differential", "log"
	Bootable    bool          // include the bootable system state
	Partial     bool          // allow writers to be left out
	FreezeLimit time.Duration // how long writers may be frozen; 0: VMware Tools' default
}

// SnapshotOptions asks for a snapshot.
type SnapshotOptions struct {
	Operation *Operation // journal of the side effect; names the snapshot. Required.
	Quiesce   Quiesce
	MinFree   int64              // bytes that every datastore of the machine must have free, before and while the snapshot lives; 0: no guard
	Watch     time.Duration      // distance of looks at the free space while it lives; 0: 30 seconds
	Phase     func(phase string) // told "quiesce app", "snapshot", "remove", "consolidate"; nil: nobody listens
}

// Lowered tells that a level was tried in vain, or not tried.
type Lowered struct {
	From   Level
	Reason string
}

// SnapshotReport is what became of a snapshot.
type SnapshotReport struct {
	ID           string // managed object id; empty: none was taken
	Name         string
	Level        Level     // reached
	Lowered      []Lowered // why not better
	Taken        time.Time // vSphere's clock
	Removed      bool      // seen to be gone
	Consolidated bool      // disks needed consolidation afterwards, and it was done
	Warnings     []string
}

// Snapshot is a snapshot of a machine that lives as long as the function given to [VM.WithSnapshot] runs.
type Snapshot struct {
	vm    *VM
	id    string
	disks []Disk
	state *State
	level Level
	low   []Lowered
	taken time.Time
}

// ID is the managed object id; empty when the machine is read without a snapshot, as templates are.
func (s *Snapshot) ID() string { return s.id }

// Disks are the disks as they are frozen, in the order of their names. Path names the frozen link.
func (s *Snapshot) Disks() []Disk { return s.disks }

// State is the machine at the time of the snapshot; ConfigInfo is the snapshot's own.
func (s *Snapshot) State() *State { return s.state }

// Level is the level reached.
func (s *Snapshot) Level() Level { return s.level }

// Lowered says why the level is not better.
func (s *Snapshot) Lowered() []Lowered { return s.low }

// Taken is when the snapshot was taken, by vSphere's clock.
func (s *Snapshot) Taken() time.Time { return s.taken }
