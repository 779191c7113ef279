package lab_test

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vmkeep/vmkeep/vsphere/lab"
)

func (b *bench) datastore(name string) *object.Datastore {
	b.Helper()
	ds, err := b.finder.Datastore(b.ctx, name)
	if err != nil {
		b.Fatal(err)
	}
	return ds
}

func TestDatastoreFiles(t *testing.T) {
	b := start(t, lab.Options{Machines: []lab.Machine{oneDisk("web")}})
	ds := b.datastore("ds1")
	get := func(p string) (string, error) {
		r, _, err := ds.Download(b.ctx, p, &soap.DefaultDownload)
		if err != nil {
			return "", err
		}
		defer r.Close()
		all, err := io.ReadAll(r)
		return string(all), err
	}
	vmx, err := get("web/web.vmx")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{`displayName = "web"`, `scsi0:0.fileName = "web.vmdk"`, `scsi0.virtualDev = "pvscsi"`, `ctkEnabled = "TRUE"`} {
		if !strings.Contains(vmx, line+"\n") {
			t.Errorf("the .vmx lacks %s:\n%s", line, vmx)
		}
	}
	nvram, err := get("web/web.nvram")
	if err != nil || len(nvram) != 8684 || !strings.HasPrefix(nvram, "MRVN") {
		t.Errorf("nvram of %d bytes, %v", len(nvram), err)
	}
	if err := ds.Upload(b.ctx, strings.NewReader("hello"), "up/load.txt", &soap.DefaultUpload); err != nil {
		t.Fatal(err)
	}
	if s, err := get("up/load.txt"); err != nil || s != "hello" {
		t.Errorf("uploaded %q, %v", s, err)
	}
	if _, err := get("web/web-flat.vmdk"); err == nil {
		t.Error("a running machine's disk was served")
	}
	if _, err := get("../ds2/x"); err == nil {
		t.Error("out of the datastore")
	}
	if _, err := get("web/none"); err == nil {
		t.Error("no such file")
	}

	res, err := insecure().Get(ds.NewURL("web/web.vmx").String())
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	if res.StatusCode != http.StatusUnauthorized {
		t.Errorf("without a session: %s", res.Status)
	}

	// ranges, once the machine is off
	if err := b.lab.Machine("web").PowerOff(); err != nil {
		t.Fatal(err)
	}
	b.guest("web", 2000, 1, 0, mib)
	req, err := http.NewRequestWithContext(b.ctx, http.MethodGet, ds.NewURL("web/web-flat.vmdk").String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Range", "bytes=1000-2999")
	var part []byte
	if err := b.vim.Client.Do(b.ctx, req, func(r *http.Response) (err error) {
		part, err = io.ReadAll(r.Body)
		return err
	}); err != nil || !bytes.Equal(part, random(1, mib)[1000:3000]) {
		t.Errorf("range of %d bytes, %v", len(part), err)
	}
}

// A restore by hand: upload a disk's two files, attach it.
func TestUploadedDiskAttaches(t *testing.T) {
	b := start(t, lab.Options{Machines: []lab.Machine{oneDisk("web")}})
	ds := b.datastore("ds2")
	content := random(3, mib)
	for name, p := range map[string][]byte{
		"lost/a.vmdk":      []byte("# Disk DescriptorFile\nversion=1\ncreateType=\"vmfs\"\nRW 2048 VMFS \"a-flat.vmdk\"\n"),
		"lost/a-flat.vmdk": content,
	} {
		if err := ds.Upload(b.ctx, bytes.NewReader(p), name, &soap.DefaultUpload); err != nil {
			t.Fatal(err)
		}
	}
	d := &types.VirtualDisk{}
	d.ControllerKey, d.Key = 1000, -1
	d.Backing = &types.VirtualDiskFlatVer2BackingInfo{VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: "[ds2] lost/a.vmdk"}}
	b.must(b.vm("web").Reconfigure(b.ctx, types.VirtualMachineConfigSpec{DeviceChange: []types.BaseVirtualDeviceConfigSpec{
		&types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationAdd, Device: d}}}))
	if !bytes.Equal(b.live("web", 2001), content) {
		t.Error("the attached disk differs")
	}
}
