package repo

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/vmkeep/vmkeep/repo/internal/index"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// maxHomeless bounds how many blobs are looked for in packs that no index names: any one that is found tells what happened.
const maxHomeless = 100_000

// unnamed is the blob, if no index names it.
func (c *checker) unnamed(id restic.ID, t restic.BlobType) []restic.BlobHandle {
	h := restic.BlobHandle{ID: id, Type: t}
	if _, ok := c.index.Size(h); ok {
		return nil
	}
	return []restic.BlobHandle{h}
}

// lost tells that something of a snapshot cannot be read, among the reasons that no index names the given blobs.
func (c *checker) lost(f Finding, unnamed []restic.BlobHandle) {
	f.Severity, f.Remedy = Error, remedySnapshots
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.told[f.Text] {
		return // before the data was read
	}
	c.told[f.Text] = true
	if len(unnamed) > 0 && len(c.report.Findings) < maxFindings {
		c.doubtful = append(c.doubtful, len(c.report.Findings))
	}
	for _, h := range unnamed {
		if len(c.homeless) < maxHomeless {
			c.homeless[h] = true
		}
	}
	c.add(f)
}

// strays tells of packs that no index names. Mostly that is rubbish. But if they hold what snapshots miss, index files were lost, and
// that is told first: it cures what was found because of it, and whoever took the packs for rubbish would make the loss real.
func (c *checker) strays(ctx context.Context) error {
	var ids []restic.ID
	size := int64(0)
	for id, n := range c.sizes {
		if !c.index.HasPack(id) {
			ids = append(ids, id)
			size += n
		}
	}
	if len(ids) == 0 {
		return nil
	}
	f := Finding{Severity: Hint, Remedy: remedyPrune,
		Text: fmt.Sprintf("%d packs of %d bytes are in no index: backups that run now, or were interrupted, left them", len(ids), size)}
	if len(c.homeless) > 0 {
		found, err := c.findHomeless(ctx, ids)
		if err != nil {
			return err
		}
		if found {
			f = Finding{Severity: Error, Remedy: remedyIndex,
				Text: fmt.Sprintf("index files are lost: %d packs of %d bytes are in no index, and hold what snapshots need", len(ids), size)}
			for _, i := range c.doubtful {
				c.report.Findings[i].Remedy = remedyIndex
			}
		}
	}
	c.report.Findings = slices.Insert(c.report.Findings, 0, f)
	return nil
}

// findHomeless reports whether any of the packs holds a sound copy of a blob that snapshots need and no index names.
func (c *checker) findHomeless(ctx context.Context, packs []restic.ID) (bool, error) {
	found := errors.New("found")
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(c.r.be.Connections(), runtime.GOMAXPROCS(0)))
	for _, id := range packs {
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error {
			blobs, err := c.r.packHeader(gctx, id, c.sizes[id])
			for _, b := range blobs {
				if !c.homeless[b.BlobHandle] {
					continue
				}
				if _, err = c.r.loadStored(gctx, index.Entry{Blob: b, Pack: id}); err == nil {
					return found
				}
				if !damage(err) {
					break
				}
			}
			if err != nil && !damage(err) {
				return err
			}
			return nil
		})
	}
	err := g.Wait()
	if errors.Is(err, found) {
		return true, nil
	}
	return false, errors.Join(err, context.Cause(ctx))
}
