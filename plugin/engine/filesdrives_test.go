package engine_test

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/vddk/mount/mounttest"
	"github.com/vmkeep/vmkeep/vsphere/lab"
)

// TestWindowsGuestByDriveLetter: from a machine with two disks through backup and back, files are named as the guest
// names them.
func TestWindowsGuestByDriveLetter(t *testing.T) {
	skipException(t)
	disks, files := mounttest.Windows(t, t.TempDir())
	opt := lab.Options{Machines: []lab.Machine{{Name: "windows", Disks: []lab.Disk{{Image: disks[0]}, {Image: disks[1]}}}}}
	t.Run("selections", func(t *testing.T) { selectByGuestPaths(t, opt, files) })
	r := newRig(t, opt)
	point := r.backup("windows", nil)
	list := func(req plugin.FileRequest) map[string]plugin.File {
		t.Helper()
		req.Point = point.ID
		out := map[string]plugin.File{}
		r.must(r.ListFiles(t.Context(), req, func(f plugin.File) error { out[f.Path] = f; return nil }))
		return out
	}
	volumes := list(plugin.FileRequest{})
	for name, want := range map[string]string{"scsi0-0p2": "Windows 11 Pro, mounted at C:", "scsi0-1p1": "mounted at D:"} {
		if note := volumes[name].Note; !strings.Contains(note, want) {
			t.Errorf("%s is listed as %q", name, note)
		}
	}
	if drives := list(plugin.FileRequest{Path: "/"}); len(drives) != 2 || drives["C:"].Type != "dir" || drives["D:"].Type != "dir" {
		t.Errorf("drives: %+v", drives)
	}
	if c := list(plugin.FileRequest{Path: `c:\mnt`}); c["C:/mnt/beside"].Type != "file" || c["C:/mnt/volume"].Type != "dir" {
		t.Errorf("a directory with a mount point: %+v", c)
	}
	if f := list(plugin.FileRequest{Path: `C:\mnt\volume`}); f["C:/mnt/volume/deep"].Type != "dir" {
		t.Errorf("a mount point: %+v", f)
	}
	if f := list(plugin.FileRequest{Path: "/", Recursive: true, Globs: []string{"*.txt"}}); len(f) != 2 || f["D:/Daten/Größe.txt"].Type != "file" || f["C:/Users/Ann/notes.txt"].Type != "file" {
		t.Errorf("found everywhere: %+v", f)
	}
	if f := list(plugin.FileRequest{Volume: `d:\`, Path: `\Daten`}); f["/Daten/Größe.txt"].Type != "file" {
		t.Errorf("by the volume's letter: %+v", f)
	}
	for name, content := range files {
		if strings.HasPrefix(name, "reserved") {
			continue
		}
		if got := r.readFile(plugin.FileRequest{Point: point.ID, Path: strings.ReplaceAll(name, "/", `\`)}); string(got) != content {
			t.Errorf("%s: %q", name, got)
		}
	}
	err := r.ReadFile(t.Context(), plugin.FileRequest{Point: point.ID, Path: `\Users`}, func(plugin.Frame) error { return nil })
	failsWith(t, err, plugin.CodeFile, "USERS")
	err = r.ReadFile(t.Context(), plugin.FileRequest{Point: point.ID, Path: "/"}, func(plugin.Frame) error { return nil })
	failsWith(t, err, plugin.CodeFile, "")

	// An archive of a drive has names below it, one of all drives names them, and both cross the mount point.
	for _, base := range []string{"/", "C:"} {
		_, sums := r.seen(plugin.FileRequest{Point: point.ID, Path: base})
		for name, content := range files {
			if strings.HasPrefix(name, "reserved") || base == "C:" && !strings.HasPrefix(name, "C:") {
				continue
			}
			in := strings.TrimPrefix(name, "C:/")
			if base == "/" {
				in = "/" + name
			} else {
				in = "./" + in
			}
			if sums[filepath.Clean(in)] != fmt.Sprintf("%x", sha256.Sum256([]byte(content))) {
				t.Errorf("%s: not in the archive of %s: %v", in, base, sums)
			}
		}
	}
}

// selectByGuestPaths: what is stored of a guest's files is chosen by the paths that the guest has.
func selectByGuestPaths(t *testing.T, opt lab.Options, files map[string]string) {
	r := newRig(t, opt)
	for _, c := range []struct {
		sel  plugin.FileSelection
		want []string // of the files; those of others are not stored
	}{
		{plugin.FileSelection{Includes: []string{`c:\users\*`}}, []string{"C:/Users/Ann/notes.txt"}},
		{plugin.FileSelection{Includes: []string{"D:/above", "*.INI"}}, []string{"D:/above", "C:/Windows/win.ini"}},
		{plugin.FileSelection{Volumes: []string{"D:"}}, []string{"D:/above", "D:/Daten/Größe.txt"}},
		{plugin.FileSelection{Volumes: []string{`c:\`}, Includes: []string{`C:\`}, Excludes: []string{`C:\Windows`, `C:\Users`}}, []string{"C:/above", "C:/mnt/beside"}},
	} {
		point := r.backup("windows", func(b *plugin.BackupRequest) { b.NoImage, b.Files = true, &c.sel })
		dir := t.TempDir()
		r.restic().Run("restore", point.ID+":/windows/files", "--target", dir)
		for name, content := range files {
			volume := map[string]string{"C:": "scsi0-0p2", "D:": "scsi0-1p1"}[name[:2]]
			if volume == "" || strings.HasPrefix(name, "C:/mnt/volume") {
				continue
			}
			b, err := os.ReadFile(filepath.Join(dir, volume, name[2:]))
			if want := slices.Contains(c.want, name); want != (err == nil) || want && string(b) != content {
				t.Errorf("%+v: %s is stored: %v, %q", c.sel, name, err == nil, b)
			}
		}
	}
}

// TestDamagedTableIsListed: a disk whose partitions nobody can tell is not passed over in silence.
func TestDamagedTableIsListed(t *testing.T) {
	opt, _, _ := linuxGuest(t)
	disk := make([]byte, 8<<20) // a protective MBR (UEFI 2.10, 5.2.3) without the table that it protects
	disk[446+4], disk[446+8], disk[510], disk[511] = 0xee, 1, 0x55, 0xaa
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, disk, 0o600); err != nil {
		t.Fatal(err)
	}
	opt.Machines[0].Disks = append(opt.Machines[0].Disks, lab.Disk{Image: file})
	r := newRig(t, opt)
	point := r.backup("guest", nil)
	notes := map[string]string{}
	r.must(r.ListFiles(t.Context(), plugin.FileRequest{Point: point.ID}, func(f plugin.File) error { notes[f.Path] = f.Note; return nil }))
	if len(notes) != 2 || !strings.Contains(notes["scsi0-1"], "partition table") || !strings.Contains(notes["scsi0-0p1"], "ext4") {
		t.Errorf("volumes: %q", notes)
	}
}
