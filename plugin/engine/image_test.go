package engine

import (
	"context"
	"errors"
	"testing"

	"golang.org/x/sync/errgroup"
)

// An image whose time is over before all parts were begun fails, also where no part that was begun does: the snapshot's context
// may end alone, as for a datastore that fills, and a point without those parts would be made.
func TestPartsThatWereNotBegunAreAFailure(t *testing.T) {
	full := errors.New("the datastore is full")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(full)
	m := &imaging{size: 3 * PartSize}
	trees, err := m.run(ctx, make(chan struct{}), new(errgroup.Group))
	if !errors.Is(err, full) || trees != nil {
		t.Errorf("got %d parts and %v, want none and %v", len(trees), err, full)
	}
}
