package vsphere

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// vmPaths are the properties of a [Machine].
func vmPaths() []string {
	return []string{"name", "parent", "parentVApp", "config.instanceUuid", "config.uuid", "config.template", "config.version",
		"config.guestId", "config.guestFullName", "config.changeTrackingEnabled", "config.hardware.device", "config.keyId",
		"runtime.host", "runtime.powerState", "runtime.connectionState", "runtime.consolidationNeeded", "resourcePool",
		"datastore", "network", "guest.toolsRunningStatus", "guest.toolsVersionStatus2", "snapshot", "customValue"}
}

// loose is a machine whose places are still references.
type loose struct {
	m                             Machine
	ref, parent, vapp, host, pool ref
	datastores, networks          []ref
	custom                        []types.BaseCustomFieldValue
}

func looseOf(o types.ObjectContent) (loose, error) {
	var vm mo.VirtualMachine
	if err := mo.LoadObjectContent([]types.ObjectContent{o}, &vm); err != nil {
		return loose{}, err
	}
	l := loose{ref: o.Obj, datastores: vm.Datastore, networks: vm.Network, custom: vm.CustomValue}
	set := func(dst *ref, src *ref) {
		if src != nil {
			*dst = *src
		}
	}
	set(&l.parent, vm.Parent)
	set(&l.vapp, vm.ParentVApp)
	set(&l.host, vm.Runtime.Host)
	set(&l.pool, vm.ResourcePool)
	m := &l.m
	m.ID, m.Name = o.Obj.Value, unescape(vm.Name)
	m.Power, m.Connection = PowerState(vm.Runtime.PowerState), string(vm.Runtime.ConnectionState)
	m.Consolidate = vm.Runtime.ConsolidationNeeded
	if vm.Config != nil {
		m.InstanceUUID, m.BIOSUUID, m.Template = vm.Config.InstanceUuid, vm.Config.Uuid, vm.Config.Template
		m.HWVersion, m.GuestID, m.GuestOS = vm.Config.Version, vm.Config.GuestId, vm.Config.GuestFullName
		m.CBT = vm.Config.ChangeTrackingEnabled != nil && *vm.Config.ChangeTrackingEnabled
		m.Encrypted = vm.Config.KeyId != nil
		m.Disks = disksOf(vm.Config.Hardware.Device)
		m.VTPM = slices.ContainsFunc(vm.Config.Hardware.Device, func(d types.BaseVirtualDevice) bool { _, ok := d.(*types.VirtualTPM); return ok })
	}
	if vm.Guest != nil {
		m.Tools = vm.Guest.ToolsVersionStatus2
		m.ToolsRunning = vm.Guest.ToolsRunningStatus == string(types.VirtualMachineToolsRunningStatusGuestToolsRunning)
	}
	if vm.Snapshot != nil {
		m.Snapshots = countSnapshots(vm.Snapshot.RootSnapshotList)
	}
	return l, nil
}

func countSnapshots(list []types.VirtualMachineSnapshotTree) int {
	n := len(list)
	for _, s := range list {
		n += countSnapshots(s.ChildSnapshotList)
	}
	return n
}

// settle names a machine's places.
func (t *tree) settle(l loose) Machine {
	m := l.m
	parent := l.parent
	if parent.Value == "" {
		parent = l.vapp
	}
	if _, ok := t.nodes[l.ref]; !ok {
		t.nodes[l.ref] = node{name: escape(m.Name), parent: parent}
	}
	m.Path, m.Folder = t.path(l.ref), t.path(parent)
	m.Host, m.HostID = t.name(l.host), l.host.Value
	if cluster := t.above(l.host, "ClusterComputeResource"); cluster.Value != "" {
		m.Cluster = t.name(cluster)
	}
	dc := t.above(parent, "Datacenter")
	if dc.Value == "" {
		dc = t.above(l.host, "Datacenter")
	}
	m.Datacenter, m.dc = t.name(dc), strings.TrimPrefix(t.path(dc), "/")
	if l.pool.Value != "" {
		m.ResourcePool = t.path(l.pool)
	}
	for _, d := range l.datastores {
		m.Datastores = append(m.Datastores, t.name(d))
	}
	for _, n := range l.networks {
		m.Networks = append(m.Networks, t.name(n))
	}
	slices.Sort(m.Datastores)
	slices.Sort(m.Networks)
	for _, v := range l.custom {
		if s, ok := v.(*types.CustomFieldStringValue); ok && t.attrs[s.Key] != "" {
			if m.Attributes == nil {
				m.Attributes = make(map[string]string)
			}
			m.Attributes[t.attrs[s.Key]] = s.Value
		}
	}
	return m
}

// attributeNames are the custom attributes that the server knows. ESXi hosts have none.
func (c *Client) attributeNames(ctx context.Context) (map[int32]string, error) {
	m := c.vim.ServiceContent.CustomFieldsManager
	if m == nil {
		return nil, nil
	}
	var cfm mo.CustomFieldsManager
	if err := c.one(ctx, *m, []string{"field"}, &cfm); err != nil {
		if errors.Is(err, ErrPermission) || fault.Is(err, &types.NotSupported{}) {
			return nil, nil
		}
		return nil, err
	}
	out := make(map[int32]string)
	for _, f := range cfm.Field {
		out[f.Key] = f.Name
	}
	return out, nil
}

// Machines lists the machines that match, in the order of their paths, with one walk over the inventory.
// A name without wildcards that matches nothing is [ErrNotFound].
func (c *Client) Machines(ctx context.Context, sel Selection) ([]Machine, error) {
	if err := sel.check(); err != nil {
		return nil, err
	}
	t := c.newTree()
	var found []loose
	kinds := treeKinds()
	kinds["VirtualMachine"] = vmPaths()
	err := c.walk(ctx, kinds, func() { t, found = c.newTree(), nil }, func(o types.ObjectContent) error {
		if o.Obj.Type != "VirtualMachine" {
			t.add(o)
			return nil
		}
		l, err := looseOf(o)
		if err != nil {
			return err
		}
		found = append(found, l)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list machines: %w", err)
	}
	if t.attrs, err = c.attributeNames(ctx); err != nil {
		return nil, fmt.Errorf("list custom attributes: %w", err)
	}
	refs := make([]ref, len(found))
	for i, l := range found {
		refs[i] = l.ref
	}
	tags, err := c.tagsOf(ctx, refs, len(sel.Tags) > 0)
	if err != nil {
		return nil, err
	}
	all := make([]Machine, len(found))
	for i, l := range found {
		all[i] = t.settle(l)
		all[i].Tags = tags[l.ref]
	}
	slices.SortFunc(all, func(a, b Machine) int { return strings.Compare(a.Path+"\x00"+a.ID, b.Path+"\x00"+b.ID) })
	return sel.pick(all, t)
}

// machineID is the form of managed object ids of machines: "vm-42" of a vCenter, a number of an ESXi host.
var machineID = regexp.MustCompile(`^(?:VirtualMachine:)?(vm-[0-9]+|[0-9]+|virtualmachine-[0-9]+)$`)

// Find finds one machine, templates included, by inventory path, name, managed object id or instanceUuid.
// [ErrNotFound] and [ErrAmbiguous] list candidates.
func (c *Client) Find(ctx context.Context, name string) (*VM, error) {
	if strings.TrimSpace(name) == "" {
		return nil, &Error{Kind: ErrInvalid, Summary: "no machine is named", Remedy: "give a name, an inventory path, an id like vm-42, or an instanceUuid"}
	}
	type light struct {
		ref    ref
		name   string
		parent ref
		uuid   string
	}
	t := c.newTree()
	var vms []light
	kinds := treeKinds()
	kinds["VirtualMachine"] = []string{"name", "parent", "parentVApp", "config.instanceUuid"}
	err := c.walk(ctx, kinds, func() { t, vms = c.newTree(), nil }, func(o types.ObjectContent) error {
		if o.Obj.Type != "VirtualMachine" {
			t.add(o)
			return nil
		}
		l := light{ref: o.Obj}
		for _, p := range o.PropSet {
			switch v := p.Val.(type) {
			case string:
				if p.Name == "name" {
					l.name = v
				} else {
					l.uuid = v
				}
			case ref:
				if p.Name == "parent" || l.parent.Value == "" {
					l.parent = v
				}
			}
		}
		t.nodes[o.Obj] = node{name: l.name, parent: l.parent}
		vms = append(vms, l)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", name, err)
	}
	id := ""
	if m := machineID.FindStringSubmatch(name); m != nil {
		id = m[1]
	}
	// An exact identity wins over a name that happens to look like one.
	match := func(ok func(light) bool) (out []light) {
		for _, l := range vms {
			if ok(l) {
				out = append(out, l)
			}
		}
		return out
	}
	var hits []light
	for _, rule := range []func(light) bool{
		func(l light) bool { return id != "" && l.ref.Value == id },
		func(l light) bool { return strings.EqualFold(l.uuid, name) },
		func(l light) bool { return t.path(l.ref) == name || strings.TrimPrefix(t.path(l.ref), "/") == name },
		func(l light) bool { return unescape(l.name) == name || l.name == name },
		func(l light) bool { return strings.EqualFold(unescape(l.name), name) },
	} {
		if hits = match(rule); len(hits) > 0 {
			break
		}
	}
	switch {
	case len(hits) == 0:
		var names []string
		for _, l := range vms {
			names = append(names, t.path(l.ref))
		}
		return nil, notFound("machine", name, names)
	case len(hits) > 1:
		e := &Error{Kind: ErrAmbiguous, Object: name, Summary: fmt.Sprintf("%d machines match %q", len(hits), name), Remedy: "give the inventory path or the id"}
		for _, l := range hits {
			e.Candidates = append(e.Candidates, t.path(l.ref)+" ("+l.ref.Value+")")
		}
		slices.Sort(e.Candidates)
		return nil, e
	}
	m, err := c.machine(ctx, hits[0].ref, t)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", name, err)
	}
	tags, err := c.tagsOf(ctx, []ref{hits[0].ref}, false)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", name, err)
	}
	m.Tags = tags[hits[0].ref]
	return c.VM(m), nil
}

// machine reads one machine, but for its tags; t names its places.
func (c *Client) machine(ctx context.Context, r ref, t *tree) (Machine, error) {
	var content []types.ObjectContent
	err := c.pass(ctx, func() (err error) {
		content, err = c.pages(ctx, types.PropertyFilterSpec{ObjectSet: []types.ObjectSpec{{Obj: r}},
			PropSet: []types.PropertySpec{{Type: r.Type, PathSet: vmPaths()}}}, nil)
		return err
	})
	if err != nil {
		return Machine{}, err
	}
	if len(content) == 0 {
		return Machine{}, &Error{Kind: ErrNotFound, Object: r.Value, Summary: "the machine " + r.Value + " is gone", Remedy: "list the machines again"}
	}
	l, err := looseOf(content[0])
	if err != nil {
		return Machine{}, err
	}
	if t.attrs == nil {
		if t.attrs, err = c.attributeNames(ctx); err != nil {
			return Machine{}, err
		}
	}
	return t.settle(l), nil
}

// notFound is an [ErrNotFound] with the names that come nearest first.
func notFound(kind, name string, names []string) *Error {
	slices.SortFunc(names, func(a, b string) int {
		return distanceTo(name, a) - distanceTo(name, b)
	})
	if len(names) > 20 {
		names = names[:20]
	}
	return &Error{Kind: ErrNotFound, Object: name, Candidates: names, Summary: fmt.Sprintf("no %s %q", kind, name),
		Remedy: "check the spelling and that the account may see the " + kind}
}

// distanceTo is the edit distance between a wanted name and the last element of a path, without case.
func distanceTo(want, path string) int {
	a, b := strings.ToLower(want), strings.ToLower(path[strings.LastIndexByte(path, '/')+1:])
	a = a[strings.LastIndexByte(a, '/')+1:]
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		left := row[0]
		row[0] = i + 1
		for j := range len(b) {
			up := row[j+1]
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			row[j+1] = min(left+cost, up+1, row[j]+1)
			left = up
		}
	}
	return row[len(b)]
}
