package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/vmkeep/vmkeep/vsphere/lab/guestdisk"
)

// smallFile is the mean size of the files that are read, in bytes; smallTree is how much of them there is.
const (
	smallFile = 24 << 10
	smallTree = 1 << 30

	guestSize = 100 << 30 // of the guest's disk

	fileSystemAt = 1 << 20 // of a disk of package guestdisk
)

// smallFiles lists a guest of 100 GiB for the first time, and reads a tree of 1 GiB of small files out of its point;
// beside it through a kernel's loop mount of the disk restored from the point, which is what somebody does who has no
// restore of files. Both as a tar stream, all with cold caches where this may be had.
func (b *bench) smallFiles(ctx context.Context) error {
	if os.Geteuid() != 0 {
		fmt.Fprintln(&b.notes, "files: left out, for the loop mount beside it needs root")
		return nil
	}
	total := min(smallTree, b.files)
	return b.stage(ctx, func(dir string) (*labProcess, error) {
		raw, tree := filepath.Join(dir, "disk.raw"), filepath.Join(dir, "tree")
		stamp("making %d MiB of small files", total>>20)
		if err := makeSmall(ctx, tree, total); err != nil {
			return nil, err
		}
		if err := guestdisk.Make(ctx, raw, guestSize, tree, "bench"); err != nil {
			return nil, err
		}
		if err := os.RemoveAll(tree); err != nil {
			return nil, err
		}
		return b.startLab(dir, "--disk", "bench="+raw)
	}, func(s *scene) error {
		stamp("a point, and the disk restored from it")
		if _, err := s.vmkeep(ctx, "backup", "bench"); err != nil {
			return err
		}
		if err := s.firstListing(ctx); err != nil {
			return err
		}
		to := filepath.Join(s.dir, "restored")
		before, err := s.vmkeep(ctx, "restore", "latest", "--machine", "bench", "--sparse", "--to", to)
		if err != nil {
			return err
		}
		images, err := filepath.Glob(filepath.Join(to, "*", "*.raw"))
		if err != nil || len(images) != 1 {
			return fmt.Errorf("restored %q, %w", images, err)
		}
		return s.readSmall(ctx, images[0], total, before)
	})
}

// firstListing lists the largest directory of the guest.
func (s *scene) firstListing(ctx context.Context) error {
	_ = s.forgetCaches() // readSmall says whether they could be
	f, err := s.vmkeep(ctx, "files", "ls", "latest", "--machine", "bench", "/app")
	if err != nil {
		return err
	}
	fmt.Fprintf(&s.notes, "files: the first listing of a guest of %d GiB took %.1f s, with the start of all programs.\n", guestSize>>30, f.Wall)
	return nil
}

// readSmall reads the tree in both ways, three times in turns, and keeps the quickest of each.
func (s *scene) readSmall(ctx context.Context, image string, total int64, before figures) error {
	p := pair{Job: "read small files", Against: "loop mount"}
	var first [2]time.Duration
	cold := true
	for round := range 3 {
		stamp("reading, round %d", round+1)
		for side := range 2 {
			cold = s.forgetCaches() == nil && cold
			f, byte1, err := s.streamed(ctx, side, image, total)
			if err != nil {
				return err
			}
			best := []*figures{&p.Ours, &p.Theirs}[side]
			if round == 0 || f.Wall < best.Wall {
				*best, first[side] = f, byte1
			}
		}
	}
	s.measured(p)
	how := "caches dropped before each"
	if !cold {
		how = "caches could not be dropped: warm"
	}
	rate := func(f figures) float64 { return float64(total>>20) / f.Wall }
	fmt.Fprintf(&s.notes, "files: %d MiB in files of %d KiB, %s; first byte after %d : %d ms, %.0f : %.0f MiB/s. The restore before the mount took %.1f s.\n",
		total>>20, smallFile>>10, how, first[0].Milliseconds(), first[1].Milliseconds(), rate(p.Ours), rate(p.Theirs), before.Wall)
	return nil
}

// streamed reads the tree as a tar stream, from the point (side 0) or the mounted image (side 1), and tells when its first
// byte came. Mounting counts.
func (s *scene) streamed(ctx context.Context, side int, image string, total int64) (f figures, first time.Duration, err error) {
	var cmd *exec.Cmd
	started := time.Now()
	if side == 0 {
		cmd = exec.CommandContext(ctx, filepath.Join(s.bin, "vmkeep"), "files", "get", "latest", "--machine", "bench", "/app", "--tar", "--no-cache")
		cmd.Env = append(append(os.Environ(), s.lab.env...), "RESTIC_REPOSITORY="+s.ours, "RESTIC_PASSWORD="+password, "XDG_STATE_HOME="+s.dir)
	} else {
		mnt := filepath.Join(s.dir, "mnt")
		if err := os.MkdirAll(mnt, 0o755); err != nil {
			return f, 0, err
		}
		if out, err := exec.CommandContext(ctx, "mount", "-o", fmt.Sprint("loop,ro,noload,offset=", fileSystemAt), image, mnt).CombinedOutput(); err != nil {
			return f, 0, fmt.Errorf("mount: %w\n%s", err, out)
		}
		defer func() {
			if out, e := exec.Command("umount", mnt).CombinedOutput(); e != nil {
				err = errors.Join(err, fmt.Errorf("umount: %w\n%s", e, out))
			}
		}()
		cmd = exec.CommandContext(ctx, "tar", "-C", mnt, "-cf", "-", "app")
	}
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.StdoutPipe()
	if err != nil {
		return f, 0, err
	}
	if err := cmd.Start(); err != nil {
		return f, 0, err
	}
	n, readErr := io.ReadFull(out, make([]byte, 1))
	first = time.Since(started)
	rest, copyErr := io.Copy(io.Discard, out)
	if err := errors.Join(readErr, copyErr, cmd.Wait()); err != nil {
		return f, 0, fmt.Errorf("%w\n%s", err, said.String())
	}
	if int64(n)+rest < total*9/10 {
		return f, 0, fmt.Errorf("%d bytes came of %d", int64(n)+rest, total)
	}
	u := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	return figures{Wall: time.Since(started).Seconds(), CPU: cmd.ProcessState.UserTime().Seconds() + cmd.ProcessState.SystemTime().Seconds(), Peak: u.Maxrss << 10}, first, nil
}

// forgetCaches makes the kernel forget what it has read (proc(5), drop_caches). It is for all of the machine.
func (s *scene) forgetCaches() error {
	syscall.Sync()
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
}

// makeSmall makes files that neither compress nor repeat, of smallFile bytes at a mean, in directories of 200.
func makeSmall(ctx context.Context, tree string, total int64) error {
	rng := rand.NewChaCha8([32]byte{1})
	sizes := rand.New(rand.NewPCG(1, 1))
	p := make([]byte, 2*smallFile)
	for n := 0; total > 0; n++ {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		b := p[:min(sizes.Int64N(2*smallFile), total)]
		_, _ = rng.Read(b) // never fails
		total -= int64(len(b))
		dir := filepath.Join(tree, "app", fmt.Sprint("d", n/200))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint("file", n)), b, 0o644); err != nil {
			return err
		}
	}
	return nil
}
