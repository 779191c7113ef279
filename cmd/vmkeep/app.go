package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/vmkeep/vmkeep/cmd/internal/build"
	"github.com/vmkeep/vmkeep/plugin"
)

// app is one run of the program.
type app struct {
	stdin  *os.File
	stdout io.Writer
	stderr io.Writer
	env    environment

	json    bool
	quiet   bool
	verbose int
	config  string
	noBars  bool
	parsed  chan struct{} // closed when the flags above are what the command line says

	mu   sync.Mutex
	hard []func() // ends the plugins, for a second interrupt
}

// Exit codes, as restic's.
const (
	exitOK            = 0
	exitFailure       = 1
	exitPartial       = 3 // some machines failed, or points are degraded
	exitNoRepository  = 10
	exitLocked        = 11
	exitWrongPassword = 12
	exitInterrupted   = 130
)

// partial is the error of a command that did part of its work and has said so.
type partial struct{ code int }

func (p partial) Error() string { return fmt.Sprintf("exit code %d", p.code) }

// errCutShort is the end after a second interrupt, whatever the command itself still reports about it.
var errCutShort = &plugin.Error{Code: plugin.CodeCancelled, Summary: "stopped at once, before the cleanup ended",
	Remedy: "\"vmkeep recover\", and the next backup, will remove what is left on vSphere: snapshots, attached disks, half-made machines"}

func (a *app) run(args []string) int {
	a.parsed = make(chan struct{})
	parsed := sync.OnceFunc(func() { close(a.parsed) })
	in := a.awaitInterrupts()
	defer in.stop()
	root := a.root()
	root.SetArgs(args)
	root.PersistentPreRun = func(*cobra.Command, []string) { parsed() }
	ended := make(chan error, 1)
	go func() {
		err := root.ExecuteContext(in.ctx)
		parsed()
		ended <- err
	}()
	var err error
	select {
	case err = <-ended:
	case <-in.second: // the command's own error can only be that its plugin was ended
		a.endPlugins()
		err = errCutShort
	}
	code := exitCode(err)
	var p partial
	told := errors.As(err, &p)
	if told {
		code = p.code
	}
	if err != nil && in.ctx.Err() != nil {
		code = exitInterrupted
	}
	if err != nil && !told {
		a.fail(err, code)
	}
	return code
}

// exitCode is the exit code for an error, or for none.
func exitCode(err error) int {
	if err == nil {
		return exitOK
	}
	switch plugin.CodeOf(err) {
	case plugin.CodeNoRepository:
		return exitNoRepository
	case plugin.CodeLocked:
		return exitLocked
	case plugin.CodeWrongPassword:
		return exitWrongPassword
	case plugin.CodeCancelled:
		return exitInterrupted
	case plugin.CodeDegraded:
		return exitPartial
	}
	return exitFailure
}

// understood reports whether the flags of a are what the command line says. An interrupt does not wait for that.
func (a *app) understood() bool {
	select {
	case <-a.parsed:
		return true
	default:
		return false
	}
}

// fail tells the one error a command ends with.
func (a *app) fail(err error, code int) {
	var e *plugin.Error
	if !errors.As(err, &e) {
		e = &plugin.Error{Code: plugin.CodeInvalid, Summary: err.Error(), Remedy: "\"vmkeep --help\" tells the commands, \"vmkeep COMMAND --help\" their arguments"}
		if plugin.CodeOf(err) == plugin.CodeCancelled {
			e = &plugin.Error{Code: plugin.CodeCancelled, Summary: "cancelled"}
		}
	}
	if a.understood() && a.json {
		writeJSON(a.stderr, "exit_error", exitError{ExitCode: code, Error: e.Diagnostic()})
		return
	}
	fmt.Fprint(a.stderr, "vmkeep: "+spell(*e))
}

// exitError is the last line of a failed command in JSON.
type exitError struct {
	ExitCode int
	Error    plugin.Diagnostic
}

// spell writes an error for people: what, why, and what to do, a line each.
func spell(e plugin.Error) string {
	var b strings.Builder
	b.WriteString(e.Summary + "\n")
	if e.Detail != "" {
		b.WriteString("  " + strings.ReplaceAll(strings.TrimSpace(e.Detail), "\n", "\n  ") + "\n")
	}
	if e.Remedy != "" {
		b.WriteString("  -> " + strings.ReplaceAll(strings.TrimSpace(e.Remedy), "\n", "\n     ") + "\n")
	}
	return b.String()
}

// interrupts are SIGINT and SIGTERM.
type interrupts struct {
	ctx    context.Context // ends at the first
	second <-chan struct{} // closed at the second
	stop   func()          // heeds no more of them
}

func (a *app) awaitInterrupts() interrupts {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	done, second := make(chan struct{}), make(chan struct{})
	next := func() bool {
		select {
		case <-done:
			return false
		case <-signals:
			return true
		}
	}
	go func() {
		if !next() {
			return
		}
		a.note("interrupted: cleaning up; interrupt again to stop at once and leave the rest to \"vmkeep recover\"")
		cancel()
		if next() {
			close(second)
		}
	}()
	return interrupts{ctx: ctx, second: second, stop: func() {
		signal.Stop(signals)
		close(done)
		cancel()
	}}
}

// endPlugins kills what this program has started.
func (a *app) endPlugins() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, kill := range a.hard {
		kill()
	}
}

// note tells people something in passing.
func (a *app) note(format string, args ...any) {
	if !a.understood() || !a.json && !a.quiet {
		fmt.Fprintf(a.stderr, format+"\n", args...)
	}
}

// terminal reports whether standard error, where progress goes, is a terminal.
func (a *app) terminal() bool {
	f, ok := a.stderr.(*os.File)
	if !ok || a.env.getenv("TERM") == "dumb" {
		return false
	}
	_, rows, err := term.GetSize(int(f.Fd()))
	return err == nil && rows > 0
}

// options gathers all settings for a command.
func (a *app) options(cmd *cobra.Command) (options, error) {
	o, _, err := a.gather(cmd)
	if err != nil {
		return o, err
	}
	if err := complete(cmd.Context(), &o, a.env); err != nil {
		return o, err
	}
	if o.Repository.Location != "" && o.Repository.Password == "" && !a.json && term.IsTerminal(int(a.stdin.Fd())) {
		fmt.Fprint(a.stderr, "password of the repository: ")
		password, err := term.ReadPassword(int(a.stdin.Fd()))
		fmt.Fprintln(a.stderr)
		if err != nil {
			return o, badSecret("the password of the repository", err)
		}
		o.Repository.Password = string(password)
	}
	return o, nil
}

// gather reads settings from flags, file and variables, without following what they point to.
func (a *app) gather(cmd *cobra.Command) (options, map[string]given, error) {
	all := settings()
	path, err := findConfig(a.config, a.env.getenv)
	if err != nil {
		return options{}, nil, err
	}
	var file map[string]given
	if path != "" {
		if file, err = readConfig(path, all); err != nil {
			return options{}, nil, err
		}
		a.warnReadable(path, file, all)
	}
	flags := make(map[string]given)
	cmd.Flags().Visit(func(f *pflag.Flag) {
		values := []string{f.Value.String()}
		if v, ok := f.Value.(pflag.SliceValue); ok {
			values = v.GetSlice()
		}
		flags[f.Name] = given{values: values, origin: "flag --" + f.Name}
	})
	set := collect(all, flags, file, a.env.getenv)
	o, err := merge(all, set)
	return o, set, err
}

// warnReadable warns of passwords that others can read.
func (a *app) warnReadable(path string, file map[string]given, all []setting) {
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm()&0o077 == 0 || os.PathSeparator == '\\' {
		return
	}
	for _, s := range all {
		if s.secret && has(file, s.key) {
			a.note("warning: %s holds %s and others may read it; run: chmod 600 %s", path, s.key, path)
			return
		}
	}
}

// session is a loaded and configured plugin.
type session struct {
	*plugin.Loaded
	options options
}

// withPlugin runs fn with a plugin that is configured, and ends the plugin afterwards in good order.
func (a *app) withPlugin(cmd *cobra.Command, fn func(ctx context.Context, s session) error) (err error) {
	ctx := cmd.Context()
	o, err := a.options(cmd)
	if err != nil {
		return err
	}
	path, err := findPlugin(o)
	if err != nil {
		return err
	}
	level := hclog.Error // what nobody would otherwise learn, as the end of the plugin process
	switch {
	case a.verbose == 1:
		level = hclog.Info
	case a.verbose >= 2:
		level = hclog.Debug
	}
	log := hclog.New(&hclog.LoggerOptions{Name: "vmkeep", Level: level, Output: a.stderr, JSONFormat: a.json})
	loaded, err := plugin.Load(ctx, plugin.LoadOptions{Path: path, Checksum: o.checksum, Logger: log,
		Host: "vmkeep " + build.Version(), NoMTLS: o.noMTLS})
	if err != nil {
		return err
	}
	a.mu.Lock()
	a.hard = append(a.hard, loaded.Kill)
	a.mu.Unlock()
	defer func() {
		if e := loaded.Close(); err == nil {
			err = e
		}
	}()
	if err := demand(ctx, loaded, needs(cmd)); err != nil {
		return err
	}
	if err := loaded.Configure(ctx, o.Config); err != nil {
		return err
	}
	return fn(ctx, session{Loaded: loaded, options: o})
}

// demand fails unless the plugin has the capabilities.
func demand(ctx context.Context, p plugin.Service, capabilities []string) error {
	if len(capabilities) == 0 {
		return nil
	}
	info, err := p.Info(ctx)
	if err != nil {
		return err
	}
	return info.Require(capabilities...)
}

// needs are the capabilities that a plugin must have for a command.
func needs(cmd *cobra.Command) []string {
	switch strings.Fields(cmd.CommandPath())[1] {
	case "restore":
		if cmd.Flag("mode").Value.String() == string(plugin.RestoreRollback) {
			return []string{plugin.CapabilityRestore, plugin.CapabilityRollback}
		}
		return []string{plugin.CapabilityRestore}
	case "cat":
		return []string{plugin.CapabilityReadDisk}
	case "files":
		return []string{plugin.CapabilityFiles}
	case "verify":
		return []string{plugin.CapabilityVerify}
	case "stats", "unlock", "key", "repair":
		return []string{plugin.CapabilityKeeping}
	}
	return nil
}
