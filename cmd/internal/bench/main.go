// Bench measures the main job beside the real restic, in one run on one machine: a disk with real files is backed up
// from an embedded vSphere by vmkeep, and as a raw file by restic, with the same compression; then again without a
// change, after 1 % changed at random, restored and checked. Since machines differ and are shared, the ratios are what
// counts. Run it with "make bench".
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"text/tabwriter"
	"time"
)

func main() {
	var o options
	flag.StringVar(&o.bin, "bin", "bin", "directory of the built programs and of restic")
	flag.Int64Var(&o.size, "size", 8192, "size of the disk in MiB")
	flag.Int64Var(&o.files, "files", 6144, "real files on it in MiB, at most")
	flag.StringVar(&o.transport, "transport", "nbdssl", "transport to read the disk over: nbdssl or nbd")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench failed:", err)
		os.Exit(1)
	}
}

type options struct {
	bin         string
	size, files int64
	transport   string
}

func run(ctx context.Context, o options) (err error) {
	bin, err := filepath.Abs(o.bin)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "vmkeep-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	b := &bench{bin: bin, dir: dir, transport: o.transport, raw: filepath.Join(dir, "disk.raw"), size: o.size << 20}
	if err := enoughSpace(dir, 4*o.files<<20); err != nil {
		return err
	}
	fmt.Printf("disk of %d MiB with up to %d MiB of real files; %s/%s, %d CPUs, transport %s\n", o.size, o.files, runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), o.transport)
	if err := b.makeDisk(ctx, o.files<<20); err != nil {
		return err
	}
	stop, err := b.startLab(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	if err := b.measure(ctx); err != nil {
		return err
	}
	return b.report()
}

// enoughSpace refuses to fill a disk up.
func enoughSpace(dir string, need int64) error {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return err
	}
	if free := int64(st.Bavail) * st.Bsize; free < need {
		return fmt.Errorf("%s has %d MiB free, this needs about %d: set TMPDIR or use a smaller -size", dir, free>>20, need>>20)
	}
	return nil
}

// figures are what one command took, with all its children.
type figures struct {
	Wall   float64 `json:"wall_seconds"`
	CPU    float64 `json:"cpu_seconds"`
	Peak   int64   `json:"peak_bytes"` // of the largest process
	Stored int64   `json:"stored_bytes,omitempty"`
}

// pair is one job done by both.
type pair struct {
	Job    string  `json:"job"`
	Ours   figures `json:"vmkeep"`
	Theirs figures `json:"restic"`
}

func (b *bench) report() error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\nvmkeep : restic\twall s\tratio\tCPU s\tratio\tpeak MiB\tratio\tstored MiB\tratio\t")
	for _, p := range b.pairs {
		fmt.Fprintf(w, "%s\t%.1f : %.1f\t%s\t%.1f : %.1f\t%s\t%d : %d\t%s\t%s\t%s\t\n", p.Job,
			p.Ours.Wall, p.Theirs.Wall, ratio(p.Ours.Wall, p.Theirs.Wall), p.Ours.CPU, p.Theirs.CPU, ratio(p.Ours.CPU, p.Theirs.CPU),
			p.Ours.Peak>>20, p.Theirs.Peak>>20, ratio(float64(p.Ours.Peak), float64(p.Theirs.Peak)), stored(p), ratio(float64(p.Ours.Stored), float64(p.Theirs.Stored)))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Println("\nThe lab, which serves the disk, runs on the same CPUs; its work is in our wall time, not in our CPU time.")
	fmt.Println()
	for _, p := range b.pairs {
		line, err := json.Marshal(p)
		if err != nil {
			return err
		}
		fmt.Println(string(line))
	}
	return nil
}

func stored(p pair) string {
	if p.Ours.Stored == 0 && p.Theirs.Stored == 0 {
		return ""
	}
	return fmt.Sprintf("%d : %d", p.Ours.Stored>>20, p.Theirs.Stored>>20)
}

func ratio(ours, theirs float64) string {
	if theirs == 0 {
		return ""
	}
	return fmt.Sprintf("%.2f", ours/theirs)
}

// stamp says what goes on.
func stamp(format string, args ...any) {
	fmt.Printf("%s  %s\n", time.Now().Format("15:04:05"), fmt.Sprintf(format, args...))
}
