package lvm

import (
	"errors"
	"fmt"
	"math"

	"github.com/vmkeep/vmkeep/vddk/mount/device"
)

// layout says where data chunk k of row lies among n devices, parity taking the others.
type layout struct {
	parity int64
	data   func(row, k, n int64) int64
}

// rotate is the parity device of a layout that begins with the last device (left) or the first (right).
func left(row, n int64) int64  { return n - 1 - row%n }
func right(row, n int64) int64 { return row % n }

// layoutOf knows the layouts of striped RAID as md(4) names them, "n" being parity last and "0" or raid4 parity first.
//
//	left symmetric, 4 devices:   D0 D1 D2 P      right asymmetric:  P  D0 D1 D2
//	                             D4 D5 P  D3                        D3 P  D4 D5
func layoutOf(kind string) (layout, bool) {
	l, ok := map[string]layout{
		"raid0":      {0, func(_, k, _ int64) int64 { return k }},
		"raid0_meta": {0, func(_, k, _ int64) int64 { return k }},
		"raid4":      {1, func(_, k, _ int64) int64 { return k + 1 }},
		"raid5":      {1, symmetric(left, 1)},
		"raid5_ls":   {1, symmetric(left, 1)},
		"raid5_rs":   {1, symmetric(right, 1)},
		"raid5_la":   {1, asymmetric(left)},
		"raid5_ra":   {1, asymmetric(right)},
		"raid5_n":    {1, func(_, k, _ int64) int64 { return k }},
		"raid6":      {2, asymmetric6(right)},
		"raid6_zr":   {2, asymmetric6(right)},
		"raid6_nr":   {2, asymmetric6(func(row, n int64) int64 { return left(row+1, n) })},
		"raid6_nc":   {2, symmetric(left, 1)}, // Q lies before P, so that data follows P directly
		"raid6_n_6":  {2, func(_, k, _ int64) int64 { return k }},
	}[kind]
	return l, ok
}

func symmetric(parity func(row, n int64) int64, after int64) func(row, k, n int64) int64 {
	return func(row, k, n int64) int64 { return (parity(row, n) + after + k) % n }
}

func asymmetric(parity func(row, n int64) int64) func(row, k, n int64) int64 {
	return func(row, k, n int64) int64 {
		if k >= parity(row, n) {
			return k + 1
		}
		return k
	}
}

// asymmetric6 has Q behind P; with P last, Q is first.
func asymmetric6(parity func(row, n int64) int64) func(row, k, n int64) int64 {
	return func(row, k, n int64) int64 {
		p := parity(row, n)
		switch {
		case p == n-1:
			return k + 1
		case k >= p:
			return k + 2
		}
		return k
	}
}

// striped is n bytes laid over legs in chunks.
func striped(legs []device.Device, chunk, n int64, l layout) (device.Device, error) {
	count := int64(len(legs))
	data := count - l.parity
	if data < 1 || chunk < sectorLen || chunk > 1<<30 {
		return nil, fmt.Errorf("%d legs with stripes of %d bytes", count, chunk)
	}
	return device.Mapped(n, func(off int64) (device.Target, error) {
		c, in := off/chunk, off%chunk
		row, k := c/data, c%data
		return device.Target{Dev: legs[l.data(row, k, count)], Off: row*chunk + in, Len: chunk - in}, nil
	}), nil
}

// raid builds a segment of RAID. Its legs are pairs of volumes, one for its own metadata and one for data.
func (g *group) raid(kind string, s section, n int64) (device.Device, error) {
	list := s.list("raids")
	if kind == "raid0" && len(list) == 0 {
		for _, name := range s.list("raid0_lvs") {
			list = append(list, "", name)
		}
	}
	if kind == "raid1" {
		return g.mirrored(list, n)
	}
	chunk := s.num("stripe_size") * sectorLen
	if s.num("data_offset") != 0 || s.num("reshape_count") != 0 || s.num("data_copies") > 2 {
		return nil, errors.New("it is being reshaped; wait until that is done, or restore the machine")
	}
	l, ok := layoutOf(kind)
	near := kind == "raid10" || kind == "raid10_near"
	if !ok && !near {
		return nil, fmt.Errorf("segments of type %q are not read; restore or export the disks instead", kind)
	}
	count := int64(len(list) / 2)
	data := count - l.parity
	if near {
		data = count / 2
	}
	if data < 1 {
		return nil, fmt.Errorf("%s of %d legs", kind, count)
	}
	var legs []device.Device
	for i := 1; i < len(list); i += 2 {
		name, _ := list[i].(string)
		dev, err := g.volume(name)
		if err != nil {
			if near { // the other copy may do
				legs = append(legs, nil)
				continue
			}
			return nil, fmt.Errorf("%w (rebuilding from parity is not done; restore the machine instead)", err)
		}
		if near && g.failed(list, i/2) {
			dev = nil
		}
		legs = append(legs, dev)
	}
	if near {
		return mirroredStripes(legs, chunk, n)
	}
	return striped(legs, chunk, n, l)
}

// mirroredStripes is RAID 10 with two near copies: copies of a chunk follow one another, from device to device and
// row to row.
func mirroredStripes(legs []device.Device, chunk, n int64) (device.Device, error) {
	count := int64(len(legs))
	if count < 2 || count%2 != 0 || chunk < sectorLen || chunk > 1<<30 {
		return nil, fmt.Errorf("raid10 of %d legs with stripes of %d bytes", count, chunk)
	}
	for i := 0; i < len(legs); i += 2 {
		if legs[i] == nil {
			legs[i] = legs[i+1]
		}
		if legs[i] == nil {
			return nil, fmt.Errorf("both copies of leg %d: %w", i/2, device.ErrMissing)
		}
	}
	return device.Mapped(n, func(off int64) (device.Target, error) {
		c, in := off/chunk, off%chunk
		return device.Target{Dev: legs[c*2%count], Off: c*2/count*chunk + in, Len: chunk - in}, nil
	}), nil
}

// mirrored is the first whole leg of RAID 1.
func (g *group) mirrored(list []any, n int64) (device.Device, error) {
	var why error
	for i := 1; i < len(list); i += 2 {
		if g.failed(list, i/2) {
			why = errors.Join(why, fmt.Errorf("leg %d has failed or is being rebuilt", i/2))
			continue
		}
		name, _ := list[i].(string)
		dev, err := g.leg(name, 0, n)
		if err == nil {
			return dev, nil
		}
		why = errors.Join(why, err)
	}
	if why == nil {
		why = errors.New("mirror without legs")
	}
	return nil, why
}

// failed reports whether the RAID's own metadata says that leg k does not hold all data. The superblock of each leg
// is in its metadata volume, the one with most events counts:
//
//	DmRd(4) features(4) devices(4) position(4) events(8) failed devices(8) rebuilt up to(8) synchronised up to(8)
func (g *group) failed(list []any, k int) bool {
	var failed, events uint64
	rebuilt := uint64(math.MaxUint64)
	for i := 0; i+1 < len(list); i += 2 {
		name, _ := list[i].(string)
		if name == "" {
			continue
		}
		dev, err := g.volume(name)
		if err != nil {
			continue
		}
		b := make([]byte, sectorLen)
		if read(dev, b, 0) != nil || string(b[:4]) != "DmRd" {
			continue
		}
		if e := le.Uint64(b[16:]); e >= events {
			failed, events = le.Uint64(b[24:]), e
		}
		if i/2 == k {
			rebuilt = le.Uint64(b[32:])
		}
	}
	return k < 64 && failed>>k&1 != 0 || rebuilt != math.MaxUint64
}
