package vsphere

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// Ticket admits once to the NFC server of an ESXi host (HostServiceTicket in the API).
type Ticket struct {
	Host           string // ESXi host to dial; the server's own name when a bare ESXi host leaves it out
	Port           int    // 902
	Thumbprint     string // SHA-1 of the host's certificate, colon hexadecimal; empty when Certificate is given
	Certificate    string // PEM, from API 9.0 on; empty when Thumbprint is given
	Service        string // "vpxa-nfc" through vCenter, "nfc" direct
	ServiceVersion string // "1.1"
	SessionID      string // the secret: String, GoString and LogValue leave it out
}

func (t Ticket) String() string { return fmt.Sprintf("%s on %s:%d", t.Service, t.Host, t.Port) }

// GoString leaves the session id out.
func (t Ticket) GoString() string { return "vsphere.Ticket{" + t.String() + "}" }

// LogValue leaves the session id out.
func (t Ticket) LogValue() slog.Value { return slog.StringValue(t.String()) }

// nfcPort is where authd listens on every ESXi host.
const nfcPort = 902

// The NFC service is not in the public WSDL. These are its calls as VMware's own library sends them, in the namespace
// urn:vim25; its managed object comes from RetrieveInternalContent, another such call.

type internalContentRequest struct {
	This ref `xml:"_this"`
}

type internalContentResponse struct {
	Returnval struct {
		NfcService ref `xml:"nfcService"`
	} `xml:"returnval"`
}

type retrieveInternalContentBody struct {
	Req *internalContentRequest  `xml:"urn:vim25 RetrieveInternalContent,omitempty"`
	Res *internalContentResponse `xml:"RetrieveInternalContentResponse,omitempty"`
	Err *soap.Fault              `xml:"http://schemas.xmlsoap.org/soap/envelope/ Fault,omitempty"`
}

func (b *retrieveInternalContentBody) Fault() *soap.Fault { return b.Err }

type vmFilesRequest struct {
	This ref `xml:"_this"`
	VM   ref `xml:"vm"`
}

type diskRequest struct {
	This ref   `xml:"_this"`
	VM   ref   `xml:"vm"`
	Key  int32 `xml:"diskDeviceKey"`
}

type ticketResponse struct {
	Returnval types.HostServiceTicket `xml:"returnval"`
}

type nfcGetVmFilesBody struct {
	Req *vmFilesRequest `xml:"urn:vim25 NfcGetVmFiles,omitempty"`
	Res *ticketResponse `xml:"NfcGetVmFilesResponse,omitempty"`
	Err *soap.Fault     `xml:"http://schemas.xmlsoap.org/soap/envelope/ Fault,omitempty"`
}

func (b *nfcGetVmFilesBody) Fault() *soap.Fault { return b.Err }

type nfcRandomAccessOpenReadonlyBody struct {
	Req *diskRequest    `xml:"urn:vim25 NfcRandomAccessOpenReadonly,omitempty"`
	Res *ticketResponse `xml:"NfcRandomAccessOpenReadonlyResponse,omitempty"`
	Err *soap.Fault     `xml:"http://schemas.xmlsoap.org/soap/envelope/ Fault,omitempty"`
}

func (b *nfcRandomAccessOpenReadonlyBody) Fault() *soap.Fault { return b.Err }

type nfcRandomAccessOpenDiskBody struct {
	Req *diskRequest    `xml:"urn:vim25 NfcRandomAccessOpenDisk,omitempty"`
	Res *ticketResponse `xml:"NfcRandomAccessOpenDiskResponse,omitempty"`
	Err *soap.Fault     `xml:"http://schemas.xmlsoap.org/soap/envelope/ Fault,omitempty"`
}

func (b *nfcRandomAccessOpenDiskBody) Fault() *soap.Fault { return b.Err }

// nfcService finds the managed object: "nfcService" of a vCenter, "ha-nfc-service" of an ESXi host, asked for anew each
// time, because a restarted server may name it otherwise and the call is cheap beside the ticket itself.
func (c *Client) nfcService(ctx context.Context) (ref, error) {
	req := retrieveInternalContentBody{Req: &internalContentRequest{This: vim25.ServiceInstance}}
	var res retrieveInternalContentBody
	if err := c.s.RoundTrip(ctx, &req, &res); err != nil {
		return ref{}, err
	}
	if res.Res == nil || res.Res.Returnval.NfcService.Value == "" {
		return ref{}, errors.New("the server names no NFC service")
	}
	return res.Res.Returnval.NfcService, nil
}

// ReadTicket admits once to reading the machine's disks; key names the one that is meant. The privileges
// VirtualMachine.Config.DiskLease and VirtualMachine.Provisioning.DiskRandomRead (or GetVmFiles) are needed.
func (v *VM) ReadTicket(ctx context.Context, key int32) (Ticket, error) {
	svc, err := v.c.nfcService(ctx)
	if err != nil {
		return Ticket{}, v.ticketError("reading", err)
	}
	req := nfcGetVmFilesBody{Req: &vmFilesRequest{This: svc, VM: v.ref()}}
	var res nfcGetVmFilesBody
	err = v.c.s.RoundTrip(ctx, &req, &res)
	if err == nil {
		return v.ticket(res.Res)
	}
	if !isUnsupported(err) {
		return Ticket{}, v.ticketError("reading", err)
	}
	one := nfcRandomAccessOpenReadonlyBody{Req: &diskRequest{This: svc, VM: v.ref(), Key: key}}
	var oneRes nfcRandomAccessOpenReadonlyBody
	if err := v.c.s.RoundTrip(ctx, &one, &oneRes); err != nil {
		return Ticket{}, v.ticketError("reading", err)
	}
	return v.ticket(oneRes.Res)
}

// WriteTicket admits once to reading and writing one disk of the machine. The privilege
// VirtualMachine.Provisioning.DiskRandomAccess is needed.
func (v *VM) WriteTicket(ctx context.Context, key int32) (Ticket, error) {
	svc, err := v.c.nfcService(ctx)
	if err != nil {
		return Ticket{}, v.ticketError("writing", err)
	}
	req := nfcRandomAccessOpenDiskBody{Req: &diskRequest{This: svc, VM: v.ref(), Key: key}}
	var res nfcRandomAccessOpenDiskBody
	if err := v.c.s.RoundTrip(ctx, &req, &res); err != nil {
		return Ticket{}, v.ticketError("writing", err)
	}
	return v.ticket(res.Res)
}

func (v *VM) ticketError(doing string, err error) error {
	var e *Error
	if errors.As(err, &e) && e.Kind == ErrPermission {
		e.Object = v.label() // vSphere names the id only
	}
	return fmt.Errorf("ticket for %s the disks of %s: %w", doing, v.label(), err)
}

func (v *VM) ticket(res *ticketResponse) (Ticket, error) {
	if res == nil || res.Returnval.SessionId == "" || res.Returnval.Service == "" {
		return Ticket{}, fmt.Errorf("ticket for the disks of %s: the server's ticket is empty", v.label())
	}
	t := res.Returnval
	out := Ticket{Host: t.Host, Port: int(t.Port), Thumbprint: t.SslThumbprint, Certificate: t.SslCertificate,
		Service: t.Service, ServiceVersion: t.ServiceVersion, SessionID: t.SessionId}
	if out.Host == "" {
		out.Host = v.c.s.soap.URL().Hostname()
	}
	if out.Port == 0 {
		out.Port = nfcPort
	}
	return out, nil
}
