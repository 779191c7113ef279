package vsphere

import (
	"errors"
	"fmt"
	"strings"
)

// Questions a caller asks of an error of this package. [Error] answers them through errors.Is.
var (
	ErrUnreachable    = errors.New("vSphere does not answer")
	ErrCertificate    = errors.New("vSphere's certificate is not the expected one")
	ErrLogin          = errors.New("vSphere refuses user or password")
	ErrPermission     = errors.New("a privilege is missing")
	ErrNotVSphere     = errors.New("not a vCenter or ESXi server")
	ErrNotFound       = errors.New("no such object")
	ErrAmbiguous      = errors.New("several objects match")
	ErrInvalid        = errors.New("the request makes no sense")
	ErrChangeTracking = errors.New("change tracking cannot be used") // see also [ChangeTrackingError]
	ErrSnapshot       = errors.New("the snapshot cannot be taken")
	ErrQuiesce        = errors.New("the guest cannot be quiesced as demanded")
	ErrLeftover       = errors.New("a trace on vSphere could not be removed")
	ErrSpace          = errors.New("a datastore is short of space")
	ErrExists         = errors.New("the object exists already")
	ErrUnsuitable     = errors.New("the target is not suitable")
	ErrPowerState     = errors.New("the machine's power state does not allow it")
	ErrBusy           = errors.New("another task is in progress on the machine")
	ErrLicense        = errors.New("the host's licence does not allow it")
	ErrJournal        = errors.New("the journal cannot be written")
	ErrLive           = errors.New("the operation is alive")
	ErrClosed         = errors.New("the client is closed")
)

// Error is an expected failure and what to do about it. It never holds a secret.
type Error struct {
	Kind       error    // one of the Err values above
	Summary    string   // one line: what failed
	Object     string   // the machine, disk, datastore, host or address it is about
	Privilege  string   // ErrPermission: the missing privilege's id
	Presented  string   // ErrCertificate: SHA-256 thumbprint that the server showed
	Candidates []string // ErrNotFound, ErrAmbiguous, ErrUnsuitable: what could have been meant
	Remedy     string   // what to do
	Err        error    // the cause; may be nil
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Summary)
	if e.Err != nil {
		fmt.Fprintf(&b, ": %v", e.Err)
	}
	if len(e.Candidates) > 0 {
		const show = 10
		c := e.Candidates
		more := ""
		if len(c) > show {
			c, more = c[:show], fmt.Sprintf(" and %d more", len(e.Candidates)-show)
		}
		fmt.Fprintf(&b, " (candidates: %s%s)", strings.Join(c, ", "), more)
	}
	return b.String()
}

// Is reports whether the error is of the kind target.
func (e *Error) Is(target error) bool { return target == e.Kind }

func (e *Error) Unwrap() error { return e.Err }

// ChangeTrackingError says why a disk's changes cannot be told: read the whole disk this time, and take the new
// change id as the baseline. errors.Is(err, ErrChangeTracking) holds.
type ChangeTrackingError struct {
	Reason string // one of the Reason constants
	Disk   string // "scsi0-0"
	Err    error  // vSphere's own words; may be nil
}

// Why change tracking cannot answer.
const (
	ReasonOff           = "change tracking is off"
	ReasonNoChangeID    = "the snapshot has no change id for the disk"
	ReasonUntracked     = "the disk cannot be tracked"
	ReasonRestarted     = "tracking restarted"            // the tracking UUID differs: history is lost
	ReasonRewound       = "tracking went backwards"       // the sequence is older than the baseline: a revert
	ReasonMalformed     = "the change id is malformed"    //
	ReasonInconsistent  = "the answer contradicts itself" // echo, lengths or bounds are wrong
	ReasonRefused       = "the query was refused"         // any other fault
	ReasonNoSnapshot    = "the machine was read without a snapshot"
	ReasonNoAllocations = "allocated areas are not known" // "*" is not supported by this datastore
)

func (e *ChangeTrackingError) Error() string {
	s := e.Disk + ": " + e.Reason
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Is makes every ChangeTrackingError an [ErrChangeTracking].
func (e *ChangeTrackingError) Is(target error) bool { return target == ErrChangeTracking }

func (e *ChangeTrackingError) Unwrap() error { return e.Err }
