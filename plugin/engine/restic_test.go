package engine_test

import (
	"crypto/sha256"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/repo/backend/backendtest/peers"
)

// restic is the real one, on the rig's repository.
func (r *rig) restic() *peers.Runner {
	return peers.Restic(r.t, peers.Peer{Location: r.config.Repository.Location})
}

func TestResticWorksOnPoints(t *testing.T) {
	r := newRig(t, oneDisk())
	r.scribble(seeded(11), "db", bigKey, mediumSize, 20, 1<<20)
	first := r.backup("db", nil)
	r.scribble(seeded(12), "db", bigKey, mediumSize, 5, 200<<10)
	point := r.backup("db", nil)
	want := r.sum("db", bigKey, mediumSize)
	restic := r.restic()

	restic.Run("check", "--read-data")
	if out := restic.Run("snapshots", "--host", "db", "--path", "/db"); !strings.Contains(out, point.ID[:8]) || !strings.Contains(out, first.ID[:8]) || !strings.Contains(out, "48.000 MiB") {
		t.Errorf("restic snapshots does not show the points with their size:\n%s", out)
	}
	ls := restic.Run("ls", point.ID)
	for _, name := range []string{"/db/vm.json", "/db/db.vmx", "/db/scsi0-0.vmdk", "/db/scsi0-0/0000/flat.vmdk"} {
		if !strings.Contains(ls, name) {
			t.Errorf("restic ls does not show %s:\n%s", name, ls)
		}
	}
	if r.dumped(point, "/db/scsi0-0/0000/flat.vmdk") != want {
		t.Error("restic dump gives other bytes than the disk has")
	}

	dir := t.TempDir()
	restic.Run("restore", point.ID, "--target", dir, "--sparse")
	text, err := os.ReadFile(filepath.Join(dir, "db", "scsi0-0.vmdk"))
	r.must(err)
	h := sha256.New()
	for _, e := range extentsOf(t, string(text)) {
		f, err := os.Open(filepath.Join(dir, "db", e))
		r.must(err)
		_, err = io.Copy(h, f)
		r.must(err)
		r.must(f.Close())
	}
	if [32]byte(h.Sum(nil)) != want {
		t.Error("the extents of the restored descriptor do not add up to the disk")
	}
}

// dumped hashes a file of a point as restic gives it out.
func (r *rig) dumped(p plugin.Point, file string) (s content) {
	r.t.Helper()
	dump := r.restic().Command("dump", p.ID, file)
	pipe, err := dump.StdoutPipe()
	r.must(err)
	r.must(dump.Start())
	h := sha256.New()
	_, err = io.Copy(h, pipe)
	r.must(err)
	r.must(dump.Wait())
	h.Sum(s[:0])
	return s
}

// extentsOf lists the files that a VMDK descriptor names, in order.
func extentsOf(t *testing.T, descriptor string) (files []string) {
	for line := range strings.Lines(descriptor) {
		if strings.HasPrefix(line, "RW ") {
			files = append(files, strings.Split(line, `"`)[1])
		}
	}
	if len(files) == 0 {
		t.Fatalf("no extents in\n%s", descriptor)
	}
	return files
}

// What restic copied into another repository, with another polynomial and other snapshot ids, restores as well.
func TestPointCopiedByResticRestores(t *testing.T) {
	r := newRig(t, oneDisk())
	r.scribble(seeded(21), "db", bigKey, mediumSize, 20, 1<<20)
	r.backup("db", nil)
	want := r.sum("db", bigKey, mediumSize)
	other := peers.Local(t)
	copier := peers.Restic(t, other)
	copier.Run("init")
	from := filepath.Join(t.TempDir(), "password")
	r.must(os.WriteFile(from, []byte(password), 0o600))
	copier.Run("copy", "--from-repo", r.config.Repository.Location, "--from-password-file", from)

	c := r.config
	c.Repository.Location, c.Repository.Password = other.Location, peers.Password
	r.must(r.Configure(t.Context(), c))
	dir := t.TempDir()
	_, err := r.Restore(t.Context(), plugin.RestoreRequest{Machine: "db", Mode: plugin.RestoreDirectory, Directory: dir, Format: plugin.FormatRaw}, nil)
	r.must(err)
	if r.fileSum(filepath.Join(dir, "db", "scsi0-0.raw")) != want {
		t.Error("the disk restored from the copy differs")
	}
	report, err := r.Check(t.Context(), plugin.CheckRequest{ReadData: true}, nil)
	r.must(err)
	if len(report.Errors) > 0 {
		t.Errorf("our check of restic's repository: %+v", report.Errors)
	}
}
