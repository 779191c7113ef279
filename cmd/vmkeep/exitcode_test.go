//go:build unix

package main

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmkeep/vmkeep/vsphere/lab"
)

// TestExitCodesOfBackups: machines that are backed up in part or not at all make it 3, and the output says why; the
// machines that cannot be worse off do not.
func TestExitCodesOfBackups(t *testing.T) {
	dir := t.TempDir()
	const mib = 1 << 20
	l, err := lab.Start(t.Context(), lab.Options{Dir: filepath.Join(dir, "lab"), Machines: []lab.Machine{
		{Name: "plain", Disks: []lab.Disk{{Size: mib}}},
		{Name: "off", Off: true, Disks: []lab.Disk{{Size: mib}}},
		{Name: "bare", NoTools: true, Disks: []lab.Disk{{Size: mib}}},
		{Name: "golden", Template: true, Disks: []lab.Disk{{Size: mib}}},
		{Name: "vault", Guest: "windows11_64Guest", Firmware: "efi", KeyProvider: "kms", VTPM: true, Disks: []lab.Disk{{Size: mib, Encrypted: true}}},
		{Name: "independent", Disks: []lab.Disk{{Size: mib}, {Size: mib, Mode: "independent_persistent"}}},
		{Name: "mapped", Disks: []lab.Disk{{Size: mib}, {Size: mib, Raw: "physicalMode"}}},
		{Name: "shared", Off: true, Disks: []lab.Disk{{Size: mib}, {Size: mib, Controller: "lsilogic", Bus: 1, SharedBus: true}}},
		{Name: "node", Disks: []lab.Disk{{Size: mib}, {Size: mib, Controller: "lsilogic", Bus: 1, SharedBus: true}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}()
	h := home{t: t, dir: dir, lab: l, password: "geheim"}
	if code, out := h.run("init"); code != exitOK {
		t.Fatal(out)
	}
	for _, c := range []struct {
		args string
		want int
		says string
	}{
		{"plain", exitOK, ""},
		{"off", exitOK, ""},
		{"bare", exitOK, "bare"},
		{"golden", exitOK, ""},
		{"vault", exitOK, "what the virtual TPM holds is not in the point"},
		{"independent", exitPartial, "independent disk: snapshots leave it out"},
		{"mapped", exitPartial, "physical"},
		{"shared", exitPartial, "bus"},
		{"node", exitFailure, "shared bus"},
		{"plain node", exitPartial, "shared bus"},
		{"independent --unprotected fail", exitFailure, "scsi0-1"},
		{"plain independent --unprotected fail", exitPartial, "scsi0-1"},
		{"independent --unprotected fail --exclude-disk scsi0-1", exitOK, ""},
		{"vault --quiesce-at-least app", exitFailure, "encrypted"},
		{"bare --quiesce-at-least fs", exitFailure, "VMware Tools do not run"},
	} {
		if code, out := h.run(append([]string{"backup"}, strings.Fields(c.args)...)...); code != c.want || !strings.Contains(out, c.says) {
			t.Errorf("backup %s: exit code %d, want %d, and %q\n%s", c.args, code, c.want, c.says, out)
		}
	}
}
