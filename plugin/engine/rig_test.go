package engine_test

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/plugin"
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
	at     reached
	config plugin.Config // for the way of this run

	inForce plugin.Config // what the engine was configured with last

	mu     sync.Mutex
	events []plugin.Event
	writes map[guestDisk][]extent.Extent // of guests, until touched looks
}

// guestDisk is a disk as its guest knows it: the machine and the device key.
type guestDisk struct {
	machine string
	key     int32
}

const password = peers.Password

// newRig starts a lab, makes a repository and reaches an engine, in the way of this run.
func newRig(t *testing.T, opt lab.Options) *rig {
	t.Helper()
	skipException(t)
	return newRigIn(t, chosen(), opt)
}

// newRigIn is newRig in a certain way.
func newRigIn(t *testing.T, w way, opt lab.Options) *rig {
	t.Helper()
	if opt.Dir == "" {
		opt.Dir = t.TempDir()
	}
	at := w.prepare(t, &opt)
	l, err := lab.Start(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error("close the lab:", err)
		}
	})
	r := &rig{t: t, lab: l, at: at, config: plugin.Config{
		VSphere:    plugin.VSphere{URL: l.URL().String(), Thumbprint: l.Thumbprint()},
		Repository: plugin.RepositoryConfig{Location: filepath.Join(t.TempDir(), "repository"), Password: password},
		StateDir:   t.TempDir(),
	}}
	t.Cleanup(r.nothingIsLeft)
	at.configure(&r.config, l)
	r.Service = at.service(t)
	r.must(r.Configure(t.Context(), r.config))
	r.initRepository(r.config.Repository.Location)
	return r
}

// nothingIsLeft looks at what the engine, which has ended, has left behind.
func (r *rig) nothingIsLeft() {
	for _, name := range []string{"vmkeep-plugin", "vmkeep-vddk"} {
		if err := ended(filepath.Join(filepath.Dir(pluginBinary()), name)); err != nil {
			r.t.Errorf("%s: %v", name, err)
		}
	}
	if r.at.hostRoot == "" {
		return
	}
	if disks, err := r.lab.Machine(proxyName).Disks(); err != nil || len(disks) != 1 {
		r.t.Errorf("the proxy has %d disks, want its own: %v", len(disks), err)
	}
}

// Configure remembers the configuration.
func (r *rig) Configure(ctx context.Context, c plugin.Config) error {
	err := r.Service.Configure(ctx, c)
	if err == nil {
		r.inForce = c
	}
	return err
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

// openRepository opens the rig's repository beside the engine. It has to be closed.
func (r *rig) openRepository() *repo.Repository {
	r.t.Helper()
	ctx := r.t.Context()
	where, err := location.Parse(r.config.Repository.Location)
	r.must(err)
	be, err := location.Open(ctx, where, location.Settings{})
	r.must(err)
	rp, err := repo.Open(ctx, be, repo.OpenOptions{Password: password})
	r.must(err)
	return rp
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
	if n := len(r.events); n > 0 && ev.Operation == r.events[n-1].Operation {
		// Across the wire figures may be left out that newer ones supersede.
		if last := r.events[n-1].Seq; ev.Seq <= last || ev.Seq != last+1 && !r.at.process {
			r.t.Errorf("event %d follows %d", ev.Seq, last)
		}
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
	r.readAsChosen(*res.Point)
	return *res.Point
}

// readAsChosen demands that the disks of a point were read over the transport of this run, and that none fell back.
func (r *rig) readAsChosen(p plugin.Point) {
	r.t.Helper()
	if t := r.inForce.Transports; len(t) == 0 || t[0] != r.at.transport {
		return // the test has chosen others
	}
	for _, d := range p.Disks {
		if mark := transportsOfSuite()[r.at.transport]; d.Skipped == "" && !strings.Contains(d.Transport, mark) {
			r.t.Errorf("disk %s of point %.8s was read over %q, want %q", d.Name, p.ID, d.Transport, mark)
		}
	}
}

// machines lists the machines of the lab but for the proxy, which belongs to the way of the run.
func (r *rig) machines() []string {
	return slices.DeleteFunc(r.lab.Machines(), func(n string) bool { return n == proxyName })
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
	vm, buf := r.lab.Machine(machine), make([]byte, 1<<20)
	for off := int64(0); off < size; off += int64(len(buf)) {
		p := buf[:min(int64(len(buf)), size-off)]
		r.must(vm.Read(key, p, off))
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
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.writes == nil {
		r.writes = map[guestDisk][]extent.Extent{}
	}
	at := guestDisk{machine, key}
	r.writes[at] = append(r.writes[at], extent.Extent{Off: off, Len: int64(len(p))})
}

// touched is how many bytes the blocks of 64 KiB have that a guest wrote to since it was last asked. That is what
// vSphere's change tracking tells at best, and its blocks are no smaller.
func (r *rig) touched(machine string, key int32, size int64) int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	at := guestDisk{machine, key}
	defer delete(r.writes, at)
	return extent.Of(r.writes[at]...).Align(64<<10, size).Bytes()
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
	for len(p) >= 8 {
		binary.LittleEndian.PutUint64(p, rng.Uint64())
		p = p[8:]
	}
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
}

// seeded is a random source for one test.
func seeded(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, seed)) }

// hostRead is how many bytes of disks the lab has served. It stays 0 over transports that read the datastores by
// themselves: what tests demand of it is that it is not more than something.
func (r *rig) hostRead() int64 { return r.lab.NFC().Stats().ReadBytes }

// noTraces fails when a machine has a snapshot, needs consolidation or cannot be moved.
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
		if off := vm.DisabledMethods(); len(off) > 0 {
			r.t.Errorf("%s has disabled methods: %v", m, off)
		}
	}
}
