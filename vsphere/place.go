package vsphere

import "context"

// PlanDisk tells where [VM.WithNewDisk] would attach the disk now, and the datastore path of the disk that would make
// room for it; empty: none. It fails as that would: [ErrExists] for a place that is taken, [ErrUnsuitable] for one that
// the machine does not have.
func (v *VM) PlanDisk(ctx context.Context, spec DiskSpec) (name, old string, err error) {
	devices, err := v.hardwareNow(ctx)
	if err != nil {
		return "", "", err
	}
	if name, _, _, err = v.choosePlace(devices, spec.Place, spec.Replace); err != nil {
		return "", "", err
	}
	for _, d := range disksOf(devices) {
		if d.Name == name {
			old = d.Path
		}
	}
	return name, old, nil
}
