package engine_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/vsphere/lab"
	"github.com/vmkeep/vmkeep/vsphere/lab/guestdisk"
)

const guestSize = 128 << 20

// guestTree makes a directory of files for a guest and returns it with the files' sums by path.
func guestTree(t *testing.T) (string, map[string][32]byte) {
	t.Helper()
	dir := t.TempDir()
	want := map[string][32]byte{}
	rng := seeded(41)
	for i := range 300 {
		name := fmt.Sprintf("/srv/d%d/file %d", i%17, i)
		p := make([]byte, rng.IntN(100<<10))
		fill(rng, p)
		if i%10 == 0 {
			p = make([]byte, 1<<20+i)
		}
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), p, 0o640); err != nil {
			t.Fatal(err)
		}
		want[name] = sha256.Sum256(p)
	}
	if err := os.Symlink("d1/file 1", filepath.Join(dir, "srv", "link")); err != nil {
		t.Fatal(err)
	}
	return dir, want
}

// linuxGuest is a vSphere with one machine "guest" with a real ext4 file system.
func linuxGuest(t *testing.T) (lab.Options, string, map[string][32]byte) {
	tree, want := guestTree(t)
	image := filepath.Join(t.TempDir(), "guest.raw")
	if err := guestdisk.Make(t.Context(), image, guestSize, tree, "root"); err != nil {
		t.Fatal(err)
	}
	return lab.Options{Machines: []lab.Machine{{Name: "guest", Disks: []lab.Disk{{Image: image}}}}}, image, want
}

func TestGuestFilesAreReadFromAPoint(t *testing.T) {
	opt, _, want := linuxGuest(t)
	r := newRig(t, opt)
	point := r.backup("guest", nil)
	var volumes []plugin.File
	r.must(r.ListFiles(t.Context(), plugin.FileRequest{Point: point.ID}, func(f plugin.File) error { volumes = append(volumes, f); return nil }))
	if len(volumes) != 1 || volumes[0].Type != "volume" || !strings.Contains(volumes[0].Note, "ext4") {
		t.Fatalf("volumes: %+v", volumes)
	}
	found := map[string]plugin.File{}
	r.must(r.ListFiles(t.Context(), plugin.FileRequest{Point: point.ID, Path: "/srv", Recursive: true}, func(f plugin.File) error { found[f.Path] = f; return nil }))
	for name := range want {
		if f, ok := found[name]; !ok || f.Type != "file" || f.Mode != 0o640 {
			t.Errorf("%s: listed as %+v", name, f)
		}
	}
	if found["/srv/link"].Link != "d1/file 1" {
		t.Errorf("the link is listed as %+v", found["/srv/link"])
	}

	var b bytes.Buffer
	r.must(r.ReadFile(t.Context(), plugin.FileRequest{Point: point.ID, Path: "/srv/d3/file 3"}, func(f plugin.Frame) error {
		if f.Data == nil {
			b.Write(make([]byte, f.Length))
		}
		b.Write(f.Data)
		return nil
	}))
	if sha256.Sum256(b.Bytes()) != want["/srv/d3/file 3"] {
		t.Error("the file read differs")
	}

	b.Reset()
	r.must(r.TarFiles(t.Context(), plugin.FileRequest{Point: point.ID, Path: "/srv"}, func(p []byte) error { b.Write(p); return nil }))
	got := tarSums(t, &b)
	for name, sum := range want {
		if got[strings.TrimPrefix(name, "/")] != sum {
			t.Errorf("%s differs in the archive", name)
		}
	}
	err := r.ReadFile(t.Context(), plugin.FileRequest{Point: point.ID, Path: "/srv/nothing"}, func(plugin.Frame) error { return nil })
	failsWith(t, err, plugin.CodeFile, "nothing")
}

// tarSums hashes the regular files of an archive.
func tarSums(t *testing.T, r io.Reader) map[string][32]byte {
	t.Helper()
	out := map[string][32]byte{}
	archive := tar.NewReader(r)
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.New()
		if _, err := io.Copy(sum, archive); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			out[h.Name] = [32]byte(sum.Sum(nil))
		}
	}
}

func TestGuestFilesBecomeResticFiles(t *testing.T) {
	opt, image, want := linuxGuest(t)
	r := newRig(t, opt)
	both := func(b *plugin.BackupRequest) { b.Files = &plugin.FileSelection{Excludes: []string{"lost+found"}} }
	r.backup("guest", both)

	note := filepath.Join(t.TempDir(), "note")
	r.must(os.WriteFile(note, []byte("written by the guest"), 0o600))
	before, err := os.ReadFile(image)
	r.must(err)
	r.must(guestdisk.Edit(t.Context(), image, []string{"write " + note + " /srv/new"}))
	after, err := os.Open(image)
	r.must(err)
	defer after.Close()
	r.must(guestdisk.Difference(bytes.NewReader(before), after, guestSize, func(p []byte, off int64) error { return r.lab.Machine("guest").Write(bigKey, p, off) }))

	readBefore := r.hostRead()
	point := r.backup("guest", both)
	d := r.disk(point, "scsi0-0")
	if read := r.hostRead() - readBefore; read > 3*d.Changed+1<<20 {
		t.Errorf("%d bytes were read from the host for %d that changed", read, d.Changed)
	}

	dir := t.TempDir()
	r.restic().Run("restore", point.ID+":/guest/files/scsi0-0p1", "--target", dir)
	for name, sum := range want {
		if r.fileSum(filepath.Join(dir, name)) != sum {
			t.Errorf("%s differs after restic restore", name)
		}
	}
	if b, err := os.ReadFile(filepath.Join(dir, "srv", "new")); err != nil || string(b) != "written by the guest" {
		t.Errorf("the new file: %q, %v", b, err)
	}
	r.restic().Run("check", "--read-data")
	if found := r.restic().Run("find", "--snapshot", point.ID, "file 3"); !strings.Contains(found, "/guest/files/scsi0-0p1/srv/d3/file 3") {
		t.Errorf("restic find says\n%s", found)
	}
	r.resticMounts(t, func(dir string) {
		for _, name := range []string{"/srv/d3/file 3", "/srv/d10/file 10", "/srv/d1/file 1"} {
			if r.fileSum(filepath.Join(dir, "ids", point.ID[:8], "guest", "files", "scsi0-0p1", name)) != want[name] {
				t.Errorf("%s differs in restic's mount", name)
			}
		}
	})

	only := r.backup("guest", func(b *plugin.BackupRequest) {
		b.NoImage = true
		b.Files = &plugin.FileSelection{Includes: []string{"/srv/d1"}}
	})
	ls := r.restic().Run("ls", only.ID)
	if !strings.Contains(ls, "/srv/d1/file 1") || strings.Contains(ls, "/srv/d2") || strings.Contains(ls, "flat.vmdk") {
		t.Errorf("a selection of files only stored\n%s", ls)
	}
}
