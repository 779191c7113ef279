package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"runtime"
	"strings"
	"time"

	"github.com/vmkeep/vmkeep/plugin"
)

// unpacking is where guest files go.
type unpacking struct {
	dir       string
	overwrite bool
}

// unpacked is the last line in JSON.
type unpacked struct {
	Directory   string
	Files       int
	Directories int
	Links       int
	Bytes       int64
	Skipped     []skipped
}

type skipped struct{ Path, Reason string }

// unpack restores guest files into a directory. Everything goes through os.Root: no name and no link in the guest
// leads outside of it.
func (a *app) unpack(ctx context.Context, s session, r plugin.FileRequest, to unpacking) error {
	if err := os.MkdirAll(to.dir, 0o777); err != nil {
		return outputError(err)
	}
	root, err := os.OpenRoot(to.dir)
	if err != nil {
		return outputError(err)
	}
	defer root.Close()
	u := unpacker{root: root, overwrite: to.overwrite, done: unpacked{Directory: to.dir}}
	if err := readArchive(ctx, s, r, u.add); err != nil {
		return err
	}
	u.finish()
	if a.json {
		writeJSON(a.stdout, "summary", u.done)
	} else {
		for _, s := range u.done.Skipped {
			fmt.Fprintf(a.stdout, "skipped %s: %s\n", printable(s.Path), s.Reason)
		}
		fmt.Fprintf(a.stdout, "restored %s, %s and %s (%s) into %s\n", count(u.done.Files, "file"), count(u.done.Directories, "directory"), count(u.done.Links, "link"), size(u.done.Bytes), to.dir)
	}
	if len(u.done.Skipped) > 0 {
		return partial{exitPartial}
	}
	return nil
}

var errStopped = errors.New("nobody reads the archive any more")

// unpacker writes the entries of one archive.
type unpacker struct {
	root      *os.Root
	overwrite bool
	done      unpacked
	dirs      []*tar.Header // their times are set last: writing into them changes them
}

// add restores one entry.
func (u *unpacker) add(h *tar.Header, content io.Reader) error {
	name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
	if name == "" {
		return nil
	}
	if why, ok := h.PAXRecords[plugin.TarUnreadable]; ok {
		u.done.Skipped = append(u.done.Skipped, skipped{strings.TrimSuffix(h.Name, ".unreadable"), why})
		return nil
	}
	err := u.entry(content, h, name)
	if why := refusal(err); why != nil {
		u.done.Skipped = append(u.done.Skipped, skipped{h.Name, why.Error()})
		return nil
	}
	return outputError(err)
}

// finish sets what is set last.
func (u *unpacker) finish() {
	for i := len(u.dirs) - 1; i >= 0; i-- {
		u.meta(u.dirs[i], strings.TrimPrefix(path.Clean("/"+u.dirs[i].Name), "/"))
	}
}

// refusal is why the target does not take one entry; nil for errors that concern all of them.
func refusal(err error) error {
	var path *fs.PathError
	var link *os.LinkError
	switch {
	case isFull(err):
		return nil
	case errors.As(err, &path):
		return path.Err
	case errors.As(err, &link):
		return link.Err
	}
	return nil
}

func (u *unpacker) entry(t io.Reader, h *tar.Header, name string) error {
	if dir := path.Dir(name); dir != "." {
		if err := u.root.MkdirAll(dir, 0o777); err != nil {
			return err
		}
	}
	if u.overwrite && h.Typeflag != tar.TypeDir {
		if err := u.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if err := u.root.Mkdir(name, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		u.dirs = append(u.dirs, h)
		u.done.Directories++
		return nil
	case tar.TypeReg, tar.TypeGNUSparse:
		if err := u.file(t, name); err != nil {
			return err
		}
		u.done.Files++
	case tar.TypeSymlink:
		if err := u.root.Symlink(h.Linkname, name); err != nil {
			return err
		}
		u.done.Links++
		return nil
	case tar.TypeLink:
		target := strings.TrimPrefix(path.Clean("/"+h.Linkname), "/")
		if err := u.root.Link(target, name); err != nil {
			return err
		}
		u.done.Links++
		return nil
	default:
		u.done.Skipped = append(u.done.Skipped, skipped{h.Name, "device files, pipes and sockets are not made; --tar keeps them"})
		return nil
	}
	u.meta(h, name)
	return nil
}

// holeSize is how many zeros become a hole.
const holeSize = 64 << 10

// file writes a file's content; long runs of zeros are not written but left out.
func (u *unpacker) file(t io.Reader, name string) (err error) {
	f, err := u.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if e := f.Close(); err == nil {
			err = e
		}
	}()
	out := newHoles(f)
	buf := make([]byte, holeSize)
	zeros := make([]byte, holeSize)
	for {
		n, err := io.ReadFull(t, buf)
		frame := plugin.Frame{Offset: u.done.Bytes, Length: int64(n), Data: buf[:n]}
		if n == holeSize && bytes.Equal(buf, zeros) {
			frame.Data = nil
		}
		if n > 0 {
			if err := out.frame(frame); err != nil {
				return err
			}
		}
		u.done.Bytes += int64(n)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) && n < holeSize {
			return out.close()
		}
		if err != nil {
			return err
		}
	}
}

// meta sets owner (as root only), extended attributes, mode and time, in the order in which none undoes another. What
// the target cannot hold is left as it is.
func (u *unpacker) meta(h *tar.Header, name string) {
	if os.Geteuid() == 0 && runtime.GOOS != "windows" {
		u.root.Lchown(name, h.Uid, h.Gid)
	}
	attrs := map[string]string{}
	for record, value := range h.PAXRecords {
		if attr, ok := strings.CutPrefix(record, "SCHILY.xattr."); ok {
			attrs[attr] = value
		}
	}
	if len(attrs) > 0 {
		if f, err := u.root.Open(name); err == nil {
			setXattrs(f, attrs)
			f.Close()
		}
	}
	u.root.Chmod(name, h.FileInfo().Mode().Perm()|h.FileInfo().Mode()&(fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky))
	u.root.Chtimes(name, time.Time{}, h.ModTime)
}
