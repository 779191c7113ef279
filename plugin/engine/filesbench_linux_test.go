package engine_test

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/plugin/engine"
	"github.com/vmkeep/vmkeep/vddk/mount/mounttest"
	"github.com/vmkeep/vmkeep/vsphere/lab"
	"github.com/vmkeep/vmkeep/vsphere/lab/guestdisk"
)

// BenchmarkSmallFiles reads a tree of small files of a guest: from a point, and beside it through the kernel's loop
// mount of the disk restored from the point, which is what somebody does who has no file level restore. What the
// restore takes before is told apart (ms-restore-before). Needs root.
func BenchmarkSmallFiles(b *testing.B) {
	mounttest.Need(b, "mke2fs", "losetup")
	const files, each = 8000, 24 << 10
	must := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
	}
	tree, rng := b.TempDir(), seeded(1)
	content := make([]byte, each)
	for i := range files {
		fill(rng, content) // nothing to compress and no two alike
		dir := filepath.Join(tree, "app", fmt.Sprintf("d%d", i%80))
		must(os.MkdirAll(dir, 0o755))
		must(os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), content, 0o644))
	}
	image := filepath.Join(b.TempDir(), "guest.raw")
	must(guestdisk.Make(b.Context(), image, 512<<20, tree, "root"))
	l, err := lab.Start(b.Context(), lab.Options{Dir: b.TempDir(), Machines: []lab.Machine{{Name: "guest", Disks: []lab.Disk{{Image: image}}}}})
	must(err)
	defer l.Close()
	e := engine.New(engine.Options{Version: "test"})
	defer e.Close()
	must(e.Configure(b.Context(), plugin.Config{StateDir: b.TempDir(), VSphere: plugin.VSphere{URL: l.URL().String(), Thumbprint: l.Thumbprint()},
		Repository: plugin.RepositoryConfig{Location: filepath.Join(b.TempDir(), "repository"), Password: password}}))
	_, err = e.InitRepository(b.Context())
	must(err)
	_, err = e.Backup(b.Context(), plugin.BackupRequest{Selection: plugin.Selection{Names: []string{"guest"}}}, nil)
	must(err)

	var ours, kernels float64
	b.Run("point", func(b *testing.B) {
		b.SetBytes(files * each)
		var first time.Duration
		for b.Loop() {
			start, n := time.Now(), int64(0)
			must(e.TarFiles(b.Context(), plugin.FileRequest{Point: "latest", Machine: "guest", Path: "/app"}, func(p []byte) error {
				if n == 0 {
					first += time.Since(start)
				}
				n += int64(len(p))
				return nil
			}))
			if n < files*each {
				b.Fatalf("%d bytes", n)
			}
		}
		ours = float64(files*each) * float64(b.N) / b.Elapsed().Seconds()
		b.ReportMetric(float64(first.Milliseconds())/float64(b.N), "ms-to-first-byte")
	})
	b.Run("kernel", func(b *testing.B) {
		b.SetBytes(files * each)
		dir := b.TempDir()
		start := time.Now()
		_, err := e.Restore(b.Context(), plugin.RestoreRequest{Machine: "guest", Mode: plugin.RestoreDirectory, Directory: dir, Format: plugin.FormatRaw}, nil)
		must(err)
		restored := time.Since(start)
		raw := filepath.Join(dir, "guest", "scsi0-0.raw")
		var first time.Duration
		for b.Loop() {
			b.StopTimer()
			forget(b, raw)
			b.StartTimer()
			start, n := time.Now(), int64(0)
			must(mounttest.Mounted(raw, "ro,noload,offset=1048576", func(mnt string) error {
				return filepath.WalkDir(filepath.Join(mnt, "app"), func(path string, d fs.DirEntry, err error) error {
					if err != nil || d.IsDir() {
						return err
					}
					f, err := os.Open(path)
					if err != nil {
						return err
					}
					k, err := io.Copy(io.Discard, struct{ io.Reader }{f})
					if n == 0 {
						first += time.Since(start)
					}
					n += k
					return errors.Join(err, f.Close())
				})
			}))
			if n != files*each {
				b.Fatalf("%d bytes", n)
			}
		}
		kernels = float64(files*each) * float64(b.N) / b.Elapsed().Seconds()
		b.ReportMetric(float64(first.Milliseconds())/float64(b.N), "ms-to-first-byte")
		b.ReportMetric(float64(restored.Milliseconds()), "ms-restore-before")
		b.ReportMetric(ours/kernels, "point/kernel")
	})
}

// forget drops a file's pages, so that it is read from the disk again.
func forget(b *testing.B, name string) {
	b.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err == nil {
		err = errors.Join(f.Sync(), unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED), f.Close())
	}
	if err != nil && !strings.Contains(err.Error(), "not supported") {
		b.Fatal(err)
	}
}
