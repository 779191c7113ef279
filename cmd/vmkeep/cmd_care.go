package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/vmkeep/vmkeep/plugin"
)

func (a *app) checkCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "check", Short: "Check the repository", Args: takes(0, 0),
		Long: `Check the repository: its structure, and with --read-data that every byte is what was stored.
vmkeep-check does the same without vSphere and without a plugin.`}
	var r plugin.CheckRequest
	cmd.Flags().BoolVar(&r.ReadData, "read-data", false, "read all data")
	cmd.Flags().StringVar(&r.Subset, "read-data-subset", "", "read some of the data: n/t (part n of t), a percentage, or a size")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return a.withPlugin(cmd, func(ctx context.Context, s session) error {
			w := a.watch()
			report, err := s.Check(ctx, r, w.emit)
			w.finish()
			if err != nil {
				return err
			}
			a.writeCheck(report)
			if len(report.Errors) > 0 {
				return partial{exitFailure}
			}
			return nil
		})
	}
	return cmd
}

func (a *app) writeCheck(r plugin.CheckReport) {
	if a.json {
		writeJSON(a.stdout, "summary", r)
		return
	}
	for _, d := range append(append([]plugin.Diagnostic{}, r.Hints...), r.Errors...) {
		for _, line := range remark("", d) {
			fmt.Fprintln(a.stdout, line)
		}
	}
	fmt.Fprintf(a.stdout, "repository %s: %s, %s, %d blobs", short(r.Repository.ID), count(r.Snapshots, "point"), count(r.Packs, "pack"), r.Blobs)
	if r.PacksRead > 0 {
		fmt.Fprintf(a.stdout, "; read %s of %s", size(r.BytesRead), count(r.PacksRead, "pack"))
	}
	verdict := "no errors were found"
	if n := len(r.Errors); n > 0 {
		verdict = count(n, "error") + " found"
	}
	fmt.Fprintf(a.stdout, "\n%s\n", verdict)
}

func (a *app) verifyCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "verify [NAME...]", Short: "Compare points with the live machines",
		Long: `Compare what the newest points kept without reading, because change tracking reported no change, with the
machines as they are: the only way to notice that change tracking lied. A backup that is due heals what is found.`}
	sel := selection(cmd)
	var r plugin.VerifyRequest
	f := cmd.Flags()
	live := f.Bool("against-live", true, "compare with the machines (there is nothing else to compare with)")
	f.Float64Var(&r.Sample, "sample", 0, "share of the kept data to compare, 0 to 1 (default 0.02)")
	everySample := f.Bool("everything", false, "compare all of it")
	all := f.Bool("all", false, "all machines")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		sel.Names = args
		r.Selection = *sel
		if everything(*sel) != *all {
			return wrongUse(cmd, "name machines, or give --all")
		}
		if !*live {
			return wrongUse(cmd, "points are compared with the live machines; without them, `vmkeep check --read-data` checks the repository")
		}
		if *everySample {
			r.Sample = 1
		}
		if r.Sample < 0 || r.Sample > 1 {
			return wrongUse(cmd, "--sample %g is not between 0 and 1", r.Sample)
		}
		return a.withPlugin(cmd, func(ctx context.Context, s session) error {
			w := a.watch()
			report, err := s.Verify(ctx, r, w.emit)
			w.finish()
			if err != nil {
				return err
			}
			return a.writeVerify(report)
		})
	}
	return cmd
}

func (a *app) writeVerify(r plugin.VerifyReport) error {
	if a.json {
		writeJSON(a.stdout, "summary", r)
	}
	different, failed := 0, 0
	g := grid{head: []string{"MACHINE", "POINT", ">COMPARED", "RESULT"}}
	for _, m := range r.Machines {
		result := "equal"
		switch {
		case m.Err != nil:
			result = m.Err.Error()
			failed++
		case len(m.Different) > 0:
			var where []string
			for _, d := range m.Different {
				var n int64
				for _, e := range d.Ranges {
					n += e.Len
				}
				where = append(where, fmt.Sprintf("%s %s in %s", d.Disk, size(n), count(len(d.Ranges), "place")))
			}
			result = "DIFFERENT: " + strings.Join(where, ", ")
			different++
		case m.Compared == 0:
			result = "nothing compared"
		}
		g.add(m.Machine, short(m.Point), size(m.Compared), result)
	}
	if !a.json {
		g.write(a.stdout)
		if different > 0 {
			fmt.Fprintln(a.stdout, "\nchange tracking has missed changes: run \"vmkeep backup --full --reset-tracking\" for these machines")
		}
	}
	switch {
	case different > 0:
		return partial{exitFailure}
	case failed > 0 && failed < len(r.Machines):
		return partial{exitPartial}
	case failed > 0:
		return partial{exitFailure}
	}
	return nil
}

func (a *app) forgetCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "forget [POINT...]", Short: "Remove points by policy, or by id",
		Long: `Remove points: those that are named, or those that a policy does not keep. Policies are restic's, and are applied
to each machine by itself. The space is freed by "vmkeep prune", or with --prune.`,
		Example: "  vmkeep forget --keep-daily 7 --keep-weekly 5 --keep-monthly 12 --prune\n  vmkeep forget 1a2b3c4d"}
	var r plugin.ForgetRequest
	f := cmd.Flags()
	f.SortFlags = false
	for _, rule := range []struct {
		name, short, kept string
		into              *int
	}{
		{"keep-last", "l", "points", &r.Last}, {"keep-hourly", "H", "hourly points", &r.Hourly}, {"keep-daily", "d", "daily points", &r.Daily},
		{"keep-weekly", "w", "weekly points", &r.Weekly}, {"keep-monthly", "", "monthly points", &r.Monthly}, {"keep-yearly", "y", "yearly points", &r.Yearly},
	} {
		f.VarP((*keepCount)(rule.into), rule.name, rule.short, "keep the last n "+rule.kept+"; \"unlimited\": all")
	}
	f.StringVar(&r.Within, "keep-within", "", "keep points newer than this before the latest: 1y5m7d2h")
	for _, rule := range []struct {
		of   string
		into *string
	}{
		{"hourly", &r.WithinHourly}, {"daily", &r.WithinDaily}, {"weekly", &r.WithinWeekly}, {"monthly", &r.WithinMonthly}, {"yearly", &r.WithinYearly},
	} {
		f.StringVar(rule.into, "keep-within-"+rule.of, "", "keep "+rule.of+" points newer than this before the latest")
	}
	f.StringArrayVar(&r.KeepTags, "keep-tag", nil, "keep points that have all of these tags, separated by commas (repeatable)")
	f.StringSliceVarP(&r.Machines, "machine", "m", nil, "only points of these machines (globs)")
	f.BoolVarP(&r.DryRun, "dry-run", "n", false, "only tell what would be removed")
	prune := f.Bool("prune", false, "free the space afterwards")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		r.IDs = args
		policy := false
		f.Visit(func(given *pflag.Flag) { policy = policy || strings.HasPrefix(given.Name, "keep-") })
		switch {
		case policy && len(args) > 0:
			return wrongUse(cmd, "a policy and single points contradict each other")
		case !policy && len(args) == 0:
			return wrongUse(cmd, "no policy is given, and no point: nothing would be kept")
		}
		return a.withPlugin(cmd, func(ctx context.Context, s session) error {
			report, err := s.Forget(ctx, r)
			if err != nil {
				return err
			}
			a.writeForget(report, r.DryRun)
			if !*prune || len(report.Remove) == 0 && !r.DryRun {
				return nil
			}
			return a.prune(ctx, s, plugin.PruneRequest{DryRun: r.DryRun})
		})
	}
	return cmd
}

// keepCount is how many points a rule keeps, in restic's spelling: a number, or "unlimited".
type keepCount int

func (k *keepCount) Type() string { return "n" }

func (k *keepCount) String() string {
	if *k == -1 {
		return "unlimited"
	}
	return strconv.Itoa(int(*k))
}

func (k *keepCount) Set(s string) error {
	if s == "unlimited" {
		*k = -1
		return nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 {
		return errors.New("want a number of points, or unlimited")
	}
	*k = keepCount(n)
	return nil
}

// forgetLine is one point in the JSON of a forget.
type forgetLine struct {
	Action  string // keep, remove
	Reasons []string
	Point   plugin.Point
}

func (a *app) writeForget(r plugin.ForgetReport, dry bool) {
	if a.json {
		for _, k := range r.Keep {
			writeJSON(a.stdout, "forget", forgetLine{"keep", k.Reasons, k.Point})
		}
		for _, p := range r.Remove {
			writeJSON(a.stdout, "forget", forgetLine{"remove", nil, p})
		}
		return
	}
	if len(r.Keep)+len(r.Remove) == 0 {
		fmt.Fprintln(a.stdout, "no points")
		return
	}
	g := grid{head: []string{"", "POINT", "TIME", "MACHINE", "REASONS"}}
	for _, k := range r.Keep {
		g.add("keep", short(k.Point.ID), when(k.Point.Time), k.Point.Machine, strings.Join(k.Reasons, ", "))
	}
	for _, p := range r.Remove {
		g.add("remove", short(p.ID), when(p.Time), p.Machine, "")
	}
	g.write(a.stdout)
	word := "removed"
	if dry {
		word = "would be removed"
	}
	fmt.Fprintf(a.stdout, "\n%s kept, %d %s\n", count(len(r.Keep), "point"), len(r.Remove), word)
}

func (a *app) pruneCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "prune", Short: "Free the space that no point needs", Args: takes(0, 0),
		Long: `Free the space that no point needs: packs of which nothing is needed are deleted, and packs of which much is not needed
are rewritten, as far as --max-unused demands. Points are never touched. Nobody else can write meanwhile.`}
	var r plugin.PruneRequest
	f := cmd.Flags()
	f.StringVar(&r.MaxUnused, "max-unused", "", "leave so much unused rather than repack: 5%, a size, or unlimited (default 5%)")
	f.StringVar(&r.MaxRepack, "max-repack-size", "", "repack at most so much")
	f.BoolVar(&r.RepackSmall, "repack-small", false, "repack packs below the size that new ones get")
	f.BoolVar(&r.RepackUncompressed, "repack-uncompressed", false, "repack what is not compressed")
	f.BoolVarP(&r.DryRun, "dry-run", "n", false, "only tell what would be done")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return a.withPlugin(cmd, func(ctx context.Context, s session) error { return a.prune(ctx, s, r) })
	}
	return cmd
}

func (a *app) prune(ctx context.Context, s session, r plugin.PruneRequest) error {
	w := a.watch()
	report, err := s.Prune(ctx, r, w.emit)
	w.finish()
	if err != nil {
		return err
	}
	if a.json {
		writeJSON(a.stdout, "summary", report)
		return nil
	}
	g := grid{head: []string{"", ">PACKS", ">SIZE"}}
	g.add("kept", fmt.Sprint(report.PacksKept), size(report.BytesKept))
	g.add("repacked", fmt.Sprint(report.PacksRepacked), size(report.BytesRepacked))
	g.add("removed", fmt.Sprint(report.PacksRemoved), size(report.BytesFreed))
	g.write(a.stdout)
	for _, d := range report.Notes {
		for _, line := range remark("", d) {
			fmt.Fprintln(a.stdout, line)
		}
	}
	verb := "freed"
	if r.DryRun {
		verb = "would be freed"
	}
	fmt.Fprintf(a.stdout, "\n%s %s; %s remain unused\n", size(report.BytesFreed), verb, size(report.BytesUnused))
	return nil
}

func (a *app) recoverCommand() *cobra.Command {
	return &cobra.Command{Use: "recover", Short: "Undo what interrupted operations left on vSphere", Args: takes(0, 0),
		Long: `Undo what interrupted operations left on vSphere: snapshots, attached disks, half-made machines. Only what vmkeep
made is touched, and of that nothing which a restore is to go on with (--keep-partial). Every backup does this first;
the command is for when none is due.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withPlugin(cmd, func(ctx context.Context, s session) error {
				w := a.watch()
				report, err := s.Recover(ctx, w.emit)
				w.finish()
				if err != nil {
					return err
				}
				return a.writeRecover(report)
			})
		}}
}

func (a *app) writeRecover(r plugin.RecoverReport) error {
	if a.json {
		writeJSON(a.stdout, "summary", r)
	} else {
		for _, l := range r.Undone {
			fmt.Fprintf(a.stdout, "undone: %s of %s %s\n", l.Kind, l.Machine, l.Detail)
		}
		for _, l := range r.Remaining {
			why := ""
			if l.Err != nil {
				why = ": " + strings.TrimSpace(spell(*l.Err))
			}
			fmt.Fprintf(a.stdout, "remains: %s of %s %s%s\n", l.Kind, l.Machine, l.Detail, why)
		}
		if len(r.Undone)+len(r.Remaining) == 0 {
			fmt.Fprintln(a.stdout, "nothing was left")
		}
	}
	if len(r.Remaining) > 0 {
		return partial{exitFailure}
	}
	return nil
}

func (a *app) doctorCommand() *cobra.Command {
	return &cobra.Command{Use: "doctor", Short: "Examine the installation and say what to do", Args: takes(0, 0),
		Long: `Examine what a backup will need, change nothing, and say what to do: repository, state directory, vSphere session,
certificate and clock, privileges for backup and restore, ports 443 and 902 of the hosts, change tracking and VMware Tools
of the machines, and what interrupted runs have left. With --vddk DIR also VMware's library there: version, files,
loader path. With --transport hotadd also the machine that this one is. It needs neither a repository nor a machine.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withPlugin(cmd, func(ctx context.Context, s session) error {
				began := time.Now()
				findings, err := s.Doctor(ctx)
				if err != nil {
					return err
				}
				bad := 0
				for _, f := range findings {
					if !f.OK {
						bad++
					}
					if a.json {
						writeJSON(a.stdout, "finding", f)
						continue
					}
					mark := "ok  "
					if !f.OK {
						mark = "FAIL"
					}
					fmt.Fprintf(a.stdout, "%s  %s", mark, f.Name)
					if f.Detail != "" {
						fmt.Fprintf(a.stdout, ": %s", f.Detail)
					}
					fmt.Fprintln(a.stdout)
					if f.Remedy != "" && !f.OK {
						fmt.Fprintf(a.stdout, "      -> %s\n", f.Remedy)
					}
				}
				if !a.json {
					fmt.Fprintf(a.stdout, "\n%s in %s, %d to be looked at\n", count(len(findings), "examination"), elapsed(time.Since(began)), bad)
				}
				if bad > 0 {
					return partial{exitFailure}
				}
				return nil
			})
		}}
}
