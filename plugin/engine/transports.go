package engine

import (
	"context"

	"github.com/vmkeep/vmkeep/vddk"
	"github.com/vmkeep/vmkeep/vddk/nfc"
	"github.com/vmkeep/vmkeep/vsphere"
)

// transports are the configured ways to disks of the machines that vc knows, in the order to try them. All disks of
// a configuration share one limiter: the NFC memory of an ESXi host is shared by everything that reads from it.
func (c *connections) transports(vc *vsphere.Client) []vddk.Transport {
	names := c.cfg.Transports
	if len(names) == 0 {
		names = defaultTransports()
	}
	tickets := func(ctx context.Context, spec vddk.Spec) (nfc.Ticket, error) {
		vm := vc.VM(vsphere.Machine{ID: spec.VM})
		get := vm.ReadTicket
		if spec.Write {
			get = vm.WriteTicket
		}
		t, err := get(ctx, spec.Key)
		if err != nil {
			return nfc.Ticket{}, err
		}
		return nfc.Ticket{Host: t.Host, Port: t.Port, Thumbprint: t.Thumbprint, Certificate: t.Certificate, Service: t.Service, SessionID: t.SessionID}, nil
	}
	var out []vddk.Transport
	for _, name := range names {
		switch name {
		case "nbdssl", "nbd":
			out = append(out, &nfc.Transport{Mode: nfc.Mode(name), Ticket: tickets, Limiter: &c.nfc})
		}
	}
	return out
}
