package ntfs

import (
	"fmt"
	"io/fs"
	"math"
	"sort"
	"sync"

	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
)

// run is n clusters of a stream from vcn on; lcn < 0: they are not stored and read as zeros.
type run struct{ vcn, lcn, n int64 }

// runs are sorted and tile a stream from VCN 0 on.
type runs []run

// maxRuns is what an attribute list of the size Windows allows can lead to, and bounds memory to 50 MiB.
const maxRuns = 2 << 20

// parseRuns joins the pieces of an attribute. A run is a byte with the sizes of two little-endian numbers, the
// number of clusters and the distance of their LCN from that of the run before; without the second it is a hole.
//
//	+---------+-----------+------------+
//	| ss | cc | count, cc | delta, ss  |   ... 0
//	+---------+-----------+------------+
func parseRuns(pieces []attribute) (runs, error) {
	var out runs
	at := int64(0)
	for _, a := range pieces {
		if a.resident {
			return nil, guestfs.Damaged("attribute %#x is resident and has runs", a.typ)
		}
		if a.lo != at {
			return nil, guestfs.Damaged("clusters %d to %d of attribute %#x are described nowhere", at, a.lo, a.typ)
		}
		lcn := int64(0)
		for b := a.runs; len(b) > 0 && b[0] != 0; {
			count, size := int(b[0]&15), int(b[0]>>4)
			if count == 0 || count > 8 || size > 8 || 1+count+size > len(b) {
				return nil, guestfs.Damaged("run %x", b[:1])
			}
			n, delta := number8(b[1:1+count]), number8(b[1+count:1+count+size])
			b = b[1+count+size:]
			r := run{at, -1, n}
			if size > 0 {
				if lcn += delta; lcn < 0 || lcn > 1<<50 {
					return nil, guestfs.Damaged("run at cluster %d", lcn)
				}
				r.lcn = lcn
			}
			if n <= 0 || n > 1<<50 || at > 1<<50 {
				return nil, guestfs.Damaged("run of %d clusters", n)
			}
			if len(out) >= maxRuns {
				return nil, fmt.Errorf("file in more than %d pieces: %w", maxRuns, guestfs.ErrTooLarge)
			}
			out = append(out, r)
			at += n
		}
		if at != a.hi+1 {
			return nil, guestfs.Damaged("runs of attribute %#x end at cluster %d, not %d", a.typ, at, a.hi+1)
		}
	}
	return out, nil
}

// number8 is a signed little-endian number of up to eight bytes.
func number8(b []byte) int64 {
	var v int64
	for k := len(b) - 1; k >= 0; k-- {
		if k == len(b)-1 {
			v = int64(int8(b[k]))
		} else {
			v = v<<8 | int64(b[k])
		}
	}
	return v
}

// end is the VCN behind the last run.
func (r runs) end() int64 {
	if len(r) == 0 {
		return 0
	}
	return r[len(r)-1].vcn + r[len(r)-1].n
}

// find is the index of the first run that ends behind vcn.
func (r runs) find(vcn int64) int {
	return sort.Search(len(r), func(k int) bool { return r[k].vcn+r[k].n > vcn })
}

// read fills p with metadata at off of the stream and tells where its first byte lies, extended to len(p).
func (r runs) read(p []byte, off int64, d *driver) (extent.Extent, error) {
	where := extent.Extent{Off: -1, Len: int64(len(p))}
	if off < 0 || off+int64(len(p)) > r.end()*d.cluster {
		return where, guestfs.Damaged("bytes %d to %d of an attribute of %d", off, off+int64(len(p)), r.end()*d.cluster)
	}
	err := r.each(off, int64(len(p)), d.cluster, func(disk, n int64) error {
		if where.Off < 0 {
			where.Off = max(disk, 0)
		}
		q := p[:n]
		p = p[n:]
		if disk < 0 {
			clear(q)
			return nil
		}
		return d.src.ReadMeta(q, disk)
	})
	return where, err
}

// each calls fn with the places of n bytes at off, in order; disk < 0: zeros.
func (r runs) each(off, n, cluster int64, fn func(disk, n int64) error) error {
	for k := r.find(off / cluster); n > 0; k++ {
		m, disk := n, int64(-1)
		if k < len(r) {
			m = min(n, (r[k].vcn+r[k].n)*cluster-off)
			if r[k].lcn >= 0 {
				disk = r[k].lcn*cluster + off - r[k].vcn*cluster
			}
		}
		if err := fn(disk, m); err != nil {
			return err
		}
		off, n = off+m, n-m
	}
	return nil
}

// stream opens an attribute as a file.
func (n *node) stream(typ uint32, name string) (guestfs.File, error) {
	pieces, err := n.pieces(typ, name)
	if err != nil {
		return nil, err
	}
	if len(pieces) == 0 {
		return nil, fmt.Errorf("attribute %#x %q of record %d: %w", typ, name, number(n.ref), fs.ErrNotExist)
	}
	a := pieces[0]
	if a.flags&flagEncrypted != 0 {
		return nil, fmt.Errorf("encrypted with EFS: %w: only the guest has the key; restore the machine and read it there", guestfs.ErrEncrypted)
	}
	if a.resident {
		return guestfs.Bytes(n.d.src, a.value, a.where), nil
	}
	r, err := parseRuns(pieces)
	if err != nil {
		return nil, err
	}
	if a.size > r.end()*n.d.cluster {
		return nil, guestfs.Damaged("stream of %d bytes has room for %d only", a.size, r.end()*n.d.cluster)
	}
	valid := min(a.valid, a.size)
	if method := a.flags & flagCompressed; method != 0 {
		if method != 1 || a.unit == 0 || a.unit > 16 || n.d.cluster<<a.unit > maxUnit {
			return nil, fmt.Errorf("compression %d in units of 2^%d clusters: %w", method, a.unit, guestfs.ErrUnsupported)
		}
		return &compressed{d: n.d, runs: r, size: a.size, valid: valid, unit: n.d.cluster << a.unit, at: -1}, nil
	}
	return n.d.plain(r, a.size, valid)
}

// plain is a stream stored as it is. Behind the valid length it reads as zeros, whatever lies there.
func (d *driver) plain(r runs, size, valid int64) (guestfs.File, error) {
	var m guestfs.Map
	for _, x := range r {
		if x.vcn > math.MaxInt64/d.cluster || x.vcn*d.cluster >= valid {
			break
		}
		if x.lcn < 0 {
			continue
		}
		off := x.vcn * d.cluster
		n := min(x.n*d.cluster, valid-off)
		if err := m.Add(off, x.lcn*d.cluster, n); err != nil {
			return nil, err
		}
	}
	return m.File(d.src, size)
}

// maxUnit bounds a compression unit. Windows makes 16 clusters of up to 4 KiB.
const maxUnit = 1 << 20

// compressed is a stream compressed with LZNT1 in units. Of each unit as many clusters are stored as needed: all
// when it does not shrink, none when it is zeros.
type compressed struct {
	d                 *driver
	runs              runs
	size, valid, unit int64

	mu  sync.Mutex
	at  int64 // unit held in buf, -1: none
	buf []byte
}

func (c *compressed) Size() int64 { return c.size }

func (c *compressed) ReadAt(p []byte, off int64) (int, error) {
	return guestfs.ReadAt(p, off, c.size, c.read)
}

func (c *compressed) read(p []byte, off int64) error {
	if off+int64(len(p)) > c.valid {
		v := max(c.valid-off, 0)
		clear(p[v:])
		p = p[:v]
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(p) > 0 {
		u := off / c.unit
		if err := c.load(u); err != nil {
			return fmt.Errorf("compressed bytes from %d on: %w", u*c.unit, err)
		}
		n := copy(p, c.buf[off-u*c.unit:])
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// stored is how many clusters of unit u are stored, and calls fn with their runs.
func (c *compressed) stored(u int64, fn func(disk, n int64)) int64 {
	lo := u * c.unit / c.d.cluster
	hi, have := lo+c.unit/c.d.cluster, int64(0)
	for k := c.runs.find(lo); k < len(c.runs) && c.runs[k].vcn < hi; k++ {
		r := c.runs[k]
		if r.lcn < 0 {
			continue
		}
		from, to := max(r.vcn, lo), min(r.vcn+r.n, hi)
		have += to - from
		fn((r.lcn+from-r.vcn)*c.d.cluster, (to-from)*c.d.cluster)
	}
	return have
}

func (c *compressed) load(u int64) error {
	if c.at == u {
		return nil
	}
	if c.buf == nil {
		c.buf = make([]byte, c.unit)
	}
	c.at = -1
	var raw []byte
	var err error
	have := c.stored(u, func(disk, n int64) {
		at := len(raw)
		raw = append(raw, make([]byte, n)...)
		if e := c.d.src.ReadData(raw[at:], disk); e != nil && err == nil {
			err = e
		}
	})
	switch {
	case err != nil:
		return err
	case have == 0:
		clear(c.buf)
	case have*c.d.cluster == c.unit:
		copy(c.buf, raw)
	default:
		if err := lznt1(c.buf, raw); err != nil {
			return err
		}
	}
	c.at = u
	return nil
}

func (c *compressed) Runs() ([]guestfs.Run, error) {
	var out []guestfs.Run
	for u := int64(0); u*c.unit < c.size; {
		file := extent.Extent{Off: u * c.unit, Len: min(c.unit, c.size-u*c.unit)}
		var around spread
		have := c.stored(u, around.add)
		kind := guestfs.Encoded
		switch {
		case have == 0 || file.Off >= c.valid:
			kind, around = guestfs.Zero, spread{}
			// A hole may be as large as the volume: step over all of it.
			if k := c.runs.find(file.Off / c.d.cluster); k >= len(c.runs) || file.Off >= c.valid {
				file.Len = c.size - file.Off
			} else if end := (c.runs[k].vcn + c.runs[k].n) * c.d.cluster / c.unit * c.unit; end > file.End() {
				file.Len = min(end, c.size) - file.Off
			}
		case have*c.d.cluster == c.unit && !around.split && file.End() <= c.valid:
			kind, around.e.Len = guestfs.Data, file.Len
		}
		u = (file.End() + c.unit - 1) / c.unit
		r := guestfs.Run{File: file, Disk: around.e, Kind: kind, Replayed: c.d.src.Replayed(around.e)}
		if k := len(out) - 1; k >= 0 && out[k].Kind == kind && kind != guestfs.Encoded && out[k].Replayed == r.Replayed &&
			(kind == guestfs.Zero || out[k].Disk.End() == r.Disk.Off) {
			out[k].File.Len += r.File.Len
			out[k].Disk.Len += r.Disk.Len
			continue
		}
		if len(out) >= maxRuns {
			return nil, fmt.Errorf("file in more than %d pieces: %w", maxRuns, guestfs.ErrTooLarge)
		}
		out = append(out, r)
	}
	return out, nil
}

// spread is the smallest extent around all places added: what must be compared when any of them may have changed
// what is decoded.
type spread struct {
	e     extent.Extent
	split bool
	some  bool
}

func (s *spread) add(disk, n int64) {
	if !s.some {
		s.e, s.some = extent.Extent{Off: disk, Len: n}, true
		return
	}
	s.split = s.split || disk != s.e.End()
	lo, hi := min(s.e.Off, disk), max(s.e.End(), disk+n)
	s.e = extent.Extent{Off: lo, Len: hi - lo}
}
