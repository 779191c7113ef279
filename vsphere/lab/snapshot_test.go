package lab_test

import (
	"bytes"
	"testing"

	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/vsphere/lab"
)

func oneDisk(name string) lab.Machine {
	return lab.Machine{Name: name, Tracking: true, Disks: []lab.Disk{{Size: 8 * mib}}}
}

// A snapshot shows the disk as it was, however the guest goes on; its removal loses nothing.
func TestSnapshotFreezesContent(t *testing.T) {
	b := start(t, lab.Options{Machines: []lab.Machine{oneDisk("web")}})
	vm := b.vm("web")
	b.guest("web", 2000, 1, 100, 3*mib)
	then := b.live("web", 2000)
	snap := b.snapshot(vm, "s1")
	b.guest("web", 2000, 2, 64<<10+7, 200_000)
	now := b.live("web", 2000)
	if bytes.Equal(then, now) {
		t.Fatal("the guest's write did not reach the live disk")
	}
	frozen, live := b.disks(snap)[0], b.disks(vm.Reference())[0]
	if got := flat(frozen).FileName; got != "[ds1] web/web.vmdk" {
		t.Errorf("frozen disk is %q", got)
	}
	if got := flat(live); got.FileName != "[ds1] web/web-000001.vmdk" || got.Parent == nil || got.Parent.FileName != flat(frozen).FileName {
		t.Errorf("live disk is %+v", got)
	}
	if !bytes.Equal(b.link(flat(frozen).FileName), then) {
		t.Error("the frozen disk moved")
	}
	if !bytes.Equal(b.link(flat(live).FileName), now) {
		t.Error("the delta's path does not show the composed disk")
	}
	b.remove(snap)
	if !bytes.Equal(b.live("web", 2000), now) {
		t.Error("removing the snapshot changed the live disk")
	}
	if got := flat(b.disks(vm.Reference())[0]); got.FileName != "[ds1] web/web.vmdk" || got.Parent != nil {
		t.Errorf("after removal the disk is %+v", got)
	}
	if links := b.lab.Links(); len(links) != 1 {
		t.Errorf("links left: %v", links)
	}
}

func TestIncrementalChanges(t *testing.T) {
	b := start(t, lab.Options{MaxAreas: 2, Machines: []lab.Machine{oneDisk("web")}})
	vm := b.vm("web")
	for i := range 6 {
		b.guest("web", 2000, uint64(i), int64(i)*mib, 5000)
	}
	s1 := b.snapshot(vm, "s1")
	d1 := b.disks(s1)[0]
	full, calls, err := b.changed(vm.Reference(), &s1, d1, "*")
	if err != nil {
		t.Fatal(err)
	}
	if full.Bytes() != 6*65536 || calls < 3 {
		t.Errorf("full: %v in %d calls", full, calls)
	}
	b.remove(s1)
	b.guest("web", 2000, 9, 2*mib+65530, 10)
	s2 := b.snapshot(vm, "s2")
	inc, _, err := b.changed(vm.Reference(), &s2, b.disks(s2)[0], flat(d1).ChangeId)
	if err != nil {
		t.Fatal(err)
	}
	if want := (extent.Set{{Off: 2 * mib, Len: 131072}}); inc.Bytes() != want.Bytes() || inc[0] != want[0] {
		t.Errorf("incremental %v, want %v", inc, want)
	}
}
