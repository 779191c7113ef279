package engine_test

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vmware/govmomi/vim25/types"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/vsphere/lab"
)

// Transports are tried in the configured order; what those before the one that served had to say is told as events, in
// that order, and in nothing else: the point is made, and is not worse for it.
func TestFallingToTheNextTransportIsTold(t *testing.T) {
	r := newRig(t, oneDisk())
	r.scribble(seeded(51), "db", bigKey, mediumSize, 5, 1<<20)
	r.backup("db", nil)
	vddkDir := t.TempDir() // holds no library
	if r.at.library != nil {
		vddkDir = r.at.library.Dir
		r.at.library.Control("fault Open code=13")
	}
	// Nothing is attached to the proxy, where there is one.
	r.lab.Inject(lab.Fault{Method: "ReconfigVM_Task", Times: -1, Do: lab.Fail(&types.NoPermission{PrivilegeId: "VirtualMachine.Config.AddExistingDisk"})})
	for _, list := range [][]string{
		{"vddk:nbdssl", "hotadd", "nbd"}, {"hotadd", "vddk:nbdssl", "nbdssl"}, {"hotadd", "nbd", "nbdssl"}, {"vddk:nbdssl", "nbdssl"},
	} {
		t.Run(strings.Join(list, ", "), func(t *testing.T) {
			c := r.config
			c.Transports, c.VDDKDir = list, vddkDir
			r.must(r.Configure(t.Context(), c))
			r.scribble(seeded(52), "db", bigKey, mediumSize, 2, 64<<10)
			want := r.contents("db")
			seen := len(r.events)
			res := r.tryBackup("db", nil)
			if res.Err != nil {
				r.must(res.Err)
			}
			serves := slices.IndexFunc(list, func(n string) bool { return strings.HasPrefix(n, "nbd") }) // the first that can
			if d := r.disk(*res.Point, "scsi0-0"); !strings.HasPrefix(d.Transport, list[serves]+" ") {
				t.Errorf("the disk was read over %q", d.Transport)
			}
			var told []string
			for _, ev := range r.events[seen:] {
				if ev.Kind == plugin.EventDiagnostic && ev.Diagnostic.Code == plugin.CodeTransport {
					if ev.Disk != "scsi0-0" || ev.Diagnostic.Severity != plugin.SeverityWarning || ev.Diagnostic.Detail == "" {
						t.Errorf("told of disk %q: %+v", ev.Disk, ev.Diagnostic)
					}
					told = append(told, ev.Diagnostic.Summary)
				}
			}
			if len(told) != serves {
				t.Errorf("told of refusals: %q", told)
			}
			for i, text := range told {
				if name, _, _ := strings.Cut(list[i], ":"); !strings.Contains(text, "transport "+name+" ") {
					t.Errorf("refusal %d is %q, want %s", i+1, text, name)
				}
			}
			if res.Degraded() {
				t.Errorf("the point counts as degraded: %+v", res.Warnings)
			}
			r.exact(*res.Point, want)
			r.noTraces("db")
		})
	}
}

func TestOddTransportsAreRefused(t *testing.T) {
	r := newRig(t, lab.Options{})
	for _, bad := range [][]string{{"carrier pigeon"}, {"nbd:san"}, {"vddk:pigeon"}} {
		c := r.config
		c.Transports = bad
		if err := r.Configure(t.Context(), c); plugin.CodeOf(err) != plugin.CodeInvalid {
			t.Errorf("transports %q: %v", bad, err)
		}
	}
	for name, change := range map[string]func(*plugin.Config){
		"compression": func(c *plugin.Config) { c.DiskCompression = "quick" },
		"setting":     func(c *plugin.Config) { c.VDDKSettings = map[string]string{"a b": "c"} },
	} {
		c := r.config
		change(&c)
		if err := r.Configure(t.Context(), c); plugin.CodeOf(err) != plugin.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDisksAreCompressedOnTheWireAsConfigured(t *testing.T) {
	r := newRig(t, oneDisk())
	r.guest("db", bigKey, bytes.Repeat([]byte("all work and no play "), 50000)[:1<<20], 0)
	c := r.config
	c.DiskCompression, c.Transports = "zlib", []string{"nbdssl"}
	r.must(r.Configure(t.Context(), c))
	if res := r.tryBackup("db", nil); res.Err != nil {
		r.must(res.Err)
	}
	if s := r.lab.NFC().Stats(); s.ReadBytes == 0 || s.WireBytes > s.ReadBytes/4 {
		t.Errorf("%d bytes were sent for %d", s.WireBytes, s.ReadBytes)
	}
}

// The settings of VMware's library reach it, and whether it is for this vSphere is told.
func TestLibraryIsSetUpAsConfigured(t *testing.T) {
	r := newRig(t, oneDisk())
	c := r.config
	c.VDDKSettings = map[string]string{"vixDiskLib.nfcAio.Session.BufCount": "4"}
	r.must(r.Configure(t.Context(), c))
	r.backup("db", nil)
	found, err := filepath.Glob(filepath.Join(r.config.StateDir, "vddk", "vixdisklib-*.conf"))
	if err != nil || len(found) != 1 {
		t.Fatalf("the configurations of the library are %q: %v", found, err)
	}
	if b, err := os.ReadFile(found[0]); err != nil || !strings.Contains(string(b), "\nvixDiskLib.nfcAio.Session.BufCount=4\n") {
		t.Errorf("the configuration is %q: %v", b, err)
	}
	findings, err := r.Doctor(t.Context())
	r.must(err)
	if !slices.ContainsFunc(findings, func(f plugin.Finding) bool {
		return f.Name == "VMware's library: vSphere" && f.OK && strings.Contains(f.Detail, "version 8 for vSphere ")
	}) {
		t.Errorf("the doctor does not compare the library with vSphere: %+v", findings)
	}
}

// What the library left attached is found by its state: that lies where every run of this installation looks.
func TestStateOfTheLibraryIsBesideTheJournals(t *testing.T) {
	r := newRig(t, oneDisk())
	r.backup("db", nil)
	state := filepath.Join(r.config.StateDir, "vddk")
	found, err := filepath.Glob(filepath.Join(state, "vixdisklib-*.conf"))
	if err != nil || len(found) != 1 {
		t.Fatalf("the configurations of the library in %s are %q: %v", state, found, err)
	}
	if b, err := os.ReadFile(found[0]); err != nil || !strings.Contains(string(b), "tmpDirectory="+state+"\n") {
		t.Errorf("the configuration is %q, want %s for the state: %v", b, state, err)
	}
}
