package main

import (
	"archive/tar"
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
	archive, feed := io.Pipe()
	fed := make(chan error, 1)
	go func() {
		err := s.TarFiles(ctx, r, func(data []byte) error {
			_, err := feed.Write(data)
			return err
		})
		feed.CloseWithError(err) // nil: the end
		fed <- err
	}()
	u := unpacker{root: root, overwrite: to.overwrite, done: unpacked{Directory: to.dir}}
	err = u.all(tar.NewReader(archive))
	archive.CloseWithError(errStopped)
	if e := <-fed; e != nil && !errors.Is(e, errStopped) {
		err = e // the cause, of which the archive only broke off
	}
	if err != nil {
		return err
	}
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

func (u *unpacker) all(t *tar.Reader) error {
	for {
		h, err := t.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return &plugin.Error{Code: plugin.CodeFile, Summary: "the archive of files broke off", Detail: err.Error(), Remedy: "try again", Err: err}
		}
		name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
		if name == "" {
			continue
		}
		if err := u.entry(t, h, name); err != nil {
			if why := refusal(err); why != nil {
				u.done.Skipped = append(u.done.Skipped, skipped{h.Name, why.Error()})
				continue
			}
			return outputError(err)
		}
	}
	for i := len(u.dirs) - 1; i >= 0; i-- {
		u.meta(u.dirs[i], strings.TrimPrefix(path.Clean("/"+u.dirs[i].Name), "/"))
	}
	return nil
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

func (u *unpacker) entry(t *tar.Reader, h *tar.Header, name string) error {
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

func (u *unpacker) file(t *tar.Reader, name string) (err error) {
	f, err := u.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if e := f.Close(); err == nil {
			err = e
		}
	}()
	n, err := io.Copy(f, t)
	u.done.Bytes += n
	return err
}

// meta sets owner (as root only), mode and time. What the target cannot hold is left as it is.
func (u *unpacker) meta(h *tar.Header, name string) {
	if os.Geteuid() == 0 && runtime.GOOS != "windows" {
		u.root.Lchown(name, h.Uid, h.Gid)
	}
	u.root.Chmod(name, h.FileInfo().Mode().Perm()|h.FileInfo().Mode()&(fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky))
	u.root.Chtimes(name, time.Time{}, h.ModTime)
}
