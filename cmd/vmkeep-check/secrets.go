package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/term"

	"github.com/vmkeep/vmkeep/repo/backend/location"
)

// location finds out where the repository is. Flags come before variables, as a pair.
func (p *program) location(o *options) (location.Location, error) {
	text, file := o.repository, o.repositoryFile
	if text == "" && file == "" {
		text, file = p.lookup("RESTIC_REPOSITORY"), p.lookup("RESTIC_REPOSITORY_FILE")
	}
	if text != "" && file != "" {
		return location.Location{}, errors.New("the location is given twice: --repo and --repository-file (or their variables) exclude each other")
	}
	if file != "" {
		data, err := os.ReadFile(file)
		if err != nil {
			return location.Location{}, fmt.Errorf("repository file: %w", err)
		}
		text = strings.TrimSpace(string(data))
	}
	return location.Parse(text)
}

// password finds the password as restic does: file or command, then variable, then somebody at the terminal.
func (p *program) password(ctx context.Context, o *options) (string, error) {
	if o.insecureNoPass {
		return "", nil
	}
	file, command := o.passwordFile, o.passwordCommand
	if file == "" && command == "" {
		file, command = p.lookup("RESTIC_PASSWORD_FILE"), p.lookup("RESTIC_PASSWORD_COMMAND")
	}
	switch {
	case file != "" && command != "":
		return "", errors.New("the password is given twice: --password-file and --password-command (or their variables) exclude each other")
	case file != "":
		data, err := os.ReadFile(file)
		if err != nil {
			return "", fmt.Errorf("password file: %w", err)
		}
		return strings.TrimRight(string(data), "\r\n"), nil
	case command != "":
		return passwordFrom(ctx, command)
	}
	if v, ok := p.env("RESTIC_PASSWORD"); ok && v != "" {
		return v, nil
	}
	if !term.IsTerminal(int(p.stdin.Fd())) {
		return "", errors.New("no password: set RESTIC_PASSWORD_FILE, RESTIC_PASSWORD_COMMAND or RESTIC_PASSWORD")
	}
	fmt.Fprint(p.stderr, "enter password for repository: ")
	typed, err := term.ReadPassword(int(p.stdin.Fd()))
	fmt.Fprintln(p.stderr)
	if err != nil {
		return "", fmt.Errorf("read password: %w", err)
	}
	return string(typed), nil
}

// passwordFrom is the first thing a command prints. Its errors do not show its output.
func passwordFrom(ctx context.Context, command string) (string, error) {
	args, err := location.SplitCommand(command)
	if err != nil {
		return "", fmt.Errorf("password command: %w", err)
	}
	if len(args) == 0 {
		return "", errors.New("password command is empty")
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Stderr = os.Stderr // it may have something to say, or to ask
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("password command %s: %w", args[0], err)
	}
	return string(bytes.TrimRight(out, "\r\n")), nil
}
