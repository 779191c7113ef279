//go:build unix

package processes_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vmkeep/vmkeep/repo"
	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/backend/backendtest/peers"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// Chunks of the snapshots that are there before, and of the one that is made while the process is killed.
func oldChunks(i int) [][]byte { return content(byte(10+i), 5, 90_000) }
func newChunks() [][]byte      { return append(content(99, 5, 90_000), oldChunks(1)[:2]...) }

// killedJob does "work when n": the process is killed before or after the n-th operation that changes the store,
// unless n is 0.
func killedJob(ctx context.Context, argument string) (err error) {
	fields := strings.Fields(argument)
	n, err := strconv.Atoi(fields[2])
	if err != nil {
		return err
	}
	var r opened
	r, err = openHere(ctx, func(b backend.Backend) backend.Backend {
		return &suicidal{Backend: b, fatal: int64(n), after: fields[1] == "after"}
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	switch fields[0] {
	case "backup":
		_, err = back(ctx, r.Repository, "new", newChunks())
	case "forget":
		_, err = r.Forget(ctx, repo.ForgetOptions{Policy: restic.Policy{Last: 1}})
	case "prune":
		_, err = r.Prune(ctx, repo.PruneOptions{})
	default:
		err = fmt.Errorf("no such work: %s", fields[0])
	}
	return err
}

// suicidal is a store whose user dies at an operation that changes it.
type suicidal struct {
	backend.Backend
	fatal int64 // number of the operation; 0 means none
	after bool
	count atomic.Int64
}

func (s *suicidal) at(op func() error) error {
	fatal := s.count.Add(1) == s.fatal
	if fatal && !s.after {
		die()
	}
	err := op()
	if fatal {
		die()
	}
	return err
}

func die() {
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {} // until it is delivered
}

func (s *suicidal) Save(ctx context.Context, h backend.Handle, data []byte) error {
	return s.at(func() error { return s.Backend.Save(ctx, h, data) })
}

func (s *suicidal) Remove(ctx context.Context, h backend.Handle) error {
	return s.at(func() error { return s.Backend.Remove(ctx, h) })
}

// prepare makes a repository with three snapshots, one of which is forgotten already, so that prune has work.
func prepare(t *testing.T) peers.Peer {
	t.Helper()
	p := peers.Local(t)
	initPeer(t, p)
	r := openPeer(t, p)
	defer func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}()
	for i := range 4 {
		host := "old"
		if i == 0 {
			host = "gone"
		}
		id, err := back(t.Context(), r.Repository, host, append(oldChunks(i), oldChunks(3)[0]))
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			if err := r.ForgetSnapshots(t.Context(), []restic.ID{id}); err != nil {
				t.Fatal(err)
			}
		}
	}
	return p
}

// judge wants every snapshot that must be there to be whole, none to be half, and the repository to be sound.
func judge(t *testing.T, p peers.Peer, work string, done bool) {
	t.Helper()
	r := openPeer(t, p)
	defer func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}()
	old, fresh := 0, 0
	for _, s := range snapshots(t, r.Repository) {
		if s.Hostname == "new" {
			fresh++
			if err := holds(t.Context(), r.Repository, s, newChunks()); err != nil {
				t.Errorf("new: %v", err)
			}
			continue
		}
		// Which of the old ones it is shows in its content alone.
		var errs []error
		for i := 1; i < 4; i++ {
			errs = append(errs, holds(t.Context(), r.Repository, s, append(oldChunks(i), oldChunks(3)[0])))
		}
		if errs[0] != nil && errs[1] != nil && errs[2] != nil {
			t.Errorf("old snapshot %s: %v", s.ID.Short(), errors.Join(errs...))
		}
		old++
	}
	least, most := 3, 3
	if work == "forget" {
		least = 1
		if done {
			most = 1
		}
	}
	if old < least || old > most {
		t.Errorf("%d old snapshots, want %d to %d", old, least, most)
	}
	if (work != "backup" && fresh > 0) || (work == "backup" && done && fresh == 0) {
		t.Errorf("%d new snapshots", fresh)
	}
	wantSound(t, r.Repository)
}

func TestKilledAtEveryWriteLeavesASoundRepository(t *testing.T) {
	prepared := prepare(t)
	for _, work := range []string{"backup", "forget", "prune"} {
		for _, when := range []string{"before", "after"} {
			t.Run(work+" "+when, func(t *testing.T) {
				t.Parallel()
				for n := 1; ; n++ {
					p := peers.Local(t)
					if out, err := exec.Command("cp", "-a", prepared.Location, p.Location).CombinedOutput(); err != nil {
						t.Fatalf("cp: %v\n%s", err, out)
					}
					out, err := start(t, p, "killed", fmt.Sprintf("%s %s %d", work, when, n)).CombinedOutput()
					if err == nil {
						if n < 4 { // locks, and something between them
							t.Errorf("only %d writes", n-1)
						}
						judge(t, p, work, true)
						t.Logf("killed at each of %d writes", n-1)
						return
					}
					exit := (*exec.ExitError)(nil)
					if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
						t.Fatalf("write %d: %v\n%s", n, err, out)
					}
					judge(t, p, work, false)
					// The lock of the dead is in nobody's way.
					if out, err := start(t, p, "killed", work+" never 0").CombinedOutput(); err != nil {
						t.Fatalf("rerun after write %d: %v\n%s", n, err, out)
					}
					judge(t, p, work, true)
					if n%6 == 3 { // restic takes a second or two to start
						restic019 := peers.Restic(t, p)
						restic019.Run("unlock") // as restic, shared locks of the dead wait for that
						restic019.Run("check", "--read-data")
					}
					if t.Failed() {
						t.Fatalf("killed %s write %d of %s", when, n, work)
					}
				}
			})
		}
	}
}

// ackJob commits one snapshot after another and prints its host once Commit returned.
func ackJob(ctx context.Context, argument string) (err error) {
	first, err := strconv.Atoi(argument)
	if err != nil {
		return err
	}
	r, err := openHere(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	for i := first; ; i++ {
		if _, err := back(ctx, r.Repository, fmt.Sprint(i), ackChunks(i)); err != nil {
			return err
		}
		fmt.Println(i)
	}
}

func ackChunks(i int) [][]byte { return content(byte(i), 3, 400_000) }

// The instants are random: between operations as above, but also within them.
func TestKilledAtAnyInstantKeepsWhatWasAcknowledged(t *testing.T) {
	p := peers.Local(t)
	initPeer(t, p)
	acknowledged := map[string]bool{}
	next := 0
	for range 8 {
		cmd := start(t, p, "ack", strconv.Itoa(next))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		if lines.Scan() { // it is at work
			acknowledged[lines.Text()] = true
		}
		killer := time.AfterFunc(time.Duration(rand.Int64N(int64(600*time.Millisecond))), func() { _ = cmd.Process.Kill() })
		for lines.Scan() {
			acknowledged[lines.Text()] = true
		}
		if err := cmd.Wait(); err == nil || killer.Stop() {
			t.Fatalf("the process ended by itself: %v", err)
		}
		next += 25
	}
	r := openPeer(t, p)
	defer func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}()
	t.Logf("%d snapshots acknowledged by 8 processes", len(acknowledged))
	for _, s := range snapshots(t, r.Repository) {
		i, err := strconv.Atoi(s.Hostname)
		if err != nil {
			t.Fatal(err)
		}
		if err := holds(t.Context(), r.Repository, s, ackChunks(i)); err != nil {
			t.Error(err)
		}
		delete(acknowledged, s.Hostname)
	}
	if len(acknowledged) > 0 {
		t.Errorf("acknowledged, and lost: %v", acknowledged)
	}
	wantSound(t, r.Repository)
	restic019 := peers.Restic(t, p)
	restic019.Run("unlock")
	restic019.Run("check", "--read-data")
}
