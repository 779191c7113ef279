package vmdk_test

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"testing"

	"github.com/vmkeep/vmkeep/vddk/vmdk"
)

func TestDescriptorIsReadAsItWasWritten(t *testing.T) {
	for _, d := range []vmdk.Descriptor{
		{Type: vmdk.TypeFlat, Adapter: "ide", Extents: []vmdk.Extent{{File: "a b-flat.vmdk", Size: 1 << 30}}},
		{Type: vmdk.TypeSplit, Adapter: "lsilogic", Extents: []vmdk.Extent{{File: "a/0000/flat.vmdk", Size: 1 << 30}, {File: "a/0001/flat.vmdk", Size: 512}}},
		{Type: vmdk.TypeStream, Adapter: "buslogic", Extents: []vmdk.Extent{{File: "a.vmdk", Size: 62 << 40}}},
	} {
		got, err := vmdk.ParseDescriptor(d.Encode())
		if err != nil || !reflect.DeepEqual(got, d) {
			t.Errorf("%+v became %+v, %v", d, got, err)
		}
	}
}

func TestDescriptorsThatMakeNoSenseAreRefused(t *testing.T) {
	for _, text := range []string{"", "hello", "# Disk DescriptorFile\n", "# Disk DescriptorFile\ncreateType=\"x\"\n",
		"# Disk DescriptorFile\ncreateType=\"x\"\nRW -1 FLAT \"a\" 0\n", "# Disk DescriptorFile\ncreateType=\"x\"\nRW 9223372036854775807 FLAT \"a\" 0\n",
		"# Disk DescriptorFile\ncreateType=\"x\"\nRW 1 FLAT \"a\" 63\n", "# Disk DescriptorFile\ncreateType=\"x\"\nRW 1 ZERO\n", "# Disk DescriptorFile\ncreateType=\"x\"\nRW 1 FLAT \"a\n"} {
		if d, err := vmdk.ParseDescriptor([]byte(text)); !errors.Is(err, vmdk.ErrFormat) {
			t.Errorf("%q became %+v, %v", text, d, err)
		}
	}
}

// A damaged file gives an error that says so, or other bytes, never anything worse.
func FuzzReader(f *testing.F) {
	var file bytes.Buffer
	if err := vmdk.WriteStream(&file, describe(192<<10), putAll(content(1, 192<<10), 1)); err != nil {
		f.Fatal(err)
	}
	f.Add(file.Bytes())
	f.Add(file.Bytes()[:file.Len()-512])
	f.Fuzz(func(t *testing.T, p []byte) {
		r, err := vmdk.NewReader(bytes.NewReader(p), int64(len(p)))
		if err == nil {
			_, err = io.Copy(io.Discard, io.NewSectionReader(r, 0, min(r.Size(), 1<<20)))
		}
		if err != nil && !errors.Is(err, vmdk.ErrFormat) {
			t.Fatalf("not said to be the file's fault: %v", err)
		}
	})
}

// Every changed byte of the file is found or harmless: nothing panics, nothing is read beyond the file.
func TestEveryByteMayBeWrong(t *testing.T) {
	disk := content(1, 192<<10)
	var file bytes.Buffer
	must(t, vmdk.WriteStream(&file, describe(len(disk)), putAll(disk, 1)))
	p := file.Bytes()
	for i := 0; i < len(p); i += 1 + i/80*13 { // every byte of the header, fewer behind it
		p[i] ^= 0xFF
		r, err := vmdk.NewReader(bytes.NewReader(p), int64(len(p)))
		if err == nil {
			_, err = io.Copy(io.Discard, io.NewSectionReader(r, 0, min(r.Size(), 1<<20)))
		}
		if err != nil && !errors.Is(err, vmdk.ErrFormat) {
			t.Fatalf("byte %d: not said to be the file's fault: %v", i, err)
		}
		p[i] ^= 0xFF
	}
}
