package lab_test

import (
	"bytes"
	"regexp"
	"strings"
	"testing"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/vsphere/lab"
)

// faultKey is the message key of a FileFault, or the name of an InvalidArgument's property.
func faultKey(err error) string {
	var ff *types.FileFault
	var ia *types.InvalidArgument
	if _, ok := fault.As(err, &ff); ok && len(ff.FaultMessage) > 0 {
		return ff.FaultMessage[0].Key
	}
	if _, ok := fault.As(err, &ia); ok {
		return "InvalidArgument " + ia.InvalidProperty
	}
	if soap.IsSoapFault(err) {
		return soap.ToSoapFault(err).String
	}
	return "?"
}

func TestChangedAreaFaults(t *testing.T) {
	b := start(t, lab.Options{Machines: []lab.Machine{
		oneDisk("web"),
		{Name: "off", Disks: []lab.Disk{{Size: mib}}},
		{Name: "kinds", Tracking: true, Disks: []lab.Disk{{Size: mib}, {Size: mib, Mode: "independent_persistent"}, {Size: mib, Raw: "physicalMode"}}},
	}})
	vm := b.vm("web")
	snap := b.snapshot(vm, "s")
	d := b.disks(snap)[0]
	id := flat(d).ChangeId
	if !regexp.MustCompile(`^52( [0-9a-f]{2}){7}-[0-9a-f]{2}( [0-9a-f]{2}){7}/\d+$`).MatchString(id) {
		t.Errorf("changeId %q", id)
	}
	foreign := "52 00 00 00 00 00 00 00-00 00 00 00 00 00 00 00/1"
	kinds := b.snapshot(b.vm("kinds"), "s")
	off := b.snapshot(b.vm("off"), "s")
	for _, c := range []struct {
		name   string
		vm     string
		snap   *moref
		key    int32
		offset int64
		id     string
		want   string
	}{
		{"capacity as offset", "web", &snap, 2000, d.CapacityInBytes, "*", "InvalidArgument startOffset"},
		{"negative offset", "web", &snap, 2000, -1, "*", "InvalidArgument startOffset"},
		{"no such disk", "web", &snap, 2001, 0, "*", "InvalidArgument deviceKey"},
		{"a controller", "web", &snap, 1000, 0, "*", "InvalidArgument deviceKey"},
		{"independent disk", "kinds", &kinds, 2001, 0, "*", "InvalidArgument deviceKey"},
		{"raw mapping", "kinds", &kinds, 2002, 0, "*", "InvalidArgument deviceKey"},
		{"not a changeId", "web", &snap, 2000, 0, "nonsense", "InvalidArgument changeId"},
		{"no number", "web", &snap, 2000, 0, strings.Split(id, "/")[0] + "/", "InvalidArgument changeId"},
		{"other tracking instance", "web", &snap, 2000, 0, foreign, "vim.hostd.vmsvc.cbt.cannotGetChanges"},
		{"from the future", "web", &snap, 2000, 0, id + "000", "vim.hostd.vmsvc.cbt.cannotGetChanges"},
		{"tracking is off, with *", "off", &off, 2000, 0, "*", "vim.hostd.vmsvc.cbt.noEpoch"},
		{"tracking is off, with an id", "off", &off, 2000, 0, foreign, "vim.hostd.vmsvc.cbt.noTrack"},
		{"running disk without snapshot", "web", nil, 2000, 0, "*", "vim.hostd.vmsvc.cbt.cannotGetChanges"},
		{"snapshot of another machine", "web", &off, 2000, 0, "*", "InvalidArgument snapshot"},
	} {
		_, err := methods.QueryChangedDiskAreas(b.ctx, b.vim, &types.QueryChangedDiskAreas{
			This: b.vm(c.vm).Reference(), Snapshot: c.snap, DeviceKey: c.key, StartOffset: c.offset, ChangeId: c.id})
		if err == nil {
			t.Errorf("%s: no fault", c.name)
		} else if got := faultKey(err); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
	if id := flat(b.disks(off)[0]).ChangeId; id != "" {
		t.Errorf("untracked disk has changeId %q", id)
	}
}

// Tracking begins at the stun after it was asked for, never on a disk with snapshots.
func TestTrackingStartsAtTheStun(t *testing.T) {
	b := start(t, lab.Options{Machines: []lab.Machine{
		{Name: "web", Disks: []lab.Disk{{Size: 4 * mib}}},
		{Name: "cold", Off: true, Disks: []lab.Disk{{Size: 4 * mib}}},
		{Name: "late", Disks: []lab.Disk{{Size: 4 * mib}}},
		{Name: "trap", Disks: []lab.Disk{{Size: 4 * mib}}},
	}})
	on := types.VirtualMachineConfigSpec{ChangeTrackingEnabled: types.NewBool(true)}
	tracked := func(name string) bool {
		ds, err := b.lab.Machine(name).Disks()
		if err != nil {
			t.Fatal(err)
		}
		return ds[0].Tracked
	}
	b.must(b.vm("web").Reconfigure(b.ctx, on))
	if tracked("web") {
		t.Error("a running machine tracks before the stun")
	}
	snap := b.snapshot(b.vm("web"), "s")
	if !tracked("web") || flat(b.disks(snap)[0]).ChangeId == "" {
		t.Error("the first snapshot has no changeId")
	}

	b.must(b.vm("cold").Reconfigure(b.ctx, on))
	if !tracked("cold") {
		t.Error("a machine that is off does not track at once")
	}

	s1 := b.snapshot(b.vm("late"), "before")
	b.must(b.vm("late").Reconfigure(b.ctx, on))
	s2 := b.snapshot(b.vm("late"), "after")
	if flat(b.disks(s2)[0]).ChangeId != "" {
		t.Error("tracking started on a disk with snapshots")
	}
	b.remove(s2)
	b.remove(s1)
	if s3 := b.snapshot(b.vm("late"), "clean"); flat(b.disks(s3)[0]).ChangeId == "" {
		t.Error("tracking did not start after the snapshots were gone")
	}

	if err := b.lab.Machine("trap").SetFaults(lab.MachineFaults{TrackSnapshots: true}); err != nil {
		t.Fatal(err)
	}
	b.guest("trap", 2000, 1, 0, mib)
	b.snapshot(b.vm("trap"), "before")
	b.must(b.vm("trap").Reconfigure(b.ctx, on))
	s4 := b.snapshot(b.vm("trap"), "after")
	id := flat(b.disks(s4)[0]).ChangeId
	set, _, err := b.changed(b.vm("trap").Reference(), &s4, b.disks(s4)[0], strings.Split(id, "/")[0]+"/0")
	if err != nil || len(set) != 0 {
		t.Errorf("the knob should make it wrong without an error, got %v, %v", set, err)
	}
}

func TestTrackingIsLost(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(*bench) error
		kept bool
	}{
		{"power cut", func(b *bench) error { return b.lab.Machine("web").PowerCut() }, false},
		{"clean restart", func(b *bench) error {
			b.must(b.vm("web").PowerOff(b.ctx))
			b.must(b.vm("web").PowerOn(b.ctx))
			return nil
		}, true},
		{"off and on again", func(b *bench) error {
			for _, on := range []bool{false, true} {
				b.must(b.vm("web").Reconfigure(b.ctx, types.VirtualMachineConfigSpec{ChangeTrackingEnabled: &on}))
				s := b.snapshot(b.vm("web"), "stun")
				b.remove(s)
			}
			return nil
		}, false},
		{"vMotion", func(b *bench) error { return b.lab.Machine("web").Migrate("esx2", "") }, true},
		{"storage vMotion", func(b *bench) error { return b.lab.Machine("web").Migrate("", "ds2") }, false},
		{"grown", func(b *bench) error { return b.lab.Machine("web").Grow(2000, 12*mib) }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := start(t, lab.Options{Machines: []lab.Machine{oneDisk("web")}})
			s1 := b.snapshot(b.vm("web"), "s")
			id := flat(b.disks(s1)[0]).ChangeId
			b.remove(s1)
			if err := c.do(b); err != nil {
				t.Fatal(err)
			}
			s2 := b.snapshot(b.vm("web"), "s")
			_, _, err := b.changed(b.vm("web").Reference(), &s2, b.disks(s2)[0], id)
			if kept := err == nil; kept != c.kept {
				t.Errorf("history kept: %v, error %v", kept, err)
			}
			if err != nil && faultKey(err) != "vim.hostd.vmsvc.cbt.cannotGetChanges" {
				t.Errorf("fault %s", faultKey(err))
			}
		})
	}
}

// After a revert the numbers repeat: a changeId of the abandoned branch is accepted, and what it gives is wrong.
func TestRevertTrap(t *testing.T) {
	for _, restart := range []bool{false, true} {
		b := start(t, lab.Options{RevertRestartsTracking: restart, Machines: []lab.Machine{oneDisk("web")}})
		vm := b.vm("web")
		s1 := b.snapshot(vm, "s1")
		b.guest("web", 2000, 1, 0, 1000)
		s2 := b.snapshot(vm, "s2")
		abandoned := flat(b.disks(s2)[0]).ChangeId
		image := b.link(flat(b.disks(s2)[0]).FileName)
		b.remove(s2)
		if err := b.lab.Machine("web").Revert(s1); err != nil {
			t.Fatal(err)
		}
		for i := range 2 {
			s := b.snapshot(vm, "more")
			b.guest("web", 2000, 5, int64(i+2)*mib, 1000)
			b.remove(s)
		}
		s3 := b.snapshot(vm, "s3")
		set, _, err := b.changed(vm.Reference(), &s3, b.disks(s3)[0], abandoned)
		if restart {
			if err == nil {
				t.Error("a new tracking instance accepted an old id")
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		now := b.link(flat(b.disks(s3)[0]).FileName)
		for _, e := range set {
			copy(image[e.Off:e.End()], now[e.Off:e.End()])
		}
		if bytes.Equal(image, now) {
			t.Error("the trap does not snap: the incremental after a revert is right")
		}
	}
}

func TestTrackingLies(t *testing.T) {
	b := start(t, lab.Options{Machines: []lab.Machine{oneDisk("web")}})
	vm := b.vm("web")
	for i := range 4 {
		b.guest("web", 2000, uint64(i), int64(i)*mib, 100)
	}
	snap := b.snapshot(vm, "s")
	d := b.disks(snap)[0]
	truth, _, err := b.changed(vm.Reference(), &snap, d, "*")
	if err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]lab.MachineFaults{
		"drop":  {Query: lab.DropAreas(2)},
		"shift": {Query: lab.ShiftAreas(65536)},
	} {
		if err := b.lab.Machine("web").SetFaults(f); err != nil {
			t.Fatal(err)
		}
		lie, _, err := b.changed(vm.Reference(), &snap, d, "*")
		if err != nil {
			t.Errorf("%s: a lie has no error, this one: %v", name, err)
		}
		if truth.Subtract(lie).Bytes() == 0 {
			t.Errorf("%s: %v is no lie", name, lie)
		}
	}
	if err := b.lab.Machine("web").SetFaults(lab.MachineFaults{Query: lab.ShortLength(6 * mib)}); err != nil {
		t.Fatal(err)
	}
	res, err := methods.QueryChangedDiskAreas(b.ctx, b.vim, &types.QueryChangedDiskAreas{This: vm.Reference(), Snapshot: &snap, DeviceKey: 2000, ChangeId: "*"})
	if err != nil || res.Returnval.Length != 2*mib || len(res.Returnval.ChangedArea) != 2 {
		t.Errorf("short answer: %+v, %v", res, err)
	}
	if err := b.lab.Machine("web").SetFaults(lab.MachineFaults{Query: lab.FailQuery("vim.hostd.vmsvc.cbt.cannotGetChanges")}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.changed(vm.Reference(), &snap, d, "*"); faultKey(err) != "vim.hostd.vmsvc.cbt.cannotGetChanges" {
		t.Errorf("fault %v", err)
	}
}

func TestGranularity(t *testing.T) {
	fine := oneDisk("fine")
	old := oneDisk("old")
	old.Hardware = 13
	b := start(t, lab.Options{FineGrain: 4096, Machines: []lab.Machine{fine, old}})
	for name, want := range map[string]int64{"fine": 4096, "old": 65536} {
		s1 := b.snapshot(b.vm(name), "s1")
		b.guest(name, 2000, 1, 10_000, 10)
		s2 := b.snapshot(b.vm(name), "s2")
		set, _, err := b.changed(b.vm(name).Reference(), &s2, b.disks(s2)[0], flat(b.disks(s1)[0]).ChangeId)
		if err != nil || set.Bytes() != want {
			t.Errorf("%s: %v, %v", name, set, err)
		}
	}
}

func TestPaging(t *testing.T) {
	for _, areas := range []int{1, 2, 3, 2000} {
		b := start(t, lab.Options{MaxAreas: areas, Machines: []lab.Machine{oneDisk("web")}})
		var want extent.Set
		for i := range 20 {
			off := int64(i) * 5 * 65536
			b.guest("web", 2000, uint64(i), off+3, 10)
			want = want.Union(extent.Set{{Off: off, Len: 65536}})
		}
		b.guest("web", 2000, 1, 8*mib-1, 1) // the last byte
		want = want.Union(extent.Set{{Off: 8*mib - 65536, Len: 65536}})
		snap := b.snapshot(b.vm("web"), "s")
		got, calls, err := b.changed(b.vm("web").Reference(), &snap, b.disks(snap)[0], "*")
		if err != nil {
			t.Fatal(err)
		}
		if got.Subtract(want).Bytes()+want.Subtract(got).Bytes() != 0 {
			t.Errorf("max %d: %v", areas, got)
		}
		if least := (len(want) + areas - 1) / areas; calls < least {
			t.Errorf("max %d: only %d calls", areas, calls)
		}
	}
}
