package vsphere

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// Datastore is a datastore's present state.
type Datastore struct {
	ID          string
	Name        string
	Path        string // inventory path
	Type        string // "VMFS", "NFS", "vsan", ...
	Capacity    int64  // bytes
	Free        int64
	Accessible  bool
	Maintenance string // "normal", or the mode it is in
}

// Datastores lists all datastores by path.
func (c *Client) Datastores(ctx context.Context) ([]Datastore, error) {
	t := c.newTree()
	var content []types.ObjectContent
	kinds := treeKinds()
	kinds["Datastore"] = []string{"name", "parent", "summary"}
	err := c.walk(ctx, kinds, func() { t, content = c.newTree(), nil }, func(o types.ObjectContent) error {
		t.add(o)
		if o.Obj.Type == "Datastore" {
			content = append(content, o)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list datastores: %w", err)
	}
	var list []mo.Datastore
	if err := mo.LoadObjectContent(content, &list); err != nil {
		return nil, fmt.Errorf("list datastores: %w", err)
	}
	out := make([]Datastore, len(list))
	for i, d := range list {
		out[i] = Datastore{ID: d.Self.Value, Name: t.name(d.Self), Path: t.path(d.Self), Type: d.Summary.Type, Capacity: d.Summary.Capacity,
			Free: d.Summary.FreeSpace, Accessible: d.Summary.Accessible, Maintenance: orText(d.Summary.MaintenanceMode, "normal")}
	}
	slices.SortFunc(out, func(a, b Datastore) int { return strings.Compare(a.Path, b.Path) })
	return out, nil
}

// Host is an ESXi host's present state.
type Host struct {
	ID          string
	Name        string
	Path        string // inventory path
	Cluster     string // empty: stand-alone
	Version     string // "8.0.3"
	Build       string
	Connected   bool
	Maintenance bool
	Machines    int // on it
	CPUs        int // logical
	Memory      int64
	Datastores  []string
	Networks    []string
}

// Hosts lists all hosts by path.
func (c *Client) Hosts(ctx context.Context) ([]Host, error) {
	t := c.newTree()
	var content []types.ObjectContent
	kinds := treeKinds()
	kinds["HostSystem"] = []string{"name", "parent", "config.product", "runtime.connectionState", "runtime.inMaintenanceMode", "vm", "datastore", "network",
		"hardware.memorySize", "hardware.cpuInfo"}
	err := c.walk(ctx, kinds, func() { t, content = c.newTree(), nil }, func(o types.ObjectContent) error {
		t.add(o)
		if o.Obj.Type == "HostSystem" {
			content = append(content, o)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list hosts: %w", err)
	}
	var list []mo.HostSystem
	if err := mo.LoadObjectContent(content, &list); err != nil {
		return nil, fmt.Errorf("list hosts: %w", err)
	}
	var out []Host
	for _, h := range list {
		x := Host{ID: h.Self.Value, Name: t.name(h.Self), Path: t.path(h.Self), Machines: len(h.Vm),
			Connected: h.Runtime.ConnectionState == types.HostSystemConnectionStateConnected, Maintenance: h.Runtime.InMaintenanceMode}
		if h.Config != nil {
			x.Version, x.Build = h.Config.Product.Version, h.Config.Product.Build
		}
		if h.Hardware != nil {
			x.CPUs, x.Memory = int(h.Hardware.CpuInfo.NumCpuThreads), h.Hardware.MemorySize
		}
		if cl := t.above(h.Self, "ClusterComputeResource"); cl.Value != "" {
			x.Cluster = t.name(cl)
		}
		for _, d := range h.Datastore {
			x.Datastores = append(x.Datastores, t.name(d))
		}
		for _, n := range h.Network {
			x.Networks = append(x.Networks, t.name(n))
		}
		slices.Sort(x.Datastores)
		slices.Sort(x.Networks)
		out = append(out, x)
	}
	slices.SortFunc(out, func(a, b Host) int { return strings.Compare(a.Path, b.Path) })
	return out, nil
}

// spaces reads capacity and free space of single datastores.
func (c *Client) spaces(ctx context.Context, refs []ref) ([]Datastore, error) {
	var list []mo.Datastore
	if err := c.retrieve(ctx, refs, []string{"name", "summary"}, &list); err != nil {
		return nil, fmt.Errorf("read free space: %w", err)
	}
	out := make([]Datastore, len(list))
	for i, d := range list {
		out[i] = Datastore{ID: d.Self.Value, Name: unescape(d.Name), Type: d.Summary.Type, Capacity: d.Summary.Capacity, Free: d.Summary.FreeSpace, Accessible: d.Summary.Accessible}
	}
	return out, nil
}
