package vsphere

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/vim25/types"
)

// explain turns what a call returned into an [Error] where it knows what it means; the cause stays in the chain.
func (s *session) explain(method string, err error) error {
	host := s.soap.URL().Host
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	if f := explainFault(method, err); f != nil {
		return f
	}
	switch {
	case fault.Is(err, &types.NotAuthenticated{}):
		return &Error{Kind: ErrLogin, Object: host, Summary: "the vSphere session ends as soon as it begins", Err: plain(err),
			Remedy: "check the clocks and the session limits of the server"}
	case transient(err):
		return &Error{Kind: ErrUnreachable, Object: host, Summary: host + " does not answer", Err: fmt.Errorf("%s: %w", method, err),
			Remedy: "check that the server is up and that port 443 is reachable from here"}
	case httpStatus(err) != 0:
		return &Error{Kind: ErrNotVSphere, Object: host, Summary: fmt.Sprintf("%s does not speak the vSphere API at this URL", host),
			Err: fmt.Errorf("%s: %w", method, err), Remedy: "check the URL; it usually ends in /sdk"}
	}
	return fmt.Errorf("%s: %w", method, plain(err))
}

// explainFault knows the faults whose remedy does not depend on what was being done.
func explainFault(what string, err error) *Error {
	var noPerm *types.NoPermission
	var inUse *types.ResourceInUse
	var name *types.DuplicateName
	var invalidState *types.InvalidPowerState
	switch {
	case fault.Is(err, &types.InvalidLogin{}):
		return &Error{Kind: ErrLogin, Summary: "vSphere refuses the user name or the password", Err: plain(err),
			Remedy: "check the user (with its domain, user@vsphere.local), the password, and whether the account is locked"}
	case asFault(err, &noPerm):
		obj := ""
		if noPerm.Object != nil {
			obj = noPerm.Object.String()
		}
		return &Error{Kind: ErrPermission, Privilege: noPerm.PrivilegeId, Object: obj, Err: plain(err),
			Summary: fmt.Sprintf("%s: the account lacks the privilege %s%s", what, orText(noPerm.PrivilegeId, "(not named)"), onText(obj)),
			Remedy:  "give the account a role that has it; vmkeep doctor prints the role that is needed"}
	case fault.Is(err, &types.RestrictedVersion{}), fault.Is(err, &types.RestrictedByAdministrator{}), fault.Is(err, &types.LicenseRestricted{}):
		return &Error{Kind: ErrLicense, Summary: what + ": the host's licence or version does not allow it", Err: plain(err),
			Remedy: "the free ESXi licence closes the API for writing: use a vCenter or a licence that opens it"}
	case asFault(err, &name):
		return &Error{Kind: ErrExists, Object: name.Name, Summary: fmt.Sprintf("%s: the name %q is taken", what, name.Name), Err: plain(err),
			Remedy: "choose another name"}
	case asFault(err, &invalidState):
		return &Error{Kind: ErrPowerState, Summary: fmt.Sprintf("%s: the machine is %s", what, invalidState.ExistingState), Err: plain(err),
			Remedy: "change the machine's power state"}
	case fault.Is(err, &types.NoDiskSpace{}):
		return &Error{Kind: ErrSpace, Summary: what + ": a datastore is full", Err: plain(err), Remedy: "free space on the datastore"}
	case fault.Is(err, &types.FileAlreadyExists{}):
		return &Error{Kind: ErrExists, Summary: what + ": a file is there already", Err: plain(err), Remedy: "remove it or choose another name"}
	case fault.Is(err, &types.ManagedObjectNotFound{}):
		return &Error{Kind: ErrNotFound, Summary: what + ": the object is gone", Err: plain(err), Remedy: "it was removed meanwhile: list again"}
	case fault.Is(err, &types.TaskInProgress{}):
		return &Error{Kind: ErrBusy, Summary: what + ": another task is in progress", Err: plain(err), Remedy: "wait for it and repeat"}
	case asFault(err, &inUse):
		return &Error{Kind: ErrBusy, Object: inUse.Name, Summary: fmt.Sprintf("%s: %s is in use", what, inUse.Name), Err: plain(err), Remedy: "wait until it is free"}
	}
	return nil
}

// asFault finds a fault of exactly target's type in err's tree. Faults come as values or as pointers, in calls,
// tasks and missing sets; fault.As settles that.
func asFault[F types.BaseMethodFault](err error, target *F) bool {
	_, ok := fault.As(err, target)
	return ok
}

// plainError shows a fault with its type and without the SOAP prefix ("ServerFaultCode: "), and keeps the chain.
type plainError struct {
	text string
	err  error
}

func (e plainError) Error() string { return e.text }
func (e plainError) Unwrap() error { return e.err }

func plain(err error) error {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	text := strings.TrimPrefix(err.Error(), "ServerFaultCode: ")
	var kind string
	var details []string
	fault.In(err, func(f types.BaseMethodFault, _ string, msgs []types.LocalizableMessage) bool {
		if kind == "" {
			t := reflect.TypeOf(f)
			for t.Kind() == reflect.Pointer {
				t = t.Elem()
			}
			kind = t.Name()
		}
		for _, m := range msgs {
			if m.Message != "" {
				details = append(details, m.Message)
			} else if m.Key != "" {
				details = append(details, m.Key)
			}
		}
		return false
	})
	if kind != "" && !strings.Contains(text, kind) {
		text = strings.TrimSuffix(kind+": "+text, ": ")
	}
	for _, d := range details {
		if !strings.Contains(text, d) {
			text += "; " + d
		}
	}
	return plainError{text, err}
}

func orText(s, instead string) string {
	if s == "" {
		return instead
	}
	return s
}

func onText(object string) string {
	if object == "" {
		return ""
	}
	return " on " + object
}

// isFault reports whether the server answered, with a fault. Anything else leaves open whether it did what it was
// asked.
func isFault(err error) bool {
	var f types.BaseMethodFault
	_, ok := fault.As(err, &f)
	return ok
}

// isUnsupported reports whether the server does not know the call at all.
func isUnsupported(err error) bool {
	return fault.Is(err, &types.MethodNotFound{}) || fault.Is(err, &types.NotSupported{}) || fault.Is(err, &types.InvalidRequest{}) || fault.Is(err, &types.NotImplemented{})
}
