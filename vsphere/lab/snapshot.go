package lab

import (
	"fmt"
	"os"
	"path"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// maxSnapshotDepth is vSphere's limit of a chain of snapshots.
const maxSnapshotDepth = 32

// CreateSnapshotTask answers CreateSnapshot_Task.
func (s *sim) CreateSnapshotTask(_ *simulator.Context, req *types.CreateSnapshot_Task) soap.HasFault {
	body := new(methods.CreateSnapshot_TaskBody)
	id, fault := s.createSnapshot(req.This, snapshotRequest{req.Name, req.Description, req.Memory, req.Quiesce, req.Quiesce && s.windows(req.This)})
	if body.Fault_ = fault; fault == nil {
		body.Res = &types.CreateSnapshot_TaskResponse{Returnval: id}
	}
	return body
}

// CreateSnapshotExTask answers CreateSnapshotEx_Task.
func (s *sim) CreateSnapshotExTask(_ *simulator.Context, req *types.CreateSnapshotEx_Task) soap.HasFault {
	body := new(methods.CreateSnapshotEx_TaskBody)
	id, fault := s.createSnapshot(req.This, snapshotRequest{req.Name, req.Description, req.Memory, req.QuiesceSpec != nil, withWriters(req.QuiesceSpec)})
	if body.Fault_ = fault; fault == nil {
		body.Res = &types.CreateSnapshotEx_TaskResponse{Returnval: id}
	}
	return body
}

type snapshotRequest struct {
	name, description string
	memory, quiesce   bool
	writers           bool // of VSS take part
}

func withWriters(spec types.BaseVirtualMachineGuestQuiesceSpec) bool {
	w, ok := spec.(*types.VirtualMachineWindowsQuiesceSpec)
	return ok && w.VssBackupContext != string(types.VirtualMachineWindowsQuiesceSpecVssBackupContextCtx_file_share_backup)
}

func (s *sim) windows(r ref) (yes bool) {
	s.withVM(s.context(), r, func(vm *simulator.VirtualMachine) { yes = strings.HasPrefix(vm.Config.GuestId, "win") })
	return yes
}

func (s *sim) createSnapshot(r ref, req snapshotRequest) (ref, *soap.Fault) {
	return s.onMachine(r, "createSnapshot", func(ctx *simulator.Context) (res types.AnyType, fault types.BaseMethodFault) {
		if !s.withVM(ctx, r, func(vm *simulator.VirtualMachine) {
			s.postTask(ctx, vm, "VirtualMachine.createSnapshot")
			res, fault = s.takeSnapshot(ctx, vm, req)
		}) {
			fault = &types.ManagedObjectNotFound{Obj: r}
		}
		return res, fault
	})
}

// snapshotAllowed applies vSphere's rules. Machine lock held.
func (s *sim) snapshotAllowed(vm *simulator.VirtualMachine, memory bool) types.BaseMethodFault {
	if vm.Config.Template {
		return &types.InvalidState{}
	}
	on := vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn
	for _, d := range virtualDisks(vm.Config.Hardware.Device) {
		if on && onSharedBus(vm.Config.Hardware.Device, d) {
			return &types.SnapshotIncompatibleDeviceInVm{Fault: types.LocalizedMethodFault{
				Fault: &types.SharedBusControllerNotSupported{}, LocalizedMessage: "SCSI bus sharing is in use"}}
		}
		if on && memory && !snapshottable(d) {
			return &types.MemorySnapshotOnIndependentDisk{}
		}
		if b := flatBacking(d); b != nil {
			if ds, _, _ := splitPath(b.FileName); s.freeSpace(ds) <= 0 {
				return &types.NoDiskSpace{FileFault: types.FileFault{File: b.FileName}, Datastore: ds}
			}
		}
	}
	if vm.Snapshot != nil && vm.Snapshot.CurrentSnapshot != nil &&
		depth(vm.Snapshot.RootSnapshotList, *vm.Snapshot.CurrentSnapshot) >= maxSnapshotDepth {
		return &types.TooManySnapshotLevels{}
	}
	return nil
}

// takeSnapshot freezes every disk at one moment. Machine lock held.
func (s *sim) takeSnapshot(ctx *simulator.Context, vm *simulator.VirtualMachine, req snapshotRequest) (types.AnyType, types.BaseMethodFault) {
	m := s.know(vm.Self)
	faults := m.currentFaults()
	if faults.Snapshot != nil {
		return nil, faults.Snapshot
	}
	on := vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn
	tools := vm.Guest != nil && vm.Guest.ToolsRunningStatus == string(types.VirtualMachineToolsRunningStatusGuestToolsRunning)
	quiesce := req.quiesce && on && tools // otherwise the flag is ignored, says the API
	if quiesce && faults.Quiesce != nil {
		return nil, faults.Quiesce
	}
	if f := s.snapshotAllowed(vm, req.memory); f != nil {
		return nil, f
	}
	if f := snapshotEncrypted(vm, snapshotRequest{memory: req.memory, writers: req.writers && quiesce}); f != nil {
		return nil, f
	}

	snap := &simulator.VirtualMachineSnapshot{}
	snap.Vm = vm.Self
	snap.Config = types.MustDeepCopy(*vm.Config)
	live := cloneDevices(vm.Config.Hardware.Device)
	tracks, fault := s.freeze(m, live, snap.Config.Hardware.Device)
	if fault != nil {
		return nil, fault
	}
	s.reg.Put(snap)

	m.mu.Lock()
	m.snapSeq++
	id := m.snapSeq
	st := &snapshotState{vmsn: fmt.Sprintf("%s-Snapshot%d.vmsn", vm.Name, id), tracks: tracks, power: types.VirtualMachinePowerStatePoweredOff}
	if req.memory && on {
		st.power = vm.Runtime.PowerState
	}
	m.snaps[snap.Self] = st
	m.mu.Unlock()
	if p, err := s.local(vm.Config.Files.SnapshotDirectory, st.vmsn); err == nil {
		_ = os.WriteFile(p, nil, 0o600)
	}

	item := types.VirtualMachineSnapshotTree{
		Snapshot: snap.Self, Vm: vm.Self, Name: req.name, Description: req.description, Id: id, CreateTime: time.Now(),
		State: st.power, Quiesced: quiesce, ReplaySupported: types.NewBool(false),
	}
	info := new(types.VirtualMachineSnapshotInfo)
	if vm.Snapshot != nil {
		*info = types.MustDeepCopy(*vm.Snapshot)
	}
	if info.CurrentSnapshot == nil {
		info.RootSnapshotList = append(info.RootSnapshotList, item)
	} else {
		n := findSnapshot(info.RootSnapshotList, *info.CurrentSnapshot)
		n.ChildSnapshotList = append(n.ChildSnapshotList, item)
	}
	self := snap.Self
	info.CurrentSnapshot = &self
	s.publish(ctx, vm, info, live)
	return self, nil
}

// freeze puts a new leaf on every disk that snapshots freeze, all at one moment. live and frozen are copies of the
// machine's devices: live gets the new leaves, frozen keeps the old ones and their change ids.
func (s *sim) freeze(m *machine, live, frozen []types.BaseVirtualDevice) (map[int32]*frozenTrack, types.BaseMethodFault) {
	m.gate.Lock()
	defer m.gate.Unlock()
	s.stun(m, live)
	tracks := map[int32]*frozenTrack{}
	before := virtualDisks(frozen)
	for i, d := range virtualDisks(live) {
		old := m.live[d.Key]
		if old == nil || !snapshottable(d) {
			continue
		}
		old.vol.mu.Lock()
		leaf, err := s.store.grow(old, s.store.freePath(old))
		if err == nil {
			err = s.store.writeDescriptor(leaf)
		}
		if err != nil {
			old.vol.mu.Unlock()
			return nil, &types.FileFault{File: old.path}
		}
		b := flatBacking(d)
		parent := *b
		frozenBacking := flatBacking(before[i])
		frozenBacking.ChangeId, parent.ChangeId = "", ""
		leafBacking := leafOf(&parent, leaf.path)
		if t := old.vol.track; t != nil {
			f := t.freeze()
			tracks[d.Key] = f
			frozenBacking.ChangeId, parent.ChangeId = f.changeID(), f.changeID()
			leafBacking.ChangeId = t.view().changeID()
		}
		d.Backing = leafBacking
		m.live[d.Key] = leaf
		old.vol.mu.Unlock()
	}
	return tracks, nil
}

// leafOf is the backing of a delta at path on top of parent.
func leafOf(parent *types.VirtualDiskFlatVer2BackingInfo, file string) *types.VirtualDiskFlatVer2BackingInfo {
	return &types.VirtualDiskFlatVer2BackingInfo{
		VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: file, Datastore: parent.Datastore, BackingObjectId: parent.BackingObjectId},
		DiskMode:                     parent.DiskMode, Split: parent.Split, WriteThrough: parent.WriteThrough,
		ThinProvisioned: types.NewBool(true), EagerlyScrub: types.NewBool(false),
		Uuid: parent.Uuid, ContentId: parent.ContentId, DigestEnabled: parent.DigestEnabled,
		DeltaDiskFormat: string(types.VirtualDiskDeltaDiskFormatSeSparseFormat),
		Sharing:         parent.Sharing, KeyId: parent.KeyId, Parent: parent,
	}
}

// publish shows the machine's new snapshot tree and devices. Machine lock held.
func (s *sim) publish(ctx *simulator.Context, vm *simulator.VirtualMachine, info *types.VirtualMachineSnapshotInfo, devices []types.BaseVirtualDevice) {
	var roots []ref
	var val types.AnyType
	if info != nil && len(info.RootSnapshotList) > 0 {
		for _, n := range info.RootSnapshotList {
			roots = append(roots, n.Snapshot)
		}
		val = info
	}
	ctx.Update(vm, []types.PropertyChange{
		{Name: "snapshot", Val: val},
		{Name: "rootSnapshot", Val: roots},
		{Name: "config.hardware.device", Val: devices},
	})
	s.refreshLayout(ctx, vm)
}

// refreshLayout makes layoutEx follow the files. Machine lock held.
func (s *sim) refreshLayout(ctx *simulator.Context, vm *simulator.VirtualMachine) {
	s.storage.Lock()
	defer s.storage.Unlock()
	vm.RefreshStorageInfo(ctx, nil)
}

// local is where the file name of a datastore directory lies.
func (s *sim) local(dir, name string) (string, error) {
	ds, p, ok := splitPath(dir)
	if !ok {
		return "", fmt.Errorf("%q is not a datastore path", dir)
	}
	return s.store.local(joinPath(ds, path.Join(p, name)))
}

func findSnapshot(tree []types.VirtualMachineSnapshotTree, r ref) *types.VirtualMachineSnapshotTree {
	for i := range tree {
		if tree[i].Snapshot == r {
			return &tree[i]
		}
		if n := findSnapshot(tree[i].ChildSnapshotList, r); n != nil {
			return n
		}
	}
	return nil
}

// depth is the number of snapshots from the root to r, 0 if r is not in the tree.
func depth(tree []types.VirtualMachineSnapshotTree, r ref) int {
	for _, n := range tree {
		if n.Snapshot == r {
			return 1
		}
		if d := depth(n.ChildSnapshotList, r); d > 0 {
			return d + 1
		}
	}
	return 0
}

func allSnapshots(tree []types.VirtualMachineSnapshotTree) (out []ref) {
	for _, n := range tree {
		out = append(append(out, n.Snapshot), allSnapshots(n.ChildSnapshotList)...)
	}
	return out
}

// prune takes r out of the tree. Its children move up, or go too. gone lists what left, parent is where r hung.
func prune(tree []types.VirtualMachineSnapshotTree, r ref, children bool, above *ref) (out []types.VirtualMachineSnapshotTree, gone []ref, parent *ref) {
	for _, n := range tree {
		if n.Snapshot == r {
			gone, parent = append(gone, r), above
			if children {
				gone = append(gone, allSnapshots(n.ChildSnapshotList)...)
			} else {
				out = append(out, n.ChildSnapshotList...)
			}
			continue
		}
		self := n.Snapshot
		kids, g, p := prune(n.ChildSnapshotList, r, children, &self)
		if len(g) > 0 {
			gone, parent = g, p
		}
		n.ChildSnapshotList = kids
		out = append(out, n)
	}
	return out, gone, parent
}
