package vsphere

import (
	"context"
	"errors"
	"testing"

	"github.com/vmkeep/vmkeep/vsphere/lab"
)

// What VMware's library left attached stays in the journal until the library has detached it.
func TestLibraryOfADeadOperationIsSeenTo(t *testing.T) {
	w := start(t, lab.Options{Machines: []lab.Machine{{Name: "web"}}})
	op, err := w.j.Begin("dead", "")
	must(t, err)
	v := w.find("web")
	_, err = v.AnnounceLibrary(op)
	must(t, err)
	if err := op.End(); !errors.Is(err, ErrLeftover) {
		t.Errorf("an operation that may have left something ends with %v", err)
	}
	why := errors.New("why")
	answers := func(err error) func(context.Context, string) error {
		return func(_ context.Context, id string) error {
			if id != v.ID() {
				t.Errorf("asked for %s, not %s", id, v.ID())
			}
			return err
		}
	}
	for _, c := range []struct {
		name                 string
		library              func(context.Context, string) error
		undone, kept, failed int
	}{
		{"no library", nil, 0, 0, 1},
		{"it fails", answers(why), 0, 0, 1},
		{"another process", answers(&Error{Kind: ErrLive}), 0, 1, 0},
		{"detached", answers(nil), 1, 0, 0},
		{"afterwards", answers(why), 0, 0, 0},
	} {
		report, err := w.c.Recover(w.ctx, w.j, RecoverOptions{Library: c.library})
		if err != nil || len(report.Undone) != c.undone || len(report.Kept) != c.kept || len(report.Failed) != c.failed {
			t.Errorf("%s: %+v, %v", c.name, report, err)
		}
	}
	op, err = w.j.Begin("alive", "")
	must(t, err)
	undone, err := v.AnnounceLibrary(op)
	must(t, err)
	must(t, undone())
	must(t, op.End())
}
