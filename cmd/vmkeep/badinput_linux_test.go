package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmware/govmomi/vim25/types"

	"github.com/vmkeep/vmkeep/vddk/nfc/nfctest"
	"github.com/vmkeep/vmkeep/vsphere/lab"
)

// TestBadInputsEndWithTheirExitCodes: what goes wrong in mid-backup is one error with a remedy and the exit code, leaves
// no snapshot and no point, and the next run succeeds. The engine's tests have more of them; here it is the command.
func TestBadInputsEndWithTheirExitCodes(t *testing.T) {
	dir := t.TempDir()
	l, err := startLab(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, c := range []struct {
		name, says   string
		ruin, mended func(h home)
	}{
		{"refused ticket", "DiskRandomRead", func(home) {
			for _, method := range []string{"NfcGetVmFiles", "NfcRandomAccessOpenReadonly"} {
				l.Inject(lab.Fault{Method: method, Times: -1, Do: lab.Fail(&types.NoPermission{PrivilegeId: "VirtualMachine.Provisioning.DiskRandomRead"})})
			}
		}, func(home) { l.ClearFaults() }},
		{"connection cut in mid-read", "connection to the disk was lost", func(home) { l.NFC().SetScenario(nfctest.Scenario{DropAfter: 1 << 20}) },
			func(home) { l.NFC().SetScenario(nfctest.Scenario{}) }},
		{"disk full", "no space left", func(h home) { h.mountTmpfs("8m") }, func(h home) { h.mountTmpfs("64m,remount") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := home{t: t, dir: t.TempDir(), lab: l, password: "geheim"}
			if err := os.Mkdir(filepath.Join(h.dir, "repo"), 0o700); err != nil {
				t.Fatal(err)
			}
			c.ruin(h)
			defer c.mended(h)
			h.must("init")
			code, out := h.run("backup", "web", "--transport", "nbdssl")
			if code != exitFailure || !strings.Contains(out, c.says) || !strings.Contains(out, "-> ") {
				t.Errorf("exit code %d\n%s", code, out)
			}
			if n := l.Machine("web").SnapshotCount(); n != 0 {
				t.Errorf("%d snapshots are left", n)
			}
			if out := h.must("points"); !strings.Contains(out, "no points") {
				t.Errorf("a point is left:\n%s", out)
			}
			c.mended(h)
			h.must("backup", "web", "--transport", "nbdssl")
			h.must("check", "--read-data")
		})
	}
}

// mountTmpfs makes the directory of the repository a file system of its own, or changes its size. It needs root.
func (h home) mountTmpfs(options string) {
	h.t.Helper()
	repo := filepath.Join(h.dir, "repo")
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size="+options, "tmpfs", repo).CombinedOutput(); err != nil {
		if os.Getenv("CI") != "true" && os.Geteuid() != 0 {
			h.t.Skipf("a small file system needs root: %v: %s", err, out)
		}
		h.t.Fatalf("mount: %v: %s", err, out)
	}
	if !strings.Contains(options, "remount") {
		h.t.Cleanup(func() {
			if out, err := exec.Command("umount", "-l", repo).CombinedOutput(); err != nil {
				h.t.Errorf("umount: %v: %s", err, out)
			}
		})
	}
}
