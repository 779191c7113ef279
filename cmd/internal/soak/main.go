// Soak backs up many machines again and again while their guests write, administrators change them, and networks and
// servers fail, all at random, and compares every point with the disks, or the file, as they were at its snapshot. Points are
// forgotten, space is freed, and what is kept is compared again. At the end nothing may be left on vSphere. Run it
// with "make soak"; the seed it prints repeats a run's choices.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

func main() {
	o := options{say: func(format string, args ...any) { fmt.Printf(format+"\n", args...) }}
	flag.IntVar(&o.machines, "machines", 20, "machines to protect")
	flag.IntVar(&o.rounds, "rounds", 50, "rounds of changes, faults and a backup of all machines")
	flag.Int64Var(&o.diskSize, "size", 8, "size of a new disk in MiB")
	flag.Uint64Var(&o.seed, "seed", rand.Uint64(), "of all random choices")
	flag.StringVar(&o.plugin, "plugin", "", "the plugin `program` to use, and to kill now and then; empty: no plugin process (Linux)")
	flag.Parse()
	log.SetOutput(io.Discard) // vcsim, below the lab, tells there of files that only a real host would make
	o.diskSize <<= 20
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "soak failed:", err)
		os.Exit(1)
	}
}

type options struct {
	machines, rounds int
	diskSize         int64 // bytes
	seed             uint64
	plugin           string // program; empty: none
	say              func(format string, args ...any)
}

// run soaks in a directory of its own, and tells what happened.
func run(ctx context.Context, o options) (err error) {
	dir, err := os.MkdirTemp("", "vmkeep-soak-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	o.say("%d machines, %d rounds, disks of %d MiB, seed %d", o.machines, o.rounds, o.diskSize>>20, o.seed)
	if o.plugin != "" {
		own := filepath.Join(dir, "vmkeep-plugin") // by which the process is found
		program, err := os.ReadFile(o.plugin)
		if err == nil {
			err = os.WriteFile(own, program, 0o700)
		}
		if err != nil {
			return err
		}
		o.plugin = own
	}
	s, err := start(ctx, o, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	started := time.Now()
	for n := range o.rounds {
		if err := s.round(ctx, n); err != nil {
			return fmt.Errorf("round %d: %w", n, err)
		}
	}
	if err := s.finish(ctx); err != nil {
		return err
	}
	s.tell(time.Since(started))
	return nil
}

// tell prints the table of what happened.
func (s *soak) tell(spent time.Duration) {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	row := func(what string, n int, more string) { fmt.Fprintf(w, "%s\t%d\t%s\n", what, n, more) }
	row("points made", s.stats.points, fmt.Sprint("in ", spent.Round(time.Second)))
	row("disks compared", s.stats.compared, fmt.Sprintf("%d of points read incrementally, %d read in full", s.stats.incremental, s.stats.full))
	row("files compared", s.stats.files, "")
	row("changes by administrators", s.stats.deeds, fmt.Sprintf("%d refused", s.stats.refused))
	row("restores over machines", s.stats.restored, fmt.Sprintf("%d refused", s.stats.notRestored))
	row("faults prepared", s.stats.faults, fmt.Sprintf("%d backups failed and were explained, %d plugins were killed", s.stats.failed, s.stats.kills))
	row("differences", 0, "")
	row("left behind", 0, "")
	_ = w.Flush() // a Builder never fails
	s.say("%s", strings.TrimSpace(b.String()))
}
