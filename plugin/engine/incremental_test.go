package engine_test

import (
	"math/rand/v2"
	"testing"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/repo/restic"
	"github.com/vmkeep/vmkeep/vsphere/lab"
)

const mediumSize = 48 << 20

// oneDisk is a vSphere with one machine with one disk.
func oneDisk() lab.Options {
	return lab.Options{Machines: []lab.Machine{{Name: "db", Disks: []lab.Disk{{Size: mediumSize}}}}}
}

// diskTree is the tree of a disk of a point: its ID says everything about the disk's bytes and chunks.
func (r *rig) diskTree(p plugin.Point, disk string) restic.ID {
	r.t.Helper()
	rp := r.openRepository()
	defer rp.Close()
	s, err := rp.LoadSnapshot(r.t.Context(), p.ID)
	r.must(err)
	id := *s.Tree
	for _, name := range []string{p.Machine, disk} {
		tree, err := rp.LoadTree(r.t.Context(), id)
		r.must(err)
		n := tree.Find(name)
		if n == nil || n.Subtree == nil {
			r.t.Fatalf("point %s has no directory %s", p.ID, name)
		}
		id = *n.Subtree
	}
	return id
}

// After any guest writes an incremental point is, chunk for chunk, the point that reading everything gives, and reads
// no more from vSphere than what the guest touched, in blocks of 64 KiB: by what the engine says and, over NFC, by what
// the host served.
func TestIncrementalEqualsFull(t *testing.T) {
	r := newRig(t, oneDisk())
	rng := seeded(7)
	r.scribble(rng, "db", bigKey, mediumSize, 20, 2<<20)
	r.backup("db", nil)
	r.touched("db", bigKey, mediumSize)
	nfc := r.at.transport == "nbd" || r.at.transport == "nbdssl"
	for round := range 8 {
		switch round % 4 {
		case 0:
			r.scribble(rng, "db", bigKey, mediumSize, 1+rng.IntN(20), 64<<10)
		case 1:
			r.scribble(rng, "db", bigKey, mediumSize, 3, 3<<20)
		case 2: // one sector
			r.scribble(rng, "db", bigKey, mediumSize, 1, 512)
		case 3: // a hole is punched, as zeros
			r.guest("db", bigKey, make([]byte, 6<<20), rng.Int64N(mediumSize-6<<20)&^511)
		}
		touched, before := r.touched("db", bigKey, mediumSize), r.hostRead()
		point := r.backup("db", nil)
		served := r.hostRead() - before
		d := r.disk(point, "scsi0-0")
		if !d.Incremental {
			t.Fatalf("round %d: read in full: %s", round, d.Reason)
		}
		if d.Read > touched || served > touched || nfc && served != d.Read {
			t.Errorf("round %d: %d bytes read, %d served by the host, %d touched by the guest", round, d.Read, served, touched)
		}
		full := r.backup("db", func(b *plugin.BackupRequest) { b.Full = true })
		if f := r.disk(full, "scsi0-0"); f.Incremental || f.Reason != "full requested" {
			t.Errorf("round %d: the full point says incremental %v, %q", round, f.Incremental, f.Reason)
		}
		if r.diskTree(point, "scsi0-0") != r.diskTree(full, "scsi0-0") {
			t.Fatalf("round %d: the incremental point differs from a full read", round)
		}
	}
	r.noTraces("db")
}

func TestNothingChangedReadsNothing(t *testing.T) {
	r := newRig(t, oneDisk())
	r.scribble(rand.New(rand.NewPCG(3, 3)), "db", bigKey, mediumSize, 10, 1<<20)
	first := r.backup("db", nil)
	second := r.backup("db", nil)
	if d := r.disk(second, "scsi0-0"); d.Read != 0 || d.Changed != 0 || !d.Incremental {
		t.Errorf("a second backup read %d bytes, %d changed, incremental %v", d.Read, d.Changed, d.Incremental)
	}
	if r.diskTree(first, "scsi0-0") != r.diskTree(second, "scsi0-0") {
		t.Error("the disk's tree changed though the disk did not")
	}
	if second.Stats.Stored > 64<<10 {
		t.Errorf("a point of nothing new added %d bytes to the repository", second.Stats.Stored)
	}
}
