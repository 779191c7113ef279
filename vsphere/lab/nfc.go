package lab

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"path"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
	"github.com/vmware/govmomi/vim25/xml"

	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/vddk"
	"github.com/vmkeep/vmkeep/vddk/nfc/nfctest"
)

// The internal NfcService: tickets over SOAP, disks over a server of its own port.
//
// The simulator knows the service's name only, and its types cannot be extended without changing a table of the
// whole process; so these methods are decoded and answered here, in front of it. The service's reference is not
// the one the simulator would give: real ones differ between vCenter and ESXi, and nobody may rely on either.

func nfcServiceRef(esx bool) ref {
	if esx {
		return ref{Type: "NfcService", Value: "ha-nfc-service"}
	}
	return ref{Type: "NfcService", Value: "nfcService"}
}

// nfcLibVersion is what NfcGetServerNfcLibVersion says: vSphere 8.
const nfcLibVersion = 11

type nfcState struct{ server *nfctest.Server }

func (s *sim) startNFC() (err error) {
	service := "vpxa-nfc"
	if s.opt.ESX {
		service = "nfc"
	}
	s.nfc.server, err = nfctest.Start(nfctest.Config{Store: (*diskServer)(s), Listen: s.opt.NFCAddress, Service: service})
	return err
}

func (s *sim) stopNFC() error {
	if s.nfc.server == nil {
		return nil
	}
	return s.nfc.server.Close()
}

// NFC is the disk server, for its scenarios, statistics and connection cuts.
func (l *Lab) NFC() *nfctest.Server { return l.sim.nfc.server }

// internalRequest is a call of a method of this file.
type internalRequest struct {
	This          ref   `xml:"_this"`
	VM            ref   `xml:"vm"`
	DiskDeviceKey int32 `xml:"diskDeviceKey"`
}

// serveInternal answers the methods the simulator has no types for, and says whether it did.
func (s *sim) serveInternal(w http.ResponseWriter, r *http.Request, envelope []byte) bool {
	method, _ := methodOf(envelope)
	switch method {
	case "RetrieveInternalContent":
		n := nfcServiceRef(s.opt.ESX)
		writeEnvelope(w, http.StatusOK, fmt.Appendf(nil, `<RetrieveInternalContentResponse xmlns="urn:vim25"><returnval>`+
			`<cacheManager type="CacheManager">cacheManager</cacheManager>`+
			`<llProvisioningManager type="HostLowLevelProvisioningManager">llpm</llProvisioningManager>`+
			`<nfcService type="%s">%s</nfcService></returnval></RetrieveInternalContentResponse>`, n.Type, n.Value))
		return true
	case "NfcGetVmFiles", "NfcRandomAccessOpenReadonly", "NfcRandomAccessOpenDisk", "NfcGetServerNfcLibVersion":
		return s.answer(w, r, func() types.BaseMethodFault {
			req, err := decodeCall[internalRequest](envelope)
			if err != nil {
				return &types.InvalidRequest{}
			}
			return s.ticket(w, r, method, req)
		})
	case "DisableMethods", "EnableMethods":
		if s.opt.ESX {
			return false
		}
		return s.answer(w, r, func() types.BaseMethodFault {
			req, err := decodeCall[methodSwitch](envelope)
			if err != nil {
				return &types.InvalidRequest{}
			}
			return s.serveMethodSwitch(w, r, method, req)
		})
	}
	return false
}

// answer lets fn answer a call that has a session, with the fault that it returns if it did not answer. It is true.
func (s *sim) answer(w http.ResponseWriter, r *http.Request, fn func() types.BaseMethodFault) bool {
	if s.authenticate(w, r) {
		if f := fn(); f != nil {
			writeFault(w, f)
		}
	}
	return true
}

// decodeCall decodes the call in an envelope.
func decodeCall[T any](envelope []byte) (T, error) {
	var env struct {
		Body struct {
			Call T `xml:",any"`
		}
	}
	err := xml.NewDecoder(bytes.NewReader(envelope)).Decode(&env)
	return env.Body.Call, err
}

// authenticate refuses requests without a live session as the simulator does, and keeps the session alive: it
// passes a harmless call with the same cookie to the simulator.
func (s *sim) authenticate(w http.ResponseWriter, r *http.Request) bool {
	const probe = xml.Header + `<Envelope xmlns="http://schemas.xmlsoap.org/soap/envelope/"><Body>` +
		`<CurrentTime xmlns="urn:vim25"><_this type="ServiceInstance">ServiceInstance</_this></CurrentTime></Body></Envelope>`
	q := r.Clone(r.Context())
	q.Body = io.NopCloser(bytes.NewReader([]byte(probe)))
	rec := newRecorder()
	s.svc.ServeSDK(rec, q)
	if rec.status == http.StatusOK {
		return true
	}
	w.Header().Set("Content-Type", "text/xml; charset=utf-8")
	w.WriteHeader(rec.status)
	_, _ = w.Write(rec.body.Bytes())
	return false
}

// ticket answers one call of the service, or returns the fault to answer with.
func (s *sim) ticket(w http.ResponseWriter, r *http.Request, method string, req internalRequest) types.BaseMethodFault {
	if req.This != nfcServiceRef(s.opt.ESX) {
		return &types.ManagedObjectNotFound{Obj: req.This}
	}
	if method == "NfcGetServerNfcLibVersion" {
		writeEnvelope(w, http.StatusOK, fmt.Appendf(nil,
			`<%[1]sResponse xmlns="urn:vim25"><returnval>%[2]d</returnval></%[1]sResponse>`, method, nfcLibVersion))
		return nil
	}
	m := s.machine(req.VM)
	if m == nil {
		return &types.ManagedObjectNotFound{Obj: req.VM}
	}
	if sess := s.sessionOf(r); sess != nil {
		if f := s.permitted(sess.UserName, &simulator.Method{Name: method, This: req.VM}); f != nil {
			return f
		}
		if f := s.mayDecrypt(sess.UserName, req.VM, req.DiskDeviceKey); f != nil {
			return f
		}
	}
	grant := nfctest.Grant{VM: req.VM.Value}
	if method != "NfcGetVmFiles" {
		grant.Key, grant.Write = req.DiskDeviceKey, method == "NfcRandomAccessOpenDisk"
		m.gate.RLock()
		known := m.live[grant.Key] != nil
		m.gate.RUnlock()
		if !known {
			return &types.InvalidArgument{InvalidProperty: "diskDeviceKey"}
		}
	}
	t := s.nfc.server.Grant(grant)
	var b bytes.Buffer
	fmt.Fprintf(&b, `<%sResponse xmlns="urn:vim25"><returnval>`, method)
	if !s.opt.ESX { // an ESXi host leaves it out: it is the host one talks to
		fmt.Fprintf(&b, "<host>%s</host>", t.Host)
	}
	fmt.Fprintf(&b, "<port>%d</port>", t.Port)
	if s.opt.TicketPEM {
		b.WriteString("<sslCertificate>")
		_ = xml.EscapeText(&b, []byte(s.nfc.server.PEM()))
		b.WriteString("</sslCertificate>")
	} else {
		fmt.Fprintf(&b, "<sslThumbprint>%s</sslThumbprint>", t.Thumbprint)
	}
	fmt.Fprintf(&b, "<service>%s</service><serviceVersion>1.1</serviceVersion><sessionId>%s</sessionId></returnval></%sResponse>",
		t.Service, t.SessionID, method)
	writeEnvelope(w, http.StatusOK, b.Bytes())
	return nil
}

// diskServer is the sim as nfctest.Store.
type diskServer sim

// Open opens a link by datastore path. The ticket must be for a machine the link belongs to, live or in a snapshot.
// A running machine's own disks cannot be opened, frozen links only for reading, others by one writer or many
// readers.
func (d *diskServer) Open(_ context.Context, r nfctest.OpenRequest) (nfctest.File, error) {
	s := (*sim)(d)
	l := s.store.find(r.Path)
	if l == nil {
		return nil, fmt.Errorf("%s: %w", r.Path, vddk.ErrNotFound)
	}
	m := s.machine(ref{Type: "VirtualMachine", Value: r.VM})
	if m == nil || !s.belongs(l, m, r.Key) {
		return nil, fmt.Errorf("%s is not a disk of %s: %w", r.Path, r.VM, vddk.ErrPermission)
	}
	if s.runningWith(l, ref{}) != nil {
		return nil, fmt.Errorf("%s is in use by a running machine: %w", r.Path, vddk.ErrLocked)
	}
	if r.Writable && len(s.store.children(l)) > 0 {
		return nil, fmt.Errorf("%s has snapshots on top: %w", r.Path, vddk.ErrLocked)
	}
	h, ok := s.store.hold(l, r.Writable)
	if !ok {
		return nil, fmt.Errorf("%s: %w", r.Path, vddk.ErrLocked)
	}
	return &openDisk{store: s.store, link: l, holder: h}, nil
}

// belongs tells whether l is in the chain of a disk of the machine: of the one with that key, 0: of any.
func (s *sim) belongs(l *link, m *machine, key int32) bool {
	m.gate.RLock()
	defer m.gate.RUnlock()
	for k, leaf := range m.live {
		if leaf.vol == l.vol && (key == 0 || key == k) {
			return true
		}
	}
	return false
}

// openDisk is one opening of a link.
type openDisk struct {
	store  *store
	link   *link
	holder *holder
}

func (o *openDisk) Size() int64 {
	o.link.vol.mu.RLock()
	defer o.link.vol.mu.RUnlock()
	return o.link.size
}

func (o *openDisk) ReadAt(p []byte, off int64) (int, error) {
	o.link.vol.mu.RLock()
	defer o.link.vol.mu.RUnlock()
	n := min(int64(len(p)), max(0, o.link.size-off))
	if err := o.link.readAt(p[:n], off); err != nil {
		return 0, err
	}
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

func (o *openDisk) WriteAt(p []byte, off int64) (int, error) {
	if err := o.link.write(p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (o *openDisk) Allocated(e extent.Extent) (extent.Set, error) {
	o.link.vol.mu.RLock()
	defer o.link.vol.mu.RUnlock()
	return o.link.allocatedIn(e)
}

// DDB is the descriptor's database.
func (o *openDisk) DDB(key string) (string, bool) {
	switch key {
	case "adapterType":
		return "lsilogic", true
	case "virtualHWVersion":
		return "19", true
	case "geometry.biosHeads", "geometry.heads":
		return "255", true
	case "geometry.biosSectors", "geometry.sectors":
		return "63", true
	case "geometry.biosCylinders", "geometry.cylinders":
		return fmt.Sprint(o.Size() / (255 * 63 * 512)), true
	case "thinProvisioned":
		return "1", o.link.thin
	case "uuid":
		return path.Base(o.link.path), false
	}
	return "", false
}

func (o *openDisk) Close() error {
	o.store.release(o.link, o.holder)
	return nil
}
