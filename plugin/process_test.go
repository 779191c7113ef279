//go:build unix

package plugin_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"

	"github.com/vmkeep/vmkeep/plugin"
)

// The test binary is also the plugin and the host of these tests.
const (
	roleVariable  = "VMKEEP_TEST_ROLE"  // plugin, host
	diaryVariable = "VMKEEP_TEST_DIARY" // a named pipe that the plugin holds open as long as it lives, and writes to
)

func TestMain(m *testing.M) {
	switch os.Getenv(roleVariable) {
	case "plugin":
		os.Exit(playPlugin())
	case "host":
		os.Exit(playHost())
	}
	os.Exit(m.Run())
}

func playPlugin() int {
	var diary io.Writer = io.Discard
	if path := os.Getenv(diaryVariable); path != "" {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		diary = f
	}
	log := hclog.New(&hclog.LoggerOptions{Output: os.Stderr, JSONFormat: true, Level: hclog.Debug})
	if err := plugin.Serve(&worker{diary: diary}, plugin.ServeOptions{Logger: log}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Fprintln(diary, "end")
	return 0
}

// playHost backs up until it is killed.
func playHost() int {
	self, err := os.Executable()
	if err != nil {
		return 1
	}
	l, err := plugin.Load(context.Background(), plugin.LoadOptions{Path: self, Environment: []string{roleVariable + "=plugin", diaryVariable + "=" + os.Getenv(diaryVariable)}})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	l.Backup(context.Background(), plugin.BackupRequest{}, nil)
	return 1
}

// worker is a service whose backup lasts until it is cancelled, and which writes down what happens.
type worker struct {
	echo
	diary   io.Writer
	running sync.WaitGroup
	mu      sync.Mutex
	stop    []context.CancelFunc
}

func (w *worker) Info(context.Context) (plugin.Info, error) {
	fmt.Println("noise on standard output")
	fmt.Fprintln(os.Stderr, "noise on standard error")
	return plugin.Info{Name: "worker", Capabilities: os.Environ()}, nil
}

func (w *worker) Backup(ctx context.Context, r plugin.BackupRequest, emit func(plugin.Event)) (plugin.BackupReport, error) {
	if r.Full {
		os.Exit(3) // a defect that no recover catches
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w.mu.Lock()
	w.running.Add(1)
	defer w.running.Done()
	w.stop = append(w.stop, cancel)
	w.mu.Unlock()
	fmt.Fprintln(w.diary, "running")
	emit(plugin.Event{Seq: 1, Kind: plugin.EventPhase, Phase: "running"})
	<-ctx.Done()
	fmt.Fprintln(w.diary, "cleaned")
	return plugin.BackupReport{Operation: "op"}, ctx.Err()
}

func (w *worker) Drain(context.Context) error {
	w.mu.Lock()
	for _, stop := range w.stop {
		stop()
	}
	w.mu.Unlock()
	w.running.Wait()
	fmt.Fprintln(w.diary, "drained")
	return nil
}

// diary is a named pipe and what is written to it until the writer has ended.
type diary struct {
	path  string
	lines chan string
}

func newDiary(t *testing.T) *diary {
	t.Helper()
	d := &diary{path: filepath.Join(t.TempDir(), "diary"), lines: make(chan string)}
	if err := syscall.Mkfifo(d.path, 0o600); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(d.lines)
		f, err := os.Open(d.path) // waits for the writer
		if err != nil {
			return
		}
		defer f.Close()
		for s := bufio.NewScanner(f); s.Scan(); {
			d.lines <- s.Text()
		}
	}()
	return d
}

// await reads up to a line.
func (d *diary) await(t *testing.T, want string) {
	t.Helper()
	for line := range d.lines {
		if line == want {
			return
		}
	}
	t.Fatalf("the plugin ended before it wrote %q", want)
}

// rest is all that is written until the plugin has ended.
func (d *diary) rest() []string {
	var all []string
	for line := range d.lines {
		all = append(all, line)
	}
	return all
}

func self(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func load(t *testing.T, o plugin.LoadOptions) *plugin.Loaded {
	t.Helper()
	t.Cleanup(func() { goleak.VerifyNone(t) })
	o.Path = self(t)
	o.Environment = append(o.Environment, roleVariable+"=plugin")
	l, err := plugin.Load(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestEnvironmentOfPlugins: no secret of the host's environment reaches the process, mutual TLS is on, and the
// directory of the socket goes with the process.
func TestEnvironmentOfPlugins(t *testing.T) {
	t.Setenv("RESTIC_PASSWORD", "geheim")
	t.Setenv("GOVC_PASSWORD", "geheim")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "geheim")
	t.Setenv("HTTPS_PROXY", "http://user:geheim@proxy:3128")
	t.Setenv("HTTP_PROXY", "http://proxy:3128")
	t.Setenv("TMPDIR", t.TempDir())
	for _, noMTLS := range []bool{false, true} {
		var log bytes.Buffer
		l := load(t, plugin.LoadOptions{NoMTLS: noMTLS, Logger: hclog.New(&hclog.LoggerOptions{Output: &log, Level: hclog.Trace})})
		info, err := l.Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		env := strings.Join(info.Capabilities, "\n")
		if strings.Contains(env, "geheim") {
			t.Errorf("a secret is in the plugin's environment:\n%s", env)
		}
		if !strings.Contains(env, "\nHTTP_PROXY=http://proxy:3128") || !strings.Contains(env, "PATH=") {
			t.Errorf("the environment lacks what it needs:\n%s", env)
		}
		if mtls := strings.Contains(env, "PLUGIN_CLIENT_CERT="); mtls == noMTLS {
			t.Errorf("NoMTLS %v: mutual TLS is %v", noMTLS, mtls)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if left, err := os.ReadDir(os.Getenv("TMPDIR")); err != nil || len(left) > 0 {
			t.Errorf("left in TMPDIR: %v, %v", left, err)
		}
	}
}

// TestCloseDrains: a running backup is cancelled and cleaned up before the process ends.
func TestCloseDrains(t *testing.T) {
	d := newDiary(t)
	l := load(t, plugin.LoadOptions{Environment: []string{diaryVariable + "=" + d.path}})
	ended := make(chan error, 1)
	go func() {
		report, err := l.Backup(context.Background(), plugin.BackupRequest{}, nil)
		if report.Operation != "op" {
			err = fmt.Errorf("the report is lost: %w", err)
		}
		ended <- err
	}()
	d.await(t, "running")
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; plugin.CodeOf(err) != plugin.CodeCancelled {
		t.Errorf("the backup ended with %v", err)
	}
	if got := d.rest(); !slices.Equal(got, []string{"cleaned", "drained", "drained", "end"}) {
		t.Errorf("the plugin wrote %q", got)
	}
}

// TestKillEndsAtOnce: a host that does not want to wait gets its calls back.
func TestKillEndsAtOnce(t *testing.T) {
	l := load(t, plugin.LoadOptions{})
	running := make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		_, err := l.Backup(context.Background(), plugin.BackupRequest{}, func(plugin.Event) { close(running) })
		ended <- err
	}()
	<-running
	l.Kill()
	if err := <-ended; err == nil {
		t.Error("the backup succeeded")
	}
	l.Kill()
}

// TestPluginDies: a plugin that ends by itself fails the call with what to do.
func TestPluginDies(t *testing.T) {
	l := load(t, plugin.LoadOptions{})
	_, err := l.Backup(t.Context(), plugin.BackupRequest{Full: true}, nil)
	var e *plugin.Error
	if !errors.As(err, &e) || e.Code != plugin.CodeInternal || !strings.Contains(e.Remedy, "recover") {
		t.Errorf("got %#v", err)
	}
	l.Kill()
}

// TestHostDies: a plugin whose host was killed cleans up and ends.
func TestHostDies(t *testing.T) {
	d := newDiary(t)
	host := exec.Command(self(t))
	tmp := t.TempDir()
	host.Env = append(os.Environ(), roleVariable+"=host", diaryVariable+"="+d.path, "TMPDIR="+tmp)
	var out bytes.Buffer
	host.Stderr = &out
	if err := host.Start(); err != nil {
		t.Fatal(err)
	}
	d.await(t, "running")
	if err := host.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := host.Wait(); err == nil {
		t.Error("the host was not killed")
	}
	if got := d.rest(); len(got) < 3 || got[0] != "cleaned" || got[1] != "drained" || got[len(got)-1] != "end" {
		t.Errorf("the plugin wrote %q; the host %s", got, out.String())
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("left in TMPDIR: %v, %v", left, err)
	}
}

// TestTerminatedPlugins: SIGTERM to the plugin is a Drain.
func TestTerminatedPlugins(t *testing.T) {
	d := newDiary(t)
	cmd := exec.Command(self(t))
	cmd.Env = []string{roleVariable + "=plugin", diaryVariable + "=" + d.path, plugin.CookieKey + "=" + plugin.CookieValue, "TMPDIR=" + t.TempDir()}
	var log bytes.Buffer
	cmd.Stderr = &log
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	handshake, err := lines.ReadString('\n')
	if err != nil || !strings.HasPrefix(handshake, "1|1|unix|") || !strings.HasSuffix(handshake, "|grpc|\n") {
		t.Errorf("the handshake is %q, %v", handshake, err)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(lines)
	if err != nil || len(rest) > 0 {
		t.Errorf("standard output holds %q, %v", rest, err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v; it logged\n%s", err, log.String())
	}
	if got := d.rest(); len(got) < 2 || got[0] != "drained" || got[len(got)-1] != "end" {
		t.Errorf("the plugin wrote %q", got)
	}
}

// TestStartErrors: what can be wrong with the program is said in one error with a remedy.
func TestStartErrors(t *testing.T) {
	program := self(t)
	data, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, []byte("no program"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", t.TempDir())
	environment := []string{roleVariable + "=plugin"}
	for name, c := range map[string]struct {
		o    plugin.LoadOptions
		want plugin.Code
	}{
		"no path":         {plugin.LoadOptions{}, plugin.CodeFile},
		"no such file":    {plugin.LoadOptions{Path: "/nonexistent/vmkeep-plugin"}, plugin.CodeFile},
		"not executable":  {plugin.LoadOptions{Path: plain}, plugin.CodeFile},
		"not a plugin":    {plugin.LoadOptions{Path: "/bin/true"}, plugin.CodeInternal},
		"odd checksum":    {plugin.LoadOptions{Path: program, Checksum: "abc", Environment: environment}, plugin.CodeInvalid},
		"other checksum":  {plugin.LoadOptions{Path: program, Checksum: strings.Repeat("00", 32), Environment: environment}, plugin.CodeFile},
		"its own program": {plugin.LoadOptions{Path: program, Checksum: hex.EncodeToString(sum[:]), Environment: environment}, ""},
	} {
		l, err := plugin.Load(t.Context(), c.o)
		if err == nil {
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		}
		var e *plugin.Error
		if plugin.CodeOf(err) != c.want || errors.As(err, &e) && e.Remedy == "" {
			t.Errorf("%s: got %#v", name, err)
		}
	}
	if left, err := os.ReadDir(os.Getenv("TMPDIR")); err != nil || len(left) > 0 {
		t.Errorf("left in TMPDIR: %v, %v", left, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := plugin.Load(ctx, plugin.LoadOptions{Path: program, Environment: environment}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v", err)
	}
}

// TestServeByHand: without a host there is nothing to serve.
func TestServeByHand(t *testing.T) {
	if err := plugin.Serve(&echo{}, plugin.ServeOptions{}); !errors.Is(err, plugin.ErrNotLoaded) {
		t.Errorf("got %v", err)
	}
}

// lineWriter hands on what is written to it.
type lineWriter chan string

func (w lineWriter) Write(p []byte) (int, error) {
	w <- string(p)
	return len(p), nil
}

// TestLogsArrive: what the plugin logs, and what it prints, reaches the host's log.
func TestLogsArrive(t *testing.T) {
	lines := make(lineWriter, 1000)
	l := load(t, plugin.LoadOptions{Host: "tester 7", Logger: hclog.New(&hclog.LoggerOptions{Output: lines, Level: hclog.Debug})})
	if _, err := l.Info(t.Context()); err != nil {
		t.Fatal(err)
	}
	wanted := []string{`host="tester 7"`, "[DEBUG] noise on standard output", "[WARN]  noise on standard error"}
	for len(wanted) > 0 { // in any order; a test that waits in vain ends by go test's own timeout
		line := <-lines
		wanted = slices.DeleteFunc(wanted, func(w string) bool { return strings.Contains(line, w) })
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestDeepTemporaryDirectories: a path of a socket has about 100 bytes, one of a directory for temporary files may have more.
func TestDeepTemporaryDirectories(t *testing.T) {
	deep := filepath.Join(t.TempDir(), strings.Repeat("deep/", 30))
	if err := os.MkdirAll(deep, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", deep)
	host := load(t, plugin.LoadOptions{})
	if _, err := host.Info(t.Context()); err != nil {
		t.Error(err)
	}
	if err := host.Close(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(deep); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
