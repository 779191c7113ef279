package engine_test

import (
	"path/filepath"
	"testing"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/vsphere/lab"
)

const (
	bigSize   = 1<<30 + 96<<20 // two parts, the second one short
	smallSize = 40 << 20
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
	for _, off := range []int64{0, 300 << 20, 1<<30 - 3<<20, bigSize - 5<<20} {
		p := make([]byte, 5<<20)
		fill(rng, p)
		r.guest("web", bigKey, p, off)
	}
	p := make([]byte, smallSize)
	fill(rng, p[:30<<20])
	r.guest("web", smallKey, p, 0)
}

func TestMachineIsBackedUpAndRestoredByteForByte(t *testing.T) {
	eachWay(t, twoDisks(), func(t *testing.T, r *rig) {
		populate(r)
		first := r.backup("web", nil)
		r.noTraces("web")
		if d := r.disk(first, "scsi0-0"); d.Incremental || d.Reason != "no previous point" || d.Read > 30<<20 {
			t.Errorf("the first point read %d bytes of the sparse disk, incremental %v, reason %q", d.Read, d.Incremental, d.Reason)
		}
		wantBig, wantSmall := r.sum("web", bigKey, bigSize), r.sum("web", smallKey, smallSize)

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
			if r.sum("web2", key, size) != r.sum("web", key, size) {
				t.Errorf("disk %d of the new machine differs", key)
			}
		}
		r.noTraces("web", "web2")

		dir := t.TempDir()
		_, err = r.Restore(t.Context(), plugin.RestoreRequest{Point: first.ID, Mode: plugin.RestoreDirectory, Directory: dir, Format: plugin.FormatRaw}, r.note)
		r.must(err)
		for name, want := range map[string][32]byte{"scsi0-0.raw": wantBig, "sata0-0.raw": wantSmall} {
			if r.fileSum(filepath.Join(dir, "web", name)) != want {
				t.Errorf("%s of the first point differs from the disk at that time", name)
			}
		}
	})
}
