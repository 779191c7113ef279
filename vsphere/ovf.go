package vsphere

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/vmware/govmomi/vim25/types"
)

// OVFSpec asks for the OVF descriptor of a saved machine.
type OVFSpec struct {
	ConfigInfo json.RawMessage // as in [State]
	NICs       []NIC           // as in [State]
	Name       string          // of the machine; empty: the saved one
	Disks      []OVFDisk       // those that the package holds; others are left out of the hardware
}

// OVFDisk is a disk in an OVF package.
type OVFDisk struct {
	Name     string // place in the machine: "scsi0-0"
	File     string // name in the package
	Size     int64  // of the file, bytes
	Capacity int64  // of the disk, bytes
}

// OVF is the descriptor of a package with streamOptimized disks: OVF 1.1 (DMTF DSP0243), with VMware's extensions where
// the standard has no word: the guest's type and the firmware. It tells processors, memory, disk controllers, disks and
// network cards; devices that exist only where the machine was (CD images, USB, serial ports) are left out.
func OVF(s OVFSpec) ([]byte, error) {
	ci, err := decodeConfig(s.ConfigInfo)
	if err != nil {
		return nil, err
	}
	name := orText(s.Name, ci.Name)
	e := ovfEnvelope{Xmlns: ovfSpace, Ovf: ovfSpace, Rasd: cimSpace + "CIM_ResourceAllocationSettingData", Vssd: cimSpace + "CIM_VirtualSystemSettingData",
		Vmw: "http://www.vmware.com/schema/ovf", Disks: ovfDisks{Info: "Virtual disks"}}
	e.System = ovfSystem{ID: ovfID(name), Info: "A virtual machine", Name: name, OS: ovfOS{ID: 1, Type: ci.GuestId, Info: "The guest operating system"},
		Hardware: ovfHardware{Info: "Virtual hardware", System: ovfFamily{"Virtual Hardware Family", 0, name, ci.Version}}}
	b := &ovfBuilder{e: &e, controllers: make(map[int32]string)}
	b.item(ovfItem{Units: "hertz * 10^6", Description: "Number of virtual CPUs", Name: fmt.Sprintf("%d virtual CPU(s)", ci.Hardware.NumCPU), Type: 3, Quantity: strconv.Itoa(int(ci.Hardware.NumCPU))})
	b.item(ovfItem{Units: "byte * 2^20", Description: "Memory size", Name: fmt.Sprintf("%d MiB of memory", ci.Hardware.MemoryMB), Type: 4, Quantity: strconv.Itoa(int(ci.Hardware.MemoryMB))})
	if err := b.disks(ci.Hardware.Device, s.Disks); err != nil {
		return nil, err
	}
	b.cards(ci.Hardware.Device, s.NICs)
	if ci.Firmware != "" {
		e.System.Hardware.Config = append(e.System.Hardware.Config, ovfConfig{false, "firmware", ci.Firmware})
	}
	out := bytes.NewBufferString(xml.Header)
	enc := xml.NewEncoder(out)
	enc.Indent("", "  ")
	if err := enc.Encode(e); err != nil {
		return nil, fmt.Errorf("encode the OVF descriptor: %w", err)
	}
	out.WriteByte('\n')
	return out.Bytes(), nil
}

// ovfID makes an XML identifier, as ovf:id has to be, of a name.
func ovfID(name string) string {
	id := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '.' {
			return r
		}
		return '_'
	}, name)
	if id == "" || id[0] == '-' || id[0] == '.' || id[0] >= '0' && id[0] <= '9' {
		id = "_" + id
	}
	return id
}

// ovfBuilder adds hardware to an envelope.
type ovfBuilder struct {
	e           *ovfEnvelope
	controllers map[int32]string // device key -> instance id
}

func (b *ovfBuilder) item(i ovfItem) string {
	items := &b.e.System.Hardware.Items
	i.ID = strconv.Itoa(len(*items) + 1)
	*items = append(*items, i)
	return i.ID
}

func (b *ovfBuilder) disks(devices []types.BaseVirtualDevice, files []OVFDisk) error {
	at := controllersOf(devices)
	var used []string
	for _, dev := range devices { // controllers come first: OVF readers want to know a parent before its children
		d := dev.GetVirtualDevice()
		c, ok := at[d.Key]
		if !ok {
			continue
		}
		kind, sub := ovfController(dev)
		b.controllers[d.Key] = b.item(ovfItem{Address: strconv.Itoa(int(c.bus)), Name: fmt.Sprintf("%s controller %d", c.kind, c.bus), SubType: sub, Type: kind})
	}
	for _, dev := range devices {
		d, ok := dev.(*types.VirtualDisk)
		if !ok {
			continue
		}
		name := diskOf(d, at[d.ControllerKey]).Name
		i := slices.IndexFunc(files, func(f OVFDisk) bool { return f.Name == name })
		if i < 0 {
			continue
		}
		f, n := files[i], len(b.e.Refs.Files)+1
		used = append(used, name)
		id, file := fmt.Sprintf("vmdisk%d", n), fmt.Sprintf("file%d", n)
		b.e.Refs.Files = append(b.e.Refs.Files, ovfFile{f.File, file, f.Size})
		b.e.Disks.Disks = append(b.e.Disks.Disks, ovfDisk{f.Capacity, "byte", id, file, "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"})
		unit := int32(0)
		if d.UnitNumber != nil {
			unit = *d.UnitNumber
		}
		b.item(ovfItem{OnParent: strconv.Itoa(int(unit)), Name: orText(deviceLabel(d), name), Resource: "ovf:/disk/" + id, Parent: b.controllers[d.ControllerKey], Type: 17})
	}
	for _, f := range files {
		if !slices.Contains(used, f.Name) {
			return &Error{Kind: ErrInvalid, Object: f.Name, Summary: "the saved configuration has no disk " + f.Name, Remedy: "export the disk alone, as a streamOptimized VMDK"}
		}
	}
	return nil
}

func (b *ovfBuilder) cards(devices []types.BaseVirtualDevice, nics []NIC) {
	for _, dev := range devices {
		if _, ok := dev.(types.BaseVirtualEthernetCard); !ok {
			continue
		}
		key := dev.GetVirtualDevice().Key
		network := "VM Network" // a card must be on one
		if i := slices.IndexFunc(nics, func(n NIC) bool { return n.Key == key }); i >= 0 && nics[i].Network != "" {
			network = nics[i].Network
		}
		if b.e.Networks == nil {
			b.e.Networks = &ovfNetworks{Info: "Networks"}
		}
		if !slices.ContainsFunc(b.e.Networks.Networks, func(n ovfNetwork) bool { return n.Name == network }) {
			b.e.Networks.Networks = append(b.e.Networks.Networks, ovfNetwork{network, "The network " + network})
		}
		b.item(ovfItem{Automatic: "true", Connection: network, Name: orText(deviceLabel(dev), "Network adapter"), SubType: ovfCard(dev), Type: 10})
	}
}

// ovfController is the CIM resource type of a controller and VMware's name for its kind.
func ovfController(d types.BaseVirtualDevice) (kind int, sub string) {
	switch d.(type) {
	case *types.VirtualIDEController:
		return 5, "PIIX4"
	case *types.ParaVirtualSCSIController:
		return 6, "VirtualSCSI"
	case *types.VirtualLsiLogicSASController:
		return 6, "lsilogicsas"
	case *types.VirtualBusLogicController:
		return 6, "buslogic"
	case types.BaseVirtualSATAController:
		return 20, "vmware.sata.ahci"
	case *types.VirtualNVMEController:
		return 20, "vmware.nvme.controller"
	}
	return 6, "lsilogic"
}

func ovfCard(d types.BaseVirtualDevice) string {
	switch d.(type) {
	case *types.VirtualE1000:
		return "E1000"
	case *types.VirtualE1000e:
		return "E1000e"
	case *types.VirtualPCNet32:
		return "PCNet32"
	case *types.VirtualVmxnet2:
		return "VmxNet2"
	}
	return "VmxNet3"
}

const (
	ovfSpace = "http://schemas.dmtf.org/ovf/envelope/1"
	cimSpace = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/"
)

// The elements of an envelope, in the order that its schema demands.
type (
	ovfEnvelope struct {
		XMLName  xml.Name     `xml:"Envelope"`
		Xmlns    string       `xml:"xmlns,attr"`
		Ovf      string       `xml:"xmlns:ovf,attr"`
		Rasd     string       `xml:"xmlns:rasd,attr"`
		Vssd     string       `xml:"xmlns:vssd,attr"`
		Vmw      string       `xml:"xmlns:vmw,attr"`
		Refs     ovfRefs      `xml:"References"`
		Disks    ovfDisks     `xml:"DiskSection"`
		Networks *ovfNetworks `xml:"NetworkSection"`
		System   ovfSystem    `xml:"VirtualSystem"`
	}
	ovfRefs struct {
		Files []ovfFile `xml:"File"`
	}
	ovfFile struct {
		Href string `xml:"ovf:href,attr"`
		ID   string `xml:"ovf:id,attr"`
		Size int64  `xml:"ovf:size,attr"`
	}
	ovfDisks struct {
		Info  string
		Disks []ovfDisk `xml:"Disk"`
	}
	ovfDisk struct {
		Capacity int64  `xml:"ovf:capacity,attr"`
		Units    string `xml:"ovf:capacityAllocationUnits,attr"`
		ID       string `xml:"ovf:diskId,attr"`
		File     string `xml:"ovf:fileRef,attr"`
		Format   string `xml:"ovf:format,attr"`
	}
	ovfNetworks struct {
		Info     string
		Networks []ovfNetwork `xml:"Network"`
	}
	ovfNetwork struct {
		Name        string `xml:"ovf:name,attr"`
		Description string
	}
	ovfSystem struct {
		ID       string `xml:"ovf:id,attr"`
		Info     string
		Name     string
		OS       ovfOS       `xml:"OperatingSystemSection"`
		Hardware ovfHardware `xml:"VirtualHardwareSection"`
	}
	ovfOS struct {
		ID   int    `xml:"ovf:id,attr"` // of CIM_OperatingSystem; 1: other, VMware reads the next
		Type string `xml:"vmw:osType,attr,omitempty"`
		Info string
	}
	ovfHardware struct {
		Info   string
		System ovfFamily
		Items  []ovfItem   `xml:"Item"`
		Config []ovfConfig `xml:"vmw:Config"`
	}
	ovfFamily struct {
		Name   string `xml:"vssd:ElementName"`
		ID     int    `xml:"vssd:InstanceID"`
		System string `xml:"vssd:VirtualSystemIdentifier"`
		Type   string `xml:"vssd:VirtualSystemType"`
	}
	ovfItem struct {
		Address     string `xml:"rasd:Address,omitempty"`
		OnParent    string `xml:"rasd:AddressOnParent,omitempty"`
		Units       string `xml:"rasd:AllocationUnits,omitempty"`
		Automatic   string `xml:"rasd:AutomaticAllocation,omitempty"`
		Connection  string `xml:"rasd:Connection,omitempty"`
		Description string `xml:"rasd:Description,omitempty"`
		Name        string `xml:"rasd:ElementName"`
		Resource    string `xml:"rasd:HostResource,omitempty"`
		ID          string `xml:"rasd:InstanceID"`
		Parent      string `xml:"rasd:Parent,omitempty"`
		SubType     string `xml:"rasd:ResourceSubType,omitempty"`
		Type        int    `xml:"rasd:ResourceType"`
		Quantity    string `xml:"rasd:VirtualQuantity,omitempty"`
	}
	ovfConfig struct {
		Required bool   `xml:"ovf:required,attr"`
		Key      string `xml:"vmw:key,attr"`
		Value    string `xml:"vmw:value,attr"`
	}
)
