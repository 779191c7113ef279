//go:build unix

// Package peers starts the real programs that vmkeep's repositories have to work with, for tests: rest-server,
// rclone, versitygw (S3), OpenSSH's sshd, and restic itself.
//
// It hides where they come from and how they are started, awaited and ended. The Go programs are built from the
// module in testdata/peers on first use; Debian's are installed when the test runs as root. Servers listen on
// the loopback interface, keep their data in the test's temporary directory and end with the test. What cannot
// be had fails the test when CI=true and skips it otherwise.
package peers

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Peer is a place for a repository: a location as restic writes it, the environment variables that belong to
// it, and options as for restic's -o.
type Peer struct {
	Location string
	Env      map[string]string
	Options  map[string]string
}

// Lookup is [os.LookupEnv] for the peer: nothing of the test's own environment shows through.
func (p Peer) Lookup(name string) (string, bool) {
	v, ok := p.Env[name]
	return v, ok
}

// environ is the environment for a program that uses the peer.
func (p Peer) environ() []string {
	var env []string
	for _, k := range slices.Sorted(maps.Keys(p.Env)) {
		env = append(env, k+"="+p.Env[k])
	}
	return env
}

// Local is a directory that does not exist yet.
func Local(t testing.TB) Peer {
	return Peer{Location: filepath.Join(t.TempDir(), "repository")}
}

// unavailable ends a test whose peer cannot be had.
func unavailable(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// Binary is the path of a program built from testdata/peers: restic, rest-server, versitygw or govc.
func Binary(t testing.TB, name string) string {
	t.Helper()
	root := moduleRoot(t)
	path := filepath.Join(root, "bin", name)
	if _, err := os.Stat(path); err == nil {
		return path
	}
	// Test binaries of several packages run at once: one builds, the others wait for it.
	if err := os.MkdirAll(filepath.Join(root, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	lock, err := os.OpenFile(filepath.Join(root, "bin", ".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close() // unlocks
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err == nil {
		return path
	}
	build := exec.Command("go", "-C", filepath.Join(root, "testdata", "peers"), "build", "-o", filepath.Join(root, "bin")+"/", "tool")
	if out, err := build.CombinedOutput(); err != nil {
		unavailable(t, "%s: %v\n%s", build, err, out)
	}
	return path
}

// moduleRoot is the directory with go.mod above the test's package.
func moduleRoot(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if filepath.Dir(dir) == dir {
			t.Fatal("no go.mod above the test's directory")
		}
		dir = filepath.Dir(dir)
	}
}

// System is the path of a program from the distribution, of Debian's package pkg if it has to be installed.
func System(t testing.TB, path, pkg string) string {
	t.Helper()
	if found, err := exec.LookPath(path); err == nil {
		return found
	}
	if os.Geteuid() != 0 {
		unavailable(t, "%s is missing: apt-get install %s", path, pkg)
	}
	install := exec.Command("apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=300", "install", "--no-install-recommends", pkg)
	install.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	if out, err := install.CombinedOutput(); err != nil {
		unavailable(t, "%s is missing: %s: %v\n%s", path, install, err, out)
	}
	return path
}

// server is a process that ends with its test.
type server struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended

	mu     sync.Mutex
	output bytes.Buffer
}

// start runs a server and waits until a line of its output matches ready, of which it returns the first group;
// or, if ready is nil, until address accepts connections. ok is false if the process ended before, as it does
// when somebody else took its port.
func start(t testing.TB, cmd *exec.Cmd, ready *regexp.Regexp, address string) (match string, ok bool) {
	t.Helper()
	s := &server{cmd: cmd, done: make(chan struct{})}
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = in, in
	if err := cmd.Start(); err != nil {
		t.Fatal(errors.Join(err, in.Close(), out.Close()))
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	matched := make(chan string, 1)
	go s.collect(out, ready, matched)
	t.Cleanup(func() { s.end(t) })

	// Only a hanging server meets this deadline; two busy cores may take long to start one.
	deadline := time.After(time.Minute)
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	for {
		select {
		case match := <-matched:
			return match, true
		case <-s.done:
			t.Logf("%s ended: %s", cmd.Path, s.log())
			return "", false
		case <-deadline:
			t.Fatalf("%s is not ready after a minute:\n%s", cmd.Path, s.log())
		case <-poll.C:
			if ready != nil {
				continue
			}
			if c, err := net.Dial("tcp", address); err == nil {
				if err := c.Close(); err != nil {
					t.Fatal(err)
				}
				return "", true
			}
		}
	}
}

// collect keeps the output for failed tests and looks for the line that ready matches.
func (s *server) collect(out io.ReadCloser, ready *regexp.Regexp, matched chan<- string) {
	defer close(s.done)
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		s.mu.Lock()
		if s.output.Len() < 1<<20 {
			s.output.Write(lines.Bytes())
			s.output.WriteByte('\n')
		}
		s.mu.Unlock()
		if ready == nil {
			continue
		}
		if m := ready.FindSubmatch(lines.Bytes()); m != nil {
			matched <- string(m[1])
			ready = nil
		}
	}
	_ = out.Close()
	_ = s.cmd.Wait() // how it ended is told by its output
}

func (s *server) log() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.output.String()
}

func (s *server) end(t testing.TB) {
	_ = s.cmd.Process.Signal(syscall.SIGTERM) // it may have ended by itself
	select {
	case <-s.done:
	case <-time.After(10 * time.Second):
		_ = s.cmd.Process.Kill()
		<-s.done
	}
	if t.Failed() {
		if log := s.log(); log != "" {
			t.Logf("%s said:\n%s", filepath.Base(s.cmd.Path), log)
		}
	}
}

// onFreePort starts a server that cannot choose a port itself. Between finding a free port and listening on it
// somebody else may take it; then there is another one.
func onFreePort(t testing.TB, command func(port string) *exec.Cmd, ready *regexp.Regexp) (port string) {
	t.Helper()
	for range 5 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		_, port, err := net.SplitHostPort(l.Addr().String())
		if err = errors.Join(err, l.Close()); err != nil {
			t.Fatal(err)
		}
		if _, ok := start(t, command(port), ready, "127.0.0.1:"+port); ok {
			return port
		}
	}
	t.Fatal("no server came up on any of five ports")
	return ""
}

// write makes a file for a server's configuration.
func write(t testing.TB, name string, content []byte) string {
	t.Helper()
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// run executes a helper program to its end.
func run(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// freshName is a name that no other call in the machine gives.
func freshName(prefix string) string {
	return fmt.Sprintf("%s%d-%d", prefix, os.Getpid(), time.Now().UnixNano())
}
