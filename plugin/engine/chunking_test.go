package engine_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/repo/restic"
	"github.com/vmkeep/vmkeep/vsphere/lab"
)

// cutBy configures the rule to cut by; empty: none.
func (r *rig) cutBy(rule string) {
	r.t.Helper()
	c := r.inForce
	c.Repository.Chunking = rule
	r.must(r.Configure(r.t.Context(), c))
}

// chunkLengths are the lengths of the chunks that the first part of a disk is cut into, and how many of them are restic's zero chunk.
func (r *rig) chunkLengths(p plugin.Point, disk string) (lengths []int, zeros int) {
	r.t.Helper()
	rp := r.openRepository()
	defer rp.Close()
	parts, err := rp.LoadTree(r.t.Context(), r.diskTree(p, disk))
	r.must(err)
	part, err := rp.LoadTree(r.t.Context(), *parts.Nodes[0].Subtree)
	r.must(err)
	for _, id := range part.Nodes[0].Content {
		n, _, err := rp.BlobSize(r.t.Context(), restic.BlobHandle{Type: restic.DataBlob, ID: id})
		r.must(err)
		lengths = append(lengths, n)
		if id == restic.ZeroChunk() {
			zeros++
		}
	}
	return lengths, zeros
}

// Under every rule an incremental point is the point that a full read gives, restic checks and reads it, and it restores.
func TestEveryChunkingIsExact(t *testing.T) {
	type lengths struct{ least, most int }
	for rule, want := range map[string]lengths{"restic": {512 << 10, 8 << 20}, "restic/2": {256 << 10, 4 << 20}, "restic/4": {128 << 10, 2 << 20}, "fixed": {512 << 10, 512 << 10}} {
		t.Run(strings.ReplaceAll(rule, "/", " by "), func(t *testing.T) {
			r := newRig(t, oneDisk())
			r.cutBy(rule)
			rng := seeded(31)
			r.scribble(rng, "db", bigKey, mediumSize, 12, 3<<20)
			r.backup("db", nil)
			var point plugin.Point
			for round := range 4 {
				switch round {
				case 0:
					r.scribble(rng, "db", bigKey, mediumSize, 9, 64<<10)
				case 1:
					r.scribble(rng, "db", bigKey, mediumSize, 2, 3<<20)
				case 2: // a hole is punched, as zeros, and some are too short to be a chunk of zeros
					r.guest("db", bigKey, make([]byte, 6<<20), rng.Int64N(mediumSize-6<<20)&^511)
					r.guest("db", bigKey, make([]byte, 200<<10), rng.Int64N(mediumSize-6<<20)&^511)
				case 3: // one sector
					r.scribble(rng, "db", bigKey, mediumSize, 1, 512)
				}
				point = r.backup("db", nil)
				if d := r.disk(point, "scsi0-0"); !d.Incremental || point.Chunking != rule {
					t.Fatalf("round %d: incremental %v, %q, cut by %q", round, d.Incremental, d.Reason, point.Chunking)
				}
				full := r.backup("db", func(b *plugin.BackupRequest) { b.Full = true })
				if r.diskTree(point, "scsi0-0") != r.diskTree(full, "scsi0-0") {
					t.Fatalf("round %d: the incremental point differs from a full read", round)
				}
			}
			chunks, zeros := r.chunkLengths(point, "scsi0-0")
			least, most := slices.Min(chunks[:len(chunks)-1]), slices.Max(chunks)
			if least < want.least || least >= 2*want.least || most > want.most || zeros < 10 {
				t.Errorf("%d chunks of %d to %d bytes, %d zero chunks", len(chunks), least, most, zeros)
			}

			live := r.sum("db", bigKey, mediumSize)
			r.restic().Run("check", "--read-data")
			if r.dumped(point, "/db/scsi0-0/0000/flat.vmdk") != live {
				t.Error("restic dump gives other bytes than the disk has")
			}
			dir := t.TempDir()
			_, err := r.Restore(t.Context(), plugin.RestoreRequest{Point: point.ID, Mode: plugin.RestoreDirectory, Directory: dir, Format: plugin.FormatRaw}, nil)
			r.must(err)
			if r.fileSum(filepath.Join(dir, "db", "scsi0-0.raw")) != live {
				t.Error("the restored disk differs")
			}
		})
	}
}

// Another rule costs each machine one full read, which says so, and then incrementals are what they were. Whoever has no
// rule configured goes by the newest point, whichever machine it is of.
func TestChangedChunkingReadsInFullOnce(t *testing.T) {
	r := newRig(t, lab.Options{Machines: []lab.Machine{{Name: "db", Disks: []lab.Disk{{Size: littleSize}}}, {Name: "web", Disks: []lab.Disk{{Size: littleSize}}}}})
	rng := seeded(32)
	expect := func(machine, rule, reason string) {
		t.Helper()
		r.busy(rng, machine)
		r.events = nil
		p := r.point(machine)
		d := r.disk(p, "scsi0-0")
		if d.Reason != reason || d.Incremental != (reason == "change tracking") || p.Chunking != rule {
			t.Errorf("%s: %q, incremental %v, cut by %q, want %q, %q", machine, d.Reason, d.Incremental, p.Chunking, reason, rule)
		}
		told := slices.ContainsFunc(r.events, func(ev plugin.Event) bool {
			return ev.Diagnostic != nil && strings.Contains(ev.Diagnostic.Summary, "cut by another rule") && strings.HasSuffix(ev.Diagnostic.Detail, "-> "+rule)
		})
		if told != (reason == "chunking changed") {
			t.Errorf("%s, %s: the host was told %v", machine, reason, told)
		}
		full := r.backup(machine, func(b *plugin.BackupRequest) { b.Full = true })
		if r.diskTree(p, "scsi0-0") != r.diskTree(full, "scsi0-0") {
			t.Errorf("%s, %s: the point differs from a full read", machine, reason)
		}
	}
	expect("db", "restic", "no previous point")
	expect("web", "restic", "no previous point")
	r.cutBy("restic/4")
	expect("db", "restic/4", "chunking changed")
	expect("db", "restic/4", "change tracking")
	r.cutBy("")
	expect("web", "restic/4", "chunking changed")
	expect("web", "restic/4", "change tracking")
	expect("db", "restic/4", "change tracking")
	r.cutBy("restic")
	expect("db", "restic", "chunking changed")
	expect("db", "restic", "change tracking")

	points, err := r.Points(t.Context(), plugin.PointFilter{Details: true})
	r.must(err)
	var rules []string
	for _, p := range points {
		rules = append(rules, p.Chunking)
	}
	if got := strings.Join(slices.Compact(rules), " "); got != "restic restic/4 restic" {
		t.Errorf("points are cut by %s", got)
	}
	c := r.inForce
	c.Repository.Chunking = "rabin"
	failsWith(t, r.Configure(t.Context(), c), plugin.CodeInvalid, "rabin")
}

// A point that cannot be read does not tell how it was cut: the one before it does.
func TestChunkingOfTheNewestPointThatCanBeRead(t *testing.T) {
	r := newRig(t, lab.Options{Machines: []lab.Machine{{Name: "db", Disks: []lab.Disk{{Size: littleSize}}}, {Name: "web", Disks: []lab.Disk{{Size: littleSize}}}}})
	r.cutBy("fixed")
	r.backup("web", nil)
	before := r.packs()
	r.cutBy("restic/2")
	r.backup("db", nil)
	for name := range r.packs() {
		if _, old := before[name]; !old {
			r.must(os.Remove(name))
		}
	}
	r.cutBy("")
	p := r.backup("db", nil)
	if d := r.disk(p, "scsi0-0"); p.Chunking != "fixed" || d.Reason != "previous point is damaged" {
		t.Errorf("cut by %q, %q", p.Chunking, d.Reason)
	}
}

// packs are the packs of the repository, by path, with their sizes.
func (r *rig) packs() map[string]int64 {
	r.t.Helper()
	names, err := filepath.Glob(filepath.Join(r.config.Repository.Location, "data", "*", "*"))
	r.must(err)
	out := map[string]int64{}
	for _, name := range names {
		info, err := os.Stat(name)
		r.must(err)
		out[name] = info.Size()
	}
	return out
}

// What keeps a repository and what goes back to a point do not care how it was cut.
func TestCareUnderEveryChunking(t *testing.T) {
	for _, rule := range []string{"restic/4", "fixed"} {
		t.Run(strings.ReplaceAll(rule, "/", " by "), func(t *testing.T) {
			r := newRig(t, littleDisks())
			r.cutBy(rule)
			r.scribble(seeded(33), "db", firstKey, littleSize, 3, 3<<20)
			old, want := r.point("db"), r.contents("db")
			r.busy(seeded(34), "db")
			r.point("db")
			if res := r.audit("db", 1); len(res.Different) != 0 {
				t.Errorf("the audit finds differences: %+v", res)
			}
			_, err := r.Restore(t.Context(), plugin.RestoreRequest{Point: old.ID, Mode: plugin.RestoreRollback, PowerOff: true, Verify: true}, r.note)
			r.must(err)
			for uuid, sum := range r.contents("db") {
				if want[uuid] != sum {
					t.Errorf("disk %s is not what the point says", uuid)
				}
			}

			packs := r.packs()
			largest := ""
			for name, size := range packs {
				if size > packs[largest] {
					largest = name
				}
			}
			r.must(os.Remove(largest))
			report, err := r.Check(t.Context(), plugin.CheckRequest{}, nil)
			r.must(err)
			if len(report.Errors) == 0 {
				t.Fatal("the check does not miss a pack")
			}
			_, err = r.RepairIndex(t.Context(), plugin.RepairIndexRequest{}, nil)
			r.must(err)
			repaired, err := r.RepairPoints(t.Context(), plugin.RepairPointsRequest{Forget: true}, nil)
			r.must(err)
			if len(repaired.Points) == 0 || len(repaired.Points[0].Damage) == 0 {
				t.Fatalf("repaired: %+v", repaired)
			}
			r.must(r.lab.Machine("db").PowerOn())
			p := r.point("db")
			if d := r.disk(p, "scsi0-0"); p.Chunking != rule || d.Reason != "previous point was repaired" {
				t.Errorf("after the repair: cut by %q, %q", p.Chunking, d.Reason)
			}
			_, err = r.Prune(t.Context(), plugin.PruneRequest{}, nil)
			r.must(err)
			r.restic().Run("check", "--read-data")
		})
	}
}
