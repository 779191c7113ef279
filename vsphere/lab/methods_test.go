package lab_test

import (
	"testing"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vmkeep/vmkeep/vsphere/lab"
)

// A method is disabled by one source at a time, nobody can call it then, and that source enables it again.
func TestDisabledMethods(t *testing.T) {
	b := start(t, lab.Options{Machines: []lab.Machine{{Name: "web", Host: "esx1"}}})
	vm, am := b.vm("web"), object.NewAuthorizationManager(b.vim)
	one := []moref{vm.Reference()}
	disable := func(source string) error {
		return am.DisableMethods(b.ctx, one, []object.DisabledMethodRequest{{Method: "RelocateVM_Task", Reason: "test"}}, source)
	}
	enable := func(source string) {
		t.Helper()
		if err := am.EnableMethods(b.ctx, one, []string{"RelocateVM_Task"}, source); err != nil {
			t.Fatal(err)
		}
	}
	shown := func(want int) {
		t.Helper()
		var p mo.VirtualMachine
		if err := vm.Properties(b.ctx, vm.Reference(), []string{"disabledMethod"}, &p); err != nil || len(p.DisabledMethod) != want {
			t.Errorf("disabledMethod is %v, %v", p.DisabledMethod, err)
		}
	}
	move := func() error {
		ds, err := b.finder.Datastore(b.ctx, "ds2")
		if err != nil {
			t.Fatal(err)
		}
		to := ds.Reference()
		_, err = b.wait(vm.Relocate(b.ctx, types.VirtualMachineRelocateSpec{Datastore: &to}, types.VirtualMachineMovePriorityDefaultPriority))
		return err
	}

	if err := disable("one"); err != nil {
		t.Fatal(err)
	}
	shown(1)
	var already *types.MethodAlreadyDisabledFault
	for _, source := range []string{"one", "two"} {
		if _, ok := fault.As(disable(source), &already); !ok || already.SourceId != "one" {
			t.Errorf("disabled again by %s: %+v", source, already)
		}
	}
	enable("two")
	var off *types.MethodDisabled
	if _, ok := fault.As(move(), &off); !ok || off.Source != "one" {
		t.Errorf("the machine moves: %+v", off)
	}
	if err := b.lab.Machine("web").Migrate("", "ds2"); err == nil {
		t.Error("an administrator moves the machine")
	}
	if err := b.lab.Machine("web").Migrate("esx2", ""); err != nil {
		t.Errorf("DRS does not move the machine: %v", err)
	}
	enable("one")
	shown(0)
	if err := move(); err != nil {
		t.Error(err)
	}
}
