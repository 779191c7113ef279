//go:build linux

package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// terminal opens a pseudo terminal of 40 rows and 120 columns: what a person sees, and what a program writes to.
func terminal(t *testing.T) (person, program *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { person.Close() })
	fd := int(person.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 40, Col: 120}); err != nil {
		t.Fatal(err)
	}
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return person, program
}

// TestBars: on a terminal, progress is bars with rate and time left, and the results stay plain.
func TestBars(t *testing.T) {
	dir := t.TempDir()
	l, err := startLab(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	h := home{t: t, dir: dir, lab: l, password: "geheim"}
	if code, out := h.run("init"); code != 0 {
		t.Fatal(out)
	}
	show := func(args ...string) (screen, out string) {
		t.Helper()
		person, program := terminal(t)
		cmd := h.command(args...)
		cmd.Env = append(cmd.Env, "TERM=xterm")
		var results bytes.Buffer
		cmd.Stdout, cmd.Stderr = &results, program
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		program.Close()
		seen, _ := io.ReadAll(person) // ends with EIO when the program has ended
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v: %s", err, seen)
		}
		return string(seen), results.String()
	}

	screen, out := show("backup", "web", "--limit-upload", "6000")
	if !regexp.MustCompile(`web scsi0-0 +read +\d+ % \[=*>? *\] +[\d.]+ [KM]iB of 24\.0 MiB +[\d.]+ ([KMG]i)?B/s`).MatchString(screen) {
		t.Errorf("no bar on the screen:\n%q", screen)
	}
	if !regexp.MustCompile(`web +all disks +\d+ % \[=*>? *\]`).MatchString(screen) {
		t.Errorf("no bar of the machine as a whole on the screen:\n%q", screen)
	}
	if !strings.Contains(screen, "web: snapshot\r\n") || !strings.Contains(screen, "web: point ") {
		t.Errorf("no lines above the bars:\n%q", screen)
	}
	if strings.Contains(out, "\x1b") || !strings.Contains(out, "1 machine backed up") {
		t.Errorf("the results are\n%q", out)
	}
	for _, args := range [][]string{{"backup", "web", "--no-bars"}, {"backup", "web", "--json"}, {"backup", "web", "--quiet"}} {
		if screen, _ := show(args...); strings.Contains(screen, "\x1b") || strings.Contains(screen, "[=") {
			t.Errorf("%v: bars on the screen:\n%q", args, screen)
		}
	}
}
