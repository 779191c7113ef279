package vsphere

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"
)

// Why a disk is left out of snapshots, or out of change tracking. Stable words: points and reports carry them.
const (
	unprotectedIndependent = "independent disk: snapshots leave it out"
	unprotectedPhysical    = "physical raw device mapping: snapshots leave it out"
	unprotectedBus         = "shared SCSI bus: the machine cannot be snapshotted while it runs"
	unprotectedMultiWriter = "multi-writer disk: the machine cannot be snapshotted while it runs"
	unprotectedPMem        = "persistent-memory disk: it has no snapshots"
	unprotectedOther       = "unknown kind of backing"
	untrackedVersion1      = "disk format of ESX 2: change tracking does not know it"
)

// controller is where disks hang.
type controller struct {
	kind   string // "scsi", "sata", "nvme", "ide"
	api    string // type in the API
	bus    int32
	shared string // SCSI bus sharing, when there is any
}

// controllersOf are the disk controllers among devices, by device key.
func controllersOf(devices []types.BaseVirtualDevice) map[int32]controller {
	out := make(map[int32]controller)
	for _, dev := range devices {
		vc, ok := dev.(types.BaseVirtualController)
		if !ok {
			continue
		}
		c := controller{bus: vc.GetVirtualController().BusNumber, api: strings.TrimPrefix(fmt.Sprintf("%T", dev), "*types.")}
		switch d := dev.(type) {
		case types.BaseVirtualSCSIController:
			c.kind = "scsi"
			if s := d.GetVirtualSCSIController().SharedBus; s != types.VirtualSCSISharingNoSharing {
				c.shared = string(s)
			}
		case types.BaseVirtualSATAController:
			c.kind = "sata"
		case *types.VirtualNVMEController:
			c.kind = "nvme"
			if s := d.SharedBus; s != "" && s != "noSharing" {
				c.shared = s
			}
		case *types.VirtualIDEController:
			c.kind = "ide"
		default:
			continue
		}
		out[dev.GetVirtualDevice().Key] = c
	}
	return out
}

// disksOf are the disks among a machine's devices, in the order of their names.
func disksOf(devices []types.BaseVirtualDevice) []Disk {
	controllers := controllersOf(devices)
	var out []Disk
	for _, dev := range devices {
		if d, ok := dev.(*types.VirtualDisk); ok {
			out = append(out, diskOf(d, controllers[d.ControllerKey]))
		}
	}
	slices.SortFunc(out, func(a, b Disk) int {
		return cmp.Or(strings.Compare(kindOf(a.Name), kindOf(b.Name)), cmp.Compare(a.Bus, b.Bus), cmp.Compare(a.Unit, b.Unit), cmp.Compare(a.Key, b.Key))
	})
	return out
}

func kindOf(name string) string { return strings.TrimRight(name, "0123456789-") }

// place names where a disk hangs: "scsi0-3".
func place(kind string, bus, unit int32) string { return fmt.Sprintf("%s%d-%d", kind, bus, unit) }

// parsePlace reads "scsi0-3" or "scsi0:3".
func parsePlace(s string) (kind string, bus, unit int32, err error) {
	bad := &Error{Kind: ErrInvalid, Object: s, Summary: fmt.Sprintf("%q is not a disk's place", s), Remedy: "write it as scsi0:3, sata0:1, nvme0:0 or ide0:1"}
	i := strings.IndexAny(s, "0123456789")
	j := strings.IndexAny(s, ":-")
	if i <= 0 || j <= i {
		return "", 0, 0, bad
	}
	kind = strings.ToLower(s[:i])
	b, err1 := strconv.ParseInt(s[i:j], 10, 32)
	u, err2 := strconv.ParseInt(s[j+1:], 10, 32)
	if err1 != nil || err2 != nil || u < 0 || !slices.Contains([]string{"scsi", "sata", "nvme", "ide"}, kind) {
		return "", 0, 0, bad
	}
	return kind, int32(b), int32(u), nil
}

func diskOf(dev *types.VirtualDisk, on controller) Disk {
	d := Disk{Key: dev.Key, Controller: on.api, Bus: on.bus, ObjectID: dev.DiskObjectId, Capacity: dev.CapacityInBytes}
	if d.Capacity == 0 {
		d.Capacity = dev.CapacityInKB << 10
	}
	if dev.UnitNumber != nil {
		d.Unit = *dev.UnitNumber
	}
	d.Name = place(orText(on.kind, "disk"), d.Bus, d.Unit)
	if dev.DeviceInfo != nil {
		d.Label = dev.DeviceInfo.GetDescription().Label
	}
	b := backingOf(dev.Backing)
	d.Backing, d.Path, d.Base, d.Chain, d.UUID = b.kind, b.path, b.base, b.chain, b.uuid
	d.Mode, d.Sharing, d.Thin, d.EagerZero, d.Encrypted = b.mode, b.sharing, b.thin, b.eager, b.encrypted
	d.ChangeID, d.Datastore = ChangeID(b.changeID), b.datastore
	if on.shared != "" {
		d.Sharing = on.shared
	}
	switch {
	case b.kind == "rdm-physical":
		d.Unprotected = unprotectedPhysical
	case strings.HasPrefix(d.Mode, "independent"):
		d.Unprotected = unprotectedIndependent
	case on.shared != "":
		d.Unprotected = unprotectedBus
	case d.Sharing == string(types.VirtualDiskSharingSharingMultiWriter):
		d.Unprotected = unprotectedMultiWriter
	case b.kind == "pmem":
		d.Unprotected = unprotectedPMem
	case b.kind == "other":
		d.Unprotected = unprotectedOther
	}
	d.Untracked = d.Unprotected
	if d.Untracked == "" && b.version1 {
		d.Untracked = untrackedVersion1
	}
	return d
}

// backing is what the API's many kinds of disk backing have in common.
type backing struct {
	kind                   string
	path, base, datastore  string
	chain                  []string
	uuid, changeID         string
	mode, sharing          string
	thin, eager, encrypted bool
	version1               bool
}

// backingOf reads any backing and walks to the base of its chain: the base's name is the one that lasts, the link's
// changes with every snapshot.
func backingOf(b types.BaseVirtualDeviceBackingInfo) backing {
	out, parent := linkOf(b)
	out.base, out.chain = out.path, []string{out.path}
	for parent != nil {
		var link backing
		link, parent = linkOf(parent)
		out.base, out.chain = link.path, append(out.chain, link.path)
		if parent == nil {
			out.thin = out.thin || link.thin // a delta does not say how the base is allotted
		}
	}
	out.datastore = datastoreOf(out.path)
	return out
}

// datastoreOf is the datastore of a datastore path, empty when it is none.
func datastoreOf(path string) string {
	var p object.DatastorePath
	p.FromString(path)
	return p.Datastore
}

func linkOf(b types.BaseVirtualDeviceBackingInfo) (backing, types.BaseVirtualDeviceBackingInfo) {
	is := func(p *bool) bool { return p != nil && *p }
	switch x := b.(type) {
	case *types.VirtualDiskFlatVer2BackingInfo:
		out := backing{kind: "flat", path: x.FileName, uuid: x.Uuid, changeID: x.ChangeId, mode: x.DiskMode, sharing: x.Sharing,
			thin: is(x.ThinProvisioned), eager: is(x.EagerlyScrub), encrypted: x.KeyId != nil}
		if x.DeltaDiskFormat == string(types.VirtualDiskDeltaDiskFormatSeSparseFormat) {
			out.kind = "sesparse"
		}
		return out, parentOf(x.Parent)
	case *types.VirtualDiskSeSparseBackingInfo:
		return backing{kind: "sesparse", path: x.FileName, uuid: x.Uuid, changeID: x.ChangeId, mode: x.DiskMode, thin: true, encrypted: x.KeyId != nil}, parentOf(x.Parent)
	case *types.VirtualDiskSparseVer2BackingInfo:
		return backing{kind: "sparse", path: x.FileName, uuid: x.Uuid, changeID: x.ChangeId, mode: x.DiskMode, thin: true, encrypted: x.KeyId != nil}, parentOf(x.Parent)
	case *types.VirtualDiskRawDiskMappingVer1BackingInfo:
		out := backing{kind: "rdm-virtual", path: x.FileName, uuid: x.Uuid, changeID: x.ChangeId, mode: x.DiskMode, sharing: x.Sharing}
		if x.CompatibilityMode == string(types.VirtualDiskCompatibilityModePhysicalMode) {
			out.kind = "rdm-physical"
		}
		return out, parentOf(x.Parent)
	case *types.VirtualDiskRawDiskVer2BackingInfo:
		return backing{kind: "raw", path: x.DescriptorFileName, uuid: x.Uuid, changeID: x.ChangeId, sharing: x.Sharing}, nil
	case *types.VirtualDiskPartitionedRawDiskVer2BackingInfo:
		return backing{kind: "raw", path: x.DescriptorFileName, uuid: x.Uuid, changeID: x.ChangeId, sharing: x.Sharing}, nil
	case *types.VirtualDiskFlatVer1BackingInfo:
		return backing{kind: "flat", path: x.FileName, mode: x.DiskMode, version1: true}, parentOf(x.Parent)
	case *types.VirtualDiskSparseVer1BackingInfo:
		return backing{kind: "sparse", path: x.FileName, mode: x.DiskMode, thin: true, version1: true}, parentOf(x.Parent)
	case *types.VirtualDiskLocalPMemBackingInfo:
		return backing{kind: "pmem", path: x.FileName, uuid: x.Uuid, mode: x.DiskMode}, nil
	case types.BaseVirtualDeviceFileBackingInfo:
		return backing{kind: "other", path: x.GetVirtualDeviceFileBackingInfo().FileName}, nil
	}
	return backing{kind: "other"}, nil
}

// parentOf makes an absent parent, a typed nil pointer, a nil interface.
func parentOf[T any, P interface {
	*T
	types.BaseVirtualDeviceBackingInfo
}](p P) types.BaseVirtualDeviceBackingInfo {
	if p == nil {
		return nil
	}
	return p
}
