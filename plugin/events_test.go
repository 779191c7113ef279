package plugin_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/vmkeep/vmkeep/plugin"
)

// TestEventsKeepOrder: the host sees events in the order of their numbers, all but superseded figures, and the last
// figures of each disk.
func TestEventsKeepOrder(t *testing.T) {
	e := &echo{}
	for i := range 5000 {
		ev := plugin.Event{Seq: uint64(i + 1), Machine: "m", Disk: fmt.Sprint(i % 3), Kind: plugin.EventProgress, Progress: &plugin.Progress{Done: int64(i)}}
		if i%10 == 0 {
			ev = plugin.Event{Seq: uint64(i + 1), Machine: "m", Kind: plugin.EventPhase, Phase: plugin.Phase(fmt.Sprint(i))}
		}
		e.events = append(e.events, ev)
	}
	var last uint64
	phases := 0
	done := map[string]int64{}
	if _, err := connect(t, e).Backup(t.Context(), plugin.BackupRequest{}, func(ev plugin.Event) {
		if ev.Seq <= last {
			t.Errorf("event %d after %d", ev.Seq, last)
		}
		last = ev.Seq
		if ev.Kind == plugin.EventPhase {
			phases++
		} else {
			done[ev.Disk] = ev.Progress.Done
		}
	}); err != nil {
		t.Fatal(err)
	}
	if phases != 500 || done["0"] != 4998 || done["1"] != 4999 || done["2"] != 4997 {
		t.Errorf("got %d phases, figures %v", phases, done)
	}
}

// TestSlowHostsDoNotStopOperations: an operation with a snapshot open goes on while the host does not take events.
func TestSlowHostsDoNotStopOperations(t *testing.T) {
	over := make(chan struct{})
	e := &echo{during: func(context.Context) error { close(over); return nil }}
	for i := range 200_000 {
		e.events = append(e.events, plugin.Event{Seq: uint64(i + 1), Machine: "m", Kind: plugin.EventProgress, Progress: &plugin.Progress{Done: int64(i)}})
	}
	seen := 0
	var last plugin.Event
	_, err := connect(t, e).Backup(t.Context(), plugin.BackupRequest{}, func(ev plugin.Event) {
		if seen++; seen == 1 {
			<-over // deadlocks when the operation waits for the host
		}
		last = ev
	})
	if err != nil || last.Progress.Done != 199_999 {
		t.Errorf("got %v, last %+v of %d", err, last.Progress, seen)
	}
}

// TestCancelWaitsForCleanup: ending the host's context ends the plugin's, and the call returns after the cleanup, with
// the events of the cleanup.
func TestCancelWaitsForCleanup(t *testing.T) {
	for _, method := range []string{"Backup", "Restore", "Check", "Verify", "Prune", "Recover", "Forget", "InitRepository", "PlanRestore", "Configure"} {
		t.Run(method, func(t *testing.T) {
			running, cleaned := make(chan struct{}), false
			e := &echo{during: func(ctx context.Context) error {
				close(running)
				<-ctx.Done()
				cleaned = true
				return fmt.Errorf("backing up: %w", ctx.Err())
			}}
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				<-running
				cancel()
			}()
			err := everyMethod(connect(t, e))[method](ctx)
			if !cleaned {
				t.Error("the call returned before the cleanup")
			}
			if !errors.Is(err, context.Canceled) || plugin.CodeOf(err) != plugin.CodeCancelled {
				t.Errorf("got %#v", err)
			}
		})
	}
}

// TestDeadlinesCross: a deadline is an end of a context like any other, and is known as what it was.
func TestDeadlinesCross(t *testing.T) {
	e := &echo{during: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err := connect(t, e).Backup(ctx, plugin.BackupRequest{}, nil)
	if !errors.Is(err, context.DeadlineExceeded) || plugin.CodeOf(err) != plugin.CodeCancelled {
		t.Errorf("got %#v", err)
	}
}

// TestCancelledBeforehand: a call with an ended context does not reach the plugin.
func TestCancelledBeforehand(t *testing.T) {
	e := &echo{}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for method, call := range everyMethod(connect(t, e)) {
		if err := call(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: got %v", method, err)
		}
	}
	if len(e.asked) > 0 {
		t.Errorf("the plugin was asked %+v", e.asked)
	}
}

// TestDrainLearnsItsDeadline: the plugin knows how long the host will wait.
func TestDrainLearnsItsDeadline(t *testing.T) {
	var left time.Duration
	e := &echo{during: func(ctx context.Context) error {
		deadline, ok := ctx.Deadline()
		if !ok {
			return errors.New("no deadline")
		}
		left = time.Until(deadline)
		return nil
	}}
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	if err := connect(t, e).Drain(ctx); err != nil || left > time.Hour || left < 59*time.Minute {
		t.Errorf("got %v left, %v", left, err)
	}
}
