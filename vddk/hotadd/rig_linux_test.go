package hotadd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/vmkeep/vmkeep/vddk"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// proxy plays vSphere and the kernel of the proxy: attached disks are files below dev, and directories below sys.
type proxy struct {
	root  string
	noIDs bool // as without disk.EnableUUID

	mu       sync.Mutex
	files    map[string]string // by datastore path
	attached map[string]string // device by datastore path
	deleted  []string          // devices the kernel was told to drop
	fail     error             // of detaching
}

func newProxy(t testing.TB) (*proxy, *Transport) {
	p := &proxy{root: t.TempDir(), files: map[string]string{}, attached: map[string]string{}}
	for _, d := range []string{"sys/block", "sys/class/scsi_host/host0", "dev/disk/by-id", "ds"} {
		p.must(os.MkdirAll(filepath.Join(p.root, d), 0o755))
	}
	p.must(os.WriteFile(filepath.Join(p.root, "sys/class/scsi_host/host0/scan"), nil, 0o600))
	t.Cleanup(func() {
		if len(p.attached) > 0 {
			t.Errorf("still attached: %v", p.attached)
		}
	})
	return p, &Transport{Attacher: p, Sys: filepath.Join(p.root, "sys"), Dev: filepath.Join(p.root, "dev")}
}

func (p *proxy) must(err error) {
	if err != nil {
		panic(err)
	}
}

// add puts a disk on the datastore.
func (p *proxy) add(t testing.TB, path string, size int64) *os.File {
	p.mu.Lock()
	defer p.mu.Unlock()
	name := filepath.Join(p.root, "ds", fmt.Sprint(len(p.files)))
	f, err := os.Create(name)
	p.must(err)
	t.Cleanup(func() { f.Close() })
	p.must(f.Truncate(size))
	p.files[path] = name
	return f
}

func uuid(n int) string { return fmt.Sprintf("6000C29a-0000-0000-0000-%012x", n) }

// appear shows a disk as the kernel does.
func (p *proxy) appear(name, id string, unit int, size int64) {
	d := filepath.Join(p.root, "sys/block", name)
	p.must(os.MkdirAll(filepath.Join(d, "device/scsi_disk", fmt.Sprintf("2:0:%d:0", unit)), 0o755))
	p.must(os.WriteFile(filepath.Join(d, "size"), fmt.Appendln(nil, size/512), 0o644))
	p.must(os.WriteFile(filepath.Join(d, "device/delete"), nil, 0o644))
	if id != "" {
		p.must(os.WriteFile(filepath.Join(d, "device/wwid"), []byte("naa."+strings.ToLower(strings.ReplaceAll(id, "-", ""))+"\n"), 0o644))
	}
}

func (p *proxy) attach(a Attachment) (name string, at Attached, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	file, ok := p.files[a.Path]
	if !ok {
		return "", at, fmt.Errorf("%s: %w", a.Path, vddk.ErrNotFound)
	}
	info, err := os.Stat(file)
	p.must(err)
	n := 0
	for ; ; n++ {
		name = "sd" + string(rune('b'+n))
		if _, err := os.Stat(filepath.Join(p.root, "dev", name)); err != nil {
			break
		}
	}
	at = Attached{UUID: uuid(n), Unit: n + 1, Capacity: info.Size()}
	id := at.UUID
	if p.noIDs {
		id = ""
	}
	p.must(os.Symlink(file, filepath.Join(p.root, "dev", name)))
	p.appear(name, id, at.Unit, at.Capacity)
	p.attached[a.Path] = name
	return name, at, nil
}

func (p *proxy) detach(path, name string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if b, err := os.ReadFile(filepath.Join(p.root, "sys/block", name, "device/delete")); err != nil || string(b) != "1" {
		return fmt.Errorf("%s is detached before the kernel let it go (%q, %v)", name, b, err)
	}
	p.deleted = append(p.deleted, name)
	p.must(os.Remove(filepath.Join(p.root, "dev", name)))
	p.must(os.RemoveAll(filepath.Join(p.root, "sys/block", name)))
	delete(p.attached, path)
	return p.fail
}

func (p *proxy) WithAttached(ctx context.Context, a Attachment, fn func(context.Context, Attached) error) (err error) {
	name, at, err := p.attach(a)
	if err != nil {
		return err
	}
	err = fn(ctx, at)
	if err != nil { // no device was opened, so nothing was dropped
		p.must(os.WriteFile(filepath.Join(p.root, "sys/block", name, "device/delete"), []byte("1"), 0o644))
	}
	return errors.Join(err, p.detach(a.Path, name))
}

// gate is a device that can be cut and held up.
type gate struct {
	device
	cut  *atomic.Int64 // counts cuts; those opened before one are gone
	born int64
	hold *atomic.Pointer[chan struct{}]
}

func (g gate) check() error {
	if g.cut.Load() != g.born {
		return &os.PathError{Op: "read", Path: "sdb", Err: syscall.EIO}
	}
	if c := g.hold.Load(); c != nil {
		<-*c
	}
	return nil
}

func (g gate) ReadAt(p []byte, off int64) (int, error) {
	if err := g.check(); err != nil {
		return 0, err
	}
	return g.device.ReadAt(p, off)
}

func (g gate) WriteAt(p []byte, off int64) (int, error) {
	if err := g.check(); err != nil {
		return 0, err
	}
	return g.device.WriteAt(p, off)
}
