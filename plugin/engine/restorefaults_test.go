package engine_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/repo/backend/backendtest/peers"
	"github.com/vmkeep/vmkeep/vddk/nfc/nfctest"
	"github.com/vmkeep/vmkeep/vsphere/lab"
)

// dataPacks are the files of packs that hold chunks of the point's disks, as restic tells.
func (r *rig) dataPacks() (files []string) {
	r.t.Helper()
	for _, id := range strings.Fields(r.restic().Run("list", "packs")) {
		files = append(files, filepath.Join(r.config.Repository.Location, "data", id[:2], id))
	}
	slices.SortFunc(files, func(a, b string) int { return int(size(r.t, b) - size(r.t, a)) })
	return files // large ones first: packs of trees are small
}

func size(t *testing.T, name string) int64 {
	t.Helper()
	st, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	return st.Size()
}

// A pack that is gone costs its bytes: said by extent, zeros on request, everything else as it was. The same when
// restic has repaired the index, which then does not tell the lost chunks' lengths any more.
func TestLostPackCostsItsExtentsOnly(t *testing.T) {
	for _, repaired := range []bool{false, true} {
		t.Run(fmt.Sprintf("repaired %v", repaired), func(t *testing.T) {
			r := newRig(t, oneDisk())
			p := make([]byte, 40<<20)
			fill(seeded(60), p)
			r.guest("db", bigKey, p, 1<<20)
			point := r.backup("db", nil)
			want := r.live("db", bigKey)
			r.must(os.Remove(r.dataPacks()[0]))
			if repaired {
				r.restic().Run("repair", "index")
			}
			req := plugin.RestoreRequest{Point: point.ID, Mode: plugin.RestoreDirectory, Directory: t.TempDir(), Sparse: true}
			_, err := r.Restore(t.Context(), req, r.note)
			failsWith(t, err, plugin.CodeDamaged, "allow-missing")
			for _, format := range []plugin.RestoreFormat{plugin.FormatRaw, plugin.FormatStreamOptimized} {
				req.Directory, req.Format, req.AllowMissing, req.Verify = t.TempDir(), format, true, true
				report, err := r.Restore(t.Context(), req, r.note)
				r.must(err)
				lost := report.Disks[0].Lost
				if len(lost) == 0 || len(report.Notes) == 0 {
					t.Fatalf("nothing is said to be lost: %+v", report)
				}
				expect := bytes.Clone(want)
				var n int64
				for _, e := range lost {
					clear(expect[e.Off : e.Off+e.Len])
					n += e.Len
				}
				if limit := int64(30 << 20); n < 1<<20 || n > limit && !repaired {
					t.Errorf("%d bytes are lost, of a pack of 16 MiB", n)
				}
				file := filepath.Join(req.Directory, "db", "scsi0-0.raw")
				if format != plugin.FormatRaw {
					qemuImg(t, "convert", "-O", "raw", filepath.Join(req.Directory, "db", "scsi0-0.vmdk"), file)
				}
				got, err := os.ReadFile(file)
				r.must(err)
				if !bytes.Equal(got, expect) {
					t.Errorf("repaired %v, %s: the rest of the disk is not what it was", repaired, format)
				}
			}
		})
	}
}

// Over disks that exist, what the repository lost stays as it is there, and the rest becomes what the point says: also
// when the lengths of the lost chunks are lost with them.
func TestLostDataLeavesExistingDisksAsTheyAre(t *testing.T) {
	for _, repaired := range []bool{false, true} {
		for _, mode := range []plugin.RestoreMode{plugin.RestoreInPlace, plugin.RestoreRollback} {
			t.Run(fmt.Sprintf("%s, repaired %v", mode, repaired), func(t *testing.T) {
				r := newRig(t, oneDisk())
				p := make([]byte, 40<<20)
				fill(seeded(60), p)
				r.guest("db", bigKey, p, 1<<20)
				point := r.backup("db", nil)
				want := r.live("db", bigKey)
				fill(seeded(64), p)
				r.guest("db", bigKey, p, 1<<20)
				r.must(r.lab.Machine("db").PowerOff())
				before := r.live("db", bigKey)
				r.must(os.Remove(r.dataPacks()[0]))
				if repaired {
					r.restic().Run("repair", "index")
				}
				report, err := r.Restore(t.Context(), plugin.RestoreRequest{Point: point.ID, Mode: mode, AllowMissing: true, Verify: true}, r.note)
				r.must(err)
				lost := report.Disks[0].Lost
				if len(lost) == 0 || !slices.ContainsFunc(report.Notes, func(d plugin.Diagnostic) bool { return strings.Contains(d.Summary, "stays as it was") }) {
					t.Fatalf("nothing is said to be lost: %+v", report)
				}
				for _, e := range lost {
					copy(want[e.Off:e.Off+e.Len], before[e.Off:])
				}
				if !bytes.Equal(r.live("db", bigKey), want) {
					t.Error("the disk is not what the point says, or not what it was where the repository lost data")
				}
			})
		}
	}
}

// Points come back from an S3 service, and from a repository of format version 1, which has no compression.
func TestRestoreFromOtherRepositories(t *testing.T) {
	for name, c := range map[string]func(t *testing.T, r *rig) peers.Peer{
		"S3": func(t *testing.T, r *rig) peers.Peer {
			p := peers.S3(t)
			peers.Restic(t, p).Run("init")
			return p
		},
		"version 1": func(t *testing.T, r *rig) peers.Peer {
			p := peers.Local(t)
			peers.Restic(t, p).Run("init", "--repository-version", "1")
			return p
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, oneDisk())
			r.scribble(seeded(61), "db", bigKey, mediumSize, 10, 1<<20)
			r.backup("db", nil)
			want := r.sum("db", bigKey, mediumSize)
			other := c(t, r)
			from := filepath.Join(t.TempDir(), "password")
			r.must(os.WriteFile(from, []byte(password), 0o600))
			peers.Restic(t, other).Run("copy", "--from-repo", r.config.Repository.Location, "--from-password-file", from)
			cfg := r.config
			cfg.Repository.Location, cfg.Repository.Environment, cfg.Repository.Options = other.Location, other.Env, other.Options
			r.must(r.Configure(t.Context(), cfg))
			_, err := r.Restore(t.Context(), plugin.RestoreRequest{Machine: "db", Mode: plugin.RestoreNew, Target: plugin.Target{Name: "db2"}, Verify: true}, r.note)
			r.must(err)
			if r.sum("db2", bigKey, mediumSize) != want {
				t.Error("the restored disk differs")
			}
			r.backsUpAgain("db2")
		})
	}
}

// journalIsEmpty fails when a side effect is still announced.
func (r *rig) journalIsEmpty() {
	r.t.Helper()
	err := fs.WalkDir(os.DirFS(r.config.StateDir), ".", func(p string, _ fs.DirEntry, err error) error {
		if strings.HasSuffix(p, ".jsonl") {
			r.t.Errorf("the journal still has %s", p)
		}
		return err
	})
	r.must(err)
}

// What goes wrong while a disk is filled leaves no machine, no disk and no entry in the journal.
func TestFailedRestoreLeavesNothing(t *testing.T) {
	r := newRig(t, oneDisk())
	r.scribble(seeded(62), "db", bigKey, mediumSize, 10, 1<<20)
	point := r.backup("db", nil)
	r.must(r.lab.Machine("db").PowerOff())
	for _, mode := range []plugin.RestoreMode{plugin.RestoreNew, plugin.RestoreAttach} {
		req := plugin.RestoreRequest{Point: point.ID, Mode: mode, Target: plugin.Target{}}
		if mode == plugin.RestoreNew {
			req.Target.Name = "db2"
		}
		for name, c := range map[string]struct {
			ctx  func() (context.Context, func(plugin.Event))
			full bool
			code plugin.Code
		}{
			"datastore full": {full: true, code: plugin.CodeSpace},
			"cancelled": {code: plugin.CodeCancelled, ctx: func() (context.Context, func(plugin.Event)) {
				ctx, cancel := context.WithCancel(t.Context())
				return ctx, func(ev plugin.Event) {
					if ev.Phase == "restore" {
						cancel()
					}
				}
			}},
		} {
			t.Run(string(mode)+" "+name, func(t *testing.T) {
				before := slices.Sorted(slices.Values(r.lab.Links()))
				ctx, emit := context.Background(), func(plugin.Event) {}
				if c.ctx != nil {
					ctx, emit = c.ctx()
				}
				if c.full {
					r.lab.NFC().SetScenario(nfctest.Scenario{WriteFails: &nfctest.Failure{Code: 8, Text: "There is not enough space on the file system"}})
					r.at.control("fault Write code=8")
				}
				_, err := r.Restore(ctx, req, emit)
				r.lab.NFC().SetScenario(nfctest.Scenario{})
				r.at.control()
				if got := plugin.CodeOf(err); got != c.code {
					t.Errorf("code %q, want %q: %v", got, c.code, err)
				}
				if slices.Contains(r.machines(), "db2") {
					t.Error("half a machine is left")
				}
				if after := slices.Sorted(slices.Values(r.lab.Links())); !slices.Equal(before, after) {
					t.Errorf("disks before %v, after %v", before, after)
				}
				r.journalIsEmpty()
			})
		}
	}
	_, err := r.Restore(t.Context(), plugin.RestoreRequest{Point: point.ID, Target: plugin.Target{Name: "db2", Networks: map[string]string{"VM Network": "nosuch"}, Datastore: "nosuch"}}, nil)
	failsWith(t, err, plugin.CodeTargetUnsuitable, "ds1")
}

// listsOnlyOverwrites recovers and demands that whatever remains is what only another restore can complete, and that
// doctor tells of it.
func (r *rig) listsOnlyOverwrites() {
	r.t.Helper()
	report, err := r.Recover(r.t.Context(), nil)
	r.must(err)
	for _, l := range report.Remaining {
		if l.Kind != "overwrite" || !strings.Contains(l.Err.Detail, "run the restore again") {
			r.t.Errorf("remaining: %+v", l)
		}
	}
	findings, err := r.Doctor(r.t.Context())
	r.must(err)
	told := slices.ContainsFunc(findings, func(f plugin.Finding) bool { return !f.OK && strings.Contains(f.Detail, "overwrite") })
	if told != (len(report.Remaining) > 0) {
		r.t.Errorf("%d remain, doctor tells: %v", len(report.Remaining), told)
	}
}

// Every call of a restore over a machine fails in turn: the end is clear, the journal clean, and running it again
// completes it. VMKEEP_FAULTS=all tries each position in each way instead of one of each method.
func TestInterruptedRollbackIsCompletedByAnother(t *testing.T) {
	r := newRig(t, oneDisk())
	point, want := pointAndChange(r)
	r.must(r.lab.Machine("db").PowerOff())
	change := func(seed uint64) {
		r.must(r.lab.Machine("db").PowerOn())
		r.scribble(seeded(seed), "db", bigKey, mediumSize, 2, 64<<10)
		r.must(r.lab.Machine("db").PowerOff())
	}
	tried := 0
	for _, mode := range []plugin.RestoreMode{plugin.RestoreRollback, plugin.RestoreInPlace} {
		req := plugin.RestoreRequest{Point: point.ID, Mode: mode}
		do := func() error {
			_, err := r.Restore(noCancel(), req, nil)
			return err
		}
		for _, f := range r.trials(tried, func() { r.must(do()) }) {
			tried++
			change(uint64(100 + tried))
			err := r.meets(f, do)
			if err != nil {
				r.listsOnlyOverwrites()
				r.noTraces("db")
				r.must(do())
			}
			r.journalIsEmpty()
			if r.sum("db", bigKey, mediumSize) != want {
				t.Fatalf("%s, %v: the disk is not what the point says", mode, f)
			}
		}
	}
	t.Logf("%d faults", tried)
	r.backsUpAgain("db")
}

// A plan tells what would be written where, and all that is in the way, and does nothing.
func TestPlansOfRestores(t *testing.T) {
	r := newRig(t, oneDisk())
	r.scribble(seeded(63), "db", bigKey, mediumSize, 3, 1<<20)
	point := r.backup("db", nil)
	dir := t.TempDir()
	plan := func(req plugin.RestoreRequest) plugin.RestorePlan {
		t.Helper()
		req.Point = point.ID
		p, err := r.PlanRestore(t.Context(), req)
		r.must(err)
		return p
	}
	expect := func(p plugin.RestorePlan, write int64, step string, problems ...string) {
		t.Helper()
		if p.Write != write || !strings.Contains(strings.Join(p.Steps, "\n"), step) || p.Point.ID != point.ID {
			t.Errorf("plan %+v, want to write %d and a step %q", p, write, step)
		}
		text, err := json.Marshal(p.Problems)
		r.must(err)
		if len(p.Problems) != len(problems) {
			t.Errorf("%d problems, want %d: %s", len(p.Problems), len(problems), text)
		}
		for _, want := range problems {
			if !bytes.Contains(text, []byte(want)) {
				t.Errorf("no problem tells of %q: %s", want, text)
			}
		}
	}
	expect(plan(plugin.RestoreRequest{Mode: plugin.RestoreInPlace, PowerOff: true, PowerOn: true}), mediumSize, "power off /dc1/vm/db")
	expect(plan(plugin.RestoreRequest{Mode: plugin.RestoreRollback}), -1, "overwrite it", "not powered off")
	expect(plan(plugin.RestoreRequest{Mode: plugin.RestoreAttach, PowerOff: true, Target: plugin.Target{Positions: map[string]string{"scsi0-0": "scsi0:0"}}}), mediumSize, "stays")
	expect(plan(plugin.RestoreRequest{Mode: plugin.RestoreAttach, PowerOff: true, Target: plugin.Target{Datastore: "nosuch"}}), mediumSize, "next free", "ds1")
	expect(plan(plugin.RestoreRequest{Mode: plugin.RestoreInPlace, Target: plugin.Target{Machine: "nosuch"}}), 0, "", "nosuch")
	expect(plan(plugin.RestoreRequest{Mode: plugin.RestoreDirectory, Directory: dir, Format: plugin.FormatFlat}), mediumSize, "scsi0-0-flat.vmdk")
	expect(plan(plugin.RestoreRequest{Mode: plugin.RestoreDirectory}), 0, "", "no directory")
	expect(plan(plugin.RestoreRequest{Target: plugin.Target{Name: "db"}}), mediumSize, "create", "db")
	for mode, target := range map[plugin.RestoreMode]plugin.Target{
		plugin.RestoreNew:    {Name: "copy", Datastores: map[string]string{"scsi0-7": "ds1"}},
		plugin.RestoreAttach: {Positions: map[string]string{"scsi0-7": "scsi0:7"}},
	} {
		req := plugin.RestoreRequest{Point: point.ID, Mode: mode, Target: target, PowerOff: true}
		_, err := r.PlanRestore(t.Context(), req)
		failsWith(t, err, plugin.CodePointNotFound, "scsi0-7")
		_, err = r.Restore(t.Context(), req, r.note)
		failsWith(t, err, plugin.CodePointNotFound, "scsi0-7")
	}
	file := filepath.Join(t.TempDir(), "file")
	r.must(os.WriteFile(file, nil, 0o600))
	_, err := r.Restore(t.Context(), plugin.RestoreRequest{Point: point.ID, Mode: plugin.RestoreDirectory, Directory: file}, r.note)
	failsWith(t, err, plugin.CodeFile, file)
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("a plan wrote %v, %v", entries, err)
	}
	r.noTraces("db")
	_, err = r.lab.Machine("db").Snapshot("of another")
	r.must(err)
	expect(plan(plugin.RestoreRequest{Mode: plugin.RestoreRollback}), -1, "overwrite it", "has snapshots", "not powered off")
}

// A disk that has grown is restored in place but for its end; one that has shrunk, or is gone, is not.
func TestInPlaceOverAnotherSize(t *testing.T) {
	r := newRig(t, oneDisk())
	point, _ := pointAndChange(r)
	vm := r.lab.Machine("db")
	r.must(vm.PowerOff())
	report, err := r.Restore(t.Context(), plugin.RestoreRequest{Point: point.ID, Mode: plugin.RestoreRollback}, nil)
	r.must(err)
	want := r.live("db", bigKey)
	r.must(vm.Grow(bigKey, mediumSize+8<<20))
	for _, mode := range []plugin.RestoreMode{plugin.RestoreInPlace, plugin.RestoreRollback} {
		r.must(vm.PowerOn())
		r.guest("db", bigKey, []byte(strings.Repeat("x", 4096)), 1<<20)
		r.guest("db", bigKey, []byte(strings.Repeat("y", 4096)), mediumSize)
		r.must(vm.PowerOff())
		report, err = r.Restore(t.Context(), plugin.RestoreRequest{Point: point.ID, Mode: mode, Verify: true}, nil)
		r.must(err)
		got := r.live("db", bigKey)
		if !bytes.Equal(got[:mediumSize], want) || got[mediumSize] != 'y' {
			t.Errorf("%s: the disk is not what it should be", mode)
		}
		if !slices.ContainsFunc(report.Notes, func(d plugin.Diagnostic) bool { return strings.Contains(d.Summary, "larger") }) {
			t.Errorf("%s: nothing is said of the larger disk: %+v", mode, report.Notes)
		}
	}
	r.must(vm.RemoveDisk(bigKey))
	small, err := vm.AddDisk(lab.Disk{Size: mediumSize / 2})
	r.must(err)
	_, err = r.Restore(t.Context(), plugin.RestoreRequest{Point: point.ID, Mode: plugin.RestoreInPlace}, nil)
	failsWith(t, err, plugin.CodeTargetUnsuitable, "too small")
	r.must(vm.RemoveDisk(small))
	_, err = r.Restore(t.Context(), plugin.RestoreRequest{Point: point.ID, Mode: plugin.RestoreRollback}, nil)
	failsWith(t, err, plugin.CodeTargetUnsuitable, "no such disk")
}
