package engine

import (
	"context"
	"os"
	"sync"

	"github.com/hashicorp/go-hclog"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/vddk/nfc"
	"github.com/vmkeep/vmkeep/vddk/vixdisklib"
	"github.com/vmkeep/vmkeep/vsphere"
)

// connections are what one configuration leads to: a vSphere session, made at the first need and shared by all
// operations, the journal, and repositories, opened by each operation.
type connections struct {
	cfg      plugin.Config
	version  string
	hostRoot string // see Options
	log      hclog.Logger

	nfc       nfc.Limiter // shared by all disks: an ESXi host has one memory for all NFC sessions
	attaching sync.Mutex  // held from the choice of a place in the proxy until a disk is there

	dialing   chan struct{} // holds one token: who has it may log in
	mu        sync.Mutex
	client    *vsphere.Client
	journal   *vsphere.Journal
	libraries map[string]*vixdisklib.Transport // by their modes: disks of a machine share a helper
	left      []error                          // why something may be left attached; nobody was told yet
}

func newConnections(cfg plugin.Config, opt Options) *connections {
	return &connections{cfg: cfg, version: opt.Version, hostRoot: opt.HostRoot, log: opt.Logger, dialing: make(chan struct{}, 1), libraries: map[string]*vixdisklib.Transport{}}
}

func (c *connections) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.client == nil {
		return nil
	}
	err := c.client.Close()
	c.client = nil
	return err
}

// vsphere returns the shared session. It logs in at the first call; whoever wants it meanwhile waits, and whoever does not is
// not kept waiting: a vCenter may take minutes not to answer.
func (c *connections) vsphere(ctx context.Context) (*vsphere.Client, error) {
	select {
	case c.dialing <- struct{}{}:
		defer func() { <-c.dialing }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	c.mu.Lock()
	client := c.client
	c.mu.Unlock()
	if client != nil {
		return client, nil
	}
	v := c.cfg.VSphere
	if v.URL == "" {
		return nil, &plugin.Error{Code: plugin.CodeNotConfigured, Summary: "no vSphere is configured",
			Remedy: "set vsphere.url, or GOVC_URL", Object: "vsphere.url"}
	}
	client, err := vsphere.Dial(ctx, vsphere.Config{
		URL: v.URL, Username: v.Username, Password: v.Password, Thumbprint: v.Thumbprint, CACerts: v.CACerts,
		Insecure: v.Insecure, UserAgent: "vmkeep/" + c.version,
	})
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.client = client
	return client, nil
}

// openJournal opens the journal of side effects once.
func (c *connections) openJournal() (*vsphere.Journal, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.journal != nil {
		return c.journal, nil
	}
	dir, err := stateDir(c.cfg)
	if err != nil {
		return nil, err
	}
	if c.journal, err = vsphere.OpenJournal(dir); err != nil {
		return nil, err
	}
	return c.journal, nil
}

// takeLeft is what is left and nobody was told of.
func (c *connections) takeLeft() []error {
	c.mu.Lock()
	defer c.mu.Unlock()
	left := c.left
	c.left = nil
	return left
}

// lookup is the environment that storage services see: the configuration's first, then the process's.
func (c *connections) lookup(name string) (string, bool) {
	if v, ok := c.cfg.Repository.Environment[name]; ok {
		return v, true
	}
	return os.LookupEnv(name)
}
