package repo

import (
	"context"
	"errors"
	"fmt"
	"path"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/vmkeep/vmkeep/repo/restic"
)

// maxTreeDepth bounds directories in directories. A tree cannot contain itself, since it would contain its own hash, but it
// can be deep; a path of more than 4096 bytes no system opens.
const maxTreeDepth = 2048

// place is a tree and where it was met first.
type place struct {
	Tree     restic.ID
	Snapshot *restic.Snapshot
	Path     string // of the directory, "/" at the root
	depth    int
}

// walker visits trees, each once however often it is met, several at a time.
type walker struct {
	load func(ctx context.Context, id restic.ID) (*restic.Tree, error)
	// visit is called for each tree, with the tree or the reason why it cannot be read, from several goroutines. It
	// returns which of its directories to go into.
	visit func(ctx context.Context, at place, t *restic.Tree, err error) ([]place, error)

	mu   sync.Mutex
	wake *sync.Cond
	todo []place // a stack: going down first keeps it short
	seen map[restic.ID]struct{}
	busy int
}

// walk visits all trees reachable from the snapshots. Errors of loading that are damage go to visit, others end the walk.
func (w *walker) walk(ctx context.Context, snapshots []*restic.Snapshot, workers int) error {
	w.wake = sync.NewCond(&w.mu)
	w.seen = make(map[restic.ID]struct{})
	for _, s := range snapshots {
		w.push(place{Tree: *s.Tree, Snapshot: s, Path: "/"})
	}
	g, ctx := errgroup.WithContext(ctx)
	defer context.AfterFunc(ctx, w.wake.Broadcast)()
	for range max(workers, runtime.GOMAXPROCS(0)) {
		g.Go(func() error {
			for {
				at, ok := w.pop(ctx)
				if !ok {
					return context.Cause(ctx)
				}
				more, err := w.step(ctx, at)
				w.mu.Lock()
				for _, p := range more {
					w.push(p)
				}
				w.busy--
				w.mu.Unlock()
				w.wake.Broadcast()
				if err != nil {
					return err
				}
			}
		})
	}
	return g.Wait()
}

func (w *walker) push(p place) {
	if _, ok := w.seen[p.Tree]; !ok {
		w.seen[p.Tree] = struct{}{}
		w.todo = append(w.todo, p)
	}
}

func (w *walker) pop(ctx context.Context) (place, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.todo) == 0 && w.busy > 0 && ctx.Err() == nil {
		w.wake.Wait()
	}
	if len(w.todo) == 0 || ctx.Err() != nil {
		return place{}, false
	}
	p := w.todo[len(w.todo)-1]
	w.todo = w.todo[:len(w.todo)-1]
	w.busy++
	return p, true
}

func (w *walker) step(ctx context.Context, at place) ([]place, error) {
	if at.depth > maxTreeDepth {
		return w.visit(ctx, at, nil, fmt.Errorf("%w: directories nested deeper than %d", ErrDamaged, maxTreeDepth))
	}
	t, err := w.load(ctx, at.Tree)
	var missing *MissingError
	if err != nil && !errors.As(err, &missing) && !errors.Is(err, ErrDamaged) {
		return nil, err
	}
	return w.visit(ctx, at, t, err)
}

// below lists the directories of a tree.
func (p place) below(t *restic.Tree) (out []place) {
	for i := range t.Nodes {
		n := &t.Nodes[i]
		if n.Type == restic.DirNode && n.Subtree != nil {
			out = append(out, place{*n.Subtree, p.Snapshot, path.Join(p.Path, n.Name), p.depth + 1})
		}
	}
	return out
}
