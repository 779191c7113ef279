package local_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/backend/backendtest"
	"github.com/vmkeep/vmkeep/repo/backend/local"
	"github.com/vmkeep/vmkeep/repo/restic"
)

func create(t *testing.T) *local.Backend {
	t.Helper()
	b, err := local.Create(filepath.Join(t.TempDir(), "repo"), 0)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestLocalKeepsTheGuarantees(t *testing.T) {
	backendtest.Run(t, func(t *testing.T) backend.Backend { return create(t) })
}

func TestLayoutAndModesAreRestics(t *testing.T) {
	b := create(t)
	modes := map[string]fs.FileMode{"config": 0o400, "data/00": 0o700 | fs.ModeDir, "data/ff": 0o700 | fs.ModeDir, "locks": 0o700 | fs.ModeDir}
	for _, ft := range []restic.FileType{restic.ConfigFile, restic.KeyFile, restic.PackFile, restic.SnapshotFile} {
		data := backendtest.Bytes(50)
		h := backendtest.HandleOf(ft, data)
		if err := b.Save(t.Context(), h, data); err != nil {
			t.Fatal(err)
		}
		switch ft {
		case restic.PackFile:
			modes["data/"+h.Name[:2]+"/"+h.Name] = 0o400
		case restic.KeyFile, restic.SnapshotFile:
			modes[h.String()] = 0o400
		}
	}
	for name, want := range modes {
		info, err := os.Stat(filepath.Join(b.Location(), name))
		if err != nil {
			t.Error(err)
		} else if info.Mode() != want {
			t.Errorf("%s has mode %v, want %v", name, info.Mode(), want)
		}
	}
}

func TestGroupSharesTheRepositoryWhenItsConfigSaysSo(t *testing.T) {
	b := create(t)
	if err := b.Save(t.Context(), backend.Handle{Type: restic.ConfigFile}, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(b.Location(), "config"), 0o440); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(b.Location(), "data")); err != nil {
		t.Fatal(err)
	}
	b, err := local.Open(b.Location(), 0)
	if err != nil {
		t.Fatal(err)
	}
	data := backendtest.Bytes(50)
	h := backendtest.HandleOf(restic.PackFile, data)
	if err := b.Save(t.Context(), h, data); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(b.Location(), "data", h.Name[:2])
	for name, want := range map[string]fs.FileMode{dir: 0o750 | fs.ModeDir, filepath.Join(dir, h.Name): 0o440} {
		if info, err := os.Stat(name); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v; want mode %v", name, info.Mode(), err, want)
		}
	}
}

func TestListSkipsWhatIsNoFileOfTheRepository(t *testing.T) {
	b := create(t)
	name := strings.Repeat("ab", 32)
	for _, junk := range []string{"keys/" + name + "-tmp-1234", "keys/README", "data/" + name, "data/ab/" + name[:40], "data/ab/.nfs0001", "data/xyz"} {
		if err := os.WriteFile(filepath.Join(b.Location(), junk), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(b.Location(), "keys", name), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, ft := range []restic.FileType{restic.KeyFile, restic.PackFile} {
		err := b.List(t.Context(), ft, func(info backend.FileInfo) error {
			t.Errorf("List(%s) tells %s", ft, info.Name)
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}

func TestFailedSaveLeavesNoTemporaryFile(t *testing.T) {
	b := create(t)
	data := backendtest.Bytes(100)
	h := backendtest.HandleOf(restic.KeyFile, data)
	// A directory where the file belongs lets Stat find something of another length.
	if err := os.MkdirAll(filepath.Join(b.Location(), "keys", h.Name), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := b.Save(t.Context(), h, data); err == nil {
		t.Error("Save over a directory succeeded")
	}
	entries, err := os.ReadDir(filepath.Join(b.Location(), "keys"))
	if err != nil || len(entries) != 1 {
		t.Errorf("keys holds %v, %v", entries, err)
	}
}

func TestOpenWritesNothingAndReportsAMissingDirectory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none")
	if _, err := local.Open(path, 0); !errors.Is(err, backend.ErrNotExist) {
		t.Errorf("Open: %v", err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open made %s: %v", path, err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := local.Open(file, 0); !errors.Is(err, backend.ErrPermanent) {
		t.Errorf("Open of a file: %v", err)
	}
}
