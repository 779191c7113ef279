package vsphere

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"
)

// Whether a machine went back to a snapshot only its events tell, and events are purged: by age, or when there are too
// many of them, the oldest first. So that nothing was found is believed only where something older was.

// isTask reports whether an event tells of a task with one of the names.
func isTask(e types.BaseEvent, names ...string) bool {
	t, ok := e.(*types.TaskEvent)
	return ok && slices.ContainsFunc(names, func(s string) bool { return strings.HasSuffix(t.Info.DescriptionId, s) })
}

// isRevert reports whether an event tells of a revert: the task, by the names that vCenter and ESXi give it.
func isRevert(e types.BaseEvent) bool {
	return isTask(e, "revertToCurrentSnapshot", "vm.Snapshot.revert", "Snapshot.revert", "revertToSnapshot")
}

// isSnapshot reports whether an event tells of the making of a snapshot.
func isSnapshot(e types.BaseEvent) bool { return isTask(e, "createSnapshot", "createSnapshotEx") }

// Freeze is when a snapshot was made, by the server's clock: between Begun and Done.
type Freeze struct{ Begun, Done time.Time }

// Reverted reports whether the machine was reverted to a snapshot since a snapshot of it was made. Increments across a
// revert are not to be trusted. It is an error when the events cannot tell: they have to reach back to the making of
// that snapshot, which is one of them.
func (v *VM) Reverted(ctx context.Context, since Freeze) (bool, error) {
	em := v.c.vim.ServiceContent.EventManager
	if em == nil {
		return false, &Error{Kind: ErrUnsuitable, Object: v.label(), Summary: "the server keeps no events", Remedy: "none: without them reverts cannot be ruled out"}
	}
	// Not QueryEvents: it gives only the newest events, and ESXi hosts do not have it. Not a filter by type either: how
	// types are spelled in it differs between versions.
	filter := types.EventFilterSpec{
		Entity: &types.EventFilterSpecByEntity{Entity: v.ref(), Recursion: types.EventFilterSpecRecursionOptionSelf},
		Time:   &types.EventFilterSpecByTime{BeginTime: &since.Begun},
	}
	for attempt := 0; ; attempt++ {
		reverted, complete := false, false
		err := v.events(ctx, *em, filter, func(e types.BaseEvent) bool {
			complete = complete || isSnapshot(e) && !e.GetEvent().CreatedTime.After(since.Done)
			reverted = isRevert(e)
			return !reverted
		})
		switch {
		case err == nil && reverted:
			return true, nil
		case err == nil && !complete:
			return false, &Error{Kind: ErrNotFound, Object: v.label(), Summary: "the server's events do not go back to the machine's last snapshot by a backup",
				Remedy: "keep events for longer than the time between two backups"}
		case err == nil:
			return false, nil
		case isNotFound(err) && attempt < 3: // a collector dies with its session
		default:
			return false, fmt.Errorf("read the events of %s: %w", v.label(), err)
		}
	}
}

// eventPage is how many events are asked for at a time, the most that vSphere gives.
const eventPage = 1000

// events gives the events that the filter lets through to fn until it has enough.
func (v *VM) events(ctx context.Context, manager ref, filter types.EventFilterSpec, fn func(types.BaseEvent) (more bool)) error {
	made, err := methods.CreateCollectorForEvents(ctx, v.c.vim, &types.CreateCollectorForEvents{This: manager, Filter: filter})
	if err != nil {
		return err
	}
	collector := made.Returnval
	defer func() {
		after, cancel := v.c.afterwards(ctx)
		defer cancel()
		if _, err := methods.DestroyCollector(after, v.c.vim, &types.DestroyCollector{This: collector}); err != nil {
			v.c.log.Debug("event collector not destroyed", "error", err) // it goes with the session
		}
	}()
	for {
		page, err := methods.ReadNextEvents(ctx, v.c.vim, &types.ReadNextEvents{This: collector, MaxCount: eventPage})
		if err != nil {
			return err
		}
		for _, e := range page.Returnval {
			if !fn(e) {
				return nil
			}
		}
		if len(page.Returnval) == 0 {
			return nil
		}
	}
}
