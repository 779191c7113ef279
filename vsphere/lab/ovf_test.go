package lab_test

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/ovf"
	"github.com/vmware/govmomi/ovf/importer"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vmkeep/vmkeep/vsphere/lab"
)

// A machine leaves as an OVA by the lease of a snapshot and comes back by an import, content and all.
func TestExportAndImport(t *testing.T) {
	b := start(t, lab.Options{Machines: []lab.Machine{{Name: "web", Disks: []lab.Disk{{Size: 3*mib + 4096}, {Size: mib, Controller: "lsilogic", Bus: 1}}}}})
	vm := b.vm("web")
	want := map[int32][]byte{}
	for i, key := range []int32{2000, 2016} {
		b.guest("web", key, uint64(i), 70_000, 300_000)
		want[key] = b.live("web", key)
	}
	if _, err := vm.Export(b.ctx); err == nil {
		t.Error("a running machine was exported")
	}
	snap := b.snapshot(vm, "s")
	b.guest("web", 2000, 9, 0, 1000)
	lease, err := vm.ExportSnapshot(b.ctx, &snap)
	if err != nil {
		t.Fatal(err)
	}
	info, err := lease.Wait(b.ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	up := lease.StartUpdater(b.ctx, info)
	dir := t.TempDir()
	cdp := types.OvfCreateDescriptorParams{Name: "web"}
	for _, item := range info.Items {
		p := filepath.Join(dir, item.Path)
		if err := lease.DownloadFile(b.ctx, p, item, soap.DefaultDownload); err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		f := item.File()
		f.Size = st.Size()
		cdp.OvfFiles = append(cdp.OvfFiles, f)
	}
	up.Done()
	if mf, err := lease.GetManifest(b.ctx); err != nil || len(mf) != 2 || mf[0].Size != cdp.OvfFiles[0].Size || len(mf[0].Sha1) != 40 {
		t.Errorf("manifest %+v, %v", mf, err)
	}
	if err := lease.Complete(b.ctx); err != nil {
		t.Fatal(err)
	}
	desc, err := ovf.NewManager(b.vim).CreateDescriptor(b.ctx, vm, cdp)
	if err != nil {
		t.Fatal(err)
	}

	ova := filepath.Join(dir, "web.ova")
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	add := func(name string, p []byte) {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(p))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(p); err != nil {
			t.Fatal(err)
		}
	}
	add("web.ovf", []byte(desc.OvfDescriptor))
	for _, f := range cdp.OvfFiles {
		p, err := os.ReadFile(filepath.Join(dir, f.Path))
		if err != nil {
			t.Fatal(err)
		}
		add(f.Path, p)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(ova, archive.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}

	dc, err := b.finder.DefaultDatacenter(b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	folders, err := dc.Folders(b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	pool, err := b.finder.ResourcePool(b.ctx, "cluster1/Resources")
	if err != nil {
		t.Fatal(err)
	}
	archiveReader := &importer.TapeArchive{Path: ova, Opener: importer.Opener{Client: b.vim}}
	imp := importer.Importer{Name: "back", Client: b.vim, Finder: b.finder, Datacenter: dc, Datastore: b.datastore("ds2"),
		Folder: folders.VmFolder, ResourcePool: pool, Archive: archiveReader, Log: func(string) (int, error) { return 0, nil }}
	name := "back"
	made, err := imp.Import(b.ctx, "web.ovf", importer.Options{Name: &name, DiskProvisioning: "thin"})
	if err != nil {
		t.Fatal(err)
	}
	for key, content := range want {
		if !bytes.Equal(b.live("back", key), content) {
			t.Errorf("disk %d differs after the round trip", key)
		}
	}
	b.must(object.NewVirtualMachine(b.vim, *made).PowerOn(b.ctx))
}
