package engine_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/ovf/importer"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/vsphere/lab"
)

// qemuImg is QEMU's own judgement.
func qemuImg(t *testing.T, args ...string) string {
	t.Helper()
	path, err := exec.LookPath("qemu-img")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("qemu-img is missing: apt install qemu-utils")
		}
		t.Skip("qemu-img is missing")
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("qemu-img %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// zoo is a machine with a disk on every kind of controller.
func zoo() lab.Options {
	return lab.Options{Machines: []lab.Machine{{Name: "zoo (1)", Network: "VM Network", Firmware: "efi", CPUs: 3, MemoryMB: 768, Disks: []lab.Disk{
		{Size: 20 << 20}, {Size: 5<<20 + 512*1024, Controller: "lsilogic", Bus: 1}, {Size: 3 << 20, Controller: "ide"}}}}}
}

func zooKeys() []int32 { return []int32{2000, 2016, 3000} }

// populateZoo fills the disks and returns a point and what the disks hold.
func populateZoo(r *rig) (plugin.Point, map[int32][]byte) {
	want := map[int32][]byte{}
	disks, err := r.lab.Machine("zoo (1)").Disks()
	r.must(err)
	if len(disks) != len(zooKeys()) {
		r.t.Fatalf("%d disks", len(disks))
	}
	for i, d := range disks {
		r.scribble(seeded(uint64(50+i)), "zoo (1)", d.Key, d.Size, 8, 1<<20)
		want[d.Key] = r.live("zoo (1)", d.Key)
	}
	return r.backup("zoo (1)", nil), want
}

func TestDirectoryFormatsAreWhatQEMUReads(t *testing.T) {
	r := newRig(t, oneDisk())
	r.scribble(seeded(41), "db", bigKey, mediumSize, 12, 2<<20)
	point := r.backup("db", nil)
	want := filepath.Join(t.TempDir(), "want.raw")
	r.must(os.WriteFile(want, r.live("db", bigKey), 0o600))
	for _, c := range []struct {
		format plugin.RestoreFormat
		file   string
		qemu   string
		create string
	}{
		{plugin.FormatRaw, "scsi0-0.raw", "raw", "raw"}, {plugin.FormatSplit, "scsi0-0.vmdk", "vmdk", "twoGbMaxExtentFlat"},
		{plugin.FormatFlat, "scsi0-0.vmdk", "vmdk", "monolithicFlat"}, {plugin.FormatStreamOptimized, "scsi0-0.vmdk", "vmdk", "streamOptimized"},
	} {
		for _, sparse := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s sparse %v", c.format, sparse), func(t *testing.T) {
				dir := t.TempDir()
				report, err := r.Restore(t.Context(), plugin.RestoreRequest{Point: point.ID, Mode: plugin.RestoreDirectory, Directory: dir, Format: c.format, Sparse: sparse, Verify: true}, r.note)
				r.must(err)
				file := filepath.Join(dir, "db", c.file)
				if info := qemuImg(t, "info", "-f", c.qemu, file); !strings.Contains(info, c.create) || !strings.Contains(info, fmt.Sprintf("(%d bytes)", mediumSize)) {
					t.Errorf("qemu-img info:\n%s", info)
				}
				qemuImg(t, "compare", "-f", "raw", "-F", c.qemu, want, file)
				if !report.Disks[0].Verified || report.Disks[0].Written == 0 {
					t.Errorf("report %+v", report.Disks[0])
				}
				for _, f := range report.Files {
					if _, err := os.Stat(f); err != nil {
						t.Error(err)
					}
				}
				noneIncomplete(t, dir)
				_, err = r.Restore(t.Context(), plugin.RestoreRequest{Point: point.ID, Mode: plugin.RestoreDirectory, Directory: dir, Format: c.format}, r.note)
				failsWith(t, err, plugin.CodeExists, "exists")
				noneIncomplete(t, dir)
				_, err = r.Restore(t.Context(), plugin.RestoreRequest{Point: point.ID, Mode: plugin.RestoreDirectory, Directory: dir, Format: c.format, Sparse: sparse, Force: true}, r.note)
				r.must(err)
				qemuImg(t, "compare", "-f", "raw", "-F", c.qemu, want, file)
			})
		}
	}
}

// noneIncomplete fails when a restore says that it has not ended.
func noneIncomplete(t *testing.T, dir string) {
	t.Helper()
	r := os.DirFS(dir)
	if err := fs.WalkDir(r, ".", func(p string, _ fs.DirEntry, err error) error {
		if strings.HasSuffix(p, ".incomplete") {
			t.Errorf("%s is there", p)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// An OVA is imported by govmomi, which checks the manifest, into a vSphere whose disks then hold the same.
func TestOVAIsImported(t *testing.T) {
	r := newRig(t, zoo())
	point, want := populateZoo(r)
	dir := t.TempDir()
	report, err := r.Restore(t.Context(), plugin.RestoreRequest{Point: point.ID, Mode: plugin.RestoreDirectory, Directory: dir, Format: plugin.FormatOVA, Verify: true}, r.note)
	r.must(err)
	noneIncomplete(t, dir)
	ova := filepath.Join(dir, "zoo (1).ova")
	if len(report.Files) != 1 || report.Files[0] != ova {
		t.Errorf("files %q", report.Files)
	}
	names := untar(t, ova)
	if got := strings.Join(names, " "); got != "zoo__1_.ovf zoo__1_.mf ide0-0.vmdk scsi0-0.vmdk scsi1-0.vmdk" {
		t.Errorf("the archive holds %s", got)
	}
	made := r.importOVA(ova, "zoo__1_.ovf", "back")
	disks, err := r.lab.Machine(made).Disks()
	r.must(err)
	if len(disks) != len(want) {
		t.Fatalf("the imported machine has %d disks", len(disks))
	}
	for key, content := range want {
		found := false
		for _, d := range disks {
			found = found || bytes.Equal(r.live(made, d.Key), content)
		}
		if !found {
			t.Errorf("no disk of the imported machine is as disk %d was", key)
		}
	}
	r.must(r.lab.Machine(made).PowerOn())
	r.backup(made, nil)
}

// untar lists an archive and fails where it is none.
func untar(t *testing.T, name string) (names []string) {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for tr := tar.NewReader(f); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return names
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
	}
}

// importOVA does what `govc import.ova -m` does.
func (r *rig) importOVA(ova, descriptor, name string) string {
	r.t.Helper()
	ctx := context.WithoutCancel(r.t.Context())
	c, err := govmomi.NewClient(ctx, r.lab.URL(), true)
	r.must(err)
	defer func() { r.must(c.Logout(ctx)) }()
	finder := find.NewFinder(c.Client, true)
	dc, err := finder.DefaultDatacenter(ctx)
	r.must(err)
	finder.SetDatacenter(dc)
	folders, err := dc.Folders(ctx)
	r.must(err)
	pool, err := finder.ResourcePool(ctx, "cluster1/Resources")
	r.must(err)
	ds, err := finder.Datastore(ctx, "ds2")
	r.must(err)
	imp := importer.Importer{Name: name, Client: c.Client, Finder: finder, Datacenter: dc, Datastore: ds, Folder: folders.VmFolder, ResourcePool: pool, VerifyManifest: true,
		Archive: &importer.TapeArchive{Path: ova, Opener: importer.Opener{Client: c.Client}}, Log: func(s string) (int, error) { return len(s), nil }}
	_, err = imp.Import(ctx, descriptor, importer.Options{Name: &name, DiskProvisioning: "thin"})
	r.must(err)
	return name
}

// A restore to files that was cut goes on where it stopped.
func TestDirectoryRestoreGoesOn(t *testing.T) {
	r := newRig(t, oneDisk())
	p := make([]byte, 40<<20)
	fill(seeded(42), p)
	r.guest("db", bigKey, p, 1<<20)
	point := r.backup("db", nil)
	want := r.sum("db", bigKey, mediumSize)
	for _, format := range []plugin.RestoreFormat{plugin.FormatRaw, plugin.FormatStreamOptimized} {
		dir := t.TempDir()
		req := plugin.RestoreRequest{Point: point.ID, Mode: plugin.RestoreDirectory, Directory: dir, Format: format, Sparse: true}
		file := filepath.Join(dir, "db", "scsi0-0.raw")
		if format != plugin.FormatRaw {
			file = filepath.Join(dir, "db", "scsi0-0.vmdk")
		}
		_, err := r.Restore(t.Context(), req, r.note)
		r.must(err)
		// As a crash leaves it: half of the bytes, and the note.
		r.must(os.WriteFile(filepath.Join(dir, "db", "scsi0-0.incomplete"), []byte("not ended"), 0o600))
		r.must(os.Truncate(file, 20<<20))
		r.must(os.Truncate(file, mediumSize))
		report, err := r.Restore(t.Context(), req, r.note)
		r.must(err)
		noneIncomplete(t, dir)
		if format == plugin.FormatRaw {
			if r.fileSum(file) != want {
				t.Error("the file is not what the point says")
			}
			if d := report.Disks[0]; d.Reason != "continued" || d.Written < 10<<20 || d.Written > 30<<20 {
				t.Errorf("%d bytes were written again, reason %q", d.Written, d.Reason)
			}
			continue
		}
		raw := filepath.Join(t.TempDir(), "raw")
		qemuImg(t, "convert", "-O", "raw", file, raw)
		if r.fileSum(raw) != want {
			t.Error("the file is not what the point says")
		}
	}
}
