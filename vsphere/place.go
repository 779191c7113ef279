package vsphere

import "context"

// PlanDisk tells where [VM.WithNewDisk] would attach the disk now, and the datastore path of the disk that would make
// room for it; empty: none. It fails as that would: [ErrExists] for a place that is taken, [ErrUnsuitable] for one that
// the machine does not have.
func (v *VM) PlanDisk(ctx context.Context, spec DiskSpec) (name, old string, err error) {
	vm, err := v.read(ctx, "config.hardware.device", "config.files.vmPathName")
	if err != nil {
		return "", "", err
	}
	if vm.Config == nil {
		return "", "", unreadable(v)
	}
	devices := vm.Config.Hardware.Device
	name, key, _, err := v.choosePlace(devices, spec.Place, spec.Replace && !spec.Hot)
	if err == nil && (spec.Hot || spec.Carried) {
		err = v.takesCarried(vm, spec, key)
	}
	if err != nil {
		return "", "", err
	}
	for _, d := range disksOf(devices) {
		if d.Name == name {
			old = d.Path
		}
	}
	return name, old, nil
}
