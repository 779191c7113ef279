package lab

import (
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vmkeep/vmkeep/chunker/extent"
)

// Message keys of the FileFault that QueryChangedDiskAreas raises (vsphere-csi-driver PR 4114, Commvault vmw0068).
const (
	cbtNoTrack          = "vim.hostd.vmsvc.cbt.noTrack"          // tracking is not active
	cbtNoEpoch          = "vim.hostd.vmsvc.cbt.noEpoch"          // the same, asked with "*"
	cbtCannotGetChanges = "vim.hostd.vmsvc.cbt.cannotGetChanges" // another tracking instance, or not now
)

func fileFault(file, key, message string) *soap.Fault {
	f := &types.FileFault{File: file}
	f.FaultMessage = []types.LocalizableMessage{{Key: key, Message: message}}
	return simulator.Fault("Error caused by file "+file, f)
}

// QueryChangedDiskAreas answers one page of a disk's changes.
func (s *sim) QueryChangedDiskAreas(ctx *simulator.Context, req *types.QueryChangedDiskAreas) soap.HasFault {
	body := new(methods.QueryChangedDiskAreasBody)
	var info *types.DiskChangeInfo
	if !s.withVM(ctx, req.This, func(vm *simulator.VirtualMachine) { info, body.Fault_ = s.query(vm, req) }) {
		body.Fault_ = notFound(req.This)
	}
	if body.Fault_ != nil {
		return body
	}
	if twist := s.know(req.This).currentFaults().Query; twist != nil {
		if f := twist(*req, info); f != nil {
			body.Fault_ = simulator.Fault(describe(f), f)
			return body
		}
	}
	body.Res = &types.QueryChangedDiskAreasResponse{Returnval: *info}
	return body
}

// query is QueryChangedDiskAreas. Machine lock held.
func (s *sim) query(vm *simulator.VirtualMachine, req *types.QueryChangedDiskAreas) (*types.DiskChangeInfo, *soap.Fault) {
	devices := vm.Config.Hardware.Device
	if req.Snapshot != nil {
		snap, _ := s.reg.Get(*req.Snapshot).(*simulator.VirtualMachineSnapshot)
		if snap == nil {
			return nil, notFound(*req.Snapshot)
		}
		if snap.Vm != vm.Self {
			return nil, invalidArgument("snapshot")
		}
		devices = snap.Config.Hardware.Device
	}
	var disk *types.VirtualDisk
	for _, d := range virtualDisks(devices) {
		if d.Key == req.DeviceKey && trackable(devices, d) {
			disk = d
		}
	}
	if disk == nil {
		return nil, invalidArgument("deviceKey")
	}
	if req.StartOffset < 0 || req.StartOffset >= disk.CapacityInBytes {
		return nil, invalidArgument("startOffset")
	}
	file := flatBacking(disk).FileName
	l := s.store.find(file)
	if l == nil {
		return nil, fileFault(file, cbtCannotGetChanges, "The file does not exist")
	}
	if req.Snapshot == nil && vm.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOff {
		return nil, fileFault(file, cbtCannotGetChanges, "The disk is in use")
	}

	l.vol.mu.RLock()
	defer l.vol.mu.RUnlock()
	cur := s.trackAt(vm.Self, req, l)
	if cur == nil {
		key := cbtNoTrack
		if req.ChangeId == "*" {
			key = cbtNoEpoch
		}
		return nil, fileFault(file, key, "Change tracking is not active on the disk "+file)
	}
	changed, fault := s.changes(req.ChangeId, cur, l)
	if fault != nil {
		return nil, fault
	}
	return pageOf(changed, req.StartOffset, disk.CapacityInBytes, s.opt.MaxAreas), nil
}

// trackAt is the tracking state the request asks about, nil if there is none. Volume lock held.
func (s *sim) trackAt(vm ref, req *types.QueryChangedDiskAreas, l *link) *frozenTrack {
	if req.Snapshot == nil {
		if l.vol.track == nil {
			return nil
		}
		return l.vol.track.view()
	}
	m := s.know(vm)
	m.mu.Lock()
	defer m.mu.Unlock()
	if st := m.snaps[*req.Snapshot]; st != nil {
		return st.tracks[req.DeviceKey]
	}
	return nil
}

// changes is the whole answer, before paging. Volume lock held.
func (s *sim) changes(changeID string, cur *frozenTrack, l *link) (extent.Set, *soap.Fault) {
	if changeID == "*" {
		if s.opt.StarIsWholeDisk {
			return extent.Of(extent.Extent{Len: l.size}), nil
		}
		set, err := l.allocated()
		if err != nil {
			return nil, fileFault(l.path, cbtCannotGetChanges, err.Error())
		}
		return set.Align(cur.grain, l.size), nil
	}
	uuid, since, ok := parseChangeID(changeID)
	if !ok {
		return nil, invalidArgument("changeId")
	}
	if uuid != cur.uuid || since > cur.seq {
		return nil, fileFault(l.path, cbtCannotGetChanges, "Cannot compute changes for disk "+l.path)
	}
	return cur.since(since), nil
}

// pageOf cuts one answer of at most areas extents out of set. Length says how far the answer reaches: to the end of
// its last area if more follow, else to the end of the disk.
func pageOf(set extent.Set, start, capacity int64, areas int) *types.DiskChangeInfo {
	rest := set.Clip(extent.Extent{Off: start, Len: capacity - start})
	info := &types.DiskChangeInfo{StartOffset: start, Length: capacity - start}
	for i, e := range rest {
		if i == areas {
			info.Length = rest[i-1].End() - start
			break
		}
		info.ChangedArea = append(info.ChangedArea, types.DiskChangeExtent{Start: e.Off, Length: e.Len})
	}
	return info
}

// Lies of change tracking, for MachineFaults.Query: the answer is well formed, complete to its end, and wrong.

// DropAreas leaves every n-th area out of the answers.
func DropAreas(n int) func(types.QueryChangedDiskAreas, *types.DiskChangeInfo) types.BaseMethodFault {
	return func(_ types.QueryChangedDiskAreas, info *types.DiskChangeInfo) types.BaseMethodFault {
		var kept []types.DiskChangeExtent
		for i, a := range info.ChangedArea {
			if (i+1)%n != 0 {
				kept = append(kept, a)
			}
		}
		info.ChangedArea = kept
		return nil
	}
}

// ShiftAreas moves every area by delta bytes, as far as the page allows: the answers point beside the changes.
func ShiftAreas(delta int64) func(types.QueryChangedDiskAreas, *types.DiskChangeInfo) types.BaseMethodFault {
	return func(_ types.QueryChangedDiskAreas, info *types.DiskChangeInfo) types.BaseMethodFault {
		end := info.StartOffset + info.Length
		for i := range info.ChangedArea {
			a := &info.ChangedArea[i]
			a.Start = max(info.StartOffset, min(a.Start+delta, end-a.Length))
		}
		return nil
	}
}

// ShortLength makes every answer say it covers only n bytes less than it does, never less than nothing: a client
// that trusts its own arithmetic instead of the answer's loses changes.
func ShortLength(n int64) func(types.QueryChangedDiskAreas, *types.DiskChangeInfo) types.BaseMethodFault {
	return func(_ types.QueryChangedDiskAreas, info *types.DiskChangeInfo) types.BaseMethodFault {
		info.Length = max(0, info.Length-n)
		end := info.StartOffset + info.Length
		var kept []types.DiskChangeExtent
		for _, a := range info.ChangedArea {
			if a.Start >= end {
				break
			}
			a.Length = min(a.Length, end-a.Start)
			kept = append(kept, a)
		}
		info.ChangedArea = kept
		return nil
	}
}

// FailQuery refuses every query with the given message key, for example "vim.hostd.vmsvc.cbt.cannotGetChanges".
func FailQuery(key string) func(types.QueryChangedDiskAreas, *types.DiskChangeInfo) types.BaseMethodFault {
	return func(types.QueryChangedDiskAreas, *types.DiskChangeInfo) types.BaseMethodFault {
		f := &types.FileFault{}
		f.FaultMessage = []types.LocalizableMessage{{Key: key, Message: key}}
		return f
	}
}
