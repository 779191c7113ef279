package repo

import (
	"testing"
	"time"

	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/backend/backendtest/peers"
	"github.com/vmkeep/vmkeep/repo/backend/local"
)

// onDisk makes a repository of ours in a directory and a restic that works on it.
func onDisk(t *testing.T) (*Repository, backend.Backend, *peers.Runner) {
	t.Helper()
	p := peers.Local(t)
	be, err := local.Create(p.Location, 2)
	if err != nil {
		t.Fatal(err)
	}
	r, err := Init(t.Context(), be, InitOptions{Password: peers.Password, KeyTime: time.Nanosecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close(); _ = be.Close() })
	return r, be, peers.Restic(t, p)
}

func wantClean(t *testing.T, r *Repository) *CheckReport {
	t.Helper()
	report, err := r.Check(t.Context(), CheckOptions{ReadData: ReadData{All: true}})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range report.Findings {
		t.Errorf("check: %s: %s", f.Severity, f.Text)
	}
	return report
}

func TestResticAcceptsOurRepository(t *testing.T) {
	r, _, restic := onDisk(t)
	files := map[string][]byte{"disk": noise(1, 40e6), "b": noise(2, 5), "empty": {}, "zeros": make([]byte, 3e6)}
	if _, err := commitFiles(t.Context(), r, "vm", files); err != nil {
		t.Fatal(err)
	}
	restic.Run("check", "--read-data")
	report := wantClean(t, r)
	if report.Snapshots != 1 || report.Trees != 2 || report.Files != 4 || report.PacksRead != report.Packs || report.Packs == 0 {
		t.Errorf("report: %+v", report)
	}
}
