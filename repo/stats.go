package repo

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/vmkeep/vmkeep/repo/internal/index"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// Usage is what snapshots need. Sizes are bytes.
type Usage struct {
	Host      string // empty for the whole repository
	Snapshots int
	// Logical is what restoring every snapshot would write, Latest what restoring the newest would.
	Logical, Latest int64
	// Unique is the plaintext of the distinct blobs the snapshots need, Stored what they take sealed and compressed.
	Unique, Stored int64
	// Exclusive is the part of Stored that no other host's snapshots need: what forgetting them all would free.
	Exclusive int64
}

// Dedup is how many times less is kept than restoring everything would write, before compression.
func (u Usage) Dedup() float64 { return ratio(u.Logical, u.Unique) }

// Compression is how many times smaller blobs are stored than their plaintext.
func (u Usage) Compression() float64 { return ratio(u.Unique, u.Stored) }

func ratio(a, b int64) float64 {
	if b == 0 {
		return 1
	}
	return float64(a) / float64(b)
}

// Statistics are the usage of each host and of all.
type Statistics struct {
	Total Usage
	Hosts []Usage // in the order of their names
	// Packs and PackBytes are what lies on the store, Unused the bytes of blobs that no snapshot needs.
	Packs     int
	PackBytes int64
	Unused    int64
}

// Stats computes how much the snapshots of each host need, under a shared lock. It reads all trees.
func (r *Repository) Stats(ctx context.Context) (*Statistics, error) {
	var out *Statistics
	err := r.WithLock(ctx, Shared, func(ctx context.Context) error {
		snapshots, err := r.Snapshots(ctx)
		if err != nil {
			return err
		}
		x, err := r.idx(ctx)
		if err != nil {
			return err
		}
		out, err = r.stats(ctx, x, snapshots)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("statistics: %w", err)
	}
	return out, nil
}

// Owners of an entry while hosts are counted one after another.
const (
	nobody = 0
	shared = ^uint16(0)
)

func (r *Repository) stats(ctx context.Context, x *index.Index, snapshots []*restic.Snapshot) (*Statistics, error) {
	byHost := make(map[string][]*restic.Snapshot)
	for _, s := range snapshots {
		byHost[s.Hostname] = append(byHost[s.Hostname], s)
	}
	out := &Statistics{}
	owners := make([]uint16, x.Len())
	sizes := make(map[restic.ID]int64) // of restoring a tree
	exclusive := make(map[uint16]int64)
	for i, host := range slices.Sorted(maps.Keys(byHost)) {
		c := &counter{r: r, index: x, owners: owners, owner: uint16(min(i+1, int(shared)-1)), seen: index.NewSet(x.Len()), sizes: sizes}
		if err := c.count(ctx, byHost[host]); err != nil {
			return nil, err
		}
		u := Usage{Host: host, Snapshots: len(byHost[host]), Unique: c.unique, Stored: c.stored}
		for _, s := range byHost[host] { // the oldest first
			u.Latest = sizes[*s.Tree]
			u.Logical += u.Latest
		}
		out.Hosts = append(out.Hosts, u)
		out.Total.Snapshots += u.Snapshots
		out.Total.Logical += u.Logical
		out.Total.Latest += u.Latest
	}
	for e := range x.Entries() {
		if int(e.Ref) >= len(owners) {
			break
		}
		switch o := owners[e.Ref]; o {
		case nobody:
			out.Unused += int64(e.Length)
		default:
			out.Total.Unique += int64(e.Size())
			out.Total.Stored += int64(e.Length)
			if o != shared {
				exclusive[o] += int64(e.Length)
			}
		}
	}
	out.Total.Exclusive = out.Total.Stored
	for i := range out.Hosts {
		out.Hosts[i].Exclusive = exclusive[uint16(min(i+1, int(shared)-1))]
	}
	packs, err := r.list(ctx, restic.PackFile)
	if err != nil {
		return nil, err
	}
	out.Packs = len(packs)
	for _, n := range packs {
		out.PackBytes += n
	}
	return out, nil
}

// counter counts what one host's snapshots need.
type counter struct {
	r      *Repository
	index  *index.Index
	owners []uint16
	owner  uint16

	mu             sync.Mutex
	seen           index.Set
	sizes          map[restic.ID]int64
	below          map[restic.ID][]restic.ID
	entries        []index.Entry // scratch
	unique, stored int64
}

func (c *counter) count(ctx context.Context, snapshots []*restic.Snapshot) error {
	c.below = make(map[restic.ID][]restic.ID)
	w := &walker{r: c.r, index: c.index, load: c.r.LoadBlob, visit: func(_ context.Context, at *place, t nodes, err error) (more []place, _ error) {
		if err != nil {
			return nil, treeError(at, err)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.use(restic.BlobHandle{ID: at.Tree, Type: restic.TreeBlob})
		files := int64(0)
		below := []restic.ID{}
		for n, err := range usable(t) {
			if err != nil {
				return nil, treeError(at, err)
			}
			for _, id := range n.Content {
				c.use(restic.BlobHandle{ID: id, Type: restic.DataBlob})
			}
			switch n.Type {
			case restic.FileNode:
				files += int64(n.Size)
			case restic.DirNode:
				below = append(below, *n.Subtree)
			}
			more = at.below(more, n)
		}
		c.below[at.Tree] = below
		c.sizes[at.Tree] = files
		return more, nil
	}}
	if err := w.walk(ctx, snapshots, c.r.be.Connections()); err != nil {
		return err
	}
	done := make(map[restic.ID]bool)
	for _, s := range snapshots {
		c.total(*s.Tree, done)
	}
	return nil
}

// total adds to a tree's size what is below it. Trees are not deeper than the walk allows.
func (c *counter) total(id restic.ID, done map[restic.ID]bool) int64 {
	if !done[id] {
		done[id] = true
		for _, sub := range c.below[id] {
			c.sizes[id] += c.total(sub, done)
		}
	}
	return c.sizes[id]
}

// use counts the first copy of a blob, once.
func (c *counter) use(h restic.BlobHandle) {
	c.entries = c.index.Lookup(c.entries[:0], h)
	if len(c.entries) == 0 || int(c.entries[0].Ref) >= len(c.owners) {
		return // it is not stored, or only since this began
	}
	e := c.entries[0]
	if !c.seen.Add(e.Ref) {
		return
	}
	c.unique += int64(e.Size())
	c.stored += int64(e.Length)
	switch c.owners[e.Ref] {
	case nobody:
		c.owners[e.Ref] = c.owner
	case c.owner:
	default:
		c.owners[e.Ref] = shared
	}
}
