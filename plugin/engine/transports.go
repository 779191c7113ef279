package engine

import (
	"context"
	"errors"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vmkeep/vmkeep/vddk"
	"github.com/vmkeep/vmkeep/vddk/nfc"
	"github.com/vmkeep/vmkeep/vddk/vixdisklib"
	"github.com/vmkeep/vmkeep/vsphere"
)

// libraryDir is where VMware's library keeps its state, below the directory of the journal's: it finds what a run that
// died left attached only where every run looks.
const libraryDir = "vddk"

// openDisk opens a disk of a machine that vc knows through the first configured transport that can; refused, if not
// nil, hears why the others could not.
func (c *connections) openDisk(ctx context.Context, vc *vsphere.Client, spec vddk.Spec, refused func(transport string, err error)) (vddk.Disk, error) {
	all, err := c.transports(vc)
	if err != nil {
		return nil, err
	}
	return vddk.Open(ctx, spec, all, refused)
}

// transports are the configured ways to disks of the machines that vc knows, in the order to try them. All disks of
// a configuration share one limiter: the NFC memory of an ESXi host is shared by everything that reads from it.
func (c *connections) transports(vc *vsphere.Client) ([]vddk.Transport, error) {
	state, err := stateDir(c.cfg)
	if err != nil {
		return nil, err
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
	compression, err := diskCompression(c.cfg)
	if err != nil {
		return nil, err
	}
	var out []vddk.Transport
	for _, name := range chosenTransports(c.cfg) {
		switch kind, modes, _ := strings.Cut(name, ":"); kind {
		case "nbdssl", "nbd":
			out = append(out, &nfc.Transport{Mode: nfc.Mode(name), Ticket: tickets, Limiter: &c.nfc, Options: nfc.Options{Compression: compression}})
		case "hotadd":
			out = append(out, c.hotadd(vc))
		case "vddk":
			out = append(out, c.library(vc, modes, filepath.Join(state, libraryDir)))
		}
	}
	return out, nil
}

// library is VMware's own library, in helper processes: one for the disks of a machine that are read, or written, at a
// time. modes are its transports joined by "+"; empty: those that reach a snapshot of a running machine, the network last.
// Its state lies in dir.
func (c *connections) library(vc *vsphere.Client, modes, dir string) *vixdisklib.Transport {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.libraries[modes]
	if t == nil {
		want := []string{"san", "hotadd", "nbdssl", "nbd"}
		if modes != "" {
			want = strings.Split(modes, "+")
		}
		compression, _ := diskCompression(c.cfg) // it was validated
		t = &vixdisklib.Transport{
			Dir: c.cfg.VDDKDir, Modes: want, TempDir: dir, Compression: libraryCompression(compression), Settings: c.cfg.VDDKSettings,
			Credentials: func(context.Context) (vixdisklib.Credentials, error) { return c.libraryLogin(vc) },
			Log:         func(_ vixdisklib.Level, text string) { c.log.Debug("VMware's library", "text", text) },
			Announce:    func(_ context.Context, vm string) (func(error), error) { return c.announceLibrary(vc, vm) },
		}
		c.libraries[modes] = t
	}
	return t
}

// announceLibrary has the journal say, as an operation of its own, that the library may attach disks of a machine, until
// it is told what became of them.
func (c *connections) announceLibrary(vc *vsphere.Client, vm string) (settled func(left error), err error) {
	journal, err := c.openJournal()
	if err != nil {
		return nil, err
	}
	op, err := journal.Begin("", "")
	if err != nil {
		return nil, err
	}
	undone, err := vc.VM(vsphere.Machine{ID: vm}).AnnounceLibrary(op)
	if err != nil {
		return nil, errors.Join(err, op.End())
	}
	return func(left error) {
		if left == nil {
			left = undone()
		}
		if left = errors.Join(left, op.End()); left != nil {
			c.mu.Lock()
			c.left = append(c.left, left)
			c.mu.Unlock()
		}
	}, nil
}

// recoverOptions say how a recovery detaches what the library left attached.
func (c *connections) recoverOptions(vc *vsphere.Client) (out vsphere.RecoverOptions) {
	state, err := stateDir(c.cfg)
	if c.cfg.VDDKDir == "" || err != nil {
		return out
	}
	out.Library = func(ctx context.Context, vm string) error {
		_, err := c.library(vc, "", filepath.Join(state, libraryDir)).Cleanup(ctx, vm)
		switch {
		case errors.Is(err, vddk.ErrNotFound): // of a machine that is gone nothing is attached
			return nil
		case errors.Is(err, vddk.ErrLocked):
			return &vsphere.Error{Kind: vsphere.ErrLive, Object: vm, Summary: "the machine's disks are in use by VMware's library", Err: err}
		}
		return err
	}
	return out
}

// libraryLogin is the configured account in the form the library wants it.
func (c *connections) libraryLogin(vc *vsphere.Client) (vixdisklib.Credentials, error) {
	u, err := url.Parse(vc.About().URL)
	if err != nil {
		return vixdisklib.Credentials{}, err
	}
	out := vixdisklib.Credentials{Server: u.Hostname(), User: c.cfg.VSphere.Username, Password: c.cfg.VSphere.Password, Thumbprint: vc.About().ThumbprintSHA1}
	if p := u.Port(); p != "" {
		if out.Port, err = strconv.Atoi(p); err != nil {
			return vixdisklib.Credentials{}, err
		}
	}
	if configured, err := url.Parse(c.cfg.VSphere.URL); err == nil && out.User == "" && configured.User != nil {
		out.User = configured.User.Username()
		out.Password, _ = configured.User.Password()
	}
	return out, nil
}
