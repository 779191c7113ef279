// Demo runs the main job on an embedded vSphere: a machine is backed up in full through a plugin process, its guest
// changes files, it is backed up incrementally, and it is restored, byte for byte, into a new machine. The real
// restic has the last word on the repository. Run it with "make demo".
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/vsphere/lab"
)

func main() {
	bin := flag.String("bin", "bin", "directory of the built programs and of restic")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *bin); err != nil {
		fmt.Fprintln(os.Stderr, "\ndemo failed:", err)
		var e *plugin.Error
		if errors.As(err, &e) && e.Remedy != "" {
			fmt.Fprintln(os.Stderr, "remedy:", e.Remedy)
		}
		os.Exit(1)
	}
}

// password of the demonstration's repository, which is deleted at the end.
const password = "demo"

func run(ctx context.Context, bin string) (err error) {
	dir, err := os.MkdirTemp("", "vmkeep-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	say("Making a guest: a disk with an ext4 file system that holds the Go distribution, and a second disk with data")
	g, err := makeGuest(ctx, dir)
	if err != nil {
		return err
	}
	say("Starting an embedded vSphere with a running machine \"web\": scsi0-0 (%s), sata0-0 (%s)", size(g.disks[0].size), size(g.disks[1].size))
	l, err := lab.Start(ctx, lab.Options{Dir: mkdir(dir, "lab"), Machines: g.machines()})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()

	say("Loading the plugin process %s", filepath.Join(bin, "vmkeep-plugin"))
	p, err := plugin.Load(ctx, plugin.LoadOptions{Path: filepath.Join(bin, "vmkeep-plugin"), Host: "vmkeep demo"})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	repository := filepath.Join(dir, "repository")
	if err := p.Configure(ctx, plugin.Config{
		VSphere:    plugin.VSphere{URL: l.URL().String(), Thumbprint: l.Thumbprint()},
		Repository: plugin.RepositoryConfig{Location: repository, Password: password},
		StateDir:   mkdir(dir, "state"),
	}); err != nil {
		return err
	}
	if _, err := p.InitRepository(ctx); err != nil {
		return err
	}
	d := &demo{plugin: p, lab: l, guest: g, dir: dir, restic: filepath.Join(bin, "restic"), repository: repository}
	return d.mainJob(ctx)
}

// demo is the running demonstration.
type demo struct {
	plugin     plugin.Service
	lab        *lab.Lab
	guest      *guest
	dir        string
	restic     string
	repository string
	rows       []row
}

// row is a line of the final table. Numbers below zero are not shown.
type row struct {
	what                    string
	onDisk, fromVSphere, in int64
	took                    time.Duration
}

func (d *demo) mainJob(ctx context.Context) error {
	say("Full backup, while the machine runs")
	full, err := d.backup(ctx, "full backup")
	if err != nil {
		return err
	}
	before, err := d.guest.sums(d.lab)
	if err != nil {
		return err
	}

	say("The guest works: files are added, changed and deleted inside its file system")
	if err := d.guest.work(ctx, d.lab); err != nil {
		return err
	}
	after, err := d.guest.sums(d.lab)
	if err != nil {
		return err
	}

	say("Incremental backup: only what change tracking reports")
	if _, err := d.backup(ctx, "incremental backup"); err != nil {
		return err
	}

	say("Once more, with nothing to do")
	if _, err := d.backup(ctx, "nothing changed"); err != nil {
		return err
	}

	say("A single file out of the newest point, without starting the guest: /var/CHANGES")
	if err := d.oneFile(ctx, "/var/CHANGES", changes()); err != nil {
		return err
	}

	say("Restoring the newest point as a new machine \"web-restored\"")
	started := time.Now()
	report, err := d.plugin.Restore(ctx, plugin.RestoreRequest{Machine: "web", Point: "latest", Mode: plugin.RestoreNew,
		Target: plugin.Target{Name: "web-restored"}, Verify: true}, show())
	if err != nil {
		return err
	}
	d.rows = append(d.rows, row{"restore to a new machine", report.Stats.Size, -1, -1, time.Since(started)})
	say("Comparing SHA-256 sums of the restored machine's disks with the original's")
	if err := d.guest.compare(d.lab, "web-restored", after); err != nil {
		return err
	}

	say("Restoring the first point, from before the change, to files")
	started = time.Now()
	files, err := d.plugin.Restore(ctx, plugin.RestoreRequest{Point: full.ID, Mode: plugin.RestoreDirectory,
		Directory: filepath.Join(d.dir, "restored"), Format: plugin.FormatRaw}, show())
	if err != nil {
		return err
	}
	d.rows = append(d.rows, row{"restore to files", files.Stats.Size, -1, -1, time.Since(started)})
	if err := d.guest.compareFiles(files.Files, before); err != nil {
		return err
	}

	say("The real restic examines the repository: restic check --read-data")
	if err := d.resticCheck(ctx); err != nil {
		return err
	}
	for _, m := range []string{"web", "web-restored"} {
		if n := d.lab.Machine(m).SnapshotCount(); n != 0 {
			return fmt.Errorf("%d snapshots are left on %s", n, m)
		}
	}
	d.table()
	return nil
}

func (d *demo) backup(ctx context.Context, what string) (*plugin.Point, error) {
	started := time.Now()
	report, err := d.plugin.Backup(ctx, plugin.BackupRequest{Selection: plugin.Selection{Names: []string{"web"}}}, show())
	if err != nil {
		return nil, err
	}
	m := report.Machines[0]
	if m.Err != nil {
		return nil, m.Err
	}
	for _, disk := range m.Point.Disks {
		how := "full"
		if disk.Incremental {
			how = "incremental"
		}
		read := "nothing to read"
		if disk.Read > 0 {
			read = fmt.Sprintf("read %s over %s", size(disk.Read), disk.Transport)
		}
		fmt.Printf("    %-8s  %-11s (%s)  %s\n", disk.Name, how, disk.Reason, read)
	}
	d.rows = append(d.rows, row{what, m.Point.Stats.Size, m.Point.Stats.Read, m.Point.Stats.Stored, time.Since(started)})
	return m.Point, nil
}

// oneFile reads a file of the guest in the newest point and compares it.
func (d *demo) oneFile(ctx context.Context, path string, want []byte) error {
	started := time.Now()
	var got []byte
	err := d.plugin.ReadFile(ctx, plugin.FileRequest{Point: "latest", Machine: "web", Volume: "system", Path: path}, func(f plugin.Frame) error {
		got = append(got, f.Data...)
		return nil
	})
	if err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%s holds %d bytes, which are not the %d that the guest wrote", path, len(got), len(want))
	}
	d.rows = append(d.rows, row{"one guest file", int64(len(got)), -1, -1, time.Since(started)})
	return nil
}

func (d *demo) resticCheck(ctx context.Context) error {
	for _, args := range [][]string{{"check", "--read-data"}, {"snapshots", "--compact"}} {
		cmd := exec.CommandContext(ctx, d.restic, append(args, "--no-cache", "--repo", d.repository)...)
		cmd.Env = append(os.Environ(), "RESTIC_PASSWORD="+password)
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("restic %s: %w\n%s", strings.Join(args, " "), err, out)
		}
		for line := range strings.Lines(string(out)) {
			fmt.Print("    ", line)
		}
	}
	return nil
}

func (d *demo) table() {
	fmt.Println()
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\ton disk\tread from vSphere\tnew in repository\ttime\t")
	for _, r := range d.rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%.1f s\t\n", r.what, size(r.onDisk), size(r.fromVSphere), size(r.in), r.took.Seconds())
	}
	_ = w.Flush()
	fmt.Println()
	for _, line := range []string{
		"restored disks equal the originals (SHA-256), of both points",
		"restic check --read-data passes",
		"no snapshot is left on vSphere",
	} {
		fmt.Println("  ✓", line)
	}
	fmt.Printf("\n%s/%s, %d CPUs. Next: %s lab starts such a vSphere to try the command line on.\n", runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), filepath.Join(filepath.Base(filepath.Dir(d.restic)), "vmkeep"))
}

func say(format string, args ...any) { fmt.Printf("\n» "+format+"\n", args...) }

// show prints what a person would want to see of an operation's events.
func show() func(plugin.Event) {
	return func(ev plugin.Event) {
		where := strings.TrimSpace(ev.Machine + " " + ev.Disk)
		switch ev.Kind {
		case plugin.EventPhase:
			fmt.Printf("    %-14s %s\n", where, words(ev.Phase))
		case plugin.EventDiagnostic:
			if ev.Diagnostic.Severity != plugin.SeverityInfo {
				fmt.Printf("    %-14s %s: %s\n", where, ev.Diagnostic.Summary, ev.Diagnostic.Detail)
			}
		}
	}
}

// words spells a phase for people.
func words(phase plugin.Phase) string {
	if w, ok := map[plugin.Phase]string{plugin.PhaseRemove: "remove the snapshot", plugin.PhaseStore: "write the point", plugin.PhaseCreate: "create the machine"}[phase]; ok {
		return w
	}
	return string(phase)
}

func size(n int64) string {
	switch {
	case n < 0:
		return "–"
	case n >= 1<<30:
		return fmt.Sprintf("%.2f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%d KiB", (n+1023)>>10)
}

// mkdir makes a directory below the demonstration's own, which exists and is empty.
func mkdir(dir, name string) string {
	p := filepath.Join(dir, name)
	_ = os.MkdirAll(p, 0o700) // what uses it will fail with a better message
	return p
}
