// Package lvm builds the logical volumes of LVM2 from the disks of a machine.
//
// What is hidden: how a logical volume is made of others and of physical volumes. Linear, striped, mirrored, RAID,
// thin and snapshot volumes and those with a write-through cache become devices that read and locate their bytes;
// of mirrored data the first copy that is whole is used. What cannot be read (a missing disk, a write-back cache,
// VDO) is a device that says so.
//
// Vocabulary, as in lvm(8): a physical volume (PV) is a device with a label; a volume group (VG) is the PVs and
// logical volumes (LV) that one metadata text describes; an extent is the VG's allocation unit; a segment is a range
// of extents of an LV with one layout; a leg is one of the devices a segment lies on.
//
// Sources: lvm.conf(5), lvmraid(7), lvmthin(7) and the texts LVM writes; for thin volumes and snapshots the kernel's
// Documentation/admin-guide/device-mapper; RAID layouts are md's, md(4).
package lvm

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/vmkeep/vmkeep/vddk/mount/device"
)

// Assemble is a [device.Manager].
func Assemble(candidates []device.Candidate) device.Assembly {
	a := assembler{pvs: map[string]*pv{}, out: device.Assembly{Members: map[int]string{}}}
	var order []*pv
	for i, c := range candidates {
		if c.Parted {
			continue
		}
		p, err := readPV(c.Dev)
		if err != nil {
			if !errors.Is(err, errNoLabel) {
				a.problem("%s: %v", c.Name, err)
			}
			continue
		}
		p.name, p.index = c.Name, i
		a.out.Members[i] = "LVM2"
		if twin := a.pvs[p.uuid]; twin != nil {
			a.problem("%s and %s are the same physical volume of LVM (a copied disk?); the first is used", twin.name, p.name)
			continue
		}
		a.pvs[p.uuid] = p
		order = append(order, p)
	}
	a.groups(order)
	return a.out
}

type assembler struct {
	pvs map[string]*pv // by UUID
	out device.Assembly
}

func (a *assembler) problem(format string, args ...any) {
	if len(a.out.Problems) < 100 {
		a.out.Problems = append(a.out.Problems, fmt.Sprintf(format, args...))
	}
}

// groups finds the newest metadata of every volume group and builds its volumes.
func (a *assembler) groups(order []*pv) {
	newest := map[string]*group{} // by UUID of the group
	for _, p := range order {
		for _, t := range p.texts {
			if t.err != nil {
				a.problem("%s: %v", p.name, t.err)
				continue
			}
			if t.s == "" {
				continue
			}
			g, err := newGroup(t.s)
			if err != nil {
				a.problem("%s: %v", p.name, err)
				continue
			}
			if old := newest[g.uuid]; old == nil || old.seq < g.seq {
				newest[g.uuid] = g
			}
		}
	}
	used := map[string]bool{}
	groups := slices.SortedFunc(maps.Values(newest), func(x, y *group) int {
		return strings.Compare(x.name+" "+x.uuid, y.name+" "+y.uuid)
	})
	names := map[string]bool{}
	for _, g := range groups {
		if names[g.name] {
			g.shown = g.name + "-" + g.uuid[:min(6, len(g.uuid))] // two groups of one name: as after vgimportclone
		}
		names[g.name] = true
		a.physical(g, used)
		a.out.Logicals = append(a.out.Logicals, g.volumes()...)
	}
	for _, p := range order {
		if !used[p.uuid] {
			a.problem("%s is a physical volume of LVM whose volume group is described nowhere: the disks with its metadata are not among those given, or it belongs to none", p.name)
		}
	}
}

// physical finds the group's physical volumes among those present.
func (a *assembler) physical(g *group, used map[string]bool) {
	for _, name := range slices.Sorted(maps.Keys(g.text.section("physical_volumes"))) {
		s := g.text.section("physical_volumes").section(name)
		id := strings.ReplaceAll(s.str("id"), "-", "")
		start := s.num("pe_start") * sectorLen
		p := a.pvs[id]
		if p == nil || start < 0 {
			hint := s.str("device")
			if hint != "" {
				hint = " (last seen as " + hint + ")"
			}
			a.problem("volume group %s: physical volume %s%s is missing: open all disks of the machine together", g.name, s.str("id"), hint)
			g.absent[name] = fmt.Sprintf("physical volume %s%s", s.str("id"), hint)
			continue
		}
		used[id] = true
		a.out.Members[p.index] = g.name
		g.pvs[name] = physical{p.dev, start}
	}
}

const sectorLen = 512

// physical is a PV of a group.
type physical struct {
	dev   device.Device
	start int64 // of extent 0, bytes
}

// group is a volume group being built.
type group struct {
	name, shown, uuid string
	seq               int64
	extent            int64 // bytes
	text              section
	lvs               section
	pvs               map[string]physical
	absent            map[string]string // PV -> what it is
	built             map[string]device.Device
	building          map[string]bool
	stores            map[string]section // volume that stores a snapshot -> the snapshot's segment
	merging           map[string]bool    // volumes into which a snapshot is being merged
}

func newGroup(text string) (*group, error) {
	top, err := parse(text)
	if err != nil {
		return nil, err
	}
	for name, v := range top {
		s, ok := v.(section)
		if !ok || s.str("id") == "" {
			continue
		}
		g := &group{
			name: name, shown: name, uuid: s.str("id"), seq: s.num("seqno"), extent: s.num("extent_size") * sectorLen, text: s,
			lvs: s.section("logical_volumes"), pvs: map[string]physical{}, absent: map[string]string{},
			built: map[string]device.Device{}, building: map[string]bool{}, stores: map[string]section{}, merging: map[string]bool{},
		}
		if g.extent <= 0 || g.extent > 1<<40 {
			return nil, fmt.Errorf("volume group %s has extents of %d bytes", name, g.extent)
		}
		for lv := range g.lvs {
			snap := g.lvs.section(lv).section("segment1")
			if snap.str("type") != "snapshot" {
				continue
			}
			if snap.str("merging_store") != "" {
				g.merging[snap.str("origin")] = true
				continue
			}
			g.stores[snap.str("cow_store")] = snap
		}
		return g, nil
	}
	return nil, errors.New("metadata describes no volume group")
}

// volumes builds what the guest's users see: the visible volumes that hold data of theirs.
func (g *group) volumes() []device.Logical {
	var out []device.Logical
	for _, name := range slices.Sorted(maps.Keys(g.lvs)) {
		lv := g.lvs.section(name)
		kind := lv.section("segment1").str("type")
		if !lv.has("status", "VISIBLE") || strings.HasSuffix(kind, "-pool") || kind == "snapshot" {
			continue
		}
		l := device.Logical{
			Name: g.shown + "/" + name, UUID: lv.str("id"),
			Paths: []string{
				"/dev/" + g.name + "/" + name,
				"/dev/mapper/" + strings.ReplaceAll(g.name, "-", "--") + "-" + strings.ReplaceAll(name, "-", "--"),
			},
		}
		dev, err := g.visible(name)
		if err != nil {
			l.Missing = err.Error()
			dev = device.Absent(g.size(name), "logical volume "+l.Name+": "+err.Error())
		}
		l.Dev = dev
		out = append(out, l)
	}
	return out
}

// visible is a volume as the guest sees it: a snapshot's store becomes the snapshot.
func (g *group) visible(name string) (device.Device, error) {
	if g.merging[name] {
		return nil, errors.New("a snapshot is being merged into it; wait until lvconvert --merge is done, and take another recovery point")
	}
	dev, err := g.volume(name)
	if err != nil {
		return nil, err
	}
	if snap := g.stores[name]; snap != nil {
		origin, err := g.volume(snap.str("origin"))
		if err != nil {
			return nil, err
		}
		return snapshot(origin, dev)
	}
	return dev, nil
}

// size is a volume's size as far as its segments are sensible.
func (g *group) size(name string) int64 {
	n := int64(0)
	for _, s := range g.segments(name) {
		start, count := s.num("start_extent"), s.num("extent_count")
		if start >= 0 && count >= 0 && start < maxBytes/g.extent && count < maxBytes/g.extent {
			n = max(n, (start+count)*g.extent)
		}
	}
	return n
}

// maxBytes bounds every size computed from text: LVM's own limit is 8 EiB, ours 1 EiB.
const maxBytes = 1 << 60

func (g *group) segments(name string) []section {
	lv := g.lvs.section(name)
	var out []section
	for i := int64(1); i <= lv.num("segment_count"); i++ {
		s := lv.section(fmt.Sprintf("segment%d", i))
		if s == nil {
			break
		}
		out = append(out, s)
	}
	return out
}
