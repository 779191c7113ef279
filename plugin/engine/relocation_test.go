package engine_test

import (
	"fmt"
	"net/http"
	"slices"
	"testing"

	"github.com/vmkeep/vmkeep/vsphere/lab"
)

// While disks are read vCenter does not move them: relocating is disabled before the snapshot is taken, and allowed
// again after it is gone.
func TestMachinesAreNotMovedWhileTheyAreRead(t *testing.T) {
	r := newRig(t, lab.Options{Machines: []lab.Machine{{Name: "db", Disks: []lab.Disk{{Size: 2 << 20}}}}})
	for _, method := range []string{"DisableMethods", "EnableMethods"} { // of vCenter's internal API, which the simulator lacks
		r.lab.Inject(lab.Fault{Method: method, Times: -1, Do: func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			fmt.Fprintf(w, `<?xml version="1.0"?><Envelope xmlns="http://schemas.xmlsoap.org/soap/envelope/"><Body><%[1]sResponse xmlns="urn:vim25"></%[1]sResponse></Body></Envelope>`, method)
		}})
	}
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
