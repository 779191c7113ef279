package fat

import (
	"fmt"

	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
)

// chains is the table and the clusters it chains, of any variant.
type chains struct {
	src      *guestfs.Source
	table    int64 // bytes from the start of the volume
	heap     int64 // of cluster 2
	cluster  int64 // bytes
	clusters uint32
	width    uint // bits of an entry: 12, 16, 32 (of which 28 count), or 0 for exFAT's 32
}

// Entries of the table that are no cluster, extended to 32 bits.
const (
	free    = 0
	bad     = 0xfffffff7
	lastMin = 0xfffffff8
)

// raw is the entry of a cluster as it is.
func (c *chains) raw(n uint32) (uint32, error) {
	var b [4]byte
	at, size := c.table+int64(n)*4, 4
	switch c.width {
	case 12:
		at, size = c.table+int64(n)+int64(n/2), 2
	case 16:
		at, size = c.table+int64(n)*2, 2
	}
	if err := c.src.ReadMeta(b[:size], at); err != nil {
		return 0, err
	}
	v := le.Uint32(b[:])
	switch {
	case c.width == 12 && n&1 != 0:
		v >>= 4
	case c.width == 12:
		v &= 0xfff
	case c.width == 32:
		v &= 0xfffffff
	}
	return v, nil
}

// next is the cluster after n, or lastMin and above at the end of its chain.
func (c *chains) next(n uint32) (uint32, error) {
	v, err := c.raw(n)
	if err != nil {
		return 0, err
	}
	high := map[uint]uint32{12: 0xff7, 16: 0xfff7, 32: 0xffffff7, 0: bad}[c.width]
	if v >= high {
		v = v - high + bad
	}
	if v < lastMin && (v < 2 || v-2 >= c.clusters) {
		return 0, guestfs.Damaged("entry %#x of cluster %d in the table", v, n)
	}
	return v, nil
}

// at is where cluster n lies on the volume.
func (c *chains) at(n uint32) (int64, error) {
	if n < 2 || n-2 >= c.clusters {
		return 0, guestfs.Damaged("reference to cluster %d of %d", n, c.clusters)
	}
	return c.heap + int64(n-2)*c.cluster, nil
}

// follow adds the clusters of a chain to m until they hold size bytes, the last one cut there, or to the chain's end
// for size < 0. It returns how many bytes the clusters hold.
func (c *chains) follow(m *guestfs.Map, head uint32, size int64) (int64, error) {
	n, off := head, int64(0)
	for k := uint32(0); size < 0 || off < size; k++ {
		if k > c.clusters {
			return 0, guestfs.Damaged("chain of clusters from %d on has no end", head)
		}
		at, err := c.at(n)
		if err != nil {
			return 0, err
		}
		length := c.cluster
		if size >= 0 {
			length = min(length, size-off)
		}
		if err := m.Add(off, at, length); err != nil {
			return 0, err
		}
		off += c.cluster
		if off >= size && size >= 0 {
			break
		}
		if n, err = c.next(n); err != nil {
			return 0, err
		}
		if n >= lastMin {
			break
		}
	}
	if off < size {
		return 0, guestfs.Damaged("chain of clusters from %d on ends at byte %d of %d", head, off, size)
	}
	return off, nil
}

// records calls fn with the records of a directory from byte off on, in pieces that lie together, and where they
// lie, until it returns false.
func records(src *guestfs.Source, dir guestfs.File, off int64, fn func(b []byte, off, at int64) bool) error {
	runs, err := dir.Runs()
	if err != nil {
		return err
	}
	const piece = 64 << 10
	for _, r := range runs {
		for from := max(off, r.File.Off); from < r.File.End(); {
			n := min(piece, r.File.End()-from)
			b := make([]byte, n)
			at := r.Disk.Off + from - r.File.Off
			if err := src.ReadMeta(b, at); err != nil {
				return fmt.Errorf("directory: %w", err)
			}
			for p := int64(0); p+recordLen <= n; p += recordLen {
				if !fn(b[p:p+recordLen], from+p, at+p) {
					return nil
				}
			}
			from += n
		}
	}
	return nil
}
