package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmkeep/vmkeep/cmd/internal/build"
	"github.com/vmkeep/vmkeep/plugin"
)

// root is the command line.
func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "vmkeep",
		Short: "Back up VMware machines into a restic repository, and restore them",
		Long: `vmkeep backs up VMware machines without an agent in them: it takes a snapshot, reads what changed since the
last point, removes the snapshot, and keeps the result, deduplicated and encrypted, in a repository that restic
reads as well. Every point restores on its own; there are no chains.`,
		Example: `  export GOVC_URL=https://backup@vc.example GOVC_PASSWORD=... RESTIC_REPOSITORY=/srv/vmkeep RESTIC_PASSWORD_FILE=~/.pw
  vmkeep init
  vmkeep backup 'web*'
  vmkeep points
  vmkeep restore latest --machine web1 --name web1-restored`,
		Version:           build.Version(),
		TraverseChildren:  true, // flags before "lab" are for this program, whatever comes after is for the lab
		SilenceErrors:     true,
		SilenceUsage:      true,
		DisableAutoGenTag: true,
		Args:              subcommandOnly,
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetVersionTemplate("vmkeep {{.Version}} (" + build.Platform() + ")\n")
	f := root.PersistentFlags()
	f.SortFlags = false
	f.StringVarP(&a.config, "config", "c", "", "configuration file; default: vmkeep.yaml here, in the user's or in the system's configuration")
	f.BoolVar(&a.json, "json", false, "write JSON lines (\"vmkeep help json\")")
	f.BoolVarP(&a.quiet, "quiet", "q", false, "show no progress")
	f.CountVarP(&a.verbose, "verbose", "v", "show the plugin's log; twice: all of it")
	f.BoolVar(&a.noBars, "no-bars", false, "show plain lines instead of bars")
	for _, s := range settings() {
		if s.flag == "" {
			continue
		}
		doc := s.doc
		if s.env != "" {
			doc += " [$" + s.env + "]"
		}
		switch s.kind {
		case boolean:
			f.BoolP(s.flag, s.short, false, doc)
		case list:
			f.StringSliceP(s.flag, s.short, nil, doc)
		case pairs:
			f.StringArrayP(s.flag, s.short, nil, doc)
		default:
			f.StringP(s.flag, s.short, "", doc)
		}
	}
	root.SetUsageTemplate(strings.NewReplacer(
		// The general flags are many and the same everywhere; once is enough.
		`{{if .HasAvailableInheritedFlags}}

Global Flags:
{{.InheritedFlags.FlagUsages | trimTrailingWhitespaces}}{{end}}`, `{{if .HasAvailableInheritedFlags}}

General flags, which all commands have: see "vmkeep --help".{{end}}`).Replace(root.UsageTemplate()))
	root.AddGroup(&cobra.Group{ID: "daily", Title: "Daily work:"}, &cobra.Group{ID: "care", Title: "Care:"}, &cobra.Group{ID: "about", Title: "About vmkeep:"})
	root.SetHelpCommand(helpCommand())
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return wrongUse(cmd, "%s", err) })
	root.SetHelpCommandGroupID("about")
	root.SetCompletionCommandGroupID("about")
	group := func(id string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = id
			root.AddCommand(c)
		}
	}
	group("daily", a.initCommand(), a.machinesCommand(), a.backupCommand(), a.pointsCommand(), a.restoreCommand(), a.filesCommand(), a.catCommand())
	group("care", a.checkCommand(), a.verifyCommand(), a.forgetCommand(), a.pruneCommand(), a.statsCommand(),
		a.recoverCommand(), a.doctorCommand(), a.unlockCommand(), a.keyCommand(), a.repairCommand())
	group("about", a.labCommand(), a.envCommand(), a.versionCommand(), a.manCommand())
	root.AddCommand(topics()...)
	return root
}

// wrongUse is the error for arguments that do not fit together.
func wrongUse(cmd *cobra.Command, format string, args ...any) error {
	return &plugin.Error{Code: plugin.CodeInvalid, Summary: fmt.Sprintf(format, args...), Remedy: "see `" + cmd.CommandPath() + " --help`"}
}

// takes demands at least so many arguments; at most as many, unless most is larger or negative, which means any number.
func takes(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		usage := cmd.CommandPath()
		if _, want, ok := strings.Cut(cmd.Use, " "); ok {
			usage += " " + want
		}
		switch {
		case len(args) < least:
			return wrongUse(cmd, "an argument is missing: %s", usage)
		case most >= 0 && len(args) > most:
			return wrongUse(cmd, "%q is one argument too many: %s", args[most], usage)
		}
		return nil
	}
}

// subcommandOnly is for commands that only have others below them.
func subcommandOnly(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	text := fmt.Sprintf("unknown command %q", strings.TrimSpace(strings.TrimPrefix(cmd.CommandPath()+" "+args[0], "vmkeep ")))
	cmd.SuggestionsMinimumDistance = 2
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		text += "; did you mean " + strings.Join(near, " or ") + "?"
	}
	return wrongUse(cmd, "%s", text)
}

// helpCommand is cobra's, but for an error where there is no such command.
func helpCommand() *cobra.Command {
	return &cobra.Command{Use: "help [COMMAND]", Short: "Help about any command or topic", RunE: func(cmd *cobra.Command, args []string) error {
		found, rest, err := cmd.Root().Find(args)
		if err != nil || len(rest) > 0 {
			return subcommandOnly(cmd.Root(), args)
		}
		found.InitDefaultHelpFlag()
		return found.Help()
	}}
}
