package vsphere

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// Leftover is a trace of vmkeep on vSphere, or in the journal.
type Leftover struct {
	Kind      EntryKind
	Operation string
	Machine   string // inventory path or name
	MachineID string
	Object    string    // snapshot id, disk path, method name
	Host      string    // host name of the vmkeep that made it
	Since     time.Time // by vSphere's clock for snapshots, else by the journal's
	Keep      string    // why it is left alone: its operation runs, it belongs to another installation; empty: it is to be removed
}

func (l Leftover) String() string {
	s := fmt.Sprintf("%s %s of %s (operation %s)", l.Kind, l.Object, l.Machine, l.Operation)
	if l.Keep != "" {
		s += ": " + l.Keep
	}
	return s
}

// RecoverOptions bound what is removed.
type RecoverOptions struct {
	// Others removes also snapshots that other installations (another host or state directory) left, once they are
	// older. Whether their operations still run cannot be known from here. 0: never; they are reported.
	Others time.Duration
	// Library detaches what VMware's library left attached of a machine's disks, see [VM.AnnounceLibrary]. [ErrLive]:
	// another process may have them attached. nil: there is no library, and what it left stays.
	Library func(ctx context.Context, machineID string) error
}

// detach undoes the use of VMware's library.
func (o RecoverOptions) detach(ctx context.Context, e entry) error {
	if o.Library == nil {
		return &Error{Kind: ErrUnsuitable, Object: orText(e.Path, e.Machine), Summary: "disks may be attached that only VMware's library can detach",
			Remedy: "configure the library as it was (vddkDir), then run vmkeep recover"}
	}
	return o.Library(ctx, e.Machine)
}

// RecoverReport is what a recovery did.
type RecoverReport struct {
	Undone []Leftover
	Kept   []Leftover // alive, or another's
	Failed []FailedLeftover
}

// FailedLeftover could not be removed now. It stays in the journal.
type FailedLeftover struct {
	Leftover
	Err error
}

// Err is nil when nothing failed, else an [ErrLeftover] that tells all.
func (r RecoverReport) Err() error {
	if len(r.Failed) == 0 {
		return nil
	}
	e := &Error{Kind: ErrLeftover, Summary: fmt.Sprintf("%d things that interrupted operations left on vSphere could not be removed", len(r.Failed)), Remedy: "remove them in vSphere, then run vmkeep recover again"}
	var errs []error
	for _, f := range r.Failed {
		e.Candidates = append(e.Candidates, f.Leftover.String())
		errs = append(errs, f.Err)
	}
	e.Err = errors.Join(errs...)
	return e
}

// Why a leftover is kept.
const (
	keepRunning = "its operation runs"
	keepOther   = "another installation made it"
	keepServer  = "it is on another server"
	keepUnknown = "the journal does not know it"
	keepHalf    = "its disks are overwritten in part: run the restore again"
	keepBegun   = "its disks are filled in part: run the restore again, or destroy it"
	keepHeld    = "it is filled in part: run the restore again, or destroy the machine that carries it"
	keepWhose   = "whether vmkeep made it cannot be told: detach it if nobody misses it"
)

func leftoverOf(o *Operation, e entry) Leftover {
	id := e.Machine
	if e.Kind == EntryMachine {
		id = e.Object
	}
	return Leftover{Kind: e.Kind, Operation: o.id, Machine: orText(e.Path, e.Machine), MachineID: id, Object: orText(e.Object, e.Name), Host: o.j.host, Since: e.Time}
}

// Recover undoes what dead operations left on this server: first what the journal knows, newest first, then snapshots
// that carry our mark, which are found without a journal too. An operation is dead when no process holds its lock.
// Foreign snapshots are never touched. What is undone is verified before it is struck from the journal.
//
// The error says that looking failed; what could not be undone is in the report, see [RecoverReport.Err].
func (c *Client) Recover(ctx context.Context, j *Journal, opts RecoverOptions) (RecoverReport, error) {
	var report RecoverReport
	dead, live, err := j.claim()
	errs := []error{err}
	// Backwards: a disk of a snapshot that hangs at a proxy has an operation of its own, which began later, and the
	// snapshot cannot go before it.
	slices.SortStableFunc(dead, func(a, b *Operation) int { return b.begun.Compare(a.begun) })
	for _, o := range dead {
		errs = append(errs, c.undoOperation(ctx, o, opts, &report))
	}
	found, err := c.hunt(ctx, j, live, opts.Others)
	errs = append(errs, err)
	for _, h := range found {
		if h.Keep != "" {
			report.Kept = append(report.Kept, h.Leftover)
			continue
		}
		if err := c.undo(ctx, h.vm, entry{Kind: EntrySnapshot}, h.Operation, h.Object); err != nil {
			report.Failed = append(report.Failed, FailedLeftover{h.Leftover, err})
		} else {
			report.Undone = append(report.Undone, h.Leftover)
		}
	}
	return report, errors.Join(errs...)
}

// undoOperation undoes what a dead operation left on this server and ends it.
func (c *Client) undoOperation(ctx context.Context, o *Operation, opts RecoverOptions, report *RecoverReport) error {
	var errs []error
	for _, x := range o.effects() {
		l := leftoverOf(o, x.e)
		if x.e.Server != c.about.InstanceUUID {
			l.Keep = keepServer
			report.Kept = append(report.Kept, l)
			continue
		}
		vm := c.VM(Machine{ID: x.e.Machine, Path: x.e.Path})
		var err error
		switch {
		case x.e.Kind == EntryLibrary:
			err = opts.detach(ctx, x.e)
		case x.e.Kind == EntryMachine && x.e.Action == actionHold && len(o.held()) > 0:
			err = errBegun
		default:
			err = c.undo(ctx, vm, x.e, o.id, x.e.Object)
		}
		switch {
		case errors.Is(err, ErrLive):
			l.Keep = keepRunning
		case errors.Is(err, errWhose):
			l.Keep = keepWhose
		case errors.Is(err, errHalf):
			l.Keep = keepHalf
		case errors.Is(err, errBegun):
			l.Keep = keepBegun
		case errors.Is(err, errHeld):
			l.Keep = keepHeld
		}
		if l.Keep != "" {
			report.Kept = append(report.Kept, l)
			continue
		}
		if err != nil {
			report.Failed = append(report.Failed, FailedLeftover{l, err})
			continue
		}
		if err := x.strike(); err != nil {
			errs = append(errs, err)
			continue
		}
		report.Undone = append(report.Undone, l)
	}
	if err := o.End(); err != nil && !errors.Is(err, ErrLeftover) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// undo undoes one side effect of an operation, verified.
func (c *Client) undo(ctx context.Context, vm *VM, e entry, operation, object string) error {
	switch e.Kind {
	case EntrySnapshot:
		err := c.quiet(ctx, vm.ref(), "snapshot") // a dead process's task may still be making it
		if isNotFound(err) {
			return nil
		}
		if err == nil {
			// By its id too: somebody may have given it another name or description.
			err = vm.removeSnapshots(ctx, func(s SnapshotInfo) bool { return s.Operation == operation || s.ID == object })
		}
		if err != nil {
			return err
		}
		if _, err := vm.consolidate(ctx, func(string) {}); err != nil && !isNotFound(err) {
			return fmt.Errorf("the snapshot is gone; consolidation: %w", err)
		}
		return nil
	case EntryCBT:
		return vm.undoTracking(ctx, e)
	case EntryDisk:
		if e.Action == actionHold {
			return vm.settle(ctx, e, operation)
		}
		return vm.undoDisk(ctx, e)
	case EntryMethod:
		return vm.enableMethods(ctx, operation)
	case EntryOverwrite:
		half, err := vm.carries(ctx, e.Name)
		if half {
			return errHalf
		}
		return err // without one: another restore completed it
	case EntryMachine:
		return c.undoMachine(ctx, e, operation)
	}
	return fmt.Errorf("the journal holds an unknown kind of side effect %q: it was written by a newer version", e.Kind)
}

// undoTracking ends the switching of change tracking. A reset switched it off on the way: it goes on again. Where it was
// to be switched on, on and off are both right, except on a machine that has snapshots: tracking that was switched on
// under one answers wrongly, and whether it was nobody knows any more.
func (v *VM) undoTracking(ctx context.Context, e entry) error {
	err := v.c.quiet(ctx, v.ref(), "reconfig")
	if err == nil {
		on := false
		switch on, err = v.mayTrack(ctx); {
		case e.Action == "reset" && (err == nil || errors.Is(err, ErrChangeTracking)):
			err = v.setTracking(ctx, true)
		case on && errors.Is(err, ErrChangeTracking):
			err = v.setTracking(ctx, false)
		case errors.Is(err, ErrChangeTracking):
			err = nil
		}
	}
	if isNotFound(err) {
		return nil
	}
	return err
}

// errBegun says that a machine that was to be kept is half-made.
var errBegun = errors.New("the machine carries the mark of a run that has not completed it")

// undoMachine destroys a half-made machine, or finds that it was to be kept: the one noted, or the one with the name
// that carries the operation's mark. A machine without the mark was finished, or taken over by another run, and stays.
func (c *Client) undoMachine(ctx context.Context, e entry, operation string) error {
	folder := ref{Type: "Folder", Value: e.Machine}
	if e.Object == "" {
		if err := c.quiet(ctx, folder, "createvm"); err != nil && !isNotFound(err) {
			return err
		}
		if e.Action != actionKeep {
			return c.destroyMarked(ctx, folder, e.Name, operation)
		}
		if vms, err := c.marked(ctx, folder, e.Name, operation); err != nil || len(vms) == 0 {
			return err
		}
		return errBegun
	}
	vm := c.VM(Machine{ID: e.Object, Path: e.Path})
	m, err := vm.read(ctx, "config.annotation", "config.uuid") // an empty annotation is left out of the answer
	if isNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if m.Config == nil {
		return fmt.Errorf("machine %s has no readable configuration", vm.label())
	}
	if mk, ok := readMark(m.Config.Annotation); !ok || mk.operation != operation {
		return nil
	}
	if e.Action == actionKeep {
		return errBegun
	}
	if err := vm.PowerOff(ctx); err != nil && !isNotFound(err) {
		return err
	}
	return vm.Destroy(ctx)
}

// hunted is a snapshot with our mark.
type hunted struct {
	Leftover
	vm *VM
}

// hunt looks at the snapshots of all machines.
func (c *Client) hunt(ctx context.Context, j *Journal, live []string, others time.Duration) ([]hunted, error) {
	t := c.newTree()
	var vms []mo.VirtualMachine
	kinds := treeKinds()
	kinds["VirtualMachine"] = []string{"name", "parent", "snapshot"}
	err := c.walk(ctx, kinds, func() { t, vms = c.newTree(), nil }, func(o types.ObjectContent) error {
		if o.Obj.Type != "VirtualMachine" {
			t.add(o)
			return nil
		}
		var vm mo.VirtualMachine
		if err := mo.LoadObjectContent([]types.ObjectContent{o}, &vm); err != nil {
			return err
		}
		if vm.Snapshot != nil {
			vms = append(vms, vm)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look for leftover snapshots: %w", err)
	}
	var out []hunted
	var now time.Time
	for _, vm := range vms {
		if vm.Parent != nil {
			t.nodes[vm.Self] = node{name: vm.Name, parent: *vm.Parent}
		}
		for _, s := range flatten(vm.Snapshot) {
			mk, ours := parseMark(s.Name, s.Description)
			if !ours {
				continue
			}
			l := Leftover{Kind: EntrySnapshot, Operation: mk.operation, Machine: t.path(vm.Self), MachineID: vm.Self.Value, Object: s.ID, Host: mk.host, Since: s.Created}
			if mk.journal == j.id {
				// Somebody may have begun since claim looked.
				if slices.Contains(live, mk.operation) || j.running(mk.operation) {
					l.Keep = keepRunning
				}
			} else {
				l.Keep = keepOther
				if others > 0 {
					if now.IsZero() {
						if now, err = c.Now(ctx); err != nil {
							return nil, err
						}
					}
					if now.Sub(s.Created) > others {
						l.Keep = ""
					}
				}
			}
			out = append(out, hunted{l, c.VM(Machine{ID: vm.Self.Value, Name: unescape(vm.Name), Path: t.path(vm.Self)})})
		}
	}
	slices.SortFunc(out, func(a, b hunted) int { return strings.Compare(a.Machine+a.Object, b.Machine+b.Object) })
	return out, nil
}

// Leftovers lists what [Client.Recover] would look at. It changes nothing.
func (c *Client) Leftovers(ctx context.Context, j *Journal) ([]Leftover, error) {
	entries, live, err := j.peek()
	errs := []error{err}
	var out []Leftover
	for _, l := range entries {
		if l.server != c.about.InstanceUUID {
			l.Keep = keepServer
		}
		if l.Kind != EntrySnapshot || l.Keep != "" { // snapshots come from vSphere itself
			out = append(out, l.Leftover)
		}
	}
	found, err := c.hunt(ctx, j, live, 0)
	errs = append(errs, err)
	for _, h := range found {
		out = append(out, h.Leftover)
	}
	marked, err := c.markedMachines(ctx, out)
	return append(out, marked...), errors.Join(append(errs, err)...)
}

// markedMachines are machines that say of themselves that they are half-made, and that the journal does not know.
// They are never destroyed on their word alone: a clone of one says the same.
func (c *Client) markedMachines(ctx context.Context, known []Leftover) ([]Leftover, error) {
	var out []Leftover
	err := c.walk(ctx, map[string][]string{"VirtualMachine": {"name", "config.annotation"}}, func() { out = nil }, func(o types.ObjectContent) error {
		var vm mo.VirtualMachine
		if err := mo.LoadObjectContent([]types.ObjectContent{o}, &vm); err != nil {
			return err
		}
		if vm.Config == nil {
			return nil
		}
		mk, ok := readMark(vm.Config.Annotation)
		if ok && !slices.ContainsFunc(known, func(l Leftover) bool { return l.Kind == EntryMachine && l.Operation == mk.operation }) {
			out = append(out, Leftover{Kind: EntryMachine, Operation: mk.operation, Machine: unescape(vm.Name), MachineID: o.Obj.Value, Object: o.Obj.Value, Host: mk.host, Keep: keepUnknown})
		}
		return nil
	})
	return out, err
}

// clockSkew is how far the server's clock is from ours.
func (c *Client) clockSkew(ctx context.Context) (time.Duration, error) {
	before := time.Now()
	now, err := methods.GetCurrentTime(ctx, c.vim)
	if err != nil {
		return 0, err
	}
	return now.Sub(before.Add(time.Since(before) / 2)), nil
}
