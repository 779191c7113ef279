package repo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/internal/index"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// A session is the machinery that turns new blobs into packs:
//
//	Append -> jobs -> GOMAXPROCS workers: compress, seal into an open pack, verify -> uploaders: header, hash, save -> index files
//
// All commits of a Repository that run at the same time share one: a blob that one of them is just storing need not be
// stored again by another, and memory is bounded once. So nothing of a session belongs to one commit: a commit that
// fails leaves the blobs others may count on, and a failure of the session fails all of them.
type session struct {
	r     *Repository
	index *index.Index
	ctx   context.Context
	fail  context.CancelCauseFunc
	alive atomic.Int32  // users whose contexts have not ended
	ended chan struct{} // closed when all goroutines are gone

	jobs    chan *job
	buffers chan []byte // free buffers for chunks; its capacity bounds the chunks in memory
	uploads chan *pack
	slots   chan []byte // free buffers for packs; its capacity bounds the packs in memory
	workers sync.WaitGroup
	posters sync.WaitGroup

	mu      sync.Mutex
	open    [restic.NumBlobTypes][openPacks]*pack
	running map[*job]struct{}
	packs   map[*pack]struct{} // not yet on the store

	indexer indexer
}

const (
	// openPacks of each type are filled at random, so that the order of blobs, which tells the lengths of neighbours, is not
	// that of the file: restic's answer to attacks that recognise content by the lengths of its chunks.
	openPacks = 2

	// chunkBuffer is the length of the longest chunk.
	chunkBuffer = 8 << 20

	// indexBlobs and indexAge bound what a crash makes a rerun read or store again, as in restic.
	indexBlobs = 50_000
	indexAge   = 10 * time.Minute
)

// job is a new blob on its way into a pack.
type job struct {
	handle restic.BlobHandle
	data   []byte
	pooled bool // data goes back to the session's buffers
	stats  *counters
	done   chan struct{}
}

// pack is being filled. buf has a fixed capacity, so that blobs are sealed into it while others reserve their room.
type pack struct {
	kind    restic.BlobType
	buf     []byte
	blobs   []restic.Blob
	writing int  // blobs reserved but not sealed yet
	closed  bool // no more reservations
	bespoke bool // buf is not of the session's slots
	done    chan struct{}
}

// sessionHolder hands the one session to those who commit.
type sessionHolder struct {
	mu      sync.Mutex
	current *session
	users   int
}

// join returns the running session, or starts one.
func (r *Repository) join(ctx context.Context) (*session, error) {
	h := &r.sessions
	for {
		h.mu.Lock()
		s := h.current
		if s == nil || s.ctx.Err() == nil {
			break
		}
		h.mu.Unlock()
		select { // it has failed: its users are about to leave
		case <-s.ended:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	defer h.mu.Unlock()
	x, err := r.pinIndex(ctx)
	if err != nil {
		return nil, err
	}
	if h.current == nil {
		h.current = r.start(context.WithoutCancel(ctx), x)
	}
	h.users++
	h.current.alive.Add(1)
	return h.current, nil
}

// leave ends the session if it was the last user's. Then nothing is pending any more.
func (r *Repository) leave(s *session) {
	h := &r.sessions
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.users--; h.users == 0 {
		s.stop()
		h.current = nil
	}
	r.unpinIndex()
}

// failSession ends the session, if there is one, and with it all commits.
func (r *Repository) failSession(err error) {
	r.sessions.mu.Lock()
	defer r.sessions.mu.Unlock()
	if s := r.sessions.current; s != nil {
		s.fail(err)
	}
}

func (r *Repository) start(ctx context.Context, x *index.Index) *session {
	workers, posters := runtime.GOMAXPROCS(0), min(max(1, r.be.Connections()), maxPosters)
	s := &session{
		r: r, index: x, ended: make(chan struct{}),
		jobs:    make(chan *job),
		buffers: make(chan []byte, workers+2), // one in each worker, one or two ready for the next
		slots:   make(chan []byte, openPacks*int(restic.NumBlobTypes)+posters),
		running: make(map[*job]struct{}),
		packs:   make(map[*pack]struct{}),
		indexer: indexer{since: time.Now()},
	}
	s.uploads = make(chan *pack, cap(s.slots)+workers+8)
	s.ctx, s.fail = context.WithCancelCause(ctx)
	for range cap(s.buffers) {
		s.buffers <- nil
	}
	for range cap(s.slots) {
		s.slots <- nil
	}
	for range workers {
		s.workers.Go(s.work)
	}
	for range posters {
		s.posters.Go(s.post)
	}
	return s
}

// maxPosters bounds concurrent uploads, each of which keeps a pack in memory.
const maxPosters = 8

// stop ends the goroutines. Open packs that nobody flushed are dropped with the blobs in them.
func (s *session) stop() {
	close(s.jobs)
	s.workers.Wait()
	s.fail(errStopped)
	close(s.uploads)
	s.posters.Wait()
	s.index.DropPending()
	close(s.ended)
}

var errStopped = errors.New("the backup has ended")

// admit makes a job of a blob that nobody stores yet, or returns nil. The job is registered before anyone can find the blob
// pending: whoever counts on it then finds the job when it flushes.
func (s *session) admit(h restic.BlobHandle, size int, stats *counters) *job {
	if s.index.Has(h) {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.index.Pend(h, size) {
		return nil
	}
	j := &job{handle: h, stats: stats, done: make(chan struct{})}
	s.running[j] = struct{}{}
	return j
}

// send hands an admitted job to the workers. It is not ended by the caller's context: another commit may count on this
// blob already.
func (s *session) send(j *job) error {
	select {
	case s.jobs <- j:
		return nil
	case <-s.ctx.Done():
		return context.Cause(s.ctx)
	}
}

// submit stores a blob whether or not it is known.
func (s *session) submit(j *job) error {
	j.done = make(chan struct{})
	s.mu.Lock()
	s.running[j] = struct{}{}
	s.mu.Unlock()
	return s.send(j)
}

// buffer waits for a free buffer and gives it the length n. Buffers have the length of the longest chunk at once: what is never
// touched takes no memory, while buffers that grow leave garbage behind.
func (s *session) buffer(n int) ([]byte, error) {
	select {
	case b := <-s.buffers:
		if cap(b) < max(n, chunkBuffer) {
			b = make([]byte, n, max(n, chunkBuffer))
		}
		return b[:n], nil
	case <-s.ctx.Done():
		return nil, context.Cause(s.ctx)
	}
}

func (s *session) release(b []byte) {
	if cap(b) > chunkBuffer {
		b = nil
	}
	s.buffers <- b
}

// work runs one worker: its two scratch buffers hold a compressed blob and what verifying decoded.
func (s *session) work() {
	const slack = 64 << 10 // what a frame may be longer than its content
	scratch := [2][]byte{make([]byte, 0, chunkBuffer+slack), make([]byte, 0, chunkBuffer+slack)}
	for j := range s.jobs {
		if s.ctx.Err() == nil {
			if err := s.store(j, &scratch); err != nil {
				s.fail(err)
			}
		}
		if j.pooled {
			s.release(j.data)
		}
		s.mu.Lock()
		delete(s.running, j)
		s.mu.Unlock()
		close(j.done)
	}
}

// store compresses, seals and verifies a blob.
func (s *session) store(j *job, scratch *[2][]byte) error {
	r := s.r
	stored := j.data
	b := restic.Blob{BlobHandle: j.handle}
	if r.config.Version >= 2 && len(j.data) > 0 && (j.handle.Type == restic.TreeBlob || !r.zstd.Off()) {
		compress := r.zstd.Compress
		if j.handle.Type == restic.DataBlob {
			compress = r.zstd.CompressChunk
		}
		scratch[0] = compress(scratch[0][:0], j.data)
		if len(scratch[0]) < len(j.data) {
			stored, b.Uncompressed = scratch[0], uint32(len(j.data))
		}
	}
	b.Length = uint32(len(stored) + restic.Sealed)
	p, region, err := s.reserve(b)
	if err != nil {
		return err
	}
	defer s.sealed(p)
	r.key.Seal(region[:0], stored)
	if err := r.verify(b, region, j.data, scratch); err != nil {
		return err
	}
	j.stats.stored(j.handle.Type, len(j.data), len(region))
	return nil
}

// verify opens what was just sealed: a bit that flipped in memory must not become the only copy of a chunk. The plaintext
// is compared, which is cheaper than hashing it once more.
func (r *Repository) verify(b restic.Blob, sealed, plain []byte, scratch *[2][]byte) error {
	opened, err := r.key.Open(scratch[1][:0], sealed)
	if err == nil && b.Compressed() {
		scratch[1] = opened
		// Opened equals the frame; decoding needs another destination, for which the frame's own buffer is free now.
		if cap(scratch[0]) < len(plain) {
			scratch[0] = make([]byte, len(plain))
		}
		scratch[0] = scratch[0][:len(plain)]
		err = r.zstd.Decompress(scratch[0], opened)
		opened = scratch[0]
	} else {
		scratch[1] = opened
	}
	if err == nil && !bytes.Equal(opened, plain) {
		err = errors.New("it reads back differently")
	}
	if err != nil {
		return fmt.Errorf("verify %s before it is written: %w (%s)", b.BlobHandle, err, faultyMachine)
	}
	return nil
}

// reserve finds room for a sealed blob in an open pack. The caller fills the region, then calls sealed.
func (s *session) reserve(b restic.Blob) (*pack, []byte, error) {
	i := rand.IntN(openPacks)
	if b.Length > chunkBuffer+restic.Sealed { // it would not fit behind what is nearly full: it gets a pack of its own
		p := s.newPack(b.Type, make([]byte, 0, int(b.Length)+headerRoom(1)))
		p.bespoke = true
		s.mu.Lock()
		defer s.mu.Unlock()
		s.packs[p] = struct{}{}
		region := p.add(b)
		p.closed = true
		return p, region, nil
	}
	room := s.r.packSize + chunkBuffer + restic.Sealed + headerRoom(maxPackBlobs)
	var spare []byte
	have := false
	for {
		s.mu.Lock()
		p := s.open[b.Type][i]
		if p == nil && have {
			if cap(spare) < room {
				spare = make([]byte, 0, room)
			}
			p = s.newPack(b.Type, spare[:0])
			have = false
			s.open[b.Type][i] = p
			s.packs[p] = struct{}{}
		}
		if p != nil {
			region := p.add(b)
			if len(p.buf) >= s.r.packSize || len(p.blobs) == maxPackBlobs {
				p.closed = true
				s.open[b.Type][i] = nil
			}
			s.mu.Unlock()
			if have {
				s.slots <- spare
			}
			return p, region, nil
		}
		s.mu.Unlock()
		select {
		case spare = <-s.slots:
			have = true
		case <-s.ctx.Done():
			return nil, nil, context.Cause(s.ctx)
		}
	}
}

// maxPackBlobs keeps headers of packs with tiny blobs, trees, small.
const maxPackBlobs = 10_000

// headerRoom is the length of the sealed header of n blobs and the trailer, at most.
func headerRoom(n int) int { return n*41 + restic.Sealed + 4 }

func (s *session) newPack(kind restic.BlobType, buf []byte) *pack {
	return &pack{kind: kind, buf: buf, done: make(chan struct{})}
}

// add reserves room at the end of the pack. The result has no more capacity than the blob needs.
func (p *pack) add(b restic.Blob) []byte {
	b.Offset = uint32(len(p.buf))
	p.buf = p.buf[:len(p.buf)+int(b.Length)]
	p.blobs = append(p.blobs, b)
	p.writing++
	return p.buf[b.Offset:len(p.buf):len(p.buf)]
}

// sealed notes that a reserved region is filled, and sends the pack off if it was the last one.
func (s *session) sealed(p *pack) {
	s.mu.Lock()
	p.writing--
	ready := p.closed && p.writing == 0
	s.mu.Unlock()
	if ready {
		s.uploads <- p
	}
}

// post runs one uploader.
func (s *session) post() {
	for p := range s.uploads {
		if s.ctx.Err() == nil {
			if err := s.save(p); err != nil {
				s.fail(err)
			}
		}
		s.mu.Lock()
		delete(s.packs, p)
		s.mu.Unlock()
		if !p.bespoke {
			s.slots <- p.buf[:0]
		}
		close(p.done)
	}
}

// save completes a pack, writes it, and puts it into the index.
func (s *session) save(p *pack) error {
	id, data, err := s.r.completePack(p.buf, p.blobs)
	if err != nil {
		return err
	}
	if err := s.r.be.Save(s.ctx, backend.Handle{Type: restic.PackFile, Name: id.String()}, data); err != nil {
		return fmt.Errorf("save pack: %w", err)
	}
	if p.kind == restic.TreeBlob {
		s.r.cache.put(backend.Handle{Type: restic.PackFile, Name: id.String()}, data)
	}
	if _, err := s.index.AddPack(id, p.blobs); err != nil {
		return err
	}
	if s.indexer.add(restic.IndexPack{ID: id, Blobs: p.blobs}) {
		return s.indexer.flush(s.ctx, s.r)
	}
	return nil
}

// completePack appends the header to a pack's blobs and names the whole.
func (r *Repository) completePack(buf []byte, blobs []restic.Blob) (restic.ID, []byte, error) {
	header := restic.AppendPackHeader(nil, blobs)
	n := len(buf)
	buf = r.key.Seal(buf, header)
	sealed := buf[n:]
	if back, err := r.key.Open(nil, sealed); err != nil || !bytes.Equal(back, header) {
		return restic.ID{}, nil, fmt.Errorf("verify the header of a pack before it is written: %w (%s)", errors.Join(err, errors.New("it reads back differently")), faultyMachine)
	}
	buf = restic.AppendPackTrailer(buf, len(sealed))
	return restic.Hash(buf), buf, nil
}

// flush makes every blob that was submitted before durable: in a pack, named by an index.
func (s *session) flush(ctx context.Context) error {
	s.mu.Lock()
	jobs := make([]*job, 0, len(s.running))
	for j := range s.running {
		jobs = append(jobs, j)
	}
	s.mu.Unlock()
	for _, j := range jobs {
		if err := s.await(ctx, j.done); err != nil {
			return err
		}
	}
	s.mu.Lock()
	ready := s.closeAll()
	packs := make([]*pack, 0, len(s.packs))
	for p := range s.packs {
		packs = append(packs, p)
	}
	s.mu.Unlock()
	for _, p := range ready {
		s.uploads <- p
	}
	for _, p := range packs {
		if err := s.await(ctx, p.done); err != nil {
			return err
		}
	}
	// What failed before the lists were made is in neither. It has failed the session first.
	if err := context.Cause(s.ctx); err != nil {
		return err
	}
	return s.indexer.flush(ctx, s.r)
}

func (s *session) await(ctx context.Context, done <-chan struct{}) error {
	select {
	case <-done:
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-s.ctx.Done():
	}
	return context.Cause(s.ctx)
}

// closeAll closes the open packs, joining two of a type where they fit into one, and returns those that nobody fills.
func (s *session) closeAll() (ready []*pack) {
	for kind := range s.open {
		open := &s.open[kind]
		if a, b := open[0], open[1]; a != nil && b != nil && a.writing == 0 && b.writing == 0 &&
			len(a.buf)+len(b.buf) <= s.r.packSize && len(a.blobs)+len(b.blobs) <= maxPackBlobs {
			for _, blob := range b.blobs {
				blob.Offset += uint32(len(a.buf))
				a.blobs = append(a.blobs, blob)
			}
			a.buf = append(a.buf, b.buf...)
			open[1] = nil
			delete(s.packs, b)
			s.slots <- b.buf[:0]
			close(b.done)
		}
		for i, p := range open {
			if p == nil {
				continue
			}
			open[i] = nil
			p.closed = true
			if p.writing == 0 {
				ready = append(ready, p)
			}
		}
	}
	return ready
}

// indexer collects packs that no index file names yet.
type indexer struct {
	mu    sync.Mutex
	packs []restic.IndexPack
	blobs int
	since time.Time // of the last index file
}

// add notes a pack and reports whether it is time to write an index file.
func (x *indexer) add(p restic.IndexPack) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.packs = append(x.packs, p)
	x.blobs += len(p.Blobs)
	return x.blobs >= indexBlobs || time.Since(x.since) >= indexAge
}

// flush writes what was collected. Who waits for another's flush finds its own packs written, or writes them itself.
func (x *indexer) flush(ctx context.Context, r *Repository) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(x.packs) == 0 {
		return nil
	}
	id, err := r.saveDocument(ctx, restic.IndexFile, restic.AppendIndex(nil, x.packs))
	if err != nil {
		return err
	}
	r.indexWritten(id)
	x.packs, x.blobs, x.since = nil, 0, time.Now()
	return nil
}
