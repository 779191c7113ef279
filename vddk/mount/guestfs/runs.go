package guestfs

import (
	"fmt"
	"io"
	"math"
	"slices"
	"sort"

	"github.com/vmkeep/vmkeep/chunker/extent"
)

// maxRuns bounds the runs kept for one stream: 4 Mi runs are 100 MB. A file in more pieces than that is
// refused instead of being read.
const maxRuns = 4 << 20

// Map collects where the bytes of a stream lie, as a format finds them, in any order.
// Terminology: file offsets count from the start of the stream, disk offsets from the start of the volume.
type Map struct {
	runs []run
}

// run is a Run in 24 bytes: only Data and Zero occur, and Zero has disk < 0.
type run struct{ file, disk, len int64 }

// join appends s to r when it continues it in the stream and on the volume.
func (r *run) join(s run) bool {
	if r.file+r.len != s.file || r.disk < 0 != (s.disk < 0) || r.disk >= 0 && r.disk+r.len != s.disk {
		return false
	}
	r.len += s.len
	return true
}

// Add says that n bytes of the stream at file lie at disk; disk < 0: they were allocated and never written.
// Bytes never named are holes. Neighbours are joined.
func (m *Map) Add(file, disk, n int64) error {
	if file < 0 || n < 0 || file > math.MaxInt64-n || disk > math.MaxInt64-n {
		return Damaged("run of %d bytes at %d", n, file)
	}
	if n == 0 {
		return nil
	}
	if k := len(m.runs); k > 0 && m.runs[k-1].join(run{file, disk, n}) {
		return nil
	}
	if len(m.runs) >= maxRuns {
		return fmt.Errorf("file in more than %d pieces: %w", maxRuns, ErrTooLarge)
	}
	m.runs = append(m.runs, run{file, disk, n})
	return nil
}

// File makes a File of size bytes of the map. Runs that overlap are damage; what lies beyond size is cut off.
func (m *Map) File(src *Source, size int64) (File, error) { return m.file(src, src.ReadData, size) }

// Meta is File for streams that are metadata (directories, attributes): read through the cache for it.
func (m *Map) Meta(src *Source, size int64) (File, error) { return m.file(src, src.ReadMeta, size) }

func (m *Map) file(src *Source, read func([]byte, int64) error, size int64) (File, error) {
	if size < 0 {
		return nil, Damaged("file of %d bytes", size)
	}
	slices.SortFunc(m.runs, func(a, b run) int {
		if a.file < b.file {
			return -1
		}
		if a.file > b.file {
			return 1
		}
		return 0
	})
	joined := m.runs[:0]
	for _, r := range m.runs {
		if k := len(joined) - 1; k >= 0 {
			if joined[k].file+joined[k].len > r.file {
				return nil, Damaged("two extents hold byte %d of a file", r.file)
			}
			if joined[k].join(r) {
				continue
			}
		}
		joined = append(joined, r)
	}
	m.runs = joined
	end := sort.Search(len(m.runs), func(k int) bool { return m.runs[k].file >= size })
	return &mapFile{src, read, size, m.runs[:end:end]}, nil
}

// mapFile is a stream stored as it is, in runs.
type mapFile struct {
	src  *Source
	get  func([]byte, int64) error
	size int64
	runs []run // sorted, disjoint; gaps are holes
}

func (f *mapFile) Size() int64 { return f.size }

func (f *mapFile) ReadAt(p []byte, off int64) (int, error) {
	return ReadAt(p, off, f.size, f.read)
}

func (f *mapFile) read(p []byte, off int64) error {
	for k := f.find(off); len(p) > 0; {
		n := int64(len(p))
		if k < len(f.runs) && f.runs[k].file <= off {
			r := f.runs[k]
			n = min(n, r.file+r.len-off)
			if r.disk < 0 {
				clear(p[:n])
			} else if err := f.get(p[:n], r.disk+off-r.file); err != nil {
				return err
			}
			k++
		} else {
			if k < len(f.runs) {
				n = min(n, f.runs[k].file-off)
			}
			clear(p[:n])
		}
		p, off = p[n:], off+n
	}
	return nil
}

// find is the index of the first run that ends after off.
func (f *mapFile) find(off int64) int {
	return sort.Search(len(f.runs), func(k int) bool { return f.runs[k].file+f.runs[k].len > off })
}

func (f *mapFile) Runs() ([]Run, error) {
	var out []Run
	at := int64(0)
	hole := func(to int64) {
		if k := len(out); k > 0 && out[k-1].Kind == Zero {
			out[k-1].File.Len += to - at
		} else if to > at {
			out = append(out, Run{File: extent.Extent{Off: at, Len: to - at}, Kind: Zero})
		}
		at = to
	}
	for _, r := range f.runs {
		hole(r.file)
		n := min(r.len, f.size-r.file)
		if r.disk < 0 {
			hole(r.file + n)
			continue
		}
		e := Run{File: extent.Extent{Off: r.file, Len: n}, Disk: extent.Extent{Off: r.disk, Len: n}}
		e.Replayed = f.src.Replayed(e.Disk)
		out = append(out, e)
		at += n
	}
	hole(f.size)
	return out, nil
}

// Bytes is a File kept within metadata, which lies in the extent where of the volume.
func Bytes(src *Source, b []byte, where extent.Extent) File { return &inline{src, b, where} }

type inline struct {
	src   *Source
	b     []byte
	where extent.Extent
}

func (f *inline) Size() int64 { return int64(len(f.b)) }

func (f *inline) ReadAt(p []byte, off int64) (int, error) {
	return ReadAt(p, off, f.Size(), func(p []byte, off int64) error { copy(p, f.b[off:]); return nil })
}

func (f *inline) Runs() ([]Run, error) {
	if len(f.b) == 0 {
		return nil, nil
	}
	return []Run{{
		File: extent.Extent{Len: f.Size()}, Disk: f.where, Kind: Inline,
		Replayed: f.src.Replayed(f.where),
	}}, nil
}

// ReadAt gives read, which fills its buffer or fails, the semantics of io.ReaderAt on size bytes.
func ReadAt(p []byte, off, size int64, read func([]byte, int64) error) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at negative offset %d", off)
	}
	if off >= size {
		if len(p) == 0 {
			return 0, nil
		}
		return 0, io.EOF
	}
	var end error
	if int64(len(p)) > size-off {
		p, end = p[:size-off], io.EOF
	}
	if err := read(p, off); err != nil {
		return 0, err
	}
	return len(p), end
}
