package vsphere

import (
	"context"
	"maps"
	"slices"

	"github.com/vmware/govmomi/vim25/types"
)

// SetExtraConfig sets entries of the machine's extra configuration; an empty value removes one.
// It needs the privilege VirtualMachine.Config.AdvancedConfig.
func (v *VM) SetExtraConfig(ctx context.Context, entries map[string]string) error {
	var spec types.VirtualMachineConfigSpec
	for _, k := range slices.Sorted(maps.Keys(entries)) {
		spec.ExtraConfig = append(spec.ExtraConfig, &types.OptionValue{Key: k, Value: entries[k]})
	}
	return v.reconfigure(ctx, "set the extra configuration of "+v.label(), spec)
}
