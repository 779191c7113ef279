package mounttest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Truth makes the manifest of a mounted file system as the kernel sees it.
func Truth(dir string) (Manifest, error) {
	var m Manifest
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel := strings.TrimPrefix(strings.TrimPrefix(path, dir), "/")
		if rel == "lost+found" {
			return filepath.SkipDir
		}
		e, err := truth(path, rel)
		if err != nil {
			return fmt.Errorf("%q: %w", path, err)
		}
		m = append(m, e)
		return nil
	})
	return m.sort(), err
}

func truth(path, rel string) (Entry, error) {
	var s unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &s); err != nil {
		return Entry{}, err
	}
	when := func(t unix.StatxTimestamp) string { return stamp(time.Unix(t.Sec, int64(t.Nsec))) }
	e := Entry{
		Path: printable(rel), Mode: uint32(s.Mode & 0o7777), UID: s.Uid, GID: s.Gid,
		Mtime: when(s.Mtime), Atime: when(s.Atime), Ctime: when(s.Ctime),
	}
	if s.Mask&unix.STATX_BTIME != 0 {
		e.Btime = when(s.Btime)
	}
	switch s.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		e.Type, e.Size = "file", int64(s.Size)
		h, err := hashFile(path)
		if err != nil {
			return e, err
		}
		e.Hash = h
	case unix.S_IFDIR:
		e.Type = "directory"
	case unix.S_IFLNK:
		e.Type = "symlink"
		t, err := os.Readlink(path)
		if err != nil {
			return e, err
		}
		e.Link = printable(t)
	case unix.S_IFCHR:
		e.Type, e.Dev = "character device", fmt.Sprintf("%d:%d", s.Rdev_major, s.Rdev_minor)
	case unix.S_IFBLK:
		e.Type, e.Dev = "block device", fmt.Sprintf("%d:%d", s.Rdev_major, s.Rdev_minor)
	case unix.S_IFIFO:
		e.Type = "fifo"
	case unix.S_IFSOCK:
		e.Type = "socket"
	}
	if e.Type != "directory" {
		e.Links = s.Nlink
	}
	x, err := xattrs(path)
	e.Xattrs = x
	return e, err
}

func hashFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	if st.Size() > hugeFile {
		return hashSparse(f, st.Size())
	}
	sum, _, err := digest(f, st.Size())
	return sum, err
}

// hashSparse leaves out what the kernel says are holes.
func hashSparse(f *os.File, size int64) (string, error) {
	d := newDigester(size)
	b := make([]byte, hugeBlock)
	for k := int64(0); ; k++ {
		data, err := unix.Seek(int(f.Fd()), k*hugeBlock, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return d.sum(), nil
		}
		if err != nil {
			return "", err
		}
		k = data / hugeBlock
		n, err := f.ReadAt(b, k*hugeBlock)
		if err != nil && !errors.Is(err, io.EOF) {
			return "", err
		}
		d.block(k, b[:n])
	}
}

func xattrs(path string) (map[string]string, error) {
	list := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, list)
	if err != nil {
		return nil, fmt.Errorf("listxattr: %w", err)
	}
	var out map[string]string
	value := make([]byte, 64<<10)
	for _, name := range strings.Split(strings.TrimRight(string(list[:n]), "\x00"), "\x00") {
		// XFS shows ACLs a second time, in its own form.
		if name == "" || strings.HasPrefix(name, "trusted.SGI_ACL_") {
			continue
		}
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return nil, fmt.Errorf("getxattr %s: %w", name, err)
		}
		if out == nil {
			out = map[string]string{}
		}
		out[name] = short(value[:n])
	}
	return out, nil
}
