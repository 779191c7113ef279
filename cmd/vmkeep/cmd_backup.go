package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vmkeep/vmkeep/plugin"
)

func (a *app) initCommand() *cobra.Command {
	return &cobra.Command{Use: "init", Short: "Make the repository", Args: takes(0, 0),
		Long: `Make the repository: in a directory, or on a REST, S3 or SFTP server, wherever --repo says. It is restic's format;
restic works on it as well. Keep its password safe: without it nothing can be restored.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withPlugin(cmd, func(ctx context.Context, s session) error {
				r, err := s.InitRepository(ctx)
				if err != nil {
					return err
				}
				if a.json {
					writeJSON(a.stdout, "initialized", r)
					return nil
				}
				fmt.Fprintf(a.stdout, "made repository %s at %s\n\nKeep its password safe: without it the data is lost.\n", short(r.ID), r.Location)
				if rule := s.options.Repository.Chunking; rule != "" {
					fmt.Fprintf(a.stdout, "The first backup settles how chunks are cut: it needs --chunking %s as well, or the setting repository.chunking.\n", rule)
				}
				return nil
			})
		}}
}

func (a *app) machinesCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "machines [NAME...]", Short: "List machines",
		Long: `List the machines that names and flags select, all by default: the same choice as that of backup, evaluated now. With
--disks also their disks, and why one cannot be backed up.`, Example: "  vmkeep machines\n  vmkeep machines 'web*' --esxi esx1 --power poweredOn"}
	sel := selection(cmd)
	details := cmd.Flags().BoolP("disks", "l", false, "list the disks too")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		sel.Names = args
		return a.withPlugin(cmd, func(ctx context.Context, s session) error {
			machines, err := s.Machines(ctx, *sel)
			if err != nil {
				return err
			}
			if a.json {
				for _, m := range machines {
					writeJSON(a.stdout, "machine", m)
				}
				return nil
			}
			writeMachines(a.stdout, machines, *details)
			return nil
		})
	}
	return cmd
}

func writeMachines(w io.Writer, machines []plugin.Machine, details bool) {
	g := grid{head: []string{"NAME", "POWER", ">DISKS", ">SIZE", "TRACKING", ">SNAPSHOTS", "HOST", "PATH"}}
	for _, m := range machines {
		var total int64
		for _, d := range m.Disks {
			total += d.Capacity
		}
		power := strings.ToLower(strings.TrimPrefix(m.PowerState, "powered"))
		if m.Template {
			power = "template"
		}
		tracking := "off"
		if m.CBT {
			tracking = "on"
		}
		g.add(m.Name, power, strconv.Itoa(len(m.Disks)), size(total), tracking, strconv.Itoa(m.Snapshots), m.Host, m.Path)
		if !details {
			continue
		}
		for _, d := range m.Disks {
			note := d.Path
			if d.Excluded != "" {
				note += " (cannot be backed up: " + d.Excluded + ")"
			}
			g.add("  "+d.Name, "", "", size(d.Capacity), "", "", d.Label, note)
		}
	}
	if len(machines) == 0 {
		fmt.Fprintln(w, "no machines")
		return
	}
	g.write(w)
}

func (a *app) backupCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "backup [NAME...]", Short: "Back up machines",
		Long: `Back up machines: one point for each that the names and flags select, or for all with --all.

A name is an inventory path, a name, a managed object id, an instanceUuid, or a glob. A machine that fails does not
stop the others; the exit code is then 3.`,
		Example: "  vmkeep backup web1 db1\n  vmkeep backup --esxi esx1.example\n  vmkeep backup --all --exclude 'test-*'"}
	sel := selection(cmd)
	var r plugin.BackupRequest
	var files plugin.FileSelection
	var best, worst string
	f := cmd.Flags()
	all := f.Bool("all", false, "all machines")
	f.BoolVar(&r.Full, "full", false, "read everything; trust no change tracking")
	f.StringVar(&best, "quiesce", "", "try first: app, fs, or crash, which quiesces nothing (default app)")
	f.StringVar(&worst, "quiesce-at-least", "", "fail rather than do worse than: app, fs or crash (default crash)")
	f.DurationVar(&r.Quiesce.Timeout, "quiesce-timeout", 0, "how long one try may take")
	f.StringVar(&r.Quiesce.VSS.Backup, "vss-backup", "", "what Windows applications are told: copy, full, incremental, differential or log (default copy)")
	f.BoolVar(&r.Quiesce.VSS.Bootable, "vss-bootable", false, "include the bootable system state of Windows")
	f.BoolVar(&r.Quiesce.VSS.Partial, "vss-partial", false, "Windows applications may give parts of files")
	f.StringVar(&r.Order, "order", "", "which machines begin: path, largest, or oldest, whose last point is oldest (default path)")
	f.StringSliceVar(&r.ExcludeDisks, "exclude-disk", nil, "leave out these disks: names (globs), labels or keys")
	f.StringVar(&r.Unprotected, "unprotected", "", "disks that cannot be backed up: skip or fail (default skip)")
	f.BoolVar(&r.ResetCBT, "reset-tracking", false, "restart change tracking of the machines first")
	f.StringSliceVar(&r.Tags, "tag", nil, "add tags to the points")
	withFiles := f.Bool("files", false, "store guest files too, as ordinary files that restic sees")
	f.StringSliceVar(&files.Volumes, "files-volume", nil, "guest files of these volumes only: mount points, drive letters, labels (globs)")
	f.StringArrayVar(&files.Includes, "files-include", nil, "only these guest paths (glob)")
	f.StringArrayVar(&files.Excludes, "files-exclude", nil, "not these guest paths (glob)")
	f.BoolVar(&r.NoImage, "no-image", false, "with --files: take no image of the disks")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		sel.Names = args
		r.Selection = *sel
		r.Quiesce.Best, r.Quiesce.Worst = plugin.Consistency(best), plugin.Consistency(worst)
		if everything(*sel) != *all {
			if *all {
				return wrongUse(cmd, "--all contradicts the choice of machines")
			}
			return wrongUse(cmd, "no machine is chosen: name some, or give --all")
		}
		switch {
		case *withFiles || len(files.Volumes)+len(files.Includes)+len(files.Excludes) > 0:
			r.Files = &files
		case r.NoImage:
			return wrongUse(cmd, "--no-image without --files leaves nothing to back up")
		}
		return a.withPlugin(cmd, func(ctx context.Context, s session) error {
			r.QuiesceRules = s.options.quiesceRules
			w := a.watch()
			began := time.Now()
			report, err := s.Backup(ctx, r, w.emit)
			w.finish()
			a.writeBackup(report, time.Since(began))
			if err != nil {
				return err
			}
			return verdict(report)
		})
	}
	return cmd
}

// backupSummary is the last line of a backup in JSON.
type backupSummary struct {
	plugin.BackupReport
	Succeeded, Degraded, Failed int
	Stats                       plugin.Stats // of all points together
}

func summarize(report plugin.BackupReport, took time.Duration) backupSummary {
	s := backupSummary{BackupReport: report, Stats: plugin.Stats{Duration: took}}
	for _, m := range report.Machines {
		switch {
		case m.Err != nil || m.Point == nil:
			s.Failed++
			continue
		case m.Degraded():
			s.Degraded++
		default:
			s.Succeeded++
		}
		s.Stats.Size += m.Point.Stats.Size
		s.Stats.Read += m.Point.Stats.Read
		s.Stats.Reused += m.Point.Stats.Reused
		s.Stats.New += m.Point.Stats.New
		s.Stats.Stored += m.Point.Stats.Stored
	}
	return s
}

// verdict is the exit code of a backup: 3 when some machines failed or are degraded; when all failed for the same
// reason, the code of that reason.
func verdict(report plugin.BackupReport) error {
	s := summarize(report, 0)
	switch {
	case s.Failed+s.Degraded == 0:
		return nil
	case s.Succeeded+s.Degraded > 0:
		return partial{exitPartial}
	}
	code := exitFailure
	for i, m := range report.Machines {
		var c int
		if m.Err != nil {
			c = exitCode(m.Err)
		}
		if i == 0 {
			code = c
		}
		if c != code || c == exitOK {
			return partial{exitFailure}
		}
	}
	return partial{code}
}

func (a *app) writeBackup(report plugin.BackupReport, took time.Duration) {
	sum := summarize(report, took)
	if a.json {
		writeJSON(a.stdout, "summary", sum)
		return
	}
	if len(report.Machines) == 0 {
		return
	}
	g := grid{head: []string{"MACHINE", "POINT", "DISK", "HOW", ">SIZE", ">READ", ">NEW", ">STORED", ">TIME"}}
	for _, m := range report.Machines {
		if m.Point == nil {
			g.add(m.Machine.Name, "failed", "", "", "", "", "", "", "")
			continue
		}
		p := m.Point
		g.add(p.Machine, short(p.ID), count(len(p.Disks), "disk"), consistency(p.Consistency), size(p.Stats.Size), size(p.Stats.Read), size(p.Stats.New), size(p.Stats.Stored), elapsed(p.Stats.Duration))
		for _, d := range p.Disks {
			g.add("", "", d.Name, how(*p, d), size(d.Capacity), size(d.Read), "", "", "")
		}
	}
	g.write(a.stdout)
	for _, m := range report.Machines {
		if m.Err != nil {
			fmt.Fprintln(a.stdout)
			for _, line := range remark(m.Machine.Name+": ", m.Err.Diagnostic()) {
				fmt.Fprintln(a.stdout, line)
			}
		}
		for _, d := range m.Warnings {
			for _, line := range remark(m.Machine.Name+": ", d) {
				fmt.Fprintln(a.stdout, line)
			}
		}
	}
	fmt.Fprintf(a.stdout, "\n%s backed up", count(sum.Succeeded+sum.Degraded, "machine"))
	if sum.Degraded > 0 {
		fmt.Fprintf(a.stdout, " (%d not as asked)", sum.Degraded)
	}
	if sum.Failed > 0 {
		fmt.Fprintf(a.stdout, ", %d failed", sum.Failed)
	}
	fmt.Fprintf(a.stdout, "; read %s of %s, stored %s in %s\n", size(sum.Stats.Read), size(sum.Stats.Size), size(sum.Stats.Stored), elapsed(took))
}

// how says in which way a disk of a point was read, and why, and how it was cut unless as restic does.
func how(p plugin.Point, d plugin.PointDisk) string {
	if d.Skipped != "" {
		return "skipped: " + d.Skipped
	}
	way := "full"
	if d.Incremental {
		way = "incremental"
	}
	if d.Reason != "" {
		way += ": " + d.Reason
	}
	if p.Chunking != "" && p.Chunking != "restic" {
		way += ", cut by " + p.Chunking
	}
	return way
}

// consistency is what a point guarantees, in words.
func consistency(c plugin.Consistency) string {
	switch c {
	case plugin.ConsistencyApplication:
		return "applications quiesced"
	case plugin.ConsistencyFileSystem:
		return "file systems quiesced"
	case plugin.ConsistencyCrash:
		return "crash-consistent"
	case plugin.ConsistencyOff:
		return "powered off"
	}
	return string(c)
}

func (a *app) pointsCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "points [MACHINE...]", Short: "List recovery points",
		Long: `List the recovery points of all machines, or of those that are named (names, globs or instanceUuids). Every point is a
full one. With --disks also how each disk was read, and why.`, Example: "  vmkeep points\n  vmkeep points web1 --since 2026-11-01 -l"}
	var filter plugin.PointFilter
	var since, until string
	f := cmd.Flags()
	f.StringSliceVar(&filter.IDs, "id", nil, "only these points: ids, prefixes, or latest")
	f.StringSliceVar(&filter.Tags, "tag", nil, "only points with these tags")
	f.StringVar(&since, "since", "", "not before: 2026-11-23, \"2026-11-23 14:00\", or a duration back: 36h, 7d")
	f.StringVar(&until, "until", "", "not after")
	f.BoolVarP(&filter.Details, "disks", "l", false, "list the disks, and how they were read")
	cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
		filter.Machines = args
		if filter.Since, err = parseTime(since, time.Now()); err == nil {
			filter.Until, err = parseTime(until, time.Now())
		}
		if err != nil {
			return wrongUse(cmd, "%v", err)
		}
		return a.withPlugin(cmd, func(ctx context.Context, s session) error {
			points, err := s.Points(ctx, filter)
			if err != nil {
				return err
			}
			if a.json {
				for _, p := range points {
					writeJSON(a.stdout, "point", p)
				}
				return nil
			}
			if len(points) == 0 && len(args) > 0 {
				fmt.Fprintf(a.stdout, "no points of %s\n", strings.Join(args, ", "))
				return nil
			}
			writePoints(a.stdout, points)
			return nil
		})
	}
	return cmd
}

func writePoints(w io.Writer, points []plugin.Point) {
	if len(points) == 0 {
		fmt.Fprintln(w, "no points")
		return
	}
	g := grid{head: []string{"POINT", "TIME", "MACHINE", "CONSISTENCY", ">SIZE", ">STORED", "TAGS"}}
	for _, p := range points {
		tags := strings.Join(chosenTags(p.Tags), ",")
		if p.Damage != "" {
			tags = strings.TrimSpace(tags + " DAMAGED: " + p.Damage)
		}
		g.add(short(p.ID), when(p.Time), p.Machine, consistency(p.Consistency), size(p.Stats.Size), size(p.Stats.Stored), tags)
		for _, d := range p.Disks {
			g.add("", "", "  "+d.Name, how(p, d), size(d.Capacity), "", d.Label)
		}
	}
	g.write(w)
}

// chosenTags are the tags that people gave: vmkeep's own tell restic users what the other columns tell here.
func chosenTags(all []string) []string {
	var chosen []string
	for _, tag := range all {
		name, _, _ := strings.Cut(tag, "=")
		if !slices.Contains([]string{"vmkeep", "vm", "vc", "app", "fs", "crash", "off"}, name) {
			chosen = append(chosen, tag)
		}
	}
	return chosen
}

// parseTime reads a point in time as people give it: a date, a time, RFC 3339, or a duration back from now. "" is
// the zero time.
func parseTime(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02 15:04:05", "2006-01-02 15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t.UTC(), nil
		}
	}
	text := s
	if days, ok := strings.CutSuffix(s, "d"); ok {
		if n, err := strconv.Atoi(days); err == nil {
			text = strconv.Itoa(24*n) + "h"
		}
	}
	if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		return now.Add(-d).UTC(), nil
	}
	return time.Time{}, fmt.Errorf("%q is neither a date, a time nor a duration", s)
}
