package engine_test

import (
	"testing"

	"github.com/vmware/govmomi/vim25/types"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/vsphere/lab"
)

// audit verifies one machine.
func (r *rig) audit(machine string, sample float64) plugin.VerifyResult {
	r.t.Helper()
	report, err := r.Verify(r.t.Context(), plugin.VerifyRequest{Selection: plugin.Selection{Names: []string{machine}}, Sample: sample}, r.note)
	r.must(err)
	if len(report.Machines) != 1 {
		r.t.Fatalf("%d machines were audited", len(report.Machines))
	}
	if res := report.Machines[0]; res.Err != nil {
		r.must(res.Err)
	}
	r.noTraces(machine)
	return report.Machines[0]
}

type twist = func(types.QueryChangedDiskAreas, *types.DiskChangeInfo) types.BaseMethodFault

// Change tracking that forgets changes makes wrong points and no error. The audit sees it, and the next backup heals it.
func TestLiesOfChangeTrackingAreFoundAndHealed(t *testing.T) {
	for _, c := range []struct {
		name   string
		lie    twist
		sample float64
	}{
		{"areas left out, everything audited", lab.DropAreas(2), 1},
		{"areas moved, everything audited", lab.ShiftAreas(64 << 10), 1},
		{"areas left out, samples audited", lab.DropAreas(1), 0.25},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, littleDisks())
			rng := seeded(61)
			r.scribble(rng, "db", 2000, littleSize, 6, 1<<20)
			r.point("db")
			if res := r.audit("db", c.sample); len(res.Different) != 0 {
				t.Fatalf("the audit of an honest machine: %+v", res)
			}
			for off := int64(0); off < littleSize; off += 1 << 20 { // areas of their own
				p := make([]byte, 64<<10)
				fill(rng, p)
				r.guest("db", 2000, p, off)
			}
			r.must(r.lab.Machine("db").SetFaults(lab.MachineFaults{Query: c.lie}))
			wrong := r.backup("db", nil)
			r.must(r.lab.Machine("db").SetFaults(lab.MachineFaults{}))
			d := r.disk(wrong, "scsi0-0")
			if !d.Incremental || r.pointContent(wrong, d) == r.sum("db", 2000, littleSize) {
				t.Fatalf("the lie had no effect: %+v", d)
			}

			res := r.audit("db", c.sample)
			for range 100 { // a sample may miss; another one hits sooner or later
				if len(res.Different) > 0 {
					break
				}
				res = r.audit("db", c.sample)
			}
			if len(res.Different) != 1 || res.Different[0].Disk != "scsi0-0" || len(res.Different[0].Ranges) == 0 || res.Compared == 0 {
				t.Fatalf("the audit says %+v", res)
			}
			healed := r.point("db")
			if d := r.disk(healed, "scsi0-0"); d.Incremental || d.Reason != "an audit found a difference" {
				t.Errorf("the backup after the audit: incremental %v, %q", d.Incremental, d.Reason)
			}
			if d := r.disk(healed, "scsi0-1"); !d.Incremental {
				t.Errorf("the other disk was read in full: %s", d.Reason)
			}
			if d := r.disk(r.point("db"), "scsi0-0"); !d.Incremental {
				t.Errorf("the note of the audit stays: %s", d.Reason)
			}
			if res := r.audit("db", 1); len(res.Different) != 0 {
				t.Errorf("after healing the audit says %+v", res)
			}
		})
	}
}

// Answers that contradict themselves are not believed; refusals mean a full read that says why.
func TestOddAnswersOfChangeTrackingAreNotBelieved(t *testing.T) {
	for _, c := range []struct {
		name   string
		odd    twist
		reason string
	}{
		{"lengths too short", lab.ShortLength(64 << 10), ""},
		{"query refused", lab.FailQuery("vim.hostd.vmsvc.cbt.cannotGetChanges"), "tracking restarted"},
		{"tracking is off, it says", lab.FailQuery("vim.hostd.vmsvc.cbt.noTrack"), "change tracking is off"},
		{"area outside of the disk", func(_ types.QueryChangedDiskAreas, i *types.DiskChangeInfo) types.BaseMethodFault {
			i.ChangedArea = append(i.ChangedArea, types.DiskChangeExtent{Start: littleSize, Length: 64 << 10})
			return nil
		}, "the answer contradicts itself"},
		{"answer of another offset", func(_ types.QueryChangedDiskAreas, i *types.DiskChangeInfo) types.BaseMethodFault {
			i.StartOffset += 64 << 10
			return nil
		}, "the answer contradicts itself"},
		{"no progress", func(_ types.QueryChangedDiskAreas, i *types.DiskChangeInfo) types.BaseMethodFault {
			i.Length = 0
			return nil
		}, "the answer contradicts itself"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, littleDisks())
			rng := seeded(67)
			r.busy(rng, "db")
			r.point("db")
			r.busy(rng, "db")
			r.must(r.lab.Machine("db").SetFaults(lab.MachineFaults{Query: c.odd}))
			d := r.disk(r.point("db"), "scsi0-0")
			if c.reason != "" && (d.Incremental || d.Reason != c.reason) {
				t.Errorf("incremental %v, %q, want %q", d.Incremental, d.Reason, c.reason)
			}
		})
	}
}

// Answers come in pages; all of them are read.
func TestEveryPageOfChangesIsRead(t *testing.T) {
	opt := littleDisks()
	opt.MaxAreas = 3
	r := newRig(t, opt)
	rng := seeded(71)
	r.busy(rng, "db")
	r.point("db")
	for off := int64(0); off < littleSize; off += 256 << 10 {
		p := make([]byte, 512)
		fill(rng, p)
		r.guest("db", 2000, p, off)
	}
	if d := r.disk(r.point("db"), "scsi0-0"); !d.Incremental || d.Changed != littleSize/4 {
		t.Errorf("incremental %v, %d bytes changed, want %d: %s", d.Incremental, d.Changed, littleSize/4, d.Reason)
	}
}
