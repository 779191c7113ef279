package engine_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/plugin/engine"
	"github.com/vmkeep/vmkeep/repo"
	"github.com/vmkeep/vmkeep/repo/backend/backendtest/peers"
	"github.com/vmkeep/vmkeep/repo/backend/location"
	"github.com/vmkeep/vmkeep/vsphere/lab"
)

// rig is a vSphere, a repository and a service that knows both.
type rig struct {
	t *testing.T
	plugin.Service
	lab    *lab.Lab
	config plugin.Config

	mu     sync.Mutex
	events []plugin.Event
}

const password = peers.Password

// eachWay runs a test with the engine in the same process, and again behind the plugin process.
func eachWay(t *testing.T, opt lab.Options, fn func(t *testing.T, r *rig)) {
	t.Run("in process", func(t *testing.T) { fn(t, newRig(t, opt, inProcess)) })
	t.Run("plugin process", func(t *testing.T) { fn(t, newRig(t, opt, pluginProcess)) })
}

// newRig starts a lab and makes a repository; connect says how the engine is reached.
func newRig(t *testing.T, opt lab.Options, connect func(*testing.T) plugin.Service) *rig {
	t.Helper()
	if opt.Dir == "" {
		opt.Dir = t.TempDir()
	}
	l, err := lab.Start(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error("close the lab:", err)
		}
	})
	r := &rig{t: t, lab: l, config: plugin.Config{
		VSphere:    plugin.VSphere{URL: l.URL().String(), Thumbprint: l.Thumbprint()},
		Repository: plugin.RepositoryConfig{Location: filepath.Join(t.TempDir(), "repository"), Password: password},
		StateDir:   t.TempDir(),
	}}
	r.Service = connect(t)
	r.must(r.Configure(t.Context(), r.config))
	r.initRepository(r.config.Repository.Location)
	return r
}

// initRepository makes a repository with a key that is cheap to derive: each operation derives it.
func (r *rig) initRepository(dir string) {
	r.t.Helper()
	ctx := r.t.Context()
	where, err := location.Parse(dir)
	r.must(err)
	be, err := location.Create(ctx, where, location.Settings{})
	r.must(err)
	rp, err := repo.Init(ctx, be, repo.InitOptions{Password: password, KeyTime: time.Microsecond})
	r.must(err)
	r.must(rp.Close())
}

// inProcess is the engine itself.
func inProcess(t *testing.T) plugin.Service {
	e := engine.New(engine.Options{Version: "test"})
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error("close the engine:", err)
		}
	})
	return e
}

// pluginProcess is the engine in the program that hosts load.
func pluginProcess(t *testing.T) plugin.Service {
	p, err := plugin.Load(t.Context(), plugin.LoadOptions{Path: pluginBinary(t), Host: "engine tests"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error("close the plugin:", err)
		}
	})
	return p
}

// built is where TestMain put the plugin.
var built = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "vmkeep-plugin-test-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "vmkeep-plugin")
	out, err := exec.Command("go", "build", "-o", path, "github.com/vmkeep/vmkeep/cmd/vmkeep-plugin").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build vmkeep-plugin: %w: %s", err, out)
	}
	return path, nil
})

func pluginBinary(t testing.TB) string {
	t.Helper()
	path, err := built()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestMain(m *testing.M) {
	if file := os.Getenv(hostVariable); file != "" {
		if err := runHost(file); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	code := m.Run()
	if path, err := built(); err == nil {
		_ = os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		var e *plugin.Error
		if errors.As(err, &e) {
			r.t.Fatalf("%s [%s] remedy: %s", e, e.Code, e.Remedy)
		}
		r.t.Fatal(err)
	}
}

// note keeps an event for later assertions.
func (r *rig) note(ev plugin.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := len(r.events); n > 0 && ev.Operation == r.events[n-1].Operation && ev.Seq != r.events[n-1].Seq+1 {
		r.t.Errorf("event %d follows %d", ev.Seq, r.events[n-1].Seq)
	}
	r.events = append(r.events, ev)
}

// backup makes a point of one machine.
func (r *rig) backup(machine string, change func(*plugin.BackupRequest)) plugin.Point {
	r.t.Helper()
	res := r.tryBackup(machine, change)
	if res.Err != nil {
		r.must(res.Err)
	}
	return *res.Point
}

func (r *rig) tryBackup(machine string, change func(*plugin.BackupRequest)) plugin.MachineResult {
	r.t.Helper()
	req := plugin.BackupRequest{Selection: plugin.Selection{Names: []string{machine}}}
	if change != nil {
		change(&req)
	}
	report, err := r.Backup(context.WithoutCancel(r.t.Context()), req, r.note)
	r.must(err)
	if len(report.Machines) != 1 {
		r.t.Fatalf("%d machines were backed up, want one", len(report.Machines))
	}
	return report.Machines[0]
}

// disk returns a disk of a point by name.
func (r *rig) disk(p plugin.Point, name string) plugin.PointDisk {
	r.t.Helper()
	for _, d := range p.Disks {
		if d.Name == name {
			return d
		}
	}
	r.t.Fatalf("the point has no disk %s: %+v", name, p.Disks)
	return plugin.PointDisk{}
}

// live reads a disk of a machine as its guest sees it.
func (r *rig) live(machine string, key int32) []byte {
	r.t.Helper()
	b, err := r.lab.Machine(machine).ReadLive(key)
	r.must(err)
	return b
}

// sum hashes a disk of a machine as its guest sees it.
func (r *rig) sum(machine string, key int32, size int64) (s [sha256.Size]byte) {
	r.t.Helper()
	h := sha256.New()
	buf := make([]byte, 1<<20)
	for off := int64(0); off < size; off += int64(len(buf)) {
		p := buf[:min(int64(len(buf)), size-off)]
		r.must(r.lab.Machine(machine).Read(key, p, off))
		_, _ = h.Write(p) // never fails
	}
	h.Sum(s[:0])
	return s
}

// fileSum hashes a file.
func (r *rig) fileSum(name string) (s [sha256.Size]byte) {
	r.t.Helper()
	f, err := os.Open(name)
	r.must(err)
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	r.must(err)
	h.Sum(s[:0])
	return s
}

// guest writes to a running disk.
func (r *rig) guest(machine string, key int32, p []byte, off int64) {
	r.t.Helper()
	r.must(r.lab.Machine(machine).Write(key, p, off))
}

// scribble makes n random writes of up to limit bytes to a disk, sector aligned, some of them zeros.
func (r *rig) scribble(rng *rand.Rand, machine string, key int32, size int64, n, limit int) {
	r.t.Helper()
	for range n {
		p := make([]byte, (1+rng.IntN(limit/512))*512)
		if rng.IntN(4) > 0 {
			fill(rng, p)
		}
		off := rng.Int64N((size-int64(len(p)))/512+1) * 512
		r.guest(machine, key, p, off)
	}
}

// fill makes p random.
func fill(rng *rand.Rand, p []byte) {
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
}

// seeded is a random source for one test.
func seeded(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, seed)) }

// noTraces fails when a machine has a snapshot or needs consolidation.
func (r *rig) noTraces(machines ...string) {
	r.t.Helper()
	for _, m := range machines {
		vm := r.lab.Machine(m)
		if n := vm.SnapshotCount(); n != 0 {
			r.t.Errorf("%s has %d snapshots", m, n)
		}
		if vm.ConsolidationNeeded() {
			r.t.Errorf("%s needs consolidation", m)
		}
	}
}
