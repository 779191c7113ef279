package engine_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/vddk/nfc/nfctest"
)

// A restore over a machine's disks that a write ended, or its host, says why, is listed, and the same restore again
// completes it.
func TestFailedRestoreOverDisksIsCompletedByAnother(t *testing.T) {
	r := newRig(t, oneDisk())
	point, want := pointAndChange(r)
	r.must(r.lab.Machine("db").PowerOff())
	for _, c := range []struct {
		name    string
		nfc     nfctest.Scenario
		library string
		cancel  bool
		code    plugin.Code
	}{
		{"datastore full", nfctest.Scenario{WriteFails: &nfctest.Failure{Code: 8, Text: "There is not enough space on the file system"}}, "fault Write code=8", false, plugin.CodeSpace},
		{"write fails", nfctest.Scenario{WriteFails: &nfctest.Failure{Code: 1, Text: "Input/output error"}}, "fault Write code=14009", false, plugin.CodeTransport},
		{"cancelled", nfctest.Scenario{WriteDelay: 1e8}, "fault Write delay=100", true, plugin.CodeCancelled}, // slow enough to be caught writing
	} {
		for _, mode := range []plugin.RestoreMode{plugin.RestoreInPlace, plugin.RestoreRollback} {
			if c.cancel && mode == plugin.RestoreRollback {
				continue // it writes too little to be caught
			}
			t.Run(c.name+" "+string(mode), func(t *testing.T) {
				r.must(r.lab.Machine("db").PowerOn())
				r.scribble(seeded(601), "db", bigKey, mediumSize, 3, 1<<20)
				r.must(r.lab.Machine("db").PowerOff())
				r.lab.NFC().SetScenario(c.nfc)
				r.at.control(c.library)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				req := plugin.RestoreRequest{Point: point.ID, Mode: mode}
				_, err := r.Restore(ctx, req, func(ev plugin.Event) {
					if c.cancel && ev.Phase == plugin.PhaseRestore {
						cancel()
					}
				})
				r.lab.NFC().SetScenario(nfctest.Scenario{})
				r.at.control()
				failsWith(t, err, c.code, "")
				r.noTraces("db")
				r.listsOnlyOverwrites()
				if report, err := r.Recover(t.Context(), nil); err != nil || len(report.Remaining) != 1 {
					t.Errorf("half a restore is not listed: %+v, %v", report, err)
				}
				_, err = r.Restore(t.Context(), req, r.note)
				r.must(err)
				if r.sum("db", bigKey, mediumSize) != want {
					t.Error("the disk is not what the point says")
				}
				r.journalIsEmpty()
			})
		}
	}
	r.backsUpAgain("db")
}

// A restore to a file system that is full says so, and goes on when there is room.
func TestFullFileSystemEndsARestoreToFiles(t *testing.T) {
	r := newRig(t, oneDisk())
	p := make([]byte, 40<<20)
	fill(seeded(611), p)
	r.guest("db", bigKey, p, 1<<20)
	point := r.backup("db", nil)
	want := r.sum("db", bigKey, mediumSize)
	for _, format := range []plugin.RestoreFormat{plugin.FormatRaw, plugin.FormatStreamOptimized, plugin.FormatOVA} {
		t.Run(string(format), func(t *testing.T) {
			dir := smallFileSystem(t, "24m")
			req := plugin.RestoreRequest{Point: point.ID, Mode: plugin.RestoreDirectory, Directory: dir, Format: format, Sparse: true}
			_, err := r.Restore(t.Context(), req, r.note)
			failsWith(t, err, plugin.CodeSpace, "")
			mark := map[plugin.RestoreFormat]string{plugin.FormatOVA: "db.incomplete"}[format]
			if mark == "" {
				mark = filepath.Join("db", "scsi0-0.incomplete")
			}
			if _, err := os.Stat(filepath.Join(dir, mark)); err != nil {
				t.Error("nothing says that the files are not whole:", err)
			}
			if out, err := exec.Command("mount", "-o", "remount,size=160m", dir).CombinedOutput(); err != nil {
				t.Fatalf("make room: %v: %s", err, out)
			}
			_, err = r.Restore(t.Context(), req, r.note)
			r.must(err)
			noneIncomplete(t, dir)
			raw := filepath.Join(dir, "db", "scsi0-0.raw")
			switch format {
			case plugin.FormatOVA:
				untar(t, filepath.Join(dir, "db.ova"))
				return
			case plugin.FormatStreamOptimized:
				qemuImg(t, "convert", "-O", "raw", filepath.Join(dir, "db", "scsi0-0.vmdk"), raw)
			}
			if r.fileSum(raw) != want {
				t.Error("the file is not what the point says")
			}
		})
	}
}
