package vsphere

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// Scope is the kind of object a privilege is needed on.
type Scope string

// The scopes. A role on the root folder, propagated, covers all of them.
const (
	OnRoot      Scope = "root" // the root folder of the vCenter
	OnMachine   Scope = "machine"
	OnDatastore Scope = "datastore"
	OnNetwork   Scope = "network"
	OnPool      Scope = "resource pool"
	OnFolder    Scope = "folder" // of machines
)

// Privilege is a right that an account needs.
type Privilege struct {
	ID   string // "VirtualMachine.State.CreateSnapshot"
	On   Scope
	Why  string // what vmkeep does with it
	Soft bool   // without it something optional is lost
}

// BackupPrivileges is everything a backup needs, and nothing else.
func BackupPrivileges() []Privilege {
	return []Privilege{
		{"System.View", OnRoot, "see the inventory", false},
		{"System.Read", OnMachine, "read configurations", false},
		{"VirtualMachine.State.CreateSnapshot", OnMachine, "freeze the disks", false},
		{"VirtualMachine.State.RemoveSnapshot", OnMachine, "remove the snapshot, and consolidate", false},
		{"VirtualMachine.Config.ChangeTracking", OnMachine, "switch change tracking on", false},
		{"VirtualMachine.Config.DiskLease", OnMachine, "open disks", false},
		{"VirtualMachine.Provisioning.DiskRandomRead", OnMachine, "read disks", false},
		{"VirtualMachine.Provisioning.GetVmFiles", OnMachine, "ask for a ticket to the disks, keep .vmx and .nvram", false},
		{"Cryptographer.Access", OnMachine, "read disks of encrypted machines", true},
		{"Datastore.AllocateSpace", OnDatastore, "let snapshots grow", false},
		{"Datastore.Browse", OnDatastore, "find .vmx and .nvram", false},
		{"Datastore.FileManagement", OnDatastore, "read .vmx and .nvram over HTTPS", false},
		{"Global.DisableMethods", OnMachine, "keep vCenter from moving disks that are being read", true},
		{"Global.EnableMethods", OnMachine, "allow it again", true},
	}
}

// ProxyPrivileges is what a backup needs besides, on the machine that it runs in, to read disks by hot-adding them to it.
// They belong on that machine alone.
func ProxyPrivileges() []Privilege {
	return []Privilege{
		{"System.Read", OnMachine, "read the configuration", false},
		{"VirtualMachine.Config.AddExistingDisk", OnMachine, "attach the frozen disk of another machine", false},
		{"VirtualMachine.Config.RemoveDisk", OnMachine, "detach it", false},
	}
}

// RestorePrivileges is everything a restore needs, and nothing else: new machines, disks in place, single disks. What a
// machine is made with, its processors, memory, controllers and settings, needs no privileges beside that to make it.
func RestorePrivileges() []Privilege {
	return []Privilege{
		{"System.View", OnRoot, "see the inventory", false},
		{"System.Read", OnMachine, "read configurations", false},
		{"VirtualMachine.Inventory.Create", OnFolder, "create machines", false},
		{"VirtualMachine.Inventory.Delete", OnMachine, "remove a machine whose restore failed", false},
		{"VirtualMachine.Config.AddNewDisk", OnMachine, "create disks", false},
		{"VirtualMachine.Config.AddExistingDisk", OnMachine, "attach a disk again after a failed replacement", false},
		{"VirtualMachine.Config.RemoveDisk", OnMachine, "detach disks", false},
		{"VirtualMachine.Config.AdvancedConfig", OnMachine, "carry advanced settings over", false},
		{"VirtualMachine.Config.Annotation", OnMachine, "mark machines that are not complete yet", false},
		{"VirtualMachine.Config.DiskLease", OnMachine, "open disks", false},
		{"VirtualMachine.Provisioning.DiskRandomAccess", OnMachine, "write disks", false},
		{"VirtualMachine.Provisioning.DiskRandomRead", OnMachine, "read disks back to verify them", false},
		{"Cryptographer.Access", OnMachine, "write and read disks of encrypted machines", true},
		{"VirtualMachine.Interact.PowerOff", OnMachine, "stop a machine whose disks are overwritten", false},
		{"VirtualMachine.Interact.PowerOn", OnMachine, "start a restored machine", true},
		{"VirtualMachine.State.CreateSnapshot", OnMachine, "find what differs for a rollback", false},
		{"VirtualMachine.State.RemoveSnapshot", OnMachine, "remove that snapshot", false},
		{"Resource.AssignVMToPool", OnPool, "place machines", false},
		{"Network.Assign", OnNetwork, "connect machines", false},
		{"Datastore.AllocateSpace", OnDatastore, "create disks", false},
		{"Datastore.Browse", OnDatastore, "find .nvram", false},
		{"Datastore.FileManagement", OnDatastore, "write .nvram over HTTPS, delete disks that could not be hot-added", false},
	}
}

// RoleIDs are the privileges as a role holds them: without the System ones, which every role has, sorted.
func RoleIDs(need []Privilege) []string {
	var out []string
	for _, p := range need {
		if !strings.HasPrefix(p.ID, "System.") {
			out = append(out, p.ID)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// lacks is the first of the privileges that the account is known to lack on an object; empty: none is. What cannot be
// asked, as of ESXi hosts that have no such question, is left to fail when it is used.
func (c *Client) lacks(ctx context.Context, on ref, privileges ...string) string {
	am := c.vim.ServiceContent.AuthorizationManager
	if am == nil {
		return ""
	}
	key, err := c.sessionKey(ctx)
	if err != nil {
		return ""
	}
	res, err := methods.HasPrivilegeOnEntities(ctx, c.vim, &types.HasPrivilegeOnEntities{This: *am, Entity: []ref{on}, SessionId: key, PrivId: privileges})
	if err != nil {
		return ""
	}
	for _, e := range res.Returnval {
		for _, a := range e.PrivAvailability {
			if !a.IsGranted {
				return a.PrivId
			}
		}
	}
	return ""
}

// mayUndo refuses what could not be undone afterwards, for want of the privileges that undoing it needs.
func (c *Client) mayUndo(ctx context.Context, what string, on ref, privileges ...string) error {
	id := c.lacks(ctx, on, privileges...)
	if id == "" {
		return nil
	}
	return &Error{Kind: ErrPermission, Privilege: id, Object: on.Value, Remedy: "give the account a role that has it; vmkeep doctor prints the role that is needed",
		Summary: fmt.Sprintf("%s: the account lacks the privilege %s, without which it could not be undone", what, id)}
}

// MissingPrivilege is a right the account lacks on some objects.
type MissingPrivilege struct {
	Privilege
	Objects []string // inventory paths
}

// privilegeBatch is how many objects one question names.
const privilegeBatch = 200

// MissingPrivileges says what of need the session's account lacks, on the root folder, the machines with the given ids
// (nil: all) and everything they use. It asks the server what the account holds, propagation included.
func (c *Client) MissingPrivileges(ctx context.Context, need []Privilege, machines []string) ([]MissingPrivilege, error) {
	am := c.vim.ServiceContent.AuthorizationManager
	if am == nil {
		return nil, &Error{Kind: ErrUnsuitable, Summary: "the server has no authorization manager", Remedy: "none: the privileges cannot be checked"}
	}
	key, err := c.sessionKey(ctx)
	if err != nil {
		return nil, err
	}
	t, objects, err := c.scopes(ctx, machines)
	if err != nil {
		return nil, err
	}
	var out []MissingPrivilege
	for _, scope := range []Scope{OnRoot, OnMachine, OnDatastore, OnNetwork, OnPool, OnFolder} {
		var privs []Privilege
		var ids []string
		for _, p := range need {
			if p.On == scope {
				privs, ids = append(privs, p), append(ids, p.ID)
			}
		}
		if len(ids) == 0 {
			continue
		}
		lacking := make(map[string][]string)
		for batch := range slices.Chunk(objects[scope], privilegeBatch) {
			res, err := methods.HasPrivilegeOnEntities(ctx, c.vim, &types.HasPrivilegeOnEntities{This: *am, Entity: batch, SessionId: key, PrivId: ids})
			if err != nil {
				return nil, fmt.Errorf("check privileges: %w", err)
			}
			for _, e := range res.Returnval {
				for _, a := range e.PrivAvailability {
					if !a.IsGranted {
						lacking[a.PrivId] = append(lacking[a.PrivId], orText(t.path(e.Entity), "/"))
					}
				}
			}
		}
		for _, p := range privs {
			if at := lacking[p.ID]; len(at) > 0 {
				slices.Sort(at)
				out = append(out, MissingPrivilege{p, slices.Compact(at)})
			}
		}
	}
	return out, nil
}

func (c *Client) sessionKey(ctx context.Context) (string, error) {
	var sm mo.SessionManager
	if err := c.one(ctx, *c.vim.ServiceContent.SessionManager, []string{"currentSession"}, &sm); err != nil {
		return "", fmt.Errorf("read the session: %w", err)
	}
	if sm.CurrentSession == nil {
		return "", &Error{Kind: ErrLogin, Summary: "the server does not know the session", Remedy: "log in again"}
	}
	return sm.CurrentSession.Key, nil
}

// scopes collects the objects of each scope.
func (c *Client) scopes(ctx context.Context, machines []string) (*tree, map[Scope][]ref, error) {
	t := c.newTree()
	var vms []mo.VirtualMachine
	kinds := treeKinds()
	kinds["VirtualMachine"] = []string{"name", "parent", "datastore", "network", "resourcePool"}
	err := c.walk(ctx, kinds, func() { t, vms = c.newTree(), nil }, func(o types.ObjectContent) error {
		t.add(o)
		if o.Obj.Type == "VirtualMachine" && (machines == nil || slices.Contains(machines, o.Obj.Value)) {
			var vm mo.VirtualMachine
			if err := mo.LoadObjectContent([]types.ObjectContent{o}, &vm); err != nil {
				return err
			}
			vms = append(vms, vm)
		}
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("list objects: %w", err)
	}
	out := map[Scope][]ref{OnRoot: {t.root}}
	for _, vm := range vms {
		out[OnMachine] = append(out[OnMachine], vm.Self)
		out[OnDatastore] = append(out[OnDatastore], vm.Datastore...)
		out[OnNetwork] = append(out[OnNetwork], vm.Network...)
		if vm.ResourcePool != nil {
			out[OnPool] = append(out[OnPool], *vm.ResourcePool)
		}
		if vm.Parent != nil {
			out[OnFolder] = append(out[OnFolder], *vm.Parent)
		}
	}
	for scope, list := range out {
		slices.SortFunc(list, func(a, b ref) int { return strings.Compare(a.Type+a.Value, b.Type+b.Value) })
		out[scope] = slices.Compact(list)
	}
	return t, out, nil
}
