// Command vmkeep-check verifies a repository. It needs neither vSphere nor the plugin: any restic repository will
// do, from a cron job on any machine that reaches the store.
//
// It hides nothing of package repo's check but how people, scripts and monitoring are told: a report, JSON lines,
// a Nagios line, a proof record, exit codes.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/vmkeep/vmkeep/repo"
	"github.com/vmkeep/vmkeep/repo/backend"
)

// Exit codes, as restic's.
const (
	exitOK            = 0
	exitFailure       = 1 // damage was found, or the check could not be made
	exitNoRepository  = 10
	exitLocked        = 11
	exitWrongPassword = 12
	exitInterrupted   = 130
)

// errDamaged ends a check that was made and found errors, which have been told.
var errDamaged = errors.New("the repository is damaged")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	go func() {
		<-ctx.Done()
		stop() // the second signal ends the process at once
	}()
	p := program{
		stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, env: os.LookupEnv, now: time.Now,
		terminal: term.IsTerminal(int(os.Stderr.Fd())),
	}
	os.Exit(p.run(ctx, os.Args[1:]))
}

// program is one run.
type program struct {
	stdin          *os.File
	stdout, stderr io.Writer
	env            func(string) (string, bool)
	now            func() time.Time
	terminal       bool // stderr is one
}

func (p *program) run(ctx context.Context, args []string) int {
	o := &options{}
	cmd := p.command(o)
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(ctx)
	if o.nagios {
		return p.nagiosExit(o, err)
	}
	code := exitCode(err)
	if err != nil && ctx.Err() != nil {
		code = exitInterrupted // the context's cause, which err tells, names the signal
	}
	if err != nil && !errors.Is(err, errDamaged) {
		p.fail(o, code, err)
	}
	return code
}

func exitCode(err error) int {
	var locked *repo.LockedError
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, context.Canceled):
		return exitInterrupted
	case errors.As(err, &locked):
		return exitLocked
	case errors.Is(err, repo.ErrWrongPassword):
		return exitWrongPassword
	case errors.Is(err, repo.ErrNoRepository), errors.Is(err, backend.ErrNotExist):
		return exitNoRepository
	}
	return exitFailure
}

// remedy is what helps against an error that does not say it itself.
func remedy(err error) string {
	var locked *repo.LockedError
	switch {
	case errors.As(err, &locked):
		return locked.Remedy() + ", or wait for it with --retry-lock"
	case errors.Is(err, repo.ErrWrongPassword):
		return "check RESTIC_PASSWORD, RESTIC_PASSWORD_FILE or RESTIC_PASSWORD_COMMAND"
	case errors.Is(err, repo.ErrNoRepository), errors.Is(err, backend.ErrNotExist):
		return "check the location; `vmkeep init` or `restic init` makes a repository"
	case errors.Is(err, repo.ErrDamaged):
		return "bring the file back from a copy; a copy of config and keys opens the repository again"
	}
	return ""
}

// fail tells the error that kept the check from being made.
func (p *program) fail(o *options, code int, err error) {
	if o.json {
		writeLine(p.stderr, "exit_error", struct {
			Code    int    `json:"code"`
			Message string `json:"message"`
			Remedy  string `json:"remedy,omitempty"`
		}{code, err.Error(), remedy(err)})
		return
	}
	fmt.Fprintf(p.stderr, "vmkeep-check: %v\n", err)
	if text := remedy(err); text != "" {
		fmt.Fprintf(p.stderr, "  -> %s\n", text)
	}
}
