package mounttest

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Tree says how large a tree [Grow] makes. The zero Tree has about 1,800 entries in 40 MiB.
type Tree struct {
	Files int  // small files, 700 when 0
	Names int  // entries of one directory, of which a third is removed again; 900 when 0
	Huge  bool // with a sparse file of 4.5 GiB, and one of thousands of extents
	Tiny  bool // 120 entries in less than 1 MiB, for golden images
	Minor bool // without what a file system may refuse: attributes above one block
	Fill  int  // MiB of a large file, 6 when 0
}

// Grow fills a mounted directory with everything that was read wrongly by some reader: sizes around every
// boundary, names, deep and large directories, holes, extents never written, links, devices, attributes, modes,
// owners, times. What it writes depends on nothing but t.
func Grow(dir string, t Tree) error {
	g := &grower{dir: dir, t: t, rnd: seeded(42)}
	steps := []func(){g.sizes, g.names, g.deep, g.links, g.special, g.xattrs, g.meta, g.sparse, g.prealloc, g.fragments, g.many, g.big}
	for _, s := range steps {
		s()
	}
	return errors.Join(g.errs...)
}

type grower struct {
	dir  string
	t    Tree
	rnd  *rand.Rand
	errs []error
}

func seeded(n uint64) *rand.Rand { return rand.New(rand.NewPCG(n, 1)) }

func (g *grower) path(elem ...string) string {
	return filepath.Join(append([]string{g.dir}, elem...)...)
}

func (g *grower) check(err error) {
	if err != nil && len(g.errs) < 10 {
		g.errs = append(g.errs, err)
	}
}

func (g *grower) data(n int) []byte {
	b := make([]byte, n)
	if g.t.Tiny { // golden images are kept compressed: little of it differs
		for i := 0; i < n; i += 128 {
			copy(b[i:], fmt.Sprintf("%x at %d ", g.rnd.Uint32(), i))
		}
		return b
	}
	for i := 0; i < n; i += 8 {
		x := g.rnd.Uint64()
		for k := i; k < min(i+8, n); k++ {
			b[k] = byte(x)
			x >>= 8
		}
	}
	return b
}

func (g *grower) text(n int) []byte {
	words := []string{"lorem", "ipsum", "dolor", "sit", "amet", "consectetur\n", "adipiscing", "elit", "0123456789"}
	var b strings.Builder
	for b.Len() < n {
		b.WriteString(words[g.rnd.IntN(len(words))] + " ")
	}
	return []byte(b.String()[:n])
}

func (g *grower) mkdir(elem ...string) { g.check(os.MkdirAll(g.path(elem...), 0o755)) }

func (g *grower) write(b []byte, elem ...string) { g.check(os.WriteFile(g.path(elem...), b, 0o644)) }

// open calls fn with a new file.
func (g *grower) open(name string, fn func(f *os.File) error) {
	f, err := os.Create(g.path(name))
	if err != nil {
		g.check(err)
		return
	}
	g.check(fn(f))
	g.check(f.Close())
}

func (g *grower) sizes() {
	g.mkdir("sizes")
	sizes := []int{
		0, 1, 2, 30, 59, 60, 61, 96, 100, 126, 127, 128, 155, 156, 159, 160, 161, 200, 255, 256, 300, 400, 500, 511, 512, 513,
		600, 680, 700, 800, 900, 1000, 1023, 1024, 1025, 2047, 2048, 2049, 3000, 3900, 4000, 4050, 4095, 4096, 4097, 8191,
		8192, 8193, 12287, 12288, 12289, 16384, 32767, 32768, 65535, 65536, 65537, 131071, 131072, 131073, 262144,
		1048575, 1048576, 1048577,
	}
	for _, n := range sizes {
		if g.t.Tiny && n > 66000 {
			break
		}
		g.write(g.data(n), "sizes", fmt.Sprintf("b%07d", n))
		if !g.t.Tiny {
			g.write(g.text(n), "sizes", fmt.Sprintf("t%07d", n))
		}
	}
}

func (g *grower) many() {
	files, names := 700, 900
	if g.t.Tiny {
		files, names = 10, 60
	}
	if g.t.Files != 0 {
		files = g.t.Files
	}
	if g.t.Names != 0 {
		names = g.t.Names
	}
	for i := range files {
		d := fmt.Sprintf("d%02d", i%37)
		g.mkdir("many", d)
		g.write(g.data(g.rnd.IntN(5000)), "many", d, fmt.Sprintf("file-%05d.dat", i))
	}
	g.mkdir("bigdir")
	name := func(i int) string { return fmt.Sprintf("entry_with_a_rather_long_name_%06d.txt", i) }
	for i := range names {
		g.write([]byte(fmt.Sprintln(i)), "bigdir", name(i))
	}
	for i := 0; i < names; i += 3 {
		g.check(os.Remove(g.path("bigdir", name(i))))
	}
	g.mkdir("emptied")
	for i := range names / 2 {
		g.write(nil, "emptied", fmt.Sprintf("x%04d", i))
	}
	for i := range names / 2 {
		g.check(os.Remove(g.path("emptied", fmt.Sprintf("x%04d", i))))
	}
	g.mkdir("emptydir")
}

func (g *grower) names() {
	g.mkdir("names")
	for _, n := range []string{
		"plain", "with space", "ünïcödé-NFC-é", "unicode-NFD-e\u0301", "日本語のファイル名", "русский", "emoji-😀-🗂️", ".hidden",
		strings.Repeat("a", 255), strings.Repeat("日", 85), "UPPER", "MixedCase.TXT", "dots.in.name.tar.gz", "semi;colon,comma",
		"quote'single", "percent%20", "hash#tag", "(paren)[bracket]{brace}", "tilde~1", "LONGFI~1.TXT", "equals=plus+",
		"-dash", "--dashdash", "$dollar", "@at", "ß-sharp", "İstanbul", "ﬁ-ligature", "𝔘𝔫𝔦-astral", "new\nline",
		"back\\slash", "star*", "q?", "pipe|", "lt<gt>", "colon:name", "dquote\"", "trailing.", "trailing ", "tab\there",
		"invalid-\xff\xfe-utf8", "con", "NUL", "\x01ctl", "...", "..x",
	} {
		g.write([]byte("name:"+n), "names", n)
	}
	d := strings.Repeat("D", 255)
	g.mkdir("names", d)
	g.write([]byte("inner"), "names", d, "inner")
}

func (g *grower) deep() {
	p := []string{"deep"}
	for i := range 60 {
		p = append(p, fmt.Sprintf("level%02d", i))
	}
	if g.t.Tiny {
		p = p[:12]
	}
	g.mkdir(p...)
	g.write(g.data(10000), append(p, "bottom.bin")...)
}

func (g *grower) links() {
	g.mkdir("links", "sub")
	g.write([]byte("target content"), "links", "target.txt")
	targets := []string{"target.txt", "/links/target.txt", "no/such", "../many/d00", "日本/é"}
	for _, n := range []int{20, 59, 60, 61, 120, 155, 156, 157, 200, 255, 257, 300, 430, 600, 1000, 1023, 1024, 2000, 4000, 4095} {
		targets = append(targets, strings.Repeat("m/", 2048)[:n])
	}
	for _, t := range targets {
		name := fmt.Sprintf("sym%04d", len(t))
		// Some file systems with small blocks hold no link of PATH_MAX.
		if err := os.Symlink(t, g.path("links", name)); err != nil && len(t) < 1000 {
			g.check(err)
		}
	}
	for i := range 20 {
		g.check(os.Link(g.path("links", "target.txt"), g.path("links", fmt.Sprintf("hard%02d", i))))
	}
	g.check(os.Link(g.path("sizes", "b0004097"), g.path("links", "sub", "hl4097")))
}

func (g *grower) special() {
	g.mkdir("special")
	g.check(unix.Mkfifo(g.path("special", "fifo"), 0o600))
	g.check(unix.Mknod(g.path("special", "sock"), unix.S_IFSOCK|0o600, 0))
	g.check(unix.Mknod(g.path("special", "chr"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
	g.check(unix.Mknod(g.path("special", "blk"), unix.S_IFBLK|0o600, int(unix.Mkdev(259, 70000))))
}

func (g *grower) set(value []byte, attr string, elem ...string) {
	g.check(unix.Lsetxattr(g.path(elem...), attr, value, 0))
}

func (g *grower) xattrs() {
	g.mkdir("xattr")
	for i, n := range []int{1, 20, 100, 500, 900} {
		name := fmt.Sprintf("f%d", i)
		g.write([]byte(strings.Repeat("x", i)), "xattr", name)
		g.set(g.data(n), "user.test", "xattr", name)
	}
	if !g.t.Minor {
		for _, n := range []int{2000, 3000, 3900} {
			name := fmt.Sprintf("n%d", n)
			g.write([]byte(name), "xattr", name)
			if err := unix.Lsetxattr(g.path("xattr", name), "user.test", g.data(n), 0); err != nil && !errors.Is(err, unix.ENOSPC) {
				g.check(err)
			}
		}
		g.write([]byte("b"), "xattr", "big")
		// ext4 holds this in an inode of its own (ea_inode), XFS in blocks of its own; others refuse.
		if err := unix.Lsetxattr(g.path("xattr", "big"), "user.big", g.data(60000), 0); err != nil && !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.E2BIG) {
			g.check(err)
		}
	}
	g.write([]byte("m"), "xattr", "many")
	count := 12
	if !g.t.Minor {
		count = 20
	}
	for i := range count {
		g.set([]byte(strings.Repeat(fmt.Sprintf("v%d", i), 5)), fmt.Sprintf("user.k%02d", i), "xattr", "many")
	}
	g.set([]byte("dirval"), "user.ondir", "xattr")
	g.write(nil, "xattr", "trusted")
	g.set([]byte("bar"), "trusted.foo", "xattr", "trusted")
	g.set([]byte("system_u:object_r:etc_t:s0\x00"), "security.selinux", "xattr", "trusted")
	g.write(nil, "xattr", "empty")
	g.set(nil, "user.empty", "xattr", "empty")
	g.write(nil, "xattr", "cap")
	g.set([]byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), "security.capability", "xattr", "cap")
	// user::rw- user:1000:r-- group::r-- group:2000:rwx mask::rwx other::---
	acl := []byte("\x02\x00\x00\x00" +
		"\x01\x00\x06\x00\xff\xff\xff\xff" + "\x02\x00\x04\x00\xe8\x03\x00\x00" + "\x04\x00\x04\x00\xff\xff\xff\xff" +
		"\x08\x00\x07\x00\xd0\x07\x00\x00" + "\x10\x00\x07\x00\xff\xff\xff\xff" + "\x20\x00\x00\x00\xff\xff\xff\xff")
	g.write([]byte("acl"), "xattr", "acl")
	g.set(acl, "system.posix_acl_access", "xattr", "acl")
	g.mkdir("xattr", "acldir")
	g.set(acl, "system.posix_acl_default", "xattr", "acldir")
}

func (g *grower) meta() {
	g.mkdir("meta")
	for _, m := range []uint32{0o4755, 0o2755, 0o1777, 0o000, 0o640} {
		p := g.path("meta", fmt.Sprintf("m%04o", m))
		g.check(os.WriteFile(p, []byte("m"), 0o600))
		g.check(unix.Chmod(p, m))
	}
	for _, u := range [][2]int{{1000, 1000}, {65534, 65534}, {70000, 80000}, {4000000000, 4000000001}} {
		p := g.path("meta", fmt.Sprintf("u%d", u[0]))
		g.check(os.WriteFile(p, []byte("u"), 0o600))
		g.check(unix.Lchown(p, u[0], u[1]))
	}
	for _, t := range []int64{0, 1, -1, -315619200, 1e9, 1<<31 - 1, 1 << 31, 1 << 32, 9000000000, 15e9} {
		p := g.path("meta", fmt.Sprintf("t%d", t))
		g.check(os.WriteFile(p, []byte("t"), 0o600))
		// What the format cannot hold, the kernel clamps; the truth is what it then shows.
		g.check(os.Chtimes(p, time.Unix(t, 5), time.Unix(t, 123456789)))
	}
}

func (g *grower) sparse() {
	g.mkdir("sparse")
	g.open("sparse/allhole", func(f *os.File) error { return f.Truncate(10 << 20) })
	g.open("sparse/tailpartial", func(f *os.File) error { return f.Truncate(100001) })
	at := func(name string, size int64, pieces map[int64]int) {
		g.open("sparse/"+name, func(f *os.File) error {
			for _, off := range slices.Sorted(maps.Keys(pieces)) {
				if _, err := f.WriteAt(g.data(pieces[off]), off); err != nil {
					return err
				}
			}
			if size > 0 {
				return f.Truncate(size)
			}
			return nil
		})
	}
	at("trailhole", 3<<20, map[int64]int{0: 5000})
	at("leadhole", 0, map[int64]int{1 << 20: 7777})
	swiss, step := 200, int64(16384)
	if g.t.Tiny {
		swiss = 10
	}
	g.open("sparse/oddhole", func(f *os.File) error {
		for i := range int64(min(swiss, 50)) {
			if _, err := f.WriteAt(g.data(777), i*100003); err != nil {
				return err
			}
		}
		return nil
	})
	if g.t.Huge {
		swiss = 3000
		at("huge", 1<<32+1<<29, map[int64]int{0: 9999, 1<<30 + 123: 100000, 1<<32 - 10: 1000, 1<<32 + 1<<28: 65536 + 17})
	}
	g.open("sparse/swiss", func(f *os.File) error {
		for i := range int64(swiss) {
			if _, err := f.WriteAt(g.data(4096), i*step); err != nil {
				return err
			}
		}
		return nil
	})
}

// prealloc makes extents that were allocated and never written. File systems without them (ext2, ext3) refuse.
func (g *grower) prealloc() {
	g.mkdir("prealloc")
	const keep, punch, collapse, zero = 1, 2, 8, 16
	unit, full := int64(1<<20), 2<<20
	if g.t.Tiny {
		unit, full = 64<<10, 160<<10
	}
	refused := func(err error) error {
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) {
			return nil
		}
		return err
	}
	alloc := func(f *os.File, mode uint32, off, n int64) error {
		return refused(unix.Fallocate(int(f.Fd()), mode, off, n))
	}
	g.open("prealloc/unwritten", func(f *os.File) error { return alloc(f, 0, 0, 2*unit) })
	g.open("prealloc/partial", func(f *os.File) error {
		if err := alloc(f, 0, 0, 4*unit); err != nil {
			return err
		}
		for _, off := range []int64{0, 12345, unit, 3*unit + 5} {
			if _, err := f.WriteAt(g.data(6000), off); err != nil {
				return err
			}
		}
		return nil
	})
	g.open("prealloc/keepsize", func(f *os.File) error {
		if err := alloc(f, keep, 0, 4*unit); err != nil {
			return err
		}
		_, err := f.WriteAt(g.data(5000), 0)
		return err
	})
	for name, c := range map[string]struct {
		mode   uint32
		off, n int64
	}{
		"punched":   {keep | punch, 4096 * 10, 4096 * 20},
		"zeroed":    {zero, 4096*10 + 5, 4096 * 20},
		"collapsed": {collapse, 65536, 65536},
	} {
		g.open("prealloc/"+name, func(f *os.File) error {
			if _, err := f.Write(make([]byte, full)); err != nil {
				return err
			}
			// What is written depends on the name, not on the order of the map.
			b := (&grower{rnd: rand.New(rand.NewPCG(uint64(len(name)), 7)), t: g.t}).data(full)
			if _, err := f.WriteAt(b, 0); err != nil {
				return err
			}
			if err := f.Sync(); err != nil {
				return err
			}
			return alloc(f, c.mode, c.off, c.n)
		})
	}
}

// fragments writes several files in turns, so that their extents lie between one another's.
func (g *grower) fragments() {
	g.mkdir("big")
	turns := 60
	if g.t.Tiny {
		turns = 8
	}
	if g.t.Huge {
		turns = 300
	}
	var files []*os.File
	for k := range 4 {
		f, err := os.Create(g.path("big", fmt.Sprintf("frag%d.bin", k)))
		if err != nil {
			g.check(err)
			return
		}
		defer f.Close()
		files = append(files, f)
	}
	for i := range turns {
		for k, f := range files {
			n := 4096
			if (i+k)%5 == 0 {
				n = 8192
			}
			_, err := f.Write(g.data(n))
			g.check(err)
			if i%4 == 0 && k%2 == 0 {
				g.check(unix.Fdatasync(int(f.Fd())))
			}
		}
	}
}

func (g *grower) big() {
	if g.t.Tiny {
		return
	}
	mib := 6
	if g.t.Fill != 0 {
		mib = g.t.Fill
	}
	g.open("big/rand.bin", func(f *os.File) error {
		for range mib {
			if _, err := f.Write(g.data(1 << 20)); err != nil {
				return err
			}
		}
		return nil
	})
	g.write(g.text(3<<20), "big", "text.txt")
}
