package engine_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/ovf"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/repo/backend/backendtest/peers"
	"github.com/vmkeep/vmkeep/vsphere/lab"
)

// govc runs VMware's own command line against the lab.
func (r *rig) govc(args ...string) string {
	r.t.Helper()
	cmd := exec.Command(peers.Binary(r.t, "govc"), args...)
	cmd.Env = []string{"HOME=" + r.t.TempDir(), "PATH=" + os.Getenv("PATH"), "GOVC_INSECURE=1", "GOVC_URL=" + r.lab.URL().String()}
	out, err := cmd.CombinedOutput()
	if err != nil {
		r.t.Fatalf("govc %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// toOVA restores a point of "zoo" to an OVA, and looks at the archive.
func (r *rig) toOVA(point plugin.Point) (file string) {
	r.t.Helper()
	dir := r.t.TempDir()
	report, err := r.Restore(r.t.Context(), plugin.RestoreRequest{Point: point.ID, Mode: plugin.RestoreDirectory, Directory: dir, Format: plugin.FormatOVA, Verify: true}, r.note)
	r.must(err)
	noneIncomplete(r.t, dir)
	file = filepath.Join(dir, point.Machine+".ova")
	if len(report.Files) != 1 || report.Files[0] != file {
		r.t.Errorf("files %q, want %s", report.Files, file)
	}
	return file
}

// An OVA is imported by govc into a vSphere where the disks then hold the same at the same places. The machine is backed
// up like any other, and then incrementally.
func TestOVAIsImportedByGovc(t *testing.T) {
	opt := everyController()
	vm := &opt.Machines[0]
	vm.Name = "zoo (1)"
	vm.Disks = slices.DeleteFunc(vm.Disks, func(d lab.Disk) bool {
		return d.Controller == "sata" || d.Controller == "nvme" // the vSphere of the lab, which is govmomi's, does not import them
	})
	r := newRig(t, opt)
	r.busy(seeded(50), "zoo (1)")
	point := r.point("zoo (1)")
	want, ova := r.byPlace("zoo (1)"), r.toOVA(point)
	files := []string{"zoo__1_.ovf", "zoo__1_.mf"}
	for _, place := range slices.Sorted(maps.Keys(want)) {
		files = append(files, place+".vmdk")
	}
	names, _ := untar(t, ova)
	if !slices.Equal(names, files) {
		t.Errorf("the archive holds %q, want %q", names, files)
	}
	r.govc("import.ova", "-name", "back", "-ds", "ds2", "-pool", "cluster1/Resources", ova)
	if got := r.byPlace("back"); !maps.Equal(got, want) {
		t.Errorf("the imported machine's disks differ: they are at %v", slices.Sorted(maps.Keys(got)))
	}
	r.must(r.lab.Machine("back").PowerOn())
	r.point("back")
	r.busy(seeded(51), "back")
	for _, d := range r.point("back").Disks {
		if !d.Incremental {
			t.Errorf("the second backup of %s is full: %s", d.Name, d.Reason)
		}
	}
}

// As govmomi reads it, the descriptor of an OVA has every controller that the machine has, and its disks on them.
func TestOVFTellsEveryController(t *testing.T) {
	r := newRig(t, everyController())
	point := r.backup("zoo", nil)
	_, descriptor := untar(t, r.toOVA(point))
	envelope, err := ovf.Unmarshal(bytes.NewReader(descriptor))
	r.must(err)
	spec, err := envelope.ToConfigSpec()
	r.must(err)
	hangs := func(devices []types.BaseVirtualDevice) (out []string) {
		list := object.VirtualDeviceList(devices)
		for _, d := range list.SelectByType((*types.VirtualDisk)(nil)) {
			disk := d.(*types.VirtualDisk)
			c := list.FindByKey(disk.ControllerKey)
			out = append(out, fmt.Sprintf("%T %d:%d", c, c.(types.BaseVirtualController).GetVirtualController().BusNumber, *disk.UnitNumber))
		}
		slices.Sort(out)
		return out
	}
	var told []types.BaseVirtualDevice
	for _, c := range spec.DeviceChange {
		told = append(told, c.GetVirtualDeviceConfigSpec().Device)
	}
	if got, want := hangs(told), hangs(r.admin().config("zoo").Hardware.Device); !slices.Equal(got, want) {
		t.Errorf("disks hang at\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// untar lists an archive, returns its descriptor, and demands that its manifest has the hash of every other file.
func untar(t *testing.T, name string) (names []string, descriptor []byte) {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var manifest, want []byte
	for tr := tar.NewReader(f); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
		data, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(h.Name, ".mf") {
			manifest = data
			continue
		}
		if strings.HasSuffix(h.Name, ".ovf") {
			descriptor = data
		}
		want = fmt.Appendf(want, "SHA256(%s)= %x\n", h.Name, sha256.Sum256(data))
	}
	if string(manifest) != string(want) {
		t.Errorf("the manifest says\n%swant\n%s", manifest, want)
	}
	return names, descriptor
}
