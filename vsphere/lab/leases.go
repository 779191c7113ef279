package lab

import (
	"bufio"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"net/http"
	"path"
	"sync"

	"github.com/google/uuid"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vmkeep/vmkeep/vddk/nfc/nfctest"
)

// HttpNfcLease with content: disks leave and arrive as streamOptimized VMDK. The simulator's own lease serves
// descriptors and throws away what it gets.

// leaseTable finds leases by the id in their URLs, which is all the authority an HTTP request has.
type leaseTable struct {
	mu   sync.Mutex
	open map[string]*lease
}

type lease struct {
	mo.HttpNfcLease

	sim   *sim
	id    string
	write bool

	mu    sync.Mutex
	links map[string]*link // by the last element of the URL
	sums  []types.HttpNfcLeaseManifestEntry
}

// HttpNfcLeaseProgress notes progress.
func (l *lease) HttpNfcLeaseProgress(_ *simulator.Context, req *types.HttpNfcLeaseProgress) soap.HasFault {
	l.TransferProgress = req.Percent
	return &methods.HttpNfcLeaseProgressBody{Res: new(types.HttpNfcLeaseProgressResponse)}
}

// HttpNfcLeaseComplete ends the lease.
func (l *lease) HttpNfcLeaseComplete(ctx *simulator.Context, _ *types.HttpNfcLeaseComplete) soap.HasFault {
	l.end(ctx)
	return &methods.HttpNfcLeaseCompleteBody{Res: new(types.HttpNfcLeaseCompleteResponse)}
}

// HttpNfcLeaseAbort ends the lease; a machine that was being imported goes.
func (l *lease) HttpNfcLeaseAbort(ctx *simulator.Context, _ *types.HttpNfcLeaseAbort) soap.HasFault {
	l.end(ctx)
	if l.write {
		l.sim.DestroyTask(ctx, &types.Destroy_Task{This: l.Info.Entity})
	}
	return &methods.HttpNfcLeaseAbortBody{Res: new(types.HttpNfcLeaseAbortResponse)}
}

// HttpNfcLeaseGetManifest lists the checksums of what was transferred.
func (l *lease) HttpNfcLeaseGetManifest(*simulator.Context, *types.HttpNfcLeaseGetManifest) soap.HasFault {
	l.mu.Lock()
	defer l.mu.Unlock()
	return &methods.HttpNfcLeaseGetManifestBody{Res: &types.HttpNfcLeaseGetManifestResponse{
		Returnval: append([]types.HttpNfcLeaseManifestEntry(nil), l.sums...)}}
}

func (l *lease) end(ctx *simulator.Context) {
	ctx.Session.Remove(ctx, l.Self)
	l.sim.leases.mu.Lock()
	delete(l.sim.leases.open, l.id)
	l.sim.leases.mu.Unlock()
}

// grantLease makes a lease of the machine's disks.
func (s *sim) grantLease(ctx *simulator.Context, vm *simulator.VirtualMachine, devices []types.BaseVirtualDevice, write bool) ref {
	l := &lease{sim: s, id: uuid.NewString(), write: write, links: map[string]*link{}}
	l.Self = ref{Type: "HttpNfcLease", Value: "session[" + ctx.Session.Key + "]" + l.id}
	l.State = types.HttpNfcLeaseStateReady
	l.InitializeProgress = 100
	host := s.svc.Listen.Host
	if s.opt.ESX {
		host = "*" // the client puts in whom it talks to
	}
	info := &types.HttpNfcLeaseInfo{Lease: l.Self, Entity: vm.Self, LeaseTimeout: 300}
	n := 0
	for _, d := range virtualDisks(devices) {
		b := flatBacking(d)
		if b == nil {
			continue
		}
		k := s.store.find(b.FileName)
		if k == nil {
			continue
		}
		name := fmt.Sprintf("disk-%d.vmdk", n)
		if write {
			name = path.Base(b.FileName)
		}
		l.links[name] = k
		info.TotalDiskCapacityInKB += d.CapacityInKB
		info.DeviceUrl = append(info.DeviceUrl, types.HttpNfcLeaseDeviceUrl{
			Key:       fmt.Sprintf("/%s/%s:%d", vm.Self.Value, object.VirtualDeviceList(devices).Type(d), n),
			ImportKey: fmt.Sprintf("/%s/%s:%d", vm.Name, object.VirtualDeviceList(devices).Type(d), n),
			Url:       fmt.Sprintf("https://%s/nfc/%s/%s", host, l.id, name), Disk: types.NewBool(true), TargetId: name,
		})
		n++
	}
	l.Info = info
	ctx.Session.Put(l)
	s.leases.mu.Lock()
	if s.leases.open == nil {
		s.leases.open = map[string]*lease{}
	}
	s.leases.open[l.id] = l
	s.leases.mu.Unlock()
	return l.Self
}

// ExportVm answers ExportVm, for machines that are off.
func (s *sim) ExportVm(ctx *simulator.Context, req *types.ExportVm) soap.HasFault {
	body := new(methods.ExportVmBody)
	if !s.withVM(ctx, req.This, func(vm *simulator.VirtualMachine) {
		if vm.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOff {
			f := &types.InvalidPowerState{RequestedState: types.VirtualMachinePowerStatePoweredOff, ExistingState: vm.Runtime.PowerState}
			body.Fault_ = simulator.Fault(describe(f), f)
			return
		}
		body.Res = &types.ExportVmResponse{Returnval: s.grantLease(ctx, vm, vm.Config.Hardware.Device, false)}
	}) {
		body.Fault_ = notFound(req.This)
	}
	return body
}

// ExportSnapshot answers ExportSnapshot.
func (s *sim) ExportSnapshot(ctx *simulator.Context, req *types.ExportSnapshot) soap.HasFault {
	body := new(methods.ExportSnapshotBody)
	snap, ok := s.reg.Get(req.This).(*simulator.VirtualMachineSnapshot)
	if !ok || !s.withVM(ctx, snap.Vm, func(vm *simulator.VirtualMachine) {
		body.Res = &types.ExportSnapshotResponse{Returnval: s.grantLease(ctx, vm, snap.Config.Hardware.Device, false)}
	}) {
		body.Fault_ = notFound(req.This)
	}
	return body
}

// ImportVApp answers ResourcePool.ImportVApp for single machines.
func (s *sim) ImportVApp(ctx *simulator.Context, req *types.ImportVApp) soap.HasFault {
	body := new(methods.ImportVAppBody)
	spec, ok := req.Spec.(*types.VirtualMachineImportSpec)
	if !ok || req.Folder == nil {
		body.Fault_ = invalidArgument("spec")
		return body
	}
	r, fault := s.createVM(s.context(), &types.CreateVM_Task{This: *req.Folder, Config: spec.ConfigSpec, Pool: req.This, Host: req.Host})
	if fault != nil {
		body.Fault_ = simulator.Fault(describe(fault), fault)
		return body
	}
	s.withVM(ctx, r, func(vm *simulator.VirtualMachine) {
		body.Res = &types.ImportVAppResponse{Returnval: s.grantLease(ctx, vm, vm.Config.Hardware.Device, true)}
	})
	return body
}

func (s *sim) serveLeases(mux *http.ServeMux) {
	mux.HandleFunc("GET /nfc/{lease}/{file}", s.serveLease)
	mux.HandleFunc("PUT /nfc/{lease}/{file}", s.serveLease)
	mux.HandleFunc("POST /nfc/{lease}/{file}", s.serveLease)
}

func (s *sim) serveLease(w http.ResponseWriter, r *http.Request) {
	s.leases.mu.Lock()
	l := s.leases.open[r.PathValue("lease")]
	s.leases.mu.Unlock()
	name := r.PathValue("file")
	upload := r.Method != http.MethodGet
	if l == nil || l.links[name] == nil || upload && !l.write {
		http.NotFound(w, r)
		return
	}
	k := l.links[name]
	h, ok := s.store.hold(k, upload)
	if !ok {
		http.Error(w, "the disk is locked", http.StatusInternalServerError)
		return
	}
	disk := &openDisk{store: s.store, link: k, holder: h}
	defer disk.Close()
	if upload {
		if err := l.receive(name, disk, r.Body); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
		return
	}
	w.Header().Set("Content-Type", "application/x-vnd.vmware-streamVmdk")
	sum := newTransferSum()
	if err := writeStreamVMDK(io.MultiWriter(w, sum), disk, disk.Size()); err != nil {
		panic(http.ErrAbortHandler) // the answer is under way: breaking it is the only way to say so
	}
	l.note(name, sum, disk.Size())
}

// receive stores an upload: streamOptimized, or raw.
func (l *lease) receive(name string, disk nfctest.File, body io.Reader) error {
	sum := newTransferSum()
	br := bufio.NewReaderSize(io.TeeReader(body, sum), 1<<20)
	magic, err := br.Peek(4)
	if err != nil {
		return fmt.Errorf("upload of %s: %w", name, err)
	}
	if string(magic) == "KDMV" {
		err = readStreamVMDK(br, disk, disk.Size())
	} else {
		_, err = io.Copy(io.NewOffsetWriter(disk, 0), br)
	}
	if err != nil {
		return fmt.Errorf("upload of %s: %w", name, err)
	}
	if _, err := io.Copy(io.Discard, br); err != nil {
		return err
	}
	l.note(name, sum, disk.Size())
	return nil
}

// transferSum is what a lease's manifest tells of a file: the length and two hashes, as vSphere does since 6.7.
type transferSum struct {
	sha1, sha256 hash.Hash
	length       int64
}

func newTransferSum() *transferSum { return &transferSum{sha1: sha1.New(), sha256: sha256.New()} }

func (s *transferSum) Write(p []byte) (int, error) {
	s.length += int64(len(p))
	s.sha1.Write(p)   // never fails, as all writes to a hash
	s.sha256.Write(p) // the same
	return len(p), nil
}

func (l *lease) note(name string, sum *transferSum, capacity int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	key := name
	for _, d := range l.Info.DeviceUrl {
		if d.TargetId == name {
			key = d.Key
		}
	}
	l.sums = append(l.sums, types.HttpNfcLeaseManifestEntry{Key: key, Sha1: hex.EncodeToString(sum.sha1.Sum(nil)),
		Checksum: hex.EncodeToString(sum.sha256.Sum(nil)), ChecksumType: "sha256", Size: sum.length, Disk: true, Capacity: capacity})
}
