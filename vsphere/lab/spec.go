package lab

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vmkeep/vmkeep/chunker/extent"
)

// Machine describes a virtual machine to make. Only the name is needed.
type Machine struct {
	Name      string
	Folder    string // below the datacenter's machine folder, "prod/web"; made if need be
	Host      string // empty: machines are dealt out to the hosts in turn
	Pool      string // resource pool of the host's cluster, empty: its root pool
	Datastore string // empty: ds1
	Network   string // port group or network of its network card, empty: none

	Hardware int    // hardware version, 0: 19
	Guest    string // guest id, empty: otherGuest64
	Firmware string // bios (empty) or efi
	CPUs     int32
	MemoryMB int64

	InstanceUUID, BiosUUID string
	Kernel                 string // directory in which the machine's disks appear as its kernel shows them, see kernel.go
	Annotation             string

	KeyProvider string // the machine's home is encrypted with a key of this provider; empty: it is not
	VTPM        bool   // it has a virtual TPM; needs KeyProvider

	NoTools  bool // VMware Tools do not run: quiescing is ignored
	Off      bool // stays powered off
	Template bool
	Tracking bool // changed-block tracking is on from the start

	Disks []Disk
}

// Disk describes a virtual disk to make.
type Disk struct {
	Size       int64  // bytes; 0: the size of Image
	Controller string // pvscsi (empty), lsilogic, lsilogic-sas, buslogic, sata, nvme, ide
	Bus        int32
	Unit       *int32 // nil: the next free one
	Datastore  string // empty: the machine's
	Thick      bool
	Mode       string // persistent (empty), independent_persistent, independent_nonpersistent
	Encrypted  bool   // needs the machine's KeyProvider
	SharedBus  bool   // the controller shares its bus with other machines
	Image      string // file with the first content of the disk, holes kept

	// Raw makes it a raw device mapping instead, "physicalMode" or "virtualMode". The lab has no content for it.
	Raw string
}

func (s *sim) addMachine(m Machine, index int, folder ref) error {
	host, pool, err := s.place(m, index)
	if err != nil {
		return err
	}
	config, err := m.config(s)
	if err != nil {
		return err
	}
	ctx := s.context()
	r, fault := s.createVM(ctx, &types.CreateVM_Task{This: folder, Config: *config, Pool: pool, Host: &host})
	if fault != nil {
		return errors.New(describe(fault))
	}
	s.withVM(ctx, r, func(vm *simulator.VirtualMachine) { err = s.encrypt(ctx, vm, m) })
	if err != nil {
		return err
	}
	if m.Kernel != "" {
		if err := s.bootKernel(r, m.Kernel); err != nil {
			return err
		}
	}
	for i, d := range m.Disks {
		if d.Image == "" {
			continue
		}
		if err := s.fill(r, i, d.Image); err != nil {
			return err
		}
	}
	s.withVM(ctx, r, func(vm *simulator.VirtualMachine) { fault = s.boot(ctx, vm, m) })
	if fault != nil {
		return errors.New(describe(fault))
	}
	return nil
}

// place picks host and pool.
func (s *sim) place(m Machine, index int) (host, pool ref, err error) {
	hosts := s.allHosts()
	h := hosts[index%len(hosts)]
	if m.Host != "" {
		h = nil
		for _, x := range hosts {
			if x.Name == m.Host {
				h = x
			}
		}
		if h == nil {
			return host, pool, fmt.Errorf("no host %q", m.Host)
		}
	}
	var root *ref
	switch p := s.reg.Get(*h.Parent).(type) {
	case *simulator.ClusterComputeResource:
		root = p.ResourcePool
	case *mo.ComputeResource:
		root = p.ResourcePool
	}
	if root == nil {
		return host, pool, fmt.Errorf("host %q has no resource pool", h.Name)
	}
	if m.Pool == "" {
		return h.Self, *root, nil
	}
	rp, ok := s.reg.Get(*root).(*simulator.ResourcePool)
	if ok {
		if p := s.reg.FindByName(m.Pool, rp.ResourcePool.ResourcePool); p != nil {
			return h.Self, p.Reference(), nil
		}
	}
	return host, pool, fmt.Errorf("no resource pool %q beside host %q", m.Pool, h.Name)
}

// config is the machine as a specification for CreateVM_Task.
func (m Machine) config(s *sim) (*types.VirtualMachineConfigSpec, error) {
	pick := func(v, or string) string {
		if v == "" {
			return or
		}
		return v
	}
	hw := m.Hardware
	if hw == 0 {
		hw = 19
	}
	spec := &types.VirtualMachineConfigSpec{
		Name: m.Name, GuestId: pick(m.Guest, string(types.VirtualMachineGuestOsIdentifierOtherGuest64)),
		Version: fmt.Sprintf("vmx-%02d", hw), Firmware: m.Firmware, Annotation: m.Annotation,
		NumCPUs: max(m.CPUs, 1), MemoryMB: max(m.MemoryMB, 512),
		InstanceUuid: m.InstanceUUID, Uuid: m.BiosUUID,
		Files: &types.VirtualMachineFileInfo{VmPathName: "[" + pick(m.Datastore, "ds1") + "]"},
	}
	if spec.Uuid == "" {
		spec.Uuid = "42" + newInstanceUUID()[2:]
	}
	if m.Tracking {
		spec.ChangeTrackingEnabled = types.NewBool(true)
	}
	add := func(d types.BaseVirtualDevice, op types.VirtualDeviceConfigSpecFileOperation) {
		spec.DeviceChange = append(spec.DeviceChange, &types.VirtualDeviceConfigSpec{
			Operation: types.VirtualDeviceConfigSpecOperationAdd, Device: d, FileOperation: op})
	}
	controllers := map[string]int32{}
	for i := range m.Disks {
		d := &m.Disks[i]
		if d.Image != "" && d.Size == 0 {
			st, err := os.Stat(d.Image)
			if err != nil {
				return nil, err
			}
			d.Size = (st.Size() + 511) &^ 511
		}
		kind := pick(d.Controller, "pvscsi")
		id := fmt.Sprint(kind, d.Bus)
		key, ok := controllers[id]
		if !ok {
			c, err := newController(kind, d.Bus, d.SharedBus)
			if err != nil {
				return nil, err
			}
			key = -int32(100 + len(controllers))
			if kind == "ide" {
				key = keyIDE + d.Bus // every machine has these two
			} else {
				c.GetVirtualDevice().Key = key
				add(c, "")
			}
			controllers[id] = key
		}
		add(d.device(key, -int32(1000+i)), d.operation())
	}
	if m.Network != "" {
		nic, err := s.networkCard(m.Network)
		if err != nil {
			return nil, err
		}
		add(nic, "")
	}
	return spec, nil
}

func newController(kind string, number int32, shared bool) (types.BaseVirtualDevice, error) {
	sharing := types.VirtualSCSISharingNoSharing
	if shared {
		sharing = types.VirtualSCSISharingPhysicalSharing
	}
	c := types.VirtualController{BusNumber: number}
	scsi := types.VirtualSCSIController{VirtualController: c, SharedBus: sharing, HotAddRemove: types.NewBool(true), ScsiCtlrUnitNumber: scsiOwnUnit}
	switch kind {
	case "pvscsi":
		return &types.ParaVirtualSCSIController{VirtualSCSIController: scsi}, nil
	case "lsilogic":
		return &types.VirtualLsiLogicController{VirtualSCSIController: scsi}, nil
	case "lsilogic-sas":
		return &types.VirtualLsiLogicSASController{VirtualSCSIController: scsi}, nil
	case "buslogic":
		return &types.VirtualBusLogicController{VirtualSCSIController: scsi}, nil
	case "sata":
		return &types.VirtualAHCIController{VirtualSATAController: types.VirtualSATAController{VirtualController: c}}, nil
	case "nvme":
		return &types.VirtualNVMEController{VirtualController: c}, nil
	case "ide":
		if number > 1 {
			return nil, fmt.Errorf("no IDE bus %d", number)
		}
		return &types.VirtualIDEController{VirtualController: c}, nil
	}
	return nil, fmt.Errorf("unknown controller %q (pvscsi, lsilogic, lsilogic-sas, buslogic, sata, nvme, ide)", kind)
}

func (d Disk) operation() types.VirtualDeviceConfigSpecFileOperation {
	return types.VirtualDeviceConfigSpecFileOperationCreate
}

// device is the disk with negative keys, for assignKeys to replace.
func (d Disk) device(controller, key int32) *types.VirtualDisk {
	mode := d.Mode
	if mode == "" {
		mode = string(types.VirtualDiskModePersistent)
	}
	name := types.VirtualDeviceFileBackingInfo{}
	if d.Datastore != "" {
		name.FileName = "[" + d.Datastore + "]"
	}
	v := &types.VirtualDisk{CapacityInBytes: d.Size, CapacityInKB: d.Size / 1024}
	v.Key, v.ControllerKey, v.UnitNumber = key, controller, d.Unit
	if d.Raw != "" {
		v.Backing = &types.VirtualDiskRawDiskMappingVer1BackingInfo{
			VirtualDeviceFileBackingInfo: name, CompatibilityMode: d.Raw, DiskMode: mode, Uuid: newDiskUUID(),
			LunUuid: "02000000006006016055711d00cff95e65664ee011524149442035", DeviceName: "vml.0200000000"}
		return v
	}
	v.Backing = &types.VirtualDiskFlatVer2BackingInfo{
		VirtualDeviceFileBackingInfo: name, DiskMode: mode, ThinProvisioned: types.NewBool(!d.Thick),
		Uuid: newDiskUUID(), Sharing: string(types.VirtualDiskSharingSharingNone)}
	return v
}

func (s *sim) networkCard(name string) (types.BaseVirtualDevice, error) {
	nic := &types.VirtualVmxnet3{}
	nic.Key = -5000
	nic.UnitNumber = types.NewInt32(firstNICUnit)
	nic.ControllerKey = 100
	for _, e := range s.reg.All("DistributedVirtualPortgroup") {
		if pg := e.(*simulator.DistributedVirtualPortgroup); pg.Name == name {
			dvs := s.reg.Get(*pg.Config.DistributedVirtualSwitch).(*simulator.DistributedVirtualSwitch)
			nic.Backing = &types.VirtualEthernetCardDistributedVirtualPortBackingInfo{
				Port: types.DistributedVirtualSwitchPortConnection{PortgroupKey: pg.Key, SwitchUuid: dvs.Uuid}}
			return nic, nil
		}
	}
	for _, e := range s.reg.All("Network") {
		if networkName(e) == name {
			nic.Backing = &types.VirtualEthernetCardNetworkBackingInfo{
				VirtualDeviceDeviceBackingInfo: types.VirtualDeviceDeviceBackingInfo{DeviceName: name}}
			return nic, nil
		}
	}
	return nil, fmt.Errorf("no network %q", name)
}

// boot brings a new machine into the state its description asks for. Machine lock held.
func (s *sim) boot(ctx *simulator.Context, vm *simulator.VirtualMachine, m Machine) types.BaseMethodFault {
	status, running := types.VirtualMachineToolsStatusToolsOk, types.VirtualMachineToolsRunningStatusGuestToolsRunning
	if m.NoTools || m.Off || m.Template {
		status, running = types.VirtualMachineToolsStatusToolsNotInstalled, types.VirtualMachineToolsRunningStatusGuestToolsNotRunning
	}
	ctx.Update(vm, []types.PropertyChange{
		{Name: "guest.toolsStatus", Val: status},
		{Name: "guest.toolsRunningStatus", Val: string(running)},
		{Name: "summary.guest.toolsRunningStatus", Val: string(running)},
		{Name: "summary.guest.toolsStatus", Val: status},
	})
	if m.Template {
		ctx.Update(vm, []types.PropertyChange{{Name: "config.template", Val: true}, {Name: "summary.config.template", Val: true}})
	}
	if m.Off || m.Template {
		return nil
	}
	_, fault := s.inner(ctx, powerOn(ctx, vm))
	return fault
}

// fill copies the file into the machine's n-th disk, keeping its holes.
func (s *sim) fill(r ref, n int, file string) error {
	var l *link
	s.withVM(s.context(), r, func(vm *simulator.VirtualMachine) {
		if ds := virtualDisks(vm.Config.Hardware.Device); n < len(ds) {
			if b := flatBacking(ds[n]); b != nil {
				l = s.store.find(b.FileName)
			}
		}
	})
	if l == nil {
		return fmt.Errorf("disk %d takes no content", n)
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if st.Size() > l.size {
		return fmt.Errorf("%s has %d bytes, the disk %d", file, st.Size(), l.size)
	}
	set, err := dataExtents(f, extent.Extent{Len: st.Size()})
	if err != nil {
		return err
	}
	buf := make([]byte, 1<<20)
	for _, e := range set {
		for off := e.Off; off < e.End(); off += int64(len(buf)) {
			p := buf[:min(int64(len(buf)), e.End()-off)]
			if _, err := f.ReadAt(p, off); err != nil && err != io.EOF {
				return err
			}
			if err := l.write(p, off); err != nil {
				return err
			}
		}
	}
	return nil
}
