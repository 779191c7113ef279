//go:build unix

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmkeep/vmkeep/repo"
	"github.com/vmkeep/vmkeep/repo/backend/backendtest/peers"
	"github.com/vmkeep/vmkeep/repo/backend/local"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// keeper is a home whose repository the real restic opens too.
func keeper(t *testing.T) (home, *peers.Runner) {
	t.Helper()
	dir := t.TempDir()
	l, err := startLab(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	h := home{t: t, dir: dir, lab: l, password: peers.Password}
	h.must("init")
	return h, peers.Restic(t, peers.Peer{Location: filepath.Join(dir, "repo")})
}

// must runs a command that has to succeed, and returns its output.
func (h home) must(args ...string) string {
	h.t.Helper()
	code, out := h.run(args...)
	if code != 0 {
		h.t.Fatalf("vmkeep %s: exit code %d\n%s", strings.Join(args, " "), code, out)
	}
	return out
}

// TestLocksOfTheDeadAreRemoved: restic is killed while it holds a lock.
func TestLocksOfTheDeadAreRemoved(t *testing.T) {
	h, r := keeper(t)
	locks := filepath.Join(h.dir, "repo", "locks")
	backup := r.Command("backup", "--stdin")
	stdin, err := backup.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	if err := backup.Start(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; {
		if names, err := os.ReadDir(locks); err == nil && len(names) > 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("restic takes no lock")
		}
		time.Sleep(20 * time.Millisecond) // another process writes a file: there is nothing to wait on
	}
	if out := h.must("unlock"); !strings.Contains(out, "0 locks removed, 1 left") {
		t.Errorf("a living process's lock:\n%s", out)
	}
	if err := backup.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = backup.Wait()
	if out := h.must("unlock"); !strings.Contains(out, "1 lock removed, 0 left") {
		t.Errorf("a dead process's lock:\n%s", out)
	}
	h.must("prune")
}

// TestSnapshotsOfResticAreLeftToRestic: they lie in the same repository, are not listed, and the error says who restores them.
func TestSnapshotsOfResticAreLeftToRestic(t *testing.T) {
	dir := t.TempDir()
	h := home{t: t, dir: dir, password: peers.Password}
	h.must("init")
	r := peers.Restic(t, peers.Peer{Location: filepath.Join(dir, "repo")})
	r.Dir = dir
	if err := os.WriteFile(filepath.Join(dir, "letter"), []byte("dear reader"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.Run("backup", "letter")
	var snapshots []struct{ ID string }
	if err := json.Unmarshal([]byte(r.Run("snapshots", "--json")), &snapshots); err != nil || len(snapshots) != 1 {
		t.Fatalf("%d snapshots, %v", len(snapshots), err)
	}
	if out := h.must("points"); !strings.Contains(out, "no points") {
		t.Errorf("points:\n%s", out)
	}
	code, out := h.run("restore", snapshots[0].ID, "--to", filepath.Join(dir, "to"))
	if code != exitFailure || !strings.Contains(out, "-> restore it with restic: `restic restore "+snapshots[0].ID[:8]) {
		t.Errorf("exit code %d\n%s", code, out)
	}
	h.must("check", "--read-data")
}

// TestKeysOpenBothWays: keys that vmkeep makes open the repository for restic, and the reverse.
func TestKeysOpenBothWays(t *testing.T) {
	h, r := keeper(t)
	file := func(password string) string {
		path := filepath.Join(h.dir, password)
		if err := os.WriteFile(path, []byte(password+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	as := func(password string) home { h := h; h.password = password; return h }
	h.must("key", "add", "--new-password-file", file("second"), "--user", "eve", "--host", "proxy")
	r.Run("key", "add", "--new-password-file", file("third"))
	for _, password := range []string{peers.Password, "second", "third"} {
		as(password).must("points")
	}
	var second string
	for line := range strings.Lines(h.must("key", "list", "--json")) {
		var k struct{ ID, Username string }
		if err := json.Unmarshal([]byte(line), &k); err != nil {
			t.Fatal(err)
		}
		if k.Username == "eve" {
			second = k.ID
		}
	}
	if code, out := as("second").run("key", "remove", second[:10]); code != 1 || !strings.Contains(out, "-> ") {
		t.Errorf("the key in use was removed: %d\n%s", code, out)
	}
	h.must("key", "remove", second[:10])
	if code, out := as("second").run("points"); code != exitWrongPassword {
		t.Errorf("a removed key: exit code %d\n%s", code, out)
	}
	as("third").must("key", "passwd", "--new-password-file", file("fourth"))
	if code, out := as("third").run("points"); code != exitWrongPassword {
		t.Errorf("the old password: exit code %d\n%s", code, out)
	}
	as("fourth").must("points")
	if code, out := h.run("key", "add"); code != 1 || !strings.Contains(out, "--new-password-file") {
		t.Errorf("no new password: exit code %d\n%s", code, out)
	}
}

// TestDamagedPointsAreRepaired follows what "vmkeep repair" tells to do, with the machine gone first, and then back: zeros
// of a repaired point are never taken for the machine's content.
func TestDamagedPointsAreRepaired(t *testing.T) {
	h, r := keeper(t)
	h.must("backup", "web")
	if out := h.must("stats"); !regexp.MustCompile(`web +1 +32\.0 MiB`).MatchString(out) {
		t.Errorf("stats:\n%s", out)
	}
	pack := largestPack(t, filepath.Join(h.dir, "repo"))
	data, err := os.ReadFile(pack)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := errors.Join(os.Chmod(pack, 0o600), os.WriteFile(pack, data, 0o600)); err != nil {
		t.Fatal(err)
	}
	if code, out := h.run("check", "--read-data"); code != exitFailure || !strings.Contains(out, "vmkeep repair index") {
		t.Errorf("damage: exit code %d, and it does not say what to do\n%s", code, out)
	}
	if out := h.must("repair", "index", "--read-data", "--dry-run"); !strings.Contains(out, "would be repaired") {
		t.Errorf("dry run:\n%s", out)
	}
	if out := h.must("repair", "index", "--read-data"); !strings.Contains(out, "was repaired") || !strings.Contains(out, "1 chunk lost") {
		t.Errorf("repair index:\n%s", out)
	}
	if out := h.must("repair", "index"); !strings.Contains(out, "as it should be") {
		t.Errorf("a second repair brings back what is lost:\n%s", out)
	}
	if code, out := h.run("check"); code != exitFailure || !strings.Contains(out, "vmkeep repair points") {
		t.Errorf("lost chunk: exit code %d, and it does not say what to do\n%s", code, out)
	}
	out := h.must("repair", "points", "--forget")
	if !regexp.MustCompile(`disk scsi0-0: [0-9.]+ [KM]iB lost, now zeros, at [0-9]+\+[0-9]+`).MatchString(out) || !strings.Contains(out, "1 point damaged") {
		t.Errorf("repair points:\n%s", out)
	}
	h.must("check", "--read-data")
	r.Run("check", "--read-data")
	want, err := os.ReadFile(filepath.Join(h.dir, "web.img"))
	if err != nil {
		t.Fatal(err)
	}
	first := h.restored("repaired")
	if len(first) != len(want) || bytes.Equal(first, want) {
		t.Error("the repaired point is whole, or not as long: the test tests nothing")
	}
	for i := range first {
		if first[i] != want[i] && first[i] != 0 {
			t.Fatalf("byte %d moved", i)
		}
	}
	if out := h.must("backup", "web"); !strings.Contains(out, "previous point was repaired") {
		t.Errorf("the next backup trusts a repaired point:\n%s", out)
	}
	if !bytes.Equal(h.restored("healed"), want) {
		t.Error("the zeros of a repaired point came into the next one")
	}
}

// restored is the first disk of the newest point.
func (h home) restored(name string) []byte {
	h.t.Helper()
	to := filepath.Join(h.dir, name)
	h.must("restore", "latest", "--machine", "web", "--mode", "directory", "--to", to, "--disk", "scsi0-0")
	var data []byte
	err := filepath.WalkDir(to, func(path string, d fs.DirEntry, err error) error {
		if err == nil && filepath.Ext(path) == ".raw" {
			data, err = os.ReadFile(path)
		}
		return err
	})
	if err != nil || data == nil {
		h.t.Fatalf("no disk in %s: %v", to, err)
	}
	return data
}

func largestPack(t *testing.T, repository string) string {
	t.Helper()
	packs, err := filepath.Glob(filepath.Join(repository, "data", "*", "*"))
	if err != nil || len(packs) == 0 {
		t.Fatalf("no packs: %v", err)
	}
	return slices.MaxFunc(packs, func(a, b string) int { return int(fileSize(t, a) - fileSize(t, b)) })
}

func fileSize(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// TestPoliciesOnTheCommandLineAreRestics gives both programs the same flags and compares what they would remove.
func TestPoliciesOnTheCommandLineAreRestics(t *testing.T) {
	dir := t.TempDir()
	h := home{t: t, dir: dir, password: peers.Password}
	h.must("init")
	makePoints(t, filepath.Join(dir, "repo"))
	for _, flags := range []string{
		"--keep-last 3", "--keep-last unlimited", "--keep-last unlimited --keep-tag keep", "--keep-hourly 5 --keep-daily 4", "--keep-weekly 3 --keep-monthly 2 --keep-yearly 9",
		"--keep-within 40d", "--keep-within-hourly 10d", "--keep-within-daily 2m --keep-within-weekly 1y", "--keep-within-monthly 2y --keep-within-yearly 9y",
		"--keep-tag keep,blue --keep-last 1", "--keep-tag keep --keep-tag blue --keep-last 1",
	} {
		t.Run(flags, func(t *testing.T) {
			h, r := h, peers.Restic(t, peers.Peer{Location: filepath.Join(dir, "repo")})
			h.t = t
			args := append([]string{"forget", "--dry-run", "--json"}, strings.Fields(flags)...)
			var ours []string
			for line := range strings.Lines(h.must(args...)) {
				var f struct {
					Action string
					Point  struct{ ID string }
				}
				if err := json.Unmarshal([]byte(line), &f); err != nil {
					t.Fatal(err)
				}
				if f.Action == "remove" {
					ours = append(ours, f.Point.ID)
				}
			}
			var groups []struct{ Remove []struct{ ID string } }
			if err := json.Unmarshal([]byte(r.Run(append(args, "--group-by", "host")...)), &groups); err != nil {
				t.Fatal(err)
			}
			var theirs []string
			for _, g := range groups {
				for _, s := range g.Remove {
					theirs = append(theirs, s.ID)
				}
			}
			slices.Sort(ours)
			slices.Sort(theirs)
			if !slices.Equal(ours, theirs) {
				t.Errorf("we would remove %d points, restic %d", len(ours), len(theirs))
			}
		})
	}
}

// makePoints fills a repository with points of one machine at random times, some of them tagged.
func makePoints(t *testing.T, path string) {
	t.Helper()
	store, err := local.Open(path, 0)
	if err != nil {
		t.Fatal(err)
	}
	r, err := repo.Open(t.Context(), store, repo.OpenOptions{Password: peers.Password})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(r.Close(), store.Close()); err != nil {
			t.Error(err)
		}
	}()
	random := rand.New(rand.NewPCG(3, 4))
	at := time.Now().Add(-3 * 365 * 24 * time.Hour)
	for range 120 {
		if at = at.Add(time.Duration(random.ExpFloat64() * float64(200*time.Hour))); at.After(time.Now()) {
			break
		}
		tags := []string{"vmkeep", "vm=5", "vc=6"}
		for _, tag := range []string{"keep", "blue"} {
			if random.IntN(4) == 0 {
				tags = append(tags, tag)
			}
		}
		_, err := r.Commit(t.Context(), func(_ context.Context, w *repo.Writer) (*restic.Snapshot, error) {
			tree, err := w.SaveTree(&restic.Tree{})
			return &restic.Snapshot{Time: at, Tree: &tree, Hostname: "web", Paths: []string{"/web"}, Tags: tags}, err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
