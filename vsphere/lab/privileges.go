package lab

import (
	"slices"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// User is an account of the lab.
type User struct {
	Name, Password string
	// Privileges the account has, everywhere: "VirtualMachine.State.CreateSnapshot" ... nil: all of them.
	// System.Anonymous, System.View and System.Read come with every account.
	Privileges []string
}

// validLogin is SessionManager.ValidLogin.
func (s *sim) validLogin(req *types.Login) bool {
	return s.checkPassword(req.UserName, req.Password)
}

func (s *sim) checkPassword(user, password string) bool {
	if user == s.opt.User {
		return password == s.opt.Password
	}
	for _, u := range s.opt.Users {
		if u.Name == user {
			return u.Password == password
		}
	}
	return false
}

// may tells whether the account has the privilege.
func (s *sim) may(user, privilege string) bool {
	for _, u := range s.opt.Users {
		if u.Name == user && u.Privileges != nil {
			return strings.HasPrefix(privilege, "System.") || slices.Contains(u.Privileges, privilege)
		}
	}
	return true
}

// privilegeOf are the privileges a method asks for beyond System.View. The sources are the API reference's "Required
// Privileges" of each method, and "Required Privileges for Common Tasks" of the vSphere security guide: what consumes
// storage space, as a snapshot does, needs Datastore.AllocateSpace.
func privilegeOf(m *simulator.Method) []string {
	switch m.Name {
	case "CreateSnapshot_Task", "CreateSnapshotEx_Task":
		return []string{"VirtualMachine.State.CreateSnapshot", "Datastore.AllocateSpace"}
	case "RemoveSnapshot_Task", "RemoveAllSnapshots_Task", "ConsolidateVMDisks_Task":
		return []string{"VirtualMachine.State.RemoveSnapshot"}
	case "RevertToSnapshot_Task", "RevertToCurrentSnapshot_Task":
		return []string{"VirtualMachine.State.RevertToSnapshot"}
	case "RenameSnapshot":
		return []string{"VirtualMachine.State.RenameSnapshot"}
	case "ReconfigVM_Task":
		return reconfigurePrivileges(m)
	case "CreateVM_Task":
		return createPrivileges(m)
	case "RegisterVM_Task":
		return []string{"VirtualMachine.Inventory.Register"}
	case "UnregisterVM":
		return []string{"VirtualMachine.Inventory.Unregister"}
	case "Destroy_Task":
		if m.This.Type == "VirtualMachine" {
			return []string{"VirtualMachine.Inventory.Delete"}
		}
	case "PowerOnVM_Task":
		return []string{"VirtualMachine.Interact.PowerOn"}
	case "PowerOffVM_Task", "ShutdownGuest":
		return []string{"VirtualMachine.Interact.PowerOff"}
	case "SuspendVM_Task":
		return []string{"VirtualMachine.Interact.Suspend"}
	case "ResetVM_Task":
		return []string{"VirtualMachine.Interact.Reset"}
	case "CloneVM_Task":
		return []string{"VirtualMachine.Provisioning.Clone"}
	case "RelocateVM_Task":
		return []string{"Resource.ColdMigrate"}
	case "QueryChangedDiskAreas":
		return []string{"VirtualMachine.Provisioning.DiskRandomRead"}
	case "ExportVm", "ExportSnapshot":
		return []string{"VApp.Export"}
	case "ImportVApp":
		return []string{"VApp.Import"}
	case "CreateFolder":
		return []string{"Folder.Create"}
	case "SearchDatastore_Task", "SearchDatastoreSubFolders_Task":
		return []string{"Datastore.Browse"}
	case "DeleteDatastoreFile_Task", "MoveDatastoreFile_Task", "CopyDatastoreFile_Task", "MakeDirectory",
		"CreateVirtualDisk_Task", "DeleteVirtualDisk_Task", "CopyVirtualDisk_Task", "MoveVirtualDisk_Task", "ExtendVirtualDisk_Task":
		return []string{"Datastore.FileManagement"}
	case "DisableMethods":
		return []string{"Global.DisableMethods"}
	case "EnableMethods":
		return []string{"Global.EnableMethods"}
	case "TerminateSession":
		return []string{"Sessions.TerminateSession"}
	case "NfcGetVmFiles", "NfcRandomAccessOpenReadonly":
		return []string{"VirtualMachine.Config.DiskLease", "VirtualMachine.Provisioning.DiskRandomRead"}
	case "NfcRandomAccessOpenDisk":
		return []string{"VirtualMachine.Config.DiskLease", "VirtualMachine.Provisioning.DiskRandomAccess"}
	}
	return nil
}

// createPrivileges depends on what is created.
func createPrivileges(m *simulator.Method) []string {
	out := []string{"VirtualMachine.Inventory.Create", "Resource.AssignVMToPool", "Datastore.AllocateSpace"}
	req, ok := m.Body.(*types.CreateVM_Task)
	if !ok {
		return out
	}
	if len(req.Config.ExtraConfig) > 0 {
		out = append(out, "VirtualMachine.Config.AdvancedConfig")
	}
	if req.Config.SwapPlacement != "" {
		out = append(out, "VirtualMachine.Config.SwapPlacement")
	}
	for _, c := range req.Config.DeviceChange {
		sp := c.GetVirtualDeviceConfigSpec()
		switch sp.Device.(type) {
		case *types.VirtualDisk:
			out = append(out, diskPrivileges(sp)...)
		case types.BaseVirtualEthernetCard:
			out = append(out, "Network.Assign")
		}
	}
	return out
}

// diskPrivileges depends on whether a disk is new.
func diskPrivileges(sp *types.VirtualDeviceConfigSpec) []string {
	if sp.FileOperation == "" {
		return []string{"VirtualMachine.Config.AddExistingDisk"}
	}
	return []string{"VirtualMachine.Config.AddNewDisk", "Datastore.AllocateSpace"}
}

// reconfigurePrivileges depends on what is reconfigured.
func reconfigurePrivileges(m *simulator.Method) (out []string) {
	req, ok := m.Body.(*types.ReconfigVM_Task)
	if !ok {
		return nil
	}
	spec := &req.Spec
	if spec.ChangeTrackingEnabled != nil {
		out = append(out, "VirtualMachine.Config.ChangeTracking")
	}
	if spec.Name != "" {
		out = append(out, "VirtualMachine.Config.Rename")
	}
	if spec.Annotation != "" {
		out = append(out, "VirtualMachine.Config.Annotation")
	}
	if len(spec.ExtraConfig) > 0 {
		out = append(out, "VirtualMachine.Config.AdvancedConfig")
	}
	for _, c := range spec.DeviceChange {
		sp := c.GetVirtualDeviceConfigSpec()
		_, disk := sp.Device.(*types.VirtualDisk)
		switch {
		case !disk && sp.Operation == types.VirtualDeviceConfigSpecOperationEdit:
			out = append(out, "VirtualMachine.Config.EditDevice")
		case !disk:
			out = append(out, "VirtualMachine.Config.AddRemoveDevice")
		case sp.Operation == types.VirtualDeviceConfigSpecOperationRemove:
			out = append(out, "VirtualMachine.Config.RemoveDisk")
		case sp.Operation == types.VirtualDeviceConfigSpecOperationEdit:
			out = append(out, "VirtualMachine.Config.DiskExtend")
		default:
			out = append(out, diskPrivileges(sp)...)
		}
	}
	return out
}

// permit refuses a call the session's account may not make.
func (s *sim) permit(ctx *simulator.Context, m *simulator.Method) types.BaseMethodFault {
	return s.permitted(ctx.Session.UserName, m)
}

func (s *sim) permitted(user string, m *simulator.Method) types.BaseMethodFault {
	for _, p := range privilegeOf(m) {
		if !s.may(user, p) {
			return noPermission(m.This, p)
		}
	}
	return nil
}

func (s *sim) userOf(ctx *simulator.Context, sessionKey string) string {
	for _, u := range s.sessions() {
		if u.Key == sessionKey {
			return u.UserName
		}
	}
	return ctx.Session.UserName
}

func (s *sim) availability(user string, entities []ref, privileges []string) (out []types.EntityPrivilege) {
	for _, e := range entities {
		p := types.EntityPrivilege{Entity: e}
		for _, id := range privileges {
			p.PrivAvailability = append(p.PrivAvailability, types.PrivilegeAvailability{PrivId: id, IsGranted: s.privilegeExists(id) && s.may(user, id)})
		}
		out = append(out, p)
	}
	return out
}

// privilegeExists looks into the administrator's role: the simulator says yes to anything.
func (s *sim) privilegeExists(id string) bool { return slices.Contains(s.allPrivileges(), id) }

func (s *sim) allPrivileges() []string {
	am, ok := s.reg.Get(*s.content().AuthorizationManager).(*simulator.AuthorizationManager)
	if !ok {
		return nil
	}
	for _, r := range am.RoleList {
		if r.Name == "Admin" {
			return r.Privilege
		}
	}
	return nil
}

// HasPrivilegeOnEntities answers for a session.
func (s *sim) HasPrivilegeOnEntities(ctx *simulator.Context, req *types.HasPrivilegeOnEntities) soap.HasFault {
	return &methods.HasPrivilegeOnEntitiesBody{Res: &types.HasPrivilegeOnEntitiesResponse{
		Returnval: s.availability(s.userOf(ctx, req.SessionId), req.Entity, req.PrivId)}}
}

// HasPrivilegeOnEntity answers for a session and one entity.
func (s *sim) HasPrivilegeOnEntity(ctx *simulator.Context, req *types.HasPrivilegeOnEntity) soap.HasFault {
	user := s.userOf(ctx, req.SessionId)
	res := new(types.HasPrivilegeOnEntityResponse)
	for _, id := range req.PrivId {
		res.Returnval = append(res.Returnval, s.privilegeExists(id) && s.may(user, id))
	}
	return &methods.HasPrivilegeOnEntityBody{Res: res}
}

// HasUserPrivilegeOnEntities answers for an account.
func (s *sim) HasUserPrivilegeOnEntities(_ *simulator.Context, req *types.HasUserPrivilegeOnEntities) soap.HasFault {
	return &methods.HasUserPrivilegeOnEntitiesBody{Res: &types.HasUserPrivilegeOnEntitiesResponse{
		Returnval: s.availability(req.UserName, req.Entities, req.PrivId)}}
}

// FetchUserPrivilegeOnEntities lists what an account may do.
func (s *sim) FetchUserPrivilegeOnEntities(_ *simulator.Context, req *types.FetchUserPrivilegeOnEntities) soap.HasFault {
	res := new(types.FetchUserPrivilegeOnEntitiesResponse)
	var granted []string
	for _, p := range s.allPrivileges() {
		if s.may(req.UserName, p) {
			granted = append(granted, p)
		}
	}
	for _, e := range req.Entities {
		res.Returnval = append(res.Returnval, types.UserPrivilegeResult{Entity: e, Privileges: granted})
	}
	return &methods.FetchUserPrivilegeOnEntitiesBody{Res: res}
}
