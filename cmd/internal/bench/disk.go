package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/vmkeep/vmkeep/vsphere/lab/guestdisk"
)

// makeDisk makes a disk with files of this machine, real ones, whatever it has, and returns the directory they were
// taken from.
func (b *bench) makeDisk(ctx context.Context, raw string, limit int64) (tree string, err error) {
	stamp("making the disk")
	tree = raw + ".tree"
	root, err := exec.CommandContext(ctx, "go", "env", "GOROOT", "GOMODCACHE").Output()
	if err != nil {
		return "", fmt.Errorf("go env: %w", err)
	}
	sources := append([]string{"/usr"}, strings.Fields(string(root))...)
	left := limit
	for i, from := range sources {
		if err := copyTree(ctx, from, filepath.Join(tree, fmt.Sprint(i)), &left); err != nil {
			return "", err
		}
	}
	stamp("%d MiB of files", (limit-left)>>20)
	return tree, guestdisk.Make(ctx, raw, b.size, tree, "bench")
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

// makeRandom fills a file with what no compression shrinks.
func makeRandom(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.CopyN(f, rand.Reader, size)
	return errors.Join(err, f.Close())
}
