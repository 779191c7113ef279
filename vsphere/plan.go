package vsphere

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// Identity says which of a saved machine's identities a restored one gets.
type Identity string

// The identities.
const (
	IdentityNew  Identity = "new"  // vSphere makes new ones
	IdentityKeep Identity = "keep" // as saved
)

// Provisioning is how a disk's space is allotted.
type Provisioning string

// The provisionings.
const (
	ProvisionSaved Provisioning = "" // as it was
	ProvisionThin  Provisioning = "thin"
	ProvisionThick Provisioning = "thick" // lazily zeroed
	ProvisionEager Provisioning = "eager" // zeroed at creation
)

// MachineSpec asks for a machine made from a saved one.
type MachineSpec struct {
	Operation  *Operation      // journal; required to create, not to plan
	ConfigInfo json.RawMessage // as in [State]
	NICs       []NIC           // as in [State]: names the networks, which ConfigInfo does not always
	Name       string          // empty: the saved name

	Folder       string // inventory path or name; empty: the data center's root folder
	Host         string // name or path; empty: any of the pool or cluster
	Cluster      string // name or path; empty: that of Host or ResourcePool, or the only one
	ResourcePool string // path or name; empty: the root pool of Host or Cluster

	Datastore  string            // for home and disks that Datastores does not name; empty: the saved one where it exists here
	Datastores map[string]string // disk name -> datastore
	Networks   map[string]string // saved network -> network here; unnamed: the same name where it exists here, and then all of these have to fit
	NoNetworks bool              // leave cards without a network disconnected, instead of failing
	Identity   Identity          // instanceUuid and biosUuid; empty: new
	MAC        Identity          // empty: new
	Provision  Provisioning
	OmitDisks  []string          // names of disks to leave out
	Extra      map[string]string // added to the machine's ExtraConfig
	Mark       Overwrite         // what the machine carries until its disks are filled; empty: nothing
	KeepFailed bool              // keep the machine when filling it fails
}

// NIC is a network card of a machine.
type NIC struct {
	Key     int32
	Label   string // "Network adapter 1"
	Network string // name of the network it is on
	MAC     string
	Kind    string // type in the API: "VirtualVmxnet3"
}

// MachinePlan is what making a machine would do.
//
// Where a machine with the name is there that an interrupted run left half-made, with the very mark that is asked for,
// it is taken for the one to make, wherever it was placed: Begun. What its disks hold nobody knows.
type MachinePlan struct {
	Name         string
	Folder       string // inventory paths and names as resolved
	ResourcePool string
	Host         string // empty: vSphere chooses
	Home         string // datastore of the machine's home
	Disks        []PlannedDisk
	NICs         []PlannedNIC
	Steps        []string // in words, in order
	Notes        []string // what is left out or changed, and why
	Problems     []*Error // what makes it impossible; creating fails with the first
	Begun        bool     // an interrupted run has made the machine, and it is gone on with

	asked MachineSpec
	final string // annotation once it is done
	spec  types.VirtualMachineConfigSpec
	at    placement
	begun ref // the machine that is there already

	temporary bool // the machine goes when its disks are filled, too
}

// PlannedDisk is a disk that would be made.
type PlannedDisk struct {
	Name      string // as in the saved machine and in the new one: the place names the disk in both
	SavedKey  int32  // device key in the saved machine
	Datastore string
	Capacity  int64
	Provision Provisioning
}

// PlannedNIC is a network card that would be made.
type PlannedNIC struct {
	Label   string
	Saved   string // network it was on
	Network string // network it will be on; empty: disconnected
	MAC     string // empty: new
}

// placement is where a machine goes, resolved.
type placement struct {
	compute    ref // the host's or cluster's ComputeResource
	host       ref // may be empty
	pool       ref
	folder     ref
	dc         ref
	datastores map[string]Datastore // reachable from host or cluster, by name
	networks   map[string]ref
}

func (p *MachinePlan) problem(kind error, object, summary, remedy string, candidates []string) {
	slices.Sort(candidates)
	p.Problems = append(p.Problems, &Error{Kind: kind, Object: object, Summary: summary, Remedy: remedy, Candidates: candidates})
}

func (p *MachinePlan) note(format string, args ...any) {
	p.Notes = append(p.Notes, fmt.Sprintf(format, args...))
}

// PlanMachine says what [Client.CreateMachine] would do. An error means that the plan could not be made; what makes the
// creation impossible is in Problems.
func (c *Client) PlanMachine(ctx context.Context, spec MachineSpec) (*MachinePlan, error) {
	ci, err := decodeConfig(spec.ConfigInfo)
	if err != nil {
		return nil, err
	}
	for _, id := range []Identity{spec.Identity, spec.MAC} {
		if id != "" && id != IdentityNew && id != IdentityKeep {
			return nil, &Error{Kind: ErrInvalid, Object: string(id), Summary: fmt.Sprintf("no identity %q", id), Remedy: "use new or keep"}
		}
	}
	if !slices.Contains([]Provisioning{ProvisionSaved, ProvisionThin, ProvisionThick, ProvisionEager}, spec.Provision) {
		return nil, &Error{Kind: ErrInvalid, Object: string(spec.Provision), Summary: fmt.Sprintf("no provisioning %q", spec.Provision), Remedy: "use thin, thick or eager"}
	}
	t, err := c.readTree(ctx)
	if err != nil {
		return nil, fmt.Errorf("plan: %w", err)
	}
	p := &MachinePlan{Name: orText(spec.Name, ci.Name), asked: spec, final: ci.Annotation}
	ok, err := p.place(ctx, c, t)
	if err != nil {
		return nil, fmt.Errorf("plan: %w", err)
	}
	if !ok {
		return p, nil // everything else depends on the place
	}
	p.chooseHome(ci)
	if err := p.build(ctx, c, t, ci); err != nil {
		return nil, fmt.Errorf("plan: %w", err)
	}
	if err := p.checkHardware(ctx, c); err != nil {
		return nil, fmt.Errorf("plan: %w", err)
	}
	if err := p.checkTaken(ctx, c, t, ci); err != nil {
		return nil, fmt.Errorf("plan: %w", err)
	}
	if p.Begun {
		p.Steps = append(p.Steps, fmt.Sprintf("go on with machine %s in %s, which an interrupted run has made", p.Name, p.Folder))
		for _, d := range p.Disks {
			p.Steps = append(p.Steps, fmt.Sprintf("compare disk %s of %d bytes, and write what is missing", d.Name, d.Capacity))
		}
		return p, nil
	}
	p.checkSpace()
	p.Steps = append(p.Steps, fmt.Sprintf("create machine %s in %s, pool %s, home on %s", p.Name, p.Folder, p.ResourcePool, p.Home))
	for _, d := range p.Disks {
		p.Steps = append(p.Steps, fmt.Sprintf("create disk %s of %d bytes on %s (%s) and fill it", d.Name, d.Capacity, d.Datastore, orText(string(d.Provision), "as saved")))
	}
	for _, n := range p.NICs {
		p.Steps = append(p.Steps, fmt.Sprintf("connect %s to %s", n.Label, orText(n.Network, "nothing")))
	}
	return p, nil
}

// resolve finds the one object of the kinds that a name or path means. Nothing found is a problem of the plan.
func (p *MachinePlan) resolve(t *tree, what, name string, among []ref) (ref, bool) {
	var hits []ref
	var names []string
	for _, r := range among {
		names = append(names, t.path(r))
		if t.path(r) == name || strings.TrimPrefix(t.path(r), "/") == name || r.Value == name {
			return r, true
		}
		if strings.EqualFold(t.name(r), name) {
			hits = append(hits, r)
		}
	}
	switch len(hits) {
	case 1:
		return hits[0], true
	case 0:
		p.Problems = append(p.Problems, notFound(what, name, names))
	default:
		var at []string
		for _, r := range hits {
			at = append(at, t.path(r))
		}
		p.problem(ErrAmbiguous, name, fmt.Sprintf("%d %ss are named %q", len(hits), what, name), "give the inventory path", at)
	}
	return ref{}, false
}

// place resolves host, cluster, pool and folder. false: a problem was noted.
func (p *MachinePlan) place(ctx context.Context, c *Client, t *tree) (bool, error) {
	s, at := p.asked, &p.at
	ok := true
	if s.Host != "" {
		if at.host, ok = p.resolve(t, "host", s.Host, t.of("HostSystem")); !ok {
			return false, nil
		}
		at.compute = t.nodes[at.host].parent
	}
	if s.Cluster != "" {
		r, ok := p.resolve(t, "cluster", s.Cluster, t.of("ClusterComputeResource", "ComputeResource"))
		if !ok {
			return false, nil
		}
		if at.compute.Value != "" && at.compute != r {
			p.problem(ErrUnsuitable, s.Host, fmt.Sprintf("host %s is not in cluster %s", s.Host, s.Cluster), "name one of them only", nil)
			return false, nil
		}
		at.compute = r
	}
	if s.ResourcePool != "" {
		var among []ref
		for _, r := range t.of("ResourcePool", "VirtualApp") {
			if at.compute.Value == "" || t.above(r, "ClusterComputeResource", "ComputeResource") == at.compute {
				among = append(among, r)
			}
		}
		if at.pool, ok = p.resolve(t, "resource pool", s.ResourcePool, among); !ok {
			return false, nil
		}
		at.compute = t.above(at.pool, "ClusterComputeResource", "ComputeResource")
	}
	if at.compute.Value == "" {
		all := t.of("ClusterComputeResource", "ComputeResource")
		if len(all) != 1 {
			var names []string
			for _, r := range all {
				names = append(names, t.path(r))
			}
			p.problem(ErrUnsuitable, p.Name, "no host, cluster or resource pool is named for the machine", "name one of them", names)
			return false, nil
		}
		at.compute = all[0]
	}
	at.dc = t.above(at.compute, "Datacenter")

	var cr mo.ComputeResource
	if err := c.one(ctx, at.compute, []string{"name", "resourcePool", "host", "datastore", "network", "configurationEx"}, &cr); err != nil {
		return false, err
	}
	if at.pool.Value == "" && cr.ResourcePool != nil {
		at.pool = *cr.ResourcePool
	}
	var dc mo.Datacenter
	if err := c.one(ctx, at.dc, []string{"vmFolder"}, &dc); err != nil {
		return false, err
	}
	at.folder = dc.VmFolder
	if s.Folder != "" {
		var among []ref
		for _, r := range t.of("Folder") {
			if r == dc.VmFolder || t.under(r, dc.VmFolder) {
				among = append(among, r)
			}
		}
		if at.folder, ok = p.resolve(t, "folder", s.Folder, among); !ok {
			return false, nil
		}
	}
	dsRefs, netRefs := cr.Datastore, cr.Network
	host := at.host
	if host.Value == "" && len(cr.Host) == 1 {
		host = cr.Host[0]
	}
	if host.Value == "" {
		if cfg, isCluster := cr.ConfigurationEx.(*types.ClusterConfigInfoEx); isCluster && (cfg.DrsConfig.Enabled == nil || !*cfg.DrsConfig.Enabled) {
			h, err := p.pickHost(ctx, c, t, cr.Host)
			if err != nil || h.Value == "" {
				return false, err
			}
			host = h // without DRS vSphere wants to be told
		}
	}
	if host.Value != "" {
		var h mo.HostSystem
		if err := c.one(ctx, host, []string{"name", "datastore", "network", "runtime.connectionState", "runtime.inMaintenanceMode"}, &h); err != nil {
			return false, err
		}
		if h.Runtime.ConnectionState != types.HostSystemConnectionStateConnected || h.Runtime.InMaintenanceMode {
			p.problem(ErrUnsuitable, h.Name, fmt.Sprintf("host %s is %s%s", h.Name, h.Runtime.ConnectionState, map[bool]string{true: ", in maintenance mode"}[h.Runtime.InMaintenanceMode]), "choose another host", nil)
			return false, nil
		}
		at.host, dsRefs, netRefs = host, h.Datastore, h.Network
		p.Host = unescape(h.Name)
	}
	list, err := c.spaces(ctx, dsRefs)
	if err != nil {
		return false, err
	}
	at.datastores = make(map[string]Datastore)
	for _, d := range list {
		at.datastores[d.Name] = d
	}
	at.networks = make(map[string]ref)
	for _, n := range netRefs {
		at.networks[t.name(n)] = n
	}
	p.Folder, p.ResourcePool = t.path(at.folder), t.path(at.pool)
	return true, nil
}

// pickHost takes the first host of a cluster that can run machines and sees the most datastores.
func (p *MachinePlan) pickHost(ctx context.Context, c *Client, t *tree, hosts []ref) (ref, error) {
	var list []mo.HostSystem
	if err := c.retrieve(ctx, hosts, []string{"name", "datastore", "runtime.connectionState", "runtime.inMaintenanceMode"}, &list); err != nil {
		return ref{}, err
	}
	slices.SortStableFunc(list, func(a, b mo.HostSystem) int {
		if d := len(b.Datastore) - len(a.Datastore); d != 0 {
			return d
		}
		return strings.Compare(a.Name, b.Name)
	})
	var names []string
	for _, h := range list {
		if h.Runtime.ConnectionState == types.HostSystemConnectionStateConnected && !h.Runtime.InMaintenanceMode {
			return h.Self, nil
		}
		names = append(names, h.Name)
	}
	p.problem(ErrUnsuitable, t.name(p.at.compute), "no host of the cluster can take machines now", "end maintenance mode on one, or choose another cluster", names)
	return ref{}, nil
}

// under reports whether r lies below top.
func (t *tree) under(r, top ref) bool {
	for range 64 {
		n, ok := t.nodes[r]
		if !ok {
			return false
		}
		if n.parent == top {
			return true
		}
		r = n.parent
	}
	return false
}

func (p *MachinePlan) datastoreNames() []string {
	var out []string
	for n, d := range p.at.datastores {
		if d.Accessible {
			out = append(out, n)
		}
	}
	return out
}

// datastore checks that a datastore can be used here.
func (p *MachinePlan) datastore(name, what string) (string, bool) {
	for n, d := range p.at.datastores {
		if strings.EqualFold(n, name) && d.Accessible {
			return n, true
		}
	}
	p.problem(ErrUnsuitable, what, fmt.Sprintf("%s: the datastore %q is not reachable from the target", what, name), "map it to one of the candidates", p.datastoreNames())
	return "", false
}

// chooseHome decides where the machine's own files go.
func (p *MachinePlan) chooseHome(ci types.VirtualMachineConfigInfo) {
	name := p.asked.Datastore
	if name == "" {
		name = datastoreOf(ci.Files.VmPathName)
	}
	p.Home, _ = p.datastore(name, "the machine's home")
}

// checkHardware lowers a hardware version that the target does not know.
func (p *MachinePlan) checkHardware(ctx context.Context, c *Client) error {
	var cr mo.ComputeResource
	if err := c.one(ctx, p.at.compute, []string{"environmentBrowser"}, &cr); err != nil {
		return err
	}
	if cr.EnvironmentBrowser == nil {
		return nil
	}
	res, err := methods.QueryConfigOptionDescriptor(ctx, c.vim, &types.QueryConfigOptionDescriptor{This: *cr.EnvironmentBrowser})
	if err != nil {
		c.log.Debug("hardware versions not known", "error", err) // creating the machine will tell
		return ctx.Err()
	}
	best := ""
	for _, d := range res.Returnval {
		if d.Key == p.spec.Version {
			return nil
		}
		if d.CreateSupported && hardware(d.Key) > hardware(best) && hardware(d.Key) < hardware(p.spec.Version) {
			best = d.Key
		}
	}
	if best != "" {
		p.note("hardware version %s is not known here: %s instead", p.spec.Version, best)
		p.spec.Version = best
	}
	return nil
}

// checkTaken looks for another machine with the name or the identity.
func (p *MachinePlan) checkTaken(ctx context.Context, c *Client, t *tree, ci types.VirtualMachineConfigInfo) error {
	var named ref
	var taken []string
	err := c.walk(ctx, map[string][]string{"VirtualMachine": {"name", "parent", "config.instanceUuid"}}, func() { named, taken = ref{}, nil }, func(o types.ObjectContent) error {
		var vm mo.VirtualMachine
		if err := mo.LoadObjectContent([]types.ObjectContent{o}, &vm); err != nil {
			return err
		}
		if vm.Parent != nil {
			t.nodes[o.Obj] = node{name: vm.Name, parent: *vm.Parent}
		}
		if vm.Parent != nil && *vm.Parent == p.at.folder && strings.EqualFold(unescape(vm.Name), p.Name) {
			named = o.Obj
		}
		if vm.Config != nil && strings.EqualFold(vm.Config.InstanceUuid, ci.InstanceUuid) {
			taken = append(taken, t.path(o.Obj))
		}
		return nil
	})
	if err != nil {
		return err
	}
	if named.Value != "" {
		if p.Begun, err = p.began(ctx, c, named); err != nil {
			return err
		}
		if p.Begun {
			p.begun = named
			return nil
		}
		p.problem(ErrExists, p.Name, fmt.Sprintf("%s has a machine named %q already", p.Folder, p.Name), "choose another name or folder", nil)
	}
	if len(taken) == 0 {
		return nil
	}
	if p.asked.Identity == IdentityKeep {
		p.problem(ErrExists, p.Name, fmt.Sprintf("the saved identity belongs to %s", strings.Join(taken, ", ")), "ask for a new identity, or remove the machine", nil)
	}
	if p.asked.MAC == IdentityKeep {
		p.note("%s exists and has the same MAC addresses: do not run both on one network", strings.Join(taken, ", "))
	}
	return nil
}

// began reports whether an interrupted run has begun to make the very machine that is asked for, and left it at r.
func (p *MachinePlan) began(ctx context.Context, c *Client, r ref) (bool, error) {
	if p.asked.Mark.Key == "" {
		return false, nil
	}
	vm, err := c.VM(Machine{ID: r.Value, Name: p.Name}).read(ctx, "config.annotation", "config.extraConfig")
	if isNotFound(err) || err == nil && vm.Config == nil {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	_, half := readMark(vm.Config.Annotation)
	return half && extraValue(vm.Config.ExtraConfig, p.asked.Mark.Key) == p.asked.Mark.Value, nil
}

// checkSpace compares what the disks need with what is free.
func (p *MachinePlan) checkSpace() {
	need, may := make(map[string]int64), make(map[string]int64)
	for _, d := range p.Disks {
		may[d.Datastore] += d.Capacity
		if d.Provision != ProvisionThin {
			need[d.Datastore] += d.Capacity
		}
	}
	for name := range may {
		free := p.at.datastores[name].Free
		switch {
		case need[name] > free:
			p.problem(ErrSpace, name, fmt.Sprintf("datastore %s has %d MiB free, the disks need %d MiB", name, free>>20, need[name]>>20), "choose other datastores, thin disks, or free space", p.datastoreNames())
		case may[name] > free:
			p.note("datastore %s has %d MiB free; the thin disks may grow to %d MiB", name, free>>20, may[name]>>20)
		}
	}
}
