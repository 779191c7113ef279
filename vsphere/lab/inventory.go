package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// Inventory is where machines can live. Names are the usual kind: datacenter "dc1", clusters "cluster1", their
// hosts "esx1" counted through, hosts of no cluster after them, datastores "ds1", pools in every cluster, networks
// "VM Network" and the distributed port groups "net1" and "net2".
type Inventory struct {
	Clusters        int      // 0: 2; of an ESXi lab: none
	HostsPerCluster int      // 0: 2
	Hosts           int      // hosts of no cluster, 0: 1
	Datastores      int      // 0: 3, seen by every host
	Pools           []string // resource pools of every cluster, nil: gold, silver
}

func (i *Inventory) defaults(esx bool) {
	set := func(n *int, to int) {
		if *n == 0 {
			*n = to
		}
	}
	set(&i.Datastores, 3)
	if esx {
		i.Clusters, i.HostsPerCluster, i.Hosts, i.Pools = 0, 0, 0, nil
		return
	}
	set(&i.Clusters, 2)
	set(&i.HostsPerCluster, 2)
	set(&i.Hosts, 1)
	if i.Pools == nil {
		i.Pools = []string{"gold", "silver"}
	}
}

// defaultCapacity is the size datastores claim until SetFreeSpace says otherwise.
const defaultCapacity = 64 << 40

// buildInventory calls the simulator's objects directly: its in-process client keeps sessions in a variable shared
// by all simulators of the process.
func (s *sim) buildInventory() error {
	ctx := s.context()
	inv := s.opt.Inventory
	var hosts []ref
	if s.opt.ESX {
		for _, e := range s.reg.All("HostSystem") {
			hosts = append(hosts, e.Reference())
		}
	} else {
		root := s.reg.Get(s.content().RootFolder).(*simulator.Folder)
		res := root.CreateDatacenter(ctx, &types.CreateDatacenter{This: root.Self, Name: "dc1"})
		if f := res.Fault(); f != nil {
			return errors.New(f.String)
		}
		dc := s.reg.Get(res.(*methods.CreateDatacenterBody).Res.Returnval).(*simulator.Datacenter)
		var err error
		if hosts, err = s.buildCompute(ctx, s.reg.Get(dc.HostFolder).(*simulator.Folder), inv); err != nil {
			return err
		}
		if err := s.buildNetworks(ctx, s.reg.Get(dc.NetworkFolder).(*simulator.Folder), hosts); err != nil {
			return err
		}
	}
	for _, r := range hosts {
		h := s.reg.Get(r).(*simulator.HostSystem)
		s.hosts = append(s.hosts, h)
	}
	return s.buildDatastores(ctx, hosts, inv.Datastores)
}

func (s *sim) content() types.ServiceContent {
	return s.svc.Context.Map.Get(ref{Type: "ServiceInstance", Value: "ServiceInstance"}).(*simulator.ServiceInstance).Content
}

func (s *sim) buildCompute(ctx *simulator.Context, folder *simulator.Folder, inv Inventory) (hosts []ref, err error) {
	n := 0
	name := func() types.HostConnectSpec {
		n++
		return types.HostConnectSpec{HostName: fmt.Sprintf("esx%d", n)}
	}
	for c := range inv.Clusters {
		res := folder.CreateClusterEx(ctx, &types.CreateClusterEx{This: folder.Self, Name: fmt.Sprintf("cluster%d", c+1)})
		if f := res.Fault(); f != nil {
			return nil, errors.New(f.String)
		}
		cluster := s.reg.Get(res.(*methods.CreateClusterExBody).Res.Returnval).(*simulator.ClusterComputeResource)
		for range inv.HostsPerCluster {
			task := cluster.AddHostTask(ctx, &types.AddHost_Task{This: cluster.Self, Spec: name(), AsConnected: true})
			h, fault := s.inner(ctx, task.(*methods.AddHost_TaskBody).Res.Returnval)
			if fault != nil {
				return nil, fmt.Errorf("add a host: %s", describe(fault))
			}
			hosts = append(hosts, h.(ref))
		}
		pool := s.reg.Get(*cluster.ResourcePool).(*simulator.ResourcePool)
		for _, p := range inv.Pools {
			res := pool.CreateResourcePool(ctx, &types.CreateResourcePool{This: pool.Self, Name: p, Spec: types.DefaultResourceConfigSpec()})
			if f := res.Fault(); f != nil {
				return nil, errors.New(f.String)
			}
		}
	}
	for range inv.Hosts {
		task := folder.AddStandaloneHostTask(ctx, &types.AddStandaloneHost_Task{This: folder.Self, Spec: name(), AddConnected: true})
		cr, fault := s.inner(ctx, task.(*methods.AddStandaloneHost_TaskBody).Res.Returnval)
		if fault != nil {
			return nil, fmt.Errorf("add a host: %s", describe(fault))
		}
		switch r := cr.(ref); r.Type {
		case "HostSystem":
			hosts = append(hosts, r)
		default:
			hosts = append(hosts, s.reg.Get(r).(*mo.ComputeResource).Host...)
		}
	}
	return hosts, nil
}

func (s *sim) buildNetworks(ctx *simulator.Context, folder *simulator.Folder, hosts []ref) error {
	var spec types.DVSCreateSpec
	spec.ConfigSpec = &types.VMwareDVSConfigSpec{}
	spec.ConfigSpec.GetDVSConfigSpec().Name = "switch1"
	r, fault := s.inner(ctx, folder.CreateDVSTask(ctx, &types.CreateDVS_Task{This: folder.Self, Spec: spec}).(*methods.CreateDVS_TaskBody).Res.Returnval)
	if fault != nil {
		return fmt.Errorf("create a switch: %s", describe(fault))
	}
	dvs := s.reg.Get(r.(ref)).(*simulator.DistributedVirtualSwitch)
	// The simulator is still adding the switch's uplinks, with the Context it was called with. With another one the
	// next task waits for that; with the same it would share the locks.
	ctx = s.context()
	for _, n := range []string{"net1", "net2"} {
		task := dvs.AddDVPortgroupTask(ctx, &types.AddDVPortgroup_Task{This: dvs.Self, Spec: []types.DVPortgroupConfigSpec{{
			Name: n, Type: string(types.DistributedVirtualPortgroupPortgroupTypeEarlyBinding), NumPorts: 64}}})
		if _, fault := s.inner(ctx, task.(*methods.AddDVPortgroup_TaskBody).Res.Returnval); fault != nil {
			return fmt.Errorf("create a port group: %s", describe(fault))
		}
	}
	config := &types.DVSConfigSpec{}
	for _, h := range hosts {
		r := h
		config.Host = append(config.Host, types.DistributedVirtualSwitchHostMemberConfigSpec{
			Operation: string(types.ConfigSpecOperationAdd), Host: r})
	}
	task := dvs.ReconfigureDvsTask(ctx, &types.ReconfigureDvs_Task{This: dvs.Self, Spec: config})
	if _, fault := s.inner(ctx, task.(*methods.ReconfigureDvs_TaskBody).Res.Returnval); fault != nil {
		return fmt.Errorf("add hosts to the switch: %s", describe(fault))
	}
	return nil
}

func (s *sim) buildDatastores(ctx *simulator.Context, hosts []ref, n int) error {
	for i := range n {
		name := fmt.Sprintf("ds%d", i+1)
		dir := filepath.Join(s.opt.Dir, name)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		s.mu.Lock()
		s.dirs[name] = dir
		s.capacity[name] = &space{defaultCapacity, defaultCapacity}
		s.mu.Unlock()
		for _, r := range hosts {
			h := s.reg.Get(r).(*simulator.HostSystem)
			sys, ok := s.reg.Get(*h.ConfigManager.DatastoreSystem).(*simulator.HostDatastoreSystem)
			if !ok {
				return fmt.Errorf("host %s has no datastore system", r.Value)
			}
			res := sys.CreateLocalDatastore(ctx, &types.CreateLocalDatastore{This: sys.Self, Name: name, Path: dir})
			if f := res.Fault(); f != nil && !isDuplicate(f) {
				return errors.New(f.String)
			}
		}
	}
	s.showSpace(ctx)
	return nil
}

func isDuplicate(f *soap.Fault) bool {
	_, ok := f.VimFault().(*types.DuplicateName)
	return ok
}

// showSpace publishes the free space of the datastores, which the simulator computes wrongly.
func (s *sim) showSpace(ctx *simulator.Context) {
	s.storage.Lock()
	defer s.storage.Unlock()
	for _, e := range s.reg.All("Datastore") {
		ds := e.(*simulator.Datastore)
		s.mu.Lock()
		sp, ok := s.capacity[ds.Name]
		var now space
		if ok {
			now = *sp
		}
		s.mu.Unlock()
		if !ok {
			continue
		}
		ctx.WithLock(ds, func() {
			if ds.Summary.FreeSpace == now.free && ds.Summary.Capacity == now.capacity {
				return
			}
			ctx.Update(ds, []types.PropertyChange{
				{Name: "summary.type", Val: "VMFS"},
				{Name: "summary.capacity", Val: now.capacity},
				{Name: "summary.freeSpace", Val: now.free},
			})
			ds.Info.GetDatastoreInfo().FreeSpace = now.free
		})
	}
}

func (s *sim) freeSpace(datastore string) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sp := s.capacity[datastore]; sp != nil {
		return sp.free
	}
	return 0
}

// RefreshDatastore answers Datastore.RefreshDatastore; the simulator's own resets the sizes.
func (s *sim) RefreshDatastore(ctx *simulator.Context, _ *types.RefreshDatastore) soap.HasFault {
	s.showSpace(ctx)
	return &methods.RefreshDatastoreBody{Res: new(types.RefreshDatastoreResponse)}
}

// SetFreeSpace makes a datastore say that n bytes are free. With 0, snapshots and new disks fail with NoDiskSpace.
func (l *Lab) SetFreeSpace(datastore string, n int64) error {
	l.sim.mu.Lock()
	sp := l.sim.capacity[datastore]
	if sp != nil {
		sp.free = n
		sp.capacity = max(sp.capacity, n)
	}
	l.sim.mu.Unlock()
	if sp == nil {
		return fmt.Errorf("no datastore %q", datastore)
	}
	l.sim.showSpace(l.sim.context())
	return nil
}

// addMachines creates machines side by side.
func (s *sim) addMachines(ctx context.Context, specs []Machine) error {
	folders := make([]ref, len(specs))
	for i, spec := range specs {
		f, err := s.folder(spec.Folder)
		if err != nil {
			return err
		}
		folders[i] = f.Self
	}
	const workers = 8
	var wg sync.WaitGroup
	errs := make([]error, len(specs))
	turn := make(chan struct{}, workers)
	for i, spec := range specs {
		turn <- struct{}{}
		wg.Add(1)
		go func() {
			defer wg.Done()
			defer func() { <-turn }()
			if errs[i] = ctx.Err(); errs[i] != nil {
				return
			}
			if err := s.addMachine(spec, i, folders[i]); err != nil {
				errs[i] = fmt.Errorf("machine %q: %w", spec.Name, err)
			}
		}()
	}
	wg.Wait()
	return errors.Join(errs...)
}

// folder returns the machine folder at path below the datacenter's, made if need be.
func (s *sim) folder(path string) (*simulator.Folder, error) {
	var dc *simulator.Datacenter
	for _, e := range s.reg.All("Datacenter") {
		dc = e.(*simulator.Datacenter)
	}
	f, ok := s.reg.Get(dc.VmFolder).(*simulator.Folder)
	if !ok {
		return nil, fmt.Errorf("the datacenter has no machine folder")
	}
	for _, name := range strings.Split(strings.Trim(path, "/"), "/") {
		if name == "" {
			continue
		}
		if next, ok := s.reg.FindByName(name, f.ChildEntity).(*simulator.Folder); ok {
			f = next
			continue
		}
		ctx := s.context()
		res := f.CreateFolder(ctx, &types.CreateFolder{This: f.Self, Name: name})
		if fault := res.Fault(); fault != nil {
			return nil, fmt.Errorf("folder %q: %s", path, fault.String)
		}
		f = s.reg.Get(res.(*methods.CreateFolderBody).Res.Returnval).(*simulator.Folder)
	}
	return f, nil
}
