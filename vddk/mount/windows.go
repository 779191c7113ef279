package mount

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
	"github.com/vmkeep/vmkeep/vddk/mount/registry"
)

// Windows keeps its drive letters in the registry, in the key MountedDevices of the hive SYSTEM: values named
// \DosDevices\C: and \??\Volume{GUID}, whose bytes say which volume it is:
//
//	signature of the disk(4) first byte of the partition(8)   a partition in an MBR
//	"DMIO:ID:" GUID(16)                                       a partition in a GPT, or a volume of a dynamic disk
//	a device path in UTF-16                                   what is removable: not among the disks of a machine
//
// Mount points without a letter are reparse points in a directory, which lead to \??\Volume{GUID}\.
//
// Source: Microsoft, "HKLM\SYSTEM\MountedDevices" (support article 234048) for the key; the forms of the bytes are those
// every Windows writes.

// windows reads where a Windows system on a volume mounts volumes.
func (m *Machine) windows(v *Volume, f *guestfs.FS) (System, bool) {
	if !f.Info().FoldCase {
		return System{}, false
	}
	for _, dir := range []string{"Windows/System32/config", "WINNT/system32/config"} {
		if _, err := f.Walk(dir + "/SYSTEM"); err != nil {
			continue
		}
		s := System{Root: v, windows: true, byGUID: map[string]MountPoint{}}
		drive := s.version(f, dir)
		if err := m.mountedDevices(&s, f, dir); err != nil {
			s.uncertain("the drive letters could not be read from the registry: " + err.Error())
		}
		s.guess(m, drive)
		slices.SortFunc(s.Mounts, func(a, b MountPoint) int { return strings.Compare(a.Path, b.Path) })
		return s, true
	}
	return System{}, false
}

func (s *System) uncertain(text string) {
	s.Notes = append(s.Notes, guestfs.Note{Uncertain: true, Text: text})
}

// hive opens a hive of the registry with its logs.
func hive(f *guestfs.FS, dir, name string) (registry.Key, *registry.Hive, error) {
	open := func(name string) (registry.File, error) {
		id, err := f.Walk(dir + "/" + name)
		if err != nil {
			return nil, err
		}
		return f.Open(id, "")
	}
	main, err := open(name)
	if err != nil {
		return registry.Key{}, nil, err
	}
	var logs []registry.File
	for _, ending := range []string{".LOG1", ".LOG2", ".LOG"} {
		if log, err := open(name + ending); err == nil {
			logs = append(logs, log)
		}
	}
	h, err := registry.Open(main, logs...)
	if err != nil {
		return registry.Key{}, nil, err
	}
	root, err := h.Root()
	return root, h, err
}

// version names the system after what it calls itself, and returns the drive that it runs from, "" when unknown.
func (s *System) version(f *guestfs.FS, dir string) (drive string) {
	s.Name = "Windows"
	root, _, err := hive(f, dir, "SOFTWARE")
	if err != nil {
		return ""
	}
	k, err := root.Find("Microsoft", "Windows NT", "CurrentVersion")
	if err != nil {
		return ""
	}
	text := func(name string) string {
		v, err := k.Value(name)
		if err != nil {
			return ""
		}
		return v.Text()
	}
	s.Name = cmp.Or(text("ProductName"), s.Name)
	// Windows 11 calls itself 10 here; builds from 22000 on are 11 (Microsoft, "Windows 11 release information").
	if build := text("CurrentBuild"); strings.HasPrefix(s.Name, "Windows 10") && len(build) == 5 && build >= "22000" {
		s.Name = "Windows 11" + strings.TrimPrefix(s.Name, "Windows 10")
	}
	return s.driveOf(text("SystemRoot"))
}

// maxDevices bounds what is taken from a guest's list of devices.
const maxDevices = 4096

// mountedDevices reads the drive letters and the GUIDs of volumes.
func (m *Machine) mountedDevices(s *System, f *guestfs.FS, dir string) error {
	root, h, err := hive(f, dir, "SYSTEM")
	if err != nil {
		return err
	}
	if h.Uncertain != "" {
		s.uncertain("drive letters may have changed since: the registry's hive SYSTEM: " + h.Uncertain)
	}
	k, err := root.Find("MountedDevices")
	if err != nil {
		return err
	}
	seen := 0
	for v, err := range k.Values() {
		if seen++; err != nil || seen > maxDevices {
			return err
		}
		source, ok := deviceOf(v.Data)
		if !ok {
			continue
		}
		p := MountPoint{Source: source}
		p.Volume, p.Guess = m.byWindowsDevice(v.Data)
		if letter, ok := strings.CutPrefix(v.Name, `\DosDevices\`); ok && s.driveOf(letter) == strings.ToUpper(letter) {
			p.Path = strings.ToUpper(letter)
			s.Mounts = append(s.Mounts, p)
		} else if guid, ok := volumeGUID(strings.TrimPrefix(v.Name, `\??\`)); ok {
			s.byGUID[guid] = p
		}
	}
	return nil
}

const dmio = "DMIO:ID:"

// deviceOf tells what the bytes of a mounted device name; false: nothing that a disk of a machine holds.
func deviceOf(b []byte) (string, bool) {
	switch {
	case len(b) == 12:
		return fmt.Sprintf("the partition at byte %d of the disk with signature %08x", binary.LittleEndian.Uint64(b[4:]), binary.LittleEndian.Uint32(b)), true
	case len(b) == 24 && string(b[:8]) == dmio:
		return "the volume " + guidText(b[8:]), true
	}
	return "", false
}

// guidText is a GUID as Windows keeps it in 16 bytes, in the form of PARTUUID.
func guidText(b []byte) string {
	le := binary.LittleEndian
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", le.Uint32(b), le.Uint16(b[4:]), le.Uint16(b[6:]), b[8:10], b[10:16])
}

// byWindowsDevice finds the volume that the bytes of a mounted device name. It is a guess where several are called so:
// copies of a disk.
func (m *Machine) byWindowsDevice(b []byte) (found *Volume, guess bool) {
	for _, v := range m.volumes {
		same := false
		if string(b[:8]) == dmio {
			// Of a dynamic disk's GUID it is not documented which way its first numbers are written there.
			same = v.Part.UUID == guidText(b[8:]) || v.logical != "" && (v.logical == hex.EncodeToString(b[8:]) || v.logical == strings.ReplaceAll(guidText(b[8:]), "-", ""))
		} else {
			signature, off := binary.LittleEndian.Uint32(b), int64(binary.LittleEndian.Uint64(b[4:]))
			same = v.Table == "dos" && v.Part.Off == off && strings.HasPrefix(v.Part.UUID, fmt.Sprintf("%08x-", signature))
		}
		switch {
		case !same:
		case found == nil:
			found = v
		default:
			return found, true
		}
	}
	return found, false
}

// guess adds drive letters that the registry does not have: the one the system runs from, where it says so elsewhere,
// and those that volumes of dynamic disks ask for.
func (s *System) guess(m *Machine, drive string) {
	has := func(fits func(MountPoint) bool) bool { return slices.ContainsFunc(s.Mounts, fits) }
	if !has(func(p MountPoint) bool { return p.Volume == s.Root }) {
		drive = cmp.Or(drive, "C:")
		s.Mounts = slices.DeleteFunc(s.Mounts, func(p MountPoint) bool { return p.Path == drive && p.Volume == nil })
		if !has(func(p MountPoint) bool { return p.Path == drive }) {
			s.Mounts = append(s.Mounts, MountPoint{Path: drive, Volume: s.Root, Source: "the volume with Windows", Guess: true})
		}
	}
	for _, v := range m.volumes {
		for _, name := range v.Paths {
			if d := s.driveOf(name); d != "" && len(name) == 2 && !has(func(p MountPoint) bool { return p.Path == d || p.Volume == v }) {
				s.Mounts = append(s.Mounts, MountPoint{Path: d, Volume: v, Source: "a volume of dynamic disks", Guess: true})
			}
		}
	}
}

// Windows reports whether the system names drives instead of one root.
func (s System) Windows() bool { return s.windows }

// driveOf is the drive, in upper case, that a path of Windows begins with; "" where there is none.
func (s System) driveOf(name string) string {
	if !s.windows {
		return ""
	}
	d, _ := Drive(name)
	return d
}

// Drive splits a path that begins with a drive letter: `c:\Users` is "C:" and `\Users`. Other paths have no drive.
func Drive(name string) (drive, rest string) {
	if len(name) < 2 || name[1] != ':' || len(name) > 2 && name[2] != '\\' && name[2] != '/' {
		return "", name
	}
	c := bytes.ToUpper([]byte{name[0]})[0]
	if c < 'A' || c > 'Z' {
		return "", name
	}
	return string(c) + ":", name[2:]
}

// byTarget finds the volume that a mount point of Windows leads to.
func (s System) byTarget(target string) (MountPoint, bool) {
	guid, ok := volumeGUID(strings.TrimSuffix(target, `\`))
	if !ok {
		return MountPoint{}, false
	}
	p, ok := s.byGUID[guid]
	return p, ok
}

// volumeGUID takes the GUID from "Volume{GUID}".
func volumeGUID(s string) (string, bool) {
	s = strings.ToLower(s)
	if !strings.HasPrefix(s, "volume{") || !strings.HasSuffix(s, "}") {
		return "", false
	}
	return s[len("volume{") : len(s)-1], true
}
