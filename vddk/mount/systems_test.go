package mount

import (
	"testing"

	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
	"github.com/vmkeep/vmkeep/vddk/mount/part"
)

func guest() *Machine {
	return &Machine{volumes: []*Volume{
		{Name: "a1", disk: 0, Ident: guestfs.Ident{UUID: "AbCd-1234", Label: "my data"}, Part: part.Entry{Number: 1, UUID: "12345678-01"}},
		{Name: "b2", disk: 1, Part: part.Entry{Number: 2, UUID: "aaaa", Name: "boot part"}},
		{Name: "vg/x", disk: -1, Paths: []string{"/dev/vg/x", "/dev/mapper/vg-x"}},
		{Name: "ab1", disk: 27, Part: part.Entry{Number: 1}},
	}}
}

func TestWaysToNameAVolume(t *testing.T) {
	m := guest()
	for name, want := range map[string]string{
		"UUID=abcd-1234": "a1", `UUID="AbCd-1234"`: "a1", "/dev/disk/by-uuid/ABCD-1234": "a1", "PARTUUID=12345678-01": "a1",
		`/dev/disk/by-label/my\x20data`: "a1", "LABEL=my data": "a1", "PARTLABEL=boot part": "b2", "/dev/disk/by-partuuid/AAAA": "b2",
		"/dev/vg/x": "vg/x", "/dev/mapper/vg-x": "vg/x",
		"/dev/sdb2": "b2?", "/dev/vdb2": "b2?", "/dev/xvda1": "a1?", "/dev/nvme0n2p2": "b2?", "/dev/sdab1": "ab1?",
		"/dev/sdb3": "", "/dev/nvme1n1p1": "", "UUID=": "", "LABEL=": "", "LABEL=other": "", "/dev/sd1": "", "/dev/sda999999999999999999999": "",
	} {
		s, ok := source(name)
		if !ok {
			t.Errorf("%s is no volume", name)
			continue
		}
		v, guess := m.bySource(s)
		got := ""
		if v != nil {
			got = v.Name
		}
		if guess {
			got += "?"
		}
		if got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	for _, name := range []string{"proc", "server:/export", "//server/share", "tmpfs"} {
		if _, ok := source(name); ok {
			t.Errorf("%s is taken for a volume", name)
		}
	}
}

func TestSubvolumesAndLastEntryWins(t *testing.T) {
	ps := guest().fstab([]byte("UUID=abcd-1234 / btrfs subvol=/@,compress 0 0\nUUID=abcd-1234 /home/ btrfs x,subvol=@home 0 0\n/dev/sdz9 /home ext4\n/dev/sda1\n"))
	if len(ps) != 2 || ps[0].Dir != "@" || ps[0].Path != "/" || ps[1].Path != "/home" || ps[1].Volume != nil {
		t.Errorf("%+v", ps)
	}
}

func FuzzFstab(f *testing.F) {
	f.Add([]byte("UUID=x / ext4 defaults 0 0\n/dev/sdb1 /a\\040b xfs subvol=../.. 0 0\n"))
	f.Add([]byte("/dev/nvme0n1p1 /\\057\\400\\ x\n/dev/disk/by-label/\\x2 /b c"))
	f.Fuzz(func(t *testing.T, table []byte) {
		for _, p := range guest().fstab(table) {
			if p.Path == "" || p.Path[0] != '/' {
				t.Errorf("mount point %q", p.Path)
			}
		}
	})
}

func FuzzWindowsDevice(f *testing.F) {
	f.Add([]byte("\x78\x56\x34\x12\x00\x00\x10\x00\x00\x00\x00\x00"), `Volume{x}`)
	f.Add([]byte("DMIO:ID:0123456789abcdef"), `c:\Users`)
	m := guest()
	f.Fuzz(func(t *testing.T, device []byte, name string) {
		if _, ok := deviceOf(device); ok {
			m.byWindowsDevice(device)
		}
		if guid, ok := volumeGUID(name); ok && len(guid) >= len(name) {
			t.Errorf("%q holds the GUID %q", name, guid)
		}
		if drive, rest := Drive(name); len(drive+rest) != len(name) {
			t.Errorf("%q is %q and %q", name, drive, rest)
		}
	})
}
