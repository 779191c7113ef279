package lab_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/vddk"
	"github.com/vmkeep/vmkeep/vddk/nfc"
	"github.com/vmkeep/vmkeep/vsphere/lab"
)

// The internal service, spelled out here once more: the lab and its clients must not share these types.

type nfcRequest struct {
	This          moref  `xml:"urn:vim25 _this"`
	VM            *moref `xml:"urn:vim25 vm,omitempty"`
	DiskDeviceKey int32  `xml:"urn:vim25 diskDeviceKey,omitempty"`
	HostForAccess *moref `xml:"urn:vim25 hostForAccess,omitempty"`
}

type ticketReply struct {
	Returnval types.HostServiceTicket `xml:"returnval"`
}

type contentReply struct {
	Returnval struct {
		NfcService moref `xml:"nfcService"`
	} `xml:"returnval"`
}

type body struct {
	Content  *nfcRequest   `xml:"urn:vim25 RetrieveInternalContent,omitempty"`
	Files    *nfcRequest   `xml:"urn:vim25 NfcGetVmFiles,omitempty"`
	Read     *nfcRequest   `xml:"urn:vim25 NfcRandomAccessOpenReadonly,omitempty"`
	Write    *nfcRequest   `xml:"urn:vim25 NfcRandomAccessOpenDisk,omitempty"`
	Version  *nfcRequest   `xml:"urn:vim25 NfcGetServerNfcLibVersion,omitempty"`
	RContent *contentReply `xml:"RetrieveInternalContentResponse,omitempty"`
	RFiles   *ticketReply  `xml:"NfcGetVmFilesResponse,omitempty"`
	RRead    *ticketReply  `xml:"NfcRandomAccessOpenReadonlyResponse,omitempty"`
	RWrite   *ticketReply  `xml:"NfcRandomAccessOpenDiskResponse,omitempty"`
	RVersion *struct {
		Returnval int `xml:"returnval"`
	} `xml:"NfcGetServerNfcLibVersionResponse,omitempty"`
	F *soap.Fault `xml:"http://schemas.xmlsoap.org/soap/envelope/ Fault,omitempty"`
}

func (b *body) Fault() *soap.Fault { return b.F }

func call(ctx context.Context, c *vim25.Client, req body) (*body, error) {
	var res body
	err := c.RoundTrip(ctx, &req, &res)
	return &res, err
}

func (b *bench) nfcService() moref {
	b.Helper()
	res, err := call(b.ctx, b.vim, body{Content: &nfcRequest{This: moref{Type: "ServiceInstance", Value: "ServiceInstance"}}})
	if err != nil {
		b.Fatal(err)
	}
	return res.RContent.Returnval.NfcService
}

func (b *bench) ticket(spec vddk.Spec) (types.HostServiceTicket, error) {
	req := &nfcRequest{This: b.nfcService(), VM: &moref{Type: "VirtualMachine", Value: spec.VM}}
	if !spec.Write {
		res, err := call(b.ctx, b.vim, body{Files: req})
		if err != nil {
			return types.HostServiceTicket{}, err
		}
		return res.RFiles.Returnval, nil
	}
	req.DiskDeviceKey = spec.Key
	res, err := call(b.ctx, b.vim, body{Write: req})
	if err != nil {
		return types.HostServiceTicket{}, err
	}
	return res.RWrite.Returnval, nil
}

func (b *bench) transport() *nfc.Transport {
	return &nfc.Transport{Options: nfc.Options{Retries: -1}, Ticket: func(_ context.Context, s vddk.Spec) (nfc.Ticket, error) {
		t, err := b.ticket(s)
		if err != nil {
			return nfc.Ticket{}, err
		}
		host := t.Host
		if host == "" {
			host = b.vim.URL().Hostname()
		}
		return nfc.Ticket{Host: host, Port: int(t.Port), Service: t.Service, SessionID: t.SessionId, Thumbprint: t.SslThumbprint, Certificate: t.SslCertificate}, nil
	}}
}

// open opens a disk over NFC as a backup or restore would.
func (b *bench) open(spec vddk.Spec) (vddk.Disk, error) {
	d, err := b.transport().Open(b.ctx, spec)
	if err == nil {
		b.Cleanup(func() { _ = d.Close() })
	}
	return d, err
}

func readAll(t *testing.T, d vddk.Disk) []byte {
	t.Helper()
	p := make([]byte, d.Size())
	if _, err := d.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestDisksOverNFC(t *testing.T) {
	for name, opt := range map[string]lab.Options{"vcenter": {}, "esx": {ESX: true}, "pem": {TicketPEM: true}} {
		t.Run(name, func(t *testing.T) {
			opt.Machines = []lab.Machine{oneDisk("web"), oneDisk("other")}
			opt.LockPatience = 50 * time.Millisecond
			b := start(t, opt)
			vm := b.vm("web")
			id := vm.Reference().Value
			service := b.nfcService()
			if want := map[bool]string{false: "nfcService", true: "ha-nfc-service"}[opt.ESX]; service.Value != want || service.Type != "NfcService" {
				t.Errorf("service %v", service)
			}
			tk, err := b.ticket(vddk.Spec{VM: id})
			if err != nil {
				t.Fatal(err)
			}
			if (tk.Host == "") != opt.ESX || tk.Service != map[bool]string{false: "vpxa-nfc", true: "nfc"}[opt.ESX] || tk.ServiceVersion != "1.1" || (tk.SslCertificate != "") != opt.TicketPEM {
				t.Errorf("ticket %+v", tk)
			}

			b.guest("web", 2000, 1, 4*mib+512, 700_000)
			want := b.live("web", 2000)
			if _, err := b.open(vddk.Spec{VM: id, Path: "[ds1] web/web.vmdk", Key: 2000}); !errors.Is(err, vddk.ErrLocked) {
				t.Errorf("a running machine's disk: %v", err)
			}
			snap := b.snapshot(vm, "s")
			b.guest("web", 2000, 2, 0, 100_000)
			path := flat(b.disks(snap)[0]).FileName
			d, err := b.open(vddk.Spec{VM: id, Snapshot: snap.Value, Path: path, Key: 2000})
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(readAll(t, d), want) {
				t.Error("the frozen disk over NFC differs")
			}
			set, err := d.(vddk.Allocator).Allocated(b.ctx, extent.Extent{Len: d.Size()})
			if err != nil || set.Bytes() == 0 || set.Bytes() > mib {
				t.Errorf("allocated %v, %v", set, err)
			}
			if _, err := b.open(vddk.Spec{VM: id, Path: path, Key: 2000, Write: true}); !errors.Is(err, vddk.ErrLocked) {
				t.Errorf("a frozen disk for writing: %v", err)
			}
			if _, err := b.open(vddk.Spec{VM: b.vm("other").Reference().Value, Path: path}); !errors.Is(err, vddk.ErrPermission) {
				t.Errorf("another machine's disk: %v", err)
			}
			if _, err := b.open(vddk.Spec{VM: id, Path: "[ds1] web/none.vmdk"}); !errors.Is(err, vddk.ErrNotFound) {
				t.Errorf("no such disk: %v", err)
			}

			// an open disk cannot be merged: the snapshot goes, its delta stays
			info, err := b.wait(vm.RemoveSnapshot(b.ctx, snap.Value, false, nil))
			if !fault.Is(err, &types.FileLocked{}) {
				t.Errorf("removal while the disk is open: %v %v", info, err)
			}
			if !b.lab.Machine("web").ConsolidationNeeded() || b.lab.Machine("web").SnapshotCount() != 0 {
				t.Error("no consolidation needed")
			}
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
			next := b.snapshot(vm, "next")
			b.remove(next)
			if b.lab.Machine("web").ConsolidationNeeded() {
				t.Error("the next removal did not merge what was left")
			}

			// off: the live disk, writable, and tracking sees what is written
			if err := b.lab.Machine("web").PowerOff(); err != nil {
				t.Fatal(err)
			}
			s1 := b.snapshot(vm, "s1")
			changeID := flat(b.disks(s1)[0]).ChangeId
			b.remove(s1)
			w, err := b.open(vddk.Spec{VM: id, Path: "[ds1] web/web.vmdk", Key: 2000, Write: true})
			if err != nil {
				t.Fatal(err)
			}
			if err := b.lab.Machine("web").PowerOn(); err == nil {
				t.Error("powered on with its disk open")
			}
			if _, err := w.WriteAt(random(7, 65536), 2*mib); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			live := b.live("web", 2000)
			if !bytes.Equal(live[2*mib:2*mib+65536], random(7, 65536)) {
				t.Error("the write did not arrive")
			}
			s2 := b.snapshot(vm, "s2")
			if set, _, err := b.changed(vm.Reference(), &s2, b.disks(s2)[0], changeID); err != nil || len(set) != 1 || set[0] != (extent.Extent{Off: 2 * mib, Len: 65536}) {
				t.Errorf("tracked %v, %v", set, err)
			}
			if err := b.lab.NFC().Quiet(b.ctx); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestTicketFaults(t *testing.T) {
	b := start(t, lab.Options{
		Users: []lab.User{
			{Name: "reader", Password: "lab", Privileges: []string{"VirtualMachine.Config.DiskLease", "VirtualMachine.Provisioning.DiskRandomRead"}},
			{Name: "nobody", Password: "lab", Privileges: []string{}},
		},
		Machines: []lab.Machine{oneDisk("web")}})
	vm := b.vm("web").Reference()
	service := b.nfcService()
	ask := func(c *vim25.Client, req body) error {
		_, err := call(b.ctx, c, req)
		return err
	}
	if err := ask(b.vim, body{Files: &nfcRequest{This: moref{Type: "NfcService", Value: "NfcService"}, VM: &vm}}); !fault.Is(err, &types.ManagedObjectNotFound{}) {
		t.Errorf("guessed service: %v", err)
	}
	if err := ask(b.vim, body{Files: &nfcRequest{This: service, VM: &moref{Type: "VirtualMachine", Value: "vm-0"}}}); !fault.Is(err, &types.ManagedObjectNotFound{}) {
		t.Errorf("no such machine: %v", err)
	}
	if err := ask(b.vim, body{Write: &nfcRequest{This: service, VM: &vm, DiskDeviceKey: 4711}}); !fault.Is(err, &types.InvalidArgument{}) {
		t.Errorf("no such disk: %v", err)
	}
	if err := ask(b.vim, body{Read: &nfcRequest{This: service, VM: &vm, DiskDeviceKey: 2000}}); err != nil {
		t.Errorf("by key: %v", err)
	}
	res, err := call(b.ctx, b.vim, body{Version: &nfcRequest{This: service}})
	if err != nil || res.RVersion.Returnval != 11 {
		t.Errorf("library version %+v, %v", res.RVersion, err)
	}
	reader, nobody := b.login("reader").Client, b.login("nobody").Client
	if err := ask(reader, body{Files: &nfcRequest{This: service, VM: &vm}}); err != nil {
		t.Errorf("reader reads: %v", err)
	}
	for name, c := range map[string]struct {
		err  error
		want string
	}{
		"reader writes": {ask(reader, body{Write: &nfcRequest{This: service, VM: &vm, DiskDeviceKey: 2000}}), "VirtualMachine.Provisioning.DiskRandomAccess"},
		"nobody reads":  {ask(nobody, body{Files: &nfcRequest{This: service, VM: &vm}}), "VirtualMachine.Config.DiskLease"},
	} {
		var np *types.NoPermission
		if _, ok := fault.As(c.err, &np); !ok || np.PrivilegeId != c.want || np.Object == nil || *np.Object != vm {
			t.Errorf("%s: %v (%+v)", name, c.err, np)
		}
	}
	b.lab.ExpireSessions()
	if err := ask(b.vim, body{Files: &nfcRequest{This: service, VM: &vm}}); !fault.Is(err, &types.NotAuthenticated{}) {
		t.Errorf("without a session: %v", err)
	}
}

// A ticket opens one connection; the secret is nowhere but in the answer.
func TestTicketIsGoodOnce(t *testing.T) {
	b := start(t, lab.Options{Machines: []lab.Machine{{Name: "off", Off: true, Disks: []lab.Disk{{Size: mib}}}}})
	id := b.vm("off").Reference().Value
	tr := b.transport()
	fresh := tr.Ticket
	var kept nfc.Ticket
	tr.Ticket = func(ctx context.Context, s vddk.Spec) (nfc.Ticket, error) {
		if kept.SessionID == "" {
			var err error
			if kept, err = fresh(ctx, s); err != nil {
				return kept, err
			}
		}
		return kept, nil
	}
	spec := vddk.Spec{VM: id, Path: "[ds1] off/off.vmdk", Key: 2000}
	d, err := tr.Open(b.ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := tr.Open(b.ctx, spec); err == nil || strings.Contains(err.Error(), kept.SessionID) {
		t.Errorf("second use: %v", err)
	}
}
