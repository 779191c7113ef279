package engine_test

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmkeep/vmkeep/plugin"
)

// qemuImg is QEMU's own judgement.
func qemuImg(t *testing.T, args ...string) string {
	t.Helper()
	path, err := exec.LookPath("qemu-img")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("qemu-img is missing: apt install qemu-utils")
		}
		t.Skip("qemu-img is missing")
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("qemu-img %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestDirectoryFormatsAreWhatQEMUReads(t *testing.T) {
	r := newRig(t, oneDisk())
	r.scribble(seeded(41), "db", bigKey, mediumSize, 12, 2<<20)
	point := r.backup("db", nil)
	want := filepath.Join(t.TempDir(), "want.raw")
	r.must(os.WriteFile(want, r.live("db", bigKey), 0o600))
	for _, c := range []struct {
		format plugin.RestoreFormat
		file   string
		qemu   string
		create string
	}{
		{plugin.FormatRaw, "scsi0-0.raw", "raw", "raw"}, {plugin.FormatSplit, "scsi0-0.vmdk", "vmdk", "twoGbMaxExtentFlat"},
		{plugin.FormatFlat, "scsi0-0.vmdk", "vmdk", "monolithicFlat"}, {plugin.FormatStreamOptimized, "scsi0-0.vmdk", "vmdk", "streamOptimized"},
	} {
		for _, sparse := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s sparse %v", c.format, sparse), func(t *testing.T) {
				dir := t.TempDir()
				report, err := r.Restore(t.Context(), plugin.RestoreRequest{Point: point.ID, Mode: plugin.RestoreDirectory, Directory: dir, Format: c.format, Sparse: sparse, Verify: true}, r.note)
				r.must(err)
				file := filepath.Join(dir, "db", c.file)
				if info := qemuImg(t, "info", "-f", c.qemu, file); !strings.Contains(info, c.create) || !strings.Contains(info, fmt.Sprintf("(%d bytes)", mediumSize)) {
					t.Errorf("qemu-img info:\n%s", info)
				}
				qemuImg(t, "compare", "-f", "raw", "-F", c.qemu, want, file)
				if !report.Disks[0].Verified || report.Disks[0].Written == 0 {
					t.Errorf("report %+v", report.Disks[0])
				}
				for _, f := range report.Files {
					if _, err := os.Stat(f); err != nil {
						t.Error(err)
					}
				}
				noneIncomplete(t, dir)
				_, err = r.Restore(t.Context(), plugin.RestoreRequest{Point: point.ID, Mode: plugin.RestoreDirectory, Directory: dir, Format: c.format}, r.note)
				failsWith(t, err, plugin.CodeExists, "exists")
				noneIncomplete(t, dir)
				_, err = r.Restore(t.Context(), plugin.RestoreRequest{Point: point.ID, Mode: plugin.RestoreDirectory, Directory: dir, Format: c.format, Sparse: sparse, Force: true}, r.note)
				r.must(err)
				qemuImg(t, "compare", "-f", "raw", "-F", c.qemu, want, file)
			})
		}
	}
}

// A split image has a file for each part of the disk, and QEMU reads over their borders.
func TestSplitImageOfSeveralParts(t *testing.T) {
	r := newRig(t, twoDisks())
	populate(r)
	point := r.backup("web", nil)
	want := r.blocks("web", bigKey, bigSize)
	dir := t.TempDir()
	req := plugin.RestoreRequest{Point: point.ID, Mode: plugin.RestoreDirectory, Directory: dir, Format: plugin.FormatSplit, Disks: []string{"scsi0-0"}, Sparse: true}
	_, err := r.Restore(t.Context(), req, r.note)
	r.must(err)
	parts, err := filepath.Glob(filepath.Join(dir, "web", "scsi0-0", "*", "flat.vmdk"))
	r.must(err)
	if len(parts) != 2 {
		t.Fatalf("the parts are %q", parts)
	}
	image, raw := filepath.Join(dir, "web", "scsi0-0.vmdk"), filepath.Join(dir, "raw")
	if info := qemuImg(t, "info", "-f", "vmdk", image); !strings.Contains(info, "twoGbMaxExtentFlat") || !strings.Contains(info, fmt.Sprintf("(%d bytes)", bigSize)) {
		t.Errorf("qemu-img info:\n%s", info)
	}
	qemuImg(t, "convert", "-f", "vmdk", "-O", "raw", image, raw)
	f, err := os.Open(raw)
	r.must(err)
	if blocksOf(t, f, bigSize) != want {
		t.Error("QEMU reads something else than the disk held")
	}
	r.must(f.Close())
}

// noneIncomplete fails when a restore says that it has not ended.
func noneIncomplete(t *testing.T, dir string) {
	t.Helper()
	r := os.DirFS(dir)
	if err := fs.WalkDir(r, ".", func(p string, _ fs.DirEntry, err error) error {
		if strings.HasSuffix(p, ".incomplete") {
			t.Errorf("%s is there", p)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// A restore to files that was cut goes on where it stopped.
func TestDirectoryRestoreGoesOn(t *testing.T) {
	r := newRig(t, oneDisk())
	p := make([]byte, 40<<20)
	fill(seeded(42), p)
	r.guest("db", bigKey, p, 1<<20)
	point := r.backup("db", nil)
	want := r.sum("db", bigKey, mediumSize)
	for _, format := range []plugin.RestoreFormat{plugin.FormatRaw, plugin.FormatStreamOptimized} {
		dir := t.TempDir()
		req := plugin.RestoreRequest{Point: point.ID, Mode: plugin.RestoreDirectory, Directory: dir, Format: format, Sparse: true}
		file := filepath.Join(dir, "db", "scsi0-0.raw")
		if format != plugin.FormatRaw {
			file = filepath.Join(dir, "db", "scsi0-0.vmdk")
		}
		_, err := r.Restore(t.Context(), req, r.note)
		r.must(err)
		// As a crash leaves it: half of the bytes, and the note.
		r.must(os.WriteFile(filepath.Join(dir, "db", "scsi0-0.incomplete"), []byte("not ended"), 0o600))
		r.must(os.Truncate(file, 20<<20))
		r.must(os.Truncate(file, mediumSize))
		report, err := r.Restore(t.Context(), req, r.note)
		r.must(err)
		noneIncomplete(t, dir)
		if format == plugin.FormatRaw {
			if r.fileSum(file) != want {
				t.Error("the file is not what the point says")
			}
			if d := report.Disks[0]; d.Reason != "continued" || d.Written < 10<<20 || d.Written > 30<<20 {
				t.Errorf("%d bytes were written again, reason %q", d.Written, d.Reason)
			}
			continue
		}
		raw := filepath.Join(t.TempDir(), "raw")
		qemuImg(t, "convert", "-O", "raw", file, raw)
		if r.fileSum(raw) != want {
			t.Error("the file is not what the point says")
		}
	}
}
