package engine_test

import (
	"slices"
	"testing"

	"github.com/vmkeep/vmkeep/vsphere/lab"
)

// While disks are read vCenter does not move them: relocating is disabled before the snapshot is taken, and allowed
// again after it is gone.
func TestMachinesAreNotMovedWhileTheyAreRead(t *testing.T) {
	r := newRig(t, lab.Options{Machines: []lab.Machine{{Name: "db", Disks: []lab.Disk{{Size: 2 << 20}}}}})
	r.lab.ResetCalls()
	r.point("db")
	at := func(method string) int {
		t.Helper()
		i := slices.IndexFunc(r.lab.Calls(), func(c lab.Call) bool { return c.Method == method })
		if i < 0 {
			t.Fatalf("%s was not called", method)
		}
		return i
	}
	if off, on := at("DisableMethods"), at("EnableMethods"); off > at("CreateSnapshot_Task") || on < at("RemoveSnapshot_Task") {
		t.Errorf("disabled at call %d, enabled at %d, snapshot from %d to %d", off, on, at("CreateSnapshot_Task"), at("RemoveSnapshot_Task"))
	}
	r.noTraces("db")
}
