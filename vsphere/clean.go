package vsphere

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"
)

// A saved configuration describes a machine that exists; a specification describes one to be made. In between lies
// everything that belongs to the old machine, its host or its files, and must not go along.

// keptFlags of the many that a configuration has; the others are computed, or belong to features that do not come back.
func keptFlags(f types.VirtualMachineFlagInfo) *types.VirtualMachineFlagInfo {
	return &types.VirtualMachineFlagInfo{EnableLogging: f.EnableLogging, DiskUuidEnabled: f.DiskUuidEnabled, VirtualMmuUsage: f.VirtualMmuUsage,
		VirtualExecUsage: f.VirtualExecUsage, SnapshotPowerOffBehavior: f.SnapshotPowerOffBehavior, VvtdEnabled: f.VvtdEnabled, VbsEnabled: f.VbsEnabled}
}

// droppedExtra reports whether a key of ExtraConfig belongs to the old machine, its files or its host. PCI slot numbers
// stay: guests name network cards by them.
func droppedExtra(key string) bool {
	k := strings.ToLower(key)
	for _, prefix := range []string{"vmkeep.", "viv.", "vmotion.", "migrate.", "monitor.", "sched.swap.", "checkpoint.", "replay.", "numa.autosize.", "vmware.tools.",
		"toolsinstallmanager.", "guestinfo.vmtools.", "guestinfo.appinfo", "guestinfo.detailed", "hostcpuid.", "guestcpuid.", "usercpuid.", "evcompatibilitymode",
		"softpoweroff", "uuid.", "vc.", "encryption.", "dataFileKey", "vtpm.", "extendedconfigfile", "set.", "cleanshutdown", "annotation", "log."} {
		if strings.HasPrefix(k, strings.ToLower(prefix)) {
			return true
		}
	}
	if k == "nvram" || k == "ctkenabled" || k == "hpet0.present" || strings.HasSuffix(k, ".ctkenabled") || strings.HasSuffix(k, ".redo") || strings.HasSuffix(k, ".filters") {
		return true
	}
	return false
}

// extraConfig is a map in the order of its keys.
func extraConfig(m map[string]string) []types.BaseOptionValue {
	var out []types.BaseOptionValue
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, &types.OptionValue{Key: k, Value: m[k]})
	}
	return out
}

// SetExtra sets entries of the machine's ExtraConfig; an empty value removes one.
func (v *VM) SetExtra(ctx context.Context, extra map[string]string) error {
	return v.reconfigure(ctx, "set advanced settings of "+v.label(), types.VirtualMachineConfigSpec{ExtraConfig: extraConfig(extra)})
}

// build makes the specification.
func (p *MachinePlan) build(ctx context.Context, c *Client, t *tree, ci types.VirtualMachineConfigInfo) error {
	full := ci.ToConfigSpec()
	s := types.VirtualMachineConfigSpec{
		Name: p.Name, Version: full.Version, GuestId: full.GuestId, AlternateGuestName: full.AlternateGuestName,
		Files:       &types.VirtualMachineFileInfo{VmPathName: "[" + p.Home + "]"},
		Flags:       keptFlags(ci.Flags),
		PowerOpInfo: full.PowerOpInfo, RebootPowerOff: full.RebootPowerOff,
		NumCPUs: full.NumCPUs, NumCoresPerSocket: full.NumCoresPerSocket, MemoryMB: full.MemoryMB, SimultaneousThreads: full.SimultaneousThreads,
		MemoryHotAddEnabled: full.MemoryHotAddEnabled, CpuHotAddEnabled: full.CpuHotAddEnabled, CpuHotRemoveEnabled: full.CpuHotRemoveEnabled,
		VirtualICH7MPresent: full.VirtualICH7MPresent, VirtualSMCPresent: full.VirtualSMCPresent, MotherboardLayout: full.MotherboardLayout,
		CpuAllocation: full.CpuAllocation, MemoryAllocation: full.MemoryAllocation, LatencySensitivity: full.LatencySensitivity,
		CpuFeatureMask: full.CpuFeatureMask, VAppConfig: full.VAppConfig,
		Firmware: full.Firmware, MaxMksConnections: full.MaxMksConnections, GuestAutoLockEnabled: full.GuestAutoLockEnabled,
		MemoryReservationLockedToMax: full.MemoryReservationLockedToMax, NestedHVEnabled: full.NestedHVEnabled, VPMCEnabled: full.VPMCEnabled,
		MessageBusTunnelEnabled: full.MessageBusTunnelEnabled, SevEnabled: full.SevEnabled, VirtualNuma: full.VirtualNuma,
		VmOpNotificationToAppEnabled: full.VmOpNotificationToAppEnabled, VmOpNotificationTimeout: full.VmOpNotificationTimeout,
	}
	if ci.Tools != nil {
		x := ci.Tools
		s.Tools = &types.ToolsConfigInfo{AfterPowerOn: x.AfterPowerOn, AfterResume: x.AfterResume, BeforeGuestStandby: x.BeforeGuestStandby,
			BeforeGuestShutdown: x.BeforeGuestShutdown, BeforeGuestReboot: x.BeforeGuestReboot, ToolsUpgradePolicy: x.ToolsUpgradePolicy,
			SyncTimeWithHostAllowed: x.SyncTimeWithHostAllowed, SyncTimeWithHost: x.SyncTimeWithHost}
	}
	if b := ci.BootOptions; b != nil {
		s.BootOptions = &types.VirtualMachineBootOptions{BootDelay: b.BootDelay, EnterBIOSSetup: b.EnterBIOSSetup, EfiSecureBootEnabled: b.EfiSecureBootEnabled,
			BootRetryEnabled: b.BootRetryEnabled, BootRetryDelay: b.BootRetryDelay, NetworkBootProtocol: b.NetworkBootProtocol}
		if len(b.BootOrder) > 0 {
			p.note("the boot order is not set: it names devices of the old machine; the NVRAM holds the firmware's own")
		}
	}
	if p.asked.Identity == IdentityKeep {
		s.Uuid, s.InstanceUuid = ci.Uuid, ci.InstanceUuid
	}
	for _, o := range ci.ExtraConfig {
		if !droppedExtra(o.GetOptionValue().Key) {
			s.ExtraConfig = append(s.ExtraConfig, o)
		}
	}
	s.ExtraConfig = append(append(s.ExtraConfig, extraConfig(p.asked.Extra)...), p.asked.Mark.set()...)
	if ci.KeyId != nil {
		p.note("the machine was encrypted: it is restored in clear, and without its NVRAM, which only the old key opens; encrypt it with a storage policy of this vCenter afterwards")
	}
	if ci.ManagedBy != nil {
		p.note("the machine was managed by %s: that is not carried over", ci.ManagedBy.ExtensionKey)
	}
	if ci.SwapPlacement != "" && ci.SwapPlacement != string(types.VirtualMachineConfigInfoSwapPlacementTypeInherit) {
		p.note("the machine kept its swap file apart (%s): that is not carried over", ci.SwapPlacement)
	}
	if ci.FtInfo != nil {
		p.note("fault tolerance is not carried over")
	}
	p.spec = s
	return p.devices(ctx, c, t, ci)
}

// devices adds what the machine consists of. Devices that every new machine has are left out; so are those that stand
// for something of the old host.
func (p *MachinePlan) devices(ctx context.Context, c *Client, t *tree, ci types.VirtualMachineConfigInfo) error {
	controllers := controllersOf(ci.Hardware.Device)
	all := object.VirtualDeviceList(ci.Hardware.Device)
	keys := make(map[int32]int32) // saved key -> key in the specification; default controllers keep theirs
	next := int32(-1000)
	newKey := func(saved int32) int32 {
		next--
		keys[saved] = next
		return next
	}
	add := func(dev types.BaseVirtualDevice, create bool) {
		spec := &types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationAdd, Device: dev}
		if create {
			spec.FileOperation = types.VirtualDeviceConfigSpecFileOperationCreate
		}
		p.spec.DeviceChange = append(p.spec.DeviceChange, spec)
	}
	// Controllers first: other devices refer to them.
	for _, dev := range all {
		d := dev.GetVirtualDevice()
		switch x := dev.(type) {
		case *types.VirtualIDEController:
			keys[d.Key] = 200 + x.BusNumber // both exist in every machine, with these keys
		case *types.VirtualSIOController, *types.VirtualPS2Controller, *types.VirtualPCIController:
			keys[d.Key] = d.Key
		case types.BaseVirtualSCSIController:
			s := x.GetVirtualSCSIController()
			if s.SharedBus != types.VirtualSCSISharingNoSharing && s.SharedBus != "" {
				p.note("%s: the shared bus is not carried over", deviceLabel(dev))
			}
			s.SharedBus = types.VirtualSCSISharingNoSharing
			s.Device, s.DeviceInfo, s.ControllerKey, s.Key = nil, nil, 100, newKey(d.Key)
			add(dev, false)
		case types.BaseVirtualSATAController:
			s := x.GetVirtualSATAController()
			s.Device, s.DeviceInfo, s.ControllerKey, s.Key = nil, nil, 100, newKey(d.Key)
			add(dev, false)
		case *types.VirtualNVMEController:
			if x.SharedBus != "" && x.SharedBus != "noSharing" {
				p.note("%s: the shared bus is not carried over", deviceLabel(dev))
			}
			x.SharedBus = ""
			x.Device, x.DeviceInfo, x.ControllerKey, x.Key = nil, nil, 100, newKey(d.Key)
			add(dev, false)
		case *types.VirtualUSBController:
			x.Device, x.DeviceInfo, x.ControllerKey, x.Key = nil, nil, 100, newKey(d.Key)
			add(dev, false)
		case *types.VirtualUSBXHCIController:
			x.Device, x.DeviceInfo, x.ControllerKey, x.Key = nil, nil, 100, newKey(d.Key)
			add(dev, false)
		}
	}
	for _, dev := range all {
		d := dev.GetVirtualDevice()
		switch x := dev.(type) {
		case types.BaseVirtualSCSIController, types.BaseVirtualSATAController, *types.VirtualNVMEController, *types.VirtualUSBController, *types.VirtualUSBXHCIController,
			*types.VirtualIDEController, *types.VirtualSIOController, *types.VirtualPS2Controller, *types.VirtualPCIController,
			*types.VirtualKeyboard, *types.VirtualPointingDevice, *types.VirtualMachineVideoCard, *types.VirtualMachineVMCIDevice:
			// controllers are done; the others every machine has
		case *types.VirtualDisk:
			if p.disk(x, controllers[x.ControllerKey], keys) {
				x.Key = newKey(d.Key)
				add(x, true)
			}
		case types.BaseVirtualEthernetCard:
			ok, err := p.card(ctx, c, t, dev)
			if err != nil {
				return err
			}
			if ok {
				d.Key, d.ControllerKey, d.DeviceInfo = newKey(d.Key), 100, nil
				add(dev, false)
			}
		case *types.VirtualCdrom:
			key, ok := keys[d.ControllerKey]
			if !ok {
				p.note("%s is left out: its controller is", deviceLabel(dev))
				continue
			}
			if _, iso := d.Backing.(*types.VirtualCdromIsoBackingInfo); iso {
				p.note("%s: the ISO image is not inserted", deviceLabel(dev))
			}
			unit := d.UnitNumber
			add(&types.VirtualCdrom{VirtualDevice: types.VirtualDevice{Key: newKey(d.Key), ControllerKey: key, UnitNumber: unit,
				Backing:     &types.VirtualCdromRemoteAtapiBackingInfo{VirtualDeviceRemoteDeviceBackingInfo: types.VirtualDeviceRemoteDeviceBackingInfo{UseAutoDetect: types.NewBool(false)}},
				Connectable: &types.VirtualDeviceConnectInfo{AllowGuestControl: true}}}, false)
		case *types.VirtualFloppy:
			if _, image := d.Backing.(*types.VirtualFloppyImageBackingInfo); image {
				p.note("%s: the floppy image is not inserted", deviceLabel(dev))
			}
			add(&types.VirtualFloppy{VirtualDevice: types.VirtualDevice{Key: newKey(d.Key), ControllerKey: 400, UnitNumber: d.UnitNumber,
				Backing:     &types.VirtualFloppyRemoteDeviceBackingInfo{VirtualDeviceRemoteDeviceBackingInfo: types.VirtualDeviceRemoteDeviceBackingInfo{UseAutoDetect: types.NewBool(false)}},
				Connectable: &types.VirtualDeviceConnectInfo{AllowGuestControl: true}}}, false)
		case *types.VirtualWDT:
			x.Key, x.ControllerKey, x.DeviceInfo = newKey(d.Key), 100, nil
			add(x, false)
		case *types.VirtualPrecisionClock:
			x.Key, x.ControllerKey, x.DeviceInfo = newKey(d.Key), 100, nil
			add(x, false)
		case *types.VirtualTPM:
			p.note("%s is left out: a virtual TPM needs a key provider, and what it held is not in the point; add one and have recovery keys of the guest ready", deviceLabel(dev))
		default:
			p.note("%s (%s) is left out: it stands for something of the old host", deviceLabel(dev), strings.TrimPrefix(fmt.Sprintf("%T", dev), "*types."))
		}
	}
	p.checkMapping()
	return nil
}

// checkMapping finds a mapping that fits no card while a card stays on a network that nobody mapped: a slip of the pen
// would put a copy beside the machine it is one of. One table for many machines is fine: it maps all their networks.
func (p *MachinePlan) checkMapping() {
	var saved []string
	unmapped := false
	for _, n := range p.NICs {
		saved = append(saved, n.Saved)
		_, mapped := p.mapping(n.Saved)
		unmapped = unmapped || !mapped && n.Network != ""
	}
	for _, from := range slices.Sorted(maps.Keys(p.asked.Networks)) {
		fits := slices.ContainsFunc(saved, func(s string) bool { return strings.EqualFold(from, s) })
		if unmapped && !fits {
			p.problem(ErrInvalid, from, fmt.Sprintf("no card of the saved machine is on network %q", from), "map the networks that the cards are on, to themselves where they are to stay", saved)
		}
	}
}

// mapping is the network that was asked for in place of a saved one.
func (p *MachinePlan) mapping(saved string) (to string, ok bool) {
	for from, to := range p.asked.Networks {
		if strings.EqualFold(from, saved) {
			return to, true
		}
	}
	return "", false
}

func deviceLabel(dev types.BaseVirtualDevice) string {
	d := dev.GetVirtualDevice()
	if d.DeviceInfo != nil && d.DeviceInfo.GetDescription().Label != "" {
		return d.DeviceInfo.GetDescription().Label
	}
	return fmt.Sprintf("device %d", d.Key)
}

// disk makes a saved disk a new, empty one. false: it is left out.
func (p *MachinePlan) disk(x *types.VirtualDisk, on controller, keys map[int32]int32) bool {
	saved := diskOf(x, on)
	if slices.Contains(p.asked.OmitDisks, saved.Name) {
		p.note("disk %s is left out", saved.Name)
		return false
	}
	key, ok := keys[x.ControllerKey]
	if !ok {
		p.note("disk %s is left out: its controller is of a kind that cannot be made", saved.Name)
		return false
	}
	if saved.Backing == "rdm-physical" {
		p.note("disk %s is left out: it is a physical raw device mapping", saved.Name)
		return false
	}
	if saved.Backing == "rdm-virtual" || saved.Backing == "raw" {
		p.note("disk %s was a raw device mapping: it becomes an ordinary disk", saved.Name)
	}
	want := p.asked.Datastores[saved.Name]
	if want == "" {
		want = orText(p.asked.Datastore, saved.Datastore)
	}
	ds, ok := p.datastore(want, "disk "+saved.Name)
	if !ok {
		return false
	}
	provision := p.asked.Provision
	if provision == ProvisionSaved {
		switch {
		case saved.Thin:
			provision = ProvisionThin
		case saved.EagerZero:
			provision = ProvisionEager
		default:
			provision = ProvisionThick
		}
	}
	mode := saved.Mode
	if mode == "" || !strings.HasPrefix(mode, "independent") {
		mode = string(types.VirtualDiskModePersistent)
	}
	if saved.Sharing == string(types.VirtualDiskSharingSharingMultiWriter) {
		p.note("disk %s is not shared any more", saved.Name)
	}
	*x = types.VirtualDisk{
		VirtualDevice: types.VirtualDevice{ControllerKey: key, UnitNumber: x.UnitNumber, Backing: newBacking(ds, mode, provision)},
		CapacityInKB:  saved.Capacity >> 10, CapacityInBytes: saved.Capacity,
	}
	p.Disks = append(p.Disks, PlannedDisk{Name: saved.Name, SavedKey: saved.Key, Datastore: ds, Capacity: saved.Capacity, Provision: provision})
	return true
}

// newBacking is the backing of a disk to be made on a datastore, named by vSphere.
func newBacking(datastore, mode string, provision Provisioning) *types.VirtualDiskFlatVer2BackingInfo {
	thin, eager := provision == ProvisionThin, provision == ProvisionEager
	return &types.VirtualDiskFlatVer2BackingInfo{
		VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: "[" + datastore + "]"},
		DiskMode:                     mode, ThinProvisioned: &thin, EagerlyScrub: &eager,
	}
}

// card puts a saved network card on a network that exists here. false: it is left out.
func (p *MachinePlan) card(ctx context.Context, c *Client, t *tree, dev types.BaseVirtualDevice) (bool, error) {
	x := dev.(types.BaseVirtualEthernetCard).GetVirtualEthernetCard()
	label := deviceLabel(dev)
	if _, sriov := dev.(*types.VirtualSriovEthernetCard); sriov {
		p.note("%s is left out: it stands for a physical function of the old host", label)
		return false, nil
	}
	saved := networkName(x.Backing, t)
	if i := slices.IndexFunc(p.asked.NICs, func(n NIC) bool { return n.Key == x.Key && n.Network != "" }); i >= 0 {
		saved = p.asked.NICs[i].Network
	}
	want, mapped := p.mapping(saved)
	if !mapped {
		want = saved
	}
	plan := PlannedNIC{Label: label, Saved: saved}
	for name := range p.at.networks {
		if strings.EqualFold(name, want) {
			plan.Network = name
		}
	}
	x.Backing, x.ExternalId, x.SubnetId, x.ResourceAllocation = nil, "", "", nil
	if x.Connectable == nil {
		x.Connectable = &types.VirtualDeviceConnectInfo{StartConnected: true, AllowGuestControl: true}
	}
	x.Connectable.Connected, x.Connectable.Status, x.Connectable.MigrateConnect = false, "", ""
	switch {
	case plan.Network != "":
		backing, err := p.networkBacking(ctx, c, plan.Network)
		if err != nil {
			return false, err
		}
		x.Backing = backing
	case p.asked.NoNetworks:
		// A card needs a network to be on, connected or not: any will do.
		all := slices.Sorted(maps.Keys(p.at.networks))
		if len(all) == 0 {
			p.note("%s is left out: the target has no network at all", label)
			return false, nil
		}
		p.note("%s stays disconnected, on %s: there is no network %q here", label, all[0], orText(want, "(unknown)"))
		backing, err := p.networkBacking(ctx, c, all[0])
		if err != nil {
			return false, err
		}
		x.Backing, x.Connectable.StartConnected = backing, false
	default:
		var names []string
		for name := range p.at.networks {
			names = append(names, name)
		}
		p.problem(ErrUnsuitable, label, fmt.Sprintf("%s: there is no network %q at the target", label, orText(want, "(unknown)")), "map it to one of the candidates, or leave the card disconnected", names)
		return false, nil
	}
	if p.asked.MAC == IdentityKeep {
		plan.MAC = x.MacAddress
	} else {
		x.MacAddress, x.AddressType = "", string(types.VirtualEthernetCardMacTypeGenerated)
	}
	p.NICs = append(p.NICs, plan)
	return true, nil
}

// networkBacking connects a card to a network of the target.
func (p *MachinePlan) networkBacking(ctx context.Context, c *Client, name string) (types.BaseVirtualDeviceBackingInfo, error) {
	r := p.at.networks[name]
	nw, ok := object.NewReference(c.vim, r).(object.NetworkReference)
	if !ok {
		return nil, fmt.Errorf("network %s has the unknown type %s", name, r.Type)
	}
	backing, err := nw.EthernetCardBackingInfo(ctx)
	if err != nil {
		return nil, fmt.Errorf("network %s: %w", name, err)
	}
	return backing, nil
}

// networkName names the network of a card's backing, as far as the backing or the present inventory tells.
func networkName(b types.BaseVirtualDeviceBackingInfo, t *tree) string {
	switch x := b.(type) {
	case *types.VirtualEthernetCardNetworkBackingInfo:
		return x.DeviceName
	case *types.VirtualEthernetCardDistributedVirtualPortBackingInfo:
		return t.name(ref{Type: "DistributedVirtualPortgroup", Value: x.Port.PortgroupKey})
	case *types.VirtualEthernetCardOpaqueNetworkBackingInfo:
		for _, r := range t.of("OpaqueNetwork") {
			if strings.Contains(r.Value, x.OpaqueNetworkId) {
				return t.name(r)
			}
		}
		return x.OpaqueNetworkId
	}
	return ""
}

// nicsOf are the network cards of a machine.
func nicsOf(devices []types.BaseVirtualDevice, t *tree) []NIC {
	var out []NIC
	for _, dev := range devices {
		if card, ok := dev.(types.BaseVirtualEthernetCard); ok {
			x := card.GetVirtualEthernetCard()
			out = append(out, NIC{Key: x.Key, Label: deviceLabel(dev), Network: networkName(x.Backing, t), MAC: x.MacAddress, Kind: strings.TrimPrefix(fmt.Sprintf("%T", dev), "*types.")})
		}
	}
	return out
}
