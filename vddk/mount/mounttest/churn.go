package mounttest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Churn changes a tree n times at random: makes, grows, cuts, renames and removes files and directories, sets
// attributes, and now and then syncs. What it does depends on the seed.
func Churn(dir string, seed uint64, n int) error {
	c := &churner{dir: filepath.Join(dir, "churn"), rnd: rand.New(rand.NewPCG(seed, 3))}
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return err
	}
	c.dirs = []string{c.dir}
	for i := range n {
		if err := c.step(i); err != nil {
			return fmt.Errorf("churn: %w", err)
		}
	}
	return nil
}

type churner struct {
	dir         string
	rnd         *rand.Rand
	dirs, files []string
}

func (c *churner) pick(list []string) string { return list[c.rnd.IntN(len(list))] }

// drop removes the element at i.
func drop(list []string, i int) []string {
	list[i] = list[len(list)-1]
	return list[:len(list)-1]
}

func (c *churner) step(i int) error {
	op := c.rnd.IntN(20)
	if len(c.files) < 20 {
		op = 0
	}
	switch {
	case op < 7:
		p := filepath.Join(c.pick(c.dirs), fmt.Sprintf("file%d", i))
		c.files = append(c.files, p)
		return os.WriteFile(p, (&grower{rnd: c.rnd, t: Tree{Tiny: true}}).data(c.rnd.IntN(30000)), 0o644)
	case op < 9:
		k := c.rnd.IntN(len(c.files))
		p := c.files[k]
		c.files = drop(c.files, k)
		return os.Remove(p)
	case op < 10:
		return os.Truncate(c.pick(c.files), int64(c.rnd.IntN(60000)))
	case op < 13:
		k := c.rnd.IntN(len(c.files))
		to := filepath.Join(c.pick(c.dirs), fmt.Sprintf("moved%d", i))
		err := os.Rename(c.files[k], to)
		c.files[k] = to
		return err
	case op < 14:
		p := filepath.Join(c.pick(c.dirs), fmt.Sprintf("dir%d", i))
		c.dirs = append(c.dirs, p)
		return os.Mkdir(p, 0o755)
	case op < 15: // a directory that comes and goes, whose blocks are used again
		p := filepath.Join(c.dir, fmt.Sprintf("gone%d", i))
		if err := os.Mkdir(p, 0o755); err != nil {
			return err
		}
		for k := range 40 {
			if err := os.WriteFile(filepath.Join(p, fmt.Sprintf("a-file-with-a-long-name-%d", k)), []byte("x"), 0o600); err != nil {
				return err
			}
		}
		return os.RemoveAll(p)
	case op < 16:
		return unix.Lsetxattr(c.pick(c.files), fmt.Sprintf("user.c%d", i%5), (&grower{rnd: c.rnd, t: Tree{Tiny: true}}).data(c.rnd.IntN(300)), 0)
	case op < 17:
		return os.Symlink(fmt.Sprintf("%0*d", 1+c.rnd.IntN(500), i), filepath.Join(c.pick(c.dirs), fmt.Sprintf("link%d", i)))
	case op < 18:
		return os.Link(c.pick(c.files), filepath.Join(c.pick(c.dirs), fmt.Sprintf("hard%d", i)))
	default:
		f, err := os.OpenFile(c.pick(c.files), os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := f.Write((&grower{rnd: c.rnd, t: Tree{Tiny: true}}).data(c.rnd.IntN(20000))); err != nil {
			return err
		}
		if c.rnd.IntN(6) == 0 {
			return f.Sync()
		}
		if c.rnd.IntN(40) == 0 {
			return unix.Syncfs(int(f.Fd()))
		}
		return nil
	}
}
