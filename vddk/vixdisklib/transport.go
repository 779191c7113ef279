package vixdisklib

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vmkeep/vmkeep/vddk"
)

// Credentials are a login for the library: by password, or with the cookie of a session that exists.
type Credentials struct {
	Server         string // host name or address of vCenter or ESXi, without a scheme
	Port           int    // 0: 443
	User, Password string
	Cookie         string // value of vmware_soap_session; saves a login when it is set
	Thumbprint     string // SHA-1 of the server's certificate, in hexadecimal with colons; the library wants it on Linux
}

// Level says how important a line of the library's log is.
type Level int

// Levels.
const (
	Info Level = iota
	Warn
	Panic // the library ended its process after it
)

// Compression of data between host and library, for nbdssl and nbd.
type Compression uint32

// Compressions, by the flags of the library's Open.
const (
	Uncompressed Compression = 0
	Zlib         Compression = 16
	FastLZ       Compression = 32
	Skipz        Compression = 64
)

// Timeouts bound how long the library may take before it counts as hung, and its process is killed. Zero means the
// value given here.
type Timeouts struct {
	Start    time.Duration // to load and initialise: 2 minutes
	Open     time.Duration // to connect, open, close, prepare, clean up: 10 minutes
	Transfer time.Duration // without any transfer of a call ending: 10 minutes
	End      time.Duration // to give everything back, once that was asked for or this process is gone: 30 seconds
}

// Transport opens disks through the library. A Transport is used by its address; its fields do not change in use.
type Transport struct {
	Dir         string                                     // of the VDDK distribution: what contains lib64
	Helper      string                                     // program; empty: vmkeep-vddk beside the running program, or in PATH
	Credentials func(context.Context) (Credentials, error) // asked for each connection
	Modes       []string                                   // in order of preference; empty: nbdssl, nbd
	Compression Compression                                //
	TempDir     string                                     // of the library's state, the same at every run; empty: one below os.TempDir
	Settings    map[string]string                          // of the library's configuration, for example vixDiskLib.nfcAio.Session.BufCount
	Timeouts    Timeouts                                   //
	Log         func(level Level, text string)             // what the library logs, without secrets; nil: nobody listens. Called from one goroutine per helper
	// Announce is called before a connection is made through which the library may attach disks of a machine to this
	// one; what it returns is called when they are detached again, or with the reason why some may be left, which
	// [Transport.Cleanup] can be tried for later. nil: nobody keeps account.
	Announce func(ctx context.Context, vm string) (settled func(left error), err error)

	mu      sync.Mutex
	helpers map[helperKey]*shared
}

// helperKey says which disks share a helper.
type helperKey struct {
	vm, snapshot     string
	write, encrypted bool
}

// shared is a helper and who uses it. turn is held while one opens or closes.
type shared struct {
	turn  chan struct{} // capacity 1
	users int           // disks open, and openings that wait for the turn; under Transport.mu
	p     *process      // under turn
	free  []uint32      // disk numbers not in use, under turn
}

// CheckSettings reports whether the library's configuration can hold settings. Which there are, the library knows.
func CheckSettings(settings map[string]string) error {
	for k, v := range settings {
		if k == "" || strings.ContainsAny(k, "=\n\r\" ") || strings.ContainsAny(v, "\n\r\"") {
			return fmt.Errorf("setting %q of VMware's library has characters its file cannot hold", k)
		}
	}
	return nil
}

// Name is "vddk": which of the library's modes serves a disk, the disk itself tells.
func (t *Transport) Name() string { return "vddk" }

// modes are the library's transports for a disk. Of an encrypted one nbd would show the bytes to the network, and san
// reads them as they lie on the datastore, which is no use without the key.
func (t *Transport) modes(encrypted bool) []string {
	all := t.Modes
	if len(all) == 0 {
		all = []string{"nbdssl", "nbd"}
	}
	if !encrypted {
		return all
	}
	return slices.DeleteFunc(slices.Clone(all), func(m string) bool { return m == "nbd" || m == "san" })
}

func or(d, otherwise time.Duration) time.Duration {
	if d == 0 {
		return otherwise
	}
	return d
}

func (t *Transport) timeouts() Timeouts {
	return Timeouts{or(t.Timeouts.Start, 2*time.Minute), or(t.Timeouts.Open, 10*time.Minute), or(t.Timeouts.Transfer, 10*time.Minute), or(t.Timeouts.End, 30*time.Second)}
}

// grace is how long a helper may take to let go: less when somebody has stopped waiting.
func (t *Transport) grace(ctx context.Context) time.Duration {
	if ctx.Err() != nil {
		return min(5*time.Second, t.timeouts().End)
	}
	return t.timeouts().End
}

// helperProgram finds the helper.
func (t *Transport) helperProgram() (string, error) {
	if t.Helper != "" {
		return t.Helper, nil
	}
	const name = "vmkeep-vddk"
	if self, err := os.Executable(); err == nil {
		p := filepath.Join(filepath.Dir(self), name)
		if _, err := os.Stat(p); err == nil {
			return p, nil
		}
	}
	p, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("the helper program %s is neither beside this program nor in PATH: install it, or name it in the configuration: %w", name, vddk.ErrUnsupported)
	}
	return p, nil
}

// Open opens a disk. A mode the library fell back to, without being asked for it, is refused.
func (t *Transport) Open(ctx context.Context, spec vddk.Spec) (vddk.Disk, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if strings.IndexByte(spec.Path+spec.VM+spec.Snapshot, 0) >= 0 {
		return nil, fmt.Errorf("%q: a path has no zero bytes: %w", spec.Path, vddk.ErrNotFound)
	}
	if len(t.modes(spec.Encrypted)) == 0 {
		return nil, fmt.Errorf("of the library's modes only %s are allowed: %w", strings.Join(t.Modes, ", "), vddk.ErrInClear)
	}
	key := helperKey{spec.VM, spec.Snapshot, spec.Write, spec.Encrypted}
	s := t.join(key)
	d, err := t.open(ctx, s, spec)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open %s with VMware's library: %w", spec, err), t.leave(key, s, nil))
	}
	d.leave = func() error { return t.leave(key, s, d) }
	return d, nil
}

// join announces a user of a helper.
func (t *Transport) join(key helperKey) *shared {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.helpers == nil {
		t.helpers = map[helperKey]*shared{}
	}
	s := t.helpers[key]
	if s == nil {
		s = &shared{turn: make(chan struct{}, 1)}
		t.helpers[key] = s
	}
	s.users++
	return s
}
