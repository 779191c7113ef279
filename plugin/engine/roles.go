package engine

import (
	"fmt"
	"strings"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/vsphere"
)

// Role is the line that makes a vSphere role with exactly the privileges that a task needs, "backup", "proxy" (on the
// machine that hot-adds disks) or "restore", with govc.
func Role(task string) (string, error) {
	need := vsphere.BackupPrivileges()
	switch task {
	case "backup":
	case "proxy":
		need = vsphere.ProxyPrivileges()
	case "restore":
		need = append(need, vsphere.RestorePrivileges()...)
	default:
		return "", &plugin.Error{Code: plugin.CodeInvalid, Summary: fmt.Sprintf("there is no role for %q", task), Remedy: "ask for backup, proxy or restore", Object: task}
	}
	return "govc role.create vmkeep-" + task + " \\\n  " + strings.Join(vsphere.RoleIDs(need), " \\\n  ") + "\n", nil
}
