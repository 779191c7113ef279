package engine_test

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/vmware/govmomi/vim25/types"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/vsphere/lab"
)

// healthy is a vSphere that a doctor finds nothing wrong with.
func healthy() lab.Options {
	return lab.Options{Machines: []lab.Machine{
		{Name: "db", Host: "esx1", Tracking: true, Disks: []lab.Disk{{Size: 1 << 20}}},
		{Name: "web", Host: "esx2", Tracking: true, Disks: []lab.Disk{{Size: 1 << 20}}},
	}}
}

// bad are the findings that are not all right, but for those about the fake library.
func (r *rig) bad() (out []plugin.Finding) {
	r.t.Helper()
	all, err := r.Doctor(r.t.Context())
	r.must(err)
	for _, f := range all {
		if !f.OK && !strings.HasPrefix(f.Name, "VMware's library") {
			out = append(out, f)
		}
	}
	return out
}

func TestDoctorFindsNothingInGoodHealth(t *testing.T) {
	r := newRig(t, healthy())
	if bad := r.bad(); len(bad) > 0 {
		t.Errorf("%+v", bad)
	}
	r.point("db")
	r.noTraces("db", "web")
	if bad := r.bad(); len(bad) > 0 {
		t.Errorf("after a backup: %+v", bad)
	}
}

// rewriting performs a call and replaces what matches in its answer.
func rewriting(pattern, with string) lab.Effect {
	return func(w http.ResponseWriter, q *http.Request, next http.Handler) {
		rec := httptest.NewRecorder()
		next.ServeHTTP(rec, q)
		body := regexp.MustCompile(pattern).ReplaceAll(rec.Body.Bytes(), []byte(with))
		w.Header().Set("Content-Type", "text/xml")
		w.WriteHeader(rec.Code)
		_, _ = bytes.NewReader(body).WriteTo(w)
	}
}

// closedPort is a port of this machine that nobody listens on.
func closedPort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return l.Addr().(*net.TCPAddr).Port
}

// Every ill is found alone, by its name, with what to do.
func TestDoctorFinds(t *testing.T) {
	for name, c := range map[string]struct {
		ail            func(r *rig, c *plugin.Config)
		finding        string
		detail, remedy string
	}{
		"another certificate": {func(r *rig, c *plugin.Config) { c.VSphere.Thumbprint = strings.Repeat("AB:", 31) + "AB" }, "vSphere session", "{thumbprint}", "thumbprint"},
		"no thumbprint":       {func(r *rig, c *plugin.Config) { c.VSphere.Thumbprint = "" }, "vSphere session", "{thumbprint}", "thumbprint"},
		"no server": {func(r *rig, c *plugin.Config) {
			c.VSphere.URL = fmt.Sprintf("https://user:word@127.0.0.1:%d/sdk", closedPort(r.t))
		}, "vSphere session", "does not answer", "port 443"},
		"a wrong password": {func(r *rig, c *plugin.Config) {
			c.VSphere.Username, c.VSphere.Password = "administrator@vsphere.local", "wrong"
		}, "vSphere session", "refuses the user name or the password", "locked"},
		"a host whose disk port is closed": {func(r *rig, c *plugin.Config) {
			r.lab.Inject(lab.Fault{Method: "NfcGetVmFiles", Nth: 2, Do: rewriting(`<port>\d+</port>`, fmt.Sprintf("<port>%d</port>", closedPort(r.t)))})
		}, "host esx2", "is not reachable", "firewall"},
		"a clock that is wrong": {func(r *rig, c *plugin.Config) {
			late := time.Now().Add(-time.Hour).UTC().Format(time.RFC3339)
			r.lab.Inject(lab.Fault{Method: "CurrentTime", Times: -1, Do: rewriting(`(<returnval[^>]*>)[^<]*`, "${1}"+late)})
		}, "clock", "-1h0m", "time server"},
		"a machine without VMware Tools": {func(r *rig, c *plugin.Config) {
			r.must(r.lab.Machine("db").Reconfigure(types.VirtualMachineConfigSpec{ExtraConfig: []types.BaseOptionValue{&types.OptionValue{Key: "SET.guest.toolsRunningStatus", Value: "guestToolsNotRunning"}}}))
		}, "VMware Tools", "/dc1/vm/db", "install or start"},
		"a foreign snapshot without change tracking": {func(r *rig, c *plugin.Config) {
			off := false
			r.must(r.lab.Machine("web").Reconfigure(types.VirtualMachineConfigSpec{ChangeTrackingEnabled: &off}))
			_, err := r.lab.Machine("web").Snapshot("theirs")
			r.must(err)
		}, "change tracking", "/dc1/vm/web", "remove their snapshots"},
		"what a killed run left": {func(r *rig, c *plugin.Config) {
			r.must(r.lab.Machine("db").SetFaults(lab.MachineFaults{RemoveSnapshot: &types.NoPermission{PrivilegeId: "nobody's"}}))
			if res := r.tryBackup("db", nil); res.Err == nil {
				r.t.Error("the snapshot went")
			}
			r.must(r.lab.Machine("db").SetFaults(lab.MachineFaults{}))
		}, "leftovers", "/dc1/vm/db", "vmkeep recover"},
		"no repository":                      {func(r *rig, c *plugin.Config) { c.Repository.Location = r.t.TempDir() }, "repository", "", "vmkeep init"},
		"a wrong password of the repository": {func(r *rig, c *plugin.Config) { c.Repository.Password = "wrong" }, "repository", "password", "password"},
		"a full datastore":                   {func(r *rig, c *plugin.Config) { r.must(r.lab.SetFreeSpace("ds3", 1<<20)) }, "datastore ds3", "are free", "free space"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, healthy())
			cfg := r.config
			c.ail(r, &cfg)
			r.must(r.Configure(t.Context(), cfg))
			bad := r.bad()
			if len(bad) != 1 || bad[0].Name != c.finding {
				t.Fatalf("found %+v, want %s", bad, c.finding)
			}
			detail := strings.ReplaceAll(c.detail, "{thumbprint}", r.lab.Thumbprint())
			if f := bad[0]; !strings.Contains(f.Detail, detail) || !strings.Contains(f.Remedy, c.remedy) {
				t.Errorf("%+v: want the detail %q and the remedy %q", f, detail, c.remedy)
			}
		})
	}
}

// Where disks are to be hot-added, doctor says whether this is a machine that they can be attached to, and what the account
// lacks for it.
func TestDoctorLooksAtTheProxy(t *testing.T) {
	opt := healthy()
	opt.Users = []lab.User{{Name: "backup", Password: accountPassword, Privileges: published(t, "backup")},
		{Name: "both", Password: accountPassword, Privileges: append(published(t, "backup"), published(t, "proxy")...)}}
	r := newRigIn(t, way{transport: "hotadd"}, opt)
	r.as("both")
	if bad := r.bad(); len(bad) > 0 {
		t.Errorf("%+v", bad)
	}
	r.as("backup")
	if bad := r.bad(); len(bad) != 1 || bad[0].Name != "hot-add" || !strings.Contains(bad[0].Detail, "AddExistingDisk") || !strings.Contains(bad[0].Remedy, "proxy.sh") {
		t.Errorf("%+v", bad)
	}
	r.must(r.lab.Machine(proxyName).Reconfigure(types.VirtualMachineConfigSpec{Uuid: "564d0000-0000-0000-0000-000000000000"}))
	r.as("both")
	if bad := r.bad(); len(bad) != 1 || bad[0].Name != "hot-add" || !strings.Contains(bad[0].Remedy, "machine of this vCenter") {
		t.Errorf("%+v", bad)
	}
}
