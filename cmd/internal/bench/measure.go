package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/vmkeep/vmkeep/vsphere/lab/guestdisk"
)

// bench is one run.
type bench struct {
	bin, dir  string
	raw       string // the disk as a file, for restic
	size      int64
	transport string
	env       []string // that leads vmkeep to the lab
	url       string
	pairs     []pair
}

const password = "bench"

// makeDisk fills a disk with files of this machine: real ones, whatever it has.
func (b *bench) makeDisk(ctx context.Context, limit int64) error {
	stamp("making the disk")
	tree := filepath.Join(b.dir, "tree")
	root, err := exec.CommandContext(ctx, "go", "env", "GOROOT", "GOMODCACHE").Output()
	if err != nil {
		return fmt.Errorf("go env: %w", err)
	}
	sources := append([]string{"/usr"}, strings.Fields(string(root))...)
	left := limit
	for i, from := range sources {
		if err := copyTree(ctx, from, filepath.Join(tree, fmt.Sprint(i)), &left); err != nil {
			return err
		}
	}
	stamp("%d MiB of files", (limit-left)>>20)
	if err := guestdisk.Make(ctx, b.raw, b.size, tree, "bench"); err != nil {
		return err
	}
	return os.RemoveAll(tree)
}

// copyTree copies regular files and directories until left bytes are used up. What cannot be read is left out.
func copyTree(ctx context.Context, from, to string, left *int64) error {
	return filepath.WalkDir(from, func(name string, d fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil || *left <= 0 {
			return fs.SkipDir
		}
		rel, err := filepath.Rel(from, name)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		switch {
		case d.IsDir():
			return os.MkdirAll(target, 0o755)
		case d.Type().IsRegular():
			info, err := d.Info()
			if err != nil || info.Size() > *left || info.Size() > 256<<20 {
				return nil
			}
			*left -= info.Size()
			return copyFile(name, target)
		}
		return nil
	})
}

// copyFile copies a file without holding it in memory: what this process has in memory would count as its children's
// peak. A file that cannot be read is left out.
func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return nil
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// startLab serves the disk from a process of its own and returns what ends it.
func (b *bench) startLab(ctx context.Context) (func() error, error) {
	stamp("starting the lab")
	cmd := exec.Command(filepath.Join(b.bin, "vmkeep-lab"), "--disk", "bench="+b.raw)
	cmd.Env = append(os.Environ(), "TMPDIR="+b.dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	stop := func() error {
		return errors.Join(cmd.Process.Signal(syscall.SIGTERM), cmd.Wait())
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return nil, errors.Join(err, stop())
	}
	for _, m := range regexp.MustCompile(`([A-Z_]+)='?([^' \n]+)'?`).FindAllStringSubmatch(line, -1) {
		b.env = append(b.env, m[1]+"="+m[2])
		if m[1] == "GOVC_URL" {
			b.url = strings.TrimSuffix(m[2], "/sdk")
		}
	}
	return stop, ctx.Err()
}

func (b *bench) measure(ctx context.Context) error {
	ours, theirs := filepath.Join(b.dir, "ours"), filepath.Join(b.dir, "theirs")
	for _, step := range []struct {
		job          string
		before       func() error
		mine, restic []string
	}{
		{job: "init", mine: []string{"vmkeep", "init"}, restic: []string{"init"}},
		{job: "full backup", mine: []string{"vmkeep", "backup", "bench"}, restic: []string{"backup", b.raw}},
		{job: "nothing changed", mine: []string{"vmkeep", "backup", "bench"}, restic: []string{"backup", "--force", b.raw}},
		{job: "1 % changed", before: func() error { return b.change(ctx) }, mine: []string{"vmkeep", "backup", "bench"}, restic: []string{"backup", "--force", b.raw}},
		{job: "restore to a file", mine: []string{"vmkeep", "restore", "latest", "--machine", "bench", "--to", filepath.Join(b.dir, "a")},
			restic: []string{"restore", "latest", "--sparse", "--target", filepath.Join(b.dir, "b")}},
		{job: "check, all data", mine: []string{"vmkeep-check", "--read-data"}, restic: []string{"check", "--read-data"}},
	} {
		if step.before != nil {
			if err := step.before(); err != nil {
				return err
			}
		}
		stamp("%s", step.job)
		p := pair{Job: step.job}
		before := [2]int64{du(ours), du(theirs)}
		var err error
		mine := step.mine[1:]
		if step.mine[0] == "vmkeep" {
			mine = append(mine, "--no-cache", "--transport", b.transport)
		}
		if p.Ours, err = b.command(ctx, ours, step.mine[0], mine...); err != nil {
			return err
		}
		if p.Theirs, err = b.command(ctx, theirs, "restic", append(step.restic, "--no-cache")...); err != nil {
			return err
		}
		p.Ours.Stored, p.Theirs.Stored = du(ours)-before[0], du(theirs)-before[1]
		if step.job != "init" {
			b.pairs = append(b.pairs, p)
		}
	}
	return nil
}

// command runs a program on a repository and measures it with all its children.
func (b *bench) command(ctx context.Context, repository, program string, args ...string) (figures, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(b.bin, program), args...)
	cmd.Env = append(append(os.Environ(), b.env...), "RESTIC_REPOSITORY="+repository, "RESTIC_PASSWORD="+password,
		"XDG_STATE_HOME="+b.dir, "RESTIC_PROGRESS_FPS=0.01")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	started := time.Now()
	err := cmd.Run()
	wall := time.Since(started).Seconds()
	if err != nil {
		return figures{}, fmt.Errorf("%s %s: %w\n%s", program, strings.Join(args, " "), err, out.String())
	}
	u := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	return figures{Wall: wall, CPU: cmd.ProcessState.UserTime().Seconds() + cmd.ProcessState.SystemTime().Seconds(), Peak: u.Maxrss << 10}, nil
}

// change overwrites 1 % of the disk, in random blocks of 64 KiB, as the guest in the lab and in the raw file.
func (b *bench) change(ctx context.Context) error {
	f, err := os.OpenFile(b.raw, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}} // the lab's own certificate, on loopback
	defer client.CloseIdleConnections()
	rng := rand.New(rand.NewPCG(1, 2))
	const block = 64 << 10
	p := make([]byte, block)
	for range b.size / block / 100 {
		for i := range p {
			p[i] = byte(rng.Uint32())
		}
		off := rng.Int64N(b.size/block) * block
		if _, err := f.WriteAt(p, off); err != nil {
			return err
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPut, fmt.Sprintf("%s/lab/bench/2000?offset=%d", b.url, off), bytes.NewReader(p))
		if err != nil {
			return err
		}
		res, err := client.Do(req)
		if err != nil {
			return err
		}
		_ = res.Body.Close()
		if res.StatusCode/100 != 2 {
			return fmt.Errorf("the lab answers %s to a guest's write", res.Status)
		}
	}
	return f.Close()
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
