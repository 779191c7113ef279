package lab

import (
	"bytes"
	"fmt"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
	"github.com/vmware/govmomi/vim25/xml"
)

// CreateDescriptor answers OvfManager.CreateDescriptor with an OVF 1.1 envelope of a machine: processors, memory,
// disk controllers and the disks among the files the caller has downloaded.
func (s *sim) CreateDescriptor(ctx *simulator.Context, req *types.CreateDescriptor) soap.HasFault {
	body := new(methods.CreateDescriptorBody)
	if !s.withVM(ctx, req.Obj, func(vm *simulator.VirtualMachine) {
		name := req.Cdp.Name
		if name == "" {
			name = vm.Name
		}
		body.Res = &types.CreateDescriptorResponse{Returnval: types.OvfCreateDescriptorResult{
			OvfDescriptor: ovfOf(vm.Config, name, req.Cdp.OvfFiles)}}
	}) {
		body.Fault_ = notFound(req.Obj)
	}
	return body
}

func ovfOf(c *types.VirtualMachineConfigInfo, name string, files []types.OvfFile) string {
	esc := func(s string) string {
		var b bytes.Buffer
		_ = xml.EscapeText(&b, []byte(s))
		return b.String()
	}
	var refs, disks, items bytes.Buffer
	for i, f := range files {
		fmt.Fprintf(&refs, `<File ovf:href="%s" ovf:id="file%d" ovf:size="%d"/>`, esc(f.Path), i+1, f.Size)
	}
	id := 0
	item := func(format string, args ...any) int {
		id++
		fmt.Fprintf(&items, "<Item>"+format+"<rasd:InstanceID>%d</rasd:InstanceID></Item>\n", append(args, id)...)
		return id
	}
	item("<rasd:ElementName>%d virtual CPU(s)</rasd:ElementName><rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>%[1]d</rasd:VirtualQuantity>", c.Hardware.NumCPU)
	item("<rasd:ElementName>%dMB of memory</rasd:ElementName><rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits><rasd:ResourceType>4</rasd:ResourceType><rasd:VirtualQuantity>%[1]d</rasd:VirtualQuantity>", c.Hardware.MemoryMB)
	parents := map[int32]int{}
	for _, d := range c.Hardware.Device {
		kind, sub := ovfController(d)
		if kind > 0 {
			b, _, _ := busOf(d)
			parents[d.GetVirtualDevice().Key] = item("<rasd:Address>%d</rasd:Address><rasd:ElementName>Controller %[1]d</rasd:ElementName><rasd:ResourceSubType>%s</rasd:ResourceSubType><rasd:ResourceType>%d</rasd:ResourceType>", b.number, sub, kind)
		}
	}
	n := 0
	for _, d := range virtualDisks(c.Hardware.Device) {
		if flatBacking(d) == nil {
			continue
		}
		ref := ""
		if n < len(files) {
			ref = fmt.Sprintf(` ovf:fileRef="file%d"`, n+1)
		}
		n++
		fmt.Fprintf(&disks, `<Disk ovf:capacity="%d" ovf:capacityAllocationUnits="byte" ovf:diskId="vmdisk%d"%s ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"/>`, d.CapacityInBytes, n, ref)
		unit := int32(0)
		if d.UnitNumber != nil {
			unit = *d.UnitNumber
		}
		item("<rasd:AddressOnParent>%d</rasd:AddressOnParent><rasd:ElementName>Hard disk %d</rasd:ElementName><rasd:HostResource>ovf:/disk/vmdisk%[2]d</rasd:HostResource><rasd:Parent>%d</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType>", unit, n, parents[d.ControllerKey])
	}
	return fmt.Sprintf(xml.Header+`<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" `+
		`xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData" `+
		`xmlns:vssd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData">
<References>%s</References>
<DiskSection><Info>Virtual disks</Info>%s</DiskSection>
<VirtualSystem ovf:id="%s"><Info>A virtual machine</Info><Name>%[3]s</Name>
<OperatingSystemSection ovf:id="1"><Info>The guest</Info></OperatingSystemSection>
<VirtualHardwareSection><Info>Virtual hardware</Info>
<System><vssd:ElementName>Virtual Hardware Family</vssd:ElementName><vssd:InstanceID>0</vssd:InstanceID><vssd:VirtualSystemIdentifier>%[3]s</vssd:VirtualSystemIdentifier><vssd:VirtualSystemType>%s</vssd:VirtualSystemType></System>
%s</VirtualHardwareSection></VirtualSystem></Envelope>
`, refs.String(), disks.String(), esc(name), c.Version, items.String())
}

// ovfController is the CIM resource type and subtype of a disk controller, 0 for other devices.
func ovfController(d types.BaseVirtualDevice) (kind int, sub string) {
	switch d.(type) {
	case *types.VirtualIDEController:
		return 5, "PIIX4"
	case *types.ParaVirtualSCSIController:
		return 6, "VirtualSCSI"
	case *types.VirtualLsiLogicSASController:
		return 6, "lsilogicsas"
	case *types.VirtualLsiLogicController:
		return 6, "lsilogic"
	case *types.VirtualBusLogicController:
		return 6, "buslogic"
	case types.BaseVirtualSATAController:
		return 20, "vmware.sata.ahci"
	case *types.VirtualNVMEController:
		return 20, "vmware.nvme.controller"
	}
	return 0, ""
}
