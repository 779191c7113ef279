package engine

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/vddk/mount"
	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
)

// Guest files as a tar archive, in the PAX format of POSIX.1-2008 (pax, "Extended Interchange Format").
//
// Owners, modes, times, hard links, devices and extended attributes (SCHILY.xattr.NAME, as GNU tar and bsdtar have
// them) are kept. What tar has no word for:
//
//	alternate data stream   an entry "FILE:STREAM" behind that of the file, with the record [plugin.TarStream]
//	content that cannot     an entry "FILE.unreadable" that says why, with the record [plugin.TarUnreadable];
//	be read                 all other files are in the archive nevertheless

// TarFiles implements [plugin.Service].
func (e *Engine) TarFiles(ctx context.Context, req plugin.FileRequest, fn func([]byte) error) error {
	return e.withGuest(ctx, req, func(g *guest) error {
		p, err := g.find(req)
		if err != nil {
			return err
		}
		out := &pieces{emit: fn}
		archive := &archiver{w: tar.NewWriter(out), base: archiveBase(p.path), seen: map[inode]string{}}
		req.Recursive = true
		if p.fs != nil {
			if a, err := p.fs.Stat(p.id); err != nil {
				return err
			} else if a.Type == guestfs.Directory && archive.name(p.path) != "" && len(req.Globs) == 0 {
				if err := archive.add(&found{place: p, attr: a}); err != nil {
					return err
				}
			}
		}
		if err := p.walkAhead(ctx, req, archive.add); err != nil {
			return err
		}
		if err := archive.w.Close(); err != nil {
			return err
		}
		return out.flush()
	})
}

// archiveBase is what the names in an archive of p are relative to: the directory that p is in. A drive of Windows is in
// none, and its files are named as those of "/" are.
func archiveBase(p string) string {
	if drive, rest := mount.Drive(p); rest == "" && drive != "" {
		return p
	}
	return path.Dir(p)
}

// archiver writes guest files to a tar archive.
type archiver struct {
	w    *tar.Writer
	base string // names in the archive are relative to it
	seen map[inode]string
}

// name is a guest's path in the archive. NUL, which tar cannot hold and no kernel accepts, becomes "_".
func (t *archiver) name(p string) string {
	return strings.ReplaceAll(strings.TrimPrefix(strings.TrimPrefix(p, t.base), "/"), "\x00", "_")
}

func (t *archiver) add(f *found) error {
	p, a := f.place, f.attr
	h := &tar.Header{Format: tar.FormatPAX, Name: t.name(p.path), Mode: int64(a.Mode), Uid: int(a.UID), Gid: int(a.GID),
		ModTime: a.Mtime, PAXRecords: map[string]string{}}
	if a.Mtime.IsZero() {
		h.ModTime = time.Unix(0, 0)
	}
	name := h.Name
	var content io.Reader
	var err error
	switch a.Type {
	case guestfs.Directory:
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
	case guestfs.Regular:
		if first, ok := t.seen[p.inode()]; ok && a.Links > 1 {
			h.Typeflag, h.Linkname = tar.TypeLink, first
			break
		}
		h.Typeflag = tar.TypeReg
		if h.Size, content, err = f.reader(); closed(err) {
			if err := t.unreadable(h, name, err); err != nil {
				return err
			}
			return t.streams(p, h, name)
		} else if err != nil {
			return fmt.Errorf("%s: %w", p.path, err)
		}
		t.seen[p.inode()] = name
	case guestfs.Symlink:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = p.fs.Readlink(p.id); err != nil {
			return fmt.Errorf("%s: %w", p.path, err)
		}
		h.Linkname = strings.ReplaceAll(h.Linkname, "\x00", "_")
	case guestfs.FIFO:
		h.Typeflag = tar.TypeFifo
	case guestfs.CharDevice:
		h.Typeflag, h.Devmajor, h.Devminor = tar.TypeChar, int64(a.Major), int64(a.Minor)
	case guestfs.BlockDevice:
		h.Typeflag, h.Devmajor, h.Devminor = tar.TypeBlock, int64(a.Major), int64(a.Minor)
	default:
		return nil // sockets and reparse points have no place in an archive
	}
	xattrs, err := p.fs.Xattrs(p.id)
	if err != nil {
		return fmt.Errorf("%s: %w", p.path, err)
	}
	for _, x := range xattrs {
		if !strings.ContainsAny(x.Name, "=\x00") { // no record can be called that
			h.PAXRecords["SCHILY.xattr."+x.Name] = string(x.Value)
		}
	}
	if err := t.write(h, content); err != nil {
		return fmt.Errorf("%s: %w", p.path, err)
	}
	if h.Typeflag == tar.TypeLink {
		return nil // its streams follow the first name
	}
	return t.streams(p, h, name)
}

// streams writes the alternate data streams of a file or directory, which is called name in the archive.
func (t *archiver) streams(p place, of *tar.Header, name string) error {
	streams, err := p.fs.Streams(p.id)
	if err != nil {
		return fmt.Errorf("%s: %w", p.path, err)
	}
	for _, s := range streams {
		full := streamFile(name, s.Name)
		h := &tar.Header{Format: tar.FormatPAX, Typeflag: tar.TypeReg, Name: full, Mode: of.Mode &^ 0o111, Uid: of.Uid, Gid: of.Gid, ModTime: of.ModTime,
			PAXRecords: map[string]string{plugin.TarStream: strings.ReplaceAll(s.Name, "\x00", "_")}}
		content, err := p.fs.Open(p.id, s.Name)
		if closed(err) {
			err = t.unreadable(h, full, err)
		} else if err == nil {
			h.Size = content.Size()
			err = t.write(h, guestfs.NewReader(content))
		}
		if err != nil {
			return fmt.Errorf("%s:%s: %w", p.path, s.Name, err)
		}
	}
	return nil
}

// streamFile names the file that a stream of another becomes, in archives and in the repository.
func streamFile(file, stream string) string {
	return file + ":" + strings.NewReplacer("/", "_", "\x00", "_").Replace(stream)
}

// closed reports whether one file's content cannot be read, which says nothing of others.
func closed(err error) bool {
	return errors.Is(err, guestfs.ErrEncrypted) || errors.Is(err, guestfs.ErrUnsupported)
}

// unreadable writes the reason in place of a file, under a name that nobody takes for it.
func (t *archiver) unreadable(of *tar.Header, name string, why error) error {
	text := why.Error() + "\n"
	h := &tar.Header{Format: tar.FormatPAX, Typeflag: tar.TypeReg, Name: name + ".unreadable", Mode: 0o600, Uid: of.Uid, Gid: of.Gid, ModTime: of.ModTime,
		Size: int64(len(text)), PAXRecords: map[string]string{plugin.TarUnreadable: strings.ReplaceAll(why.Error(), "\x00", "_")}}
	if err := t.w.WriteHeader(h); err != nil {
		return err
	}
	_, err := io.WriteString(t.w, text)
	return err
}

// write writes an entry with its content, if it has any.
func (t *archiver) write(h *tar.Header, content io.Reader) error {
	if err := t.w.WriteHeader(h); err != nil {
		return err
	}
	if content == nil {
		return nil
	}
	_, err := io.Copy(t.w, content)
	return err
}

// pieces hands out what is written in pieces of frameSize.
type pieces struct {
	emit func([]byte) error
	buf  []byte
}

func (w *pieces) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		if w.buf == nil {
			w.buf = make([]byte, 0, frameSize)
		}
		k := min(len(p), frameSize-len(w.buf))
		w.buf = append(w.buf, p[:k]...)
		p = p[k:]
		if len(w.buf) == frameSize {
			if err := w.flush(); err != nil {
				return 0, err
			}
		}
	}
	return n, nil
}

func (w *pieces) flush() error {
	if len(w.buf) == 0 {
		return nil
	}
	err := w.emit(w.buf)
	w.buf = w.buf[:0]
	return err
}
