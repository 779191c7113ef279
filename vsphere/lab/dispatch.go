package lab

import (
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

type ref = types.ManagedObjectReference

// sim is the extension of the simulator: one object in its registry to which the methods this package implements
// are redirected.
//
// The seam is Registry.Handler. It may not answer with an object of ours (for a session that is logged in the
// simulator overwrites the answer), and a type of ours may not stand in for a machine (the simulator asserts
// *simulator.VirtualMachine in some fifty places). What works is to rewrite Method.This: the call is dispatched to
// the extension, while the request's own _this still names the machine.
//
// Locks, outermost first: the registry's lock of a machine, never of two; machine.gate; volume.mu; sim.mu; machine.mu;
// store.mu.
type sim struct {
	mo.OverheadMemoryManager // the simulator looks for a managed object in the first field of whatever is registered

	opt   Options
	reg   *simulator.Registry
	svc   *simulator.Service
	store *store

	storage sync.Mutex // see alone; taken after a machine's lock

	mu       sync.Mutex
	machines map[ref]*machine
	dirs     map[string]string // datastore -> directory
	hosts    []*simulator.HostSystem
	capacity map[string]*space // datastore -> room
	starting bool              // while Start makes machines; then nobody else works on them
	taskSeq  int
	watched  map[ref]chan struct{}
	tasks    sync.WaitGroup
	purged   time.Time // events from before are forgotten
	closing  chan struct{}

	nfc    nfcState
	wire   wire
	leases leaseTable
}

// space is what a datastore says of its room.
type space struct{ capacity, free int64 }

// The extension opts out of the registry's lock of it: methods lock the machine they work on.
func (*sim) Lock()   {}
func (*sim) Unlock() {}

func (*sim) Reference() ref { return ref{Type: "LabExtension", Value: "lab"} }

// taken lists the methods this package answers, by type of the object called.
func taken(kind, method string) bool {
	switch kind {
	case "VirtualMachine":
		switch method {
		case "CreateSnapshot_Task", "CreateSnapshotEx_Task", "RemoveAllSnapshots_Task", "RevertToCurrentSnapshot_Task",
			"ConsolidateVMDisks_Task", "QueryChangedDiskAreas", "ReconfigVM_Task", "PowerOnVM_Task", "PowerOffVM_Task",
			"SuspendVM_Task", "ResetVM_Task", "RelocateVM_Task", "CloneVM_Task", "ExportVm", "Destroy_Task", "UnregisterVM":
			return true
		}
	case "VirtualMachineSnapshot":
		switch method {
		case "RemoveSnapshot_Task", "RevertToSnapshot_Task", "RenameSnapshot", "ExportSnapshot":
			return true
		}
	case "Folder":
		return method == "CreateVM_Task" || method == "RegisterVM_Task"
	case "ResourcePool":
		return method == "ImportVApp"
	case "OvfManager":
		return method == "CreateDescriptor"
	case "VirtualDiskManager":
		switch method {
		case "CreateVirtualDisk_Task", "DeleteVirtualDisk_Task", "CopyVirtualDisk_Task", "MoveVirtualDisk_Task",
			"ExtendVirtualDisk_Task":
			return true
		}
	case "FileManager":
		return method == "DeleteDatastoreFile_Task"
	case "EventManager":
		return method == "CreateCollectorForEvents"
	case "AuthorizationManager":
		switch method {
		case "HasPrivilegeOnEntities", "HasPrivilegeOnEntity", "HasUserPrivilegeOnEntities", "FetchUserPrivilegeOnEntities":
			return true
		}
	case "Datastore":
		return method == "RefreshDatastore"
	}
	return false
}

// route is Registry.Handler.
func (s *sim) route(ctx *simulator.Context, m *simulator.Method) (mo.Reference, types.BaseMethodFault) {
	if ctx.Session == nil {
		return nil, nil // the simulator refuses what needs a session
	}
	if f := s.permit(ctx, m); f != nil {
		return nil, f
	}
	obj := s.reg.Get(m.This)
	if obj == nil || !taken(m.This.Type, m.Name) {
		return nil, nil
	}
	// The simulator looks at DisabledMethod of the object it dispatches to, which will not be the machine.
	if vm := s.machine(m.This); vm != nil {
		if source := vm.disabledBy(m.Name); source != "" {
			return nil, &types.MethodDisabled{Source: source}
		}
	}
	m.This = s.Reference()
	return nil, nil
}

// PutObject, UpdateObject and RemoveObject make sim a simulator.RegisterObject.
func (s *sim) PutObject(*simulator.Context, mo.Reference) {}

// RemoveObject forgets a machine that was unregistered or destroyed. Its links stay: files outlive machines.
func (s *sim) RemoveObject(_ *simulator.Context, r ref) {
	if r.Type == "VirtualMachine" {
		s.mu.Lock()
		delete(s.machines, r)
		s.mu.Unlock()
	}
}

// UpdateObject runs inside the task that changes a machine, under that machine's lock.
func (s *sim) UpdateObject(_ *simulator.Context, obj mo.Reference, changes []types.PropertyChange) {
	if t, ok := obj.(*mo.Task); ok {
		s.taskChanged(t)
		return
	}
	vm, ok := obj.(*mo.VirtualMachine)
	if !ok || vm.Config == nil || vm.Config.Files.VmPathName == "" || s.reg.Get(vm.Self) == nil {
		return // not made yet, or gone: Destroy_Task changes the machine after its end
	}
	var devices, settings, power bool
	for _, c := range changes {
		switch {
		case strings.HasPrefix(c.Name, "config.hardware.device"):
			devices = true
		case c.Name == "config.changeVersion":
			// The simulator stores config.changeTrackingEnabled without an update of its own; this always follows.
			settings = true
		case c.Name == "runtime.powerState":
			power = true
		}
	}
	if devices {
		s.reconcile(vm)
	}
	if settings || power {
		s.noteSettings(vm)
		s.writeConfigFiles(vm)
	}
}

// context makes a Context for work of our own. The registry's locks belong to the Context pointer, so every
// goroutine needs one.
func (s *sim) context() *simulator.Context {
	c := *s.svc.Context
	return &c
}

func (s *sim) vm(r ref) *simulator.VirtualMachine {
	vm, _ := s.reg.Get(r).(*simulator.VirtualMachine)
	return vm
}

// withVM runs fn under the machine's lock; a panic leaves it unlocked.
func (s *sim) withVM(ctx *simulator.Context, r ref, fn func(vm *simulator.VirtualMachine)) bool {
	vm := s.vm(r)
	if vm == nil {
		return false
	}
	unlock := s.reg.AcquireLock(ctx, r)
	defer unlock()
	fn(vm)
	return true
}

func notFound(r ref) *soap.Fault {
	return simulator.Fault("The object has already been deleted or has not been completely created", &types.ManagedObjectNotFound{Obj: r})
}

func invalidArgument(property string) *soap.Fault {
	return simulator.Fault("A specified parameter was not correct: "+property, &types.InvalidArgument{InvalidProperty: property})
}

// sleep waits for d or until the lab closes.
func (s *sim) sleep(d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-s.closing:
	}
}
