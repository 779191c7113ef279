package mount_test

import (
	"errors"
	"io"
	iofs "io/fs"
	"slices"
	"strings"
	"testing"

	"github.com/vmkeep/vmkeep/vddk/mount"
	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
	"github.com/vmkeep/vmkeep/vddk/mount/mounttest"
)

func TestWindowsGuestHasItsDriveLetters(t *testing.T) {
	disks, files := mounttest.Windows(t, t.TempDir())
	m := openDisks(t, disks...)
	if len(m.Problems()) != 0 {
		t.Errorf("problems: %v", m.Problems())
	}
	systems := m.Systems()
	if len(systems) != 1 {
		t.Fatalf("%d systems", len(systems))
	}
	s := systems[0]
	if s.Name != "Windows 11 Pro" || s.Root.Name != "scsi0-0p2" || !s.Windows() || len(s.Notes) != 0 {
		t.Errorf("%q on %s, notes %v", s.Name, s.Root.Name, s.Notes)
	}
	if got, want := mounts(s), []string{"C: scsi0-0p2", "D: scsi0-1p1", "E: none"}; !slices.Equal(got, want) {
		t.Errorf("mounts %q, want %q", got, want)
	}
	for name, content := range files {
		if strings.HasPrefix(name, "reserved") {
			continue
		}
		for _, form := range []string{name, strings.ReplaceAll(name, "/", `\`), "/" + strings.ToLower(name[:1]) + name[1:], strings.ToUpper(name)} {
			if got := read(t, s, form); got != content {
				t.Errorf("%s: %q, want %q", form, got, content)
			}
		}
	}
	for name, want := range map[string]string{
		`C:\Documents and Settings\Ann\notes.txt`: "notes of Ann",
		`C:\mnt\volume\..\beside`:                 "beside the volume",
		`C:\..\D:\above`:                          "of D:",
	} {
		if got := read(t, s, name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	for name, want := range map[string]string{
		`C:\nothing`: "nothing", `F:\x`: "F:", `E:\x`: "not among the disks", `C:\gone\x`: "not among the disks", `C:\loop\x`: "symbolic links", `Users`: "USERS",
	} {
		if _, err := s.Find(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want something of %s", name, err, want)
		}
	}
	if p, err := s.Find("/"); err != nil || p.FS != nil {
		t.Errorf("above the drives: %+v, %v", p, err)
	}

	// Without the second disk the drive on it is named, and the rest is there.
	alone := openDisks(t, disks[0]).Systems()[0]
	if got, want := mounts(alone), []string{"C: scsi0-0p2", "D: none", "E: none"}; !slices.Equal(got, want) {
		t.Errorf("mounts of one disk %q, want %q", got, want)
	}
	if got := read(t, alone, `C:\Windows\win.ini`); got != "[fonts]" {
		t.Errorf("of one disk: %q", got)
	}
	if _, err := alone.Find(`D:\above`); err == nil || !strings.Contains(err.Error(), "open all disks") {
		t.Errorf("a drive on a disk that is not there: %v", err)
	}
	// A copy of the first disk has the same signature: whose letter it is is a guess, and said.
	twice := openDisks(t, disks[0], disks[0], disks[1]).Systems()
	if len(twice) != 2 || !twice[0].Mounts[0].Guess || twice[0].Mounts[0].Path != "C:" || twice[0].Mounts[1].Guess {
		t.Errorf("a copy of a disk: %+v", twice)
	}
}

// mounts are the mount points of a system and their volumes.
func mounts(s mount.System) []string {
	var out []string
	for _, p := range s.Mounts {
		v := "none"
		if p.Volume != nil {
			v = p.Volume.Name
		}
		out = append(out, p.Path+" "+v)
	}
	return out
}

// read is the content of a file of a system; of a directory, or where there is nothing, the error.
func read(t *testing.T, s mount.System, name string) string {
	t.Helper()
	p, err := s.Find(name)
	if err != nil {
		if errors.Is(err, iofs.ErrNotExist) {
			return err.Error()
		}
		t.Fatal(err)
	}
	f, err := p.FS.Open(p.ID, "")
	if err != nil {
		return err.Error()
	}
	b, err := io.ReadAll(guestfs.NewReader(f))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
