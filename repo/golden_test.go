package repo

import (
	"archive/tar"
	"compress/gzip"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmkeep/vmkeep/repo/backend/local"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// unpackGolden unpacks a repository from testdata/golden, whose recipe lies beside it.
func unpackGolden(t *testing.T, name string) string {
	t.Helper()
	f, err := os.Open(filepath.Join("..", "testdata", "golden", name+".tar.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	tr := tar.NewReader(z)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return filepath.Join(dir, name)
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, h.Name)
		if h.Typeflag == tar.TypeDir {
			err = os.MkdirAll(path, 0o700)
		} else {
			var data []byte
			if data, err = io.ReadAll(tr); err == nil {
				err = os.WriteFile(path, data, 0o600)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// goldenFiles are the names and hashes of the newest snapshot's files.
func goldenFiles(t *testing.T) map[string]string {
	t.Helper()
	list, err := os.ReadFile(filepath.Join("..", "testdata", "golden", "files.sha256"))
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string]string)
	for line := range strings.Lines(string(list)) {
		sum, name, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "  ")
		if !ok {
			t.Fatalf("%q", line)
		}
		out[name] = sum
	}
	return out
}

func TestGoldenRepositoriesAreRead(t *testing.T) {
	for _, c := range []struct {
		name               string
		version, snapshots int
		passwords          []string
	}{
		{"v1", 1, 2, []string{"golden"}}, {"v2", 2, 2, []string{"golden", "second"}}, {"pruned", 2, 1, []string{"second", "golden"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			be, err := local.Open(unpackGolden(t, c.name), 2)
			if err != nil {
				t.Fatal(err)
			}
			for _, pw := range c.passwords {
				r, err := Open(t.Context(), be, OpenOptions{Password: pw})
				if err != nil {
					t.Fatal(err)
				}
				if r.Config().Version != c.version {
					t.Errorf("version %d", r.Config().Version)
				}
				if report := wantClean(t, r); report.Snapshots != c.snapshots {
					t.Errorf("%d snapshots", report.Snapshots)
				}
				s, err := r.LoadSnapshot(t.Context(), "latest")
				if err != nil || s.Hostname != "golden" || s.Summary == nil {
					t.Fatalf("%+v, %v", s, err)
				}
				got := make(map[string][]byte)
				contents(t, r, *s.Tree, "", got)
				want := goldenFiles(t)
				if c.version == 1 {
					delete(want, "vm/zeros")
				}
				for name, sum := range want {
					id := restic.Hash(got[name])
					if _, ok := got[name]; !ok || hex.EncodeToString(id[:]) != sum {
						t.Errorf("%q is missing or different", name)
					}
				}
				if len(got) != len(want) {
					t.Errorf("%d files, want %d", len(got), len(want))
				}
				if err := r.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}
