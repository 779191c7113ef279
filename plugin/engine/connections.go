package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/repo"
	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/backend/location"
	"github.com/vmkeep/vmkeep/repo/restic"
	"github.com/vmkeep/vmkeep/vddk/nfc"
	"github.com/vmkeep/vmkeep/vsphere"
)

// connections are what one configuration leads to: a vSphere session, made at the first need and shared by all
// operations, the journal, and repositories, opened by each operation.
type connections struct {
	cfg     plugin.Config
	version string
	log     hclog.Logger

	nfc nfc.Limiter // shared by all disks: an ESXi host has one memory for all NFC sessions

	mu      sync.Mutex
	client  *vsphere.Client
	journal *vsphere.Journal
}

func newConnections(cfg plugin.Config, version string, log hclog.Logger) *connections {
	return &connections{cfg: cfg, version: version, log: log}
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

// vsphere returns the shared session. It logs in at the first call.
func (c *connections) vsphere(ctx context.Context) (*vsphere.Client, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.client != nil {
		return c.client, nil
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

// lookup is the environment that storage services see: the configuration's first, then the process's.
func (c *connections) lookup(name string) (string, bool) {
	if v, ok := c.cfg.Repository.Environment[name]; ok {
		return v, true
	}
	return os.LookupEnv(name)
}

// repository opens the configured repository and its storage. The caller closes both.
func (c *connections) repository(ctx context.Context) (*repo.Repository, backend.Backend, error) {
	if missing := noRepositoryIn(c.cfg); missing != nil {
		return nil, nil, missing
	}
	rc := c.cfg.Repository
	where, err := location.Parse(rc.Location)
	if err != nil {
		return nil, nil, invalid("repository.location", err.Error(), "use one of restic's forms: /path, rest:URL, s3:URL, sftp:user@host:/path")
	}
	be, err := location.Open(ctx, where, c.storage())
	if err != nil {
		return nil, nil, noRepository(err)
	}
	r, err := repo.Open(ctx, be, repo.OpenOptions{
		Password: rc.Password, Compression: restic.Compression(rc.Compression), PackSize: rc.PackSize << 20, CacheDir: rc.CacheDir, LockWait: rc.LockWait,
	})
	if err != nil {
		return nil, nil, errors.Join(err, be.Close())
	}
	return r, be, nil
}

// storage is what the configuration says of the storage service.
func (c *connections) storage() location.Settings {
	rc := c.cfg.Repository
	return location.Settings{Env: c.lookup, Options: rc.Options, Upload: rc.LimitUpload, Download: rc.LimitDownload, Retry: backend.Policy{
		Notify: func(op string, err error, pause time.Duration) {
			c.log.Warn("the repository's storage does not answer, trying again", "operation", op, "error", err, "in", pause)
		},
	}}
}

// noRepository makes a place that is not there a missing repository.
func noRepository(err error) error {
	if errors.Is(err, backend.ErrNotExist) {
		return fmt.Errorf("%w: %w", repo.ErrNoRepository, err)
	}
	return err
}

// withRepository opens the repository for the time of fn.
func (c *connections) withRepository(ctx context.Context, fn func(*repo.Repository) error) (err error) {
	r, be, err := c.repository(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if e := errors.Join(r.Close(), be.Close()); err == nil && e != nil {
			err = fmt.Errorf("close the repository: %w", e)
		}
	}()
	return fn(r)
}
