package vsphere

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/vmware/govmomi/vim25/types"

	"github.com/vmkeep/vmkeep/vsphere/lab"
)

func TestTickets(t *testing.T) {
	for _, pem := range []bool{false, true} {
		t.Run(fmt.Sprint("PEM ", pem), func(t *testing.T) {
			opt := machines("web")
			opt.TicketPEM = pem
			w := start(t, opt)
			v := w.find("web")
			key := v.Machine().Disks[0].Key
			read, err := v.ReadTicket(w.ctx, key)
			must(t, err)
			must(t, v.PowerOff(w.ctx))
			write, err := v.WriteTicket(w.ctx, key)
			must(t, err)
			for _, k := range []Ticket{read, write} {
				if k.Host == "" || k.Port == 0 || k.Service != "vpxa-nfc" || k.SessionID == "" || k.ServiceVersion == "" ||
					(k.Certificate != "") != pem || (k.Thumbprint != "") == pem {
					t.Errorf("%#v", k)
				}
			}
			if read.SessionID == write.SessionID {
				t.Error("the same ticket twice")
			}
		})
	}
}

func TestTicketKeepsItsSecret(t *testing.T) {
	k := Ticket{Host: "esx1", Port: 902, Service: "vpxa-nfc", SessionID: "52-secret"}
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "ticket", k)
	for _, s := range []string{k.String(), fmt.Sprint(k), fmt.Sprintf("%v %+v %#v %s", k, k, k, &k), log.String()} {
		if strings.Contains(s, "secret") || !strings.Contains(s, "esx1") {
			t.Errorf("%s", s)
		}
	}
}

func TestReadTicketFallsBack(t *testing.T) {
	w := start(t, machines("web"))
	v := w.find("web")
	defer w.lab.Inject(lab.Fault{Method: "NfcGetVmFiles", Do: lab.Fail(&types.NotSupported{})})()
	w.lab.ResetCalls()
	if k, err := v.ReadTicket(w.ctx, v.Machine().Disks[0].Key); err != nil || k.SessionID == "" {
		t.Errorf("%v %v", k, err)
	}
	if w.lab.Count("NfcRandomAccessOpenReadonly") != 1 {
		t.Error("the other call was not tried")
	}
}

func TestTicketOfMachineThatIsGone(t *testing.T) {
	w := start(t, lab.Options{Machines: []lab.Machine{{Name: "web", Off: true}}})
	v := w.find("web")
	must(t, v.Destroy(w.ctx))
	if _, err := v.ReadTicket(w.ctx, 2000); !errors.Is(err, ErrNotFound) {
		t.Errorf("error %v", err)
	}
}
