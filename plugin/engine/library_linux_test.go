package engine_test

import (
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/vddk/vixdisklib/vixtest"
	"github.com/vmkeep/vmkeep/vsphere/lab"
)

// helperProgram is the program that loads VMware's library.
func helperProgram() string { return filepath.Join(filepath.Dir(pluginBinary()), "vmkeep-vddk") }

// attached is how many disks the library has attached to this machine, or left so.
func (r *rig) attached() int {
	r.t.Helper()
	files, err := vixtest.Attached(filepath.Join(r.config.StateDir, "vddk"))
	r.must(err)
	return len(files)
}

// awaitAttached waits until the library has attached so many disks: another process does that, which tells nobody.
func (r *rig) awaitAttached(n int) {
	r.t.Helper()
	late := time.After(time.Minute)
	for tick := time.Tick(10 * time.Millisecond); r.attached() != n; {
		select {
		case <-tick:
		case <-late:
			r.t.Fatalf("%d disks are attached, want %d", r.attached(), n)
		}
	}
}

func TestDisksOfAMachineShareAHelper(t *testing.T) {
	r := newRig(t, lab.Options{Machines: []lab.Machine{{Name: "db", Disks: []lab.Disk{{Size: 4 << 20}, {Size: 4 << 20}, {Size: 4 << 20}}}}})
	for key := int32(2000); key < 2003; key++ {
		r.scribble(seeded(uint64(key)), "db", key, 4<<20, 5, 1<<20)
	}
	r.at.control("fault Read hold")
	done := make(chan plugin.MachineResult)
	go func() { done <- r.tryBackup("db", nil) }()
	r.awaitAttached(3)
	helpers, err := processes(helperProgram())
	r.must(err)
	if len(helpers) != 1 {
		t.Errorf("%d helpers read three disks of a machine, want one", len(helpers))
	}
	r.at.control()
	if res := <-done; res.Err != nil {
		r.must(res.Err)
	}
	if n := r.at.library.Exits(); n != 1 {
		t.Errorf("%d helpers ended in order, want one", n)
	}
	if r.attached() != 0 {
		t.Error("disks are left attached")
	}
}

// The plugin is killed while the library has a disk attached, and the library's process with it or not.
func TestWhatAKilledLibraryLeftAttachedIsDetached(t *testing.T) {
	for name, both := range map[string]bool{"with its helper": true, "alone": false} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, oneDisk())
			r.scribble(seeded(61), "db", bigKey, mediumSize, 5, 1<<20)
			program := ownPlugin(t)
			loaded, err := r.at.load(t, program)
			r.must(err)
			r.must(loaded.Configure(t.Context(), r.config))
			r.at.control("fault Read hold")
			failed := make(chan error)
			go func() {
				_, err := loaded.Backup(t.Context(), plugin.BackupRequest{Selection: plugin.Selection{Names: []string{"db"}}}, nil)
				failed <- err
			}()
			r.awaitAttached(1)
			if both {
				r.must(kill(program, helperProgram()))
			} else {
				r.must(kill(program))
			}
			if err := <-failed; err == nil {
				t.Error("the backup of a killed plugin succeeds")
			}
			loaded.Kill()
			r.at.control()
			if both && r.attached() != 1 {
				t.Fatal("nothing is left attached: the test shows nothing")
			}
			report, err := r.Recover(t.Context(), nil)
			r.must(err)
			if len(report.Remaining) > 0 || !slices.ContainsFunc(report.Undone, func(l plugin.Leftover) bool { return l.Kind == "library" }) {
				t.Errorf("undone: %+v, remaining: %+v", report.Undone, report.Remaining)
			}
			if r.attached() != 0 {
				t.Error("a disk is left attached")
			}
			r.noTraces("db")
			r.backup("db", nil)
		})
	}
}

// A point is not worse for what the library does not detach; that is told, and tried again.
func TestWhatTheLibraryDoesNotDetachIsTold(t *testing.T) {
	r := newRig(t, oneDisk())
	r.at.control("fault Cleanup code=1")
	seen := len(r.events)
	if res := r.tryBackup("db", nil); res.Err != nil || res.Degraded() {
		t.Errorf("the backup gives %v, %+v", res.Err, res.Warnings)
	}
	left := func(severity plugin.Severity) bool {
		return slices.ContainsFunc(r.events[seen:], func(ev plugin.Event) bool {
			return ev.Kind == plugin.EventDiagnostic && ev.Diagnostic.Code == plugin.CodeLeftover && ev.Diagnostic.Severity == severity
		})
	}
	if !left(plugin.SeverityWarning) {
		t.Error("what may be left attached is not told")
	}
	r.at.control()
	seen = len(r.events)
	r.backup("db", nil)
	if !left(plugin.SeverityInfo) || left(plugin.SeverityWarning) {
		t.Error("the next backup does not see to it")
	}
}
