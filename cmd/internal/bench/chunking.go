package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/vmkeep/vmkeep/chunker"
	"github.com/vmkeep/vmkeep/repo"
	"github.com/vmkeep/vmkeep/repo/backend/local"
	"github.com/vmkeep/vmkeep/repo/restic"
	"github.com/vmkeep/vmkeep/vsphere/lab/guestdisk"
)

const (
	changeUnit = 64 << 10 // changes are counted in these, as change tracking does
	perBlob    = 58       // bytes of the index in memory, for each blob; repo/internal/index asserts it
)

// chunking stores series of images, before and after a change, with each way to cut. Each of them is read in full both
// times: what is stored the second time is what an incremental backup stores.
func (b *bench) chunking(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp(b.dir, "chunking-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	fmt.Fprintf(&b.notes, "\nchunking: first store, then what the change costs\n%-10s %-9s %8s %7s %7s %9s %9s %9s\n", "image", "cut", "MB/s", "CPU s", "stored", "2nd store", "per 64KiB", "index")
	raw, old := filepath.Join(dir, "disk.raw"), filepath.Join(dir, "old.raw")
	tree, err := b.makeDisk(ctx, raw, b.files)
	if err != nil {
		return err
	}
	if err := errors.Join(copyFile(raw, old), upgrade(ctx, raw, tree)); err != nil {
		return err
	}
	if err := b.series(ctx, dir, "upgrade", [2]string{old, raw}); err != nil {
		return err
	}
	if err := makeDatabase(old, b.files/4&^(page-1)); err != nil {
		return err
	}
	if err := errors.Join(copyFile(old, raw), touchPages(raw)); err != nil {
		return err
	}
	if err := b.series(ctx, dir, "database", [2]string{old, raw}); err != nil {
		return err
	}
	if err := errors.Join(os.Remove(old), os.Remove(raw)); err != nil {
		return err
	}
	err = debian(ctx, old, raw)
	var out leftOut
	if errors.As(err, &out) && ctx.Err() == nil {
		fmt.Fprintf(&b.notes, "%-10s left out: %s\n", "debian", out.why)
		return nil
	}
	if err != nil {
		return err
	}
	return b.series(ctx, dir, "debian", [2]string{old, raw})
}

// upgrade replaces a file in twenty inside the image by another one and takes the next away, as a package manager does.
func upgrade(ctx context.Context, raw, tree string) error {
	var requests []string
	n := 0
	err := filepath.WalkDir(tree, func(name string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(tree, name)
		if err != nil {
			return err
		}
		switch n++; n % 20 {
		case 0: // the same with other bytes in its middle
			p, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			at := len(p) / 2
			p = append(p[:at:at], append([]byte("a line more\n"), p[at:]...)...)
			if err := os.WriteFile(name, p, 0o644); err != nil {
				return err
			}
			requests = append(requests, fmt.Sprintf("rm %q", "/"+rel), fmt.Sprintf("write %q %q", name, "/"+rel))
		case 1:
			requests = append(requests, fmt.Sprintf("rm %q", "/"+rel))
		}
		return nil
	})
	if err != nil {
		return err
	}
	return guestdisk.Edit(ctx, raw, requests)
}

const page = 8 << 10

// makeDatabase makes pages of rows: ascending keys, small numbers, some text.
func makeDatabase(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	rng := rand.New(rand.NewPCG(6, 7))
	for n := range size / page {
		if _, err = f.WriteAt(rows(rng), n*page); err != nil {
			break
		}
	}
	return errors.Join(err, f.Close())
}

func rows(rng *rand.Rand) []byte {
	p := make([]byte, 0, page+64)
	for len(p) < page {
		p = fmt.Appendf(p, "%08d customer %x balance %d;", rng.Uint32N(1e8), rng.Uint64(), rng.Uint32N(1000))
	}
	return p[:page]
}

// touchPages rewrites 1 % of the pages, at random.
func touchPages(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	rng := rand.New(rand.NewPCG(8, 9))
	for range st.Size() / page / 100 {
		if err == nil {
			_, err = f.WriteAt(rows(rng), rng.Int64N(st.Size()/page)*page)
		}
	}
	return errors.Join(err, f.Close())
}

// series stores both images into a new repository for each way to cut.
func (b *bench) series(ctx context.Context, dir, name string, images [2]string) error {
	changed, err := changedUnits(images)
	if err != nil {
		return err
	}
	for _, way := range ways() {
		stamp("%s, %s", name, way.name)
		if err := b.storeBoth(ctx, filepath.Join(dir, "repository"), way, func(first, second storing, bytes int64) {
			fmt.Fprintf(&b.notes, "%-10s %-9s %8.0f %7.1f %5dMiB %6.1fMiB %6.0fKiB %6dKiB\n", name, way.name, float64(bytes)/1e6/first.wall, first.cpu, first.Stored>>20,
				float64(second.Stored)/(1<<20), float64(second.Added)/1024/float64(changed), (first.DataNew+second.DataNew)*perBlob>>10)
		}, images); err != nil {
			return err
		}
	}
	return nil
}

// way is a rule to cut by.
type way struct {
	name   string
	cutter func(chunker.Pol) (*chunker.Cutter, error)
}

func ways() []way {
	fixed := func(size int) func(chunker.Pol) (*chunker.Cutter, error) {
		return func(chunker.Pol) (*chunker.Cutter, error) { return chunker.Fixed(size) }
	}
	scaled := func(halvings int) func(chunker.Pol) (*chunker.Cutter, error) {
		return func(pol chunker.Pol) (*chunker.Cutter, error) { return chunker.Scaled(pol, halvings) }
	}
	return []way{{"restic", chunker.New}, {"restic/2", scaled(1)}, {"restic/4", scaled(2)}, {"512 KiB", fixed(512 << 10)}, {"1 MiB", fixed(1 << 20)}}
}

type storing struct {
	repo.Stats
	wall, cpu float64
}

func (b *bench) storeBoth(ctx context.Context, dir string, w way, done func(first, second storing, bytes int64), images [2]string) (err error) {
	be, err := local.Create(dir, 2)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, be.Close(), os.RemoveAll(dir)) }()
	r, err := repo.Init(ctx, be, repo.InitOptions{Password: password})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	cutter, err := w.cutter(chunker.Pol(r.Config().Polynomial))
	if err != nil {
		return err
	}
	var took [2]storing
	var bytes int64
	for i, image := range images {
		cpu, started := cpuSeconds(), time.Now()
		if took[i].Stats, bytes, err = storeImage(ctx, r, cutter, image); err != nil {
			return err
		}
		took[i].wall, took[i].cpu = time.Since(started).Seconds(), cpuSeconds()-cpu
	}
	done(took[0], took[1], bytes)
	return nil
}

func storeImage(ctx context.Context, r *repo.Repository, cutter *chunker.Cutter, image string) (st repo.Stats, size int64, err error) {
	f, err := os.Open(image)
	if err != nil {
		return st, 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return st, 0, err
	}
	const part = 1 << 30
	_, err = r.Commit(ctx, func(_ context.Context, w *repo.Writer) (*restic.Snapshot, error) {
		for off := int64(0); off < info.Size(); off += part {
			c, n := w.Content(), min(part, info.Size()-off)
			for chunk, err := range (chunker.Plan{Size: n}).Chunks(io.NewSectionReader(f, off, n), cutter) {
				switch {
				case err != nil:
					return nil, err
				case chunk.Zero:
					err = c.Zeros(int64(chunk.Len))
				default:
					err = c.Append(chunk.Data)
				}
				if err != nil {
					return nil, err
				}
			}
			if _, err := c.IDs(); err != nil {
				return nil, err
			}
		}
		st = w.Stats()
		return nil, nil
	})
	return st, info.Size(), err
}

// changedUnits counts the units in which two images differ.
func changedUnits(images [2]string) (n int64, err error) {
	before, err := os.Open(images[0])
	if err != nil {
		return 0, err
	}
	defer before.Close()
	after, err := os.Open(images[1])
	if err != nil {
		return 0, err
	}
	defer after.Close()
	info, err := after.Stat()
	if err != nil {
		return 0, err
	}
	last := int64(-1)
	err = guestdisk.Difference(before, after, info.Size(), func(p []byte, off int64) error {
		for u := max(off/changeUnit, last+1); u <= (off+int64(len(p))-1)/changeUnit; u++ {
			n, last = n+1, u
		}
		return nil
	})
	return n, err
}

func cpuSeconds() float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}
