//go:build unix

package main

import (
	"bufio"
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/vmkeep/vmkeep/vsphere/lab"
)

// TestInterrupts: the first interrupt waits for the cleanup, the second does not, and recover cleans up after it.
func TestInterrupts(t *testing.T) {
	dir := t.TempDir()
	l, err := startLab(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	h := home{t: t, dir: dir, lab: l, password: "geheim"}
	if code, out := h.run("init"); code != 0 {
		t.Fatal(out)
	}

	b := h.startSlowBackup()
	b.await("web: read")
	b.signal()
	if code, out := b.end(); code != exitInterrupted || !strings.Contains(out, "interrupted: cleaning up") {
		t.Errorf("one interrupt: exit code %d\n%s", code, out)
	}
	if n := l.Machine("web").SnapshotCount(); n != 0 {
		t.Errorf("one interrupt: %d snapshots are left", n)
	}
	if code, out := h.run("points"); code != 0 || !strings.Contains(out, "no points") {
		t.Errorf("one interrupt: half a point is left: %d\n%s", code, out)
	}

	// The cleanup cannot end as long as vSphere does not answer.
	hang := l.Inject(lab.Fault{Method: "RemoveSnapshot_Task", Times: -1, Do: lab.Hang()})
	b = h.startSlowBackup()
	b.await("web: read")
	b.signal()
	b.await("interrupted: cleaning up")
	b.signal()
	if code, out := b.end(); code != exitInterrupted || !strings.Contains(out, `"vmkeep recover", and the next backup, will remove`) ||
		strings.Contains(out, "the plugin ended") {
		t.Errorf("two interrupts: exit code %d\n%s", code, out)
	}
	if n := l.Machine("web").SnapshotCount(); n != 1 {
		t.Errorf("two interrupts: %d snapshots; the test tests nothing", n)
	}
	hang()
	if code, out := h.run("recover"); code != 0 || !strings.Contains(out, "undone: snapshot of /dc1/vm/prod/web") {
		t.Errorf("recover: exit code %d\n%s", code, out)
	}
	if n := l.Machine("web").SnapshotCount(); n != 0 {
		t.Errorf("recover left %d snapshots", n)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "vmkeep-*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestWaitingForStorageIsTold: nobody listens where the repository should be. Commands with and without events say so, and
// an interrupt ends the waiting.
func TestWaitingForStorageIsTold(t *testing.T) {
	h := home{t: t, dir: t.TempDir(), password: "geheim"}
	for _, command := range []string{"points", "check"} {
		s := h.start(command, "--repo", "rest:http://127.0.0.1:1/repo")
		s.await("does not answer, trying again")
		s.signal()
		if code, out := s.end(); code != exitInterrupted {
			t.Errorf("%s: exit code %d\n%s", command, code, out)
		}
	}
}

// home is where vmkeep runs in a test.
type home struct {
	t        *testing.T
	dir      string
	lab      *lab.Lab // nil: no vSphere
	password string   // of the repository
	more     []string // variables that stand in for others, or beside them
}

func (h home) command(args ...string) *exec.Cmd {
	h.t.Helper()
	path, err := exec.LookPath("vmkeep") // testscript put it there
	if err != nil {
		h.t.Fatal(err)
	}
	cmd := exec.Command(path, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + h.dir, "TMPDIR=" + h.dir, "RESTIC_REPOSITORY=" + filepath.Join(h.dir, "repo"), "RESTIC_PASSWORD=" + h.password,
		"VMKEEP_PLUGIN=" + filepath.Join(os.Getenv(programVariable), "vmkeep-plugin")}
	if h.lab != nil {
		for name, value := range labVariables(h.lab) {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
	}
	cmd.Env = append(cmd.Env, h.more...)
	return cmd
}

func (h home) run(args ...string) (int, string) {
	h.t.Helper()
	out, err := h.command(args...).CombinedOutput()
	return code(h.t, err), string(out)
}

func code(t *testing.T, err error) int {
	t.Helper()
	var e *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &e):
		return e.ExitCode()
	}
	t.Fatal(err)
	return -1
}

// slow is a backup that has minutes left when it reads.
type slow struct {
	home
	cmd   *exec.Cmd
	lines *bufio.Scanner
	seen  bytes.Buffer
}

func (h home) startSlowBackup() *slow {
	h.t.Helper()
	return h.start("backup", "web", "--limit-upload", "50")
}

func (h home) start(args ...string) *slow {
	h.t.Helper()
	s := &slow{home: h, cmd: h.command(args...)}
	out, err := s.cmd.StderrPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	s.lines = bufio.NewScanner(out)
	if err := s.cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	return s
}

func (s *slow) await(text string) {
	s.t.Helper()
	for s.lines.Scan() {
		s.seen.WriteString(s.lines.Text() + "\n")
		if strings.Contains(s.lines.Text(), text) {
			return
		}
	}
	s.cmd.Wait()
	s.t.Fatalf("the backup ended before %q:\n%s", text, s.seen.String())
}

func (s *slow) signal() {
	s.t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGINT); err != nil {
		s.t.Fatal(err)
	}
}

func (s *slow) end() (int, string) {
	s.t.Helper()
	for s.lines.Scan() {
		s.seen.WriteString(s.lines.Text() + "\n")
	}
	return code(s.t, s.cmd.Wait()), s.seen.String()
}
