package vsphere

import (
	"context"
	"fmt"
	"net/url"
	"path"
	"slices"
	"strings"

	"github.com/vmware/govmomi/vapi/rest"
	"github.com/vmware/govmomi/vapi/tags"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// check refuses patterns that can match nothing by their form.
func (sel Selection) check() error {
	for _, list := range [][]string{sel.Names, sel.Folders, sel.Hosts, sel.Clusters, sel.ResourcePools, sel.Datastores, sel.Tags, sel.Attributes, sel.Exclude} {
		for _, p := range list {
			if _, err := path.Match(p, ""); err != nil {
				return &Error{Kind: ErrInvalid, Object: p, Summary: fmt.Sprintf("the pattern %q is malformed", p), Remedy: "close its brackets, or escape them with a backslash"}
			}
		}
	}
	for _, a := range sel.Attributes {
		if !strings.Contains(a, "=") {
			return &Error{Kind: ErrInvalid, Object: a, Summary: fmt.Sprintf("the custom attribute %q has no value", a), Remedy: "write name=value"}
		}
	}
	for _, p := range sel.Power {
		if p != PoweredOn && p != PoweredOff && p != Suspended {
			return &Error{Kind: ErrInvalid, Object: string(p), Summary: fmt.Sprintf("no power state %q", p), Remedy: "use poweredOn, poweredOff or suspended"}
		}
	}
	return nil
}

func isGlob(p string) bool { return strings.ContainsAny(p, `*?[\`) }

// glob reports whether p matches s, without case; a pattern also matches itself, so that "[web] 1" can be named.
func glob(p, s string) bool {
	p, s = strings.ToLower(p), strings.ToLower(s)
	if p == s {
		return true
	}
	ok, err := path.Match(p, s)
	return err == nil && ok
}

// Named reports whether p names m: by inventory path, name, managed object id or instanceUuid, exactly or as a pattern.
func (m Machine) Named(p string) bool {
	return m.ID == strings.TrimPrefix(p, "VirtualMachine:") || strings.EqualFold(m.InstanceUUID, p) ||
		glob(p, m.Name) || glob(p, m.Path) || glob("/"+p, m.Path)
}

// within reports whether p names a place (an inventory path) or something it lies in: its whole path or one element.
func within(p, place string) bool {
	for at := place; len(at) > 1; at = path.Dir(at) {
		if glob(p, at) || glob("/"+strings.TrimPrefix(p, "/"), at) || glob(p, unescape(path.Base(at))) {
			return true
		}
	}
	return false
}

// pick applies the selection.
func (sel Selection) pick(all []Machine, t *tree) ([]Machine, error) {
	some := func(list []string, ok func(string) bool) bool { return len(list) == 0 || slices.ContainsFunc(list, ok) }
	used := make(map[string]bool)
	var out []Machine
	for _, m := range all {
		byName := false
		match := some(sel.Names, func(string) bool { return false })
		for _, p := range sel.Names {
			if m.Named(p) {
				match, used[p] = true, true
				byName = byName || !isGlob(p)
			}
		}
		if !match || slices.ContainsFunc(sel.Exclude, m.Named) ||
			m.Template && !sel.Templates && !byName ||
			!some(sel.Folders, func(p string) bool { return within(p, m.Folder) }) ||
			!some(sel.Hosts, func(p string) bool { return glob(p, m.Host) || p == m.HostID }) ||
			!some(sel.Clusters, func(p string) bool { return m.Cluster != "" && glob(p, m.Cluster) }) ||
			!some(sel.ResourcePools, func(p string) bool { return m.ResourcePool != "" && within(p, m.ResourcePool) }) ||
			!some(sel.Datastores, func(p string) bool {
				return slices.ContainsFunc(m.Datastores, func(d string) bool { return glob(p, d) })
			}) ||
			!some(sel.Tags, func(p string) bool {
				return slices.ContainsFunc(m.Tags, func(tag string) bool { return tagged(p, tag) })
			}) ||
			!some(sel.Attributes, func(p string) bool {
				name, value, _ := strings.Cut(p, "=")
				for k, v := range m.Attributes {
					if glob(name, k) && glob(value, v) {
						return true
					}
				}
				return false
			}) ||
			len(sel.Power) > 0 && !slices.Contains(sel.Power, m.Power) {
			continue
		}
		out = append(out, m)
	}
	for _, p := range sel.Names {
		if !isGlob(p) && !used[p] {
			paths := make([]string, len(all))
			for i, m := range all {
				paths[i] = m.Path
			}
			return nil, notFound("machine", p, paths)
		}
	}
	// A typing error in a place must not pass for "nothing to do".
	for _, place := range []struct {
		what  string
		list  []string
		kinds []string
	}{
		{"folder", sel.Folders, []string{"Folder", "Datacenter"}},
		{"host", sel.Hosts, []string{"HostSystem"}},
		{"cluster", sel.Clusters, []string{"ClusterComputeResource"}},
		{"resource pool", sel.ResourcePools, []string{"ResourcePool", "VirtualApp"}},
		{"datastore", sel.Datastores, []string{"Datastore"}},
	} {
		for _, p := range place.list {
			if isGlob(p) {
				continue
			}
			var names []string
			hit := false
			for _, r := range t.of(place.kinds...) {
				at := t.path(r)
				names = append(names, at)
				hit = hit || r.Value == p || glob(p, t.name(r)) || glob("/"+strings.TrimPrefix(p, "/"), at)
			}
			if !hit {
				return nil, notFound(place.what, p, names)
			}
		}
	}
	return out, nil
}

// tagged reports whether p, "category:tag" or "tag", matches a machine's "category:tag".
func tagged(p, tag string) bool {
	if glob(p, tag) {
		return true
	}
	_, name, _ := strings.Cut(tag, ":")
	return glob(p, name)
}

// tagBatch is how many objects one question for tags names.
const tagBatch = 500

// tagsOf asks the tagging service, which is another API with a session of its own. When tags are not needed, a
// service that does not answer costs only the tags.
func (c *Client) tagsOf(ctx context.Context, found []ref, needed bool) (map[ref][]string, error) {
	if !c.about.VCenter || len(found) == 0 {
		if needed && !c.about.VCenter {
			return nil, &Error{Kind: ErrInvalid, Summary: "an ESXi host has no tags", Remedy: "select by name or folder, or connect to the vCenter"}
		}
		return nil, nil
	}
	out, err := c.readTags(ctx, found)
	if err == nil {
		return out, nil
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if needed {
		return nil, &Error{Kind: ErrUnreachable, Summary: "the tags cannot be read", Err: err,
			Remedy: "check that the vCenter's API service runs and that the account may log in to it"}
	}
	c.log.Warn("tags cannot be read", "error", err)
	return nil, nil
}

func (c *Client) readTags(ctx context.Context, found []ref) (_ map[ref][]string, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.s.callTimeout)
	defer cancel()
	rc := rest.NewClient(c.vim)
	password, _ := c.s.user.Password()
	if err := rc.Login(ctx, url.UserPassword(c.s.user.Username(), password)); err != nil {
		return nil, fmt.Errorf("log in to the tagging service: %w", err)
	}
	defer func() {
		if e := rc.Logout(ctx); e != nil && err == nil {
			c.log.Debug("tagging session not ended", "error", e)
		}
	}()
	tm := tags.NewManager(rc)
	names := make(map[string]string)
	categories := make(map[string]string)
	out := make(map[ref][]string)
	for batch := range slices.Chunk(found, tagBatch) {
		objs := make([]mo.Reference, len(batch))
		for i, r := range batch {
			objs[i] = r
		}
		attached, err := tm.ListAttachedTagsOnObjects(ctx, objs)
		if err != nil {
			return nil, err
		}
		for _, a := range attached {
			for _, id := range a.TagIDs {
				if names[id] == "" {
					tag, err := tm.GetTag(ctx, id)
					if err != nil {
						return nil, err
					}
					if categories[tag.CategoryID] == "" {
						cat, err := tm.GetCategory(ctx, tag.CategoryID)
						if err != nil {
							return nil, err
						}
						categories[tag.CategoryID] = cat.Name
					}
					names[id] = categories[tag.CategoryID] + ":" + tag.Name
				}
				r := a.ObjectID.Reference()
				out[r] = append(out[r], names[id])
			}
		}
	}
	for _, t := range out {
		slices.Sort(t)
	}
	return out, nil
}

// vmRef is the reference of the machine with the managed object id.
func vmRef(id string) types.ManagedObjectReference {
	return types.ManagedObjectReference{Type: "VirtualMachine", Value: id}
}
