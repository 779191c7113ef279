package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmkeep/vmkeep/cmd/internal/build"
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
		SilenceErrors:     true,
		SilenceUsage:      true,
		DisableAutoGenTag: true,
		Args:              cobra.NoArgs,
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
	return fmt.Errorf("%s; see \"%s --help\"", fmt.Sprintf(format, args...), cmd.CommandPath())
}
