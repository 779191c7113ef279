package lab_test

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vmkeep/vmkeep/vsphere/lab"
)

// Removing any snapshot of a chain loses nothing of the others nor of the live disk.
func TestRemoveAnySnapshot(t *testing.T) {
	for gone := range 3 {
		b := start(t, lab.Options{Machines: []lab.Machine{oneDisk("web")}})
		vm := b.vm("web")
		var snaps []moref
		var images [][]byte
		for i := range 3 {
			b.guest("web", 2000, uint64(i), int64(i)*mib+5, 300_000)
			images = append(images, b.live("web", 2000))
			snaps = append(snaps, b.snapshot(vm, "s"))
		}
		b.guest("web", 2000, 9, 2*mib, 100)
		live := b.live("web", 2000)
		b.remove(snaps[gone])
		if !bytes.Equal(b.live("web", 2000), live) {
			t.Errorf("removing %d changed the live disk", gone)
		}
		for i, s := range snaps {
			if i != gone && !bytes.Equal(b.link(flat(b.disks(s)[0]).FileName), images[i]) {
				t.Errorf("removing %d changed snapshot %d", gone, i)
			}
		}
		if n := len(b.lab.Links()); n != 3 {
			t.Errorf("%d links after removing one of three snapshots", n)
		}
		b.must(vm.RemoveAllSnapshot(b.ctx, nil))
		if !bytes.Equal(b.live("web", 2000), live) || len(b.lab.Links()) != 1 || b.lab.Machine("web").SnapshotCount() != 0 {
			t.Error("RemoveAllSnapshots left something or lost something")
		}
	}
}

// The whole machinery against a map of images: random writes, snapshots, removals, reverts, leftovers.
func TestSnapshotsAgainstModel(t *testing.T) {
	b := start(t, lab.Options{Machines: []lab.Machine{{Name: "m", Tracking: true, Disks: []lab.Disk{{Size: mib}, {Size: mib + 512*3}}}}})
	vm := b.lab.Machine("m")
	rnd := rand.New(rand.NewPCG(7, 7))
	keys := []int32{2000, 2001}
	live := map[int32][]byte{2000: make([]byte, mib), 2001: make([]byte, mib+512*3)}
	frozen := map[moref]map[int32][]byte{}
	clone := func(m map[int32][]byte) map[int32][]byte {
		c := map[int32][]byte{}
		for k, v := range m {
			c[k] = bytes.Clone(v)
		}
		return c
	}
	anySnap := func() (moref, bool) {
		for r := range frozen {
			return r, true
		}
		return moref{}, false
	}
	for step := range 250 {
		switch op := rnd.IntN(20); {
		case op < 10:
			k := keys[rnd.IntN(2)]
			n := 1 + rnd.IntN(150_000)
			off := rnd.Int64N(int64(len(live[k]) - n))
			p := random(uint64(step), n)
			if err := vm.Write(k, p, off); err != nil {
				t.Fatal(err)
			}
			copy(live[k][off:], p)
		case op < 14:
			if len(frozen) < 6 {
				r, err := vm.Snapshot("s")
				if err != nil {
					t.Fatal(err)
				}
				frozen[r] = clone(live)
			}
		case op < 17:
			if r, ok := anySnap(); ok {
				if rnd.IntN(4) == 0 {
					if err := vm.SetFaults(lab.MachineFaults{LeaveDelta: 1}); err != nil {
						t.Fatal(err)
					}
				}
				if err := vm.RemoveSnapshot(r); err != nil {
					t.Fatal(err)
				}
				delete(frozen, r)
			}
		case op < 18:
			if r, ok := anySnap(); ok {
				if err := vm.Revert(r); err != nil {
					t.Fatal(err)
				}
				live = clone(frozen[r])
				if err := vm.PowerOn(); err != nil {
					t.Fatal(err)
				}
			}
		default:
			if vm.ConsolidationNeeded() {
				res, err := methods.ConsolidateVMDisks_Task(b.ctx, b.vim, &types.ConsolidateVMDisks_Task{This: vm.Ref()})
				if err != nil {
					t.Fatal(err)
				}
				b.must(object.NewTask(b.vim, res.Returnval), nil)
			}
		}
		for _, k := range keys {
			if !bytes.Equal(b.live("m", k), live[k]) {
				t.Fatalf("step %d: live disk %d differs", step, k)
			}
		}
		for r, want := range frozen {
			for _, d := range b.disks(r) {
				if !bytes.Equal(b.link(flat(d).FileName), want[d.Key]) {
					t.Fatalf("step %d: disk %d of snapshot %s differs", step, d.Key, r.Value)
				}
			}
		}
		if n := vm.SnapshotCount(); n != len(frozen) {
			t.Fatalf("step %d: %d snapshots, want %d", step, n, len(frozen))
		}
	}
	b.must(b.vm("m").RemoveAllSnapshot(b.ctx, nil))
	if vm.ConsolidationNeeded() || len(b.lab.Links()) != 2 {
		t.Errorf("at the end %v", b.lab.Links())
	}
}

func TestRevertTakesConfigurationBack(t *testing.T) {
	b := start(t, lab.Options{Machines: []lab.Machine{oneDisk("web")}})
	vm := b.vm("web")
	b.guest("web", 2000, 1, 0, 1000)
	then := b.live("web", 2000)
	snap := b.snapshot(vm, "s")
	b.must(vm.Reconfigure(b.ctx, types.VirtualMachineConfigSpec{Name: "renamed", MemoryMB: 2048}))
	if _, err := b.lab.Machine("renamed").AddDisk(lab.Disk{Size: mib}); err != nil {
		t.Fatal(err)
	}
	b.guest("renamed", 2000, 2, 0, 1000)
	if err := b.lab.Machine("renamed").Revert(snap); err != nil {
		t.Fatal(err)
	}
	var m mo.VirtualMachine
	b.props(vm.Reference(), &m, "config", "name", "runtime", "snapshot")
	if m.Name != "web" || m.Config.Hardware.MemoryMB != 512 || len(b.disks(vm.Reference())) != 1 {
		t.Errorf("after the revert: %s, %d MB, %d disks", m.Name, m.Config.Hardware.MemoryMB, len(b.disks(vm.Reference())))
	}
	if m.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOff || *m.Snapshot.CurrentSnapshot != snap {
		t.Errorf("after the revert: %s, current %v", m.Runtime.PowerState, m.Snapshot.CurrentSnapshot)
	}
	if !bytes.Equal(b.live("web", 2000), then) {
		t.Error("the content did not go back")
	}
}

func TestLeftoverDelta(t *testing.T) {
	b := start(t, lab.Options{Machines: []lab.Machine{oneDisk("web")}})
	vm := b.vm("web")
	snap := b.snapshot(vm, "s")
	b.guest("web", 2000, 1, 0, 200_000)
	now := b.live("web", 2000)
	if err := b.lab.Machine("web").SetFaults(lab.MachineFaults{LeaveDelta: 1}); err != nil {
		t.Fatal(err)
	}
	b.remove(snap)
	if !b.lab.Machine("web").ConsolidationNeeded() || b.lab.Machine("web").SnapshotCount() != 0 || len(b.lab.Links()) != 2 {
		t.Fatal("no delta was left behind")
	}
	// the next snapshot's number is the first free one, its disk is not the base
	next := b.snapshot(vm, "next")
	if got := flat(b.disks(next)[0]); got.FileName != "[ds1] web/web-000001.vmdk" || got.Parent == nil {
		t.Errorf("the next snapshot shows %s", got.FileName)
	}
	b.remove(next)
	if b.lab.Machine("web").ConsolidationNeeded() || len(b.lab.Links()) != 1 || !bytes.Equal(b.live("web", 2000), now) {
		t.Errorf("the leftover was not merged: %v", b.lab.Links())
	}
}

func TestSnapshotRules(t *testing.T) {
	b := start(t, lab.Options{Machines: []lab.Machine{
		oneDisk("web"),
		{Name: "quiet", NoTools: true, Disks: []lab.Disk{{Size: mib}}},
		{Name: "template", Template: true, Disks: []lab.Disk{{Size: mib}}},
		{Name: "shared", Disks: []lab.Disk{{Size: mib, SharedBus: true}}},
		{Name: "independent", Disks: []lab.Disk{{Size: mib}, {Size: mib, Mode: "independent_persistent"}}},
	}})
	quiesced := func(name string) bool {
		snap := b.must(b.vm(name).CreateSnapshot(b.ctx, "q", "", false, true)).Result.(moref)
		var m mo.VirtualMachine
		b.props(b.vm(name).Reference(), &m, "snapshot")
		defer b.remove(snap)
		return m.Snapshot.RootSnapshotList[0].Quiesced
	}
	if !quiesced("web") {
		t.Error("tools run, the snapshot is not quiesced")
	}
	if quiesced("quiet") {
		t.Error("no tools, and the snapshot says it is quiesced")
	}
	for _, f := range []types.BaseMethodFault{&types.ApplicationQuiesceFault{}, &types.FilesystemQuiesceFault{}} {
		if err := b.lab.Machine("web").SetFaults(lab.MachineFaults{Quiesce: f}); err != nil {
			t.Fatal(err)
		}
		task, err := b.vm("web").CreateSnapshot(b.ctx, "q", "", false, true)
		if err != nil {
			t.Fatal("a quiesce fault belongs into the task")
		}
		if _, err = task.WaitForResult(b.ctx); !fault.Is(err, f) {
			t.Errorf("quiescing failed with %v, want %T", err, f)
		}
		b.remove(b.snapshot(b.vm("web"), "crash consistent")) // still possible
	}
	if _, err := b.wait(b.vm("template").CreateSnapshot(b.ctx, "s", "", false, false)); !fault.Is(err, &types.InvalidState{}) {
		t.Errorf("template: %v", err)
	}
	if _, err := b.wait(b.vm("shared").CreateSnapshot(b.ctx, "s", "", false, false)); !fault.Is(err, &types.SnapshotIncompatibleDeviceInVm{}) {
		t.Errorf("shared bus: %v", err)
	}
	if _, err := b.wait(b.vm("independent").CreateSnapshot(b.ctx, "s", "", true, false)); !fault.Is(err, &types.MemorySnapshotOnIndependentDisk{}) {
		t.Errorf("memory with an independent disk: %v", err)
	}
	snap := b.snapshot(b.vm("independent"), "s")
	for i, d := range b.disks(b.vm("independent").Reference()) {
		if hasParent := flat(d).Parent != nil; hasParent == (i == 1) {
			t.Errorf("disk %d with parent: %v", i, hasParent)
		}
	}
	b.remove(snap)
	if err := b.lab.SetFreeSpace("ds1", 0); err != nil {
		t.Fatal(err)
	}
	if _, err := b.wait(b.vm("quiet").CreateSnapshot(b.ctx, "s", "", false, false)); !fault.Is(err, &types.NoDiskSpace{}) {
		t.Errorf("full datastore: %v", err)
	}
	var ds mo.Datastore
	store, err := b.finder.Datastore(b.ctx, "ds1")
	if err != nil {
		t.Fatal(err)
	}
	b.props(store.Reference(), &ds, "summary")
	if ds.Summary.FreeSpace != 0 {
		t.Errorf("free space shown as %d", ds.Summary.FreeSpace)
	}
	if err := b.lab.SetFreeSpace("ds1", 1<<40); err != nil {
		t.Fatal(err)
	}
	for range 32 {
		b.snapshot(b.vm("quiet"), "deep")
	}
	if _, err := b.wait(b.vm("quiet").CreateSnapshot(b.ctx, "s", "", false, false)); !fault.Is(err, &types.TooManySnapshotLevels{}) {
		t.Errorf("33rd level: %v", err)
	}
}

// A snapshot of a dense disk costs one empty file, not a copy.
func TestSnapshotCopiesNothing(t *testing.T) {
	b := start(t, lab.Options{Machines: []lab.Machine{{Name: "big", Disks: []lab.Disk{{Size: 1 << 40}}}}})
	b.guest("big", 2000, 1, 1<<39, 16*mib)
	b.snapshot(b.vm("big"), "s")
	b.guest("big", 2000, 2, 1<<39, 1)
	path, err := b.lab.Machine("big").DiskPath(2000)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(path, "big-000001-sesparse.vmdk") {
		t.Errorf("live content in %s", path)
	}
	if n := allocatedBytes(t, path); n > 128<<10 {
		t.Errorf("one byte written, the delta takes %d bytes", n)
	}
}
