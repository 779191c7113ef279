package mount_test

import (
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vmkeep/vmkeep/vddk/mount"
	"github.com/vmkeep/vmkeep/vddk/mount/device"
	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
	"github.com/vmkeep/vmkeep/vddk/mount/mounttest"
)

// A guest as Debian installs it with LVM: /boot on a partition, the rest in a volume group that spans two disks. The
// label and metadata of LVM, and the GPT, are made by the real tools; where the volumes' bytes lie is taken from
// what lvs prints, not from our reader.

const (
	bootUUID = "11111111-2222-4333-8444-555555555555"
	rootUUID = "66666666-7777-4888-9999-aaaaaaaaaaaa"
)

type guest struct {
	disks []string
	truth map[string]mounttest.Manifest // by volume
}

func debian(t *testing.T) guest {
	mounttest.Need(t, "sgdisk", "losetup", "pvcreate", "vgcreate", "lvcreate", "lvs", "mke2fs", "mkfs.xfs")
	dir := t.TempDir()
	g := guest{truth: map[string]mounttest.Manifest{}}
	image := func(name string, i mounttest.Image) string {
		d := filepath.Join(dir, name)
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
		path, truth := i.Make(t, d)
		g.truth[name] = truth
		return path
	}
	tree := func(more map[string]string) func(string) error {
		return func(dir string) error {
			if err := mounttest.Grow(dir, mounttest.Tree{Files: 60, Names: 90, Fill: 1, Minor: true}); err != nil {
				return err
			}
			for name, content := range more {
				if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
					return err
				}
				if target, ok := strings.CutPrefix(content, "-> "); ok {
					if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
						return err
					}
					continue
				}
				if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
					return err
				}
			}
			return nil
		}
	}
	boot := image("boot", mounttest.Image{Size: 40 * mib, Mkfs: ext("-t ext4 -L bootfs -U " + bootUUID), Fill: tree(map[string]string{"grub/grub.cfg": "set x"})})
	root := image("root", mounttest.Image{Size: 80 * mib, Mkfs: ext("-t ext4 -U " + rootUUID), Fill: tree(map[string]string{
		"etc/fstab": `# made by the installer
/dev/mapper/vg--deb-root /               ext4    errors=remount-ro 0       1
UUID=` + bootUUID + ` /boot ext4 defaults 0 2
/dev/vg-deb/home	/home	xfs	defaults	0 2
/dev/sdb1 /srv/by\040number ext4 nofail 0 2
LABEL=gone /mnt/gone ext4 nofail 0 0
UUID=` + rootUUID + ` none swap sw 0 0
/home /export none bind 0 0
proc /proc proc defaults 0 0
fileserver:/x /net nfs defaults 0 0
`,
		"usr/lib/os-release": "ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n",
		"etc/os-release":     "-> ../usr/lib/os-release",
		"usr/bin/tool":       "a tool",
		"bin":                "-> usr/bin",
		"var/abs":            "-> /home/user/notes",
		"loop":               "-> /loop/x",
		"mnt/gone/.keep":     "",
		"home/hidden":        "below a mount point",
	})})
	home := image("home", mounttest.Image{Size: 64 * mib, Mkfs: xfs("-L homefs -l size=6m"), Fill: tree(map[string]string{"user/notes": "my notes"})})

	for k, size := range []int64{120 * mib, 120 * mib} {
		p := filepath.Join(dir, fmt.Sprintf("disk%d", k))
		if err := mounttest.Blank(p, size); err != nil {
			t.Fatal(err)
		}
		g.disks = append(g.disks, p)
	}
	must(t, "sgdisk", "-Z", "-a", "2048", "-n", "1:2048:+40M", "-c", "1:boot", "-n", "2:0:+75M", "-t", "2:8e00", g.disks[0])
	put(t, g.disks[0], 1*mib, boot)

	// Physical volumes: the second partition of the first disk, and the whole second disk.
	const second = 41 * mib
	a := strings.TrimSpace(must(t, "losetup", "-f", "--show", "-o", fmt.Sprint(second), "--sizelimit", fmt.Sprint(75*mib), g.disks[0]))
	defer must(t, "losetup", "-d", a)
	b := strings.TrimSpace(must(t, "losetup", "-f", "--show", g.disks[1]))
	defer must(t, "losetup", "-d", b)
	lvm := func(argv ...string) string {
		return must(t, append(argv, "--driverloaded", "n", "--devices", a+","+b, "--config", "backup { backup=0 archive=0 }")...)
	}
	lvm("pvcreate", "-y", "-ff", a, b)
	lvm("vgcreate", "vg-deb", a, b)
	lvm("lvcreate", "-an", "-Zn", "-Wn", "-y", "-l", "10", "-n", "other", "vg-deb", a)
	lvm("lvcreate", "-an", "-Zn", "-Wn", "-y", "-i", "2", "-I", "64k", "-L", "64m", "-n", "home", "vg-deb")
	lvm("lvremove", "-y", "vg-deb/other")
	lvm("lvcreate", "-an", "-Zn", "-Wn", "-y", "-L", "36m", "-n", "root", "vg-deb", a)
	lvm("lvextend", "-L", "80m", "vg-deb/root", b)
	segments := lvm("lvs", "--noheadings", "--separator", "|", "--units", "b", "--nosuffix", "-o", "lv_name,segtype,seg_start,stripe_size,seg_pe_ranges", "vg-deb")
	start := map[string]int64{a: second + mib, b: mib} // the first extent lies 1 MiB into a physical volume
	disk := map[string]string{a: g.disks[0], b: g.disks[1]}
	content := map[string][]byte{"root": slurp(t, root), "home": slurp(t, home)}
	spread := 0
	for line := range strings.Lines(segments) {
		f := strings.Split(strings.TrimSpace(line), "|")
		if len(f) != 5 {
			continue
		}
		var off, stripe int64
		fmt.Sscan(f[2], &off)
		fmt.Sscan(f[3], &stripe)
		ranges := strings.Fields(f[4])
		if f[1] == "linear" {
			stripe = 1 << 40
		}
		// Stripe by stripe from leg to leg, as lvmraid(7) says.
		src := content[f[0]][off:]
		pos := make([]int64, len(ranges))
		for k := 0; len(src) > 0; k = (k + 1) % len(ranges) {
			dev, pes, _ := strings.Cut(ranges[k], ":")
			var lo, hi int64
			fmt.Sscanf(pes, "%d-%d", &lo, &hi)
			n := min(stripe, int64(len(src)), (hi-lo+1)*4*mib-pos[k])
			if n <= 0 {
				break // the rest is another segment's
			}
			write(t, disk[dev], start[dev]+lo*4*mib+pos[k], src[:n])
			pos[k] += n
			src = src[n:]
			spread++
		}
	}
	if spread < 500 {
		t.Fatalf("only %d pieces were written:\n%s", spread, segments)
	}
	return g
}

func must(t *testing.T, argv ...string) string {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s%s", argv, err, out, stderr.String())
	}
	return string(out)
}

func slurp(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t *testing.T, path string, off int64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

func put(t *testing.T, path string, off int64, from string) {
	t.Helper()
	write(t, path, off, slurp(t, from))
}

func openDisks(t *testing.T, paths ...string) *mount.Machine {
	t.Helper()
	var disks []mount.Disk
	for k, p := range paths {
		f, err := os.Open(p)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		st, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		disks = append(disks, mount.Disk{Name: fmt.Sprintf("scsi0-%d", k), R: f, Size: st.Size()})
	}
	return mount.Open(disks)
}

func TestDebianGuestWithLVM(t *testing.T) {
	g := debian(t)
	m := openDisks(t, g.disks...)
	if len(m.Problems()) != 0 {
		t.Errorf("problems: %v", m.Problems())
	}
	names := map[string]string{"scsi0-0p1": "boot", "vg-deb/root": "root", "vg-deb/home": "home"}
	var have []string
	for _, v := range m.Volumes() {
		have = append(have, v.Name)
		f, err := v.Open()
		if err != nil {
			t.Errorf("%s: %v", v.Name, err)
			continue
		}
		got, err := mounttest.Read(f)
		if err != nil {
			t.Errorf("%s: %v", v.Name, err)
		}
		for _, d := range mounttest.Diff(g.truth[names[v.Name]], got) {
			t.Errorf("%s: %s", v.Name, d)
		}
		locateEverything(t, f, g.disks)
	}
	slices.Sort(have)
	if want := []string{"scsi0-0p1", "vg-deb/home", "vg-deb/root"}; !slices.Equal(have, want) {
		t.Errorf("volumes %v, want %v", have, want)
	}
	t.Run("systems", func(t *testing.T) { debianSystem(t, m) })
	t.Run("one disk missing", func(t *testing.T) { oneDisk(t, g.disks[0]) })
}

// locateEverything reads files by their runs from the disks, and compares with what the file system gives.
func locateEverything(t *testing.T, f *guestfs.FS, disks []string) {
	t.Helper()
	var raw []*os.File
	for _, p := range disks {
		d, err := os.Open(p)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		raw = append(raw, d)
	}
	files, onDisks := 0, map[int]bool{}
	err := iofs.WalkDir(f.IOFS(), ".", func(path string, d iofs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		file, err := f.Open(info.Sys().(guestfs.Attr).ID, "")
		if err != nil {
			return err
		}
		want, err := io.ReadAll(guestfs.NewReader(file))
		if err != nil {
			return err
		}
		runs, err := file.Runs()
		if err != nil {
			return err
		}
		got := make([]byte, len(want))
		at := int64(0)
		for _, r := range runs {
			if r.File.Off != at {
				return fmt.Errorf("%s: runs do not tile: %v", path, runs)
			}
			at += r.File.Len
			if r.Kind == guestfs.Zero || r.Kind == guestfs.Inline {
				if r.Kind == guestfs.Inline {
					copy(got[r.File.Off:], want[r.File.Off:r.File.End()])
				}
				continue
			}
			off := r.File.Off
			err := f.Locate(r.Disk, func(p device.Piece) bool {
				onDisks[p.Disk] = true
				if _, err := raw[p.Disk].ReadAt(got[off:off+p.Len], p.Off); err != nil {
					t.Error(err)
				}
				off += p.Len
				return true
			})
			if err != nil {
				return err
			}
		}
		if at != file.Size() || string(got) != string(want) {
			t.Errorf("%s: its runs on the disks hold something else", path)
		}
		located, err := mount.Located(f, runs)
		if err != nil {
			return err
		}
		var n int64
		for _, s := range located {
			n += s.Bytes()
		}
		var data int64
		for _, r := range runs {
			if r.Kind == guestfs.Data {
				data += r.File.Len
			}
		}
		if n < data {
			t.Errorf("%s: %d bytes located of %d", path, n, data)
		}
		files++
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if files < 200 {
		t.Errorf("only %d files", files)
	}
	if len(raw) > 1 && f.Info().Label != "bootfs" && len(onDisks) != 2 {
		t.Errorf("files lie on disks %v only", onDisks)
	}
}

func debianSystem(t *testing.T, m *mount.Machine) {
	systems := m.Systems()
	if len(systems) != 1 {
		t.Fatalf("%d systems", len(systems))
	}
	s := systems[0]
	if s.Name != "Debian GNU/Linux 12 (bookworm)" || s.Root.Name != "vg-deb/root" {
		t.Errorf("%q on %s", s.Name, s.Root.Name)
	}
	var got []string
	for _, p := range s.Mounts {
		v := "none"
		if p.Volume != nil {
			v = p.Volume.Name
		}
		got = append(got, p.Path+" "+v)
	}
	want := []string{"/ vg-deb/root", "/boot scsi0-0p1", "/home vg-deb/home", "/mnt/gone none", "/srv/by number none"}
	if !slices.Equal(got, want) {
		t.Errorf("mount points %q, want %q", got, want)
	}
	for path, content := range map[string]string{
		"/home/user/notes":     "my notes",
		"/var/abs/../notes":    "my notes", // through an absolute link across a mount point, and up again
		"/bin/tool":            "a tool",
		"boot/grub/grub.cfg":   "set x",
		"/../../usr/bin/tool":  "a tool",
		"/home/../bin/../tool": "", // up from usr/bin is usr
	} {
		p, err := s.Find(path)
		if content == "" {
			if !errors.Is(err, iofs.ErrNotExist) {
				t.Errorf("%s: %v", path, err)
			}
			continue
		}
		if path == "/var/abs/../notes" { // a link to a file has nothing above it but its directory
			if err != nil {
				t.Errorf("%s: %v", path, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		f, err := p.FS.Open(p.ID, "")
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		if b, err := io.ReadAll(guestfs.NewReader(f)); err != nil || string(b) != content {
			t.Errorf("%s: %q, %v", path, b, err)
		}
	}
	if _, err := s.Find("/home/hidden"); !errors.Is(err, iofs.ErrNotExist) {
		t.Errorf("what lies below a mount point is found: %v", err)
	}
	if _, err := s.Find("/loop/x"); err == nil || !strings.Contains(err.Error(), "symbolic links") {
		t.Errorf("a loop of links: %v", err)
	}
	if _, err := s.Find("/mnt/gone/x"); err == nil || !strings.Contains(err.Error(), "LABEL=gone") {
		t.Errorf("a missing volume: %v", err)
	}
}

// oneDisk opens the machine without its second disk: what lies on it is named, the rest is read.
func oneDisk(t *testing.T, disk string) {
	m := openDisks(t, disk)
	if p := m.Problems(); len(p) != 1 || !strings.Contains(p[0].Text, "is missing: open all disks") {
		t.Errorf("problems: %v", p)
	}
	boot, _ := m.Volume("scsi0-0p1")
	if _, err := boot.Open(); err != nil {
		t.Error(err)
	}
	root, ok := m.Volume("vg-deb/root")
	if !ok || !strings.Contains(root.Missing, "physical volume") {
		t.Fatalf("root: %+v", root)
	}
	if _, err := root.Open(); err == nil || !strings.Contains(err.Error(), "physical volume") {
		t.Errorf("root opens: %v", err)
	}
	if root.Size != 80*mib {
		t.Errorf("root has %d bytes", root.Size)
	}
}
