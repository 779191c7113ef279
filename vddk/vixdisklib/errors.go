package vixdisklib

import (
	"fmt"
	"strings"
	"unicode"

	"github.com/vmkeep/vmkeep/vddk"
)

// Error is a failure the library told of.
type Error struct {
	Call   string // function of the library
	Code   uint64 // as given; the low 16 bits are the number VMware documents
	Text   string // of the library, without secrets
	Remedy string // empty: none is known
	kind   error
}

func (e *Error) Error() string {
	s := fmt.Sprintf("%s: %s (code %d)", e.Call, e.Text, e.Code&0xffff)
	if e.kind != nil {
		s = fmt.Sprintf("%v: %s", e.kind, s)
	}
	if e.Remedy != "" {
		s += "; " + e.Remedy
	}
	return s
}

// Unwrap is the question of package vddk the error answers, if any.
func (e *Error) Unwrap() error { return e.kind }

const maxText = 400 // characters of the library's text in an error

// newError classifies a code. Numbers and meanings: VDDK programming guide, "Virtual Disk API Errors".
func newError(call string, code uint64, text string) *Error {
	text = strings.TrimSpace(strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, text))
	if r := []rune(text); len(r) > maxText {
		text = string(r[:maxText]) + "..."
	}
	e := &Error{Call: call, Code: code, Text: text}
	switch code & 0xffff {
	case 1:
		e.Remedy = "the library gives this code also for a wrong thumbprint and for too many connections to a host: compare the thumbprint, and look at the log above"
	case 2:
		e.kind, e.Remedy = vddk.ErrHostMemory, "other backups on this host use up its memory for disk connections: run fewer disks at a time"
	case 4:
		e.kind, e.Remedy = vddk.ErrNotFound, "the machine may have moved to another datastore since its configuration was read: try again"
	case 4000:
		e.kind, e.Remedy = vddk.ErrNotFound, "the machine's id belongs to another server: log in where it was read"
	case 5, 31:
		e.kind, e.Remedy = vddk.ErrLocked, "the library is busy with the machine or the disk for somebody else: try again when other backups of the machine have ended"
	case 24, 1000, 1002, 16007, 26000:
		e.Remedy = "vmkeep has used the library wrongly: please report it, with the log"
	case 6, 16053:
		e.kind, e.Remedy = vddk.ErrUnsupported, "see whether the library is complete: vmkeep doctor --vddk"
	case 8:
		e.kind = vddk.ErrNoSpace
	case 11:
		e.kind = vddk.ErrReadOnly
	case 13, 3014:
		e.kind, e.Remedy = vddk.ErrPermission, "the account needs VirtualMachine.Provisioning.DiskRandomRead (DiskRandomAccess to write) and VirtualMachine.Config.DiskLease; for hotadd the proxy needs a free SCSI place"
	case 15, 13014:
		e.kind, e.Remedy = vddk.ErrLocked, "another backup, a download, or the running machine itself holds the disk"
	case 14009:
		e.kind, e.Remedy = vddk.ErrConnectionLost, "port 902 of the ESXi host must be reachable from here, also when vCenter is"
	case 26, 34, 36, 14008, 14010, 14011, 16054, 18000:
		e.kind = vddk.ErrConnectionLost
	case 30, 16014, 16017, 16052:
		e.kind, e.Remedy = vddk.ErrUnsupported, "the disk is encrypted, and its key is not to be had this way"
	case 32, 16064:
		e.kind, e.Remedy = vddk.ErrUnsupported, "the host's licence does not allow backup: free ESXi has none"
	case 3046:
		e.Remedy = "too many sessions: end some, or log in with a session that exists"
	}
	if strings.Contains(text, "16392") || strings.Contains(strings.ToLower(text), "failed to lock") {
		e.kind = vddk.ErrLocked
	}
	return e
}
