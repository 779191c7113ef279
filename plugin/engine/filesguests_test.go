package engine_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/repo"
	"github.com/vmkeep/vmkeep/repo/backend/backendtest/peers"
	"github.com/vmkeep/vmkeep/repo/backend/location"
	"github.com/vmkeep/vmkeep/vddk/mount/mounttest"
	"github.com/vmkeep/vmkeep/vsphere/lab"
)

// The whole way of guest files: from a machine of the lab through backup, every storage service and the engine's
// calls, held against what the kernel or ntfs-3g saw on the guest's own disks.

// debianGuest makes the disks of a guest with LVM: /boot on a partition, / in a volume group over both disks, partly
// on each, /home on the second. It returns what the kernel sees, by mount point.
func debianGuest(t *testing.T) (disks []string, truth map[string]mounttest.Manifest) {
	t.Helper()
	mounttest.Need(t, "sgdisk", "losetup", "pvcreate", "vgcreate", "lvcreate", "lvextend", "lvs", "mke2fs")
	dir := t.TempDir()
	truth = map[string]mounttest.Manifest{}
	image := func(at string, mib int64, uuid string, files map[string]string) []byte {
		home := filepath.Join(dir, "fs"+strings.ReplaceAll(at, "/", "-"))
		if err := os.Mkdir(home, 0o700); err != nil {
			t.Fatal(err)
		}
		var file string
		file, truth[at] = mounttest.Image{Size: mib << 20, Mkfs: "mke2fs -q -F -t ext4 -E nodiscard -U " + uuid, Fill: func(mnt string) error {
			err := mounttest.Grow(mnt, mounttest.Tree{Files: 80, Names: 60, Fill: 8, Minor: true})
			for name, content := range files {
				err = errors.Join(err, os.MkdirAll(filepath.Dir(filepath.Join(mnt, name)), 0o755), os.WriteFile(filepath.Join(mnt, name), []byte(content), 0o644))
			}
			return err
		}}.Make(t, home)
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	const bootUUID = "11111111-2222-4333-8444-555555555555"
	boot := image("/boot", 48, bootUUID, nil)
	content := map[string][]byte{
		"home": image("/home", 48, "22222222-2222-4333-8444-555555555555", map[string]string{"user/notes": "my notes"}),
		"root": image("/", 80, "33333333-2222-4333-8444-555555555555", map[string]string{
			"etc/fstab":   "/dev/mapper/vg-root / ext4 defaults 0 1\nUUID=" + bootUUID + " /boot ext4 defaults 0 2\n/dev/vg/home /home ext4 defaults 0 2\n",
			"boot/hidden": "below a mount point", "home/hidden": "below a mount point",
		}),
	}
	for k := range 2 {
		disks = append(disks, filepath.Join(dir, fmt.Sprintf("disk%d", k)))
		if err := mounttest.Blank(disks[k], 100<<20); err != nil {
			t.Fatal(err)
		}
	}
	tool(t, "sgdisk", "-Z", "-a", "2048", "-n", "1:2048:+48M", "-n", "2:0:0", "-t", "2:8e00", disks[0])
	put(t, disks[0], 1<<20, boot)
	const second = 49 << 20
	a := tool(t, "losetup", "-f", "--show", "-o", fmt.Sprint(second), "--sizelimit", fmt.Sprint(50<<20), disks[0])
	defer tool(t, "losetup", "-d", a)
	b := tool(t, "losetup", "-f", "--show", disks[1])
	defer tool(t, "losetup", "-d", b)
	lvm := func(argv ...string) string {
		return tool(t, append(argv, "--driverloaded", "n", "--devices", a+","+b, "--config", "backup { backup=0 archive=0 }")...)
	}
	lvm("pvcreate", "-y", "-ff", a, b)
	lvm("vgcreate", "vg", a, b)
	lvm("lvcreate", "-an", "-Zn", "-Wn", "-y", "-L", "40m", "-n", "root", "vg", a)
	lvm("lvcreate", "-an", "-Zn", "-Wn", "-y", "-L", "48m", "-n", "home", "vg", b)
	lvm("lvextend", "-L", "80m", "vg/root", b)
	start := map[string]int64{a: second + 1<<20, b: 1 << 20} // the first extent lies 1 MiB into a physical volume
	disk := map[string]string{a: disks[0], b: disks[1]}
	used := map[string]bool{}
	const physical = 4 << 20
	for line := range strings.Lines(lvm("lvs", "--noheadings", "--separator", "|", "--units", "b", "--nosuffix", "-o", "lv_name,seg_start,seg_pe_ranges", "vg")) {
		f := strings.Split(strings.TrimSpace(line), "|")
		var off, lo, hi int64
		dev, extents, ok := strings.Cut(f[2], ":")
		if _, err := fmt.Sscan(f[1], &off); err != nil || !ok {
			t.Fatalf("lvs: %q", line)
		}
		if _, err := fmt.Sscanf(extents, "%d-%d", &lo, &hi); err != nil {
			t.Fatalf("lvs: %q", line)
		}
		put(t, disk[dev], start[dev]+lo*physical, content[f[0]][off:off+(hi-lo+1)*physical])
		if f[0] == "root" {
			used[dev] = true
		}
	}
	if len(used) != 2 {
		t.Fatal("the root volume is not on both disks")
	}
	return disks, truth
}

func tool(t *testing.T, argv ...string) string {
	t.Helper()
	var stderr strings.Builder
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s%s", argv, err, out, stderr.String())
	}
	return strings.TrimSpace(string(out))
}

func put(t *testing.T, file string, off int64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

// keepAt moves the rig to a repository of its own at a peer.
func (r *rig) keepAt(p peers.Peer) {
	r.t.Helper()
	where, err := location.Parse(p.Location)
	r.must(err)
	be, err := location.Create(r.t.Context(), where, location.Settings{Env: p.Lookup, Options: p.Options})
	r.must(err)
	rp, err := repo.Init(r.t.Context(), be, repo.InitOptions{Password: password, KeyTime: time.Microsecond})
	r.must(err)
	r.must(errors.Join(rp.Close(), be.Close()))
	r.config.Repository.Location, r.config.Repository.Environment, r.config.Repository.Options = p.Location, p.Env, p.Options
	r.must(r.Configure(r.t.Context(), r.config))
}

// seen is what the engine's calls tell of a tree: metadata from the listing, content from an archive.
func (r *rig) seen(req plugin.FileRequest) (map[string]plugin.File, map[string]string) {
	r.t.Helper()
	files := map[string]plugin.File{}
	req.Recursive = true
	r.must(r.ListFiles(r.t.Context(), req, func(f plugin.File) error { files[f.Path] = f; return nil }))
	in, out := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := r.TarFiles(r.t.Context(), req, func(p []byte) error { _, err := out.Write(p); return err })
		out.CloseWithError(err)
		done <- err
	}()
	sums := map[string]string{}
	base := path.Dir(req.Path)
	for archive := tar.NewReader(in); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		r.must(err)
		name := path.Join(base, h.Name)
		switch h.Typeflag {
		case tar.TypeReg:
			sum := sha256.New()
			_, err := io.Copy(sum, archive)
			r.must(err)
			sums[name] = fmt.Sprintf("%x", sum.Sum(nil))
			if s := h.PAXRecords[plugin.TarStream]; s != "" && !strings.HasSuffix(h.Name, ":"+s) {
				r.t.Errorf("stream %q is called %q", s, h.Name)
			}
		case tar.TypeLink:
			sums[name] = sums[path.Join(base, h.Linkname)]
		}
	}
	r.must(<-done)
	return files, sums
}

// compare holds what was seen below a directory against the truth; hidden says what something else is mounted over.
func (r *rig) compare(dir string, truth mounttest.Manifest, files map[string]plugin.File, sums map[string]string) {
	r.t.Helper()
	types := map[string]string{"directory": "dir", "block device": "device", "character device": "chardev"}
	compared := 0
	for _, want := range truth {
		if want.Path == "" || strings.HasPrefix(want.Path, "hex:") || dir == "/" && (under(want.Path, "boot") || under(want.Path, "home")) {
			continue
		}
		name := join(dir, want.Path)
		f, ok := files[name]
		if kind := types[want.Type]; kind != "" {
			want.Type = kind
		}
		if !ok || f.Type != want.Type || f.Mode != want.Mode || f.UID != want.UID || f.GID != want.GID || f.Link != want.Link && !strings.HasPrefix(want.Link, "hex:") || want.Type == "file" && f.Size != want.Size {
			r.t.Errorf("%s: listed as %+v, want %+v", name, f, want)
		}
		if got := fmt.Sprintf("%d.%09d", f.ModTime.Unix(), f.ModTime.Nanosecond()); want.Mtime != got {
			r.t.Errorf("%s: modified %s, want %s", name, got, want.Mtime)
		}
		if want.Type == "file" && sums[name] != want.Hash {
			r.t.Errorf("%s: SHA-256 %q, want %q", name, sums[name], want.Hash)
		}
		for s, sum := range want.Streams {
			if sums[name+":"+s] != sum {
				r.t.Errorf("%s:%s: SHA-256 %q, want %q", name, s, sums[name+":"+s], sum)
			}
		}
		compared++
	}
	if compared < 100 {
		r.t.Errorf("%s: %d files were compared only", dir, compared)
	}
}

func under(name, dir string) bool { return name == dir || strings.HasPrefix(name, dir+"/") }

func join(dir, name string) string { return strings.TrimSuffix(dir, "/") + "/" + name }

// readFile is the content of a guest file.
func (r *rig) readFile(req plugin.FileRequest) []byte {
	r.t.Helper()
	var b bytes.Buffer
	r.must(r.ReadFile(r.t.Context(), req, func(f plugin.Frame) error {
		if f.Data == nil {
			b.Write(make([]byte, f.Length))
		}
		b.Write(f.Data)
		return nil
	}))
	return b.Bytes()
}

func TestDebianGuestFromEveryStorageService(t *testing.T) {
	skipException(t)
	disks, truth := debianGuest(t)
	opt := lab.Options{Machines: []lab.Machine{{Name: "debian", Disks: []lab.Disk{{Image: disks[0]}, {Image: disks[1]}}}}}
	for name, peer := range map[string]func(*testing.T) peers.Peer{
		"local": func(t *testing.T) peers.Peer { return peers.Local(t) },
		"REST":  func(t *testing.T) peers.Peer { return peers.RestServer(t, "--no-auth") },
		"S3":    func(t *testing.T) peers.Peer { return peers.S3(t) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, opt)
			r.keepAt(peer(t))
			point := r.backup("debian", nil)
			if b := r.readFile(plugin.FileRequest{Point: point.ID, Path: "/home/user/notes"}); string(b) != "my notes" {
				t.Errorf("a file of /home holds %q", b)
			}
			// One walk from the root crosses the mount points, and hides what lies below them, as in the guest.
			files, sums := r.seen(plugin.FileRequest{Point: point.ID, Path: "/"})
			for dir, m := range truth {
				r.compare(dir, m, files, sums)
			}
			if _, ok := files["/home/hidden"]; ok {
				t.Error("a file below a mount point is listed")
			}
			// A mount point names its volume, too.
			files, sums = r.seen(plugin.FileRequest{Point: point.ID, Volume: "/home", Path: "/"})
			r.compare("/", truth["/home"], files, sums)
		})
	}
}

// ntfsGuest is a machine with the golden NTFS: streams of files and directories, compressed and sparse files,
// reparse points, made and described by ntfs-3g.
func ntfsGuest(t *testing.T) (lab.Options, mounttest.Manifest) {
	t.Helper()
	image, truth, err := mounttest.Golden{Name: "ntfs"}.Load(filepath.Join("..", "..", "vddk", "mount", "ntfs", "testdata"))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "ntfs.raw")
	if err := os.WriteFile(file, image, 0o600); err != nil {
		t.Fatal(err)
	}
	return lab.Options{Machines: []lab.Machine{{Name: "windows", Disks: []lab.Disk{{Image: file}}}}}, truth
}

func TestWindowsGuestKeepsStreams(t *testing.T) {
	opt, truth := ntfsGuest(t)
	r := newRig(t, opt)
	point := r.backup("windows", func(b *plugin.BackupRequest) { b.Files = &plugin.FileSelection{} })
	var volume plugin.File
	r.must(r.ListFiles(t.Context(), plugin.FileRequest{Point: point.ID}, func(f plugin.File) error { volume = f; return nil }))
	if volume.Type != "volume" || !strings.Contains(volume.Note, "ntfs") {
		t.Fatalf("volume %+v", volume)
	}
	files, sums := r.seen(plugin.FileRequest{Point: point.ID, Volume: volume.Path, Path: "/"})
	r.compare("/", truth, files, sums)

	dir := t.TempDir()
	r.restic().Run("restore", point.ID+":/windows/files/"+volume.Path, "--target", dir)
	streams := 0
	for _, e := range truth {
		for s, sum := range e.Streams {
			streams++
			where := plugin.FileRequest{Point: point.ID, Volume: volume.Path, Path: "/" + e.Path, Stream: s}
			if e.Type == "file" && streams <= 3 {
				if got := sha256.Sum256(r.readFile(where)); fmt.Sprintf("%x", got) != sum {
					t.Errorf("%s:%s read alone differs", e.Path, s)
				}
			}
			if got := r.fileSum(filepath.Join(dir, e.Path+":"+s)); fmt.Sprintf("%x", got) != sum {
				t.Errorf("%s:%s restored by restic differs", e.Path, s)
			}
		}
		if e.Type == "file" && fmt.Sprintf("%x", r.fileSum(filepath.Join(dir, e.Path))) != e.Hash {
			t.Errorf("%s restored by restic differs", e.Path)
		}
	}
	if streams < 10 {
		t.Errorf("%d streams were compared only", streams)
	}
}
