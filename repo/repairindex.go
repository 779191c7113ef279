package repo

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/internal/index"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// RepairIndexOptions say how far to distrust what the index says.
type RepairIndexOptions struct {
	// AllHeaders reads the header of every pack and believes nothing else. Without it only packs are read that no index names
	// or whose size is not what the index says.
	AllHeaders bool
	// ReadData chooses packs that are read as a whole. What is lost in them leaves the index, so that a later backup stores it
	// again; what is good in them moves to new packs, and the damaged ones are deleted: their headers would lead the next
	// repair, and restic's, to take what is lost for present.
	ReadData ReadData
	// DryRun finds out and changes nothing.
	DryRun bool
	// Progress, if set, is told of the packs looked at. Calls do not overlap.
	Progress func(CheckProgress)
}

// RepairIndexReport is what was found and done.
type RepairIndexReport struct {
	Changed       bool // or would be, if dry
	BadIndexFiles []string
	// Packs that were read into the index, that are named but missing, and whose header cannot be read though no index names them.
	AddedPacks, LostPacks, UnreadablePacks []string
	// Salvaged packs had damaged blobs: the good ones were moved, the packs are in no index any more, and deleted.
	SalvagedPacks []string
	// Kept are those of them that were not deleted, since the store gave less of them than it lists: that may pass.
	KeptPacks []string
	// LostBlobs are in no good copy any more. Which files they belong to, Check tells.
	LostBlobs []restic.BlobHandle
}

// RepairIndex makes the index say what the packs hold, under an exclusive lock. It deletes index files that it replaces, and
// packs that are damaged, after what is good in them was stored anew and indexed.
func (r *Repository) RepairIndex(ctx context.Context, o RepairIndexOptions) (*RepairIndexReport, error) {
	if err := o.ReadData.valid(); err != nil {
		return nil, err
	}
	report := &RepairIndexReport{}
	err := r.WithLock(ctx, Exclusive, func(ctx context.Context) error {
		return r.repairIndex(ctx, o, report)
	})
	if err != nil {
		return nil, fmt.Errorf("repair index: %w", err)
	}
	return report, nil
}

func (r *Repository) repairIndex(ctx context.Context, o RepairIndexOptions, report *RepairIndexReport) error {
	c := &checker{r: r, o: CheckOptions{ReadData: o.ReadData, Progress: o.Progress}, report: &CheckReport{}}
	names, err := r.list(ctx, restic.IndexFile)
	if err != nil {
		return err
	}
	if err := c.indexFiles(ctx); err != nil {
		return err
	}
	for _, f := range c.report.Findings {
		report.BadIndexFiles = append(report.BadIndexFiles, f.File)
	}
	slices.Sort(report.BadIndexFiles)
	report.BadIndexFiles = slices.Compact(report.BadIndexFiles)
	if c.sizes, err = r.list(ctx, restic.PackFile); err != nil {
		return err
	}

	// What will be in the new index, pack by pack.
	truth := make(map[restic.ID][]restic.Blob)
	var doubtful []restic.ID
	for id, entries := range c.index.Packs() {
		size, ok := c.sizes[id]
		if !ok {
			report.LostPacks = append(report.LostPacks, id.String())
			continue
		}
		blobs := make([]restic.Blob, len(entries))
		end, gap := int64(0), false
		for i, e := range entries {
			blobs[i] = e.Blob
			gap = gap || int64(e.Offset) != end
			end += int64(e.Length)
		}
		truth[id] = blobs
		if o.AllHeaders || gap || restic.PackSize(blobs) != size {
			doubtful = append(doubtful, id)
		}
	}
	for id := range c.sizes {
		if !c.index.HasPack(id) {
			doubtful = append(doubtful, id)
		}
	}
	if err := r.readHeaders(ctx, c, doubtful, truth, report); err != nil {
		return err
	}

	salvage, err := c.findBad(ctx, truth, report)
	if err != nil {
		return err
	}
	report.Changed = len(report.BadIndexFiles)+len(report.LostPacks)+len(report.AddedPacks)+len(salvage) > 0
	if !report.Changed || o.DryRun {
		return nil
	}
	if err := r.salvagePacks(ctx, c, salvage, truth); err != nil {
		return err
	}
	if err := r.replaceIndex(ctx, truth, names); err != nil {
		return err
	}
	return r.removeSalvaged(ctx, report)
}

// readHeaders asks packs themselves what they hold.
func (r *Repository) readHeaders(ctx context.Context, c *checker, ids []restic.ID, truth map[restic.ID][]restic.Blob, report *RepairIndexReport) error {
	c.stage(CheckPacks, int64(len(ids)))
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(r.be.Connections(), runtime.GOMAXPROCS(0)))
	for _, id := range ids {
		g.Go(func() error {
			blobs, err := r.packHeader(ctx, id, c.sizes[id])
			c.step(0)
			mu.Lock()
			defer mu.Unlock()
			known, ok := truth[id]
			switch {
			case err == nil && !slices.Equal(known, blobs):
				truth[id] = blobs
				report.AddedPacks = append(report.AddedPacks, id.String())
			case err == nil:
			case !errors.Is(err, ErrDamaged):
				return err
			case !ok:
				report.UnreadablePacks = append(report.UnreadablePacks, id.String())
			default:
				// The header is lost. The blobs the index names may still be good, as far as the file reaches.
				good := slices.DeleteFunc(known, func(b restic.Blob) bool { return int64(b.Offset)+int64(b.Length) > c.sizes[id] })
				if truth[id] = good; len(good) == 0 {
					delete(truth, id)
				}
				report.UnreadablePacks = append(report.UnreadablePacks, id.String())
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	slices.Sort(report.AddedPacks)
	slices.Sort(report.UnreadablePacks)
	return nil
}

// packHeader reads a pack's own description of itself.
func (r *Repository) packHeader(ctx context.Context, id restic.ID, size int64) ([]restic.Blob, error) {
	const guess = 16 << 10 // holds the header of most packs
	for want := min(size, guess); ; {
		if want < 4 {
			return nil, fmt.Errorf("data/%s: %w: it has %d bytes", id, ErrDamaged, size)
		}
		tail := make([]byte, want)
		if err := r.readPack(ctx, id, size-want, tail); err != nil {
			return nil, err
		}
		n, err := restic.PackHeaderLength(tail, size)
		if err == nil && int64(n)+4 > want {
			want = int64(n) + 4
			continue
		}
		var blobs []restic.Blob
		if err == nil {
			blobs, err = r.openHeader(tail, size)
		}
		if err != nil {
			return nil, fmt.Errorf("data/%s: %w: %w", id, ErrDamaged, err)
		}
		return blobs, nil
	}
}

// findBad reads the chosen packs and those whose header is lost, and returns the packs with bad blobs and the blobs of them that are good.
func (c *checker) findBad(ctx context.Context, truth map[restic.ID][]restic.Blob, report *RepairIndexReport) (map[restic.ID][]restic.Blob, error) {
	ids := make([]restic.ID, 0, len(truth))
	for id := range truth {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b restic.ID) int { return slices.Compare(a[:], b[:]) })
	chosen := slices.Clone(c.o.ReadData.choose(slices.Clone(ids), func(id restic.ID) int64 { return c.sizes[id] }))
	for _, name := range report.UnreadablePacks {
		if id, err := restic.ParseID(name); err == nil && truth[id] != nil {
			chosen = append(chosen, id)
		}
	}
	c.stage(CheckData, int64(len(chosen)))
	salvage := make(map[restic.ID][]restic.Blob)
	lost := make(map[restic.BlobHandle]bool)
	var mu sync.Mutex
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(c.r.be.Connections(), runtime.GOMAXPROCS(0)))
	for _, id := range chosen {
		g.Go(func() error {
			entries := make([]index.Entry, len(truth[id]))
			for i, b := range truth[id] {
				entries[i] = index.Entry{Blob: b, Pack: id}
			}
			pr := &packReader{decoder: decoder{r: c.r}}
			bad, problem, err := pr.verify(gctx, id, c.sizes[id], entries)
			if err == nil && problem != nil {
				bad, problem, err = pr.verify(gctx, id, c.sizes[id], entries)
			}
			if err != nil || problem == nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			isBad := make(map[restic.Blob]bool)
			for _, e := range bad {
				isBad[e.Blob] = true
				lost[e.BlobHandle] = true
			}
			if errors.Is(problem, errTruncated) {
				report.KeptPacks = append(report.KeptPacks, id.String())
			}
			salvage[id] = slices.DeleteFunc(slices.Clone(truth[id]), func(b restic.Blob) bool { return isBad[b] })
			c.step(c.sizes[id])
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for id, good := range salvage {
		report.SalvagedPacks = append(report.SalvagedPacks, id.String())
		for _, b := range good {
			delete(lost, b.BlobHandle)
		}
	}
	for id, blobs := range truth {
		if _, ok := salvage[id]; !ok {
			for _, b := range blobs {
				delete(lost, b.BlobHandle)
			}
		}
	}
	for h := range lost {
		report.LostBlobs = append(report.LostBlobs, h)
	}
	slices.Sort(report.SalvagedPacks)
	slices.Sort(report.KeptPacks)
	slices.SortFunc(report.LostBlobs, func(a, b restic.BlobHandle) int { return slices.Compare(a.ID[:], b.ID[:]) })
	return salvage, nil
}

// salvagePacks moves the good blobs of damaged packs to new ones, and takes the damaged packs out of the truth.
func (r *Repository) salvagePacks(ctx context.Context, c *checker, salvage map[restic.ID][]restic.Blob, truth map[restic.ID][]restic.Blob) error {
	s := r.start(ctx, index.New())
	defer s.stop()
	for id, good := range salvage {
		for _, b := range good {
			sealed := make([]byte, b.Length)
			if err := r.readPack(ctx, id, int64(b.Offset), sealed); err != nil {
				return err
			}
			if _, err := r.decode(new([]byte), b, slices.Clone(sealed)); err != nil {
				return err
			}
			if err := s.copySealed(b, sealed); err != nil {
				return err
			}
		}
		delete(truth, id)
	}
	if err := s.flush(ctx); err != nil {
		return err
	}
	for id, entries := range s.index.Packs() {
		for _, e := range entries {
			truth[id] = append(truth[id], e.Blob)
		}
	}
	return nil
}

// removeSalvaged deletes the packs that were salvaged. No index names them any more.
func (r *Repository) removeSalvaged(ctx context.Context, report *RepairIndexReport) error {
	for _, name := range report.SalvagedPacks {
		if slices.Contains(report.KeptPacks, name) {
			continue
		}
		h := backend.Handle{Type: restic.PackFile, Name: name}
		if err := r.be.Remove(ctx, h); err != nil && !errors.Is(err, backend.ErrNotExist) {
			return fmt.Errorf("the index is repaired, but a damaged pack stays, which a repair that does not read the data would put back: remove %s: %w", h, err)
		}
		r.cache.drop(h)
	}
	return nil
}

// replaceIndex writes a new index and deletes the old files.
func (r *Repository) replaceIndex(ctx context.Context, truth map[restic.ID][]restic.Blob, old map[restic.ID]int64) error {
	// What salvaging wrote is in the truth as well.
	listed, err := r.list(ctx, restic.IndexFile)
	if err != nil {
		return err
	}
	var w indexWriter
	for id, blobs := range truth {
		if err := w.add(ctx, r, restic.IndexPack{ID: id, Blobs: blobs}); err != nil {
			return err
		}
	}
	if err := w.flush(ctx, r); err != nil {
		return err
	}
	for id := range old {
		listed[id] = 0
	}
	for id := range listed {
		h := backend.Handle{Type: restic.IndexFile, Name: id.String()}
		if err := r.be.Remove(ctx, h); err != nil && !errors.Is(err, backend.ErrNotExist) {
			return fmt.Errorf("the new index is written, but an old file stays: remove %s: %w", h, err)
		}
		r.cache.drop(h)
	}
	r.forgetIndex()
	return nil
}
