package repo

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"path"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/vmkeep/vmkeep/repo/internal/index"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// Bounds of directories in directories. A tree cannot contain itself, since it would contain its own hash, but it can be deep.
// A path of more than 4096 bytes no Unix opens, one of more than 32767 characters no Windows.
const (
	maxTreeDepth = 2048
	maxTreePath  = 96 << 10 // bytes
)

// place is a tree and where it was met first. It holds the way there instead of the path, which would be as long for each of
// millions of directories.
type place struct {
	Tree     restic.ID
	Snapshot *restic.Snapshot
	above    *place // nil at the root
	name     string
	depth    int
	length   int // of the path, in bytes
}

// Path is that of the directory, "/" at the root.
func (p *place) Path() string {
	var names []string
	for ; p != nil; p = p.above {
		names = append(names, p.name)
	}
	slices.Reverse(names)
	return path.Join("/", path.Join(names...))
}

// below adds the directory that a node names, if it is one.
func (p *place) below(out []place, n *restic.Node) []place {
	if n.Type != restic.DirNode || n.Subtree == nil {
		return out
	}
	return append(out, place{*n.Subtree, p.Snapshot, p, n.Name, p.depth + 1, p.length + 1 + len(n.Name)})
}

// nodes are a tree's, one at a time.
type nodes = iter.Seq2[*restic.Node, error]

// walker visits trees, each once however often it is met, several at a time but no more than there is memory for.
type walker struct {
	r     *Repository
	index *index.Index // tells how large trees are
	load  func(context.Context, restic.BlobHandle) ([]byte, error)
	// visit is called for each tree, with its nodes or the reason why it cannot be read, from several goroutines. It
	// returns which of its directories to go into.
	visit func(ctx context.Context, at *place, t nodes, err error) ([]place, error)

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
		w.push(place{Tree: *s.Tree, Snapshot: s})
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
				more, err := w.step(ctx, &at)
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

func (w *walker) step(ctx context.Context, at *place) (more []place, err error) {
	switch {
	case at.depth > maxTreeDepth:
		return w.visit(ctx, at, nil, fmt.Errorf("%w: directories nested deeper than %d", ErrDamaged, maxTreeDepth))
	case at.length > maxTreePath:
		return w.visit(ctx, at, nil, fmt.Errorf("%w: a path of %d bytes", ErrDamaged, at.length))
	}
	h := restic.BlobHandle{ID: at.Tree, Type: restic.TreeBlob}
	size := 0
	for _, e := range w.index.Lookup(nil, h) {
		size = max(size, int(min(uint64(e.Size()), maxBlob(h.Type))))
	}
	err = w.r.room.hold(ctx, size, func() error {
		data, err := w.load(ctx, h)
		var missing *MissingError
		if err != nil && !errors.As(err, &missing) && !errors.Is(err, ErrDamaged) {
			return err
		}
		more, err = w.visit(ctx, at, restic.Nodes(data), err)
		return err
	})
	return more, err
}

// treeError says which directory a walk cannot go through.
func treeError(at *place, err error) error {
	return fmt.Errorf("directory %s of snapshot %s: %w", at.Path(), at.Snapshot.ID.Short(), err)
}

// usable are nodes as [restic.InOrder] passes them on; its errors are damage.
func usable(t nodes) nodes {
	return func(yield func(*restic.Node, error) bool) {
		for n, err := range restic.InOrder(t) {
			if err != nil {
				err = fmt.Errorf("%w: %w", ErrDamaged, err)
			}
			if !yield(n, err) {
				return
			}
		}
	}
}
