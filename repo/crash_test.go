package repo

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmkeep/vmkeep/repo/backend/backendtest/peers"
	"github.com/vmkeep/vmkeep/repo/backend/local"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// crashDir, in the environment, makes the test binary a process that backs up until it is killed.
const crashDir = "VMKEEP_TEST_CRASH_DIR"

// TestCrashHelper is not a test by itself: it is the process that TestKilledProcessesLeaveNothingInTheWay kills.
func TestCrashHelper(t *testing.T) {
	dir := os.Getenv(crashDir)
	if dir == "" {
		return
	}
	r := openDir(t, dir)
	r.packSize = 200_000
	for i := uint64(0); ; i++ {
		s, err := commitFiles(t.Context(), r, "vm", map[string][]byte{"disk": noise(uint64(os.Getpid())<<8+i, 900_000), "n": []byte(strconv.FormatUint(i, 10))})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println("committed", s.ID)
		// Forget all but the last, so that a kill hits deletion as well.
		if _, err := r.Forget(t.Context(), ForgetOptions{Policy: restic.Policy{Last: 2}}); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Prune(t.Context(), PruneOptions{MaxUnused: Unused{None: true}}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestKilledProcessesLeaveNothingInTheWay(t *testing.T) {
	p := peers.Local(t)
	be, err := local.Create(p.Location, 2)
	if err != nil {
		t.Fatal(err)
	}
	r, err := Init(t.Context(), be, InitOptions{Password: peers.Password, KeyTime: time.Nanosecond})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	rnd := rand.New(rand.NewPCG(11, 12))
	for round := range 6 {
		last := killed(t, p.Location, time.Duration(rnd.IntN(700))*time.Millisecond)
		// No unlock: the locks of the process that was killed are known to be dead.
		err := r.WithLock(t.Context(), Exclusive, func(ctx context.Context) error {
			report, err := r.Check(ctx, CheckOptions{ReadData: ReadData{All: true}})
			if err != nil {
				return err
			}
			if !report.OK() {
				t.Fatalf("round %d: %+v", round, report.Findings)
			}
			all, err := r.Snapshots(ctx)
			if err != nil {
				return err
			}
			found := false
			for _, s := range all {
				found = found || s.ID.String() == last
				if _, err := readFiles(ctx, r, s); err != nil {
					t.Errorf("round %d: %v", round, err)
				}
			}
			if !found {
				t.Errorf("round %d: the snapshot %s was reported and is gone", round, last)
			}
			return nil
		})
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
	}
	peers.Restic(t, p).Run("check", "--read-data")
}

// killed runs the helper until it has committed once, and kills it some time later. It returns the last snapshot it reported.
func killed(t *testing.T, dir string, after time.Duration) (last string) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestCrashHelper$", "-test.v")
	cmd.Env = append(os.Environ(), crashDir+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	var timer *time.Timer
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		said.WriteString(lines.Text() + "\n")
		if id, ok := strings.CutPrefix(lines.Text(), "committed "); ok {
			last = id
			if timer == nil {
				timer = time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
				defer timer.Stop()
			}
		}
	}
	err = cmd.Wait()
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); last == "" || !ok || !status.Signaled() {
		t.Fatalf("the helper ended before it was killed: %v\n%s", err, said.String())
	}
	return last
}
