package repo

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmkeep/vmkeep/repo/backend/backendtest/peers"
	"github.com/vmkeep/vmkeep/repo/backend/local"
)

// hurtData flips a bit in the middle of the largest pack.
func hurtData(t *testing.T, dir string) {
	t.Helper()
	packs, err := filepath.Glob(filepath.Join(dir, "data", "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	largest, data := "", []byte(nil)
	for _, name := range packs {
		if b, err := os.ReadFile(name); err != nil {
			t.Fatal(err)
		} else if len(b) > len(data) {
			largest, data = name, b
		}
	}
	data[len(data)/2] ^= 1
	if err := errors.Join(os.Chmod(largest, 0o600), os.WriteFile(largest, data, 0o600)); err != nil {
		t.Fatal(err)
	}
}

func loseIndex(t *testing.T, dir string) {
	t.Helper()
	if err := errors.Join(os.RemoveAll(filepath.Join(dir, "index")), os.Mkdir(filepath.Join(dir, "index"), 0o700)); err != nil {
		t.Fatal(err)
	}
}

func TestEachRepairsWhatTheOtherMade(t *testing.T) {
	theirs, _, _ := resticMade(t)
	mine, be, _ := onDisk(t)
	if _, err := newMachine(1).commit(t.Context(), mine, "vm", time.Now()); err != nil {
		t.Fatal(err)
	}
	ours := be.Location()
	for what, c := range map[string]struct {
		made   string
		damage func(t *testing.T, dir string)
		repair func(t *testing.T, r *Repository, peer *peers.Runner)
	}{
		"repair index, by us": {theirs, loseIndex, func(t *testing.T, r *Repository, _ *peers.Runner) {
			if report, err := r.RepairIndex(t.Context(), RepairIndexOptions{}); err != nil || len(report.AddedPacks) == 0 {
				t.Fatalf("%+v, %v", report, err)
			}
		}},
		"repair index, by restic": {ours, loseIndex, func(t *testing.T, _ *Repository, peer *peers.Runner) { peer.Run("repair", "index") }},
		"repair snapshots, by us": {theirs, hurtData, func(t *testing.T, r *Repository, peer *peers.Runner) {
			if report, err := r.RepairIndex(t.Context(), RepairIndexOptions{ReadData: ReadData{All: true}}); err != nil || len(report.LostBlobs) != 1 {
				t.Fatalf("%+v, %v", report, err)
			}
			// Neither of us takes for present what the other knows to be lost.
			peer.Run("repair", "index", "--read-all-packs")
			if again, err := r.RepairIndex(t.Context(), RepairIndexOptions{}); err != nil || len(again.AddedPacks) > 0 {
				t.Errorf("a second repair: %+v, %v", again, err)
			}
			if repaired, err := r.RepairSnapshots(t.Context(), RepairSnapshotsOptions{Forget: true}); err != nil || len(repaired) == 0 {
				t.Fatalf("%+v, %v", repaired, err)
			}
			if _, err := r.Prune(t.Context(), PruneOptions{}); err != nil {
				t.Fatal(err)
			}
		}},
		"repair snapshots, by restic": {ours, hurtData, func(t *testing.T, r *Repository, peer *peers.Runner) {
			report, err := r.Check(t.Context(), CheckOptions{ReadData: ReadData{All: true}})
			if err != nil || report.OK() {
				t.Fatalf("%+v, %v", report, err)
			}
			packs := []string{"repair", "packs"}
			for _, f := range report.Findings {
				if filepath.Dir(f.File) == "data" {
					packs = append(packs, filepath.Base(f.File))
				}
			}
			peer.Dir = t.TempDir() // where restic leaves a copy of the pack
			peer.Run(packs...)
			peer.Run("repair", "snapshots", "--forget")
			peer.Run("prune")
		}},
	} {
		t.Run(what, func(t *testing.T) {
			dir, peer := clone(t, c.made)
			c.damage(t, dir)
			c.repair(t, openDir(t, dir), peer)
			peer.Run("check", "--read-data")
			r := openDir(t, dir)
			wantClean(t, r)
			all, err := r.Snapshots(t.Context())
			if err != nil || len(all) == 0 {
				t.Fatalf("%d snapshots, %v", len(all), err)
			}
			for _, s := range all {
				contents(t, r, *s.Tree, "", map[string][]byte{})
				peer.Run("restore", s.ID.String(), "--target", t.TempDir())
			}
		})
	}
}

func TestOurKeysOnWhatResticMade(t *testing.T) {
	dir, peer, _ := resticMade(t)
	r := openDir(t, dir)
	if _, err := r.ChangePassword(t.Context(), KeyOptions{Password: "another", KeyTime: 1}); err != nil {
		t.Fatal(err)
	}
	if res := peer.Try("snapshots"); res.Code != 12 {
		t.Errorf("restic opens it with the old password: %+v", res)
	}
	id, err := r.AddKey(t.Context(), KeyOptions{Password: peers.Password, KeyTime: 1})
	if err != nil {
		t.Fatal(err)
	}
	peer.Run("snapshots")
	if err := r.RemoveKey(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if res := peer.Try("snapshots"); res.Code != 12 {
		t.Errorf("restic opens it with a removed key: %+v", res)
	}
}

func TestTheLockOfAKilledResticIsRemoved(t *testing.T) {
	dir, peer, _ := resticMade(t)
	cmd := peer.Command("backup", "--stdin")
	in, err := cmd.StdinPipe() // it waits for what never comes
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	be, err := local.Open(dir, 2)
	if err != nil {
		t.Fatal(err)
	}
	r := mustOpen(t, be)
	for tick := time.Tick(20 * time.Millisecond); ; <-tick {
		locks, err := r.Locks(t.Context())
		if err == nil && len(locks) == 1 && locks[0].PID == cmd.Process.Pid {
			break
		}
		if t.Context().Err() != nil {
			t.Fatalf("%v, %v", locks, err)
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	// Of restic's processes it is not known in which container they are: so young a lock is only removed if somebody says so.
	var locked *LockedError
	if err := r.WithLock(t.Context(), Exclusive, nothing); !errors.As(err, &locked) || !locked.Gone {
		t.Errorf("%v", err)
	}
	if removed, err := r.Unlock(t.Context()); err != nil || len(removed) != 1 {
		t.Errorf("%v, %v", removed, err)
	}
	peer.Run("prune")
}

func TestEveryCommandOfResticHasACounterpartOrIsLeftToIt(t *testing.T) {
	// counterparts names what of ours does what each command of restic does with a repository, whoever made it. Where there is none
	// restic itself is to be used: it works on our repositories as on its own, see TestEveryCommandOfResticWorksOnOurRepository.
	counterparts := map[string]string{
		"check": "vmkeep-check", "forget": "Forget", "init": "Init", "key": "AddKey, RemoveKey, ChangePassword", "prune": "Prune",
		"repair": "RepairIndex, RepairSnapshots", "snapshots": "Snapshots", "stats": "Stats", "unlock": "Unlock", "list": "Locks, Keys, Snapshots",
		"cat": "LoadSnapshot, LoadTree", "ls": "LoadTree", "backup": "Commit",
		"copy": "", "diff": "", "dump": "", "find": "", "mount": "", "recover": "", "restore": "", "rewrite": "", "tag": "", "migrate": "",
		"cache": "", // of its own cache
	}
	peer := peers.Restic(t, peers.Local(t))
	_, list, _ := strings.Cut(peer.Run("help"), "Available Commands:\n")
	list, _, _ = strings.Cut(list, "\n\n")
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	known := 0
	for line := range strings.Lines(list) {
		command := strings.Fields(line)[0]
		if !strings.Contains(string(readme), "`"+command) {
			t.Errorf("the table in README.md does not tell what to use for restic %s", command)
		}
		if _, ok := counterparts[command]; !ok {
			t.Errorf("nobody decided about restic %s", command)
		}
		known++
	}
	if known != len(counterparts) {
		t.Errorf("restic has %d commands, the table %d", known, len(counterparts))
	}
}
