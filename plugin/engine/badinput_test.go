package engine_test

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vmware/govmomi/vim25/types"
	"go.uber.org/goleak"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/vddk/nfc/nfctest"
	"github.com/vmkeep/vmkeep/vsphere/lab"
)

// failsWith demands an error with a code, a detail or object that names something, and a remedy.
func failsWith(t *testing.T, err error, code plugin.Code, mention string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want %s", code)
	}
	if got := plugin.CodeOf(err); got != code {
		t.Fatalf("code %q, want %q: %v", got, code, err)
	}
	e := asError(t, err)
	if e.Summary == "" || e.Remedy == "" && code != plugin.CodeCancelled {
		t.Errorf("the error has no summary or no remedy: %+v", e)
	}
	if text := e.Error() + e.Object + e.Remedy; !strings.Contains(text, mention) {
		t.Errorf("the error does not mention %q: %s", mention, text)
	}
}

func asError(t *testing.T, err error) *plugin.Error {
	t.Helper()
	e, ok := err.(*plugin.Error)
	if !ok {
		t.Fatalf("%T is not the contract's error: %v", err, err)
	}
	return e
}

func TestBadConfigurationIsExplained(t *testing.T) {
	r := newRig(t, oneDisk())
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	r.must(err)
	nowhere := closed.Addr().String()
	r.must(closed.Close())
	for _, c := range []struct {
		name    string
		change  func(*plugin.Config)
		code    plugin.Code
		mention string
	}{
		{"wrong password", func(c *plugin.Config) { c.Repository.Password = "guess" }, plugin.CodeWrongPassword, "password"},
		{"no repository", func(c *plugin.Config) { c.Repository.Location = filepath.Join(t.TempDir(), "nothing") }, plugin.CodeNoRepository, "nothing"},
		{"unreachable vCenter", func(c *plugin.Config) { c.VSphere.URL = "https://user:secret@" + nowhere + "/sdk" }, plugin.CodeUnreachable, nowhere},
		{"wrong thumbprint", func(c *plugin.Config) { c.VSphere.Thumbprint = strings.Repeat("AB:", 31) + "AB" }, plugin.CodeThumbprint, r.lab.Thumbprint()},
		{"wrong login", func(c *plugin.Config) { c.VSphere.Username, c.VSphere.Password = "nobody", "secret" }, plugin.CodeLogin, "domain"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r.endsClean(func() {
				cfg := r.config
				c.change(&cfg)
				if err := r.Configure(t.Context(), cfg); err != nil {
					t.Fatal(err)
				}
				_, err := r.Backup(t.Context(), plugin.BackupRequest{Selection: plugin.Selection{Names: []string{"db"}}}, nil)
				failsWith(t, err, c.code, c.mention)
				if strings.Contains(err.Error(), "secret") {
					t.Errorf("the error shows a secret: %v", err)
				}
			})
			r.noTraces("db")
			r.noPoints()
		})
	}
}

func TestBadRequestsAreExplained(t *testing.T) {
	r := newRig(t, oneDisk())
	r.scribble(seeded(1), "db", bigKey, mediumSize, 3, 1<<20)
	r.backup("db", nil)
	points, err := r.Points(t.Context(), plugin.PointFilter{})
	r.must(err)
	restore := func(req plugin.RestoreRequest) func(context.Context) error {
		return func(ctx context.Context) error { _, err := r.Restore(ctx, req, nil); return err }
	}
	for _, c := range []struct {
		name    string
		do      func(context.Context) error
		code    plugin.Code
		mention string
	}{
		{"unknown machine", func(ctx context.Context) error {
			_, err := r.Backup(ctx, plugin.BackupRequest{Selection: plugin.Selection{Names: []string{"nosuch"}}}, nil)
			return err
		}, plugin.CodeMachineNotFound, "nosuch"},
		{"neither images nor files", func(ctx context.Context) error {
			_, err := r.Backup(ctx, plugin.BackupRequest{NoImage: true}, nil)
			return err
		}, plugin.CodeInvalid, "files"},
		{"unknown point", restore(plugin.RestoreRequest{Point: "ffffffff", Mode: plugin.RestoreDirectory, Directory: t.TempDir()}), plugin.CodePointNotFound, "ffffffff"},
		{"unknown disk", restore(plugin.RestoreRequest{Machine: "db", Mode: plugin.RestoreDirectory, Directory: t.TempDir(), Disks: []string{"scsi9-9"}}), plugin.CodePointNotFound, "scsi0-0"},
		{"unknown mode", restore(plugin.RestoreRequest{Machine: "db", Mode: "sideways"}), plugin.CodeInvalid, "sideways"},
		{"a machine of that name exists", restore(plugin.RestoreRequest{Machine: "db", Mode: plugin.RestoreNew, Target: plugin.Target{Name: "db"}}), plugin.CodeExists, "db"},
		{"beyond the disk", func(ctx context.Context) error {
			return r.ReadDisk(ctx, plugin.ReadDiskRequest{Point: "latest", Disk: "scsi0-0", Offset: mediumSize, Length: 512}, func(plugin.Frame) error { return nil })
		}, plugin.CodeInvalid, "offset"},
		{"a repository exists", func(ctx context.Context) error { _, err := r.InitRepository(ctx); return err }, plugin.CodeExists, "another location"},
		{"odd subset", func(ctx context.Context) error {
			_, err := r.Check(ctx, plugin.CheckRequest{Subset: "a lot"}, nil)
			return err
		}, plugin.CodeInvalid, "subset"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r.endsClean(func() { failsWith(t, c.do(t.Context()), c.code, c.mention) })
			r.noTraces("db")
			if now, err := r.Points(t.Context(), plugin.PointFilter{}); err != nil || len(now) != len(points) {
				t.Errorf("%d points, want %d: %v", len(now), len(points), err)
			}
		})
	}
}

// A point of another repository, which is there and whole, is none of this one.
func TestPointOfAnotherRepository(t *testing.T) {
	r := newRig(t, oneDisk())
	r.backup("db", nil)
	other := r.config
	other.Repository.Location = filepath.Join(t.TempDir(), "other")
	r.initRepository(other.Repository.Location)
	r.must(r.Configure(t.Context(), other))
	point := r.backup("db", nil)
	r.must(r.lab.Machine("db").PowerOff())
	r.endsClean(func() {
		for _, mode := range []plugin.RestoreMode{plugin.RestoreNew, plugin.RestoreInPlace, plugin.RestoreRollback, plugin.RestoreAttach, plugin.RestoreDirectory} {
			_, err := r.Restore(t.Context(), plugin.RestoreRequest{Point: point.ID, Mode: mode, Directory: t.TempDir(), Target: plugin.Target{Name: map[bool]string{true: "db2"}[mode == plugin.RestoreNew]}}, nil)
			failsWith(t, err, plugin.CodePointNotFound, point.ID[:8])
		}
		err := r.ReadDisk(t.Context(), plugin.ReadDiskRequest{Point: point.ID, Disk: "scsi0-0"}, func(plugin.Frame) error { return nil })
		failsWith(t, err, plugin.CodePointNotFound, point.ID[:8])
	})
	r.noTraces("db")
}

// endsClean runs fn, and demands that what fn did to the rig's engine is over: every goroutine that it started has ended,
// and it left no point. Behind the plugin process a process is what could be left; nothingIsLeft looks for it.
func (r *rig) endsClean(fn func()) {
	r.t.Helper()
	r.must(r.Configure(r.t.Context(), r.config)) // a session lives as long as a configuration: there is none now
	before := goleak.IgnoreCurrent()
	fn()
	r.must(r.Configure(r.t.Context(), r.config))
	if r.at.process {
		return
	}
	// Connections that HTTP keeps for the next request, on both sides, are the lab's and its clients' business.
	idle := []goleak.Option{before, goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"), goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"),
		goleak.IgnoreAnyFunction("net/http.(*conn).serve")}
	err := goleak.Find(idle...)
	for range 20 { // it looks for half a second, which is little on a machine that does other things
		if err == nil {
			return
		}
		err = goleak.Find(idle...)
	}
	r.t.Errorf("goroutines are left: %v", err)
}

// A backup that fails leaves no point, no snapshot, and a repository that the next one uses.
func TestFailedBackupLeavesNothing(t *testing.T) {
	nfc, library, hotadd := []string{"nbdssl", "nbd"}, []string{"vddk"}, []string{"hotadd"}
	all := slices.Concat(nfc, library, hotadd)
	permission := lab.Fail(&types.NoPermission{PrivilegeId: "VirtualMachine.Provisioning.DiskRandomRead"})
	for _, c := range []struct {
		name    string
		over    []string // transports
		break_  func(*rig)
		code    plugin.Code
		mention string
	}{
		{"snapshot refused", all, func(r *rig) {
			r.lab.Inject(lab.Fault{Method: "CreateSnapshotEx_Task", Times: -1, Do: lab.Fail(&types.SnapshotFault{})})
			r.lab.Inject(lab.Fault{Method: "CreateSnapshot_Task", Times: -1, Do: lab.Fail(&types.SnapshotFault{})})
		}, plugin.CodeSnapshot, "db"},
		{"refused ticket", nfc, func(r *rig) {
			r.lab.Inject(lab.Fault{Method: "NfcGetVmFiles", Times: -1, Do: permission})
			r.lab.Inject(lab.Fault{Method: "NfcRandomAccessOpenReadonly", Times: -1, Do: permission})
		}, plugin.CodePermission, "DiskRandomRead"},
		{"connection cut again and again", nfc, func(r *rig) { r.lab.NFC().SetScenario(nfctest.Scenario{DropAfter: 1 << 20}) }, plugin.CodeTransport, "902"},
		{"the library refuses the disk", library, func(r *rig) { r.at.control("fault Open code=13") }, plugin.CodeTransport, "DiskRandomRead"},
		{"the library loses the disk", library, func(r *rig) { r.at.control("fault Read nth=4 code=14009") }, plugin.CodeTransport, "902"},
		{"the library crashes", library, func(r *rig) { r.at.control("fault Read nth=4 segv") }, plugin.CodeTransport, "VMware's library"},
		{"a disk cannot be attached", hotadd, func(r *rig) {
			r.lab.Inject(lab.Fault{Method: "ReconfigVM_Task", Times: -1, Do: lab.Fail(&types.NoPermission{PrivilegeId: "VirtualMachine.Config.AddExistingDisk"})})
		}, plugin.CodePermission, "AddExistingDisk"},
	} {
		if !slices.Contains(c.over, chosen().transport) {
			continue // it happens over others
		}
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, oneDisk())
			r.config.Transports = r.config.Transports[:1] // nothing to fall back to
			r.scribble(seeded(5), "db", bigKey, mediumSize, 12, 2<<20)
			r.must(r.lab.Machine("db").Reconfigure(types.VirtualMachineConfigSpec{ChangeTrackingEnabled: types.NewBool(true)}))
			r.endsClean(func() {
				c.break_(r)
				res := r.tryBackup("db", nil)
				if res.Err == nil || res.Point != nil {
					t.Fatalf("the backup succeeded: %+v", res)
				}
				failsWith(t, res.Err, c.code, c.mention)
			})
			r.noTraces("db")
			r.noPoints()
			r.lab.ClearFaults()
			r.lab.NFC().SetScenario(nfctest.Scenario{})
			r.at.control()
			r.backup("db", nil)
		})
	}
}

// noPoints fails when the repository holds any.
func (r *rig) noPoints() {
	r.t.Helper()
	points, err := r.Points(r.t.Context(), plugin.PointFilter{})
	r.must(err)
	if len(points) != 0 {
		r.t.Errorf("%d points exist", len(points))
	}
}

func TestOneCutConnectionIsNoFailure(t *testing.T) {
	r := newRig(t, oneDisk())
	r.scribble(seeded(5), "db", bigKey, mediumSize, 12, 2<<20)
	r.lab.NFC().SetScenario(nfctest.Scenario{DropAfter: 3 << 20, DropCount: 1})
	point := r.backup("db", nil)
	r.noTraces("db")
	dir := t.TempDir()
	_, err := r.Restore(t.Context(), plugin.RestoreRequest{Point: point.ID, Mode: plugin.RestoreDirectory, Directory: dir}, nil)
	r.must(err)
	if r.fileSum(filepath.Join(dir, "db", "scsi0-0.raw")) != r.sum("db", bigKey, mediumSize) {
		t.Error("the point differs from the disk")
	}
}

func TestCancelledBackupLeavesNothing(t *testing.T) {
	r := newRig(t, oneDisk())
	r.scribble(seeded(6), "db", bigKey, mediumSize, 20, 4<<20)
	r.lab.NFC().SetScenario(nfctest.Scenario{Bandwidth: 8 << 20}) // slow enough to be caught reading
	r.at.control("fault Read delay=100")
	r.endsClean(func() {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		report, err := r.Backup(ctx, plugin.BackupRequest{Selection: plugin.Selection{Names: []string{"db"}}}, func(ev plugin.Event) {
			if ev.Kind == plugin.EventProgress && ev.Progress.Read > 0 {
				cancel()
			}
		})
		if err == nil && len(report.Machines) == 1 && report.Machines[0].Err != nil {
			err = report.Machines[0].Err
		}
		failsWith(t, err, plugin.CodeCancelled, "")
	})
	r.noTraces("db")
	r.noPoints()
	r.at.control()
	r.lab.NFC().SetScenario(nfctest.Scenario{})
	r.backup("db", nil)
}

// smallFileSystem is a directory on a file system of its own with n bytes. It needs root.
func smallFileSystem(t *testing.T, n string) string {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size="+n, "tmpfs", dir).CombinedOutput(); err != nil {
		if os.Getenv("CI") != "true" && os.Geteuid() != 0 {
			t.Skipf("a small file system needs root: %v: %s", err, out)
		}
		t.Fatalf("mount a small file system: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	return dir
}

func TestFullRepositoryDiskIsExplained(t *testing.T) {
	r := newRig(t, oneDisk())
	rng := seeded(9)
	p := make([]byte, 40<<20)
	fill(rng, p)
	r.guest("db", bigKey, p, 0)
	r.config.Repository.Location = filepath.Join(smallFileSystem(t, "24m"), "repository")
	r.must(r.Configure(t.Context(), r.config))
	_, err := r.InitRepository(t.Context())
	r.must(err)
	r.endsClean(func() {
		res := r.tryBackup("db", nil)
		if res.Err == nil {
			t.Fatal("40 MiB were stored in 24 MiB")
		}
		failsWith(t, res.Err, plugin.CodeSpace, "")
	})
	r.noTraces("db")
	r.noPoints()
}
