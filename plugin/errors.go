package plugin

import (
	"context"
	"errors"
	"strings"
)

// Code is a stable name for a kind of failure. Codes are never renamed; unknown ones mean CodeInternal to a host.
type Code string

// The codes.
const (
	CodeInternal         Code = "internal"          // a defect in vmkeep
	CodeInvalid          Code = "invalid"           // the request or the configuration makes no sense
	CodeNotConfigured    Code = "not-configured"    // Configure was not called, or lacks what the call needs
	CodeCancelled        Code = "cancelled"         // by the host, or a signal
	CodeUnreachable      Code = "unreachable"       // vSphere does not answer
	CodeThumbprint       Code = "thumbprint"        // vSphere's certificate is not the expected one
	CodeLogin            Code = "login"             // vSphere refuses user or password
	CodePermission       Code = "permission"        // a privilege is missing; Object names it
	CodeMachineNotFound  Code = "machine-not-found" // no machine matches
	CodeAmbiguous        Code = "ambiguous"         // several things match
	CodeSnapshot         Code = "snapshot"          // vSphere cannot take or remove the snapshot
	CodeQuiesce          Code = "quiesce"           // the guest could not be quiesced as demanded
	CodeTransport        Code = "transport"         // no transport reaches a disk, or it broke off
	CodeUnprotected      Code = "unprotected"       // a disk cannot be backed up by its nature
	CodeSpace            Code = "space"             // a datastore or the repository is full
	CodeNoRepository     Code = "no-repository"
	CodeWrongPassword    Code = "wrong-password" // of the repository
	CodeLocked           Code = "locked"         // the repository is locked by another
	CodeDamaged          Code = "damaged"        // the repository lost or falsified data
	CodeRepository       Code = "repository"     // its storage fails
	CodeExists           Code = "exists"         // what should be made is there already
	CodePointNotFound    Code = "point-not-found"
	CodeTargetUnsuitable Code = "target-unsuitable" // restore target too small, powered on, unmapped
	CodeFile             Code = "file"              // a local or guest file
	CodeDifferent        Code = "different"         // verification found differing bytes
	CodeChangeTracking   Code = "change-tracking"   // cannot be switched on, or is not to be trusted
	CodeLeftover         Code = "leftover"          // a trace on vSphere could not be removed
	CodeDegraded         Code = "degraded"          // done, but not as asked
	CodeUnsupported      Code = "unsupported"
)

// Error is an expected failure. It crosses the wire unchanged, except for Err.
type Error struct {
	Code    Code
	Summary string // one line, what failed
	Detail  string // why
	Remedy  string // what to do
	Object  string // machine, disk, file, privilege or field it is about
	Err     error  // the cause, in the process where it happened
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Summary)
	if e.Detail != "" {
		b.WriteString(": " + e.Detail)
	}
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }

// Is makes errors.Is(err, &Error{Code: c}) ask for the code, and context.Canceled for a cancelled operation,
// on both sides of the wire.
func (e *Error) Is(target error) bool {
	if target == context.Canceled {
		return e.Code == CodeCancelled
	}
	t, ok := target.(*Error)
	return ok && t.Code == e.Code && t.Summary == "" && t.Detail == ""
}

// Diagnostic is the error as a diagnostic.
func (e *Error) Diagnostic() Diagnostic {
	return Diagnostic{Severity: SeverityError, Code: e.Code, Summary: e.Summary, Detail: e.Detail, Remedy: e.Remedy, Object: e.Object}
}

// CodeOf is the code of the first [*Error] in err's chain; CodeCancelled for a cancelled context, CodeInternal for
// anything else, and empty for nil.
func CodeOf(err error) Code {
	var e *Error
	switch {
	case err == nil:
		return ""
	case errors.As(err, &e):
		return e.Code
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return CodeCancelled
	}
	return CodeInternal
}
