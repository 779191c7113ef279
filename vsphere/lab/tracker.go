package lab

import (
	"crypto/rand"
	"fmt"
	"math/bits"
	"strconv"
	"strings"

	"github.com/vmkeep/vmkeep/chunker/extent"
)

// bitmap says which blocks a delta holds.
type bitmap []uint64

func newBitmap(size int64) bitmap {
	return make(bitmap, (size/blockSize+64)/64)
}

func (m bitmap) get(b int64) bool { return m[b/64]&(1<<(b%64)) != 0 }
func (m bitmap) set(b int64)      { m[b/64] |= 1 << (b % 64) }

// extents turns the bitmap into byte ranges within a part of the disk.
func (m bitmap) extents(within extent.Extent) extent.Set {
	var out []extent.Extent
	const word = 64 * blockSize // bytes of the disk
	for w := within.Off / word; w < int64(len(m)) && w*word < within.End(); w++ {
		v := m[w]
		for v != 0 {
			lo := bits.TrailingZeros64(v)
			n := bits.TrailingZeros64(^(v >> lo))
			out = append(out, extent.Extent{Off: w*word + int64(lo)*blockSize, Len: int64(n) * blockSize})
			if lo+n == 64 {
				break
			}
			v &^= (1<<n - 1) << lo
		}
	}
	return extent.Of(out...).Clip(within)
}

// tracker is the change tracking of one disk: what vSphere keeps in the -ctk.vmdk file.
//
// Terminology: an epoch is the time between two snapshots. Every granule of the disk remembers the epoch of its
// last write; 0 means never. A changeId "uuid/N" stands for the end of epoch N, so what changed between the
// changeIds N and M is every granule with N < epoch <= M.
type tracker struct {
	uuid  string
	seq   uint32 // the running epoch
	grain int64  // bytes per granule: 64 KiB classically, finer for hardware version 17 and up
	size  int64
	pages []*page // nil page: nothing in it was ever written
	own   []bool  // pages[i] is not shared with a frozen copy
}

const pageGranules = 4096

type page [pageGranules]uint32

// frozenTrack is what a snapshot remembers of a tracker.
type frozenTrack struct {
	uuid  string
	seq   uint32
	grain int64
	size  int64
	pages []*page
}

func newTracker(size, grain int64) *tracker {
	t := &tracker{uuid: newChangeUUID(), seq: 1, grain: grain}
	t.resize(size)
	return t
}

func (t *tracker) resize(size int64) {
	n := int((size + t.grain*pageGranules - 1) / (t.grain * pageGranules))
	for len(t.pages) < n {
		t.pages, t.own = append(t.pages, nil), append(t.own, true)
	}
	t.size = size
}

// mark stamps [off, off+n) with the running epoch.
func (t *tracker) mark(off, n int64) {
	if n <= 0 {
		return
	}
	for g := off / t.grain; g <= (off+n-1)/t.grain; g++ {
		i := g / pageGranules
		switch {
		case t.pages[i] == nil:
			t.pages[i], t.own[i] = new(page), true
		case !t.own[i]:
			c := *t.pages[i]
			t.pages[i], t.own[i] = &c, true
		}
		t.pages[i][g%pageGranules] = t.seq
	}
}

// freeze ends the running epoch and returns what is known up to here.
func (t *tracker) freeze() *frozenTrack {
	f := t.view()
	clear(t.own)
	t.seq++
	return f
}

// view is the tracker as it is now, good until the next write.
func (t *tracker) view() *frozenTrack {
	return &frozenTrack{uuid: t.uuid, seq: t.seq, grain: t.grain, size: t.size, pages: append([]*page(nil), t.pages...)}
}

// revive is a running tracker that continues where f stopped: what a revert to a snapshot leaves behind.
func (f *frozenTrack) revive() *tracker {
	return &tracker{uuid: f.uuid, seq: f.seq + 1, grain: f.grain, size: f.size,
		pages: append([]*page(nil), f.pages...), own: make([]bool, len(f.pages))}
}

func (f *frozenTrack) changeID() string { return fmt.Sprintf("%s/%d", f.uuid, f.seq) }

// since returns what was written after the epoch since, in granules cut at the disk's end.
func (f *frozenTrack) since(since uint32) extent.Set {
	var out []extent.Extent
	for i, p := range f.pages {
		if p == nil {
			continue
		}
		for k, epoch := range p {
			if epoch <= since || epoch > f.seq {
				continue
			}
			off := (int64(i)*pageGranules + int64(k)) * f.grain
			if n := min(f.grain, f.size-off); n > 0 {
				if last := len(out) - 1; last >= 0 && out[last].End() == off {
					out[last].Len += n
				} else {
					out = append(out, extent.Extent{Off: off, Len: n})
				}
			}
		}
	}
	return extent.Of(out...)
}

// newChangeUUID makes a uuid as vSphere spells those of change tracking:
// "52 2d 7b 8f ac 61 51 cc-77 4c 7b ec 91 50 bb 7b".
func newChangeUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails, by its documentation
	b[0] = 0x52
	return fmt.Sprintf("% x-% x", b[:8], b[8:])
}

func parseChangeID(s string) (uuid string, seq uint32, ok bool) {
	uuid, n, found := strings.Cut(s, "/")
	if !found || len(uuid) != 47 || uuid[23] != '-' {
		return "", 0, false
	}
	v, err := strconv.ParseUint(n, 10, 32)
	return uuid, uint32(v), err == nil
}
