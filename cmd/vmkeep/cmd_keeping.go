package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/vmkeep/vmkeep/plugin"
)

// Commands that keep the repository itself. None of them contacts vSphere.

func (a *app) statsCommand() *cobra.Command {
	return &cobra.Command{Use: "stats", Short: "Show what each machine takes in the repository", Args: takes(0, 0),
		Long: `Show what each machine's points take in the repository. LOGICAL is what restoring every point would write, UNIQUE
its distinct chunks, STORED what they take compressed, and EXCLUSIVE what forgetting all points of the machine would
free, because no other machine needs it. All directories of all points are read.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withPlugin(cmd, func(ctx context.Context, s session) error {
				st, err := s.Stats(ctx)
				if err != nil {
					return err
				}
				a.writeStats(st)
				return nil
			})
		}}
}

func (a *app) writeStats(st plugin.Statistics) {
	if a.json {
		writeJSON(a.stdout, "summary", st)
		return
	}
	g := grid{head: []string{"MACHINE", ">POINTS", ">LATEST", ">LOGICAL", ">UNIQUE", ">STORED", ">EXCLUSIVE", ">DEDUP", ">COMPRESSION"}}
	add := func(name string, u plugin.Usage) {
		g.add(name, fmt.Sprint(u.Points), size(u.Latest), size(u.Logical), size(u.Unique), size(u.Stored), size(u.Exclusive), times(u.Logical, u.Unique), times(u.Unique, u.Stored))
	}
	for _, u := range st.Machines {
		add(u.Machine, u)
	}
	add("all", st.Total)
	g.write(a.stdout)
	fmt.Fprintf(a.stdout, "\nrepository %s: %s of %s, %s of it not needed by any point\n", short(st.Repository.ID), count(st.Packs, "pack"), size(st.PackBytes), size(st.Unused))
}

// times spells how many times larger a is than b: "3.1x".
func times(a, b int64) string {
	if b == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1fx", float64(a)/float64(b))
}

func (a *app) unlockCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "unlock", Short: "Remove locks that dead processes left in the repository", Args: takes(0, 0),
		Long: `Remove the locks of processes that are gone: of this host, where the process no longer exists, and of others, where
nobody has refreshed the lock for 30 minutes. Commands do the first by themselves. With --all every lock goes: make sure
that nothing works on the repository.`}
	var r plugin.UnlockRequest
	cmd.Flags().BoolVar(&r.All, "all", false, "remove every lock, whoever holds it")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return a.withPlugin(cmd, func(ctx context.Context, s session) error {
			report, err := s.Unlock(ctx, r)
			if err != nil {
				return err
			}
			if a.json {
				writeJSON(a.stdout, "summary", report)
				return nil
			}
			for _, l := range report.Removed {
				fmt.Fprintf(a.stdout, "removed: %s\n", lockText(l))
			}
			for _, l := range report.Remaining {
				fmt.Fprintf(a.stdout, "remains: %s\n", lockText(l))
			}
			fmt.Fprintf(a.stdout, "%s removed, %d left\n", count(len(report.Removed), "lock"), len(report.Remaining))
			return nil
		})
	}
	return cmd
}

func lockText(l plugin.Lock) string {
	if l.Note != "" {
		return short(l.ID) + ": " + l.Note
	}
	kind := "shared"
	if l.Exclusive {
		kind = "exclusive"
	}
	return fmt.Sprintf("%s, %s, of %s@%s, process %d, refreshed %s ago", short(l.ID), kind, l.Username, l.Hostname, l.PID, elapsed(time.Since(l.Time).Round(time.Second)))
}

func (a *app) keyCommand() *cobra.Command {
	key := &cobra.Command{Use: "key", Short: "List, add and remove passwords of the repository",
		Long: `List, add and remove the keys of the repository. Each key is a password that opens it; all open the same data. Who has
once opened the repository may have kept what encrypts it: removing a key does not take that away.`,
		Args: subcommandOnly, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	list := &cobra.Command{Use: "list", Short: "List the keys", Args: takes(0, 0), RunE: func(cmd *cobra.Command, _ []string) error {
		return a.withPlugin(cmd, func(ctx context.Context, s session) error {
			keys, err := s.Keys(ctx)
			if err != nil {
				return err
			}
			a.writeKeys(keys)
			return nil
		})
	}}
	add := a.newKeyCommand(&cobra.Command{Use: "add", Short: "Add a key with another password"}, session.AddKey)
	passwd := a.newKeyCommand(&cobra.Command{Use: "passwd", Short: "Replace the key in use by one with another password"}, session.ChangePassword)
	remove := &cobra.Command{Use: "remove KEY", Short: "Remove a key by its id", Args: takes(1, 1), RunE: func(cmd *cobra.Command, args []string) error {
		return a.withPlugin(cmd, func(ctx context.Context, s session) error {
			if err := s.RemoveKey(ctx, args[0]); err != nil {
				return err
			}
			if !a.json {
				fmt.Fprintf(a.stdout, "removed key %s\n", args[0])
			}
			return nil
		})
	}}
	key.AddCommand(list, add, passwd, remove)
	return key
}

func (a *app) writeKeys(keys []plugin.Key) {
	g := grid{head: []string{"", "KEY", "USER", "HOST", "CREATED"}}
	for _, k := range keys {
		if a.json {
			writeJSON(a.stdout, "key", k)
			continue
		}
		mark := ""
		if k.Current {
			mark = "*"
		}
		if k.Note != "" {
			g.add(mark, short(k.ID), "cannot be used: "+k.Note, "", "")
			continue
		}
		g.add(mark, short(k.ID), k.Username, k.Hostname, when(k.Created))
	}
	if !a.json {
		g.write(a.stdout)
	}
}

// newKeyCommand completes a command that makes a key.
func (a *app) newKeyCommand(cmd *cobra.Command, call func(session, context.Context, plugin.KeyRequest) (plugin.Key, error)) *cobra.Command {
	cmd.Args = takes(0, 0)
	var r plugin.KeyRequest
	file := cmd.Flags().String("new-password-file", "", "file that holds the new password; else it is asked for")
	cmd.Flags().StringVar(&r.Username, "user", "", "user name to show in the list of keys")
	cmd.Flags().StringVar(&r.Hostname, "host", "", "host name to show in the list of keys")
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		if r.Password, err = a.newPassword(cmd, *file); err != nil {
			return err
		}
		return a.withPlugin(cmd, func(ctx context.Context, s session) error {
			key, err := call(s, ctx, r)
			if err != nil {
				return err
			}
			a.writeKeys([]plugin.Key{key})
			return nil
		})
	}
	return cmd
}

// newPassword reads a new password from a file or, twice, from the terminal.
func (a *app) newPassword(cmd *cobra.Command, file string) (string, error) {
	const what = "the new password"
	if file != "" {
		password, err := readText(file)
		if err == nil && password == "" {
			err = errors.New(file + " is empty")
		}
		if err != nil {
			return "", badSecret(what, err)
		}
		return password, nil
	}
	in := int(a.stdin.Fd())
	if a.json || !term.IsTerminal(in) {
		return "", wrongUse(cmd, "no new password is given: use --new-password-file, or a terminal")
	}
	var typed [2][]byte
	for i, prompt := range []string{"new password of the repository: ", "once more: "} {
		fmt.Fprint(a.stderr, prompt)
		var err error
		typed[i], err = term.ReadPassword(in)
		fmt.Fprintln(a.stderr)
		if err != nil {
			return "", badSecret(what, err)
		}
	}
	if !bytes.Equal(typed[0], typed[1]) {
		return "", badSecret(what, errors.New("what was typed differs"))
	}
	return string(typed[0]), nil
}

func (a *app) repairCommand() *cobra.Command {
	repair := &cobra.Command{Use: "repair", Short: "Repair the index, or points that need what is lost",
		Long: `Repair a damaged repository, in this order: "vmkeep repair index", then "vmkeep backup", which stores again what the
machines still have, then, if "vmkeep check" still finds points damaged, "vmkeep repair points".`,
		Args: subcommandOnly, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	repair.AddCommand(a.repairIndexCommand(), a.repairPointsCommand())
	return repair
}

func (a *app) repairIndexCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "index", Short: "Make the index say what the packs hold", Args: takes(0, 0),
		Long: `Make the index say what the packs hold. With --read-data packs are read as a whole: damaged chunks leave the index, so
that the next backup stores them again if the machine still has them, and the good ones move to new packs. The damaged
packs are deleted then, for a later repair would believe their headers and promise what is lost; if intact copies of
their files can be brought back, do that first.`}
	var r plugin.RepairIndexRequest
	f := cmd.Flags()
	f.BoolVar(&r.AllHeaders, "read-all-packs", false, "believe nothing of the index and read the header of every pack")
	readData := f.Bool("read-data", false, "read all packs as a whole")
	f.StringVar(&r.Subset, "read-data-subset", "", "read some packs as a whole: n/t (part n of t), a percentage, or a size")
	f.BoolVarP(&r.DryRun, "dry-run", "n", false, "only tell what would be done")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *readData {
			r.Subset = "all"
		}
		return a.withPlugin(cmd, func(ctx context.Context, s session) error {
			w := a.watch()
			report, err := s.RepairIndex(ctx, r, w.emit)
			w.finish()
			if err != nil {
				return err
			}
			a.writeRepairIndex(report, r.DryRun)
			return nil
		})
	}
	return cmd
}

func (a *app) writeRepairIndex(r plugin.RepairIndexReport, dry bool) {
	if a.json {
		writeJSON(a.stdout, "summary", r)
		return
	}
	for _, line := range []struct {
		what  string
		files []string
	}{
		{"unreadable index files", r.BadIndexFiles},
		{"packs read into the index", r.AddedPacks},
		{"packs that are missing", r.LostPacks},
		{"packs that cannot be read", r.UnreadablePacks},
		{"packs with damage, deleted after their good chunks moved", r.SalvagedPacks},
		{"of these, not deleted since their storage broke off: bring it in order, then run \"vmkeep repair index\" again", r.KeptPacks},
	} {
		if len(line.files) > 0 {
			fmt.Fprintf(a.stdout, "%s: %d\n", line.what, len(line.files))
			for _, f := range line.files {
				fmt.Fprintf(a.stdout, "  %s\n", f)
			}
		}
	}
	verdict := map[[2]bool]string{
		{false, false}: "the index is as it should be", {false, true}: "the index is as it should be",
		{true, false}: "the index was repaired", {true, true}: "the index would be repaired",
	}
	fmt.Fprintln(a.stdout, verdict[[2]bool{r.Changed, dry}])
	if r.LostBlobs > 0 {
		fmt.Fprintf(a.stdout, "%s lost: back up again, which stores what the machines still have; then \"vmkeep check\" tells which points are damaged\n", count(r.LostBlobs, "chunk"))
	}
}

func (a *app) repairPointsCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "points [POINT...]", Short: "Replace points that need what is lost by ones that restore",
		Long: `Replace points that need what is lost by ones that restore: a lost chunk becomes zeros of the same length, so that
nothing behind it moves, and is reported as a range of its disk. The replacement keeps the point's time and is tagged
"repaired"; the next backup trusts nothing of it and reads the machine in full. Repair the index first.`}
	var r plugin.RepairPointsRequest
	f := cmd.Flags()
	f.BoolVar(&r.Forget, "forget", false, "remove the damaged points that were replaced")
	f.BoolVarP(&r.DryRun, "dry-run", "n", false, "only tell what is lost")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		r.IDs = args
		return a.withPlugin(cmd, func(ctx context.Context, s session) error {
			w := a.watch()
			report, err := s.RepairPoints(ctx, r, w.emit)
			w.finish()
			if err != nil {
				return err
			}
			a.writeRepairPoints(report)
			return nil
		})
	}
	return cmd
}

func (a *app) writeRepairPoints(r plugin.RepairPointsReport) {
	for _, p := range r.Points {
		if a.json {
			writeJSON(a.stdout, "repaired", p)
			continue
		}
		fate := "not replaced"
		switch {
		case p.Lost:
			fate = "lost as a whole"
		case p.Replacement != "":
			fate = "replaced by " + short(p.Replacement)
		}
		fmt.Fprintf(a.stdout, "%s of %s, %s: %s\n", short(p.Point.ID), p.Point.Machine, when(p.Point.Time), fate)
		for _, d := range p.Damage {
			fmt.Fprintf(a.stdout, "  %s\n", damageText(d))
		}
	}
	if !a.json {
		fmt.Fprintf(a.stdout, "%s damaged\n", count(len(r.Points), "point"))
	}
}

func damageText(d plugin.PointDamage) string {
	var parts []string
	var lost int64
	for _, r := range d.Ranges {
		lost += r.Len
		parts = append(parts, fmt.Sprintf("%d+%d", r.Off, r.Len))
	}
	what := d.Path
	if d.Disk != "" {
		what = "disk " + d.Disk
	}
	if lost > 0 {
		what += fmt.Sprintf(": %s lost, now zeros, at %s", size(lost), strings.Join(parts, ", "))
	}
	if d.Note != "" {
		what += ": " + d.Note
	}
	return what
}
