package main

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
)

// withFiles stages a machine "bench" with real files; raw is the same disk as a file.
func (b *bench) withFiles(ctx context.Context, fn func(s *scene, raw string) error) error {
	var raw string
	return b.stage(ctx, func(dir string) (*labProcess, error) {
		raw = filepath.Join(dir, "disk.raw")
		tree, err := b.makeDisk(ctx, raw, b.files)
		if err != nil {
			return nil, err
		}
		if err := os.RemoveAll(tree); err != nil {
			return nil, err
		}
		return b.startLab(dir, "--disk", "bench="+raw)
	}, func(s *scene) error { return fn(s, raw) })
}

func (b *bench) daily(ctx context.Context) error {
	return b.withFiles(ctx, func(s *scene, raw string) error {
		mine, restic := []string{"backup", "bench"}, []string{"backup", "--force", raw}
		if err := s.beside(ctx, "full backup", mine, restic); err != nil {
			return err
		}
		if err := s.beside(ctx, "nothing changed", mine, restic); err != nil {
			return err
		}
		if err := s.change(ctx, raw, 1); err != nil {
			return err
		}
		if err := s.beside(ctx, "1 % changed", mine, restic); err != nil {
			return err
		}
		if err := s.restores(ctx); err != nil {
			return err
		}
		return s.check(ctx, "check, all data")
	})
}

// restores restores to a file and to a new machine of the lab, beside the same restore of restic to a file.
func (s *scene) restores(ctx context.Context) error {
	stamp("restore by restic")
	theirs, err := s.restic(ctx, "restore", "latest", "--sparse", "--target", filepath.Join(s.dir, "b"))
	if err != nil {
		return err
	}
	for _, to := range []struct{ job, flag, value string }{
		{"restore to a file", "--to", filepath.Join(s.dir, "a")},
		{"restore to the lab", "--name", "copy"},
	} {
		stamp("%s", to.job)
		ours, err := s.vmkeep(ctx, "restore", "latest", "--machine", "bench", to.flag, to.value)
		if err != nil {
			return err
		}
		s.measured(pair{Job: to.job, Against: "restic", Ours: ours, Theirs: theirs})
	}
	return nil
}

// check reads all data back, with vmkeep-check.
func (s *scene) check(ctx context.Context, job string) (err error) {
	stamp("%s", job)
	p := pair{Job: job, Against: "restic"}
	if p.Ours, err = s.command(ctx, s.ours, "vmkeep-check", "--read-data"); err != nil {
		return err
	}
	if p.Theirs, err = s.restic(ctx, "check", "--read-data"); err != nil {
		return err
	}
	s.measured(p)
	return nil
}

func (b *bench) random(ctx context.Context) error {
	var raw string
	return b.stage(ctx, func(dir string) (*labProcess, error) {
		raw = filepath.Join(dir, "random.raw")
		if err := makeRandom(raw, b.files&^511); err != nil {
			return nil, err
		}
		return b.startLab(dir, "--disk", "bench="+raw)
	}, func(s *scene) error {
		if err := s.beside(ctx, "full backup, incompressible", []string{"backup", "bench"}, []string{"backup", raw}); err != nil {
			return err
		}
		return s.check(ctx, "check, incompressible")
	})
}

// prune makes three points with 1 % of changes between them and forgets two: as many packs are worth rewriting as
// after weeks of a quiet machine.
func (b *bench) prune(ctx context.Context) error {
	return b.withFiles(ctx, func(s *scene, raw string) error {
		for seed := range uint64(3) {
			if seed > 0 {
				if err := s.change(ctx, raw, seed); err != nil {
					return err
				}
			}
			stamp("point %d", seed+1)
			if _, err := s.vmkeep(ctx, "backup", "bench"); err != nil {
				return err
			}
			if _, err := s.restic(ctx, "backup", "--force", raw); err != nil {
				return err
			}
		}
		if err := s.beside(ctx, "forget 2 of 3", []string{"forget", "--keep-last", "1"}, []string{"forget", "--keep-last", "1"}); err != nil {
			return err
		}
		return s.beside(ctx, "prune", []string{"prune"}, []string{"prune"})
	})
}

func (b *bench) rollback(ctx context.Context) error {
	return b.withFiles(ctx, func(s *scene, raw string) (err error) {
		stamp("a point")
		if _, err := s.vmkeep(ctx, "backup", "bench"); err != nil {
			return err
		}
		if err := s.change(ctx, raw, 1); err != nil {
			return err
		}
		p := pair{Job: "roll back 1 %", Against: "in place"}
		back := []string{"restore", "latest", "--machine", "bench", "--power-off", "--mode"}
		stamp("rolling back")
		if p.Ours, err = s.vmkeep(ctx, append(back, "rollback")...); err != nil {
			return err
		}
		stamp("restoring in place")
		if p.Theirs, err = s.vmkeep(ctx, append(back, "in-place")...); err != nil {
			return err
		}
		s.measured(p)
		return nil
	})
}

// change overwrites 1 % of the disk, in random blocks of 64 KiB, as the guest in the lab and in the raw file.
func (s *scene) change(ctx context.Context, raw string, seed uint64) error {
	f, err := os.OpenFile(raw, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	rng := rand.New(rand.NewPCG(seed, 2))
	const block = 64 << 10
	p := make([]byte, block)
	for range s.size / block / 100 {
		for i := range p {
			p[i] = byte(rng.Uint32())
		}
		off := rng.Int64N(s.size/block) * block
		if _, err := f.WriteAt(p, off); err != nil {
			return err
		}
		if err := s.lab.write(ctx, "bench", p, off); err != nil {
			return err
		}
	}
	return f.Close()
}
