package lvm

import (
	"cmp"
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/vddk/mount/device"
)

// volume builds a logical volume, visible or not, once.
func (g *group) volume(name string) (device.Device, error) {
	if dev := g.built[name]; dev != nil {
		return dev, nil
	}
	if g.lvs.section(name) == nil {
		return nil, fmt.Errorf("volume %q does not exist", name)
	}
	if g.building[name] || len(g.building) > 16 {
		return nil, fmt.Errorf("volume %q is made of itself", name)
	}
	g.building[name] = true
	defer delete(g.building, name)

	type part struct {
		start, n int64
		dev      device.Device
	}
	var parts []part
	for _, s := range g.segments(name) {
		start, count := s.num("start_extent"), s.num("extent_count")
		if start < 0 || count <= 0 || start > maxBytes/g.extent || count > maxBytes/g.extent {
			return nil, fmt.Errorf("segment of %d extents at %d", count, start)
		}
		dev, err := g.segment(s, count*g.extent)
		if err != nil {
			return nil, err
		}
		parts = append(parts, part{start * g.extent, count * g.extent, dev})
	}
	slices.SortFunc(parts, func(a, b part) int { return cmp.Compare(a.start, b.start) })
	size := int64(0)
	for _, p := range parts {
		if p.start != size {
			return nil, fmt.Errorf("no segment holds byte %d", size)
		}
		size += p.n
	}
	if size == 0 {
		return nil, fmt.Errorf("volume %q has no segments", name)
	}
	dev := device.Mapped(size, func(off int64) (device.Target, error) {
		p := parts[sort.Search(len(parts), func(k int) bool { return parts[k].start+parts[k].n > off })]
		return device.Target{Dev: p.dev, Off: off - p.start, Len: p.start + p.n - off}, nil
	})
	g.built[name] = dev
	return dev, nil
}

// leg is the device a segment lies on: extents of a PV, or another volume.
func (g *group) leg(name string, first, n int64) (device.Device, error) {
	if why, ok := g.absent[name]; ok {
		return nil, fmt.Errorf("%s: %w", why, device.ErrMissing)
	}
	var dev device.Device
	start := int64(0)
	if p, ok := g.pvs[name]; ok {
		dev, start = p.dev, p.start
	} else {
		var err error
		if dev, err = g.volume(name); err != nil {
			return nil, err
		}
	}
	if first < 0 || first > maxBytes/g.extent {
		return nil, fmt.Errorf("extent %d of %s", first, name)
	}
	off := start + first*g.extent
	if n > dev.Size() || off > dev.Size()-n {
		return nil, fmt.Errorf("extents at %d of %s lie beyond its end (%d bytes of %d)", first, name, off+n, dev.Size())
	}
	return device.Slice(dev, extent.Extent{Off: off, Len: n}), nil
}

// legs builds the legs in a list of names and extents.
func (g *group) legs(list []any, n int64) ([]device.Device, error) {
	var out []device.Device
	for i := 0; i+1 < len(list); i += 2 {
		name, _ := list[i].(string)
		first, _ := list[i+1].(int64)
		dev, err := g.leg(name, first, n)
		if err != nil {
			return nil, err
		}
		out = append(out, dev)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("segment without legs")
	}
	return out, nil
}

// segment builds the device of one segment of n bytes.
func (g *group) segment(s section, n int64) (device.Device, error) {
	kind, _, _ := strings.Cut(s.str("type"), "+")
	switch {
	case kind == "striped" || kind == "linear":
		list := s.list("stripes")
		count := int64(len(list) / 2)
		if count == 0 || n%count != 0 {
			return nil, fmt.Errorf("%d stripes for %d bytes", count, n)
		}
		legs, err := g.legs(list, n/count)
		if err != nil {
			return nil, err
		}
		if len(legs) == 1 {
			return legs[0], nil
		}
		plain, _ := layoutOf("raid0")
		return striped(legs, s.num("stripe_size")*sectorLen, n, plain)
	case kind == "mirror":
		return g.first(s.list("mirrors"), n)
	case strings.HasPrefix(kind, "raid"):
		return g.raid(kind, s, n)
	case kind == "thin":
		return g.thin(s, n)
	case kind == "cache":
		return g.cached(s, n)
	case kind == "zero":
		return device.Mapped(n, func(off int64) (device.Target, error) { return device.Target{Len: n - off}, nil }), nil
	}
	return nil, fmt.Errorf("segments of type %q are not read; restore or export the disks instead", kind)
}

// first is the first leg of a mirror that is present: while it is being synchronised, LVM copies from it.
func (g *group) first(list []any, n int64) (device.Device, error) {
	var why error
	for i := 0; i+1 < len(list); i += 2 {
		legs, err := g.legs(list[i:i+2], n)
		if err == nil {
			return legs[0], nil
		}
		if why == nil {
			why = err
		}
	}
	if why == nil {
		why = fmt.Errorf("mirror without legs")
	}
	return nil, why
}

// cached is the origin of a cached volume, which holds everything unless the cache writes back.
func (g *group) cached(s section, n int64) (device.Device, error) {
	mode := s.str("cache_mode")
	for _, key := range []string{"cache_pool", "cache_vol"} {
		if m := g.lvs.section(s.str(key)).section("segment1").str("cache_mode"); m != "" {
			mode = m
		}
	}
	if mode != "writethrough" && mode != "passthrough" {
		return nil, fmt.Errorf("its cache (mode %q) may hold data that is not yet on the volume; flush it in the guest (lvchange --cachemode writethrough) before the backup, or restore the machine", mode)
	}
	return g.leg(s.str("origin"), 0, n)
}
