//go:build unix

package peers

import (
	"bytes"
	"errors"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// Password is what [Restic] opens and initialises repositories with.
const Password = "correct horse battery staple"

// Runner runs the real restic on one repository.
type Runner struct {
	t     testing.TB
	peer  Peer
	bin   string
	cache string
	// Dir is the working directory of restic; empty means the test's.
	Dir string
}

// Result is how a run ended.
type Result struct {
	Code           int
	Stdout, Stderr string
}

// Restic runs restic 0.19.1 on the repository at p with [Password], a cache of its own and an empty home.
func Restic(t testing.TB, p Peer) *Runner {
	t.Helper()
	return &Runner{t: t, peer: p, bin: Binary(t, "restic"), cache: t.TempDir()}
}

// Command prepares a run, for tests that need its input, its output as a stream, or its process.
func (r *Runner) Command(args ...string) *exec.Cmd {
	all := []string{"--cache-dir", r.cache}
	for _, k := range slices.Sorted(maps.Keys(r.peer.Options)) {
		all = append(all, "-o", k+"="+r.peer.Options[k])
	}
	cmd := exec.Command(r.bin, append(all, args...)...)
	cmd.Dir = r.Dir
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + r.cache, "TMPDIR=" + os.TempDir(),
		"RESTIC_REPOSITORY=" + r.peer.Location, "RESTIC_PASSWORD=" + Password}, r.peer.environ()...)
	return cmd
}

// Try runs restic and tells how it ended.
func (r *Runner) Try(args ...string) Result {
	r.t.Helper()
	cmd := r.Command(args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		r.t.Fatalf("restic %s: %v", strings.Join(args, " "), err)
	}
	return Result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// Run runs restic, fails the test unless it succeeds, and returns its standard output.
func (r *Runner) Run(args ...string) string {
	r.t.Helper()
	res := r.Try(args...)
	if res.Code != 0 {
		r.t.Fatalf("restic %s: exit code %d\n%s%s", strings.Join(args, " "), res.Code, res.Stdout, res.Stderr)
	}
	return res.Stdout
}
