// Package mounttest compares what the readers of guest file systems see with what the kernel sees.
//
// A [Manifest] is everything there is to know of a tree: names, types, modes, owners, times, sizes, SHA-256 of
// the content, link targets, extended attributes. [Truth] makes one of a mounted directory by system calls,
// [Read] makes one through guestfs, and [Diff] says where they differ. [Grow] makes the trees: everything that was
// ever read wrongly by some library. [Image] makes the disks with the real mkfs, [Mutant] damages them.
package mounttest

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
)

// Entry is one file of a manifest, by its path. A hard-linked file has an entry for each of its names.
type Entry struct {
	Path   string // relative to the root, "" for the root; "hex:" and hex digits where it is not UTF-8
	Type   string
	Mode   uint32
	UID    uint32
	GID    uint32
	Links  uint32            `json:",omitempty"` // not of directories
	Size   int64             `json:",omitempty"` // of regular files
	Hash   string            `json:",omitempty"` // SHA-256 of the content
	Link   string            `json:",omitempty"`
	Dev    string            `json:",omitempty"` // major:minor
	Xattrs map[string]string `json:",omitempty"` // name -> hex, or its SHA-256 where long
	Mtime  string
	Atime  string `json:",omitempty"`
	Ctime  string `json:",omitempty"`
	Btime  string `json:",omitempty"`
	// Streams are named streams: name -> SHA-256.
	Streams map[string]string `json:",omitempty"`
}

// Manifest is a tree, sorted by path.
type Manifest []Entry

func (m Manifest) sort() Manifest {
	slices.SortFunc(m, func(a, b Entry) int { return cmp.Compare(a.Path, b.Path) })
	return m
}

// Write writes the manifest as JSON lines.
func (m Manifest) Write(w io.Writer) error {
	enc := json.NewEncoder(w)
	for _, e := range m {
		if err := enc.Encode(e); err != nil {
			return err
		}
	}
	return nil
}

// Parse reads what Write wrote.
func Parse(r io.Reader) (Manifest, error) {
	var m Manifest
	dec := json.NewDecoder(bufio.NewReader(r))
	for {
		var e Entry
		if err := dec.Decode(&e); errors.Is(err, io.EOF) {
			return m, nil
		} else if err != nil {
			return nil, err
		}
		m = append(m, e)
	}
}

func printable(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return "hex:" + hex.EncodeToString([]byte(s))
}

func short(b []byte) string {
	if len(b) <= 64 {
		return hex.EncodeToString(b)
	}
	s := sha256.Sum256(b)
	return fmt.Sprintf("%d bytes, sha256 %x", len(b), s)
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return fmt.Sprintf("%d.%09d", t.Unix(), t.Nanosecond())
}

// Read makes the manifest of a file system as its reader sees it. Every file is read whole.
func Read(f *guestfs.FS) (Manifest, error) {
	var m Manifest
	var walk func(id guestfs.ID, path string, depth int) error
	walk = func(id guestfs.ID, path string, depth int) error {
		e, err := entry(f, id, path)
		if err != nil {
			return fmt.Errorf("%q: %w", path, err)
		}
		m = append(m, e)
		if e.Type != "directory" {
			return nil
		}
		if depth > 200 {
			return fmt.Errorf("%q: too deep", path)
		}
		for x, err := range f.ReadDir(id, 0) {
			if err != nil {
				return fmt.Errorf("%q: %w", path, err)
			}
			p := x.Name
			if path != "" {
				p = path + "/" + x.Name
			}
			if p == "lost+found" {
				continue
			}
			if err := walk(x.ID, p, depth+1); err != nil {
				return err
			}
			if t := m[len(m)-1]; x.Type != guestfs.Unknown && t.Path == printable(p) && x.Type.String() != t.Type {
				return fmt.Errorf("%q: its directory calls it %v, its inode %v", p, x.Type, t.Type)
			}
		}
		return nil
	}
	if err := walk(f.Root(), "", 0); err != nil {
		return m, err
	}
	return m.sort(), nil
}

func entry(f *guestfs.FS, id guestfs.ID, path string) (Entry, error) {
	a, err := f.Stat(id)
	if err != nil {
		return Entry{}, err
	}
	e := Entry{
		Path: printable(path), Type: a.Type.String(), Mode: a.Mode, UID: a.UID, GID: a.GID,
		Mtime: stamp(a.Mtime), Atime: stamp(a.Atime), Ctime: stamp(a.Ctime), Btime: stamp(a.Btime),
	}
	if a.Type != guestfs.Directory {
		e.Links = a.Links
	}
	switch a.Type {
	case guestfs.Regular:
		file, err := f.Open(id, "")
		if err != nil {
			return e, err
		}
		if file.Size() != a.Size {
			return e, fmt.Errorf("opened with %d bytes, stat says %d", file.Size(), a.Size)
		}
		e.Size = a.Size
		if e.Hash, err = contentHash(file); err != nil {
			return e, err
		}
	case guestfs.Symlink:
		t, err := f.Readlink(id)
		if err != nil {
			return e, err
		}
		if int64(len(t)) != a.Size {
			return e, fmt.Errorf("link of %d bytes, stat says %d", len(t), a.Size)
		}
		e.Link = printable(t)
	case guestfs.CharDevice, guestfs.BlockDevice:
		e.Dev = fmt.Sprintf("%d:%d", a.Major, a.Minor)
	}
	xs, err := f.Xattrs(id)
	if err != nil {
		return e, err
	}
	for _, x := range xs {
		if e.Xattrs == nil {
			e.Xattrs = map[string]string{}
		}
		e.Xattrs[x.Name] = short(x.Value)
	}
	streams, err := f.Streams(id)
	if err != nil {
		return e, err
	}
	for _, s := range streams {
		file, err := f.Open(id, s.Name)
		if err != nil {
			return e, fmt.Errorf("stream %q: %w", s.Name, err)
		}
		h, err := contentHash(file)
		if err != nil {
			return e, fmt.Errorf("stream %q: %w", s.Name, err)
		}
		if e.Streams == nil {
			e.Streams = map[string]string{}
		}
		e.Streams[s.Name] = h
	}
	return e, nil
}

func contentHash(f guestfs.File) (string, error) {
	sum, n, err := digest(guestfs.NewReader(f), f.Size())
	if err != nil {
		return "", fmt.Errorf("at byte %d: %w", n, err)
	}
	if n != f.Size() {
		return "", fmt.Errorf("read %d of %d bytes", n, f.Size())
	}
	return sum, nil
}

// Of files above 1 GiB, which are mostly holes, only blocks that are not zero are hashed, each with its number: every
// byte is still compared, in a fraction of the time.
const hugeFile, hugeBlock = 1 << 30, 64 << 10

// digest reads all of r, size bytes, and returns their SHA-256.
func digest(r io.Reader, size int64) (sum string, n int64, err error) {
	d := newDigester(size)
	b := make([]byte, hugeBlock)
	for k := int64(0); ; k++ {
		got, err := io.ReadFull(r, b)
		n += int64(got)
		d.block(k, b[:got])
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return d.sum(), n, nil
		}
		if err != nil {
			return "", n, err
		}
	}
}

type digester struct {
	h    hash.Hash
	size int64
	zero []byte
}

func newDigester(size int64) *digester {
	return &digester{sha256.New(), size, make([]byte, hugeBlock)}
}

func (d *digester) block(k int64, b []byte) {
	if d.size <= hugeFile {
		d.h.Write(b)
	} else if !bytes.Equal(b, d.zero[:len(b)]) {
		d.h.Write(binary.BigEndian.AppendUint64(nil, uint64(k)))
		d.h.Write(b)
	}
}

func (d *digester) sum() string {
	s := hex.EncodeToString(d.h.Sum(nil))
	if d.size > hugeFile {
		return fmt.Sprintf("%d sparse %s", d.size, s)
	}
	return s
}

// Diff says where got differs from want, at most 20 times.
func Diff(want, got Manifest) []string {
	have := map[string]Entry{}
	var out []string
	for _, e := range got {
		if _, twice := have[e.Path]; twice {
			out = append(out, fmt.Sprintf("%q: listed twice", e.Path))
		}
		have[e.Path] = e
	}
	for _, w := range want {
		g, ok := have[w.Path]
		delete(have, w.Path)
		if !ok {
			out = append(out, fmt.Sprintf("%q: missing", w.Path))
			continue
		}
		// What the truth does not know (old golden files, mounts that hide it) is not compared.
		if w.Links == 0 {
			g.Links = 0
		}
		for _, t := range [][2]*string{{&w.Mtime, &g.Mtime}, {&w.Atime, &g.Atime}, {&w.Ctime, &g.Ctime}, {&w.Btime, &g.Btime}} {
			if *t[0] == "" {
				*t[1] = ""
			}
		}
		if same(w, g) {
			continue
		}
		a, _ := json.Marshal(w)
		b, _ := json.Marshal(g)
		out = append(out, fmt.Sprintf("%q:\n  want %s\n  got  %s", w.Path, a, b))
	}
	for p := range have {
		out = append(out, fmt.Sprintf("%q: does not exist", p))
	}
	if len(out) > 20 {
		out = append(out[:20], fmt.Sprintf("and %d more", len(out)-20))
	}
	return out
}

func same(a, b Entry) bool {
	x, y := a, b
	x.Xattrs, y.Xattrs, x.Streams, y.Streams = nil, nil, nil, nil
	return fmt.Sprint(x) == fmt.Sprint(y) && maps.Equal(a.Xattrs, b.Xattrs) && maps.Equal(a.Streams, b.Streams)
}
