package repo

import (
	"bytes"
	"errors"
	"testing"

	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/backend/backendtest"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// A store that cannot be written is read without locks, and what would write fails before it asks the store.
func TestWithoutLocksARepositoryIsRead(t *testing.T) {
	be := backendtest.NewMemory()
	ids, _ := listed(t, create(t, be), func(c *Content) error { return c.Append(noise(1, 100_000)) })
	sealed := backendtest.Inject(be, backendtest.On(backendtest.FailAlways(backend.ErrPermanent), backendtest.Is(backendtest.Save, backendtest.Remove)))

	if err := reopen(t, sealed).WithLock(t.Context(), Shared, nothing); !errors.Is(err, ErrCannotLock) {
		t.Errorf("with locks: %v", err)
	}

	tried := sealed.Count(backendtest.Is(backendtest.Save, backendtest.Remove))
	r, err := Open(t.Context(), sealed, OpenOptions{Password: password, NoLock: true})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	report, err := r.Check(t.Context(), CheckOptions{ReadData: ReadData{All: true}})
	if err != nil || !report.OK() {
		t.Errorf("check: %+v, %v", report, err)
	}
	var got []byte
	err = r.Fetch(t.Context(), ids, func(_ int, data []byte) error { got = bytes.Clone(data); return nil })
	if err != nil || !bytes.Equal(got, noise(1, 100_000)) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if _, err := r.Stats(t.Context()); err != nil {
		t.Errorf("stats: %v", err)
	}
	_, prune := r.Prune(t.Context(), PruneOptions{})
	_, unlock := r.UnlockAll(t.Context())
	for what, err := range map[string]error{
		"commit": storeOne(t.Context(), r), "prune": prune, "remove a lock": r.removeLock(t.Context(), restic.ID{}), "an exclusive lock": r.WithLock(t.Context(), Exclusive, nothing),
	} {
		if !errors.Is(err, ErrNoLock) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if unlock != nil { // there are none
		t.Errorf("unlock: %v", unlock)
	}
	if n := sealed.Count(backendtest.Is(backendtest.Save, backendtest.Remove)); n != tried {
		t.Errorf("the store was asked to change %d times", n-tried)
	}
}
