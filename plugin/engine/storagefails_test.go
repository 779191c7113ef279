package engine

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/repo"
	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/backend/backendtest"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// A storage service that fails says nothing of the points that lie there: they are not called damaged, and the next backup is
// neither a full one nor by another rule.
func TestStorageThatFailsIsNoDamagedPoint(t *testing.T) {
	for _, fails := range []error{backend.ErrPermanent, backend.ErrGivenUp} {
		t.Run(fails.Error(), func(t *testing.T) {
			store := backendtest.NewMemory()
			r, err := repo.Init(t.Context(), store, repo.InitOptions{Password: "geheim", KeyTime: time.Nanosecond})
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if _, err = r.Commit(repo.Unlocked(t.Context(), r), func(_ context.Context, w *repo.Writer) (*restic.Snapshot, error) {
				tree, err := w.SaveTree(&restic.Tree{})
				return &restic.Snapshot{Tree: &tree, Hostname: "db", Time: time.Now(), Tags: []string{tagPoint}}, err
			}); err != nil {
				t.Fatal(err)
			}
			down := backendtest.Inject(store, backendtest.On(backendtest.Do(0, func(context.Context, backendtest.Op) error {
				return fmt.Errorf("%w: 503", fails)
			}), backendtest.OfType(restic.PackFile)))
			if r, err = repo.Open(t.Context(), down, repo.OpenOptions{Password: "geheim"}); err != nil {
				t.Fatal(err)
			}
			defer r.Close()

			points, err := newestPoints(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			_, err = findPoint(t.Context(), r, "latest", "db")
			if e := (*plugin.Error)(nil); !errors.As(failure(err), &e) || e.Code != plugin.CodeRepository {
				t.Errorf("finding it: %v", err)
			}
			if p, err := summarize(t.Context(), r, points[machineIdentity{}], true); !errors.Is(err, fails) || p.Damage != "" {
				t.Errorf("listing it: %v, damage %q", err, p.Damage)
			}
			if rule, err := newestChunking(t.Context(), r, points); !errors.Is(err, fails) {
				t.Errorf("the rule is %q, %v", rule, err)
			}
		})
	}
}
