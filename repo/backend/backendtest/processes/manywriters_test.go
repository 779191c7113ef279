//go:build unix

package processes_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/vmkeep/vmkeep/repo"
	"github.com/vmkeep/vmkeep/repo/backend/backendtest/peers"
)

const (
	writers = 8
	rounds  = 3
)

// chunksOf is what a writer stores in a round: half its own, half what all writers store at the same time.
func chunksOf(writer, round int) [][]byte {
	return append(content(byte(1+writer*rounds+round), 6, 300_000), content(byte(200+round), 6, 300_000)...)
}

// writeJob waits until its standard input ends, then commits a snapshot in each round.
func writeJob(ctx context.Context, argument string) (err error) {
	writer, err := strconv.Atoi(argument)
	if err != nil {
		return err
	}
	r, err := openHere(ctx, nil)
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := r.Close(); err == nil {
			err = closeErr
		}
	}()
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	for round := range rounds {
		if _, err := back(ctx, r.Repository, fmt.Sprintf("writer-%d-%d", writer, round), chunksOf(writer, round)); err != nil {
			return err
		}
	}
	return nil
}

// runWriters has all writers begin at once and waits for them.
func runWriters(t *testing.T, p peers.Peer) {
	t.Helper()
	type child struct {
		*exec.Cmd
		in  io.Closer
		out *bytes.Buffer
	}
	var children []child
	for writer := range writers {
		cmd := start(t, p, "write", strconv.Itoa(writer))
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		c := child{cmd, in, &bytes.Buffer{}}
		cmd.Stdout, cmd.Stderr = c.out, c.out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		children = append(children, c)
	}
	for _, c := range children {
		if err := c.in.Close(); err != nil {
			t.Error(err)
		}
	}
	for i, c := range children {
		if err := c.Wait(); err != nil {
			t.Errorf("writer %d: %v\n%s", i, err, c.out)
		}
	}
}

// startRestic has the real restic back up a directory meanwhile.
func startRestic(t *testing.T, p peers.Peer) (wait func()) {
	t.Helper()
	dir := t.TempDir()
	for i, chunk := range content(250, 4, 700_000) {
		if err := os.WriteFile(filepath.Join(dir, strconv.Itoa(i)), chunk, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var out bytes.Buffer
	cmd := peers.Restic(t, p).Command("backup", "--host", "restic", dir)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := cmd.Wait(); err != nil {
			t.Errorf("restic backup: %v\n%s", err, &out)
		}
	}
}

// Eight processes, and restic itself, write one repository on S3 at once: each snapshot is there once and whole,
// and restic agrees.
func TestManyWritersOfOneS3RepositoryLoseAndDoubleNothing(t *testing.T) {
	p := peers.S3(t)
	initPeer(t, p)
	wait := startRestic(t, p)
	runWriters(t, p)
	wait()
	if t.Failed() {
		t.FailNow()
	}

	r := openPeer(t, p)
	defer func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}()
	want := map[string][2]int{}
	for writer := range writers {
		for round := range rounds {
			want[fmt.Sprintf("writer-%d-%d", writer, round)] = [2]int{writer, round}
		}
	}
	foreign := 0
	for _, s := range snapshots(t, r.Repository) {
		if s.Hostname == "restic" {
			foreign++
			continue
		}
		who, ok := want[s.Hostname]
		if !ok {
			t.Errorf("snapshot %s of %s is there twice, or nobody's", s.ID.Short(), s.Hostname)
			continue
		}
		delete(want, s.Hostname)
		if err := holds(t.Context(), r.Repository, s, chunksOf(who[0], who[1])); err != nil {
			t.Errorf("%s: %v", s.Hostname, err)
		}
	}
	if len(want) > 0 || foreign != 1 {
		t.Errorf("lost: %v; %d snapshots of restic's", want, foreign)
	}
	before := wantSound(t, r.Repository)
	if locks, err := r.Locks(t.Context()); err != nil || len(locks) > 0 {
		t.Errorf("locks left: %v, %v", locks, err)
	}

	// What several stored in the same instant may lie in several packs, as with restic; what is there is never
	// stored again, and prune leaves one copy.
	const together = 6 // chunks that all writers store in a round
	plan, err := r.Prune(t.Context(), repo.PruneOptions{DryRun: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d snapshots, %d packs, %d blobs, %d copies of chunks stored in the same instant", writers*rounds, before.Packs, before.Blobs, plan.DuplicateBlobs)
	if most := (writers - 1) * rounds * together; plan.DuplicateBlobs > most {
		t.Errorf("%d copies; if all writers stored in the same instant what they have in common, there were %d", plan.DuplicateBlobs, most)
	}
	if before.Blobs != plan.UsedBlobs+plan.DuplicateBlobs || plan.UnusedBlobs != 0 {
		t.Errorf("of %d blobs %d are used, %d copies, %d rubbish", before.Blobs, plan.UsedBlobs, plan.DuplicateBlobs, plan.UnusedBlobs)
	}
	runWriters(t, p)
	r2 := openPeer(t, p)
	defer func() {
		if err := r2.Close(); err != nil {
			t.Error(err)
		}
	}()
	plan2, err := r2.Prune(t.Context(), repo.PruneOptions{DryRun: true})
	if err != nil {
		t.Fatal(err)
	}
	if plan2.DuplicateBlobs > plan.DuplicateBlobs {
		t.Errorf("writing the same again doubled %d chunks", plan2.DuplicateBlobs-plan.DuplicateBlobs)
	}
	if n := plan2.UsedBlobs - plan.UsedBlobs; n != writers*rounds { // a tree each, with other times
		t.Errorf("writing the same again stored %d blobs, not the %d trees", n, writers*rounds)
	}
	if _, err := r2.Prune(t.Context(), repo.PruneOptions{MaxUnused: repo.Unused{None: true}}); err != nil {
		t.Fatal(err)
	}
	if after := wantSound(t, r2.Repository); after.Blobs != plan2.UsedBlobs {
		t.Errorf("%d blobs are left of %d that are used: copies stay", after.Blobs, plan2.UsedBlobs)
	}
	peers.Restic(t, p).Run("check", "--read-data")
}
