package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/repo"
	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/vddk"
	"github.com/vmkeep/vmkeep/vddk/nfc"
	"github.com/vmkeep/vmkeep/vsphere"
)

// The libraries' vocabulary in the contract's: machines, selections, and above all errors.

func selection(s plugin.Selection) vsphere.Selection {
	out := vsphere.Selection{Names: s.Names, Folders: s.Folders, Hosts: s.Hosts, Clusters: s.Clusters, ResourcePools: s.ResourcePools,
		Datastores: s.Datastores, Tags: s.Tags, Attributes: s.Attributes, Exclude: s.Exclude, Templates: s.Templates}
	for _, p := range s.PowerStates {
		out.Power = append(out.Power, vsphere.PowerState(p))
	}
	return out
}

func machineOf(m vsphere.Machine) plugin.Machine {
	out := plugin.Machine{ID: m.ID, Name: m.Name, Path: m.Path, InstanceUUID: m.InstanceUUID, BIOSUUID: m.BIOSUUID, Host: m.Host,
		Cluster: m.Cluster, Folder: m.Folder, ResourcePool: m.ResourcePool, Datastores: m.Datastores, PowerState: string(m.Power),
		GuestOS: m.GuestOS, HWVersion: m.HWVersion, Template: m.Template, ToolsRunning: m.ToolsRunning, CBT: m.CBT, Snapshots: m.Snapshots, Tags: m.Tags}
	for _, d := range m.Disks {
		out.Disks = append(out.Disks, plugin.MachineDisk{Name: d.Name, Key: d.Key, Label: d.Label, Path: d.Path, UUID: d.UUID, Capacity: d.Capacity, Excluded: d.Unprotected})
	}
	return out
}

func warning(code plugin.Code, summary, detail, remedy string) plugin.Diagnostic {
	return plugin.Diagnostic{Severity: plugin.SeverityWarning, Code: code, Summary: summary, Detail: detail, Remedy: remedy}
}

func invalid(field, summary, remedy string) *plugin.Error {
	return &plugin.Error{Code: plugin.CodeInvalid, Summary: summary, Remedy: remedy, Object: field}
}

func leftoverText(l vsphere.Leftover) string {
	return fmt.Sprintf("%s %s of %s (operation %s)", l.Kind, l.Object, l.Machine, l.Operation)
}

// restoredKey is the entry of a machine's ExtraConfig that a restore leaves in it: change ids of before mean nothing.
const restoredKey = "vmkeep.restored"

// restoredMark reads restoredKey out of a saved ConfigInfo; empty when the machine was never restored.
func restoredMark(config json.RawMessage) string { return extraConfig(config, restoredKey) }

// attachedKey is the entry of a machine's ExtraConfig that lists the uuids of the disks that restores attached to it.
const attachedKey = "vmkeep.attached"

// attachedDisks reads attachedKey out of a saved ConfigInfo.
func attachedDisks(config json.RawMessage) []string {
	return strings.FieldsFunc(extraConfig(config, attachedKey), func(r rune) bool { return r == ',' })
}

// extraConfig reads an entry of the extra configuration out of a saved ConfigInfo; empty when there is none.
func extraConfig(config json.RawMessage, key string) string {
	var c struct {
		ExtraConfig []struct {
			Key   string          `json:"key"`
			Value json.RawMessage `json:"value"`
		} `json:"extraConfig"`
	}
	if json.Unmarshal(config, &c) != nil {
		return ""
	}
	for _, x := range c.ExtraConfig {
		if x.Key != key {
			continue
		}
		var plain string
		var typed struct {
			Value string `json:"_value"`
		}
		if json.Unmarshal(x.Value, &plain) == nil {
			return plain
		}
		if json.Unmarshal(x.Value, &typed) == nil {
			return typed.Value
		}
	}
	return ""
}

// failureOf is failure for work under ctx: what the end of the context caused, whatever its cause is called, is a
// cancellation.
func failureOf(ctx context.Context, err error) error {
	cause := context.Cause(ctx)
	if err == nil || cause == nil || !errors.Is(err, cause) && !errors.Is(err, ctx.Err()) {
		return failure(err)
	}
	return &plugin.Error{Code: plugin.CodeCancelled, Summary: "cancelled", Detail: cause.Error(), Err: err, Remedy: "run it again: what was stored is used again"}
}

// failure puts an error into the contract's form: always a *plugin.Error, or nil.
func failure(err error) error {
	if err == nil {
		return nil
	}
	var done *plugin.Error
	if errors.As(err, &done) {
		if text := err.Error(); text != done.Error() && strings.Contains(text, done.Error()) { // keep what layers above added
			wrapped := *done
			wrapped.Detail = strings.TrimPrefix(strings.Replace(text, done.Summary, "", 1), ": ")
			wrapped.Err = err
			return &wrapped
		}
		return done
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return &plugin.Error{Code: plugin.CodeCancelled, Summary: "cancelled", Detail: err.Error(), Err: err}
	}
	var vs *vsphere.Error
	if errors.As(err, &vs) {
		return vsphereFailure(err, vs)
	}
	var locked *repo.LockedError
	if errors.As(err, &locked) {
		return &plugin.Error{Code: plugin.CodeLocked, Summary: "the repository is locked", Detail: locked.Detail(), Remedy: locked.Remedy(), Err: err}
	}
	for _, rule := range libraryRules() {
		if errors.Is(err, rule.is) {
			return &plugin.Error{Code: rule.code, Summary: rule.summary, Detail: strings.TrimPrefix(err.Error(), rule.summary+": "), Remedy: rule.remedy, Err: err}
		}
	}
	return &plugin.Error{Code: plugin.CodeInternal, Summary: "vmkeep failed in a way it does not know", Detail: err.Error(), Err: err,
		Remedy: "run again with debug logging, and report it"}
}

// vsphereFailure translates an error of package vsphere.
func vsphereFailure(err error, vs *vsphere.Error) *plugin.Error {
	codes := map[error]plugin.Code{
		vsphere.ErrUnreachable: plugin.CodeUnreachable, vsphere.ErrCertificate: plugin.CodeThumbprint, vsphere.ErrLogin: plugin.CodeLogin,
		vsphere.ErrPermission: plugin.CodePermission, vsphere.ErrNotVSphere: plugin.CodeUnreachable, vsphere.ErrNotFound: plugin.CodeMachineNotFound,
		vsphere.ErrAmbiguous: plugin.CodeAmbiguous, vsphere.ErrInvalid: plugin.CodeInvalid, vsphere.ErrChangeTracking: plugin.CodeChangeTracking,
		vsphere.ErrSnapshot: plugin.CodeSnapshot, vsphere.ErrQuiesce: plugin.CodeQuiesce, vsphere.ErrLeftover: plugin.CodeLeftover,
		vsphere.ErrSpace: plugin.CodeSpace, vsphere.ErrExists: plugin.CodeExists, vsphere.ErrUnsuitable: plugin.CodeTargetUnsuitable,
		vsphere.ErrPowerState: plugin.CodeTargetUnsuitable, vsphere.ErrBusy: plugin.CodeSnapshot, vsphere.ErrLicense: plugin.CodeUnsupported,
		vsphere.ErrJournal: plugin.CodeFile, vsphere.ErrLive: plugin.CodeLeftover, vsphere.ErrClosed: plugin.CodeCancelled,
	}
	code, ok := codes[vs.Kind]
	if !ok {
		code = plugin.CodeInternal
	}
	object := vs.Object
	if vs.Privilege != "" {
		object = vs.Privilege
	}
	detail := strings.TrimPrefix(strings.TrimPrefix(vs.Error(), vs.Summary), ": ")
	if vs.Presented != "" {
		detail = strings.TrimPrefix(detail+"; the server shows "+vs.Presented, "; ")
	}
	return &plugin.Error{Code: code, Summary: vs.Summary, Detail: detail, Remedy: vs.Remedy, Object: object, Err: err}
}

type libraryRule struct {
	is      error
	code    plugin.Code
	summary string
	remedy  string
}

func libraryRules() []libraryRule {
	return []libraryRule{
		{repo.ErrWrongPassword, plugin.CodeWrongPassword, "the password does not open the repository", "give the right one: repository.password, RESTIC_PASSWORD or RESTIC_PASSWORD_FILE"},
		{repo.ErrNoRepository, plugin.CodeNoRepository, "there is no repository", "check the location, or make one with `vmkeep init`"},
		{repo.ErrExists, plugin.CodeExists, "there is a repository already", "use it, or choose another location"},
		{repo.ErrUnopenable, plugin.CodeDamaged, "the repository's config or keys are damaged, and nothing opens without them",
			"bring the files config and keys/* back from a copy of the repository, however old: only a new password changes them. The data needs no repair"},
		{repo.ErrDamaged, plugin.CodeDamaged, "the repository is damaged", "see what is lost with `vmkeep-check --read-data`"},
		{syscall.ENOSPC, plugin.CodeSpace, "there is no space left", "free space, or let the repository forget and prune, then run again: what was stored is re-used"},
		{syscall.EDQUOT, plugin.CodeSpace, "the disk quota is used up", "free space, then run again: what was stored is re-used"},
		{repo.ErrNoLock, plugin.CodeInvalid, "the repository is opened without locks: it can only be read", "leave repository.noLock out (--no-lock)"},
		{vddk.ErrPermission, plugin.CodeTransport, "the host refuses the disk", "check the account's privileges with `vmkeep doctor`"},
		{vddk.ErrLocked, plugin.CodeTransport, "the disk is locked by another", "end what else reads it, or wait"},
		{vddk.ErrHostMemory, plugin.CodeTransport, "the host has no memory for another disk session", "lower limits.machinesPerHost"},
		{vddk.ErrNoSpace, plugin.CodeSpace, "the datastore has no space left", "free space on it, or choose another datastore"},
		{vddk.ErrHost, plugin.CodeTransport, "the host refuses to go on with the disk", "look at the host's log (hostd.log, vpxa.log) and its storage, then run again"},
		{nfc.ErrProtocol, plugin.CodeTransport, "the host speaks another protocol than expected", "run again with debug logging, and report it; another transport may do"},
		{vddk.ErrConnectionLost, plugin.CodeTransport, "the connection to the disk was lost", "check the network to port 902 of the host, then run again"},
		{vddk.ErrNotFound, plugin.CodeTransport, "the host does not find the disk", "look at the machine's disks in vSphere"},
		{vddk.ErrUnsupported, plugin.CodeTransport, "no transport reaches the disk", "see the transports' reasons above; `vmkeep doctor` checks ports 443 and 902"},
		{backend.ErrGivenUp, plugin.CodeRepository, "the repository's storage does not answer", "check location, credentials and network, then run again: what was stored is used again"},
		{repo.ErrCannotLock, plugin.CodeRepository, "no lock can be written to the repository",
			"check location and credentials; to read from storage that cannot be written, set repository.noLock (--no-lock)"},
		{backend.ErrReadOnly, plugin.CodeRepository, "the storage refuses to delete", "it is append-only, or the file is under retention: prune from where deleting is allowed"},
		{backend.ErrPermanent, plugin.CodeRepository, "the repository's storage fails", "check location and credentials"},
		{backend.ErrNotExist, plugin.CodeRepository, "a file of the repository is missing", "check the repository: `vmkeep check`"},
		{syscall.ENOTDIR, plugin.CodeFile, "the path leads through a file", "choose another place"},
		{fs.ErrPermission, plugin.CodeFile, "permission denied", "check the owner and mode of the file"},
		{fs.ErrNotExist, plugin.CodeFile, "no such file", "check the path"},
		{fs.ErrExist, plugin.CodeExists, "the file exists already", "choose another place, or force overwriting"},
	}
}
