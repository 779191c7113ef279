package engine_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/vsphere/lab"
)

const littleSize = 8 << 20

// littleDisks is a vSphere with a machine of two small disks, and one that may take a disk over.
func littleDisks() lab.Options {
	return lab.Options{Machines: []lab.Machine{
		{Name: "db", Folder: "prod", Disks: []lab.Disk{{Size: littleSize}, {Size: littleSize}}},
		{Name: "other"},
	}}
}

// pointContent reads a disk of a point as a host would, holes and all, and hashes it.
func (r *rig) pointContent(p plugin.Point, d plugin.PointDisk) (s [sha256.Size]byte) {
	r.t.Helper()
	h := sha256.New()
	next := int64(0)
	r.must(r.ReadDisk(context.WithoutCancel(r.t.Context()), plugin.ReadDiskRequest{Point: p.ID, Disk: d.Name, Length: d.Capacity}, func(f plugin.Frame) error {
		if f.Offset != next {
			r.t.Errorf("a frame starts at %d, want %d", f.Offset, next)
		}
		if f.Data != nil {
			_, _ = h.Write(f.Data) // never fails
			next += int64(len(f.Data))
			return nil
		}
		_, _ = h.Write(make([]byte, f.Length))
		next += f.Length
		return nil
	}))
	if next != d.Capacity {
		r.t.Errorf("disk %s of point %.8s gives %d bytes, want %d", d.Name, p.ID, next, d.Capacity)
	}
	h.Sum(s[:0])
	return s
}

// contents hashes every disk of a machine as its guest sees it, by uuid.
func (r *rig) contents(machine string) map[string][sha256.Size]byte {
	r.t.Helper()
	disks, err := r.lab.Machine(machine).Disks()
	r.must(err)
	out := map[string][sha256.Size]byte{}
	for _, d := range disks {
		out[d.UUID] = r.sum(machine, d.Key, d.Size)
	}
	return out
}

// exact demands that a point holds exactly the disks given by their hashes.
func (r *rig) exact(p plugin.Point, want map[string][sha256.Size]byte) {
	r.t.Helper()
	have := map[string][sha256.Size]byte{}
	for _, d := range p.Disks {
		have[d.UUID] = r.pointContent(p, d)
	}
	if !maps.Equal(have, want) {
		r.t.Errorf("point %.8s does not hold the disks as they were: %d disks, want %d: %+v", p.ID, len(have), len(want), p.Disks)
	}
}

// point backs up a machine that rests, compares the point with its disks and returns it.
func (r *rig) point(machine string) plugin.Point {
	r.t.Helper()
	want := r.contents(machine)
	p := r.backup(machine, nil)
	r.exact(p, want)
	return p
}

// busy lets the guest write to all disks of a machine.
func (r *rig) busy(rng *rand.Rand, machine string) {
	r.t.Helper()
	disks, err := r.lab.Machine(machine).Disks()
	r.must(err)
	for _, d := range disks {
		r.scribble(rng, machine, d.Key, d.Size, 4, 96<<10)
	}
}

// admin is somebody with a client of his own.
type admin struct {
	r      *rig
	client *govmomi.Client
}

func (r *rig) admin() *admin {
	r.t.Helper()
	c, err := govmomi.NewClient(r.t.Context(), r.lab.URL(), true)
	r.must(err)
	r.t.Cleanup(func() {
		if err := c.Logout(context.Background()); err != nil {
			r.t.Error("log out:", err)
		}
	})
	return &admin{r: r, client: c}
}

func (a *admin) vm(name string) *object.VirtualMachine {
	return object.NewVirtualMachine(a.client.Client, a.r.lab.Machine(name).Ref())
}

// done waits for a task.
func (a *admin) done(task *object.Task, err error) *types.TaskInfo {
	a.r.t.Helper()
	a.r.must(err)
	info, err := task.WaitForResult(a.r.t.Context())
	a.r.must(err)
	return info
}

// register makes the machine of a .vmx known in its folder.
func (a *admin) register(vmx, host string) {
	a.r.t.Helper()
	f := find.NewFinder(a.client.Client)
	folder, err := f.Folder(a.r.t.Context(), "prod")
	a.r.must(err)
	h, err := f.HostSystem(a.r.t.Context(), host)
	a.r.must(err)
	pool, err := h.ResourcePool(a.r.t.Context())
	a.r.must(err)
	a.done(folder.RegisterVM(a.r.t.Context(), vmx, "", false, pool, h))
}

// moveDisk takes a disk from one machine and gives its file to another.
func (r *rig) moveDisk(from string, key int32, to string) (toKey int32) {
	r.t.Helper()
	disks, err := r.lab.Machine(from).Disks()
	r.must(err)
	i := slices.IndexFunc(disks, func(d lab.DiskInfo) bool { return d.Key == key })
	path := disks[i].Path
	r.must(r.lab.Machine(from).RemoveDisk(key))
	return r.attachFile(to, path)
}

// attachFile gives a machine a disk that exists.
func (r *rig) attachFile(machine, path string) (key int32) {
	r.t.Helper()
	a := r.admin()
	vm := a.vm(machine)
	devices, err := vm.Device(r.t.Context())
	r.must(err)
	controller, err := devices.FindDiskController("")
	if err != nil { // the machine has none yet
		made, err := devices.CreateSCSIController("pvscsi")
		r.must(err)
		r.must(vm.AddDevice(r.t.Context(), made))
		devices, err = vm.Device(r.t.Context())
		r.must(err)
		controller, err = devices.FindDiskController("")
		r.must(err)
	}
	disk := devices.CreateDisk(controller, types.ManagedObjectReference{}, path)
	r.must(vm.AddDevice(r.t.Context(), disk))
	disks, err := r.lab.Machine(machine).Disks()
	r.must(err)
	for _, d := range disks {
		if d.Path == path {
			return d.Key
		}
	}
	r.t.Fatalf("%s does not have %s", machine, path)
	return 0
}

// Whatever is done to a machine between two backups, the second point holds its disks as they were, and says truly how
// they were read: incrementally where that is safe, in full where it is not.
func TestTrustRulesOnAMachine(t *testing.T) {
	const tracked = "change tracking"
	const purged = "reverts cannot be ruled out: the server's events do not go back to the machine's last snapshot by a backup"
	const first, second = int32(2000), int32(2001) // device keys
	for _, c := range []struct {
		name string
		opt  func(*lab.Options)
		do   func(r *rig) (machine string) // between the first point and the second; the guest writes before and after
		want map[string]string             // reason per disk of the second point
	}{
		{name: "nothing", do: func(*rig) string { return "db" }, want: map[string]string{"scsi0-0": tracked, "scsi0-1": tracked}},
		{name: "disk added", do: func(r *rig) string {
			_, err := r.lab.Machine("db").AddDisk(lab.Disk{Size: 4 << 20})
			r.must(err)
			return "db"
		}, want: map[string]string{"scsi0-0": tracked, "scsi0-1": tracked, "scsi0-2": "disk is new in this machine"}},
		{name: "disk removed", do: func(r *rig) string {
			r.must(r.lab.Machine("db").RemoveDisk(second))
			return "db"
		}, want: map[string]string{"scsi0-0": tracked}},
		{name: "disk removed and another put in its place", do: func(r *rig) string {
			r.must(r.lab.Machine("db").RemoveDisk(second))
			_, err := r.lab.Machine("db").AddDisk(lab.Disk{Size: littleSize})
			r.must(err)
			return "db"
		}, want: map[string]string{"scsi0-0": tracked, "scsi0-1": "disk is new in this machine"}},
		{name: "disk lent to another machine, written there, and back", do: func(r *rig) string {
			key := r.moveDisk("db", second, "other")
			r.guest("other", key, []byte("written elsewhere"), 1<<20+512)
			r.moveDisk("other", key, "db")
			return "db"
		}, want: map[string]string{"scsi0-0": tracked, "scsi0-1": "tracking restarted"}},
		{name: "disk grown", do: func(r *rig) string {
			r.must(r.lab.Machine("db").Grow(first, 2*littleSize))
			return "db"
		}, want: map[string]string{"scsi0-0": "capacity changed", "scsi0-1": tracked}},
		{name: "renamed", do: func(r *rig) string {
			r.must(r.lab.Machine("db").Reconfigure(types.VirtualMachineConfigSpec{Name: "database"}))
			return "database"
		}, want: map[string]string{"scsi0-0": tracked, "scsi0-1": tracked}},
		{name: "moved to another host", do: func(r *rig) string {
			r.must(r.lab.Machine("db").Migrate(r.anotherHost("db"), ""))
			return "db"
		}, want: map[string]string{"scsi0-0": tracked, "scsi0-1": tracked}},
		{name: "moved to another datastore", do: func(r *rig) string {
			r.must(r.lab.Machine("db").Migrate("", "ds2"))
			return "db"
		}, want: map[string]string{"scsi0-0": "tracking restarted", "scsi0-1": "tracking restarted"}},
		{name: "moved to another datastore with its tracking", opt: func(o *lab.Options) { o.MoveKeepsTracking = true }, do: func(r *rig) string {
			r.must(r.lab.Machine("db").Migrate(r.anotherHost("db"), "ds2"))
			return "db"
		}, want: map[string]string{"scsi0-0": "disk moved to another file", "scsi0-1": "disk moved to another file"}},
		// Its events of before went with its old id.
		{name: "registered again", do: func(r *rig) string {
			a := r.admin()
			r.must(r.lab.Machine("db").PowerOff())
			vm, host := a.vm("db"), r.hostOf("db")
			machines, err := r.Machines(r.t.Context(), plugin.Selection{Names: []string{"db"}})
			r.must(err)
			r.must(vm.Unregister(r.t.Context()))
			a.register("[ds1] db/db.vmx", host)
			again, err := r.Machines(r.t.Context(), plugin.Selection{Names: []string{"db"}})
			r.must(err)
			if again[0].ID == machines[0].ID {
				r.t.Error("the machine has its old id")
			}
			r.must(r.lab.Machine("db").PowerOn())
			return "db"
		}, want: map[string]string{"scsi0-0": tracked, "scsi0-1": tracked}},
		{name: "cloned", do: func(r *rig) string {
			a := r.admin()
			folder, err := find.NewFinder(a.client.Client).Folder(r.t.Context(), "prod")
			r.must(err)
			a.done(a.vm("db").Clone(r.t.Context(), folder, "twin", types.VirtualMachineCloneSpec{PowerOn: true}))
			return "twin"
		}, want: map[string]string{"scsi0-0": "no previous point", "scsi0-1": "no previous point"}},
		{name: "power cut", do: func(r *rig) string {
			r.must(r.lab.Machine("db").PowerCut())
			return "db"
		}, want: map[string]string{"scsi0-0": "tracking restarted", "scsi0-1": "tracking restarted"}},
		{name: "off and on again", do: func(r *rig) string {
			r.must(r.lab.Machine("db").PowerOff())
			r.must(r.lab.Machine("db").PowerOn())
			return "db"
		}, want: map[string]string{"scsi0-0": tracked, "scsi0-1": tracked}},
		{name: "tracking switched off and on by somebody", do: func(r *rig) string {
			for _, on := range []bool{false, true} {
				r.must(r.lab.Machine("db").Reconfigure(types.VirtualMachineConfigSpec{ChangeTrackingEnabled: &on}))
				s, err := r.lab.Machine("db").Snapshot("stun")
				r.must(err)
				r.must(r.lab.Machine("db").RemoveSnapshot(s))
			}
			return "db"
		}, want: map[string]string{"scsi0-0": "tracking restarted", "scsi0-1": "tracking restarted"}},
		{name: "foreign snapshot taken", do: func(r *rig) string {
			_, err := r.lab.Machine("db").Snapshot("before the update")
			r.must(err)
			return "db"
		}, want: map[string]string{"scsi0-0": "snapshots of others changed", "scsi0-1": "snapshots of others changed"}},
		{name: "foreign snapshot taken and removed", do: func(r *rig) string {
			s, err := r.lab.Machine("db").Snapshot("before the update")
			r.must(err)
			r.busy(seeded(43), "db")
			r.must(r.lab.Machine("db").RemoveSnapshot(s))
			return "db"
		}, want: map[string]string{"scsi0-0": tracked, "scsi0-1": tracked}},
		{name: "reverted to a snapshot that is gone again", do: func(r *rig) string {
			s, err := r.lab.Machine("db").Snapshot("before the update")
			r.must(err)
			r.busy(seeded(43), "db")
			r.must(r.lab.Machine("db").Revert(s))
			r.must(r.lab.Machine("db").RemoveSnapshot(s))
			return "db"
		}, want: map[string]string{"scsi0-0": "reverted", "scsi0-1": "reverted"}},
		{name: "events purged", do: func(r *rig) string {
			r.lab.PurgeEvents()
			return "db"
		}, want: map[string]string{"scsi0-0": tracked, "scsi0-1": tracked}},
		{name: "events purged while there was a snapshot to go back to", do: func(r *rig) string {
			_, err := r.lab.Machine("db").Snapshot("before the update")
			r.must(err)
			r.point("db")
			r.lab.PurgeEvents()
			return "db"
		}, want: map[string]string{"scsi0-0": purged, "scsi0-1": purged}},
	} {
		t.Run(c.name, func(t *testing.T) {
			opt := littleDisks()
			if c.opt != nil {
				c.opt(&opt)
			}
			r := newRig(t, opt)
			rng := seeded(41)
			r.busy(rng, "db")
			before := r.contents("db")
			earlier := r.point("db")
			r.busy(rng, "db")
			machine := c.do(r)
			r.busy(rng, machine)
			later := r.point(machine)
			for _, d := range later.Disks {
				if d.Reason != c.want[d.Name] || d.Incremental != (d.Reason == tracked) {
					t.Errorf("disk %s: incremental %v, %q, want %q", d.Name, d.Incremental, d.Reason, c.want[d.Name])
				}
			}
			if len(later.Disks) != len(c.want) {
				t.Errorf("%d disks, want %d", len(later.Disks), len(c.want))
			}
			r.busy(rng, machine)
			for _, d := range r.point(machine).Disks {
				if !d.Incremental {
					t.Errorf("disk %s is read in full once more: %s", d.Name, d.Reason)
				}
			}
			r.exact(earlier, before)
		})
	}
}

// After a revert change ids go on from the snapshot's: once the sequence has caught up, only the events tell.
func TestRevertIsNeverMissed(t *testing.T) {
	for _, restarts := range []bool{false, true} {
		t.Run(fmt.Sprintf("a revert restarts tracking %v", restarts), func(t *testing.T) {
			opt := littleDisks()
			opt.RevertRestartsTracking = restarts
			r := newRig(t, opt)
			rng := seeded(47)
			vm := r.lab.Machine("db")
			r.point("db") // change tracking is on from here
			s, err := vm.Snapshot("good state")
			r.must(err)
			for round := range 2 {
				r.busy(rng, "db")
				r.point("db")
				for range 1 + round%2 { // twice: the disks run on files of the same names again
					r.busy(rng, "db")
					r.must(vm.Revert(s))
					r.must(vm.PowerOn())
				}
				if round%2 == 1 { // and other tools move the sequence of change ids on, beyond the last point's
					for range 3 {
						x, err := vm.Snapshot("another tool")
						r.must(err)
						r.must(vm.RemoveSnapshot(x))
					}
				}
				p := r.point("db")
				for _, d := range p.Disks {
					if d.Incremental {
						t.Errorf("restarts %v, round %d: disk %s was read incrementally across a revert", restarts, round, d.Name)
					}
				}
			}
			if n := vm.SnapshotCount(); n != 1 {
				t.Errorf("the machine has %d snapshots, want the foreign one", n)
			}
		})
	}
}

// A machine whose change tracking cannot be switched on is read in full, and the reason is told.
func TestTrackingIsNotSwitchedOnUnderSnapshots(t *testing.T) {
	r := newRig(t, littleDisks())
	_, err := r.lab.Machine("db").Snapshot("foreign")
	r.must(err)
	r.busy(seeded(51), "db")
	r.point("db")
	if d, err := r.lab.Machine("db").Disks(); err != nil || d[0].Tracked {
		t.Errorf("tracking was switched on under a snapshot: %v", err)
	}
	var told bool
	r.mu.Lock()
	for _, ev := range r.events {
		told = told || ev.Diagnostic != nil && ev.Diagnostic.Code == plugin.CodeChangeTracking
	}
	r.mu.Unlock()
	if !told {
		t.Error("nobody was told why")
	}
	for _, d := range r.point("db").Disks {
		if d.Incremental || d.Reason != "change tracking is not active on this disk" {
			t.Errorf("disk %s: incremental %v, %q", d.Name, d.Incremental, d.Reason)
		}
	}
}

func TestTrackingIsResetOnRequest(t *testing.T) {
	r := newRig(t, littleDisks())
	rng := seeded(53)
	r.busy(rng, "db")
	before := r.point("db")
	r.busy(rng, "db")
	want := r.contents("db")
	after := r.backup("db", func(b *plugin.BackupRequest) { b.ResetCBT = true })
	r.exact(after, want)
	for _, d := range after.Disks {
		if d.Reason != "tracking restarted" || d.ChangeID == r.disk(before, d.Name).ChangeID {
			t.Errorf("disk %s: %q", d.Name, d.Reason)
		}
	}
	r.noTraces("db")
	for _, d := range r.point("db").Disks {
		if !d.Incremental {
			t.Errorf("disk %s: %s", d.Name, d.Reason)
		}
	}
}

// hostOf is the name of the host that a machine is on.
func (r *rig) hostOf(machine string) string {
	r.t.Helper()
	m, err := r.Machines(r.t.Context(), plugin.Selection{Names: []string{machine}})
	r.must(err)
	return m[0].Host
}

// anotherHost is a host of the machine's cluster that it is not on.
func (r *rig) anotherHost(machine string) string {
	r.t.Helper()
	m, err := r.Machines(r.t.Context(), plugin.Selection{Names: []string{machine}})
	r.must(err)
	a := r.admin()
	hosts, err := find.NewFinder(a.client.Client).HostSystemList(r.t.Context(), m[0].Cluster+"/*")
	r.must(err)
	for _, h := range hosts {
		if h.Name() != m[0].Host {
			return h.Name()
		}
	}
	r.t.Fatalf("cluster %s has one host only", m[0].Cluster)
	return ""
}
