// Package lab is an embedded vSphere for tests and demonstrations: machines whose disks have real content.
//
// It is govmomi's simulator (vcsim) extended, through its exported seams only, by what a backup has to do with:
// virtual disks with bytes in them, snapshots that freeze those bytes, changed-block tracking with true changeIds
// and paged answers, the internal NFC service with a disk server on a port of its own, machines that are created,
// cloned, moved, registered and destroyed together with their content, privileges that are enforced, sessions that
// die, and faults of every kind on demand. Clients cannot tell it from vSphere by what they read and write; stock
// govc works with it.
//
// The package hides how the simulator is extended and where content lies. Words: a link is one file of a disk's
// chain (see store.go), the guest is whoever writes to a running machine's disk, a stun is the moment at which
// settings take effect and all disks of a machine stand still.
package lab

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"sync"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/simulator/vpx"
	"github.com/vmware/govmomi/vim25/types"

	_ "github.com/vmware/govmomi/vapi/simulator" // tags
)

// Options describe the vSphere to embed. The zero value is a vCenter with two clusters and no machines.
type Options struct {
	Dir     string // where disks lie; empty: a temporary directory, removed by Close
	Address string // host:port to listen on, empty: a free port of the loopback interface
	// NFCAddress is the same for the disk server.
	NFCAddress string
	User       string // administrator, empty: administrator@vsphere.local
	Password   string // empty: lab
	Users      []User // more accounts
	ESX        bool   // a single ESXi host instead of a vCenter

	Inventory Inventory
	Machines  []Machine

	MaxAreas               int           // areas in one answer of QueryChangedDiskAreas, 0: 2000 as ESXi
	Grain                  int64         // bytes per unit of change tracking, 0: 64 KiB
	FineGrain              int64         // the same for hardware version 17 and up (CBT v2), 0: Grain
	StarIsWholeDisk        bool          // changeId "*" tells nothing about allocation, as on NFS
	RevertRestartsTracking bool          // a revert begins a new tracking instance instead of resuming the snapshot's
	TicketPEM              bool          // tickets carry the certificate instead of its thumbprint, as vSphere 9's
	MoveKeepsTracking      bool          // storage migration keeps the tracking instance
	LockPatience           time.Duration // how long tasks wait for NFC clients to let go of a disk, 0: 2 s
	SessionIdle            time.Duration // idle sessions end after this, 0: never
	SessionAge             time.Duration // every session ends after this, 0: never
}

// Lab is a running vSphere.
type Lab struct {
	sim    *sim
	server *simulator.Server
	model  *simulator.Model
	cert   tls.Certificate
	temp   string // directory to remove
	close  sync.Once
}

// Start builds the inventory and serves it until Close. ctx only bounds the start.
func Start(ctx context.Context, opt Options) (*Lab, error) {
	opt.defaults()
	l := &Lab{}
	if err := l.start(ctx, opt); err != nil {
		return nil, errors.Join(fmt.Errorf("start the lab: %w", err), l.Close())
	}
	return l, nil
}

func (o *Options) defaults() {
	set := func(s *string, to string) {
		if *s == "" {
			*s = to
		}
	}
	set(&o.Address, "127.0.0.1:0")
	set(&o.User, "administrator@vsphere.local")
	set(&o.Password, "lab")
	if o.MaxAreas == 0 {
		o.MaxAreas = 2000
	}
	if o.LockPatience == 0 {
		o.LockPatience = 2 * time.Second
	}
	if o.Grain == 0 {
		o.Grain = 64 << 10
	}
	o.Inventory.defaults(o.ESX)
}

func (l *Lab) start(ctx context.Context, opt Options) (err error) {
	if opt.Dir == "" {
		if l.temp, err = os.MkdirTemp("", "vmkeep-lab-"); err != nil {
			return err
		}
		opt.Dir = l.temp
	}
	if l.cert, err = newCertificate(); err != nil {
		return err
	}
	l.model = simulator.VPX()
	if opt.ESX {
		l.model = simulator.ESX()
	}
	m := l.model
	m.Datacenter, m.Portgroup, m.Host, m.Cluster, m.ClusterHost, m.Datastore, m.Machine, m.Autostart = 0, 0, 0, 0, 0, 0, 0, false
	if !opt.ESX {
		m.ServiceContent = vpx.ServiceContent
	}
	about := &m.ServiceContent.About
	about.Version, about.ApiVersion, about.Build = "8.0.3", "8.0.3.0", "24322831"
	if opt.ESX {
		about.FullName = "VMware ESXi 8.0.3 build-24322831"
	} else {
		about.FullName = "VMware vCenter Server 8.0.3 build-24322831"
	}
	if err := m.Create(); err != nil {
		return err
	}

	s := &sim{
		opt: opt, reg: m.Map(), svc: m.Service,
		machines: map[ref]*machine{}, dirs: map[string]string{}, capacity: map[string]*space{},
		watched: map[ref]chan struct{}{}, closing: make(chan struct{}),
	}
	s.store = newStore(s.dirOf)
	l.sim = s
	s.reg.Put(s)
	s.reg.AddHandler(s)
	s.reg.SessionManager().ValidLogin = s.validLogin
	if err := s.buildInventory(); err != nil {
		return err
	}
	s.starting = true
	err = s.addMachines(ctx, opt.Machines)
	s.starting = false
	if err != nil {
		return err
	}
	for _, r := range s.refs() {
		s.withVM(s.context(), r, func(vm *simulator.VirtualMachine) { s.writeConfigFiles(&vm.VirtualMachine) })
	}
	s.reg.Handler = s.route // from here on calls are clients'

	m.Service.Listen = &url.URL{Host: opt.Address, User: url.UserPassword(opt.User, opt.Password)}
	m.Service.TLS = &tls.Config{Certificates: []tls.Certificate{l.cert}}
	m.Service.RegisterEndpoints = true
	m.Service.ServeMux = http.NewServeMux()
	s.serve(m.Service.ServeMux)
	l.serveControl(m.Service.ServeMux)
	if opt.SessionIdle > 0 {
		s.reg.OptionManager().Setting = append(s.reg.OptionManager().Setting,
			&types.OptionValue{Key: "config.vmacore.soap.sessionTimeout", Value: opt.SessionIdle.String()})
	}
	if err := s.startNFC(); err != nil { // before there are calls that ask for it
		return err
	}
	l.server, err = newServer(m.Service)
	return err
}

// newServer starts the simulator's server, which panics when it cannot listen.
func newServer(svc *simulator.Service) (server *simulator.Server, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p)
		}
	}()
	return svc.NewServer(), nil
}

// Close stops the servers, waits for running tasks and removes what Start made.
func (l *Lab) Close() error {
	var err error
	l.close.Do(func() {
		if l.sim != nil {
			close(l.sim.closing)
			err = l.sim.stopNFC()
		}
		if l.server != nil {
			l.server.CloseClientConnections()
			l.server.Close()
		}
		if l.sim != nil {
			l.sim.tasks.Wait()
			err = errors.Join(err, l.sim.closeKernels())
			l.sim.store.close()
		}
		if l.model != nil && l.model.Service != nil {
			l.model.Remove()
		}
		if l.temp != "" {
			err = errors.Join(err, os.RemoveAll(l.temp))
		}
	})
	return err
}

// URL is the address of the SDK with the administrator's user and password.
func (l *Lab) URL() *url.URL {
	u := *l.server.URL
	return &u
}

// URLFor is the address of the SDK with another account.
func (l *Lab) URLFor(user, password string) *url.URL {
	u := l.URL()
	u.User = url.UserPassword(user, password)
	return u
}

// Thumbprint is the SHA-256 thumbprint of the certificate, colon separated.
func (l *Lab) Thumbprint() string { return colonHex(sha256Sum(l.cert.Certificate[0])) }

func sha256Sum(p []byte) []byte {
	h := sha256.Sum256(p)
	return h[:]
}

// Dir is the directory with the datastores.
func (l *Lab) Dir() string { return l.sim.opt.Dir }
