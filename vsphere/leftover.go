package vsphere

import "time"

// Leftover is a trace of vmkeep on vSphere, or in the journal.
type Leftover struct {
	Kind      EntryKind
	Operation string
	Machine   string // inventory path or name
	MachineID string
	Object    string // snapshot id, disk path, method name
	Host      string // host name of the vmkeep that made it
	Since     time.Time
	Live      string // why it is left alone: its operation runs, or belongs to another installation; empty: it may be removed
}

// RecoverOptions bound what is removed.
type RecoverOptions struct {
	// Others removes also snapshots that other installations (another host or state directory) left, once they are
	// older. 0: never; they are reported.
	Others time.Duration
}

// RecoverReport is what a recovery did.
type RecoverReport struct {
	Undone []Leftover
	Kept   []Leftover // alive or another's
	Failed []FailedLeftover
}

// FailedLeftover could not be removed now.
type FailedLeftover struct {
	Leftover
	Err error
}
