package engine_test

import (
	"bytes"
	"crypto/sha256"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/repo/backend/backendtest/peers"
	"github.com/vmkeep/vmkeep/vsphere/lab"
	"github.com/vmkeep/vmkeep/vsphere/lab/guestdisk"
)

// counted stands before a REST server and counts what is fetched from it.
type counted struct {
	requests, bytes atomic.Int64
}

func (c *counted) before(t *testing.T, p peers.Peer) peers.Peer {
	t.Helper()
	target, err := url.Parse(strings.TrimPrefix(p.Location, "rest:"))
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: target.Scheme, Host: target.Host})
	proxy.ModifyResponse = func(r *http.Response) error {
		c.requests.Add(1)
		r.Body = &countedBody{r.Body, c}
		return nil
	}
	server := httptest.NewServer(proxy)
	t.Cleanup(server.Close)
	p.Location = "rest:" + server.URL + target.Path
	return p
}

type countedBody struct {
	io.ReadCloser
	c *counted
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.c.bytes.Add(int64(n))
	return n, err
}

// TestListingAHugeGuestFetchesLittle: the first listing of a guest of 100 GiB fetches metadata only, a file its own
// chunks, and neither grows with the disk.
func TestListingAHugeGuestFetchesLittle(t *testing.T) {
	tree, want := guestTree(t)
	image := filepath.Join(t.TempDir(), "huge.raw")
	if err := guestdisk.Make(t.Context(), image, 100<<30, tree, "root"); err != nil {
		t.Fatal(err)
	}
	opt := lab.Options{Machines: []lab.Machine{{Name: "huge", Disks: []lab.Disk{{Image: image}}}}}
	list := func(r *rig, point string) {
		t.Helper()
		found := 0
		r.must(r.ListFiles(t.Context(), plugin.FileRequest{Point: point, Path: "/srv/d3"}, func(plugin.File) error { found++; return nil }))
		if found < 10 {
			t.Errorf("%d files were listed", found)
		}
	}

	r := newRig(t, opt)
	var c counted
	r.keepAt(c.before(t, peers.RestServer(t, "--no-auth")))
	point := r.backup("huge", nil)
	before, asked := c.bytes.Load(), c.requests.Load()
	list(r, point.ID)
	total, requests := c.bytes.Load()-before, c.requests.Load()-asked
	t.Logf("listing fetched %d bytes in %d requests of %d stored", total, requests, point.Stats.Stored)
	if total > 8<<20 || total > point.Stats.Stored/2 || requests > 200 {
		t.Errorf("listing one directory fetched %d bytes in %d requests; the point has %d", total, requests, point.Stats.Stored)
	}
	before = c.bytes.Load()
	const name = "/srv/d3/file 3"
	if b := r.readFile(plugin.FileRequest{Point: point.ID, Path: name}); sha256.Sum256(b) != want[name] {
		t.Error("the file read differs")
	}
	read := c.bytes.Load() - before
	t.Logf("reading a file fetched %d bytes", read)
	if read > total+6<<20 {
		t.Errorf("reading a file of less than 200 KiB fetched %d bytes", read)
	}
}

// edited changes a file system offline and replays the change to the running machine as its kernel's writes.
func (r *rig) edited(image string, requests ...string) {
	r.t.Helper()
	before, err := os.ReadFile(image)
	r.must(err)
	r.must(guestdisk.Edit(r.t.Context(), image, requests))
	after, err := os.Open(image)
	r.must(err)
	defer after.Close()
	r.must(guestdisk.Difference(bytes.NewReader(before), after, int64(len(before)), func(p []byte, off int64) error { return r.lab.Machine("guest").Write(bigKey, p, off) }))
}

// TestFilesWithoutImagesReadWhatChanged: without a disk image in either point, the second run reads the file
// systems' metadata and what changed.
func TestFilesWithoutImagesReadWhatChanged(t *testing.T) {
	opt, image, want := linuxGuest(t)
	r := newRig(t, opt)
	only := func(b *plugin.BackupRequest) {
		b.NoImage, b.Files = true, &plugin.FileSelection{Includes: []string{"/srv"}}
	}
	start := r.hostRead()
	r.backup("guest", only)
	full := r.hostRead() - start

	note := filepath.Join(t.TempDir(), "note")
	r.must(os.WriteFile(note, []byte("written by the guest"), 0o600))
	r.edited(image, "write "+note+" /srv/new")
	start = r.hostRead()
	point := r.backup("guest", only)
	second := r.hostRead() - start
	t.Logf("the first run read %d bytes, the second %d", full, second)
	if second > full/4 {
		t.Errorf("%d bytes were read after %d of the first run", second, full)
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
}

// TestFileThatChangedBehindItsMetadata: size and times are not believed where change tracking saw writes to the
// file's extents (a program that sets the times back, a write through a memory map).
func TestFileThatChangedBehindItsMetadata(t *testing.T) {
	for name, noImage := range map[string]bool{"with images": false, "files only": true} {
		t.Run(name, func(t *testing.T) {
			opt, image, want := linuxGuest(t)
			r := newRig(t, opt)
			files := func(b *plugin.BackupRequest) { b.NoImage, b.Files = noImage, &plugin.FileSelection{} }
			r.backup("guest", files)

			const changed = "/srv/d4/file 4"
			content := r.readBack(t, changed, files)
			disk, err := os.ReadFile(image)
			r.must(err)
			at := bytes.Index(disk, content[:4096])
			if at < 0 || at%512 != 0 {
				t.Fatalf("the file's first block is at %d of the disk", at)
			}
			block := bytes.Repeat([]byte("changed!"), 64)
			r.guest("guest", bigKey, block, int64(at))
			copy(content, block)
			want[changed] = sha256.Sum256(content)

			point := r.backup("guest", files)
			dir := t.TempDir()
			r.restic().Run("restore", point.ID+":/guest/files/scsi0-0p1", "--target", dir)
			for name, sum := range want {
				if r.fileSum(filepath.Join(dir, name)) != sum {
					t.Errorf("%s differs after restic restore", name)
				}
			}
		})
	}
}

// readBack is a file as the last point's ordinary files have it.
func (r *rig) readBack(t *testing.T, name string, files func(*plugin.BackupRequest)) []byte {
	t.Helper()
	point := r.backup("guest", files)
	dir := t.TempDir()
	r.restic().Run("restore", point.ID+":/guest/files/scsi0-0p1"+filepath.ToSlash(filepath.Dir(name)), "--target", dir)
	b, err := os.ReadFile(filepath.Join(dir, filepath.Base(name)))
	r.must(err)
	return b
}

// TestSelectedVolumeThatCannotBeRead: what was asked for by name and is not in the point makes it degraded; what was
// only there is told in passing.
func TestSelectedVolumeThatCannotBeRead(t *testing.T) {
	luks := filepath.Join(t.TempDir(), "luks.raw")
	// The head of a LUKS2 header (LUKS2 On-Disk Format, 2.1): magic, version 2, header size, sequence number.
	head := append([]byte("LUKS\xba\xbe\x00\x02"), 0, 0, 0, 0, 0, 0, 0x40, 0, 0, 0, 0, 0, 0, 0, 0, 1)
	if err := os.WriteFile(luks, head, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(luks, 16<<20); err != nil {
		t.Fatal(err)
	}
	opt, _, _ := linuxGuest(t)
	opt.Machines[0].Disks = append(opt.Machines[0].Disks, lab.Disk{Image: luks})
	r := newRig(t, opt)
	res := r.tryBackup("guest", func(b *plugin.BackupRequest) {
		b.Files = &plugin.FileSelection{Volumes: []string{"scsi0-0p1", "scsi0-1"}, Includes: []string{"/srv/d1"}}
	})
	if res.Err != nil || !res.Degraded() || len(res.Warnings) != 1 || res.Warnings[0].Code != plugin.CodeFile || !strings.Contains(res.Warnings[0].Summary, "scsi0-1") || res.Warnings[0].Remedy == "" {
		t.Errorf("error %v, warnings %+v", res.Err, res.Warnings)
	}
	if ls := r.restic().Run("ls", res.Point.ID); !strings.Contains(ls, "/srv/d1/file 1") {
		t.Errorf("the volume that can be read is not stored:\n%s", ls)
	}
	res = r.tryBackup("guest", func(b *plugin.BackupRequest) { b.Files = &plugin.FileSelection{Includes: []string{"/srv/d1"}} })
	if res.Err != nil || res.Degraded() {
		t.Errorf("without a selection of volumes: error %v, warnings %+v", res.Err, res.Warnings)
	}
}
