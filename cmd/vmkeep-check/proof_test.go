package main

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/vmkeep/vmkeep/repo"
	"github.com/vmkeep/vmkeep/repo/backend/backendtest/peers"
	"github.com/vmkeep/vmkeep/repo/backend/local"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// twoMachines makes a repository at dir: each of two hosts has a snapshot of one tree with one file of one chunk.
func twoMachines(t *testing.T, dir string, at time.Time) (id string) {
	t.Helper()
	store, err := local.Create(dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	r, err := repo.Init(t.Context(), store, repo.InitOptions{Password: peers.Password, KeyTime: time.Nanosecond})
	if err != nil {
		t.Fatal(err)
	}
	for i, host := range []string{"one", "two"} {
		_, err := r.Commit(t.Context(), func(_ context.Context, w *repo.Writer) (*restic.Snapshot, error) {
			c := w.Content()
			if err := c.Append([]byte(host)); err != nil {
				return nil, err
			}
			ids, err := c.IDs()
			if err != nil {
				return nil, err
			}
			tree, err := w.SaveTree(&restic.Tree{Nodes: []restic.Node{{Name: "disk", Type: restic.FileNode, Size: 3, Content: ids}}})
			return &restic.Snapshot{Time: at.Add(time.Duration(i) * time.Hour), Tree: &tree, Paths: []string{"/"}, Hostname: host}, err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	id = r.ID()
	if err := errors.Join(r.Close(), store.Close()); err != nil {
		t.Fatal(err)
	}
	return id
}

// packFiles are the files below data and their sizes together.
func packFiles(t *testing.T, dir string) (names []string, size int64) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(dir, "data"), func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			names, size = append(names, name), size+info.Size()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names, size
}

func TestProofTellsWhatIsThereAndWhatWasRead(t *testing.T) {
	dir, name := filepath.Join(t.TempDir(), "repo"), filepath.Join(t.TempDir(), "proof.json")
	taken := time.Date(2026, 11, 1, 2, 3, 4, 0, time.UTC)
	id := twoMachines(t, dir, taken)
	packs, bytes := packFiles(t, dir)
	if len(packs) != 4 {
		t.Fatalf("%d packs, not one of data and one of trees for each host", len(packs))
	}
	check := func(want int, args ...string) (record proof) {
		t.Helper()
		p, _, stderr := testProgram(t, map[string]string{"RESTIC_PASSWORD": peers.Password})
		at := taken.Add(24 * time.Hour)
		p.now = func() time.Time { at = at.Add(1500 * time.Millisecond); return at }
		if code := p.run(t.Context(), append([]string{"-r", dir, "--proof", name}, args...)); code != want {
			t.Fatalf("exit code %d: %s", code, stderr)
		}
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(text, &record); err != nil {
			t.Fatal(err)
		}
		if record.Repository != id || record.Location != dir || record.Finished.Sub(record.Started).Seconds() != record.Seconds ||
			record.Started.Before(taken.Add(24*time.Hour)) || record.Seconds < 1.5 {
			t.Errorf("%+v", record)
		}
		return record
	}
	there := verified{Structure: true, Data: "none", Snapshots: 2, Trees: 2, Files: 2, Packs: 4, PackBytes: bytes, Blobs: 4}

	record := check(0)
	if record.Result != "ok" || record.Errors != 0 || record.Verified != there || len(record.Findings) != 0 {
		t.Errorf("without data: %+v", record)
	}
	hosts := map[string]time.Time{}
	for _, n := range record.Newest {
		hosts[n.Host] = n.Time
	}
	if !reflect.DeepEqual(hosts, map[string]time.Time{"one": taken, "two": taken.Add(time.Hour)}) {
		t.Errorf("newest: %v", hosts)
	}

	there.Data, there.PacksRead, there.BytesRead, there.ShareRead = "all", 4, bytes, 1
	if record := check(0, "--read-data"); record.Result != "ok" || record.Verified != there {
		t.Errorf("with data: %+v", record)
	}

	data, err := os.ReadFile(packs[0])
	if err != nil {
		t.Fatal(err)
	}
	data[0] ^= 1
	if err := errors.Join(os.Chmod(packs[0], 0o600), os.WriteFile(packs[0], data, 0o600)); err != nil {
		t.Fatal(err)
	}
	record = check(1, "--read-data")
	if record.Result != "damaged" || record.Errors == 0 || record.Errors+record.Hints != len(record.Findings) || record.Verified.BytesRead != bytes {
		t.Errorf("of a damaged repository: %+v", record)
	}
	told := false
	for _, f := range record.Findings {
		told = told || f.Severity == repo.Error && f.File == "data/"+filepath.Base(packs[0])
	}
	if !told {
		t.Errorf("%s is not named: %+v", packs[0], record.Findings)
	}
}
