package engine_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/vmware/govmomi/vim25/types"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/vsphere/lab"
)

// exhaustive reports whether the fault tests try every position, instead of one of each kind: VMKEEP_FAULTS=all.
func exhaustive() bool { return os.Getenv("VMKEEP_FAULTS") == "all" }

// position is one call of an operation: the how-manieth of its method, counted from 1.
type position struct {
	method string
	nth    int
}

func (p position) String() string { return fmt.Sprintf("%s %d", p.method, p.nth) }

// positions lists the calls that fn makes.
func (r *rig) positions(fn func()) (out []position) {
	r.t.Helper()
	r.lab.ResetCalls()
	fn()
	seen := map[string]int{}
	for _, c := range r.lab.Calls() {
		seen[c.Method]++
		out = append(out, position{c.Method, seen[c.Method]})
	}
	return out
}

// trial is one way for one call of an operation to fail.
type trial struct {
	position
	name string
	do   lab.Effect
}

func (f trial) String() string { return f.name + " at " + f.position.String() }

func (f trial) fault() lab.Fault { return lab.Fault{Method: f.method, Nth: f.nth, Do: f.do} }

// effects are the ways for a call to fail, named.
func effects() []trial {
	return []trial{
		{name: "fault", do: lab.Fail(&types.SystemErrorFault{Reason: "a fault of the lab"})},
		{name: "503", do: lab.HTTPStatus(503)},
		{name: "reset", do: lab.Reset()},
		{name: "answer lost", do: lab.LoseAnswer()},
		{name: "answer cut", do: lab.Truncate()},
		{name: "not authenticated", do: lab.Fail(&types.NotAuthenticated{})},
	}
}

// meets lets an operation meet a fault, and demands of its error, if there is one, that it says what to do.
func (r *rig) meets(f trial, do func() error) error {
	r.t.Helper()
	undo := r.lab.Inject(f.fault())
	err := do()
	undo()
	if err != nil {
		if e := asError(r.t, err); e.Summary == "" || e.Remedy == "" {
			r.t.Errorf("%v: %+v", f, e)
		}
	}
	return err
}

// trials runs fn and lists what its calls are to be tried with: with VMKEEP_FAULTS=all every call with every effect,
// else the first call of each method with one, which take turns from the turn-th on.
func (r *rig) trials(turn int, fn func()) (out []trial) {
	r.t.Helper()
	all := effects()
	for _, p := range r.positions(fn) {
		chosen := all
		if !exhaustive() {
			if p.nth != 1 {
				continue
			}
			i := (turn + len(out)) % len(all)
			chosen = all[i : i+1]
		}
		for _, f := range chosen {
			f.position = p
			out = append(out, f)
		}
	}
	return out
}

// fails demands that an operation that met a fault, where it fails, says what to do, and that recovery then leaves
// nothing of it.
func (r *rig) fails(f trial, err error) {
	r.t.Helper()
	if err == nil {
		return
	}
	if e := new(plugin.Error); !errors.As(err, &e) || e.Summary == "" || e.Remedy == "" {
		r.t.Errorf("%v fails with an error that does not help: %#v", f, err)
	}
	report, err := r.Recover(r.t.Context(), nil)
	r.must(err)
	if len(report.Remaining) > 0 {
		r.t.Errorf("%v: not undone: %+v", f, report.Remaining)
	}
}

// order is what a host asks for, as data: a host that is to be killed is another process.
type order struct {
	Backup  *plugin.BackupRequest
	Verify  *plugin.VerifyRequest
	Restore *plugin.RestoreRequest
}

// do asks for it. The failure of the one machine is the error.
func (o order) do(s plugin.Service) error { return o.doTelling(s, nil) }

// doTelling is do, with the events for emit.
func (o order) doTelling(s plugin.Service, emit func(plugin.Event)) error {
	var failed *plugin.Error
	var err error
	switch {
	case o.Backup != nil:
		var report plugin.BackupReport
		if report, err = s.Backup(noCancel(), *o.Backup, emit); err == nil {
			failed = report.Machines[0].Err
		}
	case o.Verify != nil:
		var report plugin.VerifyReport
		if report, err = s.Verify(noCancel(), *o.Verify, emit); err == nil {
			failed = report.Machines[0].Err
		}
	case o.Restore != nil:
		_, err = s.Restore(noCancel(), *o.Restore, emit)
	}
	if failed != nil {
		err = failed
	}
	return err
}

// work is an operation that changes vSphere; target is the machine it makes, if any.
type work struct {
	name   string
	target string
	order
}

// works are the operations under test on the machine "db".
func works(point string) []work {
	only := plugin.Selection{Names: []string{"db"}}
	return []work{
		{"backup", "", order{Backup: &plugin.BackupRequest{Selection: only}}},
		{"restart of tracking", "", order{Backup: &plugin.BackupRequest{Selection: only, ResetCBT: true}}},
		{"audit", "", order{Verify: &plugin.VerifyRequest{Selection: only, Sample: 1}}},
		{"restore", "db2", order{Restore: &plugin.RestoreRequest{Point: point, Mode: plugin.RestoreNew, Target: plugin.Target{Name: "db2"}}}},
	}
}

// history remembers what every point has to hold.
type history struct {
	r     *rig
	first string                                  // point of "db"
	want  map[string]map[string][sha256.Size]byte // point -> disk uuid -> hash
}

// learn notes that all points that are new hold their machine as it is: it was not written to since before the backup.
func (h *history) learn() {
	h.r.t.Helper()
	points, err := h.r.Points(h.r.t.Context(), plugin.PointFilter{})
	h.r.must(err)
	for _, p := range points {
		if h.want[p.ID] == nil {
			h.want[p.ID] = h.r.contents(p.Machine)
		}
	}
}

// check demands that every point that was ever made is there and holds what it has to.
func (h *history) check() {
	h.r.t.Helper()
	points, err := h.r.Points(h.r.t.Context(), plugin.PointFilter{Details: true})
	h.r.must(err)
	if len(points) != len(h.want) {
		h.r.t.Errorf("%d points, want %d", len(points), len(h.want))
	}
	for _, p := range points {
		h.r.exact(p, h.want[p.ID])
	}
}

// newHistory makes the first point of "db".
func newHistory(r *rig) *history {
	r.t.Helper()
	r.busy(seeded(81), "db")
	h := &history{r: r, first: r.point("db").ID, want: map[string]map[string][sha256.Size]byte{}}
	h.learn()
	return h
}

// settled demands that nothing of ours is left: no snapshot, no disabled method, no half machine, no other disk, no
// journal.
func (h *history) settled(machines []string, w work, disks int) {
	h.r.t.Helper()
	h.r.noTraces(machines...)
	if h.r.at.hostRoot != "" {
		h.r.noTraces(proxyName)
		if d, err := h.r.lab.Machine(proxyName).Disks(); err != nil || len(d) != 1 {
			h.r.t.Errorf("the proxy has %d disks, want its own: %v", len(d), err)
		}
	}
	have := h.r.machines()
	slices.Sort(have)
	if made := w.target != "" && slices.Contains(have, w.target); made { // it was finished, or it should not be there
		got := slices.Collect(maps.Values(h.r.contents(w.target)))
		want := slices.Collect(maps.Values(h.want[h.first]))
		if !sameHashes(got, want) {
			h.r.t.Errorf("machine %s is left half made", w.target)
		}
		h.r.must(h.r.lab.Machine(w.target).Destroy())
		have = slices.DeleteFunc(have, func(n string) bool { return n == w.target })
	}
	if !slices.Equal(have, machines) {
		h.r.t.Errorf("machines %v, want %v", have, machines)
	}
	if d, err := h.r.lab.Machine("db").Disks(); err != nil || len(d) != disks {
		h.r.t.Errorf("the machine has %d disks, want %d: %v", len(d), disks, err)
	}
	if left, err := filepath.Glob(filepath.Join(h.r.config.StateDir, "*.jsonl")); err != nil || len(left) > 0 {
		h.r.t.Errorf("the journal still holds %v: %v", left, err)
	}
}

func sameHashes(a, b [][sha256.Size]byte) bool {
	less := func(x, y [sha256.Size]byte) int { return slices.Compare(x[:], y[:]) }
	slices.SortFunc(a, less)
	slices.SortFunc(b, less)
	return slices.Equal(a, b)
}

// Whichever call fails, in whichever way: the operation succeeds, or fails with an error that says what to do, and
// leaves nothing. With VMKEEP_FAULTS=all every call fails in every way, else the first of each kind in one way.
func TestEveryCallMayFail(t *testing.T) {
	r := newRig(t, lab.Options{Machines: []lab.Machine{{Name: "db", Disks: []lab.Disk{{Size: 2 << 20}}}}})
	h := newHistory(r)
	machines := []string{"db"}
	tried := 0
	for _, w := range works(h.first) {
		again := func() { r.must(r.Configure(t.Context(), r.config)) } // logs out, and in at the next need
		trials := r.trials(tried, func() {
			again()
			r.must(w.do(r))
		})
		h.learn()
		h.settled(machines, w, 1)
		for _, f := range trials {
			tried++
			again()
			r.lab.Inject(f.fault())
			err := w.do(r)
			r.lab.ClearFaults()
			r.fails(f, err)
			h.learn()
			h.settled(machines, w, 1)
			if t.Failed() {
				t.Fatalf("after %s with %v: %v", w.name, f, err)
			}
		}
	}
	r.busy(seeded(83), "db")
	r.point("db")
	h.learn()
	h.check()
	t.Logf("%d faults", tried)
}
