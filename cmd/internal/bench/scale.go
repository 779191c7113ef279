package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
)

// scale holds the same data on ever larger disks, a mebibyte here and there in 256 places: time and memory must follow
// the data. The reference is the disk of 8 GiB; the check is restic's own on our repository.
func (b *bench) scale(ctx context.Context) error {
	var small []figures
	for _, size := range []string{"8G", "1T", "62T"} {
		var took []figures
		err := b.stage(ctx, func(dir string) (*labProcess, error) {
			return b.sparseLab(ctx, dir, size)
		}, func(s *scene) (err error) {
			took, err = s.sparse(ctx, size)
			return err
		})
		if err != nil {
			return err
		}
		if small == nil {
			small = took
			continue
		}
		for i, job := range sparseJobs() {
			b.measured(pair{Job: size + ": " + job, Ours: took[i], Theirs: small[i], Against: "8G"})
		}
	}
	return nil
}

// sparseLab serves one empty disk and lets the guest write to it. Its files lie in memory: few file systems hold a
// file of 62 TiB, Linux's tmpfs does.
func (b *bench) sparseLab(ctx context.Context, dir, size string) (_ *labProcess, err error) {
	memory, err := os.MkdirTemp("/dev/shm", "vmkeep-bench-")
	if err != nil {
		return nil, err
	}
	data := min(b.files, 8<<30)
	if err := enoughSpace(memory, 2*data); err != nil {
		return nil, errors.Join(err, os.RemoveAll(memory))
	}
	l, err := b.startLab(dir, "--dir", memory, "--machines", "1", "--size", size)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(memory))
	}
	l.scratch = memory
	var total int64
	if _, err := fmt.Sscanf(size, "%d", &total); err != nil {
		return nil, errors.Join(err, l.stop())
	}
	total <<= map[byte]int{'G': 30, 'T': 40}[size[len(size)-1]]
	const places, piece = 256, 1 << 20
	rng := rand.New(rand.NewPCG(4, 5))
	p := make([]byte, piece)
	for n := range data / piece {
		for i := range p { // half of it compresses
			p[i] = byte(rng.Uint32()) & byte(0x0f|-(n&1))
		}
		place, within := n%places, n/places*piece
		if err := l.write(ctx, "vm1", p, place*(total/places)&^(piece-1)+within); err != nil {
			return nil, errors.Join(err, l.stop())
		}
	}
	return l, nil
}

func sparseJobs() []string {
	return []string{"full backup", "nothing changed", "1 MiB changed", "list points", "restore to sparse VMDK", "restic check of ours"}
}

// sparse does sparseJobs on the machine.
func (s *scene) sparse(ctx context.Context, size string) (took []figures, err error) {
	step := func(f figures, err error) error {
		took = append(took, f)
		return err
	}
	backup := func() error {
		stamp("%s: %s", size, sparseJobs()[len(took)])
		return step(s.vmkeep(ctx, "backup", "vm1"))
	}
	if err := backup(); err != nil {
		return nil, err
	}
	if err := backup(); err != nil {
		return nil, err
	}
	if err := s.lab.write(ctx, "vm1", make([]byte, 1<<20), 0); err != nil {
		return nil, err
	}
	if err := backup(); err != nil {
		return nil, err
	}
	if err := step(s.vmkeep(ctx, "points")); err != nil {
		return nil, err
	}
	stamp("%s: restoring", size)
	to := filepath.Join(s.dir, "restored")
	if err := step(s.vmkeep(ctx, "restore", "latest", "--machine", "vm1", "--to", to, "--format", "vmdk")); err != nil {
		return nil, err
	}
	stamp("%s: restic check", size)
	return took, step(s.command(ctx, s.ours, "restic", "check", "--no-cache"))
}
