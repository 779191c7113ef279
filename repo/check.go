package repo

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"sync"
	"time"

	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/internal/index"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// CheckOptions say how thorough a check is. The zero value checks the structure: that everything any snapshot needs is named by
// an index and lies in a pack of the right size.
type CheckOptions struct {
	// ReadData chooses packs that are read and verified bit by bit besides.
	ReadData ReadData
	// Progress, if set, is told what goes on. Calls do not overlap.
	Progress func(CheckProgress)
}

// CheckProgress is how far a check is. Total may grow; bytes are those read of packs.
type CheckProgress struct {
	Stage       CheckStage
	Done, Total int64 // snapshots, index files, packs, trees
	Bytes       int64
	TotalBytes  int64
}

// CheckStage is what a check is doing.
type CheckStage string

// The stages, in their order.
const (
	CheckSnapshots CheckStage = "snapshots"
	CheckIndex     CheckStage = "index"
	CheckPacks     CheckStage = "packs"
	CheckTrees     CheckStage = "trees"
	CheckData      CheckStage = "data"
	CheckDamage    CheckStage = "damage" // only if data is damaged: which files it hits
)

// Severity of a finding.
type Severity string

// Errors mean that something is lost or wrong; hints that something could be tidier.
const (
	Error Severity = "error"
	Hint  Severity = "hint"
)

// Finding is one thing a check found. Text says it in plain language; the other fields are set as far as they apply.
type Finding struct {
	Severity Severity  `json:"severity"`
	Text     string    `json:"text"`
	Remedy   string    `json:"remedy,omitempty"`
	File     string    `json:"file,omitempty"` // of the repository
	Blob     restic.ID `json:"blob,omitzero"`
	Snapshot restic.ID `json:"snapshot,omitzero"`
	Path     string    `json:"path,omitempty"` // in the snapshot
	// Offset and Length, in bytes, say which part of Path is lost.
	Offset int64 `json:"offset,omitempty"`
	Length int64 `json:"length,omitempty"`
}

// CheckReport is the result of a check.
type CheckReport struct {
	Repository      string    `json:"repository"` // ID
	Started         time.Time `json:"started"`
	Finished        time.Time `json:"finished"`
	Snapshots       int       `json:"snapshots"`
	IndexFiles      int       `json:"index_files"`
	Packs           int       `json:"packs"`
	PackBytes       int64     `json:"pack_bytes"`
	Blobs           int       `json:"blobs"`
	Trees           int       `json:"trees"`
	Files           int       `json:"files"`
	UnusedBlobs     int       `json:"unused_blobs"`
	UnusedBytes     int64     `json:"unused_bytes"`
	PacksRead       int       `json:"packs_read"`
	BytesRead       int64     `json:"bytes_read"`
	Findings        []Finding `json:"findings"`
	FindingsOmitted int       `json:"findings_omitted,omitempty"` // beyond the first 10,000
}

// Errors counts the findings that are errors.
func (c *CheckReport) Errors() int {
	n := c.FindingsOmitted
	for _, f := range c.Findings {
		if f.Severity == Error {
			n++
		}
	}
	return n
}

// OK reports whether there is no error.
func (c *CheckReport) OK() bool { return c.Errors() == 0 }

// Remedies that several findings share.
const (
	remedyIndex     = "run `vmkeep repair index` (or restic's), then check again"
	remedyPack      = "run `vmkeep repair index --read-data`, which takes what is lost out of the index, then check again"
	remedySnapshots = "other snapshots are not affected; back up again, which stores what is lost if the source still has it, or run " +
		"`vmkeep repair points`, which puts zeros in its place (restic: repair snapshots)"
	remedyPrune = "`vmkeep prune` removes it"
)

const maxFindings = 10_000

// checker is one check.
type checker struct {
	r        *Repository
	o        CheckOptions
	index    *index.Index
	sizes    map[restic.ID]int64 // packs on the store
	missing  map[restic.ID]bool  // packs that are not
	bad      index.Set           // copies that cannot be read
	used     index.Set
	mu       sync.Mutex
	homeless map[restic.BlobHandle]bool // blobs that snapshots need and no index names
	doubtful []int                      // findings that homeless blobs are the reason of
	told     map[string]bool            // texts of losses
	report   *CheckReport
	progress CheckProgress
}

// Check verifies the repository under a shared lock, so that backups may run meanwhile. What is wrong with the repository is in the
// report; the error is what kept the check from finding out.
func (r *Repository) Check(ctx context.Context, o CheckOptions) (*CheckReport, error) {
	if err := o.ReadData.valid(); err != nil {
		return nil, err
	}
	c := &checker{r: r, o: o, homeless: make(map[restic.BlobHandle]bool), told: make(map[string]bool), report: &CheckReport{Repository: r.config.ID, Started: time.Now(), Findings: []Finding{}}}
	err := r.WithLock(ctx, Shared, c.run)
	c.report.Finished = time.Now()
	if err != nil {
		return nil, fmt.Errorf("check: %w", err)
	}
	slices.SortStableFunc(c.report.Findings, func(a, b Finding) int {
		if a.Severity == b.Severity {
			return 0
		}
		if a.Severity == Error {
			return -1
		}
		return 1
	})
	return c.report, nil
}

// run goes from what needs to what is needed: whatever a backup adds meanwhile is then either not seen or complete.
func (c *checker) run(ctx context.Context) error {
	if err := c.keys(ctx); err != nil {
		return err
	}
	snapshots, err := c.snapshots(ctx)
	if err != nil {
		return err
	}
	if err := c.indexFiles(ctx); err != nil {
		return err
	}
	if err := c.packs(ctx); err != nil {
		return err
	}
	c.used = index.NewSet(c.index.Len())
	c.stage(CheckTrees, 0)
	if err := c.trees(ctx, snapshots, c.inspect); err != nil {
		return err
	}
	c.unused()
	before := c.report.Errors()
	if err := c.data(ctx); err != nil {
		return err
	}
	if c.report.Errors() > before {
		c.stage(CheckDamage, 0)
		if err := c.trees(ctx, snapshots, c.lostChunks); err != nil {
			return err
		}
	}
	return c.strays(ctx)
}

func (c *checker) stage(s CheckStage, total int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.progress = CheckProgress{Stage: s, Total: total}
	c.tell()
}

// step counts one more thing done, and bytes of packs.
func (c *checker) step(n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.progress.Done++
	c.progress.Bytes += n
	c.tell()
}

func (c *checker) tell() {
	if c.o.Progress != nil {
		c.o.Progress(c.progress)
	}
}

func (c *checker) find(f Finding) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.add(f)
}

// full counts one more finding that is omitted, if there are enough already: whoever finds millions asks first.
func (c *checker) full() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.report.Findings) < maxFindings {
		return false
	}
	c.report.FindingsOmitted++
	return true
}

// add is find for those who hold the mutex.
func (c *checker) add(f Finding) {
	if len(c.report.Findings) >= maxFindings {
		c.report.FindingsOmitted++
		return
	}
	c.report.Findings = append(c.report.Findings, f)
}

// keys looks at what opened the repository once and may not do so again.
func (c *checker) keys(ctx context.Context) error {
	keys, err := c.r.Keys(ctx)
	if err != nil {
		return err
	}
	for _, k := range keys {
		if k.Err != nil {
			c.find(Finding{Severity: Error, File: backend.Handle{Type: restic.KeyFile, Name: k.ID.String()}.String(),
				Text: fmt.Sprintf("the key %s does not open the repository any more: %v", k.ID.Short(), k.Err), Remedy: "run `vmkeep key add` with its password, then `vmkeep key remove`"})
		}
	}
	h := backend.Handle{Type: restic.ConfigFile}
	sealed, err := loadWhole(ctx, c.r.be, h)
	if err != nil && !errors.Is(err, backend.ErrNotExist) {
		return err
	}
	var plain []byte
	if err == nil {
		plain, err = c.r.key.Open(nil, sealed)
	}
	if err == nil {
		var config restic.Config
		if config, err = restic.DecodeConfig(plain); err == nil && config != c.r.config {
			err = errors.New("it is another repository's")
		}
	}
	if err != nil {
		c.find(Finding{Severity: Error, File: h.String(), Text: fmt.Sprintf("the config is lost: %v", err), Remedy: "bring back a copy of the file; without it the repository cannot be opened"})
	}
	return nil
}

func (c *checker) snapshots(ctx context.Context) ([]*restic.Snapshot, error) {
	names, err := c.r.list(ctx, restic.SnapshotFile)
	if err != nil {
		return nil, err
	}
	c.stage(CheckSnapshots, int64(len(names)))
	var out []*restic.Snapshot
	for id := range names {
		h := backend.Handle{Type: restic.SnapshotFile, Name: id.String()}
		s, err := c.snapshot(ctx, h)
		switch {
		case err == nil:
			s.ID = id
			out = append(out, s)
		case errors.Is(err, backend.ErrNotExist):
		case errors.Is(err, ErrDamaged):
			c.find(Finding{Severity: Error, File: h.String(), Text: fmt.Sprintf("snapshot %s is lost: %v", id.Short(), err),
				Remedy: "bring the file back from a copy, or delete it from the store; its content stays readable through other snapshots that hold the same"})
		default:
			return nil, err
		}
		c.step(0)
	}
	c.report.Snapshots = len(out)
	slices.SortFunc(out, func(a, b *restic.Snapshot) int { return b.Time.Compare(a.Time) }) // damage is named in the newest first
	return out, nil
}

// snapshot reads past the cache.
func (c *checker) snapshot(ctx context.Context, h backend.Handle) (*restic.Snapshot, error) {
	sealed, err := loadWhole(ctx, c.r.be, h)
	if err != nil {
		return nil, err
	}
	doc, err := c.r.openDocument(h, sealed)
	if err != nil {
		return nil, err
	}
	s, err := restic.DecodeSnapshot(doc)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return s, nil
}

// trees walks all trees of the snapshots, past the cache and with the check's own index.
func (c *checker) trees(ctx context.Context, snapshots []*restic.Snapshot, look func(at *place) func(*restic.Node)) error {
	c.mu.Lock()
	first := c.progress.Stage == CheckTrees // what cannot be read is reported once
	c.mu.Unlock()
	w := &walker{
		r: c.r, index: c.index,
		load: func(ctx context.Context, h restic.BlobHandle) ([]byte, error) {
			data, why, err := c.r.loadCopyPastCache(ctx, c.index, h)
			if err == nil && data == nil {
				err = &MissingError{[]MissingBlob{{h, why}}}
			}
			return data, err
		},
		visit: func(ctx context.Context, at *place, t nodes, err error) (more []place, _ error) {
			defer c.step(0)
			if err == nil {
				node := look(at)
				for n, bad := range t {
					if err = bad; err != nil {
						break
					}
					node(n)
					more = at.below(more, n)
				}
			}
			if err != nil && first {
				c.lost(Finding{Snapshot: at.Snapshot.ID, Path: at.Path(), Blob: at.Tree,
					Text: fmt.Sprintf("the directory %s of snapshot %s cannot be read: %v", at.Path(), at.Snapshot.ID.Short(), err)}, c.unnamed(at.Tree, restic.TreeBlob))
			}
			return more, nil
		},
	}
	return w.walk(ctx, snapshots, c.r.be.Connections())
}

// inspect checks a tree's nodes and that every chunk of its files can be found.
func (c *checker) inspect(at *place) func(*restic.Node) {
	c.use(restic.BlobHandle{ID: at.Tree, Type: restic.TreeBlob})
	c.mu.Lock()
	c.report.Trees++
	c.mu.Unlock()
	finding := func(format string, args ...any) {
		if c.full() {
			return
		}
		where := fmt.Sprintf("in the directory %s of snapshot %s", at.Path(), at.Snapshot.ID.Short())
		c.find(Finding{Severity: Error, Snapshot: at.Snapshot.ID, Path: at.Path(), Blob: at.Tree, Text: where + fmt.Sprintf(format, args...)})
	}
	lost := c.lostChunks(at)
	last, begun := "", false
	return func(n *restic.Node) {
		if err := n.Check(); err != nil {
			finding(": %v", err)
		}
		if begun && n.Name <= last {
			finding(" %q follows %q: %v", n.Name, last, restic.ErrNodeOrder)
		}
		last, begun = n.Name, true
		lost(n)
		total, complete := uint64(0), true
		for _, id := range n.Content {
			h := restic.BlobHandle{ID: id, Type: restic.DataBlob}
			size, ok := c.index.Size(h)
			complete = complete && ok
			total += uint64(size)
			c.use(h)
		}
		if n.Type != restic.FileNode {
			return
		}
		c.mu.Lock()
		c.report.Files++
		c.mu.Unlock()
		if complete && total != n.Size {
			name := path.Join(at.Path(), n.Name)
			c.find(Finding{Severity: Error, Snapshot: at.Snapshot.ID, Path: name, Blob: at.Tree,
				Text: fmt.Sprintf("%s of snapshot %s should have %d bytes, its chunks have %d", name, at.Snapshot.ID.Short(), n.Size, total)})
		}
	}
}

func (c *checker) use(h restic.BlobHandle) {
	c.index.Refs(h, func(ref index.Ref) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.used.Add(ref)
	})
}

// readable reports whether any copy of the blob is not known to be bad, and its size if that is known.
func (c *checker) readable(h restic.BlobHandle, entries []index.Entry) (size int, ok bool) {
	if h.Type == restic.DataBlob && h.ID == restic.ZeroChunk() && len(entries) > 0 {
		size = restic.ZeroChunkSize
	}
	for _, e := range entries {
		size = e.Size()
		c.mu.Lock()
		bad := c.bad.Has(e.Ref)
		c.mu.Unlock()
		if !bad {
			return size, true
		}
	}
	return size, false
}

// lostChunks reports which bytes of files cannot be read. Neighbours are one finding.
func (c *checker) lostChunks(at *place) func(*restic.Node) {
	var entries []index.Entry
	return func(n *restic.Node) {
		var offset, start int64
		lost := 0
		var first restic.ID
		var unknown []restic.BlobHandle
		flush := func() {
			if lost == 0 {
				return
			}
			name := path.Join(at.Path(), n.Name)
			text := fmt.Sprintf("%s of snapshot %s: %d chunks are lost, bytes %d to %d", name, at.Snapshot.ID.Short(), lost, start, offset)
			if len(unknown) > 0 {
				text = fmt.Sprintf("%s of snapshot %s: %d chunks from byte %d on are lost, %d of them of unknown length", name, at.Snapshot.ID.Short(), lost, start, len(unknown))
			}
			c.lost(Finding{Snapshot: at.Snapshot.ID, Path: name, Blob: first, Offset: start, Length: offset - start, Text: text}, unknown)
			lost, unknown = 0, unknown[:0]
		}
		for _, id := range n.Content {
			h := restic.BlobHandle{ID: id, Type: restic.DataBlob}
			entries = c.index.Lookup(entries[:0], h)
			size, ok := c.readable(h, entries)
			if ok {
				flush()
				offset += int64(size)
				continue
			}
			if lost == 0 {
				start, first = offset, id
			}
			if lost++; len(entries) == 0 {
				unknown = append(unknown, h)
			}
			offset += int64(size)
		}
		flush()
	}
}

// unused counts what no snapshot needs.
func (c *checker) unused() {
	for e := range c.index.Entries() {
		if !c.used.Has(e.Ref) {
			c.report.UnusedBlobs++
			c.report.UnusedBytes += int64(e.Length)
		}
	}
}
