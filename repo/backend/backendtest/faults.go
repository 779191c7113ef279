package backendtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// ErrInjected is what failing operations fail with; ErrCrashed is what all operations after a crash fail with.
var (
	ErrInjected = errors.New("injected fault")
	ErrCrashed  = backend.Permanent(errors.New("store is gone"))
)

// Verb names a method of a backend.
type Verb string

// The verbs.
const (
	Save   Verb = "save"
	Load   Verb = "load"
	Stat   Verb = "stat"
	List   Verb = "list"
	Remove Verb = "remove"
)

// Op is one operation as a backend was asked for it. Size is the length of what is saved.
type Op struct {
	Verb   Verb
	Handle backend.Handle // only Type for List
	Size   int
}

func (op Op) String() string {
	if op.Verb == List {
		return "list " + string(op.Handle.Type)
	}
	return string(op.Verb) + " " + op.Handle.String()
}

// Changes reports whether the operation writes or removes something.
func (op Op) Changes() bool { return op.Verb == Save || op.Verb == Remove }

// Is matches operations with one of the verbs.
func Is(verbs ...Verb) func(Op) bool {
	return func(op Op) bool { return slices.Contains(verbs, op.Verb) }
}

// OfType matches operations on one of the file types.
func OfType(types ...restic.FileType) func(Op) bool {
	return func(op Op) bool { return slices.Contains(types, op.Handle.Type) }
}

// Fault is what goes wrong at the n-th operation it is shown, counting from 1. Faults are values and may be
// shared; their state lies in the [Faults] they are given to.
type Fault interface {
	at(n int, op Op) effect
}

// effect of a fault on one operation. The zero effect is none.
type effect struct {
	before func(context.Context, Op) error // runs first; its error is the operation's
	after  error                           // the operation is done, but its answer is this
	keep   int                             // bytes of a Load that are delivered before it breaks with cut
	cut    error
	torn   int // bytes of a Save that become visible under its name; counts if crash
	crash  bool
}

type faultFunc func(n int, op Op) effect

func (f faultFunc) at(n int, op Op) effect { return f(n, op) }

// Fail makes the n-th operation fail without having any effect.
func Fail(n int) Fault {
	return Do(n, func(context.Context, Op) error { return ErrInjected })
}

// FailAlways makes every operation fail with err.
func FailAlways(err error) Fault {
	return Do(0, func(context.Context, Op) error { return err })
}

// LoseAnswer makes the n-th operation fail although it was done: the connection broke before the answer.
func LoseAnswer(n int) Fault {
	return faultFunc(func(i int, _ Op) effect {
		if i != n {
			return effect{}
		}
		return effect{after: ErrInjected}
	})
}

// Break makes the n-th operation break in the middle: a Load after keep bytes, any other before its effect.
func Break(n, keep int) Fault {
	return faultFunc(func(i int, op Op) effect {
		switch {
		case i != n:
			return effect{}
		case op.Verb == Load:
			return effect{keep: keep, cut: ErrInjected}
		}
		return effect{before: func(context.Context, Op) error { return ErrInjected }}
	})
}

// Crash drops the n-th operation and everything after it with [ErrCrashed].
func Crash(n int) Fault { return Tear(n, -1) }

// Tear is [Crash], but if the n-th operation is a Save, its first keep bytes lie under its name afterwards, as
// only stores without atomic writes leave them. keep -1 means that there is no file.
func Tear(n, keep int) Fault {
	return faultFunc(func(i int, _ Op) effect {
		if i < n {
			return effect{}
		}
		if i > n {
			return effect{crash: true, torn: -1}
		}
		return effect{crash: true, torn: keep}
	})
}

// Delay holds every operation for d, or until its context ends. Use it inside testing/synctest.
func Delay(d time.Duration) Fault {
	return Do(0, func(ctx context.Context, _ Op) error {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
}

// Do calls fn before the n-th operation, or before all if n is 0; its error is the operation's.
func Do(n int, fn func(context.Context, Op) error) Fault {
	return faultFunc(func(i int, _ Op) effect {
		if n != 0 && i != n {
			return effect{}
		}
		return effect{before: fn}
	})
}

// On shows the fault only the operations that all of match accept; it counts only these.
func On(f Fault, match ...func(Op) bool) Fault { return filtered{f, match} }

type filtered struct {
	Fault
	match []func(Op) bool
}

func (f filtered) sees(op Op) bool {
	for _, m := range f.match {
		if !m(op) {
			return false
		}
	}
	if inner, ok := f.Fault.(filtered); ok {
		return inner.sees(op)
	}
	return true
}

// Faults is a backend in front of another one in which things go wrong, and which remembers what was asked.
type Faults struct {
	backend.Backend

	mu     sync.Mutex
	faults []counted
	ops    []Op
	gone   bool // crashed
}

type counted struct {
	Fault
	n int
}

var _ backend.Backend = (*Faults)(nil)

// Inject puts faults in front of b; without any it counts and records.
func Inject(b backend.Backend, faults ...Fault) *Faults {
	f := &Faults{Backend: b}
	for _, fault := range faults {
		f.faults = append(f.faults, counted{Fault: fault})
	}
	return f
}

// Ops is what was asked so far, in order.
func (f *Faults) Ops() []Op {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.ops)
}

// Count tells how many operations all of match accept.
func (f *Faults) Count(match ...func(Op) bool) int {
	n := 0
	for _, op := range f.Ops() {
		if (filtered{match: match}).sees(op) {
			n++
		}
	}
	return n
}

// record notes op and adds up what the faults make of it.
func (f *Faults) record(op Op) (total effect, gone bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ops = append(f.ops, op)
	if f.gone {
		return effect{}, true
	}
	var befores []func(context.Context, Op) error
	for i := range f.faults {
		c := &f.faults[i]
		if filter, ok := c.Fault.(filtered); ok && !filter.sees(op) {
			continue
		}
		c.n++
		e := c.at(c.n, op)
		if e.before != nil {
			befores = append(befores, e.before)
		}
		if e.after != nil {
			total.after = e.after
		}
		if e.cut != nil {
			total.cut, total.keep = e.cut, e.keep
		}
		if e.crash {
			total.crash, total.torn, f.gone = true, e.torn, true
		}
	}
	total.before = func(ctx context.Context, op Op) error {
		for _, fn := range befores {
			if err := fn(ctx, op); err != nil {
				return err
			}
		}
		return nil
	}
	return total, false
}

func (f *Faults) run(ctx context.Context, op Op, do func(effect) error) error {
	e, gone := f.record(op)
	if gone {
		return fmt.Errorf("%s: %w", op, ErrCrashed)
	}
	if err := e.before(ctx, op); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	if e.crash && (op.Verb != Save || e.torn < 0) {
		return fmt.Errorf("%s: %w", op, ErrCrashed)
	}
	if err := do(e); err != nil {
		return err
	}
	if e.crash {
		return fmt.Errorf("%s: %w", op, ErrCrashed)
	}
	if e.after != nil {
		return fmt.Errorf("%s: %w", op, e.after)
	}
	return nil
}

// Save passes on, tears or fails.
func (f *Faults) Save(ctx context.Context, h backend.Handle, data []byte) error {
	return f.run(ctx, Op{Save, h, len(data)}, func(e effect) error {
		if e.crash {
			data = data[:min(e.torn, len(data))]
		}
		return f.Backend.Save(ctx, h, data)
	})
}

// Load passes on, breaks off or fails.
func (f *Faults) Load(ctx context.Context, h backend.Handle, offset, length int64, fn func(io.Reader) error) error {
	return f.run(ctx, Op{Load, h, 0}, func(e effect) error {
		return f.Backend.Load(ctx, h, offset, length, func(r io.Reader) error {
			if e.cut == nil {
				return fn(r)
			}
			broken := io.MultiReader(io.LimitReader(r, int64(e.keep)), failing{e.cut})
			return errors.Join(fn(broken), e.cut)
		})
	})
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// Stat passes on or fails.
func (f *Faults) Stat(ctx context.Context, h backend.Handle) (info backend.FileInfo, err error) {
	err = f.run(ctx, Op{Stat, h, 0}, func(effect) error {
		info, err = f.Backend.Stat(ctx, h)
		return err
	})
	return info, err
}

// List passes on or fails.
func (f *Faults) List(ctx context.Context, t restic.FileType, fn func(backend.FileInfo) error) error {
	return f.run(ctx, Op{List, backend.Handle{Type: t}, 0}, func(effect) error {
		return f.Backend.List(ctx, t, fn)
	})
}

// Remove passes on or fails.
func (f *Faults) Remove(ctx context.Context, h backend.Handle) error {
	return f.run(ctx, Op{Remove, h, 0}, func(effect) error {
		return f.Backend.Remove(ctx, h)
	})
}
