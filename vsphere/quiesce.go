package vsphere

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/vim25/types"
)

// Level is how consistent a snapshot is.
type Level string

// The levels, best first.
const (
	LevelApplication Level = "app"   // applications flushed, by VSS on Windows
	LevelFileSystem  Level = "fs"    // file systems frozen by VMware Tools, with the guest's own freeze scripts
	LevelCrash       Level = "crash" // as after a power cut
	LevelOff         Level = "off"   // the machine was off: nothing in flight
)

// Quiesce is the ladder a snapshot climbs down until a rung holds.
type Quiesce struct {
	Best    Level         // first try; empty: LevelApplication
	Worst   Level         // last resort; empty: LevelCrash. Below it [ErrQuiesce]. A machine that is off satisfies any.
	Timeout time.Duration // of one try; 0: 15 minutes
	VSS     VSS           // LevelApplication on Windows
}

// VSS are the options of an application-consistent snapshot of a Windows guest (VirtualMachineWindowsQuiesceSpec in
// the API, from 6.5 on).
type VSS struct {
	Backup   string // VSS backup type: "copy" (default: leaves logs and the history of other backups alone), "full", "incremental", "differential", "log"
	Bootable bool   // include the bootable system state
	Partial  bool   // support partial files
}

// vssTypes are the values of VSS_BACKUP_TYPE in the Windows SDK (vss.h).
func vssTypes() map[string]int32 {
	return map[string]int32{"full": 1, "incremental": 2, "differential": 3, "log": 4, "copy": 5, "": 5}
}

// ladder lists the levels to try, best first.
func (q Quiesce) ladder() ([]Level, error) {
	all := []Level{LevelApplication, LevelFileSystem, LevelCrash}
	best, worst := Level(orText(string(q.Best), string(LevelApplication))), Level(orText(string(q.Worst), string(LevelCrash)))
	i, j := slices.Index(all, best), slices.Index(all, worst)
	for at, level := range map[int]Level{i: best, j: worst} {
		if at < 0 {
			return nil, &Error{Kind: ErrInvalid, Object: string(level), Summary: fmt.Sprintf("there is no consistency %q", level),
				Remedy: "use app (applications and file systems are quiesced), fs (file systems) or crash (nothing is)"}
		}
	}
	if i > j {
		return nil, &Error{Kind: ErrInvalid, Summary: fmt.Sprintf("%s is tried first and is worse than %s, the least that is asked for", best, worst), Remedy: "ask for less, or try a better one first: app, fs, crash"}
	}
	if _, ok := vssTypes()[q.VSS.Backup]; !ok {
		return nil, &Error{Kind: ErrInvalid, Object: q.VSS.Backup, Summary: fmt.Sprintf("no VSS backup type %q", q.VSS.Backup), Remedy: "use copy, full, incremental, differential or log"}
	}
	return all[i : j+1], nil
}

// Validate says whether the ladder makes sense; the error is an [ErrInvalid].
func (q Quiesce) Validate() error {
	_, err := q.ladder()
	return err
}

func (q Quiesce) timeout() time.Duration { return orDuration(q.Timeout, 15*time.Minute) }

// vss is the specification of a quiesced snapshot of a Windows guest. Without the writers' consent, a file share
// backup, VSS still flushes and freezes the file systems.
func (q Quiesce) vss(level Level) *types.VirtualMachineWindowsQuiesceSpec {
	minutes := int32((q.timeout() + time.Minute - 1) / time.Minute)
	s := &types.VirtualMachineWindowsQuiesceSpec{
		VirtualMachineGuestQuiesceSpec: types.VirtualMachineGuestQuiesceSpec{Timeout: min(max(minutes, 5), 240)}, // the API's bounds
		VssBackupContext:               string(types.VirtualMachineWindowsQuiesceSpecVssBackupContextCtx_file_share_backup),
		VssBackupType:                  vssTypes()[q.VSS.Backup],
		VssBootableSystemState:         &q.VSS.Bootable,
		VssPartialFileSupport:          &q.VSS.Partial,
	}
	if level == LevelApplication {
		s.VssBackupContext = string(types.VirtualMachineWindowsQuiesceSpecVssBackupContextCtx_auto)
	}
	return s
}

func windowsGuest(s *State) bool { return strings.HasPrefix(strings.ToLower(s.GuestID), "win") }

// unfit says why a level need not be tried on the machine, and whether that is in the machine's nature.
func unfit(level Level, s *State) (reason string, natural bool) {
	switch {
	case level == LevelCrash || s.Power == PoweredOff:
		return "", false // a machine that is off satisfies every level
	case s.Power == Suspended:
		return "the machine is suspended: its file systems cannot be frozen", true
	case !s.ToolsRunning:
		return "VMware Tools do not run in the guest", false
	case level == LevelFileSystem:
		return "", false
	case !windowsGuest(s):
		return "application quiescing is VSS, which is Windows'; freeze scripts of the guest run at the next level", true
	case s.Encrypted || s.VTPM:
		return "vSphere does not quiesce applications of encrypted machines, and every machine with a virtual TPM is one", false
	}
	return "", false
}

// quiesceMayBeGuilty reports whether a failed quiesced snapshot may work with less quiescing. vSphere has faults of
// its own for that, but tells it with general ones as often; so everything counts but what certainly has other causes.
func quiesceMayBeGuilty(err error) bool {
	for _, kind := range []error{ErrPermission, ErrLicense, ErrNotFound, ErrSpace, ErrBusy, ErrLogin, ErrUnreachable, ErrCertificate, ErrClosed,
		context.Canceled} {
		if errors.Is(err, kind) {
			return false
		}
	}
	for _, f := range []types.BaseMethodFault{&types.TooManySnapshotLevels{}, &types.SnapshotDisabled{}, &types.SnapshotLocked{}, &types.MultipleSnapshotsNotSupported{},
		&types.SnapshotIncompatibleDeviceInVm{}, &types.NoDiskSpace{}} {
		if fault.Is(err, f) {
			return false
		}
	}
	return true
}

// guard fails when a datastore that the snapshot will grow on has less room than least demands of it: the datastores
// of the disks, where the deltas go, and of the home. Others, of an ISO image for example, do not matter.
func (v *VM) guard(ctx context.Context, live *State, least func(Datastore) int64) error {
	if least == nil {
		return nil
	}
	grows := []string{datastoreOf(live.VMX)}
	for _, d := range live.Disks {
		if d.Unprotected == "" {
			grows = append(grows, d.Datastore)
		}
	}
	vm, err := v.read(ctx, "datastore")
	if err != nil {
		return err
	}
	list, err := v.c.spaces(ctx, vm.Datastore)
	if err != nil {
		return err
	}
	for _, d := range list {
		if need := least(d); d.Free < need && slices.Contains(grows, d.Name) {
			return &Error{Kind: ErrSpace, Object: d.Name, Summary: fmt.Sprintf("datastore %s of machine %s has %d MiB free, less than the %d MiB demanded", d.Name, v.label(), d.Free>>20, need>>20),
				Remedy: "free space on the datastore, or lower the limit: a full datastore stops every machine on it"}
		}
	}
	return nil
}

// watch ends the returned context when a datastore runs short of space while the snapshot lives and its delta grows.
func (v *VM) watch(ctx context.Context, live *State, opts SnapshotOptions) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	if opts.MinFree == nil {
		return ctx, func() { cancel(nil) }
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for sleep(ctx, orDuration(opts.Watch, 30*time.Second)) == nil {
			if err := v.guard(ctx, live, opts.MinFree); errors.Is(err, ErrSpace) {
				cancel(err)
			} else if err != nil && ctx.Err() == nil {
				v.c.log.Warn("free space not known", "machine", v.label(), "error", err)
			}
		}
	}()
	return ctx, func() {
		cancel(nil)
		<-done
	}
}
