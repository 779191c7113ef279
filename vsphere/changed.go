package vsphere

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vmkeep/vmkeep/chunker/extent"
)

// Changed are the bytes of the disk that changed between the state since and the snapshot, or a superset of them.
// It fails with [*ChangeTrackingError] when the whole disk has to be read.
func (s *Snapshot) Changed(ctx context.Context, d Disk, since ChangeID) (extent.Set, error) {
	fail := func(reason string) error { return &ChangeTrackingError{Reason: reason, Disk: d.Name} }
	if err := s.trackable(d); err != nil {
		return nil, err
	}
	then, err := ParseChangeID(string(since))
	if err != nil {
		return nil, &ChangeTrackingError{Reason: ReasonMalformed, Disk: d.Name, Err: err}
	}
	// vSphere refuses ids of another tracking instance, but not always: compare first.
	if then.Tracking() != d.ChangeID.Tracking() {
		return nil, fail(ReasonRestarted)
	}
	a, _ := then.Sequence()
	b, ok := d.ChangeID.Sequence()
	if !ok {
		return nil, fail(ReasonMalformed)
	}
	if a > b {
		return nil, fail(ReasonRewound)
	}
	return s.query(ctx, d, string(since))
}

// Allocated are the bytes of the disk that were ever written, as change tracking knows ("*" as change id); the rest
// reads as zeros. Some datastores answer with the whole disk. It fails with [*ChangeTrackingError].
func (s *Snapshot) Allocated(ctx context.Context, d Disk) (extent.Set, error) {
	if err := s.trackable(d); err != nil {
		return nil, err
	}
	return s.query(ctx, d, "*")
}

func (s *Snapshot) trackable(d Disk) error {
	reason := ""
	switch {
	case s.id == "":
		reason = ReasonNoSnapshot
	case d.Untracked != "":
		return &ChangeTrackingError{Reason: ReasonUntracked, Disk: d.Name, Err: errors.New(d.Untracked)}
	case d.ChangeID == "" && !s.state.CBT:
		reason = ReasonOff
	case d.ChangeID == "":
		reason = ReasonNoChangeID
	default:
		return nil
	}
	return &ChangeTrackingError{Reason: reason, Disk: d.Name}
}

// mostPages bounds a query. One answer holds at most 2000 areas, and areas are 64 KiB or more: 62 TiB, the largest
// disk, has at most half a million answers.
const mostPages = 1 << 20

// query asks page by page. An answer covers only [startOffset, startOffset+length), however large the disk is; asking
// at the capacity itself is refused. Whoever asks once has an incomplete increment.
func (s *Snapshot) query(ctx context.Context, d Disk, id string) (extent.Set, error) {
	var areas []extent.Extent
	bad := func(format string, args ...any) error {
		return &ChangeTrackingError{Reason: ReasonInconsistent, Disk: d.Name, Err: fmt.Errorf(format, args...)}
	}
	pages := 0
	for off := int64(0); off < d.Capacity; pages++ {
		if pages == mostPages {
			return nil, bad("no end after %d answers", pages)
		}
		res, err := methods.QueryChangedDiskAreas(ctx, s.vm.c.vim, &types.QueryChangedDiskAreas{This: s.vm.ref(),
			Snapshot: &ref{Type: "VirtualMachineSnapshot", Value: s.id}, DeviceKey: d.Key, StartOffset: off, ChangeId: id})
		if err != nil {
			return nil, queryError(d, id, err)
		}
		p := res.Returnval
		if p.StartOffset != off {
			return nil, bad("asked from %d on, answered from %d on", off, p.StartOffset)
		}
		if p.Length <= 0 {
			return nil, bad("the answer at %d covers %d bytes", off, p.Length)
		}
		window := extent.Extent{Off: off, Len: min(p.Length, d.Capacity-off)} // the last block may exceed the disk
		for _, a := range p.ChangedArea {
			e := extent.Extent{Off: a.Start, Len: a.Length}
			if !e.Valid() || e.Len == 0 || e.Off < window.Off || e.Off >= window.End() {
				return nil, bad("area %d+%d lies outside of the answer %v", a.Start, a.Length, window)
			}
			e.Len = min(e.Len, d.Capacity-e.Off)
			areas = append(areas, e)
		}
		off = window.End()
	}
	return extent.Of(areas...), nil
}

// queryError sorts refusals, which mean a whole read, from failures, which mean nothing about the disk.
func queryError(d Disk, id string, err error) error {
	for _, kind := range []error{ErrUnreachable, ErrPermission, ErrNotFound, ErrLogin, ErrCertificate, ErrClosed, ErrLicense, context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, kind) {
			return fmt.Errorf("query the changes of %s: %w", d.Name, err)
		}
	}
	if !isFault(err) {
		return fmt.Errorf("query the changes of %s: %w", d.Name, err)
	}
	out := &ChangeTrackingError{Reason: ReasonRefused, Disk: d.Name, Err: plain(err)}
	// The reason of a FileFault is in its message keys: vim.hostd.vmsvc.cbt.<reason>.
	fault.In(err, func(f types.BaseMethodFault, _ string, msgs []types.LocalizableMessage) bool {
		for _, m := range msgs {
			switch {
			case strings.HasSuffix(m.Key, "cbt.noTrack"):
				out.Reason = ReasonOff
			case strings.HasSuffix(m.Key, "cbt.noEpoch") && id == "*":
				out.Reason = ReasonNoAllocations
			case strings.HasSuffix(m.Key, "cbt.noEpoch"), strings.HasSuffix(m.Key, "cbt.cannotGetChanges"):
				out.Reason = ReasonRestarted
			}
		}
		return false
	})
	var arg *types.InvalidArgument
	if asFault(err, &arg) && strings.EqualFold(arg.InvalidProperty, "changeId") {
		out.Reason = ReasonMalformed
	}
	return out
}
