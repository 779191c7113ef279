package guestfs

import (
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// IOFS is the file system as an io/fs.FS, for templates, archivers and http servers. Names that are not valid
// UTF-8, or hold a backslash, which io/fs refuses, have each bad byte written as "%XX"; such a name is found again
// unless a file really has the escaped name. Symbolic links are not followed; io/fs.ReadLinkFS reads them. Sys of a FileInfo is the [Attr].
func (f *FS) IOFS() iofs.FS { return ioFS{f} }

var (
	_ iofs.ReadDirFS  = ioFS{}
	_ iofs.StatFS     = ioFS{}
	_ iofs.ReadLinkFS = ioFS{}
	_ io.ReaderAt     = (*ioFile)(nil)
	_ io.Seeker       = (*ioFile)(nil)
)

type ioFS struct{ f *FS }

func (x ioFS) walk(op, name string) (Attr, error) {
	if !iofs.ValidPath(name) {
		return Attr{}, &iofs.PathError{Op: op, Path: name, Err: iofs.ErrInvalid}
	}
	fail := func(err error) (Attr, error) {
		if errors.Is(err, ErrNotDir) { // io/fs has no word for a path through a file
			err = fmt.Errorf("%w (%w)", iofs.ErrNotExist, err)
		}
		return Attr{}, &iofs.PathError{Op: op, Path: name, Err: err}
	}
	id := x.f.Root()
	for elem := range strings.SplitSeq(name, "/") {
		if elem == "." {
			continue
		}
		next, err := x.f.Lookup(id, elem)
		if errors.Is(err, iofs.ErrNotExist) && strings.Contains(elem, "%") {
			next, err = x.escaped(id, elem)
		}
		if err != nil {
			return fail(err)
		}
		id = next
	}
	a, err := x.f.Stat(id)
	if err != nil {
		return fail(err)
	}
	return a, nil
}

func (x ioFS) escaped(dir ID, name string) (ID, error) {
	for e, err := range x.f.ReadDir(dir, 0) {
		if err != nil {
			return ID{}, err
		}
		if e.Name != name && escape(e.Name) == name {
			return e.ID, nil
		}
	}
	return ID{}, notExist(name)
}

func escape(name string) string {
	if utf8.ValidString(name) && !strings.Contains(name, `\`) {
		return name
	}
	var b strings.Builder
	for i, r := range name {
		_, n := utf8.DecodeRuneInString(name[i:])
		if r == utf8.RuneError && n == 1 || r == '\\' {
			fmt.Fprintf(&b, "%%%02X", name[i])
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}

func (x ioFS) Open(name string) (iofs.File, error) {
	a, err := x.walk("open", name)
	if err != nil {
		return nil, err
	}
	f := &ioFile{fs: x, info: ioInfo{base(name), a}, path: name}
	switch a.Type {
	case Directory:
	case Regular:
		file, err := x.f.Open(a.ID, "")
		if err != nil {
			return nil, &iofs.PathError{Op: "open", Path: name, Err: err}
		}
		f.SectionReader = io.NewSectionReader(file, 0, file.Size())
	default:
		return nil, &iofs.PathError{Op: "open", Path: name, Err: fmt.Errorf("%v: %w", a.Type, ErrNotRegular)}
	}
	return f, nil
}

func (x ioFS) Stat(name string) (iofs.FileInfo, error) { return x.Lstat(name) }

func (x ioFS) Lstat(name string) (iofs.FileInfo, error) {
	a, err := x.walk("stat", name)
	if err != nil {
		return nil, err
	}
	return ioInfo{base(name), a}, nil
}

func (x ioFS) ReadLink(name string) (string, error) {
	a, err := x.walk("readlink", name)
	if err != nil {
		return "", err
	}
	t, err := x.f.Readlink(a.ID)
	if err != nil {
		return "", &iofs.PathError{Op: "readlink", Path: name, Err: err}
	}
	return t, nil
}

func (x ioFS) ReadDir(name string) ([]iofs.DirEntry, error) {
	a, err := x.walk("readdir", name)
	if err != nil {
		return nil, err
	}
	var out []iofs.DirEntry
	for e, err := range x.f.ReadDir(a.ID, 0) {
		if err != nil {
			return out, &iofs.PathError{Op: "readdir", Path: name, Err: err}
		}
		d := ioEntry{x.f, e}
		if e.Type == Unknown {
			if a, err := x.f.Stat(e.ID); err == nil {
				d.e.Type = a.Type
			}
		}
		out = append(out, d)
	}
	slices.SortFunc(out, func(a, b iofs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return out, nil
}

func base(name string) string { return name[strings.LastIndexByte(name, '/')+1:] }

// ioFile is an open file; of a directory the SectionReader is nil.
type ioFile struct {
	*io.SectionReader
	fs      ioFS
	info    ioInfo
	path    string
	entries []iofs.DirEntry
	listed  bool
}

func (f *ioFile) Stat() (iofs.FileInfo, error) { return f.info, nil }
func (f *ioFile) Close() error                 { return nil }

func (f *ioFile) Read(p []byte) (int, error) {
	if f.SectionReader == nil {
		return 0, &iofs.PathError{Op: "read", Path: f.path, Err: ErrNotRegular}
	}
	return f.SectionReader.Read(p)
}

func (f *ioFile) ReadAt(p []byte, off int64) (int, error) {
	if f.SectionReader == nil {
		return 0, &iofs.PathError{Op: "read", Path: f.path, Err: ErrNotRegular}
	}
	return f.SectionReader.ReadAt(p, off)
}

func (f *ioFile) Seek(off int64, whence int) (int64, error) {
	if f.SectionReader == nil {
		return 0, &iofs.PathError{Op: "seek", Path: f.path, Err: ErrNotRegular}
	}
	return f.SectionReader.Seek(off, whence)
}

// ReadDir keeps io/fs.ReadDirFile's contract.
func (f *ioFile) ReadDir(n int) ([]iofs.DirEntry, error) {
	if !f.listed {
		es, err := f.fs.ReadDir(f.path)
		if err != nil {
			return nil, err
		}
		f.entries, f.listed = es, true
	}
	if n <= 0 {
		n = len(f.entries)
	} else if len(f.entries) == 0 {
		return nil, io.EOF
	}
	n = min(n, len(f.entries))
	out := f.entries[:n:n]
	f.entries = f.entries[n:]
	return out, nil
}

type ioEntry struct {
	f *FS
	e Entry
}

func (d ioEntry) Name() string        { return escape(d.e.Name) }
func (d ioEntry) IsDir() bool         { return d.e.Type == Directory }
func (d ioEntry) Type() iofs.FileMode { return d.e.Type.mode() }
func (d ioEntry) String() string      { return iofs.FormatDirEntry(d) }

func (d ioEntry) Info() (iofs.FileInfo, error) {
	a, err := d.f.Stat(d.e.ID)
	if err != nil {
		return nil, err
	}
	return ioInfo{d.Name(), a}, nil
}

func (t Type) mode() iofs.FileMode {
	switch t {
	case Regular:
		return 0
	case Directory:
		return iofs.ModeDir
	case Symlink:
		return iofs.ModeSymlink
	case CharDevice:
		return iofs.ModeDevice | iofs.ModeCharDevice
	case BlockDevice:
		return iofs.ModeDevice
	case FIFO:
		return iofs.ModeNamedPipe
	case Socket:
		return iofs.ModeSocket
	}
	return iofs.ModeIrregular
}

type ioInfo struct {
	name string
	a    Attr
}

func (i ioInfo) Name() string       { return i.name }
func (i ioInfo) Size() int64        { return i.a.Size }
func (i ioInfo) ModTime() time.Time { return i.a.Mtime }
func (i ioInfo) IsDir() bool        { return i.a.Type == Directory }
func (i ioInfo) Sys() any           { return i.a }
func (i ioInfo) String() string     { return iofs.FormatFileInfo(i) }

// Mode is the mode as io/fs spells it.
func (i ioInfo) Mode() iofs.FileMode {
	m := i.a.Type.mode() | iofs.FileMode(i.a.Mode&0o777)
	for bit, is := range map[uint32]iofs.FileMode{0o4000: iofs.ModeSetuid, 0o2000: iofs.ModeSetgid, 0o1000: iofs.ModeSticky} {
		if i.a.Mode&bit != 0 {
			m |= is
		}
	}
	return m
}
