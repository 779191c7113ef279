package lab

import (
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// taskAnswer is the answer of a method that starts a task.
type taskAnswer = soap.HasFault

// taskOf takes the task out of an answer.
func taskOf(answer taskAnswer) (ref, *soap.Fault) {
	if f := answer.Fault(); f != nil {
		return ref{}, f
	}
	switch b := answer.(type) {
	case *methods.PowerOnVM_TaskBody:
		return b.Res.Returnval, nil
	case *methods.PowerOffVM_TaskBody:
		return b.Res.Returnval, nil
	case *methods.RevertToSnapshot_TaskBody:
		return b.Res.Returnval, nil
	case *methods.RemoveSnapshot_TaskBody:
		return b.Res.Returnval, nil
	case *methods.ReconfigVM_TaskBody:
		return b.Res.Returnval, nil
	case *methods.RelocateVM_TaskBody:
		return b.Res.Returnval, nil
	case *methods.Destroy_TaskBody:
		return b.Res.Returnval, nil
	}
	return ref{}, &soap.Fault{String: "not the answer of a task"}
}

func noPermission(obj ref, privilege string) *types.NoPermission {
	return &types.NoPermission{Object: &obj, PrivilegeId: privilege}
}
