package part

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmkeep/vmkeep/vddk/mount/device"
	"github.com/vmkeep/vmkeep/vddk/mount/mounttest"
)

const mib = 1 << 20

func disk(b []byte) device.Device { return device.Disk(bytes.NewReader(b), 0, int64(len(b))) }

// slots writes a boot record; each slot is type, start, count.
func slots(b []byte, sector, at int64, list ...[3]uint32) {
	r := b[at*sector:]
	for i, s := range list {
		e := r[446+16*i:]
		e[4] = byte(s[0])
		binary.LittleEndian.PutUint32(e[8:], s[1])
		binary.LittleEndian.PutUint32(e[12:], s[2])
	}
	r[510], r[511] = 0x55, 0xaa
}

func brief(t Table) string {
	var out []string
	for _, e := range t.Entries {
		out = append(out, fmt.Sprintf("%d:%s %d+%d", e.Number, e.Type, e.Off, e.Len))
	}
	return strings.Join(out, ", ")
}

func want(t *testing.T, b []byte, sector int64, wanted string) Table {
	t.Helper()
	got, err := Read(disk(b), sector)
	if err != nil {
		t.Errorf("%v, want %s", err, wanted)
	} else if s := brief(got); s != wanted {
		t.Errorf("%s, want %s", s, wanted)
	}
	return got
}

func TestMBRWithLogicalPartitions(t *testing.T) {
	b := make([]byte, 8*mib)
	copy(b[440:], "\x78\x56\x34\x12")
	slots(b, 512, 0, [3]uint32{0x83, 2048, 1000}, [3]uint32{}, [3]uint32{0x05, 4096, 8192}, [3]uint32{0x82, 3100, 100})
	slots(b, 512, 4096, [3]uint32{0x83, 63, 937}, [3]uint32{0x05, 1000, 3000})
	slots(b, 512, 5096, [3]uint32{0x8e, 2, 998}, [3]uint32{0x0f, 3000, 2000})
	slots(b, 512, 7096, [3]uint32{0x07, 8, 100})
	got := want(t, b, 0, "1:83 1048576+512000, 4:82 1587200+51200, 5:83 2129408+479744, 6:8e 2610176+510976, 7:07 3637248+51200")
	if got.UUID != "12345678" || got.Entries[2].UUID != "12345678-05" || len(got.Notes) != 0 {
		t.Errorf("%+v", got)
	}
	// A chain that leads back to itself ends.
	slots(b, 512, 7096, [3]uint32{0x07, 8, 100}, [3]uint32{0x05, 0, 100})
	if got := want(t, b, 0, "1:83 1048576+512000, 4:82 1587200+51200, 5:83 2129408+479744, 6:8e 2610176+510976, 7:07 3637248+51200"); len(got.Notes) != 1 {
		t.Errorf("notes %q", got.Notes)
	}
	// Sectors of 4 KiB: everything lies eight times as far.
	big := make([]byte, 8*mib)
	slots(big, 4096, 0, [3]uint32{0x83, 256, 100}, [3]uint32{0x05, 512, 1000})
	slots(big, 4096, 512, [3]uint32{0x83, 2, 50})
	want(t, big, 4096, "1:83 1048576+409600, 5:83 2105344+204800")
}

func TestPartitionsBeyondTheDiskAreCut(t *testing.T) {
	b := make([]byte, 2*mib)
	slots(b, 512, 0, [3]uint32{0x83, 2048, 100000}, [3]uint32{0x83, 90000, 100})
	if got := want(t, b, 0, "1:83 1048576+1048576"); len(got.Notes) != 2 {
		t.Errorf("notes %q", got.Notes)
	}
}

func TestNoTable(t *testing.T) {
	fat := make([]byte, mib)
	slots(fat, 512, 0, [3]uint32{0x06, 1, 1000})
	copy(fat[54:], "FAT16   ")
	ntfs := make([]byte, mib)
	slots(ntfs, 512, 0, [3]uint32{0x07, 1, 1000})
	copy(ntfs[3:], "NTFS    ")
	code := bytes.Repeat([]byte{0xa5}, mib)
	code[510], code[511] = 0x55, 0xaa
	empty := make([]byte, mib)
	slots(empty, 512, 0)
	for name, b := range map[string][]byte{"FAT": fat, "NTFS": ntfs, "boot code": code, "empty table": empty, "zeros": make([]byte, mib), "short": make([]byte, 100)} {
		if got, err := Read(disk(b), 0); !errors.Is(err, ErrNone) {
			t.Errorf("%s: %s, %v", name, brief(got), err)
		}
	}
}

// gpt makes a table with the real sgdisk.
func gpt(t *testing.T, args ...string) []byte {
	t.Helper()
	mounttest.NeedTools(t, "sgdisk")
	p := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(p, make([]byte, 16*mib), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("sgdisk", append(args, p)...).CombinedOutput(); err != nil {
		t.Fatalf("sgdisk: %v\n%s", err, out)
	}
	b, err := os.ReadFile(p)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestGPTWithEitherHeader(t *testing.T) {
	b := gpt(t, "-n", "1:2048:+1M", "-n", "3:0:+2M", "-t", "3:8e00", "-c", "3:größe", "-u", "3:00112233-4455-6677-8899-AABBCCDDEEFF")
	const wanted = "1:0FC63DAF-8483-4772-8E79-3D69D8477DE4 1048576+1048576, 3:E6D6D379-F507-44C2-A23C-238F2A3DF928 2097152+2097152"
	got := want(t, b, 0, wanted)
	if e := got.Entries[1]; got.Kind != "gpt" || e.Name != "größe" || e.UUID != "00112233-4455-6677-8899-aabbccddeeff" || len(got.Notes) != 0 {
		t.Errorf("%+v", got)
	}
	for name, damage := range map[string]func(b []byte){
		"header zeroed":    func(b []byte) { clear(b[512:1024]) },
		"header bit":       func(b []byte) { b[512+40] ^= 1 },
		"entry bit":        func(b []byte) { b[1024+300] ^= 1 },
		"header and MBR":   func(b []byte) { clear(b[:4096]) },
		"endless array":    func(b []byte) { binary.LittleEndian.PutUint32(b[512+80:], 1<<31); resum(b) },
		"array elsewhere":  func(b []byte) { binary.LittleEndian.PutUint64(b[512+72:], 1<<60); resum(b) },
		"entries of 1 bit": func(b []byte) { binary.LittleEndian.PutUint32(b[512+84:], 1); resum(b) },
	} {
		c := bytes.Clone(b)
		damage(c)
		if got := want(t, c, 0, wanted); len(got.Notes) != 1 {
			t.Errorf("%s: notes %q", name, got.Notes)
		}
	}
	c := bytes.Clone(b)
	clear(c[512:1024])
	clear(c[len(c)-512:])
	if _, err := Read(disk(c), 0); err == nil || errors.Is(err, ErrNone) {
		t.Errorf("without any header: %v", err)
	}
}

// resum makes the checksum of the first header right again.
func resum(b []byte) {
	h := b[512 : 512+92]
	binary.LittleEndian.PutUint32(h[16:], 0)
	binary.LittleEndian.PutUint32(h[16:], crc32.ChecksumIEEE(h))
}

func TestGPTWithSectorsOf4KiB(t *testing.T) {
	// sgdisk writes 512-byte sectors into a file; move its structures to where 4 KiB sectors have them.
	small := gpt(t, "-a", "1", "-n", "1:64:127")
	b := make([]byte, 128*mib)
	copy(b, small[:512])
	copy(b[4096:], small[512:1024])
	copy(b[2*4096:], small[1024:1024+16384])
	want(t, b, 0, "1:0FC63DAF-8483-4772-8E79-3D69D8477DE4 262144+262144")
	want(t, b, 4096, "1:0FC63DAF-8483-4772-8E79-3D69D8477DE4 262144+262144")
}

func FuzzRead(f *testing.F) {
	b := make([]byte, 64<<10)
	slots(b, 512, 0, [3]uint32{0x83, 8, 10}, [3]uint32{0x05, 20, 60})
	slots(b, 512, 20, [3]uint32{0x83, 1, 10}, [3]uint32{0x05, 0, 60})
	f.Add(b[:512], b[20*512:21*512], uint16(20), false)
	f.Add(b[:512], []byte("EFI PART\x00\x00\x01\x00\x5c\x00\x00\x00"), uint16(1), true)
	f.Fuzz(func(t *testing.T, mbr, second []byte, at uint16, sum bool) {
		b := make([]byte, 64<<10)
		copy(b[:512], mbr)
		copy(b[int(at%126)*512:], second[:min(len(second), 1024)])
		if sum {
			resum(b)
		}
		got, err := Read(disk(b), 0)
		if err != nil {
			return
		}
		for _, e := range got.Entries {
			if e.Off < 0 || e.Len <= 0 || e.Off+e.Len > int64(len(b)) {
				t.Errorf("partition %+v on a disk of %d bytes", e, len(b))
			}
		}
	})
}
