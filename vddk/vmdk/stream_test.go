package vmdk_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/vmkeep/vmkeep/vddk/vmdk"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// content is a disk with runs of noise, of text and of zeros.
func content(seed uint64, size int) []byte {
	rng := rand.New(rand.NewPCG(seed, 7))
	p := make([]byte, size)
	for at := 0; at < size; {
		n := min(1+rng.IntN(400<<10), size-at)
		switch rng.IntN(3) {
		case 0:
			for i := 0; i+8 <= n; i += 8 {
				binary.LittleEndian.PutUint64(p[at+i:], rng.Uint64())
			}
		case 1:
			copy(p[at:at+n], bytes.Repeat([]byte("the quick brown fox "), n/20+1))
		}
		at += n
	}
	return p
}

func describe(size int) vmdk.Descriptor {
	return vmdk.Descriptor{UUID: "6000c290-1111-2222-3333-444455556666", Extents: []vmdk.Extent{{File: "disk.vmdk", Size: int64(size)}}}
}

// putAll puts p in pieces of any length, leaving zeros out now and then.
func putAll(p []byte, seed uint64) func(vmdk.Put) error {
	return func(put vmdk.Put) error {
		rng := rand.New(rand.NewPCG(seed, 8))
		for at := 0; at < len(p); {
			n := min(1+rng.IntN(150<<10), len(p)-at)
			if len(bytes.Trim(p[at:at+n], "\x00")) > 0 || rng.IntN(2) == 0 {
				if err := put(p[at:at+n], int64(at)); err != nil {
					return err
				}
			}
			at += n
		}
		return nil
	}
}

func TestStreamIsReadAsItWasWritten(t *testing.T) {
	for seed, size := range []int{0, 512, 65536, 65536 + 512, 3<<20 + 1024, 33<<20 + 512} {
		want := content(uint64(seed), size)
		var file bytes.Buffer
		if err := vmdk.WriteStream(&file, describe(size), putAll(want, uint64(seed))); err != nil {
			t.Fatal(err)
		}
		r, err := vmdk.NewReader(bytes.NewReader(file.Bytes()), int64(file.Len()))
		if err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		if r.Size() != int64(size) {
			t.Fatalf("the disk has %d bytes, want %d", r.Size(), size)
		}
		if d := r.Descriptor(); d.Type != vmdk.TypeStream || d.Size() != int64(size) {
			t.Errorf("descriptor %+v", d)
		}
		got, err := io.ReadAll(io.NewSectionReader(r, 0, r.Size()))
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%d bytes: another disk was read, %v", size, err)
		}
		rng := rand.New(rand.NewPCG(uint64(seed), 9))
		for range 50 {
			p, off := make([]byte, rng.IntN(200<<10)), rng.Int64N(int64(size)+1)
			n, err := r.ReadAt(p, off)
			if want := want[off:min(int64(size), off+int64(len(p)))]; !bytes.Equal(p[:n], want) || (n < len(p)) != (err == io.EOF) {
				t.Fatalf("ReadAt(%d bytes, %d) gave %d, %v", len(p), off, n, err)
			}
		}
	}
}

// A disk of zeros costs its tables only, of which it has none.
func TestZerosAreNotStored(t *testing.T) {
	const size = 1 << 40
	var file bytes.Buffer
	d := vmdk.Descriptor{Extents: []vmdk.Extent{{File: "disk.vmdk", Size: size}}}
	if err := vmdk.WriteStream(&file, d, func(put vmdk.Put) error { return put([]byte("end"), size-512) }); err != nil {
		t.Fatal(err)
	}
	if file.Len() > 256<<10 {
		t.Errorf("an empty disk takes %d bytes", file.Len())
	}
	r, err := vmdk.NewReader(bytes.NewReader(file.Bytes()), int64(file.Len()))
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 1024)
	if _, err := r.ReadAt(p, size-1024); err != nil || !bytes.Equal(p, append(make([]byte, 512), append([]byte("end"), make([]byte, 509)...)...)) {
		t.Errorf("the end of the disk: %v", err)
	}
}

func TestBytesMustGoUpwards(t *testing.T) {
	for _, off := range []int64{0, 4, 1020, -1} {
		err := vmdk.WriteStream(io.Discard, describe(1024), func(put vmdk.Put) error {
			if err := put(make([]byte, 5), 0); err != nil {
				t.Fatal(err)
			}
			return put(make([]byte, 5), off)
		})
		if err == nil {
			t.Errorf("bytes at %d were taken", off)
		}
	}
}

// limited fails after n bytes.
type limited struct{ n int }

var errFull = errors.New("full")

func (l *limited) Write(p []byte) (int, error) {
	if l.n -= len(p); l.n < 0 {
		return 0, errFull
	}
	return len(p), nil
}

func TestFailedWriteIsReported(t *testing.T) {
	disk := content(3, 512<<10)
	var whole bytes.Buffer
	if err := vmdk.WriteStream(&whole, describe(len(disk)), putAll(disk, 3)); err != nil {
		t.Fatal(err)
	}
	for n := 0; n < whole.Len(); n += 1 + whole.Len()/40 {
		if err := vmdk.WriteStream(&limited{n}, describe(len(disk)), putAll(disk, 3)); !errors.Is(err, errFull) {
			t.Fatalf("a file that ends at %d: %v", n, err)
		}
	}
	mine := errors.New("mine")
	if err := vmdk.WriteStream(io.Discard, describe(1024), func(vmdk.Put) error { return mine }); !errors.Is(err, mine) {
		t.Errorf("the source's error became %v", err)
	}
}

// qemuImg is QEMU's own reader and writer of the format.
func qemuImg(t *testing.T, args ...string) string {
	t.Helper()
	path, err := exec.LookPath("qemu-img")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("qemu-img is missing: apt install qemu-utils")
		}
		t.Skip("qemu-img is missing")
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("qemu-img %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestQEMUReadsWhatWeWrite(t *testing.T) {
	for _, size := range []int{64 << 10, 3<<20 + 4096, 33 << 20} {
		dir := t.TempDir()
		disk, raw, stream := content(5, size), filepath.Join(dir, "disk.raw"), filepath.Join(dir, "disk.vmdk")
		must(t, os.WriteFile(raw, disk, 0o600))
		f, err := os.Create(stream)
		must(t, err)
		must(t, vmdk.WriteStream(f, describe(size), putAll(disk, 5)))
		must(t, f.Close())
		if info := qemuImg(t, "info", "-f", "vmdk", stream); !strings.Contains(info, "streamOptimized") || !strings.Contains(info, fmt.Sprintf("(%d bytes)", size)) {
			t.Errorf("qemu-img info:\n%s", info)
		}
		qemuImg(t, "compare", "-f", "raw", "-F", "vmdk", raw, stream)
		qemuImg(t, "check", "-f", "vmdk", stream)

		flat := filepath.Join(dir, "flat.vmdk")
		must(t, os.Rename(raw, filepath.Join(dir, "flat-flat.vmdk")))
		d := vmdk.Descriptor{Type: vmdk.TypeFlat, Extents: []vmdk.Extent{{File: "flat-flat.vmdk", Size: int64(size)}}}
		must(t, os.WriteFile(flat, d.Encode(), 0o600))
		if info := qemuImg(t, "info", "-f", "vmdk", flat); !strings.Contains(info, "monolithicFlat") {
			t.Errorf("qemu-img info:\n%s", info)
		}
		qemuImg(t, "compare", "-f", "vmdk", "-F", "vmdk", flat, stream)
	}
}

func TestWeReadWhatQEMUWrites(t *testing.T) {
	dir := t.TempDir()
	disk, raw, stream := content(6, 33<<20), filepath.Join(dir, "disk.raw"), filepath.Join(dir, "disk.vmdk")
	must(t, os.WriteFile(raw, disk, 0o600))
	qemuImg(t, "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", raw, stream)
	file, err := os.ReadFile(stream)
	must(t, err)
	r, err := vmdk.NewReader(bytes.NewReader(file), int64(len(file)))
	must(t, err)
	got, err := io.ReadAll(io.NewSectionReader(r, 0, r.Size()))
	must(t, err)
	if !bytes.Equal(got, disk) {
		t.Error("another disk was read")
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
