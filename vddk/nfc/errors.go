package nfc

import (
	"errors"
	"fmt"
	"strings"
	"unicode"

	"github.com/vmkeep/vmkeep/vddk"
	"github.com/vmkeep/vmkeep/vddk/nfc/internal/wire"
)

// ErrProtocol is a host that does not speak NFC as far as it is known. The connection is given up.
var ErrProtocol = errors.New("the host breaks the NFC protocol")

// errTicket is a ticket authd does not take: used, expired, or for another host.
var errTicket = errors.New("the host refused the ticket")

// errRandom is a host that left when the handshake began with CLIENTRANDOM, as those before vSphere 7 do.
var errRandom = errors.New("the host refused the handshake")

// errBuffers is a host that left when it was asked for large buffers.
var errBuffers = errors.New("the host refused the session")

// failure is an ERROR of the host: what it said, and the question of package vddk it answers, if any.
type failure struct {
	code uint64
	text string
	kind error
}

func (f *failure) Error() string {
	s := fmt.Sprintf("the host says %q (NFC code %d)", f.text, f.code)
	if f.kind == nil {
		return s
	}
	return fmt.Sprintf("%v: %s", f.kind, s)
}

func (f *failure) Unwrap() error {
	if f.kind == nil {
		return vddk.ErrHost
	}
	return f.kind
}

const maxShown = 400 // characters of a host's text in an error

// newFailure classifies by text, since only the codes 5 and 11 are known; secret is kept out of the text.
func newFailure(code uint64, text, secret string) *failure {
	if secret != "" {
		text = strings.ReplaceAll(text, secret, "...")
	}
	text = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, text)
	text = strings.TrimSpace(text)
	if r := []rune(text); len(r) > maxShown {
		text = string(r[:maxShown]) + "..."
	}
	f := &failure{code: code, text: text}
	has := func(ss ...string) bool {
		for _, s := range ss {
			if strings.Contains(strings.ToLower(text), s) {
				return true
			}
		}
		return false
	}
	switch {
	case has("failed to allocate") || code == wire.CodeMemory && has("memory", "nfc error 5"):
		f.kind = vddk.ErrHostMemory
	case has("failed to lock", "16392", "multiwriter", "locked"):
		f.kind = vddk.ErrLocked
	case has("not enough space", "no space left", "out of space", "insufficient disk space", "disk is full", "disk full"):
		f.kind = vddk.ErrNoSpace
	case code == wire.CodePermission || has("permission", "access denied"):
		f.kind = vddk.ErrPermission
	case has("cannot find", "could not find", "not found", "no such file", "does not exist"):
		f.kind = vddk.ErrNotFound
	}
	return f
}

// remedy says what a reader of err can do about it when opening a disk failed.
func remedy(err error, spec vddk.Spec) string {
	switch {
	case errors.Is(err, vddk.ErrHostMemory):
		return "other backups on this host use up its NFC memory (48 MB through vCenter): run fewer disks at a time or use smaller buffers"
	case errors.Is(err, vddk.ErrLocked) && spec.Write:
		return "power the machine off, and close what else has the disk open: another backup, or a download in the datastore browser"
	case errors.Is(err, vddk.ErrLocked):
		return "open the link below the snapshot, not the running machine's own; another backup or a download in the datastore browser may hold the disk too"
	case errors.Is(err, vddk.ErrPermission) && spec.Write:
		return "the account needs VirtualMachine.Config.DiskLease and VirtualMachine.Provisioning.DiskRandomAccess, and the path must belong to this machine"
	case errors.Is(err, vddk.ErrPermission):
		return "the account needs VirtualMachine.Config.DiskLease and VirtualMachine.Provisioning.DiskRandomRead, and the path must belong to this machine"
	case errors.Is(err, vddk.ErrNoSpace):
		return "free space on the datastore, or choose another"
	case errors.Is(err, vddk.ErrNotFound):
		return "the machine may have moved to another datastore since its configuration was read: try again"
	}
	return ""
}

func withRemedy(err error, spec vddk.Spec) error {
	if r := remedy(err, spec); r != "" {
		return fmt.Errorf("%w; %s", err, r)
	}
	return err
}
