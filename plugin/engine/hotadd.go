package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/vmkeep/vmkeep/vddk"
	"github.com/vmkeep/vmkeep/vddk/hotadd"
	"github.com/vmkeep/vmkeep/vsphere"
)

// productUUID is where Linux tells the BIOS uuid of the machine it runs in, below the root of its /sys and /dev. Only
// root may read it.
const productUUID = "sys/class/dmi/id/product_uuid"

// hotadd attaches disks to the proxy.
func (c *connections) hotadd(vc *vsphere.Client) vddk.Transport {
	return &hotadd.Transport{Attacher: attacher{conn: c, vc: vc}, Sys: filepath.Join(c.hostRoot, "sys"), Dev: filepath.Join(c.hostRoot, "dev")}
}

// attacher attaches disks to the machine that this program runs in, where that is one of the vCenter's. Every disk
// that is attached is in the journal, as an operation of its own.
type attacher struct {
	conn *connections
	vc   *vsphere.Client
}

var _ hotadd.Attacher = attacher{}

// WithAttached implements [hotadd.Attacher]. Disks are attached for reading only.
func (a attacher) WithAttached(ctx context.Context, at hotadd.Attachment, fn func(context.Context, hotadd.Attached) error) (err error) {
	if at.Write {
		return fmt.Errorf("disks are hot-added for reading only: %w", vddk.ErrUnsupported)
	}
	proxy, err := a.proxy(ctx)
	if err != nil {
		return err
	}
	journal, err := a.conn.openJournal()
	if err != nil {
		return err
	}
	op, err := journal.Begin("", "")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, op.End()) }()
	// One at a time: two would choose the same free place.
	a.conn.attaching.Lock()
	next := sync.OnceFunc(a.conn.attaching.Unlock)
	defer next()
	return proxy.WithAttached(ctx, op, at.Path, func(ctx context.Context, d vsphere.Disk) error {
		next()
		return fn(ctx, hotadd.Attached{UUID: d.UUID, Unit: int(d.Unit), Capacity: d.Capacity})
	})
}

// proxy finds the machine that this program runs in.
func (a attacher) proxy(ctx context.Context) (*vsphere.VM, error) {
	text, err := os.ReadFile(filepath.Join(a.conn.hostRoot, productUUID))
	if err != nil {
		return nil, fmt.Errorf("it is not known which machine this is (%w): %w", err, vddk.ErrUnsupported)
	}
	own := strings.ToLower(strings.TrimSpace(string(text)))
	machines, err := a.vc.Machines(ctx, vsphere.Selection{})
	if err != nil {
		return nil, err
	}
	for _, m := range machines {
		if uuid := strings.ToLower(m.BIOSUUID); uuid != "" && (uuid == own || uuid == swappedUUID(own)) {
			return a.vc.VM(m), nil
		}
	}
	return nil, fmt.Errorf("this is not a machine of %s: %w", a.vc.About().URL, vddk.ErrUnsupported)
}

// swappedUUID is a uuid with the bytes of its first three groups in the other order: SMBIOS 2.6 and later stores them
// little-endian, and Linux and vSphere do not always agree about that.
func swappedUUID(uuid string) string {
	groups := strings.Split(uuid, "-")
	if len(groups) != 5 {
		return uuid
	}
	for i, g := range groups[:3] {
		var b strings.Builder
		for at := len(g) - 2; at >= 0; at -= 2 {
			b.WriteString(g[at : at+2])
		}
		groups[i] = b.String()
	}
	return strings.Join(groups, "-")
}
