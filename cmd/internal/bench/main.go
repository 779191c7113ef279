// Bench measures vmkeep beside the real restic, in one run on one machine: a disk with real files is backed up from an
// embedded vSphere by vmkeep, and as a raw file by restic, with the same compression. Since machines differ and are
// shared, the ratios are what counts. Run it with "make bench".
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
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

func main() {
	var o options
	var only string
	flag.StringVar(&o.bin, "bin", "bin", "directory of the built programs and of restic")
	flag.Int64Var(&o.size, "size", 8192, "size of the disk in MiB")
	flag.Int64Var(&o.files, "files", 6144, "real files on it in MiB, at most")
	flag.StringVar(&o.transport, "transport", "nbdssl", "transport to read the disk over: nbdssl or nbd")
	flag.StringVar(&only, "only", "", "jobs, separated by commas, instead of all: "+strings.Join(jobNames(), ", "))
	flag.Parse()
	if only != "" {
		o.only = strings.Split(only, ",")
	}
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
	only        []string
}

// job is something to measure. Those that work in this process come last: what it has in memory would count as its
// children's peak.
type job struct {
	name  string
	about string
	run   func(*bench, context.Context) error
}

func jobs() []job {
	return []job{
		{"daily", "a disk with real files: in full, unchanged, changed, restored, checked", (*bench).daily},
		{"random", "a disk that does not compress", (*bench).random},
		{"prune", "prune after the first points were forgotten", (*bench).prune},
		{"rollback", "rolling 1 % back beside restoring everything", (*bench).rollback},
		{"files", "1 GiB of small files read out of a point, beside a loop mount of the restored disk", (*bench).smallFiles},
		{"scale", "the same data on disks of 8 GiB, 1 TiB and 62 TiB", (*bench).scale},
		{"chunking", "ways to cut chunks, over a series of images", (*bench).chunking},
	}
}

func jobNames() (names []string) {
	for _, j := range jobs() {
		names = append(names, j.name)
	}
	return names
}

func run(ctx context.Context, o options) (err error) {
	for _, name := range o.only {
		if !slices.Contains(jobNames(), name) {
			return fmt.Errorf("there is no job %q: use %s", name, strings.Join(jobNames(), ", "))
		}
	}
	bin, err := filepath.Abs(o.bin)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "vmkeep-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	b := &bench{bin: bin, dir: dir, transport: o.transport, size: o.size << 20, files: o.files << 20}
	if err := enoughSpace(dir, 4*b.files); err != nil {
		return err
	}
	fmt.Printf("disk of %d MiB with up to %d MiB of real files; %s/%s, %d CPUs, transport %s\n", o.size, o.files, runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), o.transport)
	for _, j := range jobs() {
		if o.only != nil && !slices.Contains(o.only, j.name) {
			continue
		}
		stamp("%s: %s", j.name, j.about)
		if err := j.run(b, ctx); err != nil {
			return errors.Join(fmt.Errorf("%s: %w", j.name, err), b.report()) // what was measured until then is not lost
		}
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
	Wall   float64 `json:"wall_seconds"`         // until what it wrote is on the disk
	Late   float64 `json:"written_late_seconds"` // of them after it had ended
	CPU    float64 `json:"cpu_seconds"`
	Peak   int64   `json:"peak_bytes"` // of the largest process
	Stored int64   `json:"stored_bytes,omitempty"`
}

// pair is one job done in two ways.
type pair struct {
	Job     string  `json:"job"`
	Ours    figures `json:"ours"`
	Theirs  figures `json:"theirs"`
	Against string  `json:"theirs_is"` // whose figures Theirs are
}

// measured takes a job's figures and shows at once how long it took.
func (b *bench) measured(p pair) {
	b.pairs = append(b.pairs, p)
	stamp("%s: %.1f s : %.1f s of %s", p.Job, p.Ours.Wall, p.Theirs.Wall, p.Against)
}

func (b *bench) report() error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\nvmkeep : the other\tother\twall s\tratio\tCPU s\tratio\tpeak MiB\tratio\tstored MiB\tratio\t")
	for _, p := range b.pairs {
		fmt.Fprintf(w, "%s\t%s\t%.1f : %.1f\t%s\t%.1f : %.1f\t%s\t%d : %d\t%s\t%s\t%s\t\n", p.Job, p.Against,
			p.Ours.Wall, p.Theirs.Wall, ratio(p.Ours.Wall, p.Theirs.Wall), p.Ours.CPU, p.Theirs.CPU, ratio(p.Ours.CPU, p.Theirs.CPU),
			p.Ours.Peak>>20, p.Theirs.Peak>>20, ratio(float64(p.Ours.Peak), float64(p.Theirs.Peak)), stored(p), ratio(float64(p.Ours.Stored), float64(p.Theirs.Stored)))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Println("\nWall time ends when what was written is on the disk. Where that was more than 0.1 s after the command's own end:")
	for _, p := range b.pairs {
		if max(p.Ours.Late, p.Theirs.Late) > 0.1 {
			fmt.Printf("  %s: %.1f : %.1f s after it\n", p.Job, p.Ours.Late, p.Theirs.Late)
		}
	}
	fmt.Println("The lab, which serves the disks, runs on the same CPUs; its work is in our wall time, not in our CPU time.")
	fmt.Print(b.notes.String())
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
