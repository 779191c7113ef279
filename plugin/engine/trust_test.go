package engine

import "testing"

func TestTrust(t *testing.T) {
	const id = "52 3c ec 11 9e 2c 4c 3d-87 4a c3 4e 85 f2 ea 95"
	base := func() (diskFacts, machineFacts, *manifest) {
		chain := []string{"[ds] vm/vm.vmdk"}
		now := diskFacts{name: "scsi0-0", uuid: "u1", capacity: 1 << 30, changeID: id + "/7", chain: chain}
		prev := &manifest{Disks: []manifestDisk{{Name: "scsi0-0", UUID: "u1", Capacity: 1 << 30, ChangeID: id + "/5", Chain: chain}}}
		return now, machineFacts{}, prev
	}
	for _, c := range []struct {
		name   string
		change func(*diskFacts, *machineFacts, *manifest)
		want   string
	}{
		{"nothing happened", func(*diskFacts, *machineFacts, *manifest) {}, reasonTracked},
		{"disk sits at another place", func(d *diskFacts, _ *machineFacts, _ *manifest) { d.name = "scsi1-3" }, reasonTracked},
		{"disk added", func(d *diskFacts, _ *machineFacts, _ *manifest) { d.uuid = "u2" }, reasonNewDisk},
		{"disk without uuid", func(d *diskFacts, _ *machineFacts, p *manifest) { d.uuid, p.Disks[0].UUID = "", "" }, reasonNewDisk},
		{"disk was skipped", func(_ *diskFacts, _ *machineFacts, p *manifest) { p.Disks[0].Skipped = "independent" }, reasonNewDisk},
		{"audit found a lie", func(d *diskFacts, m *machineFacts, _ *manifest) { m.suspects = []string{d.uuid} }, reasonSuspect},
		{"restored since", func(_ *diskFacts, m *machineFacts, _ *manifest) { m.restored = "op" }, reasonRestored},
		{"disk attached by a restore", func(d *diskFacts, m *machineFacts, _ *manifest) {
			d.uuid, m.attached = "u2", []string{"u2"}
		}, reasonRestored},
		{"restored under the same identity, with disks of its own", func(d *diskFacts, m *machineFacts, _ *manifest) {
			d.uuid, m.restored = "u2", "op"
		}, reasonRestored},
		{"disk that a restore attached before the previous point", func(d *diskFacts, m *machineFacts, _ *manifest) { m.attached = []string{d.uuid} }, reasonTracked},
		{"grown", func(d *diskFacts, _ *machineFacts, _ *manifest) { d.capacity *= 2 }, reasonCapacity},
		{"tracking off", func(d *diskFacts, _ *machineFacts, _ *manifest) { d.changeID = "" }, reasonNotTracked},
		{"tracking was off", func(_ *diskFacts, _ *machineFacts, p *manifest) { p.Disks[0].ChangeID = "" }, reasonNoPrevID},
		{"tracking reset", func(d *diskFacts, _ *machineFacts, _ *manifest) { d.changeID = "53" + id[2:] + "/9" }, reasonRestarted},
		{"sequence fell", func(d *diskFacts, _ *machineFacts, _ *manifest) { d.changeID = id + "/4" }, reasonReverted},
		{"sequence stands still", func(d *diskFacts, _ *machineFacts, _ *manifest) { d.changeID = id + "/5" }, reasonReverted},
		{"sequence caught up after a revert", func(_ *diskFacts, m *machineFacts, _ *manifest) { m.reverts = reasonReverted }, reasonReverted},
		{"malformed id", func(d *diskFacts, _ *machineFacts, _ *manifest) { d.changeID = id + "/x" }, reasonReverted},
		{"delta left on top", func(d *diskFacts, _ *machineFacts, _ *manifest) {
			d.chain = append([]string{"[ds] vm/vm-000001.vmdk"}, d.chain...)
		}, reasonTracked},
		{"runs on another delta", func(d *diskFacts, _ *machineFacts, p *manifest) {
			p.Disks[0].Chain = append([]string{"[ds] vm/vm-000001.vmdk"}, d.chain...)
			d.chain = append([]string{"[ds] vm/vm-000003.vmdk"}, d.chain...)
		}, reasonReverted},
		{"storage migration", func(d *diskFacts, _ *machineFacts, _ *manifest) { d.chain = []string{"[other] vm/vm.vmdk"} }, reasonMoved},
		{"foreign snapshot appeared", func(_ *diskFacts, m *machineFacts, _ *manifest) { m.snapshots = []string{"snapshot-9"} }, reasonSnapshots},
	} {
		now, machine, prev := base()
		c.change(&now, &machine, prev)
		v := judge(now, machine, prev)
		if v.reason != c.want {
			t.Errorf("%s: reason %q, want %q", c.name, v.reason, c.want)
		}
		if tracked := c.want == reasonTracked; tracked != (v.since != "") || tracked != (v.old != nil) {
			t.Errorf("%s: since %q, old %v with reason %q", c.name, v.since, v.old, v.reason)
		}
	}
	if v := judge(diskFacts{}, machineFacts{}, nil); v.reason != reasonFirst || v.since != "" {
		t.Errorf("no previous point: %+v", v)
	}
	if v := judge(diskFacts{}, machineFacts{restored: "op"}, nil); v.reason != reasonRestored || v.since != "" {
		t.Errorf("restored as a new machine: %+v", v)
	}
}
