package engine_test

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
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
	eachWay(t, oneDisk(), func(t *testing.T, r *rig) {
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
				r.noTraces("db")
			})
		}
	})
}

func TestBadRequestsAreExplained(t *testing.T) {
	r := newRig(t, oneDisk(), inProcess)
	r.scribble(seeded(1), "db", bigKey, mediumSize, 3, 1<<20)
	r.backup("db", nil)
	ctx := t.Context()
	_, err := r.Backup(ctx, plugin.BackupRequest{Selection: plugin.Selection{Names: []string{"nosuch"}}}, nil)
	failsWith(t, err, plugin.CodeMachineNotFound, "nosuch")
	_, err = r.Restore(ctx, plugin.RestoreRequest{Point: "ffffffff", Mode: plugin.RestoreDirectory, Directory: t.TempDir()}, nil)
	failsWith(t, err, plugin.CodePointNotFound, "ffffffff")
	_, err = r.Restore(ctx, plugin.RestoreRequest{Machine: "db", Mode: plugin.RestoreDirectory, Directory: t.TempDir(), Disks: []string{"scsi9-9"}}, nil)
	failsWith(t, err, plugin.CodePointNotFound, "scsi0-0")
	_, err = r.Restore(ctx, plugin.RestoreRequest{Machine: "db", Mode: "sideways"}, nil)
	failsWith(t, err, plugin.CodeInvalid, "sideways")
	_, err = r.Restore(ctx, plugin.RestoreRequest{Machine: "db", Mode: plugin.RestoreNew, Target: plugin.Target{Name: "db"}}, nil)
	failsWith(t, err, plugin.CodeExists, "db")
	err = r.ReadDisk(ctx, plugin.ReadDiskRequest{Point: "latest", Disk: "scsi0-0", Offset: mediumSize, Length: 512}, func(plugin.Frame) error { return nil })
	failsWith(t, err, plugin.CodeInvalid, "offset")
	_, err = r.InitRepository(ctx)
	failsWith(t, err, plugin.CodeExists, "another location")
	_, err = r.Check(ctx, plugin.CheckRequest{Subset: "a lot"}, nil)
	failsWith(t, err, plugin.CodeInvalid, "subset")
}

// A backup that fails leaves no point, no snapshot, and a repository that the next one uses.
func TestFailedBackupLeavesNothing(t *testing.T) {
	for _, c := range []struct {
		name    string
		break_  func(*lab.Lab)
		mend    func(*lab.Lab)
		code    plugin.Code
		mention string
	}{
		{"refused ticket", func(l *lab.Lab) {
			l.Inject(lab.Fault{Method: "NfcGetVmFiles", Times: -1, Do: lab.Fail(&types.NoPermission{PrivilegeId: "VirtualMachine.Provisioning.DiskRandomRead"})})
			l.Inject(lab.Fault{Method: "NfcRandomAccessOpenReadonly", Times: -1, Do: lab.Fail(&types.NoPermission{PrivilegeId: "VirtualMachine.Provisioning.DiskRandomRead"})})
		}, (*lab.Lab).ClearFaults, plugin.CodePermission, "DiskRandomRead"},
		{"connection cut again and again", func(l *lab.Lab) { l.NFC().SetScenario(nfctest.Scenario{DropAfter: 1 << 20}) },
			func(l *lab.Lab) { l.NFC().SetScenario(nfctest.Scenario{}) }, plugin.CodeTransport, "902"},
		{"snapshot refused", func(l *lab.Lab) {
			l.Inject(lab.Fault{Method: "CreateSnapshotEx_Task", Times: -1, Do: lab.Fail(&types.SnapshotFault{})})
			l.Inject(lab.Fault{Method: "CreateSnapshot_Task", Times: -1, Do: lab.Fail(&types.SnapshotFault{})})
		}, (*lab.Lab).ClearFaults, plugin.CodeSnapshot, "db"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, oneDisk(), inProcess)
			r.scribble(seeded(5), "db", bigKey, mediumSize, 12, 4<<20)
			c.break_(r.lab)
			res := r.tryBackup("db", nil)
			if res.Err == nil || res.Point != nil {
				t.Fatalf("the backup succeeded: %+v", res)
			}
			failsWith(t, res.Err, c.code, c.mention)
			r.noTraces("db")
			r.noPoints()
			c.mend(r.lab)
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
	r := newRig(t, oneDisk(), inProcess)
	r.scribble(seeded(5), "db", bigKey, mediumSize, 12, 4<<20)
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
	eachWay(t, oneDisk(), func(t *testing.T, r *rig) {
		r.scribble(seeded(6), "db", bigKey, mediumSize, 20, 4<<20)
		r.lab.NFC().SetScenario(nfctest.Scenario{Bandwidth: 8 << 20}) // slow enough to be caught reading
		_, err := r.Machines(t.Context(), plugin.Selection{})         // the session stays
		r.must(err)
		running := goleak.IgnoreCurrent()
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
		r.noTraces("db")
		r.noPoints()
		if err := goleak.Find(running, goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"), goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"),
			goleak.IgnoreAnyFunction("net/http.(*conn).serve")); err != nil {
			t.Errorf("goroutines are left: %v", err)
		}
		r.lab.NFC().SetScenario(nfctest.Scenario{})
		r.backup("db", nil)
	})
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
	r := newRig(t, oneDisk(), inProcess)
	rng := seeded(9)
	p := make([]byte, 80<<20)
	fill(rng, p)
	r.guest("db", bigKey, p, 0)
	c := r.config
	c.Repository.Location = filepath.Join(smallFileSystem(t, "48m"), "repository")
	r.must(r.Configure(t.Context(), c))
	_, err := r.InitRepository(t.Context())
	r.must(err)
	res := r.tryBackup("db", nil)
	if res.Err == nil {
		t.Fatal("80 MiB were stored in 48 MiB")
	}
	failsWith(t, res.Err, plugin.CodeSpace, "")
	r.noTraces("db")
	r.noPoints()
}
