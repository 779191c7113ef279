package engine_test

import (
	"encoding/json"
	"errors"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/vmware/govmomi/vim25/types"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/vsphere/lab"
)

// ownPlugin is the plugin program under a name of its own, by which its process is found.
func ownPlugin(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "vmkeep-plugin-killed")
	if err := os.Link(pluginBinary(), path); err != nil {
		t.Fatal(err)
	}
	return path
}

// kill ends the processes that run programs, as the kernel does when memory runs out: without a word. They are stopped
// before, so that none sees another one die.
func kill(programs ...string) error {
	var all []int
	for _, program := range programs {
		pids, err := processes(program)
		if err != nil {
			return err
		}
		all = append(all, pids...)
	}
	var failed error
	for _, signal := range []syscall.Signal{syscall.SIGSTOP, syscall.SIGKILL} {
		for _, pid := range all {
			failed = errors.Join(failed, syscall.Kill(pid, signal))
		}
	}
	return failed
}

// unheard takes an answer that nobody reads.
type unheard struct{ header http.Header }

func (u *unheard) Header() http.Header         { return u.header }
func (u *unheard) Write(p []byte) (int, error) { return len(p), nil }
func (u *unheard) WriteHeader(int)             {}

// changing are the calls that change vSphere.
func changing() []string {
	return []string{"ReconfigVM_Task", "CreateSnapshot_Task", "CreateSnapshotEx_Task", "RemoveSnapshot_Task", "CreateVM_Task", "Destroy_Task",
		"DisableMethods", "EnableMethods", "NfcRandomAccessOpenDisk"}
}

// reads reports whether a call leaves everything as it is: whoever is killed after it leaves what he leaves before it.
func reads(method string) bool {
	return slices.ContainsFunc([]string{"Retrieve", "Query", "HasPrivilege", "CurrentTime"}, func(p string) bool { return strings.HasPrefix(method, p) })
}

// journalLog is what was written to the journal in a state directory so far, also of operations that have ended, as far
// as somebody looked: "begin", "do snapshot", "note snapshot", "undone snapshot", "end".
type journalLog struct {
	dir string

	mu    sync.Mutex
	lines []string
	files map[string]*journalFile
}

type journalFile struct {
	read  int            // lines
	kinds map[int]string // of the side effects, by number
	ended bool
}

// look reads what is new and returns the number of lines and the last one.
func (j *journalLog) look() (int, string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.files == nil {
		j.files = map[string]*journalFile{}
	}
	names, _ := filepath.Glob(filepath.Join(j.dir, "*.jsonl")) // the pattern is good
	for _, name := range names {
		if b, err := os.ReadFile(name); err == nil {
			j.read(name, string(b))
		}
	}
	for name, f := range j.files {
		if !f.ended && !slices.Contains(names, name) {
			f.ended = true
			j.lines = append(j.lines, "end")
		}
	}
	if len(j.lines) == 0 {
		return 0, ""
	}
	return len(j.lines), j.lines[len(j.lines)-1]
}

// read takes in the lines of a file that are whole and new.
func (j *journalLog) read(name, text string) {
	f := j.files[name]
	if f == nil {
		f = &journalFile{kinds: map[int]string{}}
		j.files[name] = f
	}
	whole := strings.SplitAfter(text, "\n")
	whole = whole[:len(whole)-1]
	for _, line := range whole[min(f.read, len(whole)):] {
		var e struct {
			Line, Kind, Action string
			N                  int
		}
		if json.Unmarshal([]byte(line), &e) != nil {
			e.Line = "unreadable"
		}
		if e.Line == "do" {
			f.kinds[e.N] = strings.TrimSpace(e.Kind + " " + e.Action)
		}
		j.lines = append(j.lines, strings.TrimSpace(e.Line+" "+f.kinds[e.N]))
		f.read++
	}
}

// moment is when somebody is killed: when the first call arrives after so many lines were written to the journal, or
// else before a certain call is performed, or right after.
type moment struct {
	lines int
	position
	after bool
	what  string // kind of the moment: one of each kind makes a sample
}

func (m moment) String() string { return "at " + m.what }

// moments runs fn and lists its moments: those at which the journal says something new, and those after a change.
func (r *rig) moments(fn func()) (out []moment) {
	r.t.Helper()
	log := &journalLog{dir: r.config.StateDir}
	var mu sync.Mutex
	seen := 0
	remove := r.lab.Inject(lab.Fault{Times: -1, Do: lab.Hook(func() {
		mu.Lock()
		defer mu.Unlock()
		if n, last := log.look(); n > seen {
			seen = n
			out = append(out, moment{lines: n, what: last})
		}
	})})
	all := r.positions(fn)
	remove()
	for _, p := range all {
		if exhaustive() && p.method != "Logout" {
			out = append(out, moment{position: p, what: "before " + p.String()})
			if !reads(p.method) {
				out = append(out, moment{position: p, after: true, what: "after " + p.String()})
			}
		} else if slices.Contains(changing(), p.method) {
			out = append(out, moment{position: p, after: true, what: "after " + p.method})
		}
	}
	return out
}

// sure reports whether every run of the operation has the moment: how often tasks are looked at differs.
func (m moment) sure() bool { return m.lines > 0 || slices.Contains(changing(), m.method) }

// trap calls end once, at the moment. Without an answer the call that was the moment breaks off, as when its caller died.
func (r *rig) trap(m moment, answer bool, end func() error) (sprung func() bool) {
	var once sync.Once
	var fired atomic.Bool
	failed := make(chan error, 1)
	spring := func() { once.Do(func() { fired.Store(true); failed <- end() }) }
	log := &journalLog{dir: r.config.StateDir}
	strike := func(w http.ResponseWriter, q *http.Request, next http.Handler) {
		switch {
		case m.lines > 0:
			if n, _ := log.look(); n < m.lines || fired.Load() {
				next.ServeHTTP(w, q)
				return
			}
			spring()
		case m.after && !answer:
			next.ServeHTTP(&unheard{http.Header{}}, q)
			spring()
		case m.after:
			next.ServeHTTP(w, q)
			spring()
			return
		default:
			spring()
		}
		if !answer {
			panic(http.ErrAbortHandler)
		}
		next.ServeHTTP(w, q)
	}
	f := lab.Fault{Method: m.method, Nth: m.nth, Do: strike}
	if m.lines > 0 {
		f.Times = -1
	}
	remove := r.lab.Inject(f)
	return func() bool {
		remove()
		if fired.Load() {
			r.must(<-failed)
		}
		return fired.Load()
	}
}

// killPlugin kills the plugin at a moment of an operation. What it left is there afterwards.
func killPlugin(r *rig, program string, o order, m moment) {
	r.t.Helper()
	loaded, err := r.at.load(r.t, program)
	r.must(err)
	r.must(loaded.Configure(r.t.Context(), r.config))
	sprung := r.trap(m, false, func() error { return kill(program) })
	err = o.do(loaded)
	if fired := sprung(); fired == (err == nil) || !fired && m.sure() {
		r.t.Errorf("killed is %v, and the host got %v", fired, err)
	}
	loaded.Kill()
	r.must(ended(program))
}

// killHost kills the host at a moment of an operation. Its plugin notices, cleans up and ends by itself.
func killHost(r *rig, program string, o order, m moment) {
	r.t.Helper()
	b, err := json.Marshal(hostOrder{program, r.at.environment(), r.config, o})
	r.must(err)
	file := filepath.Join(r.t.TempDir(), "order")
	r.must(os.WriteFile(file, b, 0o600))
	self, err := os.Executable()
	r.must(err)
	host := exec.Command(self)
	host.Env = append(os.Environ(), hostVariable+"="+file)
	host.Stderr = os.Stderr
	running := make(chan *os.Process, 1)
	sprung := r.trap(m, true, func() error { return (<-running).Kill() })
	r.must(host.Start())
	running <- host.Process
	err = host.Wait()
	r.must(ended(program))
	if fired := sprung(); fired == (err == nil) || !fired && m.sure() {
		r.t.Errorf("killed is %v, and the host ended with %v", fired, err)
	}
}

// scene is a vSphere in which somebody dies: "db" runs, "cold" is off and has a point, too.
type scene struct {
	*rig
	h    *history
	cold plugin.Point
	want content // of the disk in cold's point
	rng  *rand.Rand
}

const coldSize = 2 << 20

func newScene(t *testing.T, w way) *scene {
	t.Helper()
	s := &scene{rig: newRigIn(t, w, lab.Options{Machines: []lab.Machine{{Name: "db", Disks: []lab.Disk{{Size: 2 << 20}}}, {Name: "cold", Disks: []lab.Disk{{Size: coldSize}}}}}), rng: seeded(82)}
	s.busy(s.rng, "cold")
	s.cold, s.want = s.point("cold"), s.sum("cold", firstKey, coldSize)
	s.must(s.lab.Machine("cold").PowerOff())
	s.h = newHistory(s.rig)
	return s
}

// works are all operations that change vSphere: those on db, and restores into cold.
func (s *scene) works() []work {
	into := func(mode plugin.RestoreMode, target plugin.Target) order {
		return order{Restore: &plugin.RestoreRequest{Point: s.cold.ID, Mode: mode, Target: target}}
	}
	return append(works(s.h.first),
		work{name: "attachment", order: into(plugin.RestoreAttach, plugin.Target{})},
		work{name: "replacement", order: into(plugin.RestoreAttach, plugin.Target{Positions: map[string]string{"scsi0-0": "scsi0:0"}})},
		work{name: "rollback", order: into(plugin.RestoreRollback, plugin.Target{})},
		work{name: "restore in place", order: into(plugin.RestoreInPlace, plugin.Target{})},
	)
}

// before is what a restore into cold finds there.
type before struct {
	files map[int32]string
	links int
	sum   content
}

// ready lets every operation have something to do: db does not track changes, and both machines differ from their points.
func (s *scene) ready() before {
	s.t.Helper()
	off := false
	s.must(s.lab.Machine("db").Reconfigure(types.VirtualMachineConfigSpec{ChangeTrackingEnabled: &off}))
	s.busy(s.rng, "db")
	cold := s.lab.Machine("cold")
	for key := range s.files("cold") {
		if key != firstKey {
			s.must(cold.RemoveDisk(key))
		}
	}
	s.must(cold.PowerOn())
	s.busy(s.rng, "cold")
	s.must(cold.PowerOff())
	return before{files: s.files("cold"), links: len(s.lab.Links()), sum: s.sum("cold", firstKey, coldSize)}
}

// settled demands that after a start nothing is left of an operation that died: what could be undone is, and what could
// not, the overwriting of disks, is completed by the same restore.
func (s *scene) settled(w work, was before, left []plugin.Leftover) {
	s.t.Helper()
	overwrites := w.Restore != nil && (w.Restore.Mode == plugin.RestoreInPlace || w.Restore.Mode == plugin.RestoreRollback)
	for _, l := range left {
		if !overwrites || l.Kind != "overwrite" {
			s.t.Errorf("not undone: %+v", l)
		}
	}
	allowed := []content{was.sum}
	if overwrites {
		allowed = append(allowed, s.want)
	}
	if len(left) > 0 {
		s.must(w.do(s))
		allowed = []content{s.want}
	}
	s.h.learn()
	s.h.settled([]string{"cold", "db"}, w, 1)
	if now := s.files("cold"); !maps.Equal(now, was.files) {
		place := "scsi0-1"
		if w.name == "replacement" {
			place = "scsi0-0"
		}
		if s.byPlace("cold")[place] != s.want {
			s.t.Errorf("the disks of cold are %v, were %v, and what was attached is not what the point says", now, was.files)
		}
		return
	}
	if !slices.Contains(allowed, s.sum("cold", firstKey, coldSize)) {
		s.t.Error("cold is neither as it was nor as its point says")
	}
	if now := len(s.lab.Links()); now != was.links {
		s.t.Errorf("%d files of disks, %d before: %v", now, was.links, s.lab.Links())
	}
}

// The plugin, or its host, is killed at every step of everything that the journal announces: when the journal says
// something new, and right after vSphere was changed. The plugin of a dead host cleans up by itself; what a dead plugin
// has left the next start removes. Then vSphere is as it was, all points restore, and the operation can be done again.
// By default one step of each kind, with VMKEEP_FAULTS=all each of each operation, before every call, and after every
// call that does not only read.
func TestKilledAtEveryStep(t *testing.T) {
	ways := []way{chosen()}
	if chosen() == (way{transport: "nbdssl"}) { // hotadd's own steps, which its own run has as well
		ways = append(ways, way{transport: "hotadd"})
	}
	for name, kill := range map[string]func(*rig, string, order, moment){"plugin": killPlugin, "host": killHost} {
		program, known, undone := ownPlugin(t), map[string]bool{}, 0
		for _, w := range ways {
			t.Run(name+" over "+w.transport, func(t *testing.T) {
				s := newScene(t, w)
				for _, w := range s.works() {
					for _, m := range s.momentsOf(w) {
						if known[m.what] && !exhaustive() {
							continue
						}
						known[m.what] = true
						was := s.ready()
						kill(s.rig, program, w.order, m)
						report, err := s.Recover(t.Context(), nil)
						s.must(err)
						undone += len(report.Undone)
						if name == "host" && len(report.Undone) > 0 {
							t.Errorf("the plugin left %+v", report.Undone)
						}
						s.settled(w, was, report.Remaining)
						if t.Failed() {
							t.Fatalf("%s: the %s was killed %v; undone: %+v", w.name, name, m, report.Undone)
						}
					}
				}
				s.point("db")
				s.h.learn()
				s.h.check()
			})
		}
		if name == "plugin" && len(known) > 20 && undone < 5 {
			t.Errorf("little was left to undo: %d things", undone)
		}
		t.Logf("the %s was killed at %d kinds of moments: %q; %d things were undone", name, len(known), slices.Sorted(maps.Keys(known)), undone)
	}
}

// momentsOf lists the moments of an operation, which is done once for that.
func (s *scene) momentsOf(w work) []moment {
	s.t.Helper()
	was := s.ready()
	all := s.moments(func() {
		s.must(s.Configure(s.t.Context(), s.config)) // logs out, and in at the next need
		s.must(w.do(s))
	})
	s.settled(w, was, nil)
	return all
}
