package lab_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/vsphere/lab"
)

type moref = types.ManagedObjectReference

const mib = 1 << 20

// bench is a lab with a client that is logged in.
type bench struct {
	*testing.T
	ctx    context.Context
	lab    *lab.Lab
	c      *govmomi.Client
	vim    *vim25.Client
	finder *find.Finder
}

func start(t *testing.T, opt lab.Options) *bench {
	t.Helper()
	l, err := lab.Start(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	b := &bench{T: t, ctx: t.Context(), lab: l}
	b.c = b.login(l.URL().User.Username())
	b.vim = b.c.Client
	b.finder = find.NewFinder(b.vim, true)
	dc, err := b.finder.DefaultDatacenter(b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	b.finder.SetDatacenter(dc)
	return b
}

// login makes a client of another session; every password in these tests is "lab".
func (b *bench) login(user string) *govmomi.Client {
	b.Helper()
	c, err := govmomi.NewClient(b.ctx, b.lab.URLFor(user, "lab"), true)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.CloseIdleConnections() })
	return c
}

func (b *bench) vm(name string) *object.VirtualMachine {
	b.Helper()
	return object.NewVirtualMachine(b.vim, b.lab.Machine(name).Ref())
}

func (b *bench) wait(task *object.Task, err error) (*types.TaskInfo, error) {
	if err != nil {
		return nil, err
	}
	return task.WaitForResult(b.ctx)
}

func (b *bench) must(task *object.Task, err error) *types.TaskInfo {
	b.Helper()
	info, err := b.wait(task, err)
	if err != nil {
		b.Fatal(err)
	}
	return info
}

func (b *bench) snapshot(vm *object.VirtualMachine, name string) moref {
	b.Helper()
	return b.must(vm.CreateSnapshot(b.ctx, name, "", false, false)).Result.(moref)
}

func (b *bench) remove(snap moref) {
	b.Helper()
	res, err := methods.RemoveSnapshot_Task(b.ctx, b.vim, &types.RemoveSnapshot_Task{This: snap, Consolidate: types.NewBool(true)})
	if err != nil {
		b.Fatal(err)
	}
	b.must(object.NewTask(b.vim, res.Returnval), nil)
}

func (b *bench) props(r moref, dst any, names ...string) {
	b.Helper()
	if err := property.DefaultCollector(b.vim).RetrieveOne(b.ctx, r, names, dst); err != nil {
		b.Fatal(err)
	}
}

// disks are the virtual disks of a machine or of a snapshot.
func (b *bench) disks(r moref) (out []*types.VirtualDisk) {
	b.Helper()
	var devices []types.BaseVirtualDevice
	if r.Type == "VirtualMachine" {
		var m mo.VirtualMachine
		b.props(r, &m, "config.hardware.device")
		devices = m.Config.Hardware.Device
	} else {
		var m mo.VirtualMachineSnapshot
		b.props(r, &m, "config.hardware.device")
		devices = m.Config.Hardware.Device
	}
	for _, d := range devices {
		if v, ok := d.(*types.VirtualDisk); ok {
			out = append(out, v)
		}
	}
	return out
}

func flat(d *types.VirtualDisk) *types.VirtualDiskFlatVer2BackingInfo {
	return d.Backing.(*types.VirtualDiskFlatVer2BackingInfo)
}

// changed asks for all pages of a disk's changes.
func (b *bench) changed(vm moref, snap *moref, d *types.VirtualDisk, since string) (set extent.Set, calls int, err error) {
	var all []extent.Extent
	for off := int64(0); off < d.CapacityInBytes; calls++ {
		res, err := methods.QueryChangedDiskAreas(b.ctx, b.vim, &types.QueryChangedDiskAreas{
			This: vm, Snapshot: snap, DeviceKey: d.Key, StartOffset: off, ChangeId: since})
		if err != nil {
			return nil, calls, err
		}
		i := res.Returnval
		if i.StartOffset != off || i.Length <= 0 {
			return nil, calls, errors.New("an answer that covers nothing")
		}
		for _, a := range i.ChangedArea {
			if a.Start < off || a.Start+a.Length > off+i.Length {
				return nil, calls, fmt.Errorf("area %+v outside the page [%d,%d)", a, off, off+i.Length)
			}
			all = append(all, extent.Extent{Off: a.Start, Len: a.Length})
		}
		off += i.Length
	}
	return extent.Of(all...), calls, nil
}

func random(seed uint64, n int) []byte {
	p := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(p)
	return p
}

func (b *bench) guest(name string, key int32, seed uint64, off int64, n int) {
	b.Helper()
	if err := b.lab.Machine(name).Write(key, random(seed, n), off); err != nil {
		b.Fatal(err)
	}
}

func (b *bench) live(name string, key int32) []byte {
	b.Helper()
	p, err := b.lab.Machine(name).ReadLive(key)
	if err != nil {
		b.Fatal(err)
	}
	return p
}

func (b *bench) link(path string) []byte {
	b.Helper()
	p, err := b.lab.ReadLink(path)
	if err != nil {
		b.Fatal(err)
	}
	return p
}

func methodsAbout(ctx context.Context, c *soap.Client) (string, error) {
	vc, err := vim25.NewClient(ctx, c)
	if err != nil {
		return "", err
	}
	c.CloseIdleConnections()
	return vc.ServiceContent.About.FullName, nil
}
