package engine_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/vsphere/lab"
)

const (
	bigSize   = 1<<30 + 96<<20 // two parts, the second one short
	smallSize = 12 << 20
	bigKey    = 2000
	smallKey  = 16000
)

// twoDisks is a vSphere with one machine: a sparse disk of two parts and a small one on another controller.
func twoDisks() lab.Options {
	return lab.Options{Machines: []lab.Machine{{Name: "web", Folder: "prod", Network: "VM Network", Disks: []lab.Disk{
		{Size: bigSize}, {Size: smallSize, Controller: "sata", Datastore: "ds2"}}}}}
}

// populate gives the disks of twoDisks content: runs of data between holes, across the borders of parts.
func populate(r *rig) {
	rng := seeded(1)
	for _, off := range []int64{0, 300 << 20, 1<<30 - 1<<20, bigSize - 2<<20} {
		p := make([]byte, 2<<20)
		fill(rng, p)
		r.guest("web", bigKey, p, off)
	}
	p := make([]byte, smallSize)
	fill(rng, p[:8<<20])
	r.guest("web", smallKey, p, 0)
}

// blocks is blocksOf for a disk of a machine as its guest sees it.
func (r *rig) blocks(machine string, key int32, size int64) [sha256.Size]byte {
	r.t.Helper()
	return blocksOf(r.t, liveDisk{r.lab.Machine(machine), key}, size)
}

type liveDisk struct {
	vm  *lab.VM
	key int32
}

func (d liveDisk) ReadAt(p []byte, off int64) (int, error) { return len(p), d.vm.Read(d.key, p, off) }

// blocksOf says as much of a large sparse content as its hash does, for less: the hash of its length and of the blocks
// that are not zero, each after its offset.
func blocksOf(t *testing.T, content io.ReaderAt, size int64) (s [sha256.Size]byte) {
	t.Helper()
	h := sha256.New()
	buf, zero, at := make([]byte, 1<<20), make([]byte, 1), make([]byte, 8)
	for off := int64(0); off < size; off += int64(len(buf)) {
		p := buf[:min(int64(len(buf)), size-off)]
		if _, err := content.ReadAt(p, off); err != nil {
			t.Fatal(err)
		}
		if bytes.Count(p, zero) < len(p) { // to the race detector this is cheaper by far than bytes.Equal
			binary.LittleEndian.PutUint64(at, uint64(off))
			_, _ = h.Write(at) // never fails
			_, _ = h.Write(p)
		}
	}
	binary.LittleEndian.PutUint64(at, uint64(size))
	_, _ = h.Write(at)
	h.Sum(s[:0])
	return s
}

func TestMachineIsBackedUpAndRestoredByteForByte(t *testing.T) {
	r := newRig(t, twoDisks())
	populate(r)
	first := r.backup("web", nil)
	r.noTraces("web")
	if d := r.disk(first, "scsi0-0"); d.Incremental || d.Reason != "no previous point" || d.Read > 12<<20 {
		t.Errorf("the first point read %d bytes of the sparse disk, incremental %v, reason %q", d.Read, d.Incremental, d.Reason)
	}
	wantBig, wantSmall := r.blocks("web", bigKey, bigSize), r.blocks("web", smallKey, smallSize)

	r.scribble(seeded(2), "web", bigKey, bigSize, 20, 200<<10)
	second := r.backup("web", nil)
	if d := r.disk(second, "scsi0-0"); !d.Incremental || d.Reason != "change tracking" || d.Read > d.Changed {
		t.Errorf("the second point read %d bytes for %d changed, incremental %v, reason %q", d.Read, d.Changed, d.Incremental, d.Reason)
	}
	if d := r.disk(second, "sata0-0"); !d.Incremental || d.Read != 0 {
		t.Errorf("the unchanged disk was read: %d bytes, incremental %v, reason %q", d.Read, d.Incremental, d.Reason)
	}

	report, err := r.Restore(t.Context(), plugin.RestoreRequest{Point: "latest", Machine: "web", Mode: plugin.RestoreNew,
		Target: plugin.Target{Name: "web2"}, Verify: true}, r.note)
	r.must(err)
	if len(report.Disks) != 2 || !report.Disks[0].Verified {
		t.Errorf("restore reports %+v", report.Disks)
	}
	for key, size := range map[int32]int64{bigKey: bigSize, smallKey: smallSize} {
		if r.blocks("web2", key, size) != r.blocks("web", key, size) {
			t.Errorf("disk %d of the new machine differs", key)
		}
	}
	r.noTraces("web", "web2")

	dir := t.TempDir()
	_, err = r.Restore(t.Context(), plugin.RestoreRequest{Point: first.ID, Mode: plugin.RestoreDirectory, Directory: dir, Format: plugin.FormatRaw, Sparse: true}, r.note)
	r.must(err)
	for name, want := range map[string][32]byte{"scsi0-0.raw": wantBig, "sata0-0.raw": wantSmall} {
		f, err := os.Open(filepath.Join(dir, "web", name))
		r.must(err)
		defer f.Close()
		st, err := f.Stat()
		r.must(err)
		if blocksOf(t, f, st.Size()) != want {
			t.Errorf("%s of the first point differs from the disk at that time", name)
		}
	}
}
