package main

import (
	"archive/tar"
	"archive/zip"
	"context"
	"io"
	"path"
	"path/filepath"
	"strings"

	"github.com/vmkeep/vmkeep/plugin"
)

// zipFiles writes guest files as a zip archive to standard output, while they arrive. Zip has modes, times and
// symbolic links. A further name of a file becomes a symbolic link to its first one, for zip has no hard links; device
// files, pipes, owners and extended attributes are left out: a tar archive keeps them.
func (a *app) zipFiles(ctx context.Context, s guestReader, r plugin.FileRequest) error {
	z := zip.NewWriter(a.stdout)
	left := 0
	err := readArchive(ctx, s, r, func(h *tar.Header, content io.Reader) error {
		info := h.FileInfo()
		e := zip.FileHeader{Name: strings.TrimPrefix(path.Clean("/"+h.Name), "/"), Modified: h.ModTime, Method: zip.Deflate}
		if e.Name == "" {
			return nil
		}
		e.SetMode(info.Mode())
		switch h.Typeflag {
		case tar.TypeReg:
		case tar.TypeDir:
			e.Name, e.Method = e.Name+"/", zip.Store
		case tar.TypeSymlink:
			e.Method, content = zip.Store, strings.NewReader(h.Linkname)
		case tar.TypeLink:
			to, err := filepath.Rel(path.Dir("/"+e.Name), path.Clean("/"+h.Linkname))
			if err != nil {
				return err
			}
			link := tar.Header{Typeflag: tar.TypeSymlink, Mode: 0o777}
			e.SetMode(link.FileInfo().Mode())
			e.Method, content = zip.Store, strings.NewReader(filepath.ToSlash(to))
		default:
			left++
			return nil
		}
		w, err := z.CreateHeader(&e)
		if err != nil {
			return outputError(err)
		}
		if h.Typeflag == tar.TypeDir {
			return nil
		}
		_, err = io.Copy(w, content)
		return outputError(err)
	})
	if err != nil {
		return err // without its directory at the end nobody takes the archive for a whole one
	}
	if err := z.Close(); err != nil {
		return outputError(err)
	}
	if left > 0 {
		a.note("%s left out: zip has no device files, pipes and sockets; --tar keeps them", count(left, "file"))
	}
	return nil
}
