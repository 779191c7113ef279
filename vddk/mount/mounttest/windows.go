package mounttest

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf16"

	"golang.org/x/sys/unix"
)

// Windows makes the disks of a guest like one of Windows in dir, and returns their paths and its files, by path:
//
//	disk 0, MBR   a partition without a letter, then C: with \Windows
//	disk 1, GPT   D:, then a volume that is mounted in C:\mnt\volume
//
// with the drive letters in the registry, of which E: is a disk that is not there and A: a floppy. NTFS is made by
// mkntfs and ntfs-3g, the hives by hivexregedit, the GPT by sgdisk.
func Windows(t testing.TB, dir string) (disks []string, files map[string]string) {
	t.Helper()
	Need(t, "mkntfs", "ntfs-3g", "sgdisk", "hivexregedit")
	const (
		signature = 0x1badb002
		data      = "11223344-5566-7788-99AA-BBCCDDEEFF00" // partition of D:
		further   = "a0b1c2d3-e4f5-0617-2839-4a5b6c7d8e9f" // partition of the volume without a letter
		volume    = "5ca1ab1e-0000-1111-2222-333333333333" // its GUID in the registry
		mib       = 1 << 20
		lettered  = 9 * mib // where C: begins
	)
	mbr := func(at int64) string {
		return commas(binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint32(nil, signature), uint64(at)))
	}
	gpt := func(guid string) string { return commas(append([]byte("DMIO:ID:"), mixed(t, guid)...)) }
	system := filepath.Join(dir, "SYSTEM")
	Hive(t, system, `[HKEY_LOCAL_MACHINE\X\MountedDevices]
"\\DosDevices\\C:"=hex:`+mbr(lettered)+`
"\\DosDevices\\D:"=hex:`+gpt(data)+`
"\\DosDevices\\E:"=hex:`+gpt("99999999-5566-7788-99AA-BBCCDDEEFF00")+`
"\\DosDevices\\A:"=hex:5c,00,3f,00,3f,00,5c,00,46,00,44,00,43,00
"\\??\\Volume{`+volume+`}"=hex:`+gpt(further)+`
"#{`+volume+`}"=hex:00,00
`)
	software := filepath.Join(dir, "SOFTWARE")
	Hive(t, software, `[HKEY_LOCAL_MACHINE\X\Microsoft]

[HKEY_LOCAL_MACHINE\X\Microsoft\Windows NT]

[HKEY_LOCAL_MACHINE\X\Microsoft\Windows NT\CurrentVersion]
"ProductName"="Windows 10 Pro"
"CurrentBuild"="22631"
"SystemRoot"="C:\\Windows"
`)
	files = map[string]string{}
	write := func(mnt, drive string, content map[string]string) {
		for name, text := range content {
			p := filepath.Join(mnt, filepath.FromSlash(name))
			if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			files[drive+"/"+name] = text
		}
	}
	fill := map[string]func(mnt string){
		"reserved": func(mnt string) { write(mnt, "reserved", map[string]string{"Boot/BCD": "boot"}) },
		"system": func(mnt string) {
			write(mnt, "C:", map[string]string{"Users/Ann/notes.txt": "notes of Ann", "Windows/win.ini": "[fonts]", "mnt/beside": "beside the volume", "above": "of C:"})
			config := filepath.Join(mnt, "Windows", "System32", "config")
			if err := os.MkdirAll(config, 0o755); err != nil {
				t.Fatal(err)
			}
			for _, p := range []string{system, software} {
				b, err := os.ReadFile(p)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(config, filepath.Base(p)), b, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			for name, target := range map[string]string{"Documents and Settings": `\??\C:\Users`, "mnt/volume": `\??\Volume{` + volume + `}\`, "gone": `\??\E:\x`, "loop": `\??\C:\loop\x`} {
				p := filepath.Join(mnt, filepath.FromSlash(name))
				if err := os.Mkdir(p, 0o755); err != nil {
					t.Fatal(err)
				}
				if err := unix.Lsetxattr(p, "system.ntfs_reparse_data", junction(target), 0); err != nil {
					t.Fatalf("junction %s: %v", name, err)
				}
			}
		},
		"data":    func(mnt string) { write(mnt, "D:", map[string]string{"Daten/Größe.txt": "data", "above": "of D:"}) },
		"further": func(mnt string) { write(mnt, "C:/mnt/volume", map[string]string{"deep/er/file": "without a letter"}) },
	}
	image := func(name string, size int64) []byte {
		home := filepath.Join(dir, name)
		if err := os.Mkdir(home, 0o700); err != nil {
			t.Fatal(err)
		}
		p := filepath.Join(home, "image")
		if err := Blank(p, size); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("mkntfs", "-q", "-F", "-f", "-L", name, p).CombinedOutput(); err != nil {
			t.Fatalf("mkntfs: %v\n%s", err, out)
		}
		MountedNTFS(t, p, "big_writes", fill[name])
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}

	first := make([]byte, 48*mib)
	binary.LittleEndian.PutUint32(first[440:], signature)
	for n, p := range []struct{ at, size int64 }{{mib, 8 * mib}, {lettered, 36 * mib}} {
		e := first[446+16*n:]
		e[4] = 7
		binary.LittleEndian.PutUint32(e[8:], uint32(p.at/512))
		binary.LittleEndian.PutUint32(e[12:], uint32(p.size/512))
	}
	first[510], first[511] = 0x55, 0xaa
	copy(first[mib:], image("reserved", 8*mib))
	copy(first[lettered:], image("system", 36*mib))
	second := filepath.Join(dir, "disk1")
	if err := os.WriteFile(second, make([]byte, 40*mib), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("sgdisk", "-n", "1:2048:+16M", "-t", "1:0700", "-u", "1:"+data, "-n", "2:0:+16M", "-t", "2:0700", "-u", "2:"+further, second).CombinedOutput(); err != nil {
		t.Fatalf("sgdisk: %v\n%s", err, out)
	}
	b, err := os.ReadFile(second)
	if err != nil {
		t.Fatal(err)
	}
	copy(b[mib:], image("data", 16*mib))
	copy(b[17*mib:], image("further", 16*mib))
	disks = []string{filepath.Join(dir, "disk0"), second}
	for n, b := range [][]byte{first, b} {
		if err := os.WriteFile(disks[n], b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return disks, files
}

// commas is bytes as regedit writes them.
func commas(b []byte) string {
	var out []string
	for _, c := range b {
		out = append(out, fmt.Sprintf("%02x", c))
	}
	return strings.Join(out, ",")
}

// mixed is a GUID as Windows keeps it: the first three numbers little-endian.
func mixed(t testing.TB, guid string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(guid, "-", ""))
	if err != nil {
		t.Fatal(err)
	}
	return []byte{b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]}
}

// junction is the reparse point of a junction or mount point ([MS-FSCC] 2.1.2.5).
func junction(target string) []byte {
	le := binary.LittleEndian
	var name []byte
	for _, u := range utf16.Encode([]rune(target)) {
		name = le.AppendUint16(name, u)
	}
	var d []byte
	for _, n := range []int{0, len(name), len(name) + 2, 0} {
		d = le.AppendUint16(d, uint16(n))
	}
	d = bytes.Join([][]byte{d, name, {0, 0}, {0, 0}}, nil)
	b := le.AppendUint32(nil, 0xa0000003)
	b = le.AppendUint16(b, uint16(len(d)))
	return append(append(b, 0, 0), d...)
}
