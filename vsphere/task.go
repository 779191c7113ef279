package vsphere

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// defaultPoll looks at a task after 50, 100, ... up to 1000 milliseconds.
func defaultPoll(attempt int) time.Duration {
	return min(50*time.Millisecond<<min(attempt, 5), time.Second)
}

// wait waits for a task and returns its result. Looking at it now and then, instead of waiting for updates, survives
// the end of a session: filters of the property collector die with it, tasks do not.
//
// When ctx ends the task goes on; the caller decides what that means.
func (c *Client) wait(ctx context.Context, task ref) (any, error) {
	for attempt := 0; ; attempt++ {
		var t mo.Task
		if err := c.one(ctx, task, []string{"info"}, &t); err != nil {
			return nil, fmt.Errorf("task %s: %w", task.Value, err)
		}
		switch t.Info.State {
		case types.TaskInfoStateSuccess:
			return t.Info.Result, nil
		case types.TaskInfoStateError:
			if t.Info.Error == nil {
				return nil, fmt.Errorf("task %s failed without a reason", task.Value)
			}
			return nil, faultError{*t.Info.Error}
		}
		if err := sleep(ctx, c.poll(attempt)); err != nil {
			return nil, err
		}
	}
}

// run starts a task and waits for its end. While another task holds the machine it waits and tries again: that is a
// state that passes, told either by the call or by the task. what names the action in errors.
func (c *Client) run(ctx context.Context, what string, start func(context.Context) (ref, error)) (any, error) {
	began := time.Now()
	for attempt := 0; ; attempt++ {
		task, err := start(ctx)
		var result any
		if err == nil {
			if result, err = c.wait(ctx, task); err == nil {
				return result, nil
			}
		}
		if ctx.Err() == nil && fault.Is(err, &types.TaskInProgress{}) && time.Since(began) < c.busyWait {
			c.log.Debug("another task is in progress, waiting", "action", what)
			if err := sleep(ctx, c.poll(attempt)); err != nil {
				return nil, fmt.Errorf("%s: %w", what, err)
			}
			continue
		}
		var e *Error
		if errors.As(err, &e) {
			return nil, err
		}
		if e := explainFault(what, err); e != nil {
			return nil, e
		}
		return nil, fmt.Errorf("%s: %w", what, plain(err))
	}
}

// reconfigure changes a machine.
func (v *VM) reconfigure(ctx context.Context, what string, spec types.VirtualMachineConfigSpec) error {
	_, err := v.c.run(ctx, what, func(ctx context.Context) (ref, error) {
		res, err := methods.ReconfigVM_Task(ctx, v.c.vim, &types.ReconfigVM_Task{This: v.ref(), Spec: spec})
		if err != nil {
			return ref{}, err
		}
		return res.Returnval, nil
	})
	return err
}

// quiet waits until no task of a kind, a part of its name in small letters, runs on an object. It is how the fate of a
// call is learnt whose answer was lost.
func (c *Client) quiet(ctx context.Context, on ref, kind string) error {
	runs := func(t mo.Task) bool {
		running := t.Info.State == types.TaskInfoStateQueued || t.Info.State == types.TaskInfoStateRunning
		return running && strings.Contains(strings.ToLower(t.Info.DescriptionId+" "+t.Info.Name), kind)
	}
	for attempt := 0; ; attempt++ {
		tasks, err := c.recentTasks(ctx, on)
		if err != nil || !slices.ContainsFunc(tasks, runs) {
			return err
		}
		if err := sleep(ctx, c.poll(attempt)); err != nil {
			return err
		}
	}
}

// recentTasks returns the tasks of an object that run or ended some minutes ago, in one call: a proxy that disks are
// added to and removed from has hundreds. Those that are forgotten meanwhile are not among them.
func (c *Client) recentTasks(ctx context.Context, on ref) (tasks []mo.Task, err error) {
	yes := true
	spec := types.PropertyFilterSpec{
		ObjectSet: []types.ObjectSpec{{Obj: on, Skip: &yes,
			SelectSet: []types.BaseSelectionSpec{&types.TraversalSpec{Type: on.Type, Path: "recentTask"}}}},
		PropSet: []types.PropertySpec{{Type: "Task", PathSet: []string{"info"}}},
	}
	err = c.pass(ctx, func() error {
		content, err := c.pages(ctx, spec, nil)
		if err != nil {
			return err
		}
		return mo.LoadObjectContent(content, &tasks)
	})
	return tasks, err
}
