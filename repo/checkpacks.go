package repo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/internal/index"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// ReadData chooses packs. At most one field is set; the zero value chooses none.
type ReadData struct {
	All bool
	// Part of Parts, from 1: packs whose ID's first byte modulo Parts is Part-1. All parts together are all packs, so
	// that checking another part each day covers everything. Parts is at most 256.
	Part, Parts int
	// Percent of the packs, above 0 up to 100, chosen at random each time.
	Percent float64
	// Bytes, as many packs chosen at random as have this size together.
	Bytes int64
}

// ParseReadData reads what restic's --read-data-subset takes, "n/t", "x%", or a size with an optional K, M, G or T, and "all".
func ParseReadData(s string) (ReadData, error) {
	wrong := fmt.Errorf("%q is none of all, n/t (1 <= n <= t <= 256), x%% (0 < x <= 100), or a size such as 500M", s)
	out := ReadData{}
	switch {
	case s == "all":
		out.All = true
	case strings.Contains(s, "/"):
		n, t, _ := strings.Cut(s, "/")
		var err1, err2 error
		out.Part, err1 = strconv.Atoi(n)
		out.Parts, err2 = strconv.Atoi(t)
		if err1 != nil || err2 != nil || out.Parts == 0 {
			return ReadData{}, wrong
		}
	case strings.HasSuffix(s, "%"):
		var err error
		if out.Percent, err = strconv.ParseFloat(strings.TrimSuffix(s, "%"), 64); err != nil || !(out.Percent > 0) {
			return ReadData{}, wrong
		}
	default:
		digits := strings.TrimRight(strings.ToUpper(s), "KMGT")
		n, err := strconv.ParseInt(digits, 10, 64)
		unit, ok := map[string]int64{"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}[strings.ToUpper(s)[len(digits):]]
		if err != nil || !ok || n <= 0 || n > (1<<62)/unit {
			return ReadData{}, wrong
		}
		out.Bytes = n * unit
	}
	if out.valid() != nil {
		return ReadData{}, wrong
	}
	return out, nil
}

func (d ReadData) valid() error {
	set := 0
	for _, is := range []bool{d.All, d.Parts != 0 || d.Part != 0, d.Percent != 0, d.Bytes != 0} {
		if is {
			set++
		}
	}
	if set > 1 || d.Parts < 0 || d.Parts > 256 || d.Part < min(1, d.Parts) || d.Part > d.Parts || d.Bytes < 0 ||
		!(d.Percent >= 0 && d.Percent <= 100) {
		return errors.New("check: the choice of packs to read is not valid")
	}
	return nil
}

// choose picks from packs, which it may reorder.
func (d ReadData) choose(packs []restic.ID, size func(restic.ID) int64) []restic.ID {
	shuffle := func() {
		rand.Shuffle(len(packs), func(i, j int) { packs[i], packs[j] = packs[j], packs[i] })
	}
	switch {
	case d.All:
		return packs
	case d.Parts > 0:
		return slices.DeleteFunc(packs, func(id restic.ID) bool { return int(id[0])%d.Parts != d.Part-1 })
	case d.Percent > 0 && len(packs) > 0:
		shuffle()
		return packs[:min(len(packs), max(1, int(float64(len(packs))*d.Percent/100)))]
	case d.Bytes > 0:
		shuffle()
		sum := int64(0)
		for i, id := range packs {
			if sum >= d.Bytes {
				return packs[:i]
			}
			sum += size(id)
		}
		return packs
	}
	return nil
}

// indexFiles reads all index files, past the cache, into an index of the check's own.
func (c *checker) indexFiles(ctx context.Context) error {
	names, err := c.r.list(ctx, restic.IndexFile)
	if err != nil {
		return err
	}
	c.stage(CheckIndex, int64(len(names)))
	c.index = index.New()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(c.r.be.Connections(), runtime.GOMAXPROCS(0)))
	for id := range names {
		g.Go(func() error {
			defer c.step(0)
			return c.indexFile(ctx, backend.Handle{Type: restic.IndexFile, Name: id.String()})
		})
	}
	c.report.IndexFiles = len(names)
	if err := g.Wait(); err != nil {
		return err
	}
	c.report.Blobs = c.index.Len()
	return nil
}

func (c *checker) indexFile(ctx context.Context, h backend.Handle) error {
	sealed, err := loadWhole(ctx, c.r.be, h)
	if err == nil {
		err = c.r.decodeIndex(ctx, h, sealed, func(id restic.ID, blobs []restic.Blob) error {
			conflict, err := c.index.AddPack(id, blobs)
			if conflict {
				c.find(Finding{Severity: Error, File: h.String(), Remedy: remedyIndex,
					Text: fmt.Sprintf("the index file %s describes the pack %s differently than another one", h, id.Short())})
			}
			return err
		})
	}
	if errors.Is(err, backend.ErrNotExist) {
		return nil
	}
	if errors.Is(err, ErrDamaged) {
		c.find(Finding{Severity: Error, File: h.String(), Text: fmt.Sprintf("the index file %s is damaged: %v", h, err), Remedy: remedyIndex})
		return nil
	}
	return err
}

// packs compares the packs on the store with what the index says of them.
func (c *checker) packs(ctx context.Context) error {
	sizes, err := c.r.list(ctx, restic.PackFile)
	if err != nil {
		return err
	}
	c.sizes, c.missing, c.bad = sizes, make(map[restic.ID]bool), index.NewSet(c.index.Len())
	c.stage(CheckPacks, int64(c.index.PackCount()))
	mixed := 0
	for id, entries := range c.index.Packs() {
		c.report.Packs++
		h := backend.Handle{Type: restic.PackFile, Name: id.String()}
		want := int64(36)
		kinds := [restic.NumBlobTypes]bool{}
		end := int64(0)
		gap := false
		for _, e := range entries {
			want += int64(e.Length) + int64(restic.HeaderEntrySize(e.Blob))
			kinds[e.Type] = true
			gap = gap || int64(e.Offset) != end
			end = int64(e.Offset) + int64(e.Length)
			if c.r.config.Version < 2 && e.Compressed() {
				c.find(Finding{Severity: Error, File: h.String(), Blob: e.ID, Text: fmt.Sprintf("%s in %s is compressed, which a version 1 repository cannot hold", e.BlobHandle, h)})
			}
		}
		if kinds[restic.DataBlob] && kinds[restic.TreeBlob] {
			mixed++
		}
		size, ok := sizes[id]
		switch {
		case !ok:
			c.missing[id] = true
			c.find(Finding{Severity: Error, File: h.String(), Remedy: "if the file cannot be brought back, " + remedyIndex,
				Text: fmt.Sprintf("the pack %s is missing, with %d blobs in it", h, len(entries))})
		case size != want:
			c.find(Finding{Severity: Error, File: h.String(), Remedy: remedyIndex,
				Text: fmt.Sprintf("the pack %s has %d bytes, the index expects %d", h, size, want)})
		case gap:
			c.find(Finding{Severity: Error, File: h.String(), Remedy: remedyIndex,
				Text: fmt.Sprintf("the index tells blobs of the pack %s that overlap or leave gaps", h)})
		}
		for _, e := range entries {
			if !ok || int64(e.Offset)+int64(e.Length) > size {
				c.bad.Add(e.Ref)
			}
		}
		c.report.PackBytes += size
		c.step(0)
	}
	if mixed > 0 {
		c.find(Finding{Severity: Hint, Text: fmt.Sprintf("%d packs hold both trees and data, as very old versions of restic made them", mixed), Remedy: "`vmkeep prune` separates them"})
	}
	return nil
}

// data reads the chosen packs and verifies every bit of them.
func (c *checker) data(ctx context.Context) error {
	var packs []restic.ID
	for id := range c.sizes {
		if c.index.HasPack(id) {
			packs = append(packs, id)
		}
	}
	slices.SortFunc(packs, func(a, b restic.ID) int { return slices.Compare(a[:], b[:]) })
	chosen := make(map[restic.ID]bool)
	total := int64(0)
	for _, id := range c.o.ReadData.choose(packs, func(id restic.ID) int64 { return c.sizes[id] }) {
		chosen[id] = true
		total += c.sizes[id]
	}
	if len(chosen) == 0 {
		return nil
	}
	c.mu.Lock()
	c.progress = CheckProgress{Stage: CheckData, Total: int64(len(chosen)), TotalBytes: total}
	c.tell()
	c.mu.Unlock()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(c.r.be.Connections(), runtime.GOMAXPROCS(0)))
	buffers := make(chan *packReader, max(c.r.be.Connections(), runtime.GOMAXPROCS(0)))
	for range cap(buffers) {
		buffers <- &packReader{decoder: decoder{r: c.r}}
	}
	for id, entries := range c.index.Packs() {
		if !chosen[id] || ctx.Err() != nil {
			continue
		}
		entries = slices.Clone(entries)
		g.Go(func() error {
			pr := <-buffers
			defer func() { buffers <- pr }()
			return c.pack(ctx, pr, id, entries)
		})
	}
	return g.Wait()
}

// pack verifies one pack; what fails is tried once more.
func (c *checker) pack(ctx context.Context, pr *packReader, id restic.ID, entries []index.Entry) error {
	h := backend.Handle{Type: restic.PackFile, Name: id.String()}
	var problem error
	var bad []index.Entry
	for range 2 {
		var err error
		if bad, problem, err = pr.verify(ctx, id, c.sizes[id], entries); err != nil {
			return err
		}
		if problem == nil {
			break
		}
	}
	c.mu.Lock()
	c.report.PacksRead++
	c.report.BytesRead += c.sizes[id]
	for _, e := range bad {
		c.bad.Add(e.Ref)
	}
	c.mu.Unlock()
	c.step(c.sizes[id])
	if problem != nil {
		c.find(Finding{Severity: Error, File: h.String(), Remedy: "if no intact copy of the file can be brought back, " + remedyPack,
			Text: fmt.Sprintf("the pack %s is damaged, %d of its %d blobs are lost: %v", h, len(bad), len(entries), problem)})
	}
	return nil
}

// packReader verifies packs one after another, with buffers for two blobs.
type packReader struct {
	decoder
	sealed [2][]byte // a blob of each lane, grow as needed
}

// verify reads a whole pack once, in order. It returns the blobs that are bad and what is wrong with the pack; err is set if
// the store fails.
func (pr *packReader) verify(ctx context.Context, id restic.ID, size int64, entries []index.Entry) (bad []index.Entry, problem, err error) {
	h := backend.Handle{Type: restic.PackFile, Name: id.String()}
	err = pr.r.be.Load(ctx, h, 0, 0, func(rd io.Reader) error {
		bad, problem = pr.stream(rd, size, entries)
		if problem != nil && errors.Is(problem, errRead) {
			return problem
		}
		return nil
	})
	if err == nil || ctx.Err() != nil {
		return bad, problem, context.Cause(ctx)
	}
	if errors.Is(err, backend.ErrNotExist) {
		return entries, fmt.Errorf("%w: it was there a moment ago", backend.ErrNotExist), nil
	}
	return nil, nil, fmt.Errorf("read %s: %w", h, err)
}

// errRead marks errors of the store's reader, as opposed to those of what it read.
var errRead = errors.New("read failed")

// stream verifies what it reads: each blob and the header have a MAC, each blob the hash of its content, and header and index
// agree on blobs that fill the file without a gap. So every bit of the file is authenticated, and none lies where another
// should. Hashing the file once more, which restic does, would only tell of a name that was wrong when it was given, which
// keeps nobody from reading it, and would cost an eighth of the time.
func (pr *packReader) stream(rd io.Reader, size int64, entries []index.Entry) (bad []index.Entry, problem error) {
	lost := func(err error, blobs ...index.Entry) {
		bad, problem = append(bad, blobs...), errors.Join(problem, err)
	}
	end, err := pr.blobs(rd, size, entries, lost)
	if err = errors.Join(err, pr.flush()); err != nil {
		return bad, errors.Join(problem, err)
	}
	// The rest is the header.
	rest, err := io.ReadAll(io.LimitReader(rd, restic.MaxPackHeader+5))
	if err != nil {
		return bad, errors.Join(problem, errRead, err)
	}
	if end+int64(len(rest)) != size {
		problem = errors.Join(problem, fmt.Errorf("it has not the %d bytes it was listed with", size))
	} else if err := pr.header(rest, size, entries); err != nil {
		problem = errors.Join(problem, err)
	}
	return bad, problem
}

// blobs verifies blobs, calls lost for those that are not good, and returns where they end. It fails if reading does; then
// all that follows is lost. One blob may not be verified yet when it returns.
func (pr *packReader) blobs(rd io.Reader, size int64, entries []index.Entry, lost func(error, ...index.Entry)) (end int64, err error) {
	for i, e := range entries {
		lo, n := int64(e.Offset), int64(e.Length)
		if lo < end || lo+n > size || uint64(n) > maxBlob(e.Type)+restic.Sealed {
			lost(fmt.Errorf("%s does not lie where the index says", e.BlobHandle), e)
			continue
		}
		_, err := pr.fill(rd, lo-end)
		var sealed []byte
		if err == nil {
			sealed, err = pr.fill(rd, n)
		}
		if err != nil {
			lost(nil, entries[i:]...)
			return end, err
		}
		end = lo + n
		if err := pr.decode(e.Blob, sealed, func(_ []byte, bad error) error {
			if bad != nil {
				lost(bad, e)
			}
			return nil
		}); err != nil {
			return end, err
		}
	}
	return end, nil
}

// fill reads n bytes into the buffer for the next sealed blob.
func (pr *packReader) fill(rd io.Reader, n int64) ([]byte, error) {
	sealed := sized(&pr.sealed[pr.lane()], n)
	_, err := io.ReadFull(rd, sealed)
	switch {
	case err == nil:
		return sealed, nil
	case errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF):
		return nil, errTruncated
	}
	return nil, errors.Join(errRead, err)
}

// header compares a pack's own description with the index.
func (pr *packReader) header(rest []byte, size int64, entries []index.Entry) error {
	blobs, err := pr.r.openHeader(rest, size)
	if err != nil {
		return err
	}
	if len(blobs) != len(entries) {
		return fmt.Errorf("its header names %d blobs, the index %d", len(blobs), len(entries))
	}
	for i, e := range entries {
		if blobs[i] != e.Blob {
			return fmt.Errorf("its header names %s at %d, the index %s at %d", blobs[i].BlobHandle, blobs[i].Offset, e.BlobHandle, e.Offset)
		}
	}
	return nil
}

// openHeader reads the sealed header and the trailer from the end of a pack.
func (r *Repository) openHeader(tail []byte, size int64) ([]restic.Blob, error) {
	n, err := restic.PackHeaderLength(tail, size)
	if err != nil {
		return nil, err
	}
	if n+4 > len(tail) {
		return nil, fmt.Errorf("its header has %d bytes, where %d are", n, len(tail)-4)
	}
	plain, err := r.key.Open(nil, tail[len(tail)-4-n:len(tail)-4])
	if err != nil {
		return nil, fmt.Errorf("its header: %w", err)
	}
	return restic.ParsePackHeader(plain, size)
}
