package lab

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// machine is what the lab knows of a virtual machine beyond the simulator's object.
type machine struct {
	ref ref

	// gate is the stun: whoever writes to live disks holds it shared, a snapshot exclusively, so that all disks of
	// a machine freeze at one moment.
	gate sync.RWMutex
	live map[int32]*link // device key -> leaf of the chain
	lent map[int32]bool  // keys of live disks that are nonpersistent: the links are another machine's

	mu       sync.Mutex
	busy     *ref // task that works on the machine
	faults   MachineFaults
	want     bool // config.changeTrackingEnabled
	active   bool // what the last stun made of it
	powered  types.VirtualMachinePowerState
	snapSeq  int32
	snaps    map[ref]*snapshotState
	grain    int64
	instance string // instanceUuid
	kernel   *kernel
	disabled map[string]string // methods that nobody may call, each with who disabled it; never changed in place
}

type snapshotState struct {
	vmsn   string                 // name of the state file
	tracks map[int32]*frozenTrack // per device key
	power  types.VirtualMachinePowerState
}

// MachineFaults says what goes wrong with a machine. Each field is in force until it is changed, unless it says
// otherwise; Machine.SetFaults replaces all of them.
type MachineFaults struct {
	// Quiesce fails snapshots that quiesce, in the task: types.ApplicationQuiesceFault, FilesystemQuiesceFault.
	Quiesce types.BaseMethodFault
	// Snapshot fails every snapshot creation, in the task.
	Snapshot types.BaseMethodFault
	// RemoveSnapshot fails the removal of snapshots, in the task, with nothing done.
	RemoveSnapshot types.BaseMethodFault
	// LeaveDelta makes that many snapshot removals succeed without merging: runtime.consolidationNeeded.
	LeaveDelta int
	// Consolidate fails ConsolidateVMDisks_Task.
	Consolidate types.BaseMethodFault
	// TaskDelay holds tasks back, by task name: createSnapshot, removeSnapshot, reconfigVm, powerOn ...
	TaskDelay map[string]time.Duration
	// TaskInProgressInTask reports TaskInProgress in the task instead of as the fault of the call.
	TaskInProgressInTask bool
	// TrackSnapshots lets change tracking start on disks that have snapshots. The answers are then wrong without
	// an error, as vSphere 6.5 and later behave (Veritas 100033474).
	TrackSnapshots bool
	// Query twists the answers of QueryChangedDiskAreas: the answer may be changed or a fault returned instead.
	Query func(req types.QueryChangedDiskAreas, info *types.DiskChangeInfo) types.BaseMethodFault
	// Destroy fails Destroy_Task, Reconfigure ReconfigVM_Task, PowerOn PowerOnVM_Task, in the task.
	Destroy, Reconfigure, PowerOn types.BaseMethodFault
}

func (s *sim) machine(r ref) *machine {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.machines[r]
}

// know returns the machine's state, made at first sight.
func (s *sim) know(r ref) *machine {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.machines[r]
	if m == nil {
		m = &machine{ref: r, live: map[int32]*link{}, snaps: map[ref]*snapshotState{}, grain: s.opt.Grain}
		s.machines[r] = m
	}
	return m
}

func (m *machine) setFaults(f MachineFaults) {
	m.mu.Lock()
	m.faults = f
	m.mu.Unlock()
}

func (m *machine) currentFaults() MachineFaults {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.faults
}

// reconcile makes the store and the machine's live links follow the devices. Machine lock held.
func (s *sim) reconcile(vm *mo.VirtualMachine) {
	m := s.know(vm.Self)
	m.gate.Lock()
	defer m.gate.Unlock()
	now, lent := map[int32]*link{}, map[int32]bool{}
	for _, d := range virtualDisks(vm.Config.Hardware.Device) {
		b := flatBacking(d)
		if b == nil {
			continue
		}
		l := s.store.find(b.FileName)
		if l == nil {
			var err error
			if l, err = s.store.base(b.FileName, d.CapacityInBytes, isTrue(b.ThinProvisioned)); err != nil {
				continue // the paths were checked before the simulator saw them
			}
			if !s.exists(b.FileName) { // the simulator writes one that is as good
				_ = s.store.writeDescriptor(l)
			}
		} else if l.parent == nil && l.size < d.CapacityInBytes {
			if l.resize(d.CapacityInBytes) == nil {
				_ = s.store.writeDescriptor(l)
			}
		}
		l.vol.mu.Lock()
		if l.vol.uuid == "" {
			l.vol.uuid = b.Uuid
		}
		l.vol.mu.Unlock()
		now[d.Key], lent[d.Key] = l, b.DiskMode == string(types.VirtualDiskModeIndependent_nonpersistent)
	}
	for key, l := range m.live {
		if !m.lent[key] && (now[key] == nil || now[key].vol != l.vol) { // detached: nobody tracks its changes any more
			l.vol.mu.Lock()
			l.vol.track = nil
			l.vol.mu.Unlock()
		}
	}
	m.live, m.lent = now, lent
	m.mu.Lock()
	k := m.kernel
	m.mu.Unlock()
	if k != nil {
		if err := k.show(s.store, vm); err != nil {
			panic(err) // the task fails with it
		}
	}
}

// bootKernel begins to show a machine's disks in dir.
func (s *sim) bootKernel(r ref, dir string) (err error) {
	s.withVM(s.context(), r, func(vm *simulator.VirtualMachine) {
		var k *kernel
		if k, err = newKernel(dir, vm.Config.Uuid); err != nil {
			return
		}
		m := s.know(r)
		m.mu.Lock()
		m.kernel = k
		m.mu.Unlock()
		err = k.show(s.store, &vm.VirtualMachine)
	})
	return err
}

// closeKernels removes what kernels show.
func (s *sim) closeKernels() (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.machines {
		m.mu.Lock()
		if m.kernel != nil {
			err = errors.Join(err, m.kernel.close())
		}
		m.mu.Unlock()
	}
	return err
}

// noteSettings follows config.changeTrackingEnabled and the power state. Machine lock held.
func (s *sim) noteSettings(vm *mo.VirtualMachine) {
	m := s.know(vm.Self)
	m.gate.Lock()
	defer m.gate.Unlock()
	m.mu.Lock()
	m.want = isTrue(vm.Config.ChangeTrackingEnabled)
	moved := m.powered != vm.Runtime.PowerState
	m.powered = vm.Runtime.PowerState
	m.instance = vm.Config.InstanceUuid
	m.mu.Unlock()
	// A change of power state makes the setting take effect; for a machine that is off the reconfiguration itself
	// does (seen on ESXi 8.0.1).
	if moved || vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOff {
		s.stun(m, vm.Config.Hardware.Device)
	}
}

// stun makes the change tracking setting effective. The gate is held exclusively.
func (s *sim) stun(m *machine, devices []types.BaseVirtualDevice) {
	m.mu.Lock()
	m.active = m.want
	active, anyway := m.active, m.faults.TrackSnapshots
	grain := m.grain
	m.mu.Unlock()
	for _, d := range virtualDisks(devices) {
		l := m.live[d.Key]
		if l == nil {
			continue
		}
		l.vol.mu.Lock()
		switch {
		case !active:
			l.vol.track = nil
		case l.vol.track != nil || !trackable(devices, d):
		case l.parent == nil:
			l.vol.track = newTracker(l.size, grain)
			if set, err := l.allocated(); err == nil { // the tracking file starts with what is allocated
				for _, e := range set {
					l.vol.track.mark(e.Off, e.Len)
				}
			}
		case anyway:
			l.vol.track = newTracker(l.size, grain) // knows nothing of what lies below: silently wrong
		}
		l.vol.mu.Unlock()
	}
}

// guestWrite writes to the running disk; the tracker sees it.
func (m *machine) guestWrite(key int32, p []byte, off int64) error {
	m.gate.RLock()
	defer m.gate.RUnlock()
	l := m.live[key]
	if l == nil {
		return fmt.Errorf("no disk %d", key)
	}
	return l.write(p, off)
}

// write is writeAt with the volume's lock and tracking.
func (l *link) write(p []byte, off int64) error {
	l.vol.mu.Lock()
	defer l.vol.mu.Unlock()
	if err := l.writeAt(p, off); err != nil {
		return err
	}
	if l.vol.track != nil {
		l.vol.track.mark(off, int64(len(p)))
	}
	return nil
}

func (l *link) read(p []byte, off int64) error {
	l.vol.mu.RLock()
	defer l.vol.mu.RUnlock()
	return l.readAt(p, off)
}

// powerCut resets tracking as an unclean shutdown does ("Change tracking invalid; reinitializing").
func (s *sim) powerCut(r ref) bool {
	ctx := s.context()
	return s.withVM(ctx, r, func(vm *simulator.VirtualMachine) {
		m := s.know(r)
		m.gate.Lock()
		defer m.gate.Unlock()
		for _, l := range m.live {
			l.vol.mu.Lock()
			l.vol.track = nil
			l.vol.mu.Unlock()
		}
		s.stun(m, vm.Config.Hardware.Device)
	})
}

// leaves returns the links the machine writes to.
func (m *machine) leaves() (out []*link) {
	m.gate.RLock()
	defer m.gate.RUnlock()
	for _, l := range m.live {
		out = append(out, l)
	}
	return out
}

// runs tells whether l is one of the machine's leaves. The gate is held.
func (m *machine) runs(l *link) bool {
	for _, x := range m.live {
		if x == l {
			return true
		}
	}
	return false
}
