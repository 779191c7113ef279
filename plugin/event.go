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
	Phase      string // "snapshot", "read", "consolidate", "upload", "restore", "verify", ...
	Progress   *Progress
	Diagnostic *Diagnostic
	Result     *MachineResult
}

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
