package engine_test

import (
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/vsphere/lab"
)

// A repository that takes no lock, as on storage that cannot be written, is restored from without one. Nothing is backed up
// into it, and no machine is touched for that.
func TestRepositoryThatTakesNoLockIsReadWithoutOne(t *testing.T) {
	r := newRig(t, oneDisk())
	r.scribble(seeded(71), "db", bigKey, mediumSize, 3, 1<<20)
	point := r.backup("db", nil)
	locks := filepath.Join(r.config.Repository.Location, "locks")
	r.must(os.RemoveAll(locks))
	r.must(os.WriteFile(locks, nil, 0o400))
	restore := func() (string, error) {
		dir := t.TempDir()
		_, err := r.Restore(t.Context(), plugin.RestoreRequest{Point: point.ID, Mode: plugin.RestoreDirectory, Directory: dir}, nil)
		return filepath.Join(dir, "db", "scsi0-0.raw"), err
	}
	_, err := restore()
	failsWith(t, err, plugin.CodeRepository, "locks")

	config := r.config
	config.Repository.NoLock = true
	r.must(r.Configure(t.Context(), config))
	file, err := restore()
	r.must(err)
	if r.fileSum(file) != r.sum("db", bigKey, mediumSize) {
		t.Error("the restored disk differs")
	}
	report, err := r.Check(t.Context(), plugin.CheckRequest{ReadData: true}, nil)
	if err != nil || len(report.Errors) > 0 {
		t.Errorf("check: %+v, %v", report.Errors, err)
	}
	defer r.lab.Inject(lab.Fault{Method: "CreateSnapshotEx_Task", Do: func(w http.ResponseWriter, q *http.Request, next http.Handler) {
		t.Error("a snapshot is taken")
		next.ServeHTTP(w, q)
	}})()
	_, err = r.Backup(t.Context(), plugin.BackupRequest{Selection: plugin.Selection{Names: []string{"db"}}}, nil)
	failsWith(t, err, plugin.CodeInvalid, "--no-lock")
	r.must(os.Remove(locks))
	r.must(os.Mkdir(locks, 0o700))
	r.must(r.Configure(t.Context(), r.config))
}
