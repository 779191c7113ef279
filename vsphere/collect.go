package vsphere

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// pageSize is how many objects one answer holds while the inventory is walked. It bounds memory: a machine with its
// devices is some 10 KiB on the wire, a few hundred bytes as [Machine].
const pageSize = 100

type ref = types.ManagedObjectReference

// retrieve loads properties of single objects into dst, a slice of a mo type. Properties that cannot be read for lack
// of a right stay empty.
func (c *Client) retrieve(ctx context.Context, objs []ref, paths []string, dst any) error {
	if len(objs) == 0 {
		return nil
	}
	byType := make(map[string]bool)
	var spec types.PropertyFilterSpec
	for _, o := range objs {
		spec.ObjectSet = append(spec.ObjectSet, types.ObjectSpec{Obj: o})
		if !byType[o.Type] {
			byType[o.Type] = true
			spec.PropSet = append(spec.PropSet, types.PropertySpec{Type: o.Type, PathSet: paths})
		}
	}
	return c.pass(ctx, func() error {
		content, err := c.pages(ctx, spec, nil)
		if err != nil {
			return err
		}
		return mo.LoadObjectContent(content, dst)
	})
}

// one loads properties of one object into dst, a pointer to a mo struct.
func (c *Client) one(ctx context.Context, obj ref, paths []string, dst any) error {
	spec := types.PropertyFilterSpec{
		ObjectSet: []types.ObjectSpec{{Obj: obj}},
		PropSet:   []types.PropertySpec{{Type: obj.Type, PathSet: paths}},
	}
	return c.pass(ctx, func() error {
		content, err := c.pages(ctx, spec, nil)
		if err != nil {
			return err
		}
		if len(content) == 0 {
			return &Error{Kind: ErrNotFound, Object: obj.String(), Summary: obj.String() + " is gone", Remedy: "it was removed meanwhile: list again"}
		}
		return mo.LoadObjectContent(content, dst)
	})
}

// all loads properties of every object of a kind into dst, a slice of a mo type.
func (c *Client) all(ctx context.Context, kind string, paths []string, dst any) error {
	var content []types.ObjectContent
	err := c.walk(ctx, map[string][]string{kind: paths}, func() { content = nil }, func(o types.ObjectContent) error {
		content = append(content, o)
		return nil
	})
	if err != nil {
		return err
	}
	return mo.LoadObjectContent(content, dst)
}

// pass runs fn, and runs it again when the session changed underneath: views and paging tokens die with theirs.
func (c *Client) pass(ctx context.Context, fn func() error) error {
	for attempt := 0; ; attempt++ {
		n, _ := c.s.generation()
		err := fn()
		if err == nil || ctx.Err() != nil || attempt == 3 {
			return err
		}
		if fault.Is(err, &types.NotAuthenticated{}) { // told per property, not per call
			if err := c.s.login(ctx, n); err != nil {
				return err
			}
			continue
		}
		if now, _ := c.s.generation(); now == n {
			return err
		}
	}
}

// walk visits every object of the given kinds below the root folder, in one pass of the property collector, page by
// page. restart is called before each attempt: what was visited before does not count any more.
func (c *Client) walk(ctx context.Context, kinds map[string][]string, restart func(), visit func(types.ObjectContent) error) error {
	return c.pass(ctx, func() error {
		restart()
		names := make([]string, 0, len(kinds))
		for k := range kinds {
			names = append(names, k)
		}
		slices.Sort(names)
		view, err := methods.CreateContainerView(ctx, c.vim, &types.CreateContainerView{
			This: *c.vim.ServiceContent.ViewManager, Container: c.vim.ServiceContent.RootFolder, Type: names, Recursive: true})
		if err != nil {
			return err
		}
		defer func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
			defer cancel()
			if _, err := methods.DestroyView(ctx, c.vim, &types.DestroyView{This: view.Returnval}); err != nil {
				c.log.Debug("view not destroyed", "error", err) // it goes with the session
			}
		}()
		yes := true
		spec := types.PropertyFilterSpec{ObjectSet: []types.ObjectSpec{{
			Obj: view.Returnval, Skip: &yes,
			SelectSet: []types.BaseSelectionSpec{&types.TraversalSpec{Type: "ContainerView", Path: "view"}},
		}}}
		for _, k := range names {
			spec.PropSet = append(spec.PropSet, types.PropertySpec{Type: k, PathSet: kinds[k]})
		}
		_, err = c.pages(ctx, spec, visit)
		return err
	})
}

// pages asks for everything spec selects. With visit the objects are handed over page by page and not kept.
func (c *Client) pages(ctx context.Context, spec types.PropertyFilterSpec, visit func(types.ObjectContent) error) ([]types.ObjectContent, error) {
	pc := c.vim.ServiceContent.PropertyCollector
	res, err := methods.RetrievePropertiesEx(ctx, c.vim, &types.RetrievePropertiesEx{This: pc,
		SpecSet: []types.PropertyFilterSpec{spec}, Options: types.RetrieveOptions{MaxObjects: pageSize}})
	if err != nil {
		return nil, err
	}
	var kept []types.ObjectContent
	for page := res.Returnval; page != nil; {
		for _, o := range page.Objects {
			for _, m := range o.MissingSet {
				if fault.Is(m.Fault.Fault, &types.NotAuthenticated{}) {
					return nil, fmt.Errorf("read properties: %w", faultError{m.Fault})
				}
			}
			o.MissingSet = nil
			if visit == nil {
				kept = append(kept, o)
			} else if err := visit(o); err != nil {
				return nil, err
			}
		}
		if page.Token == "" {
			break
		}
		next, err := methods.ContinueRetrievePropertiesEx(ctx, c.vim, &types.ContinueRetrievePropertiesEx{This: pc, Token: page.Token})
		if err != nil {
			return nil, err
		}
		page = &next.Returnval
	}
	return kept, nil
}

// faultError is a fault that came in data: in a task's result or a missing property, not as the answer to a call.
type faultError struct{ f types.LocalizedMethodFault }

func (e faultError) Error() string {
	if e.f.LocalizedMessage != "" {
		return e.f.LocalizedMessage
	}
	return strings.TrimPrefix(fmt.Sprintf("%T", e.f.Fault), "*types.")
}

// Fault lets govmomi's fault package look inside.
func (e faultError) Fault() types.BaseMethodFault { return e.f.Fault }
