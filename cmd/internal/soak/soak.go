package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/plugin/engine"
	"github.com/vmkeep/vmkeep/repo"
	"github.com/vmkeep/vmkeep/repo/backend/location"
	"github.com/vmkeep/vmkeep/vsphere/lab"
)

type hash = [sha256.Size]byte

// content is what a machine's disks hold, by uuid.
type content map[string]hash

type soak struct {
	options
	lab     *lab.Lab
	service plugin.Service
	killed  atomic.Bool // the plugin, since it was loaded
	config  plugin.Config
	rng     *rand.Rand
	guests  []*guest
	files   *fileServer
	states  map[string]hash    // of the file server's file, by point
	want    map[string]content // of every point that is kept
	owner   map[string]string  // its machine
	fault   error              // of a guest that wrote while it was backed up

	stats struct {
		points, incremental, full, compared, deeds, refused, restored, notRestored, faults, kills, failed, files int
	}
}

const password = "soak"

// start builds vSphere, the machines, and an empty repository.
func start(ctx context.Context, o options, dir string) (_ *soak, err error) {
	s := &soak{options: o, rng: rand.New(rand.NewPCG(o.seed, 1)), want: map[string]content{}, owner: map[string]string{}, states: map[string]hash{}}
	opt := lab.Options{Dir: filepath.Join(dir, "lab"), MaxAreas: 16, LockPatience: 10 * time.Second}
	for n := range o.machines {
		m := lab.Machine{Name: fmt.Sprintf("vm-%02d", n), Folder: "soak", NoTools: n%5 == 4, Off: n%7 == 6}
		if n%3 == 1 {
			m.Guest = "windows2019srv_64Guest"
		}
		encrypted := n%4 == 3
		if encrypted {
			m.KeyProvider = "kms"
		}
		for range 1 + n%2 {
			m.Disks = append(m.Disks, lab.Disk{Size: o.diskSize, Encrypted: encrypted})
		}
		opt.Machines = append(opt.Machines, m)
	}
	files, machine, err := makeFileServer(ctx, filepath.Join(dir, "guest"), o.seed)
	if err != nil {
		return nil, err
	}
	protected := opt.Machines
	opt.Machines = append(slices.Clone(protected), machine)
	if s.lab, err = lab.Start(ctx, opt); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	files.VM, s.files = s.lab.Machine(fileServerName), files
	for n, m := range protected {
		vm, err := s.lab.Lookup(m.Name)
		if err != nil {
			return nil, err
		}
		s.guests = append(s.guests, &guest{VM: vm, name: m.Name, rng: rand.New(rand.NewPCG(o.seed, uint64(n)+2))})
	}
	s.config = plugin.Config{
		VSphere:    plugin.VSphere{URL: s.lab.URL().String(), Thumbprint: s.lab.Thumbprint()},
		Repository: plugin.RepositoryConfig{Location: filepath.Join(dir, "repository"), Password: password},
		StateDir:   filepath.Join(dir, "state"),
		Limits:     plugin.Limits{MachinesPerHost: 4},
	}
	if err := initRepository(ctx, s.config.Repository.Location); err != nil {
		return nil, err
	}
	return s, s.load(ctx)
}

// load reaches an engine: of its own process where a plugin program is given, else in this one.
func (s *soak) load(ctx context.Context) error {
	s.killed.Store(false)
	if s.plugin == "" {
		s.service = engine.New(engine.Options{Version: "soak"})
	} else {
		loaded, err := plugin.Load(ctx, plugin.LoadOptions{Path: s.plugin, Host: "soak"})
		if err != nil {
			return err
		}
		s.service = loaded
	}
	return s.service.Configure(ctx, s.config)
}

// unload ends the engine. A plugin that was killed has nothing to say any more.
func (s *soak) unload() error {
	var err error
	switch x := s.service.(type) {
	case *plugin.Loaded:
		if s.killed.Load() {
			x.Kill()
		} else {
			err = x.Close()
		}
	case *engine.Engine:
		err = x.Close()
	}
	s.service = nil
	return err
}

// kill ends the plugin's process as the kernel does when memory runs out.
func (s *soak) kill() {
	exes, _ := filepath.Glob("/proc/[0-9]*/exe") // the pattern is good
	for _, exe := range exes {
		if at, err := os.Readlink(exe); err != nil || at != s.plugin {
			continue // another, or gone
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(exe)))
		if err != nil {
			continue
		}
		if p, err := os.FindProcess(pid); err == nil && p.Kill() == nil {
			s.killed.Store(true)
		}
	}
}

// initRepository makes a repository whose key is cheap to derive: each comparison derives it.
func initRepository(ctx context.Context, dir string) error {
	where, err := location.Parse(dir)
	if err != nil {
		return err
	}
	be, err := location.Create(ctx, where, location.Settings{})
	if err != nil {
		return err
	}
	r, err := repo.Init(ctx, be, repo.InitOptions{Password: password, KeyTime: time.Microsecond})
	if err != nil {
		return errors.Join(err, be.Close())
	}
	return r.Close()
}

func (s *soak) close() error {
	return errors.Join(s.unload(), s.lab.Close())
}

// round changes machines, prepares faults, backs everything up and compares.
func (s *soak) round(ctx context.Context, n int) error {
	for _, g := range s.guests {
		if s.rng.IntN(4) == 0 {
			if err := s.restore(ctx, g); err != nil {
				return fmt.Errorf("%s: %w", g.name, err)
			}
		}
		if err := s.change(g); err != nil {
			return fmt.Errorf("%s: %w", g.name, err)
		}
	}
	before := map[string]content{}
	for _, g := range s.guests {
		c, err := g.content()
		if err != nil {
			return err
		}
		before[g.Ref().Value] = c
	}
	if err := s.files.change(ctx); err != nil {
		return err
	}
	if n > 0 {
		if err := s.prepareFaults(); err != nil {
			return err
		}
	}
	report, err := s.backup(ctx)
	var ofFiles *plugin.Point
	if err == nil {
		ofFiles, err = s.backupFiles(ctx)
	}
	if e := s.mendFaults(); e != nil {
		return errors.Join(err, e)
	}
	if s.killed.Load() {
		s.stats.kills++
		if err == nil {
			return errors.New("the plugin was killed, and nobody noticed")
		}
		if err = errors.Join(s.unload(), s.load(ctx)); err != nil {
			return err
		}
	}
	if err = errors.Join(err, s.fault); err != nil {
		if err = s.explained(err); err != nil {
			return err
		}
		s.stats.failed++
	}
	var fresh []plugin.Point
	if ofFiles != nil {
		s.states[ofFiles.ID] = sha256.Sum256(s.files.data)
		fresh = append(fresh, *ofFiles)
	}
	for _, m := range report.Machines {
		if m.Err != nil {
			if err := s.explained(m.Err); err != nil {
				return fmt.Errorf("%s: %w", m.Machine.Name, err)
			}
			s.stats.failed++
			continue
		}
		s.keep(m.Point.ID, m.Machine.ID, before)
		s.stats.points++
		fresh = append(fresh, *m.Point)
	}
	if err := s.adopt(ctx, before); err != nil {
		return err
	}
	if err := s.traceless(ctx); err != nil {
		return err
	}
	for _, p := range fresh {
		if err := s.compare(ctx, p); err != nil {
			return err
		}
	}
	s.say("round %d: %d points, %d kept", n, len(fresh), len(s.want))
	if n%8 == 7 {
		return s.tidy(ctx)
	}
	return nil
}

// backup makes a point of every machine. Each guest goes on writing as soon as its snapshot was taken.
func (s *soak) backup(ctx context.Context) (plugin.BackupReport, error) {
	var mu sync.Mutex
	return s.service.Backup(ctx, plugin.BackupRequest{Selection: plugin.Selection{Exclude: []string{fileServerName}}}, func(ev plugin.Event) {
		if ev.Kind != plugin.EventPhase || ev.Phase != "read" {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		for _, g := range s.guests {
			if g.name == ev.Machine {
				s.fault = errors.Join(s.fault, g.write(2))
			}
		}
	})
}

// explained accepts a failure that says what failed and what to do.
func (s *soak) explained(err error) error {
	var e *plugin.Error
	if !errors.As(err, &e) || e.Code == plugin.CodeInternal || e.Code == plugin.CodeDamaged || e.Summary == "" || e.Remedy == "" {
		return fmt.Errorf("a failure that nobody can understand: %w", err)
	}
	return nil
}

// keep remembers what a point of a machine has to hold.
func (s *soak) keep(point, machine string, before map[string]content) {
	s.want[point], s.owner[point] = before[machine], machine
}

// adopt takes in points whose making was reported as failed: they are there, so they have to be right.
func (s *soak) adopt(ctx context.Context, before map[string]content) error {
	points, err := s.service.Points(ctx, plugin.PointFilter{Details: true})
	if err != nil {
		return err
	}
	for _, p := range points {
		if _, known := s.states[p.ID]; known || s.want[p.ID] != nil {
			continue
		}
		if p.Machine == fileServerName {
			s.states[p.ID] = sha256.Sum256(s.files.data)
		}
		for _, g := range s.guests {
			if g.name == p.Machine {
				s.keep(p.ID, g.Ref().Value, before)
			}
		}
		if err := s.compare(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

// traceless demands that nothing of ours is on vSphere after the next start.
func (s *soak) traceless(ctx context.Context) error {
	report, err := s.service.Recover(ctx, nil)
	if err != nil {
		return err
	}
	for _, l := range report.Remaining {
		err = errors.Join(err, fmt.Errorf("%s of %s is left: %s: %w", l.Kind, l.Machine, l.Detail, l.Err))
	}
	for _, g := range s.guests {
		if n := g.SnapshotCount(); n != len(g.snapshots) {
			err = errors.Join(err, fmt.Errorf("%s has %d snapshots, %d are foreign", g.name, n, len(g.snapshots)))
		}
		if g.ConsolidationNeeded() {
			err = errors.Join(err, fmt.Errorf("%s needs consolidation", g.name))
		}
	}
	if n := s.files.SnapshotCount(); n > 0 {
		err = errors.Join(err, fmt.Errorf("%s has %d snapshots", fileServerName, n))
	}
	left, e := filepath.Glob(filepath.Join(s.config.StateDir, "*.jsonl"))
	if len(left) > 0 {
		err = errors.Join(err, fmt.Errorf("the journal holds %v", left))
	}
	return errors.Join(err, e)
}

// compare reads every disk of a point, or the file of the file server's, and compares it with what it was.
func (s *soak) compare(ctx context.Context, p plugin.Point) error {
	if p.Machine == fileServerName {
		return s.compareFiles(ctx, p)
	}
	have := content{}
	for _, d := range p.Disks {
		h, next := sha256.New(), int64(0)
		err := s.service.ReadDisk(ctx, plugin.ReadDiskRequest{Point: p.ID, Disk: d.Name, Length: d.Capacity}, func(f plugin.Frame) error {
			if f.Offset != next {
				return fmt.Errorf("a frame starts at %d, want %d", f.Offset, next)
			}
			data := f.Data
			if data == nil {
				data = make([]byte, f.Length)
			}
			next += int64(len(data))
			_, err := h.Write(data)
			return err
		})
		if err != nil {
			return fmt.Errorf("point %.8s of %s, disk %s: %w", p.ID, p.Machine, d.Name, err)
		}
		have[d.UUID] = hash(h.Sum(nil))
		s.stats.compared++
		if d.Incremental {
			s.stats.incremental++
		} else {
			s.stats.full++
		}
	}
	if maps.Equal(have, s.want[p.ID]) {
		return nil
	}
	for _, d := range p.Disks {
		if have[d.UUID] != s.want[p.ID][d.UUID] {
			return fmt.Errorf("DIFFERENCE: point %.8s of %s, disk %s is not what it was at its snapshot; incremental %v, %s", p.ID, p.Machine, d.Name, d.Incremental, d.Reason)
		}
	}
	return fmt.Errorf("DIFFERENCE: point %.8s of %s has %d disks, the machine had %d", p.ID, p.Machine, len(have), len(s.want[p.ID]))
}

// tidy forgets old points, frees their space, and compares all that is kept.
func (s *soak) tidy(ctx context.Context) error {
	if _, err := s.service.Forget(ctx, plugin.ForgetRequest{Last: 4}); err != nil {
		return err
	}
	if _, err := s.service.Prune(ctx, plugin.PruneRequest{MaxUnused: "0"}, nil); err != nil {
		return err
	}
	return s.compareAll(ctx)
}

// restore overwrites a machine with one of its points, or is refused: disks came and went since, or there are foreign
// snapshots.
func (s *soak) restore(ctx context.Context, g *guest) error {
	points, err := s.service.Points(ctx, plugin.PointFilter{Details: true})
	if err != nil {
		return err
	}
	points = slices.DeleteFunc(points, func(p plugin.Point) bool { return s.owner[p.ID] != g.Ref().Value })
	if len(points) == 0 {
		return nil
	}
	p := points[s.rng.IntN(len(points))]
	mode := []plugin.RestoreMode{plugin.RestoreRollback, plugin.RestoreInPlace}[s.rng.IntN(2)]
	off := g.PowerOff() != nil
	_, err = s.service.Restore(ctx, plugin.RestoreRequest{Point: p.ID, Mode: mode, Verify: s.rng.IntN(3) == 0, Target: plugin.Target{Machine: g.Ref().Value}}, nil)
	if !off {
		err = errors.Join(err, g.PowerOn())
	}
	s.stats.restored++
	if err != nil {
		s.stats.notRestored++
		return s.explained(err)
	}
	disks, err := g.Disks()
	if err != nil {
		return err
	}
	have, err := g.content()
	if err != nil {
		return err
	}
	for _, d := range p.Disks {
		i := slices.IndexFunc(disks, func(x lab.DiskInfo) bool { return x.UUID == d.UUID })
		if i < 0 || disks[i].Size != d.Capacity { // what has grown keeps its end
			continue
		}
		if have[d.UUID] != s.want[p.ID][d.UUID] {
			return fmt.Errorf("DIFFERENCE: after %s, disk %s is not what point %.8s says", mode, d.Name, p.ID)
		}
	}
	return nil
}

// compareAll compares every kept point, and lets the repository check itself.
func (s *soak) compareAll(ctx context.Context) error {
	points, err := s.service.Points(ctx, plugin.PointFilter{Details: true})
	if err != nil {
		return err
	}
	kept := map[string]bool{}
	for _, p := range points {
		kept[p.ID] = true
		if err := s.compare(ctx, p); err != nil {
			return err
		}
	}
	maps.DeleteFunc(s.want, func(id string, _ content) bool { return !kept[id] })
	report, err := s.service.Check(ctx, plugin.CheckRequest{ReadData: true}, nil)
	if err == nil && len(report.Errors) > 0 {
		err = fmt.Errorf("the repository is damaged: %+v", report.Errors)
	}
	return err
}

// finish takes a last point of every machine without any fault and compares everything.
func (s *soak) finish(ctx context.Context) error {
	for _, g := range s.guests {
		if err := g.write(3); err != nil {
			return err
		}
	}
	before := map[string]content{}
	for _, g := range s.guests {
		c, err := g.content()
		if err != nil {
			return err
		}
		before[g.Ref().Value] = c
	}
	report, err := s.backup(ctx)
	if err = errors.Join(err, s.fault); err != nil {
		return err
	}
	for _, m := range report.Machines {
		if m.Err != nil {
			return fmt.Errorf("%s, without any fault: %w", m.Machine.Name, m.Err)
		}
		s.keep(m.Point.ID, m.Machine.ID, before)
		s.stats.points++
	}
	if n := len(report.Machines); n != s.machines {
		return fmt.Errorf("%d machines were backed up, want %d", n, s.machines)
	}
	if err := s.traceless(ctx); err != nil {
		return err
	}
	return s.compareAll(ctx)
}

// guest is a machine and what is known of it.
type guest struct {
	*lab.VM
	name      string
	rng       *rand.Rand
	snapshots []foreign
}

// content hashes the machine's disks as its guest sees them.
func (g *guest) content() (content, error) {
	disks, err := g.Disks()
	if err != nil {
		return nil, err
	}
	out := content{}
	for _, d := range disks {
		p := make([]byte, d.Size)
		if err := g.Read(d.Key, p, 0); err != nil {
			return nil, err
		}
		out[d.UUID] = sha256.Sum256(p)
	}
	return out, nil
}

// write makes n random writes to each disk, some of zeros.
func (g *guest) write(n int) error {
	disks, err := g.Disks()
	if err != nil {
		return err
	}
	slices.SortFunc(disks, func(a, b lab.DiskInfo) int { return int(a.Key - b.Key) })
	for _, d := range disks {
		for range n {
			p := make([]byte, (1+g.rng.IntN(256))*512)
			if g.rng.IntN(4) > 0 {
				for i := range p {
					p[i] = byte(g.rng.Uint32())
				}
			}
			if err := g.Write(d.Key, p, g.rng.Int64N((d.Size-int64(len(p)))/512+1)*512); err != nil {
				return err
			}
		}
	}
	return nil
}
