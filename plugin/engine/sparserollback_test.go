package engine_test

import (
	"bytes"
	"testing"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/vsphere/lab"
)

// Of a disk of which 1 % changed, in blocks all over it, a rollback writes at most 2 %, whether change tracking tells
// where or the content does. The disk has 8 GiB, with VMKEEP_FAULTS=all 100 GiB.
func TestRollbackOfALargeDiskWritesLittle(t *testing.T) {
	const block = int64(64 << 10)
	size := int64(8 << 30)
	if exhaustive() {
		size = 100 << 30
	}
	blocks := size / 100 / block
	r := newRig(t, lab.Options{Machines: []lab.Machine{{Name: "db", Disks: []lab.Disk{{Size: size}}}}})
	rng := seeded(401)
	was := map[int64][]byte{} // what is not zeros, by offset
	for range 500 {
		p := make([]byte, block)
		fill(rng, p)
		off := rng.Int64N(size/block) * block
		r.guest("db", bigKey, p, off)
		was[off] = p
	}
	point := r.backup("db", nil)
	noise := make([]byte, block)
	for _, verify := range []bool{false, true} {
		fill(rng, noise)
		var changed []int64
		for n := range blocks {
			off := (n*100 + rng.Int64N(100)) * block // one block of each hundred
			noise[0] = byte(n)
			r.guest("db", bigKey, noise, off)
			changed = append(changed, off)
		}
		for off := range was { // neighbours of zeros and of data alike
			changed = append(changed, off)
		}
		report, err := r.Restore(t.Context(), plugin.RestoreRequest{Point: point.ID, Mode: plugin.RestoreRollback, PowerOff: true, PowerOn: true, Verify: verify}, r.note)
		r.must(err)
		d := report.Disks[0]
		t.Logf("%s: wrote %d MiB of %d MiB that changed, read %d MiB", d.Reason, d.Written>>20, (blocks*block)>>20, report.Stats.Read>>20)
		if d.Written < blocks*block || d.Written > size/50 {
			t.Errorf("%s: %d bytes were written, %d had changed", d.Reason, d.Written, blocks*block)
		}
		if want := map[bool]string{false: "change tracking", true: "compared by content: verification was asked for"}[verify]; d.Reason != want || d.Verified != verify {
			t.Errorf("rollback went by %q, verified %v", d.Reason, d.Verified)
		}
		got, zero := make([]byte, block), make([]byte, block)
		for _, off := range changed {
			want := was[off]
			if want == nil {
				want = zero
			}
			r.must(r.lab.Machine("db").Read(bigKey, got, off))
			if !bytes.Equal(got, want) {
				t.Fatalf("%s: the disk differs at %d", d.Reason, off)
			}
		}
	}
}

// Sectors decide: of a chunk that differs in one sector, no more than that and its neighbourhood is written.
func TestRollbackByContentWritesSectors(t *testing.T) {
	r := newRig(t, oneDisk())
	p := make([]byte, mediumSize)
	fill(seeded(411), p)
	r.guest("db", bigKey, p, 0)
	point := r.backup("db", nil)
	const places = 40
	for n := range int64(places) {
		sector := make([]byte, 512)
		fill(seeded(uint64(n)), sector)
		r.guest("db", bigKey, sector, n*mediumSize/places/512*512)
	}
	report, err := r.Restore(t.Context(), plugin.RestoreRequest{Point: point.ID, Mode: plugin.RestoreRollback, PowerOff: true, Verify: true}, r.note)
	r.must(err)
	if !bytes.Equal(r.live("db", bigKey), p) {
		t.Error("the disk is not what the point says")
	}
	if n := report.Disks[0].Written; n != places*512 {
		t.Errorf("%d bytes were written for %d sectors that differ", n, places)
	}
}
