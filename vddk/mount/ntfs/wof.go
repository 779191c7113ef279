package ntfs

import (
	"bytes"
	"fmt"
	"io"
	"sync"

	"github.com/Microsoft/go-winio/wim/lzx"

	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
)

// The Windows Overlay Filter (CompactOS, "compact /exe") keeps a file's content compressed in a stream of its own;
// the unnamed stream is one hole of the right size. The reparse point tells how, after its header:
//
//	version 1(4) provider(4; 1: in a WIM image, 2: in the file) version 1(4) algorithm(4)
//
// The stream begins with a table of where each chunk but the first begins, counted from the table's end, in 4 bytes,
// or 8 for files of 4 GiB and more. A chunk as long as what it holds is not compressed.
const wofStream = "WofCompressedData"

// wofChunk is the bytes a chunk holds, by algorithm: XPRESS4K, LZX, XPRESS8K, XPRESS16K.
func wofChunk(algorithm uint32) (int64, bool) {
	sizes := [...]int64{4 << 10, 32 << 10, 8 << 10, 16 << 10}
	if algorithm >= uint32(len(sizes)) {
		return 0, false
	}
	return sizes[algorithm], true
}

type wof struct {
	in    guestfs.File // the compressed stream
	size  int64
	chunk int64
	width int64 // bytes of an entry of the table
	lzx   bool
	src   *guestfs.Source

	mu  sync.Mutex
	at  int64 // chunk held in buf, -1: none
	buf []byte
}

func (n *node) wof(point []byte) (guestfs.File, error) {
	if len(point) < 24 || le.Uint32(point[8:]) != 1 {
		return nil, guestfs.Damaged("overlay information of %d bytes", len(point))
	}
	if provider := le.Uint32(point[12:]); provider != 2 {
		return nil, fmt.Errorf("content is in a WIM image (overlay provider %d): %w; restore the machine and read it there",
			provider, guestfs.ErrUnsupported)
	}
	algorithm := le.Uint32(point[20:])
	chunk, ok := wofChunk(algorithm)
	if !ok {
		return nil, fmt.Errorf("overlay compression %d: %w", algorithm, guestfs.ErrUnsupported)
	}
	in, err := n.stream(typeData, wofStream)
	if err != nil {
		return nil, err
	}
	a, err := n.first(typeData, "")
	if err != nil {
		return nil, err
	}
	if a == nil {
		return nil, guestfs.Damaged("overlay without the stream that tells its size")
	}
	w := &wof{in: in, size: a.bytes(), chunk: chunk, width: 4, lzx: algorithm == 1, src: n.d.src, at: -1}
	if w.size >= 1<<32 {
		w.width = 8
	}
	// Every chunk has at least a byte and its entry.
	if chunks := (w.size + chunk - 1) / chunk; chunks > in.Size()/w.width+1 {
		return nil, guestfs.Damaged("overlay of %d bytes for %d chunks", in.Size(), chunks)
	}
	return w, nil
}

func (w *wof) Size() int64 { return w.size }

func (w *wof) ReadAt(p []byte, off int64) (int, error) {
	return guestfs.ReadAt(p, off, w.size, func(p []byte, off int64) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		for len(p) > 0 {
			c := off / w.chunk
			if err := w.load(c); err != nil {
				return fmt.Errorf("overlay chunk %d: %w", c, err)
			}
			n := copy(p, w.buf[off-c*w.chunk:])
			p, off = p[n:], off+int64(n)
		}
		return nil
	})
}

// place is where chunk c lies in the compressed stream.
func (w *wof) place(c int64) (extent.Extent, error) {
	chunks := (w.size + w.chunk - 1) / w.chunk
	table := (chunks - 1) * w.width
	bound := func(c int64) (int64, error) {
		switch c {
		case 0:
			return table, nil
		case chunks:
			return w.in.Size(), nil
		}
		b := make([]byte, 8)
		if _, err := w.in.ReadAt(b[:w.width], (c-1)*w.width); err != nil && err != io.EOF {
			return 0, err
		}
		v := le.Uint64(b)
		if v > uint64(w.in.Size()) {
			return 0, guestfs.Damaged("it begins at %d of %d", v, w.in.Size())
		}
		return table + int64(v), nil
	}
	from, err := bound(c)
	if err != nil {
		return extent.Extent{}, err
	}
	to, err := bound(c + 1)
	if err != nil {
		return extent.Extent{}, err
	}
	if to <= from || to-from > w.chunk || to > w.in.Size() {
		return extent.Extent{}, guestfs.Damaged("it lies from %d to %d", from, to)
	}
	return extent.Extent{Off: from, Len: to - from}, nil
}

func (w *wof) load(c int64) error {
	if w.at == c {
		return nil
	}
	w.at = -1
	e, err := w.place(c)
	if err != nil {
		return err
	}
	in := make([]byte, e.Len)
	if _, err := w.in.ReadAt(in, e.Off); err != nil && err != io.EOF {
		return err
	}
	out := make([]byte, min(w.chunk, w.size-c*w.chunk))
	switch {
	case len(in) == len(out):
		out = in
	case len(in) > len(out):
		return guestfs.Damaged("%d bytes for %d", len(in), len(out))
	case w.lzx:
		r, err := lzx.NewReader(bytes.NewReader(in), len(out))
		if err != nil {
			return guestfs.Damaged("LZX: %v", err)
		}
		if _, err := io.ReadFull(r, out); err != nil {
			return guestfs.Damaged("LZX: %v", err)
		}
	default:
		if err := xpress(out, in); err != nil {
			return err
		}
	}
	w.at, w.buf = c, out
	return nil
}

func (w *wof) Runs() ([]guestfs.Run, error) {
	if w.size == 0 {
		return nil, nil
	}
	in, err := w.in.Runs()
	if err != nil {
		return nil, err
	}
	// Table and chunks depend on one another: any change of the stream may change any byte of the file.
	var around spread
	kind, replayed := guestfs.Encoded, false
	for _, r := range in {
		if r.Kind != guestfs.Zero {
			around.add(r.Disk.Off, r.Disk.Len)
		}
		if r.Kind == guestfs.Inline {
			kind = guestfs.Inline
		}
		replayed = replayed || r.Replayed
	}
	return []guestfs.Run{{File: extent.Extent{Len: w.size}, Disk: around.e, Kind: kind, Replayed: replayed}}, nil
}
