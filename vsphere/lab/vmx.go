package lab

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path"
	"regexp"
	"sort"
	"strconv"
	"strings"

	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// nvramSize is the size of a BIOS machine's .nvram.
const nvramSize = 8684

// writeConfigFiles keeps the machine's .vmx true to its configuration and gives it an .nvram. Machine lock held.
func (s *sim) writeConfigFiles(vm *mo.VirtualMachine) {
	if s.starting || path.Ext(vm.Config.Files.VmPathName) != ".vmx" {
		return // the start writes them once per machine, at the end
	}
	if p, err := s.store.local(vm.Config.Files.VmPathName); err == nil {
		_ = os.WriteFile(p, vmxOf(vm), 0o600)
	}
	if p, err := s.local(path.Dir(vm.Config.Files.VmPathName), vm.Config.Name+".nvram"); err == nil {
		if st, err := os.Stat(p); err == nil && st.Size() == 0 { // the simulator makes it empty
			_ = os.WriteFile(p, nvramOf(vm.Config.Uuid), 0o600)
		}
	}
}

// nvramOf makes up the content of an .nvram: a header and bytes that differ from machine to machine.
func nvramOf(seed string) []byte {
	b := bytes.NewBufferString("MRVN\x01\x00\x00\x00")
	for n := 0; b.Len() < nvramSize; n++ {
		h := sha256.Sum256(fmt.Appendf(nil, "%s %d", seed, n))
		b.Write(h[:])
	}
	return b.Bytes()[:nvramSize]
}

// vmxOf writes the configuration as a .vmx.
func vmxOf(vm *mo.VirtualMachine) []byte {
	c := vm.Config
	set := map[string]string{
		".encoding": "UTF-8", "config.version": "8", "virtualHW.version": strings.TrimLeft(strings.TrimPrefix(c.Version, "vmx-"), "0"),
		"displayName": c.Name, "guestOS": strings.TrimSuffix(c.GuestId, "Guest"), "numvcpus": strconv.Itoa(int(c.Hardware.NumCPU)),
		"memSize": strconv.Itoa(int(c.Hardware.MemoryMB)), "uuid.bios": vmxUUID(c.Uuid), "vc.uuid": vmxUUID(c.InstanceUuid),
		"nvram": c.Name + ".nvram", "firmware": c.Firmware, "lab.guestId": c.GuestId,
	}
	if c.Annotation != "" {
		set["annotation"] = strings.NewReplacer("\n", "|0A", "\"", "|22").Replace(c.Annotation)
	}
	if isTrue(c.ChangeTrackingEnabled) {
		set["ctkEnabled"] = "TRUE"
	}
	place := map[int32]string{}
	for _, d := range c.Hardware.Device {
		if name, kind := vmxController(d); name != "" {
			place[d.GetVirtualDevice().Key] = name
			set[name+".present"] = "TRUE"
			if kind != "" {
				set[name+".virtualDev"] = kind
			}
		}
	}
	nic := 0
	for _, d := range c.Hardware.Device {
		v := d.GetVirtualDevice()
		switch d := d.(type) {
		case *types.VirtualDisk:
			b, ok := d.Backing.(types.BaseVirtualDeviceFileBackingInfo)
			if !ok || v.UnitNumber == nil {
				continue
			}
			at := fmt.Sprintf("%s:%d", place[v.ControllerKey], *v.UnitNumber)
			set[at+".present"] = "TRUE"
			set[at+".deviceType"] = "scsi-hardDisk"
			set[at+".fileName"] = relative(c.Files.VmPathName, b.GetVirtualDeviceFileBackingInfo().FileName)
			if fb := flatBacking(d); fb != nil && strings.HasPrefix(fb.DiskMode, "independent") {
				set[at+".mode"] = strings.Replace(fb.DiskMode, "_", "-", 1)
			}
		case types.BaseVirtualEthernetCard:
			at := fmt.Sprintf("ethernet%d", nic)
			nic++
			set[at+".present"] = "TRUE"
			set[at+".virtualDev"] = "vmxnet3"
			set[at+".generatedAddress"] = d.GetVirtualEthernetCard().MacAddress
		}
	}
	for _, o := range c.ExtraConfig {
		v := o.GetOptionValue()
		if _, taken := set[v.Key]; !taken && !strings.ContainsAny(v.Key, "\n=\"") {
			set[v.Key] = strings.NewReplacer("\n", "|0A", "\"", "|22").Replace(fmt.Sprint(v.Value))
		}
	}
	keys := make([]string, 0, len(set))
	for k := range set {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	var b bytes.Buffer
	for _, k := range keys {
		fmt.Fprintf(&b, "%s = \"%s\"\n", k, set[k])
	}
	return b.Bytes()
}

// relative is how a .vmx names a disk: by file name in its own directory, else by absolute path.
func relative(vmx, disk string) string {
	ds, p, _ := splitPath(disk)
	vds, vp, _ := splitPath(vmx)
	if ds == vds && path.Dir(p) == path.Dir(vp) {
		return path.Base(p)
	}
	return "/vmfs/volumes/" + ds + "/" + p
}

func vmxController(d types.BaseVirtualDevice) (name, kind string) {
	switch c := d.(type) {
	case *types.VirtualIDEController:
		return fmt.Sprintf("ide%d", c.BusNumber), ""
	case *types.ParaVirtualSCSIController:
		return fmt.Sprintf("scsi%d", c.BusNumber), "pvscsi"
	case *types.VirtualLsiLogicController:
		return fmt.Sprintf("scsi%d", c.BusNumber), "lsilogic"
	case *types.VirtualLsiLogicSASController:
		return fmt.Sprintf("scsi%d", c.BusNumber), "lsisas1068"
	case *types.VirtualBusLogicController:
		return fmt.Sprintf("scsi%d", c.BusNumber), "buslogic"
	case types.BaseVirtualSATAController:
		return fmt.Sprintf("sata%d", c.GetVirtualSATAController().BusNumber), ""
	case *types.VirtualNVMEController:
		return fmt.Sprintf("nvme%d", c.BusNumber), ""
	}
	return "", ""
}

// vmxUUID spells a uuid as .vmx files do: "56 4d 0f ... -... ".
func vmxUUID(u string) string {
	h := strings.ReplaceAll(u, "-", "")
	if len(h) != 32 {
		return u
	}
	var b strings.Builder
	for i := 0; i < 32; i += 2 {
		switch i {
		case 0:
		case 16:
			b.WriteByte('-')
		default:
			b.WriteByte(' ')
		}
		b.WriteString(h[i : i+2])
	}
	return b.String()
}

func fromVMXUUID(u string) string {
	h := strings.NewReplacer(" ", "", "-", "").Replace(u)
	if len(h) != 32 {
		return ""
	}
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// parseVMX reads the assignments of a .vmx.
func parseVMX(text []byte) (map[string]string, error) {
	line := regexp.MustCompile(`^\s*([^=\s]+)\s*=\s*"(.*)"\s*$`)
	set := map[string]string{}
	for _, l := range strings.Split(string(text), "\n") {
		if m := line.FindStringSubmatch(l); m != nil {
			set[strings.ToLower(m[1])] = strings.NewReplacer("|0A", "\n", "|22", "\"").Replace(m[2])
		}
	}
	if set["displayname"] == "" && set["config.version"] == "" {
		return nil, errors.New("not a .vmx file")
	}
	return set, nil
}

// specOfVMX turns a .vmx at dsPath into a specification that attaches its disks.
func specOfVMX(dsPath string, set map[string]string) *types.VirtualMachineConfigSpec {
	number := func(k string) int64 {
		n, _ := strconv.ParseInt(set[k], 10, 64)
		return n
	}
	spec := &types.VirtualMachineConfigSpec{
		Name: set["displayname"], Firmware: set["firmware"], Annotation: set["annotation"],
		NumCPUs: int32(max(number("numvcpus"), 1)), MemoryMB: max(number("memsize"), 4),
		Uuid: fromVMXUUID(set["uuid.bios"]), InstanceUuid: fromVMXUUID(set["vc.uuid"]),
		GuestId: set["lab.guestid"],
	}
	if n := number("virtualhw.version"); n > 0 {
		spec.Version = fmt.Sprintf("vmx-%02d", n)
	}
	if strings.EqualFold(set["ctkenabled"], "true") {
		spec.ChangeTrackingEnabled = types.NewBool(true)
	}
	add := func(d types.BaseVirtualDevice) {
		spec.DeviceChange = append(spec.DeviceChange, &types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationAdd, Device: d})
	}
	kinds := map[string]string{"pvscsi": "pvscsi", "lsilogic": "lsilogic", "lsisas1068": "lsilogic-sas", "buslogic": "buslogic", "": "lsilogic"}
	next := int32(-100)
	for _, family := range []string{"ide", "scsi", "sata", "nvme"} {
		for n := int32(0); n < 4; n++ {
			at := fmt.Sprintf("%s%d", family, n)
			if !strings.EqualFold(set[at+".present"], "true") {
				continue
			}
			key := keyIDE + n
			if family != "ide" {
				kind := family
				if family == "scsi" {
					kind = kinds[strings.ToLower(set[at+".virtualdev"])]
				}
				c, err := newController(kind, n, false)
				if err != nil {
					continue
				}
				next--
				key = next
				c.GetVirtualDevice().Key = key
				add(c)
			}
			for unit := int32(0); unit < 64; unit++ {
				file := set[fmt.Sprintf("%s:%d.filename", at, unit)]
				if !strings.HasSuffix(file, ".vmdk") || !strings.EqualFold(set[fmt.Sprintf("%s:%d.present", at, unit)], "true") {
					continue
				}
				next--
				d := &types.VirtualDisk{}
				d.Key, d.ControllerKey, d.UnitNumber = next, key, types.NewInt32(unit)
				mode := strings.Replace(set[fmt.Sprintf("%s:%d.mode", at, unit)], "-", "_", 1)
				d.Backing = &types.VirtualDiskFlatVer2BackingInfo{
					VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: absolute(dsPath, file)}, DiskMode: mode}
				add(d)
			}
		}
	}
	return spec
}

func absolute(vmx, file string) string {
	if rest, ok := strings.CutPrefix(file, "/vmfs/volumes/"); ok {
		ds, p, _ := strings.Cut(rest, "/")
		return joinPath(ds, p)
	}
	ds, p, _ := splitPath(vmx)
	return joinPath(ds, path.Join(path.Dir(p), file))
}
