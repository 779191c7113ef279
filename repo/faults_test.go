package repo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/backend/backendtest"
	"github.com/vmkeep/vmkeep/repo/backend/local"
	"github.com/vmkeep/vmkeep/repo/internal/index"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// A world is a store with two snapshots, and files for a third.
type world struct {
	be    *backendtest.Memory
	snaps []*restic.Snapshot
	files []map[string][]byte
	next  map[string][]byte
}

func newWorld(t *testing.T) *world {
	w := &world{be: backendtest.NewMemory()}
	r := create(t, w.be)
	r.packSize = worldPack
	base := noise(1, 200_000)
	for i := range 2 {
		files := map[string][]byte{"disk": append(noise(uint64(10+i), 40_000), base...), "small": noise(uint64(20+i), 3000)}
		s, err := commitFiles(t.Context(), r, "vm", files)
		if err != nil {
			t.Fatal(err)
		}
		w.snaps, w.files = append(w.snaps, s), append(w.files, files)
	}
	w.next = map[string][]byte{"disk": base, "new": noise(31, 150_000)}
	return w
}

// worldPack makes several packs of little data.
const worldPack = 48 << 10

// whole verifies that the snapshots still there are whole, those in must are there, and that check finds no error.
func (w *world) whole(t *testing.T, be backend.Backend, must ...*restic.Snapshot) {
	t.Helper()
	r, err := Open(t.Context(), be, OpenOptions{Password: password})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.UnlockAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	report, err := r.Check(t.Context(), CheckOptions{ReadData: ReadData{All: true}})
	if err != nil {
		t.Fatal(err)
	}
	if !report.OK() {
		t.Fatalf("check: %+v", report.Findings)
	}
	all, err := r.Snapshots(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	have := make(map[restic.ID]bool)
	for _, s := range all {
		have[s.ID] = true
		want := w.next
		for i, old := range w.snaps {
			if old.ID == s.ID {
				want = w.files[i]
			}
		}
		wantFiles(t, r, s, want)
	}
	for _, s := range must {
		if s != nil && !have[s.ID] {
			t.Fatalf("snapshot %s is gone", s.ID.Short())
		}
	}
}

// A way in which the n-th of the operations that matter to it goes wrong.
type way struct {
	fault   func(n int) backendtest.Fault
	matters func(backendtest.Op) bool
}

func whatever(backendtest.Op) bool { return true }

func tear(keep int) way {
	save := backendtest.Is(backendtest.Save)
	return way{func(n int) backendtest.Fault { return backendtest.On(backendtest.Tear(n, keep), save) }, save}
}

var waysToFail = map[string]way{
	"operation fails":            {backendtest.Fail, whatever},
	"operation loses its answer": {backendtest.LoseAnswer, whatever},
	"operation is a crash":       {backendtest.Crash, whatever},
	// Stores without atomic writes leave a beginning of the file that was being written.
	"write leaves a name":    tear(0),
	"write leaves 100 bytes": tear(100),
}

// mayFail reports whether it is no matter what becomes of an operation: only prune's question whether the store deletes at all, which
// is to delete what does not exist.
func (w *world) mayFail(op backendtest.Op) bool {
	return op.Verb == backendtest.Remove && op.Handle.Type != restic.LockFile && w.be.Bytes(op.Handle) == nil
}

// heal verifies that check names the file that op left half written, and nothing but it; then it does what check says. A lock, and a
// pack that no index names, need nothing.
func (w *world) heal(t *testing.T, be *backendtest.Memory, op backendtest.Op) {
	t.Helper()
	h := op.Handle
	if left := be.Bytes(h); op.Verb != backendtest.Save || left == nil || len(left) == op.Size || h.Type == restic.LockFile {
		return
	}
	r := reopen(t, be)
	if _, err := r.UnlockAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	report, err := r.Check(t.Context(), CheckOptions{ReadData: ReadData{All: true}})
	if err != nil {
		t.Fatal(err)
	}
	told := false
	for _, f := range report.Findings {
		told = true
		if f.Severity == Error && (f.File != h.String() || h.Type == restic.PackFile) {
			t.Fatalf("after %s was torn, check finds %+v", h, f)
		}
	}
	if !told {
		t.Fatalf("%s was torn, and check says nothing", h)
	}
	switch h.Type {
	case restic.IndexFile:
		if _, err := r.RepairIndex(t.Context(), RepairIndexOptions{}); err != nil {
			t.Fatal(err)
		}
	case restic.SnapshotFile:
		be.Replace(h, nil)
	}
}

// atEveryOperation runs do on copies of a world, with the n-th operation of the store going wrong, for all n, and judges what is left.
func atEveryOperation(t *testing.T, do func(ctx context.Context, w *world, r *Repository) error, judge func(t *testing.T, w *world, be backend.Backend, err error)) {
	for name, way := range waysToFail {
		t.Run("the n-th "+name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				attempt := func(faults ...backendtest.Fault) (*backendtest.Memory, []backendtest.Op, error) {
					be := w.be.Clone()
					f := backendtest.Inject(be, faults...)
					r, err := Open(t.Context(), f, OpenOptions{Password: password})
					if err == nil {
						r.packSize = worldPack
						err = do(t.Context(), w, r)
						_ = r.Close()
					}
					return be, slices.DeleteFunc(f.Ops(), func(op backendtest.Op) bool { return !way.matters(op) }), err
				}
				be, ops, err := attempt()
				if err != nil {
					t.Fatal(err)
				}
				judge(t, w, be, nil)
				n := len(ops)
				for i := 1; i <= n; i++ {
					be, ops, err := attempt(way.fault(i))
					if len(ops) < i {
						continue // concurrency made it shorter
					}
					if err == nil && !w.mayFail(ops[i-1]) {
						t.Errorf("operation %d of %d, %s, went wrong and nobody noticed", i, n, ops[i-1])
					}
					defer func() {
						if t.Failed() {
							t.Logf("that was after operation %d of %d, %s, with the error: %v", i, n, ops[i-1], err)
						}
					}()
					w.heal(t, be, ops[i-1])
					judge(t, w, be, err)
				}
			})
		})
	}
}

func TestCommitSurvivesAnyFault(t *testing.T) {
	commit := func(ctx context.Context, w *world, r *Repository) error {
		_, err := commitFiles(ctx, r, "vm", w.next)
		return err
	}
	atEveryOperation(t, commit, func(t *testing.T, w *world, be backend.Backend, err error) {
		w.whole(t, be, w.snaps...)
		r := reopen(t, be)
		if err == nil {
			if all, _ := r.Snapshots(t.Context()); len(all) != 3 {
				t.Fatalf("it succeeded, but there are %d snapshots", len(all))
			}
		}
		s, err := commitFiles(t.Context(), r, "vm", w.next)
		if err != nil {
			t.Fatalf("rerun: %v", err)
		}
		w.whole(t, be, append([]*restic.Snapshot{s}, w.snaps...)...)
	})
}

func TestForgetSurvivesAnyFault(t *testing.T) {
	forget := func(ctx context.Context, _ *world, r *Repository) error {
		_, err := r.Forget(ctx, ForgetOptions{Policy: restic.Policy{Last: 1}})
		return err
	}
	atEveryOperation(t, forget, func(t *testing.T, w *world, be backend.Backend, err error) {
		w.whole(t, be, w.snaps[1])
		r := reopen(t, be)
		if err := forget(t.Context(), w, r); err != nil {
			t.Fatalf("rerun: %v", err)
		}
		if all, err := r.Snapshots(t.Context()); err != nil || len(all) != 1 || all[0].ID != w.snaps[1].ID {
			t.Fatalf("%v, %v", all, err)
		}
	})
}

func TestPruneSurvivesAnyFault(t *testing.T) {
	prune := func(ctx context.Context, w *world, r *Repository) error {
		return r.WithLock(ctx, Exclusive, func(ctx context.Context) error {
			if err := r.ForgetSnapshots(ctx, []restic.ID{w.snaps[0].ID}); err != nil {
				return err
			}
			_, err := r.Prune(ctx, PruneOptions{MaxUnused: Unused{None: true}})
			return err
		})
	}
	atEveryOperation(t, prune, func(t *testing.T, w *world, be backend.Backend, err error) {
		w.whole(t, be, w.snaps[1])
		r := reopen(t, be)
		if err := prune(t.Context(), w, r); err != nil {
			t.Fatalf("rerun: %v", err)
		}
		w.whole(t, be, w.snaps[1])
		if plan, err := r.Prune(t.Context(), PruneOptions{DryRun: true, MaxUnused: Unused{None: true}}); err != nil || plan.FreedBytes != 0 {
			t.Fatalf("a rerun leaves %+v, %v", plan, err)
		}
	})
}

func TestAPackThatFailedLongAgoStillFailsTheCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		be := backendtest.NewMemory()
		create(t, be)
		fault := backendtest.On(backendtest.Fail(1), backendtest.Is(backendtest.Save), backendtest.OfType(restic.PackFile))
		r := reopen(t, backendtest.Inject(be, fault))
		r.packSize = worldPack
		s := r.start(t.Context(), index.New())
		defer s.stop()
		data := noise(1, 2*worldPack)
		if err := s.submit(&job{handle: restic.BlobHandle{ID: restic.Hash(data)}, data: data, stats: &counters{}}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // until the pack has failed and nobody knows it any more
		if err := s.flush(t.Context()); !errors.Is(err, backendtest.ErrInjected) {
			t.Errorf("flush: %v", err)
		}
	})
}

func TestACommitWaitsForWhatAnotherIsStoring(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		be := backendtest.NewMemory()
		r := create(t, be)
		s := r.start(t.Context(), index.New())
		defer s.stop()
		data := noise(1, 1000)
		h := restic.BlobHandle{ID: restic.Hash(data)}
		j := s.admit(h, len(data), &counters{}) // by one commit, which is slow
		if j == nil || s.admit(h, len(data), &counters{}) != nil {
			t.Fatal("the blob is not stored exactly once")
		}
		flushed := make(chan error, 1)
		go func() { flushed <- s.flush(t.Context()) }() // by another one, which counts on it
		synctest.Wait()
		select {
		case err := <-flushed:
			t.Fatalf("flushed without the blob: %v", err)
		default:
		}
		j.data = data
		if err := s.send(j); err != nil {
			t.Fatal(err)
		}
		if err := <-flushed; err != nil || len(s.index.Lookup(nil, h)) != 1 {
			t.Errorf("%v", err)
		}
	})
}

func TestWhatOthersPrunedIsStoredAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		be := backendtest.NewMemory()
		long := create(t, be) // open all the time
		files := map[string][]byte{"a": noise(1, 2e6)}
		s, err := commitFiles(t.Context(), long, "vm", files)
		if err != nil {
			t.Fatal(err)
		}
		wantFiles(t, long, s, files)
		other := reopen(t, be)
		keep := map[string][]byte{"b": noise(2, 1e6)}
		if _, err := commitFiles(t.Context(), other, "vm", keep); err != nil {
			t.Fatal(err)
		}
		if err := other.ForgetSnapshots(t.Context(), []restic.ID{s.ID}); err != nil {
			t.Fatal(err)
		}
		if _, err := other.Prune(t.Context(), PruneOptions{}); err != nil {
			t.Fatal(err)
		}
		again, err := commitFiles(t.Context(), long, "vm", files)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range []*Repository{long, other, reopen(t, be)} {
			wantFiles(t, r, again, files)
			wantNoErrors(t, r)
		}
	})
}

func TestARerunUsesWhatAFailedCommitStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		be := backendtest.NewMemory()
		r := create(t, be)
		files := map[string][]byte{"disk": noise(1, 6e6)}
		boom := errors.New("boom")
		_, err := r.Commit(t.Context(), func(ctx context.Context, w *Writer) (*restic.Snapshot, error) {
			_, err := w.SaveFile(files["disk"][:3e6])
			return nil, errors.Join(err, boom)
		})
		if !errors.Is(err, boom) {
			t.Fatal(err)
		}
		if all, err := r.Snapshots(t.Context()); err != nil || len(all) != 0 {
			t.Fatalf("%v, %v", all, err)
		}
		for _, r := range []*Repository{r, reopen(t, be)} {
			_, err = r.Commit(t.Context(), func(ctx context.Context, w *Writer) (*restic.Snapshot, error) {
				if _, err := w.SaveFile(files["disk"][:3e6]); err != nil {
					return nil, err
				}
				if st := w.Stats(); st.Added != 0 || st.Known != 3e6 {
					t.Errorf("a rerun stores again: %+v", st)
				}
				return nil, nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestCancelledCommitLeavesNothingRunning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // fails if a goroutine is left
		be := backendtest.NewMemory()
		r := create(t, be)
		cause := errors.New("user pressed ^C")
		ctx, cancel := context.WithCancelCause(t.Context())
		_, err := r.Commit(ctx, func(ctx context.Context, w *Writer) (*restic.Snapshot, error) {
			for i := uint64(0); ; i++ {
				if i == 5 {
					cancel(cause)
				}
				if err := w.Content().Append(noise(i, 1e6)); err != nil {
					return nil, err
				}
			}
		})
		if !errors.Is(err, cause) {
			t.Errorf("%v", err)
		}
		for _, h := range be.Handles() {
			if h.Type == restic.SnapshotFile || h.Type == restic.LockFile {
				t.Errorf("%s is left", h)
			}
		}
		wantNoErrors(t, reopen(t, be))
	})
}

func wantNoErrors(t *testing.T, r *Repository) {
	t.Helper()
	report, err := r.Check(t.Context(), CheckOptions{ReadData: ReadData{All: true}})
	if err != nil || !report.OK() {
		t.Fatalf("check: %+v, %v", report, err)
	}
}

func TestPanicInACommitUnlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		be := backendtest.NewMemory()
		r := create(t, be)
		func() {
			defer func() {
				if recover() == nil {
					t.Error("the panic was swallowed")
				}
			}()
			_, _ = r.Commit(t.Context(), func(context.Context, *Writer) (*restic.Snapshot, error) { panic("boom") })
		}()
		if locks, err := r.Locks(t.Context()); err != nil || len(locks) != 0 {
			t.Errorf("%v, %v", locks, err)
		}
		if _, err := commitFiles(t.Context(), r, "vm", map[string][]byte{"a": {1}}); err != nil {
			t.Error(err)
		}
	})
}

func TestEightWritersAtOnceLoseNothing(t *testing.T) {
	r, be, peer := onDisk(t)
	shared := noise(1, 4e6)
	filesOf := func(i int) map[string][]byte {
		return map[string][]byte{"shared": shared, "own": noise(uint64(100+i), 1_000_000)}
	}
	type result struct {
		host string
		s    *restic.Snapshot
		err  error
	}
	// Processes of their own: each has its own view of the repository.
	results := make(chan result)
	for i := range 8 {
		go func() {
			own, err := local.Open(be.Location(), 2)
			if err != nil {
				results <- result{err: err}
				return
			}
			r, err := Open(t.Context(), own, OpenOptions{Password: "correct horse battery staple"})
			if err != nil {
				results <- result{err: err}
				return
			}
			defer r.Close()
			host := fmt.Sprint("vm", i)
			s, err := commitFiles(t.Context(), r, host, filesOf(i))
			results <- result{host, s, err}
		}()
	}
	done := make(map[string]*restic.Snapshot)
	for range 8 {
		res := <-results
		if res.err != nil {
			t.Fatal(res.err)
		}
		done[res.host] = res.s
	}
	peer.Run("check", "--read-data")
	for i := range 8 {
		wantFiles(t, r, done[fmt.Sprint("vm", i)], filesOf(i))
	}
	// Eight commits of one process store what they share once.
	before := wantClean(t, r)
	fresh := noise(77, 4e6)
	for i := range 8 {
		go func() {
			host := fmt.Sprint("again", i)
			s, err := commitFiles(t.Context(), r, host, map[string][]byte{"shared": fresh})
			results <- result{host, s, err}
		}()
	}
	for range 8 {
		if res := <-results; res.err != nil {
			t.Fatal(res.err)
		}
	}
	after := wantClean(t, r)
	// 4 chunks, one tree of them, a root for each host.
	if n := after.Blobs - before.Blobs; n != 4+1+8 {
		t.Errorf("%d blobs were stored by eight commits of the same data", n)
	}
	// Prune leaves one copy of what the processes stored twice.
	if _, err := r.Prune(t.Context(), PruneOptions{MaxUnused: Unused{None: true}}); err != nil {
		t.Fatal(err)
	}
	if last := wantClean(t, r); last.Blobs != 4+8*1+8*2+4+1+8 {
		t.Errorf("%d blobs are left", last.Blobs)
	}
	peer.Run("check", "--read-data")
}

func TestTwoCopiesAreBetterThanOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		be := backendtest.NewMemory()
		r := create(t, be)
		blind := reopen(t, be)
		files := map[string][]byte{"a": noise(1, 2e6)}
		// The second writer took its look before the first one wrote.
		if _, err := blind.idx(t.Context()); err != nil {
			t.Fatal(err)
		}
		s, err := commitFiles(t.Context(), r, "vm", files)
		if err != nil {
			t.Fatal(err)
		}
		blind.index.fresh = true
		if err := blind.WithLock(Unlocked(t.Context(), blind), Shared, func(ctx context.Context) error {
			_, err := commitFiles(ctx, blind, "vm", files)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		var packs []backend.Handle
		for _, h := range be.Handles() {
			if h.Type == restic.PackFile && len(be.Bytes(h)) > 1e6 {
				packs = append(packs, h)
			}
		}
		if len(packs) != 2 {
			t.Fatalf("%d packs", len(packs))
		}
		bad := bytes.Clone(be.Bytes(packs[0]))
		bad[len(bad)/3] ^= 4
		be.Replace(packs[0], bad)
		wantFiles(t, reopen(t, be), s, files)
		be.Replace(packs[0], nil)
		wantFiles(t, reopen(t, be), s, files)
	})
}
