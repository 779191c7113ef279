package engine_test

import (
	"testing"

	"github.com/vmware/govmomi/vim25/types"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/vsphere/lab"
)

// The latest point of a machine is its newest one, under whatever name it was made; a name means the machine that has it
// now. Where several have it, the error tells them apart.
func TestLatestPointFollowsTheMachine(t *testing.T) {
	r := newRig(t, lab.Options{Machines: []lab.Machine{{Name: "db", Disks: []lab.Disk{{Size: littleSize}}}, {Name: "other", Folder: "prod", Disks: []lab.Disk{{Size: littleSize}}}}})
	latest := func(machine string) plugin.Point {
		t.Helper()
		plan, err := r.PlanRestore(t.Context(), plugin.RestoreRequest{Point: "latest", Machine: machine, Mode: plugin.RestoreDirectory, Directory: t.TempDir()})
		r.must(err)
		return plan.Point
	}
	rename := func(machine, to string) {
		r.must(r.lab.Machine(machine).Reconfigure(types.VirtualMachineConfigSpec{Name: to}))
	}
	r.backup("db", nil)
	rename("db", "database")
	renamed := r.backup("database", nil)
	for _, name := range []string{"database", "db", renamed.InstanceUUID, ""} {
		if got := latest(name); got.ID != renamed.ID {
			t.Errorf("the latest point of %q is %s of %s, want the one made after the machine was renamed", name, got.ID, got.Machine)
		}
	}
	rename("other", "db")
	other := r.backup("db", nil)
	if got := latest("db"); got.ID != other.ID {
		t.Errorf("the latest point of db is one of %s, want one of the machine that has the name now", got.InstanceUUID)
	}
	rename("db", "database")
	twin := r.backup(other.InstanceUUID, nil)
	_, err := r.PlanRestore(t.Context(), plugin.RestoreRequest{Point: "latest", Machine: "database"})
	failsWith(t, err, plugin.CodeAmbiguous, renamed.InstanceUUID)
	failsWith(t, err, plugin.CodeAmbiguous, twin.ID[:8])
	_, err = r.PlanRestore(t.Context(), plugin.RestoreRequest{Point: "latest", Machine: "nosuch"})
	failsWith(t, err, plugin.CodePointNotFound, "nosuch")
}
