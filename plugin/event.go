package plugin

import "time"

// EventKind tells which part of an [Event] is filled.
type EventKind string

// The kinds of event.
const (
	EventPhase      EventKind = "phase"      // a machine or disk entered Phase
	EventProgress   EventKind = "progress"   // Progress holds the present figures; at most a few times a second
	EventDiagnostic EventKind = "diagnostic" // Diagnostic holds something worth knowing
	EventResult     EventKind = "result"     // the machine is done; Result holds its outcome
)

// Event tells a host how an operation goes on.
type Event struct {
	Seq        uint64 // ascends within the operation; a gap means figures of progress that newer ones superseded
	Time       time.Time
	Operation  string
	Machine    string // name; empty: the operation as a whole
	Disk       string // "scsi0-0"; empty: the machine as a whole
	Kind       EventKind
	Phase      Phase
	Progress   *Progress
	Diagnostic *Diagnostic
	Result     *MachineResult
}

// Phase is what is being done. Phases are added over time: a host shows those that it does not know as they are.
type Phase string

// The phases, in the order in which operations pass them.
const (
	// Backup, and the audit, which reads only.
	PhasePrepare       Phase = "prepare" // previous point, change tracking
	PhaseResetTracking Phase = "reset change tracking"
	PhaseSnapshot      Phase = "snapshot"    // vSphere takes the snapshot
	PhaseRead          Phase = "read"        // disks
	PhaseFiles         Phase = "files"       // of the guest
	PhaseAudit         Phase = "audit"       // what change tracking calls unchanged
	PhaseRemove        Phase = "remove"      // vSphere removes the snapshot
	PhaseConsolidate   Phase = "consolidate" // vSphere merges what the removal left
	PhaseStore         Phase = "store"       // the point is written

	// Backup and restore: the machine's disks together. Its Progress counts bytes that are moved, in all passes over all
	// disks, and none of what is empty, unchanged or already right; its ETA is the end of that.
	PhaseDisks Phase = "all disks"

	// Restore.
	PhasePlan     Phase = "plan"
	PhaseCreate   Phase = "create" // the machine
	PhasePowerOff Phase = "power off"
	PhaseCompare  Phase = "compare" // what is there with the point
	PhaseRestore  Phase = "restore"
	PhaseVerify   Phase = "verify"
	PhasePowerOn  Phase = "power on"

	// Check and repair of the index.
	PhaseSnapshots Phase = "snapshots"
	PhaseIndex     Phase = "index" // also of Prune
	PhasePacks     Phase = "packs"
	PhaseTrees     Phase = "trees"
	PhaseData      Phase = "data"
	PhaseDamage    Phase = "damage" // which points it hits

	// Prune, and repair of points.
	PhaseScan   Phase = "scan"
	PhaseRepack Phase = "repack"
	PhaseDelete Phase = "delete"
	PhaseRepair Phase = "repair"
)

// Progress is how far an operation, a machine or a disk is. Totals may grow while more becomes known.
type Progress struct {
	Done, Total int64         // bytes of work: logical bytes passed, of all
	Read        int64         // bytes read from the source
	Stored      int64         // bytes written to the repository or the target
	ETA         time.Duration // 0: not known
}

// Severity of a [Diagnostic].
type Severity string

// Severities.
const (
	SeverityInfo    Severity = "info"
	SeverityWarning Severity = "warning"
	SeverityError   Severity = "error"
)

// Diagnostic is something a person should know, with a code for programs.
type Diagnostic struct {
	Severity Severity
	Code     Code
	Summary  string
	Detail   string
	Remedy   string
	Object   string // machine, disk, file or configuration field it is about
}
