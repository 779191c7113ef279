package engine

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"github.com/vmkeep/vmkeep/vsphere"
)

// A change id is trusted only with a matching trust record: what the previous point says of the disk, and what
// vSphere says of it now (DESIGN section 5). Everything else is read in full. The reasons below are what hosts,
// manifests and people see.
const (
	reasonTracked    = "change tracking"
	reasonRequested  = "full requested"
	reasonFirst      = "no previous point"
	reasonNewDisk    = "disk is new in this machine"
	reasonSuspect    = "an audit found a difference"
	reasonRestored   = "restored"
	reasonCapacity   = "capacity changed"
	reasonMoved      = "disk moved to another file"
	reasonReverted   = "reverted"
	reasonNoEvents   = "reverts cannot be ruled out: " // and why
	reasonSnapshots  = "snapshots of others changed"
	reasonNoPrevID   = "previous point has no change id"
	reasonNotTracked = "change tracking is not active on this disk"
	reasonRestarted  = "tracking restarted"
	reasonUnreadable = "previous point is damaged"
	reasonRepaired   = "previous point was repaired"
	reasonChunking   = "chunking changed" // what change tracking says holds, but no old chunk may be kept
)

// diskFacts is what vSphere says of a disk now, in the snapshot that is about to be read.
type diskFacts struct {
	name     string // "scsi0-0"
	uuid     string
	capacity int64
	changeID string   // empty: not tracked
	chain    []string // datastore paths from the frozen link down to the base
}

// machineFacts is what vSphere says of the machine now.
type machineFacts struct {
	restored  string
	attached  []string // uuids of disks that a restore attached
	snapshots []string // ids of snapshots that are not ours, sorted
	suspects  []string // uuids of disks that an audit found to differ
	reverts   string   // why the machine may have gone back to a snapshot since the previous point; empty: it did not
}

// revertsSince asks vSphere's events whether the machine went back to a snapshot since a point, and returns a reason
// or nothing. Change ids do not tell: after a revert they go on from the snapshot's, and one from before is accepted
// and answered with too little as soon as the sequence has caught up.
//
// Where the events cannot tell - they were purged, or the server is an ESXi host, which keeps few - what matters is whether
// there was a snapshot to go back to: without one the machine cannot have gone back to before the point. Going back to
// after it loses only changes of after that, which are no changes since the point any more.
func revertsSince(ctx context.Context, vm *vsphere.VM, point *manifest) (string, error) {
	yes, err := vm.Reverted(ctx, vsphere.Freeze{Begun: point.Begun, Done: point.Frozen})
	switch {
	case err == nil && yes:
		return reasonReverted, nil
	case err == nil:
		return "", nil
	case ctx.Err() != nil:
		return "", context.Cause(ctx)
	case len(point.Machine.Snapshots) == 0:
		return "", nil
	}
	return reasonNoEvents + err.Error(), nil
}

// verdict is how a disk will be read.
type verdict struct {
	since  string // change id to ask for; empty: read in full
	reason string
	old    *manifestDisk // the previous point's record; nil for a full read
}

// judge decides how to read a disk. prev is nil when there is no previous point.
//
// The rules are ordered from the plainest to the subtlest, so that the reason given is the one that a person
// would give.
func judge(now diskFacts, machine machineFacts, prev *manifest) verdict {
	full := func(reason string) verdict { return verdict{reason: reason} }
	switch {
	case prev == nil && machine.restored != "":
		return full(reasonRestored)
	case prev == nil:
		return full(reasonFirst)
	case machine.restored != prev.Machine.Restored:
		return full(reasonRestored)
	}
	i := slices.IndexFunc(prev.Disks, func(d manifestDisk) bool { return d.UUID == now.uuid && d.UUID != "" })
	switch {
	case i < 0 && now.uuid != "" && slices.Contains(machine.attached, now.uuid):
		return full(reasonRestored)
	case i < 0 || prev.Disks[i].Skipped != "":
		return full(reasonNewDisk)
	}
	old := &prev.Disks[i]
	switch {
	case slices.Contains(machine.suspects, now.uuid):
		return full(reasonSuspect)
	case old.Capacity != now.capacity:
		return full(reasonCapacity)
	case now.changeID == "":
		return full(reasonNotTracked)
	case old.ChangeID == "":
		return full(reasonNoPrevID)
	}
	was, wasSeq := splitChangeID(old.ChangeID)
	is, isSeq := splitChangeID(now.changeID)
	switch {
	case was != is:
		return full(reasonRestarted)
	case isSeq <= wasSeq: // every snapshot has a change id of its own
		return full(reasonReverted)
	case machine.reverts != "":
		return full(machine.reverts)
	}
	if reason := chainChanged(old.Chain, now.chain); reason != "" {
		return full(reason)
	}
	if !slices.Equal(prev.Machine.Snapshots, machine.snapshots) {
		// A snapshot that came and was reverted to looks like one that only came. Change tracking has been
		// seen to miss blocks after a revert (gestaltit.com, "Pre-existing Snapshot Could Cause Inconsistent
		// Incrementals"), so neither is trusted.
		return full(reasonSnapshots)
	}
	return verdict{since: old.ChangeID, reason: reasonTracked, old: old}
}

// chainChanged compares two chains of links of a disk, each from the frozen link down to the base. Links on top
// of the older chain, or fewer of them, are what snapshots and consolidation do; anything else means that the
// disk runs on other files than those that were tracked.
func chainChanged(was, is []string) string {
	if len(was) == 0 || len(is) == 0 {
		return ""
	}
	if was[len(was)-1] != is[len(is)-1] {
		return reasonMoved
	}
	for i := 1; i <= min(len(was), len(is)); i++ {
		if was[len(was)-i] != is[len(is)-i] {
			return reasonReverted
		}
	}
	return ""
}

// splitChangeID parts "uuid/sequence". A malformed sequence is -1, which never equals a good one's successor.
func splitChangeID(id string) (tracking string, sequence int64) {
	tracking, s, _ := strings.Cut(id, "/")
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return tracking, -1
	}
	return tracking, n
}
