package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/vmkeep/vmkeep/cmd/internal/build"
	"github.com/vmkeep/vmkeep/plugin"
)

// settingLine is one line of "vmkeep env" in JSON.
type settingLine struct {
	Name   string
	Value  string
	Origin string
	Secret bool
}

func (a *app) envCommand() *cobra.Command {
	return &cobra.Command{Use: "env", Short: "Show the settings in force, and where they come from", Args: takes(0, 0),
		Long: `Show the settings in force, and which flag, file or variable each comes from. Secrets are not shown. "vmkeep help config"
lists all settings.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, set, err := a.gather(cmd)
			if err != nil {
				return err
			}
			g := grid{head: []string{"SETTING", "VALUE", "FROM"}}
			for _, s := range settings() {
				v, ok := set[s.id()]
				if !ok {
					continue
				}
				value := strings.Join(v.values, ", ")
				if s.secret {
					value = "(secret)"
				} else if s.id() == "vsphere.url" || s.id() == "repository.location" {
					value = withoutPassword(value)
				}
				if a.json {
					writeJSON(a.stdout, "setting", settingLine{s.id(), value, v.origin, s.secret})
					continue
				}
				g.add(s.id(), value, v.origin)
			}
			switch {
			case a.json:
			case len(g.rows) == 0:
				fmt.Fprintln(a.stdout, "nothing is set: see `vmkeep help config`")
			default:
				g.write(a.stdout)
			}
			return nil
		}}
}

// withoutPassword hides the password in what may be a URL: everything between the first colon after the scheme and
// the last "@" before the path.
func withoutPassword(s string) string {
	start := 0
	if i := strings.Index(s, "://"); i >= 0 {
		start = i + len("://")
	}
	at := strings.LastIndexByte(s, '@')
	if at < start {
		return s
	}
	if colon := strings.IndexByte(s[start:at], ':'); colon >= 0 {
		return s[:start+colon+1] + "***" + s[at:]
	}
	return s
}

// versionLine is the output of "vmkeep version" in JSON.
type versionLine struct {
	Version  string
	Platform string
	Protocol string
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{Use: "version", Short: "Tell the version", Args: takes(0, 0),
		RunE: func(*cobra.Command, []string) error {
			v := versionLine{build.Version(), build.Platform(), plugin.APIVersion}
			if a.json {
				writeJSON(a.stdout, "version", v)
				return nil
			}
			fmt.Fprintf(a.stdout, "vmkeep %s (%s, plugin protocol %s)\n", v.Version, v.Platform, v.Protocol)
			return nil
		}}
}

func (a *app) labCommand() *cobra.Command {
	return &cobra.Command{Use: "lab [FLAG...]", Short: "Run an embedded vSphere to try things on (vmkeep-lab)",
		Long: `Run vmkeep-lab: an embedded vSphere whose machines have disks with content. It prints variables for a shell and
serves until it is interrupted. "vmkeep lab --help" tells its flags.`,
		Example:            "  vmkeep lab --machines 2 --size 1G\n  vmkeep lab --disk web=disk.img",
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := beside("vmkeep-lab")
			if err != nil {
				return err
			}
			if a.json {
				args = append([]string{"--json"}, args...)
			}
			lab := exec.Command(path, args...)
			lab.Env = withoutPasswords(os.Environ())
			lab.Stdin, lab.Stdout, lab.Stderr = a.stdin, a.stdout, a.stderr
			if err := lab.Start(); err != nil {
				return outputError(err)
			}
			// Ctrl-C at a terminal reaches the lab by itself; SIGTERM to vmkeep alone does not.
			stop := context.AfterFunc(cmd.Context(), func() { lab.Process.Signal(syscall.SIGTERM) })
			defer stop()
			if err := lab.Wait(); err != nil {
				return partial{exitFailure} // it has said why
			}
			return nil
		}}
}

func (a *app) manCommand() *cobra.Command {
	return &cobra.Command{Use: "man DIRECTORY", Short: "Write manual pages", Args: takes(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o777); err != nil {
				return outputError(err)
			}
			return outputError(doc.GenManTree(cmd.Root(), &doc.GenManHeader{Title: "VMKEEP", Section: "1", Source: "vmkeep " + build.Version()}, args[0]))
		}}
}

// topics are the help pages that are not commands.
func topics() []*cobra.Command {
	var b strings.Builder
	b.WriteString(configHelp)
	for _, s := range settings() {
		if s.key == "" {
			continue
		}
		fmt.Fprintf(&b, "  %-32s %s", s.key, s.doc)
		if s.flag != "" {
			fmt.Fprintf(&b, " (--%s)", s.flag)
		}
		if s.env != "" {
			fmt.Fprintf(&b, " ($%s)", s.env)
		}
		b.WriteByte('\n')
	}
	return []*cobra.Command{
		{Use: "config", Short: "The configuration file and all settings", Long: b.String()},
		{Use: "chunking", Short: "How disks are cut into chunks", Long: chunkingHelp},
		{Use: "exit-codes", Short: "What exit codes mean", Long: exitHelp},
		{Use: "json", Short: "The output of --json", Long: jsonHelp},
	}
}

const configHelp = `The configuration file is YAML. It is --config, $VMKEEP_CONFIG, or the first that exists of vmkeep.yaml here,
vmkeep/vmkeep.yaml in the user's configuration directory, and /etc/vmkeep/vmkeep.yaml.

  vsphere:
    url: https://vc.example/sdk
    username: backup@vsphere.local
    password-file: /etc/vmkeep/vsphere.pw
    thumbprint: "A1:B2:..."
  repository:
    location: s3:https://s3.example/backup
    password-file: /etc/vmkeep/repo.pw
    environment:
      AWS_ACCESS_KEY_ID: ...
      AWS_SECRET_ACCESS_KEY: ...

A flag wins over the file, the file wins over a variable. Variables of govc and restic mean what they mean there;
AWS_* and RESTIC_* variables also reach the repository's backend. "vmkeep env" shows what is in force. Passwords have
no flag, since command lines are seen by all. Unknown settings are errors.

repository.chunking is a decision for the whole repository; "vmkeep help chunking" tells what it costs and saves.

Settings:
`

const chunkingHelp = `Disks are cut into chunks; chunks that the repository has are not stored again. Shorter ones find more that is the same,
and less is stored around each change; but the index, which every run loads, grows with their number. repository.chunking:

  restic     512 KiB to 8 MiB, 1.5 MiB on average, by content; the default. Only such chunks deduplicate against what
             restic itself backed up.
  restic/2   the same rule with all lengths halved
  restic/4   the same with a quarter of the lengths: for repositories that keep many points of machines that change a lot
  fixed      512 KiB at multiples of it: least work to cut, for disks that are written in place, as databases do

It is one decision for the whole repository: what is cut in two ways does not deduplicate. Each point says how it was cut,
and whoever has no setting goes by the newest point, so it is enough to set it once, at the first backup. Changing it is
safe at any time: each machine is read in full once ("chunking changed"), which stores it anew, and old points stay as
they are. restic reads all of them.`

const exitHelp = `Exit codes are restic's:

  0    everything was done
  1    failure; for check and verify: damage or differences were found
  3    some machines or files failed, or points are not as asked (degraded)
  10   there is no repository
  11   the repository is locked by another
  12   the password of the repository is wrong
  130  interrupted

Any other code is a failure.`
