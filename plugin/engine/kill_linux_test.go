package engine_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vmware/govmomi/vim25/types"

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

// kill ends the processes that run a program, as the kernel does when memory runs out: without a word.
func kill(program string) error {
	pids, err := processes(program)
	for _, pid := range pids {
		err = errors.Join(err, syscall.Kill(pid, syscall.SIGKILL))
	}
	return err
}

// killing is an effect that ends a program before, or right after, a call is performed; the answer never arrives.
func killing(after bool, end func()) lab.Effect {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if after {
			next.ServeHTTP(&unheard{http.Header{}}, r)
		}
		end()
		panic(http.ErrAbortHandler)
	}
}

// unheard takes an answer that nobody reads.
type unheard struct{ header http.Header }

func (u *unheard) Header() http.Header         { return u.header }
func (u *unheard) Write(p []byte) (int, error) { return len(p), nil }
func (u *unheard) WriteHeader(int)             {}

// journalled are the calls that change vSphere: what the journal announces before, and strikes after.
func journalled(p position) bool {
	return slices.Contains([]string{"ReconfigVM_Task", "CreateSnapshot_Task", "CreateSnapshotEx_Task", "RemoveSnapshot_Task", "CreateVM_Task",
		"Destroy_Task", "NfcRandomAccessOpenDisk", "NfcRandomAccessOpenReadonly"}, p.method)
}

// The plugin is killed before and after each call that changes vSphere, or, with VMKEEP_FAULTS=all, before and after
// every call. The next start leaves vSphere as it was, all points restore, and the operation can be done again.
func TestPluginIsKilledAtEveryStep(t *testing.T) {
	r := newRig(t, lab.Options{Machines: []lab.Machine{{Name: "db", Disks: []lab.Disk{{Size: 2 << 20}}}}})
	machines := []string{"db"}
	off := false
	untrack := func() { // switching tracking on is a step of a backup, too
		r.must(r.lab.Machine("db").Reconfigure(types.VirtualMachineConfigSpec{ChangeTrackingEnabled: &off}))
	}
	h, point := newHistory(r)
	program := ownPlugin(t)
	kills, undone := 0, 0
	for _, w := range works(point) {
		untrack()
		all := r.positions(func() {
			r.must(r.Configure(t.Context(), r.config))
			r.must(w.do(r))
		})
		h.learn()
		h.settled(machines, w, 1)
		for _, p := range all {
			for _, after := range []bool{false, true} {
				if !exhaustive() && !journalled(p) {
					continue
				}
				kills++
				untrack()
				r.busy(seeded(uint64(kills)), "db")
				loaded, err := r.at.load(t, program)
				r.must(err)
				r.must(loaded.Configure(t.Context(), r.config))
				var fired atomic.Bool
				killed := make(chan error, 1)
				r.lab.Inject(lab.Fault{Method: p.method, Nth: p.nth, Do: killing(after, func() {
					fired.Store(true)
					killed <- kill(program)
				})})
				err = w.do(loaded)
				if fired.Load() {
					r.must(<-killed)
				}
				if fired.Load() == (err == nil) || !fired.Load() && journalled(p) {
					t.Errorf("killed is %v, and the host got %v", fired.Load(), err)
				}
				r.lab.ClearFaults()
				loaded.Kill()

				report, e := r.Recover(t.Context(), nil)
				r.must(e)
				if len(report.Remaining) > 0 {
					t.Errorf("not undone: %+v", report.Remaining)
				}
				undone += len(report.Undone)
				h.learn()
				h.settled(machines, w, 1)
				if t.Failed() {
					t.Fatalf("killed in %s, after is %v, %v: %v; undone: %+v", w.name, after, p, err, report.Undone)
				}
			}
		}
	}
	r.point("db")
	h.learn()
	h.check()
	if undone < 5 {
		t.Errorf("%d kills left only %d things to undo", kills, undone)
	}
	t.Logf("%d kills, %d things undone", kills, undone)
}

// The host is killed while a snapshot lives: its plugin notices, cleans up and ends by itself.
func TestPluginOutlivesItsHostToCleanUp(t *testing.T) {
	for _, c := range []struct {
		method string
		after  bool
	}{{"CreateSnapshot_Task", true}, {"QueryChangedDiskAreas", false}, {"RemoveSnapshot_Task", false}} {
		t.Run(c.method, func(t *testing.T) {
			r := newRig(t, lab.Options{Machines: []lab.Machine{{Name: "db", Disks: []lab.Disk{{Size: 2 << 20}}}}})
			h, _ := newHistory(r)
			order, err := json.Marshal(hostOrder{ownPlugin(t), r.at.environment(), r.config})
			r.must(err)
			file := filepath.Join(t.TempDir(), "order")
			r.must(os.WriteFile(file, order, 0o600))
			self, err := os.Executable()
			r.must(err)
			host := exec.Command(self)
			host.Env = append(os.Environ(), hostVariable+"="+file)
			host.Stderr = os.Stderr

			running := make(chan *os.Process, 1)
			gone := make(chan struct{}) // the plugin has logged out
			var once sync.Once
			r.lab.Inject(lab.Fault{Method: c.method, Do: func(w http.ResponseWriter, q *http.Request, next http.Handler) {
				if c.after {
					next.ServeHTTP(w, q)
				}
				_ = (<-running).Kill() // Wait tells
				if !c.after {
					next.ServeHTTP(w, q)
				}
			}})
			r.lab.Inject(lab.Fault{Method: "Logout", Times: -1, Do: func(w http.ResponseWriter, q *http.Request, next http.Handler) {
				next.ServeHTTP(w, q)
				once.Do(func() { close(gone) })
			}})
			r.must(host.Start())
			running <- host.Process
			if err := host.Wait(); err == nil {
				t.Error("the host was not killed")
			}
			select {
			case <-gone:
			case <-time.After(2 * time.Minute):
				t.Fatal("the plugin of a dead host neither cleans up nor ends")
			}
			r.lab.ClearFaults()
			h.learn()
			h.settled([]string{"db"}, work{}, 1)
			h.check()
		})
	}
}
