package lvm

import (
	"errors"
	"fmt"
	"math"

	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/vddk/mount/device"
	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
)

// Metadata of a thin pool lies in nodes of 4 KiB. It is never changed in place: the superblock, node 0, leads to the
// last whole transaction.
//
//	superblock: 20: magic 27022010(8)   140: root of mappings(8)   150: sectors of a data chunk(4)      (offsets in hex)
//	node:       crc(4) flags(4: 1 inner, 2 leaf) own number(8) entries(4) room(4) bytes of a value(4) 0(4), keys(8 each),
//	            values, both arrays as long as room
//
// The tree of mappings leads from a volume's number to its own tree, and that from a chunk of the volume to
// chunk of the pool << 24 | time.
const (
	nodeLen   = 4096
	thinMagic = 27022010
	maxChunk  = 1 << 30 // bytes, LVM's limit
)

// thin builds a thin volume of n bytes.
func (g *group) thin(s section, n int64) (device.Device, error) {
	pool := g.lvs.section(s.str("thin_pool")).section("segment1")
	meta, err := g.volume(pool.str("metadata"))
	if err != nil {
		return nil, fmt.Errorf("thin pool's metadata: %w", err)
	}
	data, err := g.volume(pool.str("pool"))
	if err != nil {
		return nil, fmt.Errorf("thin pool's data: %w", err)
	}
	sb := make([]byte, nodeLen)
	if err := read(meta, sb, 0); err != nil {
		return nil, fmt.Errorf("thin pool's metadata: %w", err)
	}
	if le.Uint64(sb[0x20:]) != thinMagic {
		return nil, errors.New("thin pool's metadata has no magic")
	}
	chunk := int64(le.Uint32(sb[0x150:])) * sectorLen
	if chunk < 64<<10 || chunk > maxChunk {
		return nil, fmt.Errorf("thin pool has chunks of %d bytes", chunk)
	}
	t := &mappings{guestfs.NewSource(meta)}
	root, ok, err := t.get(le.Uint64(sb[0x140:]), uint64(s.num("device_id")))
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, fmt.Errorf("thin pool knows no volume %d", s.num("device_id"))
	}
	var origin device.Device
	if name := s.str("external_origin"); name != "" {
		if origin, err = g.volume(name); err != nil {
			return nil, fmt.Errorf("external origin: %w", err)
		}
	}
	return device.Mapped(n, func(off int64) (device.Target, error) {
		c, in := off/chunk, off%chunk
		v, ok, err := t.get(root, uint64(c))
		switch {
		case err != nil:
			return device.Target{}, err
		case ok && v>>24 > uint64(math.MaxInt64/maxChunk):
			return device.Target{}, guestfs.Damaged("thin chunk %d lies in chunk %d of the pool", c, v>>24)
		case ok:
			at := int64(v>>24)*chunk + in
			if at+chunk-in > data.Size() {
				return device.Target{}, guestfs.Damaged("thin chunk %d lies beyond the pool", c)
			}
			return device.Target{Dev: data, Off: at, Len: chunk - in}, nil
		case origin != nil && off < origin.Size():
			return device.Target{Dev: origin, Off: off, Len: min(chunk-in, origin.Size()-off)}, nil
		}
		return device.Target{Len: chunk - in}, nil // never written
	}), nil
}

// mappings reads trees of a pool through the bounded cache of a Source.
type mappings struct{ src *guestfs.Source }

// get finds a key in the tree at root.
func (t *mappings) get(root, key uint64) (value uint64, ok bool, err error) {
	node := root
	for range 12 { // each node has at least two entries, usually over a hundred
		if node > uint64(t.src.Size()/nodeLen) {
			return 0, false, guestfs.Damaged("thin pool's metadata leads to node %d", node)
		}
		b, err := t.src.Meta(int64(node)*nodeLen, nodeLen)
		if err != nil {
			return 0, false, err
		}
		flags, n, room := le.Uint32(b[4:]), int(le.Uint32(b[16:])), int(le.Uint32(b[20:]))
		if le.Uint64(b[8:]) != node || room < 0 || room > (nodeLen-32)/16 || n < 0 || n > room {
			return 0, false, guestfs.Damaged("node %d of a thin pool's metadata", node)
		}
		lo, hi := -1, n // the last key <= key is at lo
		for hi-lo > 1 {
			if mid := (lo + hi) / 2; le.Uint64(b[32+8*mid:]) <= key {
				lo = mid
			} else {
				hi = mid
			}
		}
		if lo < 0 {
			return 0, false, nil
		}
		v := le.Uint64(b[32+8*room+8*lo:])
		if flags&2 != 0 {
			return v, le.Uint64(b[32+8*lo:]) == key, nil
		}
		node = v
	}
	return 0, false, guestfs.Damaged("a thin pool's metadata is too deep")
}

// maxExceptions bounds the chunks of a snapshot that are kept in memory: 100 MB.
const maxExceptions = 2 << 20

// snapshot builds a snapshot volume: where the origin was changed after it was taken, the old chunk lies in store.
//
//	store:      chunk 0: SnAp(4) valid(4) version(4) sectors of a chunk(4); then, again and again, a chunk of
//	            exceptions and the chunks they speak of
//	exception:  chunk of the origin(8) chunk of the store(8), 0 ends the list
func snapshot(origin, store device.Device) (device.Device, error) {
	h := make([]byte, 16)
	if err := read(store, h, 0); err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	chunk := int64(le.Uint32(h[12:])) * sectorLen
	switch {
	case string(h[:4]) != "SnAp":
		return nil, errors.New("snapshot's store has no magic")
	case le.Uint32(h[4:]) != 1:
		return nil, errors.New("the snapshot is invalid: its store was too small and it lost its content")
	case chunk < 4096 || chunk > 1<<20:
		return nil, fmt.Errorf("snapshot with chunks of %d bytes", chunk)
	}
	moved := map[int64]int64{}
	per := chunk / 16
	src := guestfs.NewSource(store)
	for area := int64(0); ; area++ {
		off := (1 + area*(per+1)) * chunk
		if off+chunk > store.Size() {
			break
		}
		b, err := src.Meta(off, int(chunk))
		if err != nil {
			return nil, fmt.Errorf("snapshot: %w", err)
		}
		end := false
		for ; len(b) > 0 && !end; b = b[16:] {
			from, to := int64(le.Uint64(b)), int64(le.Uint64(b[8:]))
			switch {
			case to == 0:
				end = true
				continue
			case from < 0 || to < 0 || to >= store.Size()/chunk:
				return nil, guestfs.Damaged("snapshot keeps chunk %d in chunk %d", from, to)
			case len(moved) >= maxExceptions:
				return nil, fmt.Errorf("snapshot of more than %d changed chunks: %w; read the origin instead", maxExceptions, guestfs.ErrTooLarge)
			}
			moved[from] = to
		}
		if end {
			break
		}
	}
	kept := device.Slice(store, extent.Extent{Len: store.Size()})
	return device.Mapped(origin.Size(), func(off int64) (device.Target, error) {
		c, in := off/chunk, off%chunk
		if to, ok := moved[c]; ok {
			return device.Target{Dev: kept, Off: to*chunk + in, Len: chunk - in}, nil
		}
		return device.Target{Dev: origin, Off: off, Len: chunk - in}, nil
	}), nil
}
