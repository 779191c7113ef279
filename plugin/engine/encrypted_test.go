package engine_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/vsphere"
	"github.com/vmkeep/vmkeep/vsphere/lab"
)

// vault is a vSphere with a machine as Windows 11 is installed: EFI, a virtual TPM, and therefore encrypted. One of its
// disks is, too.
func vault() lab.Options {
	return lab.Options{Machines: []lab.Machine{{Name: "vault", Guest: "windows11_64Guest", Firmware: "efi", KeyProvider: "kms", VTPM: true,
		Disks: []lab.Disk{{Size: littleSize, Encrypted: true}, {Size: littleSize}}}}}
}

// config is the machine's configuration as vSphere tells.
func (a *admin) config(name string) *types.VirtualMachineConfigInfo {
	a.r.t.Helper()
	var vm mo.VirtualMachine
	a.r.must(a.vm(name).Properties(a.r.t.Context(), a.r.lab.Machine(name).Ref(), []string{"config"}, &vm))
	return vm.Config
}

// told lists what events said, as "severity summary: detail".
func (r *rig) told() (out []string) {
	for _, ev := range r.events {
		if ev.Kind == plugin.EventDiagnostic {
			out = append(out, fmt.Sprintf("%s %s: %s", ev.Diagnostic.Severity, ev.Diagnostic.Summary, ev.Diagnostic.Detail))
		}
	}
	return out
}

func says(lines []string, text string) bool {
	return slices.ContainsFunc(lines, func(l string) bool { return strings.Contains(l, text) })
}

// An encrypted machine's point holds its disks in clear, read over an encrypted connection, with file systems quiesced,
// which is the best there is for it. It is incremental like any other's.
func TestEncryptedMachine(t *testing.T) {
	r := newRig(t, vault())
	rng := seeded(71)
	r.busy(rng, "vault")
	r.point("vault")
	if n := r.tried(); n != 1 {
		t.Errorf("%d snapshots were tried, want 1: that VSS refuses is known beforehand", n)
	}
	for _, text := range []string{"keeps the machine encrypted", "what the virtual TPM holds is not in the point"} {
		if !says(r.told(), text) {
			t.Errorf("%q is not told: %q", text, r.told())
		}
	}
	r.busy(rng, "vault")
	second := r.point("vault")
	if second.Consistency != plugin.ConsistencyFileSystem {
		t.Errorf("consistency %q", second.Consistency)
	}
	for _, d := range second.Disks {
		if !d.Incremental || !strings.HasPrefix(d.Transport, "nbdssl ") {
			t.Errorf("%+v", d)
		}
	}
	r.noTraces("vault")

	manifest := r.restic().Run("dump", "latest", "/vault/vm.json")
	for text, times := range map[string]int{`"encrypted": true`: 2, `"vtpm": true`: 1, `"kms"`: 2} {
		if n := strings.Count(manifest, text); n != times {
			t.Errorf("the manifest has %s %d times, want %d", text, n, times)
		}
	}
	if res := r.tryBackup("vault", func(b *plugin.BackupRequest) { b.Quiesce.Worst = plugin.ConsistencyApplication }); res.Err == nil {
		t.Error("the demand for application consistency was not refused")
	} else {
		failsWith(t, res.Err, plugin.CodeQuiesce, "encrypted")
	}
}

// No byte of an encrypted disk crosses the network in clear, whatever is configured; other disks may.
func TestEncryptedDisksAreNotReadInClear(t *testing.T) {
	r := newRig(t, vault())
	r.busy(seeded(72), "vault")
	c := r.config
	c.Transports = []string{"nbd"}
	r.must(r.Configure(t.Context(), c))
	res := r.tryBackup("vault", nil)
	failsWith(t, res.Err, plugin.CodeTransport, "in clear")
	r.noTraces("vault")
	r.noPoints()

	c.Transports = []string{"nbd", "nbdssl"}
	r.must(r.Configure(t.Context(), c))
	p := r.point("vault")
	for name, over := range map[string]string{"scsi0-0": "nbdssl ", "scsi0-1": "nbd "} {
		if d := r.disk(p, name); !strings.HasPrefix(d.Transport, over) {
			t.Errorf("%s was read over %q, want %q", name, d.Transport, over)
		}
	}
	if !says(r.told(), "transport nbd does not reach the disk: the disk is encrypted") {
		t.Errorf("the refusal is not told: %q", r.told())
	}
}

// The account needs the privilege to see what is encrypted, and learns its name.
func TestEncryptedDiskNeedsItsPrivilege(t *testing.T) {
	opt := vault()
	all := vsphere.RoleIDs(vsphere.BackupPrivileges())
	without := slices.DeleteFunc(slices.Clone(all), func(p string) bool { return p == "Cryptographer.Access" })
	opt.Users = []lab.User{{Name: "all", Password: "x", Privileges: all}, {Name: "without", Password: "x", Privileges: without}}
	r := newRig(t, opt)
	c := r.config
	c.VSphere.Username, c.VSphere.Password = "without", "x"
	r.must(r.Configure(t.Context(), c))
	failsWith(t, r.tryBackup("vault", nil).Err, plugin.CodePermission, "Cryptographer.Access")
	r.noTraces("vault")
	c.VSphere.Username = "all"
	r.must(r.Configure(t.Context(), c))
	r.point("vault")
}

// A restore makes a machine in clear and says so; the old NVRAM, which only the old key opens, stays away from it.
func TestEncryptedMachineIsRestoredInClear(t *testing.T) {
	r := newRig(t, vault())
	rng := seeded(73)
	r.busy(rng, "vault")
	p := r.point("vault")
	want := plugin.RestoreRequest{Point: p.ID, Mode: plugin.RestoreNew, Target: plugin.Target{Name: "open"}, Verify: true}
	plan, err := r.PlanRestore(t.Context(), want)
	r.must(err)
	report, err := r.Restore(t.Context(), want, r.note)
	r.must(err)
	for which, notes := range map[string][]plugin.Diagnostic{"plan": plan.Notes, "report": report.Notes} {
		var lines []string
		for _, n := range notes {
			lines = append(lines, n.Summary)
		}
		for _, text := range []string{"restored in clear, and without its NVRAM", "Virtual TPM is left out"} {
			if !says(lines, text) {
				t.Errorf("the %s does not say %q: %q", which, text, lines)
			}
		}
	}
	config := r.admin().config("open")
	if config.KeyId != nil {
		t.Errorf("the new machine has the key %+v", config.KeyId)
	}
	for _, dev := range config.Hardware.Device {
		if _, tpm := dev.(*types.VirtualTPM); tpm {
			t.Error("the new machine has a virtual TPM")
		}
		if d, ok := dev.(*types.VirtualDisk); ok && d.Backing.(*types.VirtualDiskFlatVer2BackingInfo).KeyId != nil {
			t.Errorf("disk %d of the new machine has a key", d.Key)
		}
	}
	for _, key := range []int32{2000, 2001} {
		if !bytes.Equal(r.live("open", key), r.live("vault", key)) {
			t.Errorf("disk %d of the new machine differs", key)
		}
	}
	firmware := func(machine string) string {
		disks, err := r.lab.Machine(machine).Disks()
		r.must(err)
		b, err := os.ReadFile(filepath.Join(filepath.Dir(disks[0].File), machine+".nvram"))
		r.must(err)
		return string(b)
	}
	if firmware("open") == firmware("vault") {
		t.Error("the new machine has the NVRAM of the encrypted one")
	}

	then := r.contents("vault")
	r.busy(rng, "vault")
	r.must(r.lab.Machine("vault").PowerOff())
	_, err = r.Restore(t.Context(), plugin.RestoreRequest{Point: p.ID, Mode: plugin.RestoreRollback, Target: plugin.Target{Machine: "vault"}, Verify: true}, r.note)
	r.must(err)
	for uuid, sum := range r.contents("vault") {
		if sum != then[uuid] {
			t.Errorf("disk %s was not rolled back", uuid)
		}
	}
	if r.admin().config("vault").KeyId == nil {
		t.Error("the rollback left the machine in clear")
	}
	r.noTraces("vault", "open")
}
