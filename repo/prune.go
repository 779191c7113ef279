package repo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/internal/index"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// PruneOptions say how much work to spend on how much space. The zero value does as restic prune does by default.
type PruneOptions struct {
	// MaxUnused is how much may stay unused so that fewer packs must be rewritten.
	MaxUnused Unused
	// MaxRepack bounds what is rewritten, in bytes; 0 means no bound. Packs that are unused as a whole are removed all the same.
	MaxRepack int64
	// RepackSmall rewrites all packs below 80 % of the pack size into larger ones.
	RepackSmall bool
	// RepackUncompressed rewrites packs with data that is not compressed though the format allows it.
	RepackUncompressed bool
	// DryRun plans and changes nothing.
	DryRun bool
	// Progress, if set, is told what goes on. Calls do not overlap.
	Progress func(PruneProgress)
}

// Unused is how much unused data may stay. The zero value is 5 % of the resulting repository.
type Unused struct {
	// Set one of them; None means nothing may stay, which is what Percent 0 would mean were it not the default.
	Percent   float64
	Bytes     int64
	Unlimited bool
	None      bool
}

// bytes is the limit for a repository in which used bytes are used.
func (u Unused) bytes(used int64) int64 {
	switch {
	case u.Unlimited:
		return 1<<63 - 1
	case u.None:
		return 0
	case u.Bytes > 0:
		return u.Bytes
	case u.Percent > 0:
		return int64(u.Percent / (100 - u.Percent) * float64(used))
	}
	return int64(5.0 / 95.0 * float64(used))
}

func (u Unused) valid() error {
	if u.Percent < 0 || u.Percent >= 100 || u.Bytes < 0 {
		return errors.New("prune: the limit of unused data must be 0 bytes or more, or 0 to below 100 percent")
	}
	return nil
}

// PruneProgress is how far a prune is: trees of the scan, bytes of packs when it repacks, files when it deletes.
type PruneProgress struct {
	Stage       PruneStage
	Done, Total int64
}

// PruneStage is what a prune is doing.
type PruneStage string

// The stages, in their order.
const (
	PruneScan   PruneStage = "scan"
	PruneRepack PruneStage = "repack"
	PruneIndex  PruneStage = "index"
	PruneDelete PruneStage = "delete"
)

// PruneReport is the plan, and after a prune that was not dry what became of it. Sizes are bytes as stored.
type PruneReport struct {
	UsedBlobs, UnusedBlobs, DuplicateBlobs int
	UsedBytes, UnusedBytes, DuplicateBytes int64
	// Packs by what happens to them. Orphan packs are in no index. Lost packs are in the index but not on the store, and nothing of them is needed.
	KeepPacks, RepackPacks, RemovePacks, OrphanPacks, LostPacks int
	RepackBytes, RemoveBytes, OrphanBytes                       int64
	// FreedBytes is what the store is smaller by in the end, RemainingBytes what stays unused in it.
	FreedBytes, RemainingBytes int64
	// Held packs and index files would go, but the store does not let them: it is append-only, or retains them. They do no harm
	// and are not counted above, but for the packs among those kept; a later prune deletes them. HeldUntil is when the last one
	// may be deleted, if the store tells.
	HeldPacks int
	HeldBytes int64
	HeldUntil time.Time
	// Refused lists files whose deletion the store refused without having told before. The figures know of it.
	Refused []string
}

// what to do with a pack.
type verdict uint8

const (
	keepPack verdict = iota
	repackPack
	removePack
)

// packUse is how a pack is used. It is kept for every pack while a prune runs.
type packUse struct {
	id               restic.ID
	size             int64 // on the store; -1 if it is not there
	used, unused     int64 // bytes of blobs; of a blob with several copies one is used
	usedBlobs, blobs uint32
	tree, data       bool
	uncompressed     bool
	verdict          verdict
	unusedFraction   float64
	mandatory        bool // to be repacked, whatever may stay unused
}

// pruner is one prune.
type pruner struct {
	r      *Repository
	o      PruneOptions
	index  *index.Index
	keep   index.Set // one copy of every used blob
	packs  []packUse // in the order of index.Packs
	number map[restic.ID]int
	orphan []restic.ID
	sizes  map[restic.ID]int64 // of packs on the store
	fixed  map[restic.ID]bool  // index files that the store would not delete
	report *PruneReport

	mu       sync.Mutex
	progress PruneProgress
}

// Prune deletes what no snapshot needs, under an exclusive lock. It first writes what it moves, then an index without what it
// deletes, and deletes last: a crash at any point leaves a repository that is merely larger. Nothing is deleted if any snapshot,
// tree or index file cannot be read.
func (r *Repository) Prune(ctx context.Context, o PruneOptions) (*PruneReport, error) {
	if err := o.MaxUnused.valid(); err != nil {
		return nil, err
	}
	p := &pruner{r: r, o: o, report: &PruneReport{}}
	err := r.WithLock(ctx, Exclusive, func(ctx context.Context) error {
		if r.indexPinned() {
			return errors.New("a backup into the repository runs in this process")
		}
		if err := p.plan(ctx); err != nil || o.DryRun {
			return err
		}
		return p.execute(ctx)
	})
	if err != nil {
		return nil, fmt.Errorf("prune: %w", err)
	}
	return p.report, nil
}

func (p *pruner) stage(s PruneStage, total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.progress = PruneProgress{Stage: s, Total: total}
	p.tell()
}

func (p *pruner) step(n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.progress.Done += n
	p.tell()
}

func (p *pruner) tell() {
	if p.o.Progress != nil {
		p.o.Progress(p.progress)
	}
}

// plan decides for every pack.
func (p *pruner) plan(ctx context.Context) error {
	snapshots, err := p.r.Snapshots(ctx)
	if err != nil {
		return fmt.Errorf("not all snapshots can be read, so what they need is not known: %w", err)
	}
	if p.index, err = p.r.idx(ctx); err != nil {
		return err
	}
	if err := p.r.indexDamage(); err != nil {
		return fmt.Errorf("run `vmkeep repair index` first: %w", err)
	}
	if p.sizes, err = p.r.list(ctx, restic.PackFile); err != nil {
		return err
	}
	p.stage(PruneScan, 0)
	used, err := p.r.markUsed(ctx, p.index, snapshots, func() { p.step(1) })
	if err != nil {
		return err
	}
	p.measure(used)
	p.chooseCopies(used)
	if err := p.count(); err != nil {
		return err
	}
	p.decide()
	for id := range p.sizes {
		if _, ok := p.number[id]; !ok {
			p.orphan = append(p.orphan, id)
		}
	}
	if err := p.hold(ctx); err != nil {
		return err
	}
	p.sum()
	return nil
}

// markUsed marks all copies of every blob that a snapshot needs. It fails with a MissingError if one is in no index.
func (r *Repository) markUsed(ctx context.Context, x *index.Index, snapshots []*restic.Snapshot, step func()) (index.Set, error) {
	used := index.NewSet(x.Len())
	var mu sync.Mutex
	mark := func(h restic.BlobHandle) error {
		found := false
		x.Refs(h, func(ref index.Ref) {
			found = true
			used.Add(ref)
		})
		if !found {
			return &MissingError{[]MissingBlob{{h, r.notFound()}}}
		}
		return nil
	}
	w := &walker{r: r, index: x, load: r.LoadBlob, visit: func(_ context.Context, at *place, t nodes, err error) (more []place, _ error) {
		if err != nil {
			return nil, treeError(at, err)
		}
		mu.Lock()
		defer mu.Unlock()
		step()
		if err := mark(restic.BlobHandle{ID: at.Tree, Type: restic.TreeBlob}); err != nil {
			return nil, err
		}
		for n, err := range usable(t) {
			if err != nil {
				return nil, treeError(at, err)
			}
			for _, id := range n.Content {
				if err := mark(restic.BlobHandle{ID: id, Type: restic.DataBlob}); err != nil {
					return nil, fmt.Errorf("%s in %s of snapshot %s: %w", n.Name, at.Path(), at.Snapshot.ID.Short(), err)
				}
			}
			more = at.below(more, n)
		}
		return more, nil
	}}
	if err := w.walk(ctx, snapshots, r.be.Connections()); err != nil {
		return nil, err
	}
	return used, nil
}

// measure counts how much of each pack is used, before copies are told apart.
func (p *pruner) measure(used index.Set) {
	p.number = make(map[restic.ID]int)
	for id, entries := range p.index.Packs() {
		u := packUse{id: id, size: -1, blobs: uint32(len(entries))}
		if n, ok := p.sizes[id]; ok {
			u.size = n
		}
		for _, e := range entries {
			u.tree = u.tree || e.Type == restic.TreeBlob
			u.data = u.data || e.Type == restic.DataBlob
			if !e.Compressed() && e.Length > restic.Sealed && p.r.config.Version >= 2 {
				u.uncompressed = true
			}
			if used.Has(e.Ref) {
				u.used += int64(e.Length)
			}
		}
		p.number[id] = len(p.packs)
		p.packs = append(p.packs, u)
	}
}

// chooseCopies keeps one copy of each used blob: in the pack on the store of which most is used.
func (p *pruner) chooseCopies(used index.Set) {
	p.keep = index.NewSet(p.index.Len())
	var copies []index.Entry
	done := index.NewSet(p.index.Len())
	for e := range p.index.Entries() {
		if !used.Has(e.Ref) || done.Has(e.Ref) {
			continue
		}
		copies = p.index.Lookup(copies[:0], e.BlobHandle)
		best := slices.MaxFunc(copies, func(a, b index.Entry) int {
			x, y := &p.packs[p.number[a.Pack]], &p.packs[p.number[b.Pack]]
			return cmp.Or(cmp.Compare(min(x.size, 0), min(y.size, 0)), cmp.Compare(x.used, y.used), cmp.Compare(b.Ref, a.Ref))
		})
		p.keep.Add(best.Ref)
		for _, c := range copies {
			done.Add(c.Ref)
			if c.Ref != best.Ref {
				p.report.DuplicateBlobs++
				p.report.DuplicateBytes += int64(c.Length)
			}
		}
	}
}

// count is measure with the chosen copies. It fails if a pack that is needed is not as the index says.
func (p *pruner) count() error {
	i := 0
	for _, entries := range p.index.Packs() {
		u := &p.packs[i]
		i++
		u.used = 0
		want := int64(36)
		for _, e := range entries {
			want += int64(e.Length) + int64(restic.HeaderEntrySize(e.Blob))
			if p.keep.Has(e.Ref) {
				u.used += int64(e.Length)
				u.usedBlobs++
				p.report.UsedBlobs++
				p.report.UsedBytes += int64(e.Length)
			} else {
				u.unused += int64(e.Length)
				p.report.UnusedBlobs++
				p.report.UnusedBytes += int64(e.Length)
			}
		}
		h := backend.Handle{Type: restic.PackFile, Name: u.id.String()}
		switch {
		case u.usedBlobs > 0 && u.size < 0:
			return fmt.Errorf("%s: %w: it is missing and snapshots need it; run `vmkeep-check`, which tells what to do", h, ErrDamaged)
		case u.usedBlobs > 0 && u.size != want:
			return fmt.Errorf("%s: %w: it has %d bytes, the index expects %d; run `vmkeep-check`, which tells what to do", h, ErrDamaged, u.size, want)
		}
	}
	p.report.UnusedBlobs -= p.report.DuplicateBlobs
	p.report.UnusedBytes -= p.report.DuplicateBytes
	return nil
}

const (
	// fewSmall is how many small packs are worth being joined.
	fewSmall = 10
	// smallShare of the pack size is small.
	smallShare = 0.8
)

// decide gives each pack its verdict.
func (p *pruner) decide() {
	small := p.smallSize()
	var candidates []*packUse
	var smalls []*packUse
	unused := int64(0) // that stays if nothing is repacked
	for i := range p.packs {
		u := &p.packs[i]
		switch {
		case u.usedBlobs == 0:
			u.verdict = removePack
		case u.unused > 0 || u.tree && u.data ||
			u.uncompressed && (u.tree || p.o.RepackUncompressed):
			// Trees are read by all that list and check: they stay dense. Small packs cost little to rewrite and are too many.
			u.mandatory = u.tree || u.unused == 0 || u.size < small
			u.unusedFraction = float64(u.unused) / float64(u.used+u.unused)
			candidates = append(candidates, u)
			unused += u.unused
		case u.size < small:
			smalls = append(smalls, u)
		}
	}
	if len(smalls) >= fewSmall || p.o.RepackSmall && len(smalls) > 1 {
		for _, u := range smalls {
			u.mandatory = p.o.RepackSmall
			candidates = append(candidates, u)
		}
	}
	// The most wasteful come first, among equals the small ones.
	slices.SortFunc(candidates, func(a, b *packUse) int {
		if a.mandatory != b.mandatory {
			if a.mandatory {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(b.unusedFraction, a.unusedFraction), cmp.Compare(a.size, b.size))
	})
	limit := p.o.MaxUnused.bytes(p.report.UsedBytes)
	repacked := int64(0)
	for _, u := range candidates {
		if p.o.MaxRepack > 0 && repacked+u.used > p.o.MaxRepack {
			continue
		}
		if !u.mandatory && u.unused > 0 && unused <= limit {
			continue
		}
		u.verdict = repackPack
		repacked += u.used
		unused -= u.unused
	}
}

// sum tells what the verdicts come to.
func (p *pruner) sum() {
	for _, id := range p.orphan {
		p.report.OrphanPacks++
		p.report.OrphanBytes += p.sizes[id]
		p.report.FreedBytes += p.sizes[id]
	}
	for i := range p.packs {
		u := &p.packs[i]
		switch u.verdict {
		case keepPack:
			p.report.KeepPacks++
			p.report.RemainingBytes += u.unused
		case repackPack:
			p.report.RepackPacks++
			p.report.RepackBytes += u.used
			p.report.FreedBytes += u.unused
		case removePack:
			if u.size < 0 {
				p.report.LostPacks++
				continue
			}
			p.report.RemovePacks++
			p.report.RemoveBytes += u.size
			p.report.FreedBytes += u.size
		}
	}
}

// smallSize is below which a pack is small: 80 % of the pack size if asked for; else 80 % of what most packs exceed, but at
// least of 4 MiB, since who writes small packs on purpose should not have them rewritten each time.
func (p *pruner) smallSize() int64 {
	if p.o.RepackSmall {
		return int64(smallShare * float64(p.r.packSize))
	}
	var sizes []int64
	for i := range p.packs {
		if p.packs[i].size >= 0 {
			sizes = append(sizes, p.packs[i].size)
		}
	}
	if len(sizes) == 0 {
		return 0
	}
	slices.Sort(sizes)
	return int64(smallShare * float64(max(minPackSize, sizes[len(sizes)*3/100])))
}
