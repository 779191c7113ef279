package repo

import (
	"context"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/backend/backendtest"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// keeper is a store that does not delete some files.
type keeper struct {
	*backendtest.Memory
	keeps func(backend.Handle) bool
	until time.Time // told if asked, unless zero
}

func (k *keeper) Remove(ctx context.Context, h backend.Handle) error {
	if k.keeps(h) {
		return fmt.Errorf("%s: %w", h, backend.ErrReadOnly)
	}
	return k.Memory.Remove(ctx, h)
}

func (k *keeper) Retained(ctx context.Context, h backend.Handle) (time.Time, error) {
	if !k.until.IsZero() && k.keeps(h) {
		return k.until, nil
	}
	return k.Memory.Retained(ctx, h)
}

// prunable makes a store with a snapshot, what a forgotten one left, and a pack in no index.
func prunable(t *testing.T) (mem *backendtest.Memory, s *restic.Snapshot, files map[string][]byte) {
	t.Helper()
	mem = backendtest.NewMemory()
	r := create(t, mem)
	r.packSize = minPackSize
	base := noise(1, 6e6)
	first, err := commitFiles(t.Context(), r, "vm", map[string][]byte{"a": base, "b": noise(2, 6e6)})
	if err != nil {
		t.Fatal(err)
	}
	files = map[string][]byte{"a": changed(base, 2, 9)}
	if s, err = commitFiles(t.Context(), r, "vm", files); err != nil {
		t.Fatal(err)
	}
	if err := r.ForgetSnapshots(t.Context(), []restic.ID{first.ID}); err != nil {
		t.Fatal(err)
	}
	orphan := noise(5, 1000)
	if err := mem.Save(t.Context(), backend.Handle{Type: restic.PackFile, Name: restic.Hash(orphan).String()}, orphan); err != nil {
		t.Fatal(err)
	}
	return mem, s, files
}

func stored(mem *backendtest.Memory) (bytes int64) {
	for _, h := range mem.Handles() {
		bytes += int64(len(mem.Bytes(h)))
	}
	return bytes
}

func TestPruneDoesNothingThatTheStoreWouldNotLetItFinish(t *testing.T) {
	mem, s, files := prunable(t)
	there := make(map[backend.Handle]bool)
	for _, h := range mem.Handles() {
		there[h] = true
	}
	later := time.Now().Add(24 * time.Hour)
	for what, k := range map[string]keeper{
		"append-only":           {keeps: func(h backend.Handle) bool { return h.Type != restic.LockFile }},
		"retains everything":    {keeps: func(h backend.Handle) bool { return there[h] }, until: later},
		"retains index files":   {keeps: func(h backend.Handle) bool { return there[h] && h.Type == restic.IndexFile }, until: later},
		"retains packs":         {keeps: func(h backend.Handle) bool { return there[h] && h.Type == restic.PackFile }, until: later},
		"holds without an end":  {keeps: func(h backend.Handle) bool { return there[h] }, until: backend.Forever()},
		"deletes no index file": {keeps: func(h backend.Handle) bool { return h.Type == restic.IndexFile }},
	} {
		k.Memory = mem.Clone()
		r := reopen(t, &k)
		o := PruneOptions{MaxUnused: Unused{None: true}}
		orphanGoes := what == "retains index files" // for no index names it
		want := stored(k.Memory)
		if orphanGoes {
			want -= 1000
		}
		for i := range 3 {
			o.DryRun = true
			plan, err := r.Prune(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			o.DryRun = false
			before := stored(k.Memory)
			report, err := r.Prune(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(plan, report) {
				t.Errorf("%s: the plan says %+v, the prune %+v", what, plan, report)
			}
			if after := stored(k.Memory); after != want || before-after != report.FreedBytes {
				t.Errorf("%s: prune %d leaves %d bytes of %d, and says it freed %d", what, i, after, before, report.FreedBytes)
			}
			if report.HeldPacks == 0 || report.HeldBytes < 5e6 || !report.HeldUntil.Equal(k.until) || len(report.Refused) != 0 || report.RepackPacks+report.RemovePacks != 0 {
				t.Errorf("%s: %+v", what, report)
			}
		}
		// When the retention is over, a later prune does it.
		r = reopen(t, k.Memory)
		before := stored(k.Memory)
		report, err := r.Prune(t.Context(), o)
		if err != nil || report.HeldPacks != 0 || !report.HeldUntil.IsZero() || report.FreedBytes < 5e6 || before-stored(k.Memory) < 5e6 {
			t.Errorf("%s: later: %+v, %v", what, report, err)
		}
		if last := wantClean(t, r); last.UnusedBytes != 0 {
			t.Errorf("%s: %d bytes are unused", what, last.UnusedBytes)
		}
		wantFiles(t, r, s, files)
	}
}

func TestStoresThatRefuseDeletionAreSpared(t *testing.T) {
	mem, s, files := prunable(t)
	for _, kind := range []restic.FileType{restic.IndexFile, restic.PackFile} {
		for _, drop := range []bool{false, true} { // whether something must be moved
			k := keeper{Memory: mem.Clone()}
			there := make(map[backend.Handle]bool)
			for _, h := range mem.Handles() {
				there[h] = h.Type == kind
			}
			k.keeps = func(h backend.Handle) bool { return there[h] }
			r := reopen(t, &k)
			packs := func() (n int64) {
				for _, h := range k.Handles() {
					if h.Type == restic.PackFile {
						n += int64(len(k.Bytes(h)))
					}
				}
				return n
			}
			before := packs()
			report, err := r.Prune(t.Context(), PruneOptions{MaxUnused: Unused{Unlimited: !drop, None: drop}})
			if err != nil {
				t.Fatal(err)
			}
			if len(report.Refused) == 0 || !strings.HasPrefix(report.Refused[0], string(kind)) {
				t.Errorf("refused: %q", report.Refused)
			}
			// The headers of packs are not planned to the byte.
			if grown := packs() - before; max(grown+report.FreedBytes, -grown-report.FreedBytes) > 10_000 {
				t.Errorf("%s refused: the packs grew by %d bytes, the report says %d", kind, grown, -report.FreedBytes)
			}
			wantNoErrors(t, r)
			wantFiles(t, r, s, files)
			r = reopen(t, k.Memory)
			if report, err := r.Prune(t.Context(), PruneOptions{MaxUnused: Unused{None: true}}); err != nil || len(report.Refused) != 0 {
				t.Errorf("%+v, %v", report, err)
			}
			if last := wantClean(t, r); last.UnusedBytes != 0 {
				t.Errorf("%d bytes are unused", last.UnusedBytes)
			}
		}
	}
}
