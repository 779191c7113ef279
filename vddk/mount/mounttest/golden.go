package mounttest

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// Golden is a small image that is kept with its manifest, for tests that run without root and without mkfs, and to
// be damaged: NAME.img.zst and NAME.json.zst.
type Golden struct {
	Name  string
	Image Image
}

const mib = 1 << 20

func tiny(dir string) error { return Grow(dir, Tree{Tiny: true, Minor: true}) }

// Goldens are the images kept: one for each layout a reader must know. They are made again by
//
//	go run ./vddk/mount/testdata/golden
func Goldens() []Golden {
	ext := func(options string) string { return "mke2fs -q -F -E nodiscard,lazy_itable_init=0 -N 400 " + options }
	xfs := func(options string) string { return "mkfs.xfs --unsupported -q -f -K " + options }
	churned := func(dir string) error {
		if err := tiny(dir); err != nil {
			return err
		}
		return Churn(dir, 9, 120)
	}
	return []Golden{
		{"ext4-journal", Image{Size: 12 * mib, Mkfs: ext("-t ext4 -b 1024 -J size=1 -O inline_data,ea_inode"), Fill: churned, Crash: JournalFlushed}},
		{"ext4-bigalloc", Image{Size: 32 * mib, Mkfs: ext("-t ext4 -b 4096 -O bigalloc,meta_bg,^resize_inode,^has_journal"), Fill: tiny}},
		{"ext4-casefold", Image{Size: 24 * mib, Mkfs: ext("-t ext4 -b 4096 -O casefold,encrypt,quota,verity,large_dir,^has_journal"), Fill: tiny, Offline: CopiedByMke2fs, Forget: ForgotByMke2fs}},
		{"ext3-journal", Image{Size: 10 * mib, Mkfs: ext("-t ext3 -b 1024 -I 128 -J size=1"), Fill: churned, Crash: JournalFlushed}},
		{"ext2", Image{Size: 8 * mib, Mkfs: ext("-t ext2 -b 2048"), Fill: tiny}},
		{"xfs-log", Image{Size: 48 * mib, Mkfs: xfs("-i nrext64=1"), Fill: churned, Crash: JournalFlushed}},
		{"xfs-1k", Image{Size: 48 * mib, Mkfs: xfs("-b size=1024 -n size=4096 -m rmapbt=1"), Fill: tiny}},
		{"xfs-v4", Image{Size: 32 * mib, Mkfs: xfs("-m crc=0 -n ftype=0"), Fill: plainTree, Offline: CopiedByMkfsXFS, Forget: forgotByMkfsXFS}},
		{"xfs-v4-ftype", Image{Size: 32 * mib, Mkfs: xfs("-m crc=0 -n ftype=1 -b size=1024"), Fill: plainTree, Offline: CopiedByMkfsXFS, Forget: forgotByMkfsXFS}},
	}
}

// CopiedByMke2fs has mke2fs copy a directory.
func CopiedByMke2fs(dir string) ([]string, error) { return []string{"-d", dir}, nil }

// ForgotByMke2fs blanks what mke2fs does not copy: fractions of seconds, and times of more than 32 bits.
func ForgotByMke2fs(e *Entry) {
	sec, _, _ := strings.Cut(e.Mtime, ".")
	e.Mtime = sec + ".000000000"
	if _, err := strconv.ParseInt(sec, 10, 32); err != nil {
		e.Mtime = ""
	}
}

// plainTree is what a protofile of mkfs.xfs can describe: no names with spaces, no attributes.
func plainTree(dir string) error {
	g := &grower{dir: dir, t: Tree{Tiny: true}}
	g.rnd = seeded(42)
	for _, step := range []func(){g.sizes, g.deep, g.links, g.special, g.many} {
		step()
	}
	g.mkdir("names")
	for _, n := range []string{"plain", strings.Repeat("n", 200), "日本語"} {
		g.write([]byte(n), "names", n)
	}
	if len(g.errs) > 0 {
		return g.errs[0]
	}
	return nil
}

// CopiedByMkfsXFS has mkfs.xfs copy a directory, by a protofile (mkfs.xfs(8), -p).
func CopiedByMkfsXFS(dir string) ([]string, error) {
	var b strings.Builder
	b.WriteString("x\n0 0\n")
	if err := proto(&b, dir, "", 0); err != nil {
		return nil, err
	}
	p := filepath.Join(filepath.Dir(dir), "proto")
	return []string{"-p", p}, os.WriteFile(p, []byte(b.String()), 0o600)
}

// proto describes a file: type and mode, owner, and what it holds.
func proto(b *strings.Builder, path, name string, depth int) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	m := info.Mode()
	kind := map[fs.FileMode]string{0: "-", fs.ModeDir: "d", fs.ModeSymlink: "l", fs.ModeNamedPipe: "p"}[m.Type()]
	if kind == "" || strings.ContainsAny(name, " \t\n") || m&fs.ModeSymlink != 0 && info.Size() > 1000 {
		return os.RemoveAll(path) // not part of the truth then
	}
	fmt.Fprintf(b, "%s %s--%03o 0 0", name, kind, m.Perm())
	switch kind {
	case "-":
		fmt.Fprintf(b, " %s\n", path)
	case "l":
		t, err := os.Readlink(path)
		if err != nil {
			return err
		}
		fmt.Fprintf(b, " %s\n", t)
	case "d":
		b.WriteString("\n")
		entries, err := os.ReadDir(path)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := proto(b, filepath.Join(path, e.Name()), e.Name(), depth+1); err != nil {
				return err
			}
		}
		b.WriteString("$\n")
	default:
		b.WriteString("\n")
	}
	return nil
}

func forgotByMkfsXFS(e *Entry) { e.Links, e.Mtime, e.Xattrs, e.UID, e.GID = 0, "", nil, 0, 0 }

// Write makes the golden image and writes it and its manifest to dir.
func (g Golden) Write(dir string) error {
	work, err := os.MkdirTemp("", "golden")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	path, truth, err := g.Image.Build(work)
	if err != nil {
		return fmt.Errorf("%s: %w", g.Name, err)
	}
	image, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var manifest bytes.Buffer
	if err := truth.Write(&manifest); err != nil {
		return err
	}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithWindowSize(16<<20))
	if err != nil {
		return err
	}
	defer enc.Close()
	for name, b := range map[string][]byte{".img.zst": image, ".json.zst": manifest.Bytes()} {
		if err := os.WriteFile(filepath.Join(dir, g.Name+name), enc.EncodeAll(b, nil), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// Load reads a golden image and its manifest from dir.
func (g Golden) Load(dir string) ([]byte, Manifest, error) {
	dec, err := zstd.NewReader(nil)
	if err != nil {
		return nil, nil, err
	}
	defer dec.Close()
	var parts [2][]byte
	for k, name := range []string{".img.zst", ".json.zst"} {
		b, err := os.ReadFile(filepath.Join(dir, g.Name+name))
		if err != nil {
			return nil, nil, err
		}
		if parts[k], err = dec.DecodeAll(b, nil); err != nil {
			return nil, nil, fmt.Errorf("%s%s: %w", g.Name, name, err)
		}
	}
	truth, err := Parse(bytes.NewReader(parts[1]))
	return parts[0], truth, err
}
