package vsphere

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/vmkeep/vmkeep/vsphere/lab"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const mib = 1 << 20

// password of every account of the lab; no error, report or log may hold it.
const password = "s3cret-Passw0rd"

// world is a lab, a client that is logged in, and a journal.
type world struct {
	*testing.T
	ctx context.Context
	lab *lab.Lab
	c   *Client
	j   *Journal
}

// startLab starts a lab; machines without disks get one of 8 MiB.
func startLab(t *testing.T, opt lab.Options) *lab.Lab {
	t.Helper()
	opt.Password = password
	for i := range opt.Machines {
		if opt.Machines[i].Disks == nil {
			opt.Machines[i].Disks = []lab.Disk{{Size: 8 * mib}}
		}
	}
	l, err := lab.Start(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func start(t *testing.T, opt lab.Options) *world {
	t.Helper()
	w := &world{T: t, ctx: t.Context(), lab: startLab(t, opt)}
	w.c = w.dial(Config{})
	w.j = w.journal()
	return w
}

func machines(names ...string) lab.Options {
	var opt lab.Options
	for _, n := range names {
		opt.Machines = append(opt.Machines, lab.Machine{Name: n})
	}
	return opt
}

// dial completes cfg by what the lab needs and makes waiting short.
func (w *world) dial(cfg Config) *Client {
	w.Helper()
	c, err := Dial(w.ctx, w.config(cfg))
	if err != nil {
		w.Fatal(err)
	}
	c.quick()
	w.Cleanup(func() { c.Close() })
	return c
}

func (w *world) config(cfg Config) Config {
	if cfg.URL == "" {
		u := w.lab.URL()
		if cfg.Username == "" {
			cfg.Username = u.User.Username()
		}
		u.User = nil
		cfg.URL = u.String()
	}
	if cfg.Password == "" {
		cfg.Password = password
	}
	if cfg.Thumbprint == "" && !cfg.Insecure {
		cfg.Thumbprint = w.lab.Thumbprint()
	}
	return cfg
}

// quick shortens the pauses between tries and looks.
func (c *Client) quick() {
	c.s.backoff = func(int) time.Duration { return time.Millisecond }
	c.poll = func(int) time.Duration { return time.Millisecond }
}

func (w *world) journal() *Journal {
	w.Helper()
	j, err := OpenJournal(w.TempDir())
	if err != nil {
		w.Fatal(err)
	}
	return j
}

// begin starts an operation that the test ends without leftovers.
func (w *world) begin() *Operation {
	w.Helper()
	op, err := w.j.Begin("", "repo1")
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() {
		if err := op.End(); err != nil {
			w.Error(err)
		}
	})
	return op
}

func (w *world) find(name string) *VM {
	w.Helper()
	v, err := w.c.Find(w.ctx, name)
	if err != nil {
		w.Fatal(err)
	}
	return v
}

func (w *world) state(v *VM) *State {
	w.Helper()
	s, err := v.State(w.ctx)
	if err != nil {
		w.Fatal(err)
	}
	return s
}

// clean checks that nothing of ours is on the lab's machines.
func (w *world) clean(names ...string) {
	w.Helper()
	for _, n := range names {
		for _, s := range w.lab.Machine(n).Snapshots() {
			if s.Name == "theirs" && len(s.ChildSnapshotList) == 0 {
				continue
			}
			w.Errorf("machine %s has the snapshot %s", n, s.Name)
		}
	}
}

// guestWrite fills n bytes at off with noise.
func (w *world) guestWrite(name string, key int32, off, n int64) {
	w.Helper()
	p := make([]byte, n)
	r := rand.New(rand.NewPCG(uint64(off), uint64(n)))
	for i := range p {
		p[i] = byte(r.Uint32()) | 1
	}
	if err := w.lab.Machine(name).Write(key, p, off); err != nil {
		w.Fatal(err)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
