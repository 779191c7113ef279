package vsphere

import (
	"context"
	"errors"
	"slices"
	"testing"
)

// As many disks as a machine has places for come in one go, each where and as large as it was asked for; one more does
// not, and nothing is made for it.
func TestManyDisksAreHotAdded(t *testing.T) {
	w := start(t, machines("web"))
	v := w.find("web")
	links := len(w.lab.Links())
	add := func(n int) ([]Disk, error) {
		h := Carry{Operation: w.begin(), Fill: func(_ context.Context, carrier *VM, disks []Disk) (map[string]string, error) {
			for i, d := range disks {
				if d.Capacity != int64(i+1)*mib || carrier.ID() == v.ID() {
					t.Errorf("disk %d to fill is %s of %d bytes", i, d.Name, d.Capacity)
				}
			}
			return map[string]string{"vmkeep.test": "yes"}, nil
		}}
		for i := range n {
			h.Disks = append(h.Disks, DiskSpec{Hot: true, Capacity: int64(i+1) * mib, Provision: ProvisionThin})
		}
		return v.Carry(w.ctx, h)
	}
	if _, err := add(15); !errors.Is(err, ErrUnsuitable) || len(w.lab.Links()) != links {
		t.Errorf("fifteen disks for fourteen places: %v, files %v", err, w.lab.Links())
	}
	added, err := add(14)
	must(t, err)
	for i, d := range added {
		if d.Capacity != int64(i+1)*mib {
			t.Errorf("disk %d is %s of %d bytes", i, d.Name, d.Capacity)
		}
	}
	if n := len(w.paths("web")); n != 15 || len(w.lab.Links()) != links+14 || !slices.Equal(w.lab.Machines(), []string{"web"}) {
		t.Errorf("%d disks, files %v, machines %v", n, w.lab.Links(), w.lab.Machines())
	}
	if has, err := v.carries(w.ctx, "vmkeep.test"); err != nil || !has {
		t.Errorf("what came with the disks is there: %v, %v", has, err)
	}
}

// What was carried to a machine that is destroyed meanwhile goes as well.
func TestCarriedDisksOfADestroyedMachineGo(t *testing.T) {
	w := start(t, machines("web", "other"))
	v := w.find("web")
	op, err := w.j.Begin("", "repo1")
	must(t, err)
	_, err = v.Carry(w.ctx, Carry{Operation: op, Disks: []DiskSpec{{Hot: true, Capacity: mib}}, Fill: func(ctx context.Context, carrier *VM, _ []Disk) (map[string]string, error) {
		must(t, carrier.unload(ctx))
		must(t, w.lab.Machine("web").PowerOff())
		must(t, v.Destroy(ctx))
		return nil, nil
	}})
	if err == nil {
		t.Error("a disk was added to a machine that is gone")
	}
	must(t, op.End())
	if m, l := w.lab.Machines(), w.lab.Links(); len(m) != 1 || len(l) != 1 {
		t.Errorf("machines %v, files %v", m, l)
	}
}
