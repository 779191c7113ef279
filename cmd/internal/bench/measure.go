package main

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// bench is one run.
type bench struct {
	bin, dir    string
	size, files int64 // of the disk and of the files on it, bytes
	transport   string
	pairs       []pair
	notes       strings.Builder // what does not fit the table
}

const password = "bench"

// scene is a lab and the two repositories beside it. Its directory is removed at the end.
type scene struct {
	*bench
	dir          string
	lab          *labProcess
	ours, theirs string
}

// stage makes a scene, runs fn and removes everything again.
func (b *bench) stage(ctx context.Context, makeLab func(dir string) (*labProcess, error), fn func(*scene) error) (err error) {
	dir, err := os.MkdirTemp(b.dir, "scene-")
	if err != nil {
		return err
	}
	defer func() {
		if e := os.RemoveAll(dir); err == nil {
			err = e
		}
	}()
	s := &scene{bench: b, dir: dir, ours: filepath.Join(dir, "ours"), theirs: filepath.Join(dir, "theirs")}
	if s.lab, err = makeLab(dir); err != nil {
		return err
	}
	defer func() {
		if e := s.lab.stop(); err == nil {
			err = e
		}
	}()
	if _, err := s.vmkeep(ctx, "init"); err != nil {
		return err
	}
	if _, err := s.restic(ctx, "init"); err != nil {
		return err
	}
	return fn(s)
}

func (s *scene) vmkeep(ctx context.Context, args ...string) (figures, error) {
	if args[0] == "backup" || args[0] == "restore" {
		args = append(args, "--transport", s.transport)
	}
	return s.command(ctx, s.ours, "vmkeep", append(args, "--no-cache")...)
}

func (s *scene) restic(ctx context.Context, args ...string) (figures, error) {
	return s.command(ctx, s.theirs, "restic", append(args, "--no-cache")...)
}

// beside measures what vmkeep and restic do for the same end.
func (s *scene) beside(ctx context.Context, job string, mine, restic []string) (err error) {
	stamp("%s", job)
	p := pair{Job: job, Against: "restic"}
	if p.Ours, err = s.vmkeep(ctx, mine...); err != nil {
		return err
	}
	if p.Theirs, err = s.restic(ctx, restic...); err != nil {
		return err
	}
	s.measured(p)
	return nil
}

// command runs a program on a repository and measures it with all its children, until what it wrote is on the disk: some
// programs see to that before they end, others leave it to the kernel, at the expense of what runs next.
func (s *scene) command(ctx context.Context, repository, program string, args ...string) (figures, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(s.bin, program), args...)
	cmd.Env = append(append(os.Environ(), s.lab.env...), "RESTIC_REPOSITORY="+repository, "RESTIC_PASSWORD="+password,
		"XDG_STATE_HOME="+s.dir, "RESTIC_PROGRESS_FPS=0.01")
	before := du(repository)
	syscall.Sync()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	started := time.Now()
	err := cmd.Run()
	ended := time.Now()
	if err != nil {
		return figures{}, fmt.Errorf("%s %s: %w\n%s", program, strings.Join(args, " "), err, out.String())
	}
	syscall.Sync()
	u := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	return figures{Wall: time.Since(started).Seconds(), Late: time.Since(ended).Seconds(), CPU: cmd.ProcessState.UserTime().Seconds() + cmd.ProcessState.SystemTime().Seconds(), Peak: u.Maxrss << 10,
		Stored: du(repository) - before}, nil
}

// du is the size of all files below a directory.
func du(dir string) (n int64) {
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if info, err := d.Info(); err == nil {
				n += info.Size()
			}
		}
		return nil
	})
	return n
}
