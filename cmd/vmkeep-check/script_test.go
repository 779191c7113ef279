package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/vmkeep/vmkeep/repo"
	"github.com/vmkeep/vmkeep/repo/backend/backendtest/peers"
	"github.com/vmkeep/vmkeep/repo/backend/local"
	"github.com/vmkeep/vmkeep/repo/restic"
)

func TestMain(m *testing.M) { testscript.Main(m, map[string]func(){"vmkeep-check": main}) }

// Scripts run the program against repositories that the real restic makes. Beside testscript's commands they have
//
//	restic ARGS            the real restic
//	init DIR               a new repository whose key costs no time
//	exits CODE CMD ARGS    runs CMD and wants that exit code
//	flip FILE OFFSET       flips the bits of a byte; of the largest that match the pattern FILE
//	lose FILE              removes the largest file that matches
//	lock DIR               holds an exclusive lock on a repository until the script ends
//	json FILE              wants every line of a file (or stdout) to be a JSON object with message_type
func TestScripts(t *testing.T) {
	resticBinary := peers.Binary(t, "restic")
	rest := peers.RestServer(t)
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("XDG_CACHE_HOME", filepath.Join(env.WorkDir, "cache"))
			env.Setenv("RESTIC_PASSWORD", peers.Password)
			env.Setenv("RESTIC_REPOSITORY", filepath.Join(env.WorkDir, "repo"))
			env.Setenv("REST", rest.Location)
			env.Setenv("TMPDIR", env.WorkDir)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"restic": func(ts *testscript.TestScript, neg bool, args []string) {
				if err := ts.Exec(resticBinary, args...); (err != nil) != neg {
					ts.Fatalf("restic: %v", err)
				}
			},
			"init": func(ts *testscript.TestScript, _ bool, args []string) {
				store, err := local.Create(ts.MkAbs(args[0]), 0)
				ts.Check(err)
				r, err := repo.Init(context.Background(), store, repo.InitOptions{Password: peers.Password, KeyTime: time.Nanosecond})
				ts.Check(err)
				ts.Check(errors.Join(r.Close(), store.Close()))
			},
			"exits": func(ts *testscript.TestScript, _ bool, args []string) {
				want, err := strconv.Atoi(args[0])
				ts.Check(err)
				got := 0
				if err := ts.Exec(args[1], args[2:]...); err != nil {
					exit := (*exec.ExitError)(nil)
					if !errors.As(err, &exit) {
						ts.Fatalf("%v", err)
					}
					got = exit.ExitCode()
				}
				if got != want {
					ts.Fatalf("exit code %d, want %d", got, want)
				}
			},
			"flip": func(ts *testscript.TestScript, _ bool, args []string) {
				name := largest(ts, args[0])
				offset, err := strconv.Atoi(args[1])
				ts.Check(err)
				data, err := os.ReadFile(name)
				ts.Check(err)
				data[offset] ^= 0xff
				ts.Check(os.Chmod(name, 0o600))
				ts.Check(os.WriteFile(name, data, 0o600))
			},
			"lose": func(ts *testscript.TestScript, _ bool, args []string) { ts.Check(os.Remove(largest(ts, args[0]))) },
			"lock": func(ts *testscript.TestScript, _ bool, args []string) { hold(ts, ts.MkAbs(args[0])) },
			"json": func(ts *testscript.TestScript, _ bool, args []string) {
				for line := range strings.Lines(ts.ReadFile(args[0])) {
					var object map[string]any
					if err := json.Unmarshal([]byte(line), &object); err != nil || object["message_type"] == nil {
						ts.Fatalf("%q is no JSON object with message_type: %v", line, err)
					}
				}
			},
		},
	})
}

func largest(ts *testscript.TestScript, pattern string) (name string) {
	names, err := filepath.Glob(ts.MkAbs(pattern))
	ts.Check(err)
	size := int64(-1)
	for _, n := range names {
		info, err := os.Stat(n)
		ts.Check(err)
		if info.Size() > size {
			name, size = n, info.Size()
		}
	}
	if name == "" {
		ts.Fatalf("%s matches no file", pattern)
	}
	return name
}

// hold locks a repository for the rest of the script.
func hold(ts *testscript.TestScript, dir string) {
	store, err := local.Open(dir, 0)
	ts.Check(err)
	r, err := repo.Open(context.Background(), store, repo.OpenOptions{Password: peers.Password})
	ts.Check(err)
	ctx, cancel := context.WithCancel(context.Background())
	held, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- r.WithLock(ctx, repo.Exclusive, func(ctx context.Context) error {
			close(held)
			<-ctx.Done()
			return nil
		})
	}()
	select {
	case <-held:
	case err := <-done:
		ts.Fatalf("lock: %v", err)
	}
	ts.Defer(func() {
		cancel()
		ts.Check(errors.Join(<-done, r.Close(), store.Close()))
	})
}

func TestDailyPartsCoverEverythingInAnyRowOfDays(t *testing.T) {
	for _, n := range []int{1, 7, 30, 256} {
		for start := range 40 {
			parts := map[int]bool{}
			for day := range n {
				d := dailyPart(time.Date(2026, 2, 20+start+day, (start*7)%24, 59, 0, 0, time.UTC), n)
				if d.Parts != n || d.Part < 1 || d.Part > n {
					t.Fatalf("part %d of %d, want one of %d", d.Part, d.Parts, n)
				}
				parts[d.Part] = true
			}
			if len(parts) != n {
				t.Errorf("%d days from the %dth on read %d parts", n, start, len(parts))
			}
		}
	}
	berlin := time.FixedZone("CET", 3600)
	a, b := dailyPart(time.Date(2026, 1, 2, 0, 30, 0, 0, berlin), 7), dailyPart(time.Date(2026, 1, 1, 23, 30, 0, 0, time.UTC), 7)
	if a != b {
		t.Errorf("one instant has parts %v and %v", a, b)
	}
}

func TestDailyRunsReadEveryPackOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "repo")
	store, err := local.Create(dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	r, err := repo.Init(t.Context(), store, repo.InitOptions{Password: peers.Password, KeyTime: time.Nanosecond})
	if err != nil {
		t.Fatal(err)
	}
	const packs = 12
	for i := range packs {
		_, err := r.Commit(t.Context(), func(_ context.Context, w *repo.Writer) (*restic.Snapshot, error) {
			return nil, w.Content().Append([]byte{byte(i), 1, 2, 3})
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(r.Close(), store.Close()); err != nil {
		t.Fatal(err)
	}
	const days = 5
	read := 0
	for day := range days {
		p, stdout, stderr := testProgram(t, map[string]string{"RESTIC_PASSWORD": peers.Password})
		p.now = func() time.Time { return time.Date(2026, 12, 30+day, 4, 0, 0, 0, time.UTC) }
		if code := p.run(t.Context(), []string{"-r", dir, "--json", "--daily", strconv.Itoa(days)}); code != 0 {
			t.Fatalf("exit code %d: %s", code, stderr)
		}
		lines := strings.Split(strings.TrimSpace(stdout.String()), "\n")
		var summary verdict
		if err := json.Unmarshal([]byte(lines[len(lines)-1]), &summary); err != nil {
			t.Fatal(err)
		}
		if summary.Verified.Packs != packs || summary.Verified.DailyOf != days {
			t.Errorf("summary is %+v", summary)
		}
		read += summary.Verified.PacksRead
	}
	if read != packs {
		t.Errorf("%d days read %d of %d packs", days, read, packs)
	}
}

// testProgram is a program with a terminal.
func testProgram(t *testing.T, env map[string]string) (*program, *bytes.Buffer, *bytes.Buffer) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = null.Close() })
	return &program{
		stdin: null, stdout: &stdout, stderr: &stderr, now: time.Now, terminal: true,
		env: func(name string) (string, bool) { v, ok := env[name]; return v, ok },
	}, &stdout, &stderr
}

func TestDaysThatWereMissedAreTold(t *testing.T) {
	day := func(n int) time.Time { return time.Date(2026, 11, n, 4, 0, 0, 0, time.UTC) }
	name := filepath.Join(t.TempDir(), "proof.json")
	run := func(n int, chosen string, err error) *coverage {
		o := &options{daily: 3, proof: name}
		if chosen == "all" {
			o.daily = 0
		}
		r := &result{options: o, repository: "r", chosen: chosen, started: day(n), finished: day(n), report: &repo.CheckReport{}, err: err}
		r.coverage = previousCoverage(name, "r").note(r, dailyPart(day(n), 3).Part, o.daily)
		if err := writeProof(name, r); err != nil {
			t.Fatal(err)
		}
		return r.coverage
	}
	for n := 1; n <= 4; n++ {
		if text := run(n, "", nil).lateText(day(n)); text != "" {
			t.Errorf("day %d: %s", n, text)
		}
	}
	run(5, "", errors.New("the store is down")) // the run that was to read what day 2 read
	if text := run(6, "", nil).lateText(day(6)); text != "" {
		t.Errorf("the part is four days old: %s", text)
	}
	late := run(7, "", nil)
	if text := late.lateText(day(7)); !strings.Contains(text, "1 of 3") || !strings.Contains(text, "2026-11-02") {
		t.Errorf("after a missed day: %q", text)
	}
	if text := run(7, "all", nil).lateText(day(7)); text != "" {
		t.Errorf("after everything was read: %s", text)
	}
	if previousCoverage(name, "another repository") != nil {
		t.Error("the record of another repository counts")
	}
	never := (*coverage)(nil).note(&result{repository: "r", started: day(1), err: errors.New("down")}, 1, 9)
	if text := never.lateText(day(12)); !strings.Contains(text, "9 of 9") || !strings.Contains(never.lateText(day(11).Add(time.Hour)), "never") {
		t.Errorf("%s", text)
	}
}

func TestTerminalSeesProgressThatGoesAway(t *testing.T) {
	peer := peers.Local(t)
	peers.Restic(t, peer).Run("init")
	p, stdout, stderr := testProgram(t, map[string]string{"RESTIC_PASSWORD": peers.Password})
	if code := p.run(t.Context(), []string{"-r", peer.Location, "--read-data"}); code != 0 {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	if s := stderr.String(); !strings.Contains(s, "\r\x1b[Kchecking trees") || !strings.HasSuffix(s, "\r\x1b[K") {
		t.Errorf("terminal sees %q", s)
	}
	if s := stdout.String(); strings.Contains(s, "\x1b") || !strings.Contains(s, "no errors found") {
		t.Errorf("report is %q", s)
	}
}

func TestProgressTellsRateAndRest(t *testing.T) {
	got := line(repo.CheckProgress{Stage: repo.CheckData, Done: 3, Total: 12, Bytes: 50 << 20, TotalBytes: 200 << 20}, 5*time.Second)
	if want := "checking data  3 / 12  50.0 MiB / 200.0 MiB  10.0 MiB/s  15s left"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestInterruptedCheckExitsAsInterrupted(t *testing.T) {
	peer := peers.Local(t)
	peers.Restic(t, peer).Run("init")
	for _, flag := range []string{"--quiet", "--json", "--nagios"} {
		p, stdout, stderr := testProgram(t, map[string]string{"RESTIC_PASSWORD": peers.Password})
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(errors.New("interrupt signal received")) // as signal.NotifyContext does
		proof := filepath.Join(t.TempDir(), "proof")
		want := exitInterrupted
		if flag == "--nagios" {
			want = nagiosUnknown
		}
		if code := p.run(ctx, []string{"-r", peer.Location, "--proof", proof, flag}); code != want {
			t.Errorf("%s: exit code %d, want %d: %s%s", flag, code, want, stdout, stderr)
		}
		if text, err := os.ReadFile(proof); err != nil || !strings.Contains(string(text), `"result": "incomplete"`) {
			t.Errorf("%s: proof is %s, %v", flag, text, err)
		}
	}
}

func TestOneLineStaysOneLine(t *testing.T) {
	if got := oneLine("a\nb|c\r\x1bd"); got != "a b/c  d" {
		t.Errorf("%q", got)
	}
}

func TestSizesAreSpelled(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1536: "1.5 KiB", 1 << 30: "1.0 GiB", 1<<40 - 1: "1.0 TiB"} {
		if got := size(n); got != want {
			t.Errorf("size(%s) = %q, want %q", fmt.Sprint(n), got, want)
		}
	}
}
