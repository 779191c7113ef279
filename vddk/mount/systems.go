package mount

import (
	"bufio"
	"bytes"
	"cmp"
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
)

// System is an operating system found on the volumes, and where it mounts them.
type System struct {
	Name   string  // "Debian GNU/Linux 12 (bookworm)", as the guest calls itself; may be empty
	Root   *Volume // where it was found
	Mounts []MountPoint
	Notes  []guestfs.Note // what is uncertain of them

	windows bool
	byGUID  map[string]MountPoint // of Windows: volumes by the GUID in their names, which mount points lead to
}

// MountPoint is a place in a guest's tree of files.
type MountPoint struct {
	Path   string  // "/", "/home"; of Windows "C:"
	Volume *Volume // nil: not among the volumes of the disks given
	Dir    string  // directory of the volume that is mounted, "" its root (a subvolume of Btrfs)
	Source string  // as the guest names the volume: "UUID=...", "/dev/mapper/vg-home"
	// Guess: the guest names the volume by the number of its disk (/dev/sdb1), which need not be the order of
	// the disks here.
	Guess bool
}

// Place is a file of a system: which volume it is on, and which file there.
type Place struct {
	Path   string // in the guest, without symbolic links but for the last name
	Volume *Volume
	FS     *guestfs.FS
	ID     guestfs.ID
}

// Systems looks for operating systems on all volumes that can be opened. Volumes that belong to none are in
// [Machine.Volumes] all the same.
func (m *Machine) Systems() []System {
	var out []System
	for _, v := range m.volumes {
		if !v.Readable() {
			continue
		}
		f, err := v.Open()
		if err != nil {
			continue
		}
		for _, dir := range rootDirs(v) {
			if s, ok := m.linux(v, f, dir); ok {
				out = append(out, s)
				break
			}
		}
		if s, ok := m.windows(v, f); ok {
			out = append(out, s)
		}
	}
	// A copy of a root file system (made by an upgrade, or for a rescue system) has an fstab too: first come those
	// that mount themselves as root.
	slices.SortStableFunc(out, func(a, b System) int { return cmp.Compare(a.foreign(), b.foreign()) })
	return out
}

// foreign is 1 for a system whose fstab has another volume as root.
func (s System) foreign() int {
	for _, p := range s.Mounts {
		if p.Path == "/" && p.Volume != s.Root {
			return 1
		}
	}
	return 0
}

// rootDirs are where the root of a Linux system may be on a volume: distributions put it into subvolumes of Btrfs.
func rootDirs(v *Volume) []string {
	if v.Type == "btrfs" {
		return []string{"", "@", "@rootfs", "root", "@/.snapshots/1/snapshot"}
	}
	return []string{""}
}

// linux reads a system's fstab and name from directory dir of a volume.
func (m *Machine) linux(v *Volume, f *guestfs.FS, dir string) (System, bool) {
	table, err := small(f, dir+"/etc/fstab")
	if err != nil {
		return System{}, false
	}
	s := System{Root: v}
	for _, p := range []string{"/etc/os-release", "/usr/lib/os-release"} {
		if b, err := small(f, dir+p); err == nil {
			if s.Name = prettyName(b); s.Name != "" {
				break
			}
		}
	}
	s.Mounts = m.fstab(table)
	if k := slices.IndexFunc(s.Mounts, func(p MountPoint) bool { return p.Path == "/" }); k < 0 {
		s.Mounts = append(s.Mounts, MountPoint{Path: "/", Volume: v, Dir: dir})
	} else if p := &s.Mounts[k]; p.Volume == v && p.Dir == "" {
		p.Dir = dir // the default subvolume
	}
	slices.SortStableFunc(s.Mounts, func(a, b MountPoint) int { return strings.Compare(a.Path, b.Path) })
	return s, true
}

// maxSmall bounds the guest's own files of settings.
const maxSmall = 1 << 20

// small reads a small file.
func small(f *guestfs.FS, name string) ([]byte, error) {
	id, err := f.Walk(name)
	if err != nil {
		return nil, err
	}
	file, err := f.Open(id, "")
	if err != nil {
		return nil, err
	}
	if file.Size() > maxSmall {
		return nil, fmt.Errorf("%s: %d bytes: %w", name, file.Size(), guestfs.ErrTooLarge)
	}
	return io.ReadAll(guestfs.NewReader(file))
}

func prettyName(release []byte) string {
	sc := bufio.NewScanner(bytes.NewReader(release))
	for sc.Scan() {
		if v, ok := strings.CutPrefix(sc.Text(), "PRETTY_NAME="); ok {
			return strings.Trim(v, `"'`)
		}
	}
	return ""
}

// fstab reads fstab(5): source, mount point, type, options. What is not a volume (proc, NFS, swap, bind mounts) is
// left out; of several entries for a place the last one wins, as with mount -a.
func (m *Machine) fstab(table []byte) []MountPoint {
	var out []MountPoint
	sc := bufio.NewScanner(bytes.NewReader(table))
	sc.Buffer(nil, maxSmall)
	for sc.Scan() && len(out) < 1000 {
		field := strings.Fields(sc.Text())
		if len(field) < 3 || field[0][0] == '#' || !strings.HasPrefix(field[1], "/") {
			continue
		}
		options := ""
		if len(field) > 3 {
			options = field[3]
		}
		source, isVolume := source(unescape(field[0]))
		if !isVolume || slices.Contains(strings.Split(options, ","), "bind") {
			continue
		}
		p := MountPoint{Path: path.Clean(unescape(field[1])), Source: unescape(field[0])}
		p.Volume, p.Guess = m.bySource(source)
		for o := range strings.SplitSeq(options, ",") {
			if d, ok := strings.CutPrefix(o, "subvol="); ok {
				p.Dir = strings.Trim(path.Clean("/"+d), "/")
			}
		}
		out = slices.DeleteFunc(out, func(q MountPoint) bool { return q.Path == p.Path })
		out = append(out, p)
	}
	return out
}

// unescape undoes fstab's octal escapes (\040 is a space).
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// source brings the ways to name a volume to one form: "UUID=x" also for /dev/disk/by-uuid/x.
func source(s string) (string, bool) {
	for prefix, tag := range map[string]string{
		"/dev/disk/by-uuid/": "UUID=", "/dev/disk/by-label/": "LABEL=", "/dev/disk/by-partuuid/": "PARTUUID=",
		"/dev/disk/by-partlabel/": "PARTLABEL=",
	} {
		if v, ok := strings.CutPrefix(s, prefix); ok {
			return tag + unhex(v), true
		}
	}
	if tag, v, ok := strings.Cut(s, "="); ok && !strings.HasPrefix(s, "/") {
		return strings.ToUpper(tag) + "=" + strings.Trim(v, `"`), true
	}
	return s, strings.HasPrefix(s, "/dev/")
}

// unhex undoes udev's escapes (\x20 is a space).
func unhex(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && s[i+1] == 'x' {
			if n, err := strconv.ParseUint(s[i+2:i+4], 16, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// bySource finds the volume a source names.
func (m *Machine) bySource(s string) (v *Volume, guess bool) {
	tag, value, tagged := strings.Cut(s, "=")
	for _, v := range m.volumes {
		same := false
		switch {
		case value == "" && tagged:
		case tagged && tag == "UUID":
			same = strings.EqualFold(v.UUID, value)
		case tagged && tag == "LABEL":
			same = v.Label == value
		case tagged && tag == "PARTUUID":
			same = strings.EqualFold(v.Part.UUID, value)
		case tagged && tag == "PARTLABEL":
			same = v.Part.Name == value
		case !tagged:
			same = slices.Contains(v.Paths, s)
		}
		if same {
			return v, false
		}
	}
	if disk, part, ok := diskName(s); ok && !tagged {
		for _, v := range m.volumes {
			if v.disk == disk && v.Part.Number == part {
				return v, true
			}
		}
	}
	return nil, false
}

// diskName decodes /dev/sdb1, /dev/xvda2, /dev/nvme0n2p1: the number of a disk from 0, and of a partition or 0.
func diskName(s string) (disk, part int, ok bool) {
	name := strings.TrimPrefix(s, "/dev/")
	if rest, is := strings.CutPrefix(name, "nvme"); is {
		var controller, space int
		// VMware gives every disk of a controller a namespace. How many the first controller has is not known here.
		if n, _ := fmt.Sscanf(rest, "%dn%dp%d", &controller, &space, &part); n < 2 || space < 1 || controller != 0 {
			return 0, 0, false
		}
		return space - 1, part, true
	}
	for _, prefix := range []string{"xvd", "sd", "vd", "hd"} {
		rest, is := strings.CutPrefix(name, prefix)
		if !is {
			continue
		}
		letters := strings.TrimRight(rest, "0123456789")
		if letters == "" || len(letters) > 2 {
			return 0, 0, false
		}
		for _, c := range letters {
			if c < 'a' || c > 'z' {
				return 0, 0, false
			}
			disk = disk*26 + int(c-'a') + 1
		}
		if digits := rest[len(letters):]; digits != "" {
			n, err := strconv.Atoi(digits)
			if err != nil {
				return 0, 0, false
			}
			part = n
		}
		return disk - 1, part, true
	}
	return 0, 0, false
}
