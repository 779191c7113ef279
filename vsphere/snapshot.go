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

// SnapshotOptions asks for a snapshot.
type SnapshotOptions struct {
	Operation *Operation // journal of the side effect; names the snapshot. Required.
	Quiesce   Quiesce
	MinFree   func(Datastore) int64 // bytes that a datastore must keep free before and while the snapshot lives; asked for those of the disks and of the home; nil: no guard
	Watch     time.Duration         // distance of looks at the free space while it lives; 0: 30 seconds
	Phase     func(phase string)    // told "snapshot", "read", "remove", "consolidate"; nil: nobody listens
}

// Lowered tells that a level was tried in vain, or could not be tried.
type Lowered struct {
	From    Level
	Reason  string
	Natural bool // the guest has nothing better: no reason to worry
}

// SnapshotReport is what became of a snapshot.
type SnapshotReport struct {
	ID           string // managed object id; empty: none was taken
	Name         string
	Level        Level     // reached
	Lowered      []Lowered // why not better
	Taken        time.Time // vSphere's clock
	Removed      bool      // seen to be gone
	Consolidated bool      // disks needed consolidation afterwards, and it was done
	Warnings     []string
}

// Snapshot is a snapshot of a machine that lives as long as the function given to [VM.WithSnapshot] runs.
type Snapshot struct {
	vm    *VM
	id    string
	disks []Disk
	state *State
	level Level
	low   []Lowered
	taken time.Time
}

// ID is the managed object id; empty when the machine is read without a snapshot, as templates are.
func (s *Snapshot) ID() string { return s.id }

// Disks are the disks as they are frozen, in the order of their names. Path names the frozen link. Disks that no
// snapshot holds are listed too, as the running machine has them, with Unprotected telling why.
func (s *Snapshot) Disks() []Disk { return s.disks }

// State is the machine at the time of the snapshot; ConfigInfo is the snapshot's own.
func (s *Snapshot) State() *State { return s.state }

// Level is the level reached.
func (s *Snapshot) Level() Level { return s.level }

// Lowered says why the level is not better.
func (s *Snapshot) Lowered() []Lowered { return s.low }

// Taken is when the snapshot was taken, by vSphere's clock.
func (s *Snapshot) Taken() time.Time { return s.taken }

// WithSnapshot runs fn with a snapshot of the machine and removes it: after fn returned, failed or panicked, after ctx
// ended, with a new session when the old one died. It waits until the snapshot is seen to be gone from the tree, and
// consolidates disks that need it afterwards. What could not be removed is an [ErrLeftover], stays in the journal and
// is found by [Client.Recover].
//
// The snapshot never holds memory. Snapshots of others are not touched, neither below ours nor above. Templates, which
// cannot be snapshotted, are read as they lie, and were so all along: if one was changed meanwhile, that is an error.
// Machines that are off get a snapshot like others: nobody can be kept from switching them on while their disks are read,
// and the change id of the next increment is that of a snapshot.
// fn's context ends when a datastore falls below its MinFree; the cause is [ErrSpace] then.
//
// The report is valid also when an error is returned.
func (v *VM) WithSnapshot(ctx context.Context, opts SnapshotOptions, fn func(context.Context, *Snapshot) error) (report SnapshotReport, err error) {
	phase := func(name string) {
		if opts.Phase != nil {
			opts.Phase(name)
		}
	}
	if opts.Operation == nil {
		return report, &Error{Kind: ErrInvalid, Summary: "no operation is given for the snapshot", Remedy: "begin one with Journal.Begin"}
	}
	ladder, err := opts.Quiesce.ladder()
	if err != nil {
		return report, err
	}
	live, err := v.State(ctx)
	if err != nil {
		return report, err
	}
	if live.Template {
		return v.withoutSnapshot(ctx, live, fn)
	}
	if err := v.guard(ctx, live, opts.MinFree); err != nil {
		return report, err
	}
	if err := v.c.mayUndo(ctx, "snapshot of "+v.label(), v.ref(), "VirtualMachine.State.RemoveSnapshot"); err != nil {
		return report, err
	}
	report.Name = opts.Operation.snapshotName()
	mark, err := opts.Operation.announce(entry{Kind: EntrySnapshot, Server: v.c.about.InstanceUUID, Machine: v.ID(), Path: v.label(), Object: report.Name})
	if err != nil {
		return report, err
	}
	t := &taking{v: v, op: opts.Operation, quiesce: opts.Quiesce}
	defer func() {
		// Also on panic and on runtime.Goexit. err is still nil then and nobody reads it.
		after, cancel := v.c.afterwards(ctx)
		defer cancel()
		phase("remove")
		if e := v.remove(after, t, &report, phase); e != nil {
			err = errors.Join(err, e)
			return
		}
		if e := mark.strike(); e != nil {
			err = errors.Join(err, e)
		}
	}()

	phase("snapshot")
	taken, err := t.climb(ctx, live, ladder)
	report.Level, report.Lowered = t.level, t.low
	if err != nil {
		return report, err
	}
	report.ID, report.Taken = taken.ID, taken.Created
	if err := mark.note(taken.ID); err != nil {
		return report, err
	}
	s, err := v.frozen(ctx, live, taken)
	if err != nil {
		return report, err
	}
	s.level, s.low = t.level, t.low

	phase("read")
	watched, stop := v.watch(ctx, live, opts)
	defer stop()
	if err := fn(watched, s); err != nil {
		if ctx.Err() == nil && watched.Err() != nil {
			return report, errors.Join(context.Cause(watched), err)
		}
		return report, err
	}
	return report, nil
}

// withoutSnapshot runs fn on a template. Its disks are closed and nobody writes to them unless it becomes a machine.
func (v *VM) withoutSnapshot(ctx context.Context, live *State, fn func(context.Context, *Snapshot) error) (SnapshotReport, error) {
	s := &Snapshot{vm: v, state: live, disks: live.Disks, level: LevelOff}
	var err error
	if s.taken, err = v.c.Now(ctx); err != nil {
		return SnapshotReport{}, err
	}
	report := SnapshotReport{Level: LevelOff, Taken: s.taken, Removed: true}
	if err := fn(ctx, s); err != nil {
		return report, err
	}
	vm, err := v.read(ctx, "config.template", "config.changeVersion")
	if err != nil {
		return report, err
	}
	if vm.Config == nil || !vm.Config.Template || vm.Config.ChangeVersion != live.ChangeVersion {
		return report, &Error{Kind: ErrSnapshot, Object: v.label(), Summary: fmt.Sprintf("template %s was changed while it was read", v.label()), Remedy: "back it up again"}
	}
	return report, nil
}

// frozen reads the snapshot's own configuration.
func (v *VM) frozen(ctx context.Context, live *State, taken SnapshotInfo) (*Snapshot, error) {
	var ms mo.VirtualMachineSnapshot
	if err := v.c.one(ctx, ref{Type: "VirtualMachineSnapshot", Value: taken.ID}, []string{"config"}, &ms); err != nil {
		return nil, fmt.Errorf("read the snapshot of %s: %w", v.label(), err)
	}
	state := *live
	var err error
	if state.ConfigInfo, err = encodeConfig(ms.Config); err != nil {
		return nil, fmt.Errorf("snapshot of %s: %w", v.label(), err)
	}
	state.Disks = disksOf(ms.Config.Hardware.Device)
	s := &Snapshot{vm: v, id: taken.ID, state: &state, disks: state.Disks, taken: taken.Created}
	return s, nil
}

// taking is the making of a snapshot. It remembers what a cleanup needs to know.
type taking struct {
	v       *VM
	op      *Operation
	quiesce Quiesce
	level   Level
	low     []Lowered

	tasks   []ref // creations begun
	unknown bool  // a creation's answer was lost: there may be one more
}

// lower notes that the ladder goes down a rung.
func (t *taking) lower(from Level, reason string, natural bool) {
	t.low = append(t.low, Lowered{From: from, Reason: reason, Natural: natural})
}

// climb takes the snapshot at the best level of the ladder that holds.
func (t *taking) climb(ctx context.Context, live *State, ladder []Level) (SnapshotInfo, error) {
	var failed error
	for i, level := range ladder {
		if reason, natural := unfit(level, live); reason != "" {
			t.lower(level, reason, natural)
			failed = &Error{Kind: ErrQuiesce, Object: t.v.label(), Summary: fmt.Sprintf("machine %s: no snapshot of consistency %q: %s", t.v.label(), level, reason),
				Remedy: "allow a lower consistency, or mend the reason"}
			continue
		}
		s, err := t.try(ctx, level, live)
		if err == nil {
			t.level = level
			if live.Power == PoweredOff {
				t.level = LevelOff
			}
			return s, nil
		}
		if ctx.Err() != nil {
			return SnapshotInfo{}, fmt.Errorf("snapshot of %s: %w", t.v.label(), context.Cause(ctx))
		}
		failed = err
		if level == LevelCrash || !quiesceMayBeGuilty(err) {
			return SnapshotInfo{}, snapshotError(t.v, err)
		}
		t.lower(level, err.Error(), false)
		t.v.c.log.Warn("quiesced snapshot failed", "machine", t.v.label(), "level", string(level), "error", err)
		// A try may have left a snapshot behind that is not good enough, or one whose answer was lost.
		if i+1 < len(ladder) {
			if err := t.clear(ctx); err != nil {
				return SnapshotInfo{}, err
			}
		}
	}
	var e *Error
	if errors.As(failed, &e) && e.Kind == ErrQuiesce {
		return SnapshotInfo{}, e
	}
	return SnapshotInfo{}, &Error{Kind: ErrQuiesce, Object: t.v.label(), Err: failed, Summary: fmt.Sprintf("machine %s cannot be quiesced as demanded", t.v.label()),
		Remedy: "allow a lower consistency, or look at VMware Tools and the VSS writers in the guest"}
}

// snapshotError makes sure that a failed creation answers to ErrSnapshot or something more precise.
func snapshotError(v *VM, err error) error {
	var e *Error
	if errors.As(err, &e) {
		return err
	}
	remedy := "look at the machine's events in vSphere"
	var many *types.TooManySnapshotLevels
	if asFault(err, &many) {
		remedy = "remove snapshots of the machine: it has reached the highest number"
	}
	var device *types.SnapshotIncompatibleDeviceInVm
	if asFault(err, &device) {
		remedy = "a device of the machine forbids snapshots while it runs, as a disk on a shared bus does: back it up when it is off, or from inside the guest"
	}
	if strings.Contains(err.Error(), "ctk") {
		remedy = "a stale *-ctk.vmdk is in the way: reset change tracking of the machine"
	}
	return &Error{Kind: ErrSnapshot, Object: v.label(), Summary: "machine " + v.label() + " cannot be snapshotted", Err: err, Remedy: remedy}
}

// try takes one snapshot.
func (t *taking) try(ctx context.Context, level Level, live *State) (SnapshotInfo, error) {
	quiesced := level != LevelCrash && live.Power == PoweredOn
	limit, cancel := context.WithTimeout(ctx, t.quiesce.timeout())
	defer cancel()
	what := "snapshot of " + t.v.label()
	for attempt := 0; ; attempt++ {
		var task ref
		result, err := t.v.c.run(limit, what, func(ctx context.Context) (ref, error) {
			var err error
			task, err = t.create(ctx, level, quiesced, live)
			return task, err
		})
		if err != nil && limit.Err() != nil && ctx.Err() == nil {
			if task.Value == "" {
				return SnapshotInfo{}, &Error{Kind: ErrBusy, Object: t.v.label(), Err: err, Summary: fmt.Sprintf("%s: other tasks held the machine for %v", what, t.quiesce.timeout()), Remedy: "wait for them and repeat"}
			}
			result, err = t.late(ctx, task)
		}
		if err != nil && ctx.Err() == nil && attempt < 3 && t.unknown && errors.Is(err, ErrUnreachable) {
			// The answer was lost; the snapshot may be there, or be on its way.
			s, found, e := t.find(ctx)
			if e != nil {
				return SnapshotInfo{}, errors.Join(err, e)
			}
			if found {
				return t.accept(s, level, quiesced, live)
			}
			continue
		}
		if err != nil {
			return SnapshotInfo{}, err
		}
		made, ok := result.(ref)
		if !ok {
			return SnapshotInfo{}, fmt.Errorf("%s: the task returned %T instead of a snapshot", what, result)
		}
		list, err := t.v.snapshots(ctx)
		if err != nil {
			return SnapshotInfo{}, err
		}
		for _, s := range list {
			if s.ID == made.Value {
				return t.accept(s, level, quiesced, live)
			}
		}
		return SnapshotInfo{}, &Error{Kind: ErrSnapshot, Object: t.v.label(), Summary: fmt.Sprintf("%s: %s was made and is gone", what, made.Value),
			Remedy: "somebody else removes snapshots: see the machine's events"}
	}
}

// accept checks that a snapshot is as quiesced as it was asked to be: vSphere ignores the wish in silence when the
// guest cannot.
func (t *taking) accept(s SnapshotInfo, level Level, quiesced bool, live *State) (SnapshotInfo, error) {
	if quiesced && !s.Quiesced {
		return SnapshotInfo{}, &Error{Kind: ErrQuiesce, Object: t.v.label(), Summary: fmt.Sprintf("machine %s: vSphere took the snapshot without quiescing", t.v.label()),
			Remedy: "look at VMware Tools in the guest"}
	}
	return s, nil
}

// create starts the creation.
func (t *taking) create(ctx context.Context, level Level, quiesced bool, live *State) (ref, error) {
	name, desc := t.op.snapshotName(), t.op.mark()
	var task ref
	var err error
	if quiesced && windowsGuest(live) {
		var res *types.CreateSnapshotEx_TaskResponse
		res, err = methods.CreateSnapshotEx_Task(ctx, t.v.c.vim, &types.CreateSnapshotEx_Task{This: t.v.ref(), Name: name, Description: desc, QuiesceSpec: t.quiesce.vss(level)})
		if err == nil {
			task = res.Returnval
		}
	} else {
		var res *types.CreateSnapshot_TaskResponse
		res, err = methods.CreateSnapshot_Task(ctx, t.v.c.vim, &types.CreateSnapshot_Task{This: t.v.ref(), Name: name, Description: desc, Quiesce: quiesced})
		if err == nil {
			task = res.Returnval
		}
	}
	if err != nil {
		t.unknown = t.unknown || !isFault(err)
		return ref{}, err
	}
	t.tasks = append(t.tasks, task)
	return task, nil
}

// lateGrace is how long a creation may take beyond its time.
const lateGrace = 5 * time.Minute

// late waits for a creation that takes too long. It is not cancelled: vSphere hardly ever can, a guest in the middle
// of a freeze is better left to thaw by itself, and a task that is said to be cancelled may make its snapshot still.
// What it makes in the end is as good as if it had been quick.
func (t *taking) late(ctx context.Context, task ref) (any, error) {
	ctx, cancel := context.WithTimeout(ctx, lateGrace)
	defer cancel()
	result, err := t.v.c.wait(ctx, task)
	if err != nil {
		return nil, &Error{Kind: ErrQuiesce, Object: t.v.label(), Err: plain(err), Summary: fmt.Sprintf("machine %s: the snapshot took longer than %v and failed", t.v.label(), t.quiesce.timeout()),
			Remedy: "raise the timeout, or look at VMware Tools and the load of the guest"}
	}
	return result, nil
}

// settle waits until no creation of a snapshot runs on the machine. That a creation failed is no error here; that its
// fate cannot be learnt is.
func (t *taking) settle(ctx context.Context) error {
	for _, task := range t.tasks {
		err := t.v.c.insist(ctx, func() error {
			_, err := t.v.c.wait(ctx, task)
			var ended faultError
			if errors.As(err, &ended) || isNotFound(err) {
				return nil
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	if !t.unknown {
		return nil
	}
	return t.v.c.insist(ctx, func() error { return t.v.c.quiet(ctx, t.v.ref(), "createsnapshot") })
}

// find looks for the operation's snapshot after all creations ended.
func (t *taking) find(ctx context.Context) (SnapshotInfo, bool, error) {
	if err := t.settle(ctx); err != nil {
		return SnapshotInfo{}, false, err
	}
	list, err := t.v.snapshots(ctx)
	for _, s := range list {
		if s.Operation == t.op.id {
			return s, true, nil
		}
	}
	return SnapshotInfo{}, false, err
}

// clear removes what a try left behind.
func (t *taking) clear(ctx context.Context) error {
	if err := t.settle(ctx); err != nil {
		return err
	}
	return t.v.removeSnapshots(ctx, func(s SnapshotInfo) bool { return s.Operation == t.op.id })
}

// remove removes the operation's snapshot from the machine, verified, and consolidates.
func (v *VM) remove(ctx context.Context, t *taking, report *SnapshotReport, phase func(string)) error {
	leftover := func(err error) error {
		return &Error{Kind: ErrLeftover, Object: v.label(), Summary: fmt.Sprintf("the snapshot %s of machine %s could not be removed", report.Name, v.label()), Err: err,
			Remedy: "run vmkeep recover; if it fails too, remove the snapshot in vSphere"}
	}
	if err := t.settle(ctx); err != nil && !isNotFound(err) {
		return leftover(err)
	}
	if err := v.removeSnapshots(ctx, func(s SnapshotInfo) bool { return s.Operation == t.op.id || report.ID != "" && s.ID == report.ID }); err != nil {
		return leftover(err)
	}
	report.Removed = true
	done, err := v.consolidate(ctx, phase)
	report.Consolidated = done
	if err != nil && !isNotFound(err) {
		report.Warnings = append(report.Warnings, fmt.Sprintf("the disks of %s need consolidation, which failed: %v; consolidate them in vSphere, or they keep growing", v.label(), err))
	}
	return nil
}

// cleanupTries is how often a step of a cleanup that fails is tried again; busy machines and lost connections are
// waited for without counting.
const cleanupTries = 6

// insist repeats a step of a cleanup whatever its error is: a cleanup that gives up at the first strange answer leaves
// a trace. That the object is gone is no strange answer.
func (c *Client) insist(ctx context.Context, step func() error) error {
	for attempt := 0; ; attempt++ {
		err := step()
		hopeless := errors.Is(err, ErrPermission) || errors.Is(err, ErrLogin) || errors.Is(err, ErrClosed) || errors.Is(err, ErrLicense) || errors.Is(err, errWhose)
		if err == nil || isNotFound(err) || hopeless || ctx.Err() != nil || attempt == cleanupTries {
			return err
		}
		c.log.Warn("cleanup step failed", "attempt", attempt+1, "error", err)
		if e := sleep(ctx, c.s.backoff(attempt)); e != nil {
			return errors.Join(err, e)
		}
	}
}

// removeSnapshots removes the machine's snapshots that are ours by the given test and reads the tree until none is
// left. Snapshots taken on top of them stay. A machine that is gone has none.
func (v *VM) removeSnapshots(ctx context.Context, ours func(SnapshotInfo) bool) error {
	err := v.c.insist(ctx, func() error {
		list, err := v.snapshots(ctx)
		if err != nil {
			return err
		}
		for _, s := range list {
			if !ours(s) {
				continue
			}
			yes := true
			_, err := v.c.run(ctx, "remove snapshot "+s.Name+" of "+v.label(), func(ctx context.Context) (ref, error) {
				res, err := methods.RemoveSnapshot_Task(ctx, v.c.vim, &types.RemoveSnapshot_Task{This: ref{Type: "VirtualMachineSnapshot", Value: s.ID}, Consolidate: &yes})
				if err != nil {
					return ref{}, err
				}
				return res.Returnval, nil
			})
			if err != nil && !isNotFound(err) { // gone meanwhile, or an answer was lost: the tree tells
				return err
			}
		}
		if list, err = v.snapshots(ctx); err != nil {
			return err
		}
		if i := slices.IndexFunc(list, ours); i >= 0 {
			return fmt.Errorf("snapshot %s of %s is still in the tree after its removal", list[i].Name, v.label())
		}
		return nil
	})
	if isNotFound(err) {
		return nil // the machine is gone
	}
	return err
}

// consolidate merges deltas that a removal left behind and reports whether it had to.
func (v *VM) consolidate(ctx context.Context, phase func(string)) (done bool, err error) {
	err = v.c.insist(ctx, func() error {
		for range 2 {
			vm, err := v.read(ctx, "runtime.consolidationNeeded")
			if err != nil {
				return err
			}
			if !vm.Runtime.ConsolidationNeeded {
				return nil
			}
			phase("consolidate")
			if _, err := v.c.run(ctx, "consolidate the disks of "+v.label(), func(ctx context.Context) (ref, error) {
				res, err := methods.ConsolidateVMDisks_Task(ctx, v.c.vim, &types.ConsolidateVMDisks_Task{This: v.ref()})
				if err != nil {
					return ref{}, err
				}
				return res.Returnval, nil
			}); err != nil {
				return err
			}
			done = true
		}
		return errors.New("it is still needed after it was done")
	})
	return done && err == nil, err
}
