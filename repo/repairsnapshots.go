package repo

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/vmkeep/vmkeep/repo/internal/index"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// RepairedTag marks snapshots that [Repository.RepairSnapshots] made, as restic does.
const RepairedTag = "repaired"

// RepairSnapshotsOptions choose snapshots.
type RepairSnapshotsOptions struct {
	// Snapshots to repair; none means all.
	Snapshots []restic.ID
	// Forget removes the damaged snapshots that were replaced.
	Forget bool
	// DryRun finds out and changes nothing.
	DryRun bool
}

// Damage is what a repair replaced in one file or directory.
type Damage struct {
	Path string
	// Extents of the file, in bytes, that now hold zeros. None if a whole directory was lost.
	Extents []Extent
	// Directory says that Path is a directory whose tree is lost: it is empty now.
	Directory bool
	// Unusable says that the entry itself made no sense, for example two of one name, and is gone.
	Unusable bool
	// Reordered says that the entries of a directory were put in order or some of them taken out.
	Reordered bool
}

// Extent is a byte range of a file.
type Extent struct{ Offset, Length int64 }

// RepairedSnapshot is a snapshot that was damaged. New is null if its root is lost, so that nothing can be saved, and after a dry run.
type RepairedSnapshot struct {
	Old    *restic.Snapshot
	New    restic.ID
	Lost   bool // the root cannot be read
	Damage []Damage
}

// RepairSnapshots replaces snapshots that need what is lost, under an exclusive lock: a lost chunk becomes as many zeros, so that nothing
// behind it moves, and a lost directory an empty one. What chunks are lost the index says; repair it first, with the packs read.
// The repaired snapshot
// is tagged, names the original, and keeps its time: it is that state of the machine.
func (r *Repository) RepairSnapshots(ctx context.Context, o RepairSnapshotsOptions) (out []RepairedSnapshot, err error) {
	err = r.WithLock(ctx, Exclusive, func(ctx context.Context) error {
		all, err := r.Snapshots(ctx)
		if err != nil && !errors.Is(err, ErrDamaged) {
			return err
		}
		x, err := r.idx(ctx)
		if err != nil {
			return err
		}
		if err := r.indexDamage(); err != nil {
			return fmt.Errorf("run `vmkeep repair index` first: %w", err)
		}
		packs, err := r.list(ctx, restic.PackFile)
		if err != nil {
			return err
		}
		for _, s := range all {
			if len(o.Snapshots) > 0 && !slices.Contains(o.Snapshots, s.ID) {
				continue
			}
			m := &mender{r: r, index: x, packs: packs, dry: o.DryRun, done: make(map[restic.ID]restic.ID)}
			repaired, err := m.snapshot(ctx, s)
			if err != nil {
				return fmt.Errorf("snapshot %s: %w", s.ID.Short(), err)
			}
			if repaired == nil {
				continue
			}
			out = append(out, *repaired)
			if o.Forget && !o.DryRun && !repaired.Lost {
				if err := r.removeSnapshots(ctx, []restic.ID{s.ID}); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return out, fmt.Errorf("repair snapshots: %w", err)
	}
	return out, nil
}

// maxDamage is how many paths of a snapshot are told apart. Trees that share what is below them can make any number of them.
const maxDamage = 10_000

// mender rewrites the trees of one snapshot.
type mender struct {
	r      *Repository
	w      *Writer // nil when dry
	index  *index.Index
	packs  map[restic.ID]int64
	dry    bool
	done   map[restic.ID]restic.ID // old tree to new tree
	damage []Damage
}

var errRootLost = errors.New("the root is lost")

func (m *mender) snapshot(ctx context.Context, s *restic.Snapshot) (*RepairedSnapshot, error) {
	repaired := &RepairedSnapshot{Old: s}
	fn := func(ctx context.Context, w *Writer) (*restic.Snapshot, error) {
		m.w = w
		root, err := m.tree(ctx, *s.Tree, "/", 0)
		if err != nil || len(m.damage) == 0 {
			return nil, err
		}
		if m.damage[0].Directory && m.damage[0].Path == "/" {
			return nil, errRootLost
		}
		mended := *s
		mended.Tree = &root
		mended.Original = &s.ID
		mended.Tags = slices.Clone(s.Tags)
		mended.AddTags([]string{RepairedTag})
		return &mended, nil
	}
	var err error
	if m.dry {
		if _, err = fn(ctx, nil); err != nil && !errors.Is(err, errRootLost) {
			return nil, err
		}
	} else {
		repaired.New, err = m.r.Commit(ctx, fn)
	}
	repaired.Lost = errors.Is(err, errRootLost)
	if err != nil && !repaired.Lost {
		return nil, err
	}
	if repaired.Damage = m.damage; len(m.damage) == 0 {
		return nil, nil
	}
	return repaired, nil
}

// tree mends a directory and what is below, and returns the new tree's ID, which is the old one if nothing was lost.
func (m *mender) tree(ctx context.Context, id restic.ID, at string, depth int) (restic.ID, error) {
	if out, ok := m.done[id]; ok && (out == id || len(m.damage) > maxDamage) {
		return out, nil // damage is reported for each path as long as these are not too many: so far only sound trees are skipped
	}
	t, changed, err := m.load(ctx, id, at)
	if depth > maxTreeDepth {
		err = ErrDamaged
	}
	var missing *MissingError
	if errors.As(err, &missing) || errors.Is(err, ErrDamaged) {
		m.damage = append(m.damage, Damage{Path: at, Directory: true})
		return m.save(&restic.Tree{})
	}
	if err != nil {
		return id, err
	}
	for i := range t.Nodes {
		n := &t.Nodes[i]
		switch n.Type {
		case restic.DirNode:
			sub, err := m.tree(ctx, *n.Subtree, path.Join(at, n.Name), depth+1)
			if err != nil {
				return id, err
			}
			if sub != *n.Subtree {
				n.Subtree, changed = &sub, true
			}
		case restic.FileNode:
			mended, err := m.file(n, path.Join(at, n.Name))
			if err != nil {
				return id, err
			}
			changed = changed || mended
		}
	}
	if !changed {
		m.done[id] = id
		return id, nil
	}
	m.done[id], err = m.save(t)
	return m.done[id], err
}

// load reads a tree and takes out the nodes that no reader can use.
func (m *mender) load(ctx context.Context, id restic.ID, at string) (t *restic.Tree, changed bool, err error) {
	data, err := m.r.LoadBlob(ctx, restic.BlobHandle{ID: id, Type: restic.TreeBlob})
	if err != nil {
		return nil, false, err
	}
	if t, err = restic.DecodeTree(data); err != nil {
		return nil, false, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if t.Check() == nil {
		return t, false, nil
	}
	slices.SortStableFunc(t.Nodes, func(a, b restic.Node) int { return strings.Compare(a.Name, b.Name) })
	last := ""
	t.Nodes = slices.DeleteFunc(t.Nodes, func(n restic.Node) bool {
		if n.Check() != nil || n.Name == last {
			m.damage = append(m.damage, Damage{Path: path.Join(at, n.Name), Unusable: true})
			return true
		}
		last = n.Name
		return false
	})
	m.damage = append(m.damage, Damage{Path: at, Reordered: true})
	return t, true, nil
}

func (m *mender) save(t *restic.Tree) (restic.ID, error) {
	if m.dry {
		data, err := restic.AppendTree(nil, t)
		return restic.Hash(data), err
	}
	return m.w.SaveTree(t)
}

// size is a chunk's length if any index tells it, and whether it lies in a pack that exists.
func (m *mender) size(id restic.ID) (size int64, known, good bool) {
	for _, e := range m.index.Lookup(nil, restic.BlobHandle{ID: id, Type: restic.DataBlob}) {
		size, known = int64(e.Size()), true
		if n, ok := m.packs[e.Pack]; ok && int64(e.Offset)+int64(e.Length) <= n {
			return size, true, true
		}
	}
	if id == restic.ZeroChunk() {
		size, known = restic.ZeroChunkSize, true
	}
	return size, known, false
}

// file replaces lost chunks by zeros. Chunks whose length no index tells share the length that is left to the size of the file;
// if good chunks lie between such, those are given up too, since nobody knows where they belong.
func (m *mender) file(n *restic.Node, name string) (changed bool, err error) {
	type piece struct {
		id   restic.ID
		size int64
		ok   bool
	}
	pieces := make([]piece, len(n.Content))
	first, last := -1, -1 // of the chunks of unknown length
	lost := false
	for i, id := range n.Content {
		size, isKnown, good := m.size(id)
		pieces[i] = piece{id, size, good}
		lost = lost || !good
		if !isKnown {
			if first < 0 {
				first = i
			}
			last = i
		}
	}
	if !lost {
		return false, nil
	}
	if first >= 0 {
		middle := int64(n.Size)
		for i, p := range pieces {
			if i < first || i > last {
				middle -= p.size
			}
		}
		if middle < 0 {
			middle = 0
		}
		pieces = slices.Replace(pieces, first, last+1, piece{size: middle})
	}
	d := Damage{Path: name}
	var ids []restic.ID
	offset := int64(0)
	for _, p := range pieces {
		if p.ok {
			ids = append(ids, p.id)
		} else {
			zeros, err := m.zeros(p.size)
			if err != nil {
				return false, err
			}
			ids = append(ids, zeros...)
			if k := len(d.Extents); k > 0 && d.Extents[k-1].Offset+d.Extents[k-1].Length == offset {
				d.Extents[k-1].Length += p.size
			} else {
				d.Extents = append(d.Extents, Extent{offset, p.size})
			}
		}
		offset += p.size
	}
	n.Content, n.Size = ids, uint64(offset)
	if n.Content == nil {
		n.Content = []restic.ID{}
	}
	m.damage = append(m.damage, d)
	return true, nil
}

// zeros stores n zero bytes and returns their content list.
func (m *mender) zeros(n int64) ([]restic.ID, error) {
	if m.dry {
		return []restic.ID{restic.ZeroChunk()}, nil // only whether something changes matters
	}
	c := m.w.Content()
	if err := c.Zeros(n); err != nil {
		return nil, err
	}
	return c.IDs()
}
