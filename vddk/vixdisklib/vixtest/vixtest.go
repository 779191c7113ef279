// Package vixtest is a stand-in for VMware's library: a libvixDiskLib.so in C that serves files as disks, keeps the
// real one's rules of processes and threads by ending the process that breaks them, and fails as it is told.
//
// It hides how the library is built and spoken to. A test builds it once ([Build]), puts it in a place of its own
// ([New]), and steers it through a control file that the library reads at every call ([Library.Control]):
//
//	password=P cookie=C      what ConnectEx wants (else it takes all); others give code 3014
//	thumbprint=T             another one is noticed at Open, as code 1, not at ConnectEx
//	modes=nbdssl:nbd         transports there are; asking for others only falls back to nbdssl
//	sector=4096              bytes of a logical sector, as GetInfo of 7.0 and later tells them; else 512
//	needs-snapshot=1         Open without a snapshot gives code 13
//	stay-attached=N          so many of the disks that Cleanup should detach stay attached
//	affinity=1               a handle belongs to the thread that uses it first
//	keeper=SOCKET            who has the disks, instead of the library's own directory, see [Library.Keep]
//	chatter=1                threads of the library's own log at start, in many formats
//	leak=1                   the password appears in the log, in texts of errors, and on stderr
//	fault CALL WORDS...      faults of a call, see below; the first line that fits is taken
//
// CALL is the name of a function without its prefix; transfers are met twice: as ReadAsync or WriteAsync when asked
// for, and as Read or Write when done. WORDS: code=N (result), nth=K (only the K-th call), times=K (only the first
// K), lba=A-B (sectors A to B-1), delay=MS, partial (half of it is moved before the code), flip (a bit is wrong), drop
// (the callback never comes), sync (completed inside the call), hold (waits until the line is gone), stuck (for ever),
// abort, segv, panic (the process ends).
package vixtest

import (
	"bufio"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

//go:embed src
var sources embed.FS

// Variant is a version of the library.
type Variant struct{ Major, Minor int }

func (v Variant) String() string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }

// Variants lists what can be built: each soname, and before 6.7 a library without AllocateConnectParams and
// QueryAllocatedBlocks.
func Variants() []Variant { return []Variant{{6, 5}, {6, 7}, {7, 0}, {8, 0}, {9, 0}} }

// Allocation reports whether the variant has QueryAllocatedBlocks.
func (v Variant) Allocation() bool { return v.Major > 6 || v.Minor >= 7 }

// Build compiles variants into directories below dir, one per variant. It needs cc.
func Build(dir string, variants ...Variant) error {
	src := filepath.Join(dir, "src")
	if err := os.CopyFS(dir, sources); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	for _, v := range variants {
		out := filepath.Join(dir, v.String())
		if err := os.MkdirAll(out, 0o755); err != nil {
			return err
		}
		real := filepath.Join(out, fmt.Sprintf("libvixDiskLib.so.%d.%d.1", v.Major, v.Minor))
		flags := []string{"-O2", "-Wall", "-shared", "-fPIC", "-pthread", "-I", src, fmt.Sprintf("-DMAJOR=%d", v.Major), fmt.Sprintf("-DMINOR=%d", v.Minor)}
		if err := cc(append(flags, "-o", filepath.Join(out, "libsibling.so"), filepath.Join(src, "sibling.c"), "-Wl,-soname,libsibling.so")...); err != nil {
			return err
		}
		if err := cc(append(flags, "-o", real, filepath.Join(src, "fake.c"), filepath.Join(src, "rules.c"), "-L", out, "-lsibling", "-ldl",
			fmt.Sprintf("-Wl,-soname,libvixDiskLib.so.%d", v.Major))...); err != nil {
			return err
		}
	}
	return nil
}

func cc(args ...string) error {
	if out, err := exec.Command("cc", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("building the fake library: cc: %w (apt-get install gcc libc6-dev)\n%s", err, out)
	}
	return nil
}

// Library is a placed library, its disks and its control file.
type Library struct {
	Dir string // as a user would give it
	t   testing.TB
	set []string // lines of the control file that stay
}

// New places what Build made in built as a distribution is laid out.
func New(t testing.TB, built string, v Variant) *Library {
	t.Helper()
	dir := t.TempDir()
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		t.Fatal(err)
	}
	l := &Library{Dir: filepath.Join(dir, "vmware-vix-disklib-distrib"), t: t}
	lib := filepath.Join(l.Dir, "lib64")
	l.must(os.MkdirAll(filepath.Join(l.Dir, "disks"), 0o755))
	l.must(os.CopyFS(lib, os.DirFS(filepath.Join(built, v.String()))))
	soname := fmt.Sprintf("libvixDiskLib.so.%d", v.Major)
	l.must(os.Symlink(fmt.Sprintf("%s.%d.1", soname, v.Minor), filepath.Join(lib, soname)))
	for _, name := range []string{"events", "exited"} {
		l.must(os.WriteFile(filepath.Join(l.Dir, name), nil, 0o600))
	}
	return l
}

func (l *Library) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

// Control replaces the control file, but for what [Library.Keep] says in it. Without lines there is none.
func (l *Library) Control(lines ...string) {
	l.t.Helper()
	name := filepath.Join(l.Dir, "control")
	lines = append(slices.Clone(l.set), lines...)
	if len(lines) == 0 {
		if err := os.Remove(name); !errors.Is(err, fs.ErrNotExist) {
			l.must(err)
		}
		return
	}
	l.must(os.WriteFile(name+".new", []byte(strings.Join(lines, "\n")+"\n"), 0o600))
	l.must(os.Rename(name+".new", name)) // never seen half written
}

// Add puts an empty disk of size bytes at a datastore path, open as long as the test.
func (l *Library) Add(path string, size int64) *os.File {
	l.t.Helper()
	f, err := os.Create(filepath.Join(l.Dir, "disks", strings.ReplaceAll(path, "/", "%")))
	l.must(err)
	l.t.Cleanup(func() { f.Close() })
	l.must(f.Truncate(size))
	return f
}

// Quiet stops the recording of events, which costs time.
func (l *Library) Quiet() {
	l.t.Helper()
	l.must(os.Remove(filepath.Join(l.Dir, "events")))
}

// Attached lists what says that a disk is attached to this machine, for hotadd: files in dir, which the library has for
// its state. What processes that died had attached stays until Cleanup.
func Attached(dir string) ([]string, error) { return filepath.Glob(filepath.Join(dir, "attached-*")) }

// Event is a call the library saw.
type Event struct {
	Call, Detail string
	Pid, Tid     int
	Us           int64 // monotonic clock
}

// Events lists the calls so far, in order.
func (l *Library) Events() []Event {
	l.t.Helper()
	b, err := os.ReadFile(filepath.Join(l.Dir, "events"))
	l.must(err)
	var out []Event
	for s := bufio.NewScanner(strings.NewReader(string(b))); s.Scan(); {
		var e Event
		l.must(json.Unmarshal(s.Bytes(), &e))
		out = append(out, e)
	}
	return out
}

// Exits counts processes that came to an orderly end of the library.
func (l *Library) Exits() int {
	l.t.Helper()
	b, err := os.ReadFile(filepath.Join(l.Dir, "exited"))
	l.must(err)
	return strings.Count(string(b), "\n")
}
