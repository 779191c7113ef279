package engine_test

import (
	"testing"

	"github.com/vmkeep/vmkeep/plugin"
)

// Eight weeks of a full read and six increments, with old points forgotten and their space freed between: every kept
// point restores, and increments go on from points whose elders are gone.
func TestWeeklyCycleWithForgetAndPrune(t *testing.T) {
	r := newRig(t, littleDisks())
	h := newHistory(r)
	rng := seeded(91)
	for week := range 8 {
		for day := range 7 {
			r.busy(rng, "db")
			p := r.backup("db", func(b *plugin.BackupRequest) { b.Full = day == 0 })
			h.learn()
			for _, d := range p.Disks {
				if d.Incremental != (day > 0) {
					t.Errorf("week %d, day %d: disk %s: incremental %v, %s", week, day, d.Name, d.Incremental, d.Reason)
				}
			}
		}
		forgotten, err := r.Forget(t.Context(), plugin.ForgetRequest{Machines: []string{"db"}, Last: 4 + week})
		r.must(err)
		if len(forgotten.Keep) != 4+week || len(forgotten.Remove) == 0 {
			t.Errorf("week %d: %d points kept, %d forgotten", week, len(forgotten.Keep), len(forgotten.Remove))
		}
		for _, p := range forgotten.Remove {
			delete(h.want, p.ID)
		}
		pruned, err := r.Prune(t.Context(), plugin.PruneRequest{MaxUnused: "0"}, nil)
		r.must(err)
		if pruned.BytesFreed == 0 {
			t.Errorf("week %d: nothing was freed", week)
		}
		h.check()
	}
	report, err := r.Check(t.Context(), plugin.CheckRequest{ReadData: true}, nil)
	r.must(err)
	if len(report.Errors) > 0 {
		t.Errorf("the repository is damaged: %+v", report.Errors)
	}
	r.noTraces("db")
}
