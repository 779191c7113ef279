package lab

import (
	"fmt"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// Encryption, as clients see it: names of keys on a machine and its disks, and rules that follow from them. Content is
// kept in clear: hosts encrypt below everything that this lab shows.

// encrypt gives a new machine the keys and the virtual TPM its description asks for. Machine lock held.
func (s *sim) encrypt(ctx *simulator.Context, vm *simulator.VirtualMachine, m Machine) error {
	key := func() *types.CryptoKeyId {
		return &types.CryptoKeyId{KeyId: newInstanceUUID(), ProviderId: &types.KeyProviderId{Id: m.KeyProvider}}
	}
	devices := cloneDevices(vm.Config.Hardware.Device)
	for i, d := range virtualDisks(devices) {
		if i >= len(m.Disks) || !m.Disks[i].Encrypted {
			continue
		}
		b := flatBacking(d)
		if m.KeyProvider == "" || b == nil {
			return fmt.Errorf("disk %d of %s cannot be encrypted", i, m.Name)
		}
		b.KeyId = key()
		if l := s.store.find(b.FileName); l != nil {
			l.vol.mu.Lock()
			l.vol.keyed = true
			l.vol.mu.Unlock()
		}
	}
	if m.VTPM {
		if m.KeyProvider == "" || m.Firmware != string(types.GuestOsDescriptorFirmwareTypeEfi) {
			return fmt.Errorf("%s: a virtual TPM needs a key provider and EFI", m.Name)
		}
		devices = append(devices, &types.VirtualTPM{VirtualDevice: types.VirtualDevice{Key: keyTPM, ControllerKey: 100,
			DeviceInfo: &types.Description{Label: "Virtual TPM", Summary: "Trusted Platform Module"}}})
	}
	if m.KeyProvider != "" {
		ctx.Update(vm, []types.PropertyChange{{Name: "config.keyId", Val: key()}, {Name: "config.hardware.device", Val: devices}})
	}
	return nil
}

// keyTPM is the device key of a virtual TPM.
const keyTPM = 11000

// encryptedDisk tells whether a disk has a key; device key 0: any of the machine's. Machine lock held.
func encryptedDisk(vm *simulator.VirtualMachine, device int32) bool {
	for _, d := range virtualDisks(vm.Config.Hardware.Device) {
		if b := flatBacking(d); (device == 0 || d.Key == device) && b != nil && b.KeyId != nil {
			return true
		}
	}
	return false
}

// mayDecrypt demands the privilege of direct access from who opens an encrypted disk.
func (s *sim) mayDecrypt(user string, r ref, device int32) (fault types.BaseMethodFault) {
	const access = "Cryptographer.Access"
	s.withVM(s.context(), r, func(vm *simulator.VirtualMachine) {
		if encryptedDisk(vm, device) && !s.may(user, access) {
			fault = noPermission(r, access)
		}
	})
	return fault
}

// snapshotEncrypted applies what holds for snapshots of encrypted machines only: no memory, and no writers of VSS.
// Machine lock held.
func snapshotEncrypted(vm *simulator.VirtualMachine, req snapshotRequest) types.BaseMethodFault {
	switch {
	case vm.Config.KeyId == nil:
		return nil
	case req.memory:
		return &types.NotSupported{}
	case req.writers:
		return &types.ApplicationQuiesceFault{}
	}
	return nil
}

// encryptedIn refuses encrypted disks for a machine that is not: a proxy for HotAdd has to be encrypted itself.
func (s *sim) encryptedIn(vm *simulator.VirtualMachine, spec *types.VirtualMachineConfigSpec) types.BaseMethodFault {
	if vm.Config.KeyId != nil {
		return nil
	}
	for _, ch := range spec.DeviceChange {
		sp := ch.GetVirtualDeviceConfigSpec()
		d, ok := sp.Device.(*types.VirtualDisk)
		if !ok || sp.Operation != types.VirtualDeviceConfigSpecOperationAdd || sp.FileOperation != "" {
			continue
		}
		if b := flatBacking(d); b != nil && s.keyed(b.FileName) {
			return &types.InvalidVmConfig{Property: "configSpec.deviceChange.device.backing.keyId"}
		}
	}
	return nil
}

// keyed tells whether the disk file at p is encrypted.
func (s *sim) keyed(p string) bool {
	l := s.store.find(p)
	if l == nil {
		return false
	}
	l.vol.mu.RLock()
	defer l.vol.mu.RUnlock()
	return l.vol.keyed
}
