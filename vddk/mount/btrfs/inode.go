package btrfs

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"time"

	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
)

// inode:
//
//	0    8        16    24    32     40    44   48   52    56    64     72        112    124    136    148
//	+----+--------+-----+-----+------+-----+----+----+-----+-----+------+---------+------+------+------+------+
//	|gen.|transid |size |bytes|group |links|uid |gid |mode |rdev |flags |sequence |atime |ctime |mtime |btime |
//	+----+--------+-----+-----+------+-----+----+----+-----+-----+------+---------+------+------+------+------+
type inode struct {
	t    tree
	id   guestfs.ID
	raw  []byte
	mode uint16
	size int64
}

const inodeLen = 160

// A subvolume that lies in another is named by an entry of a directory and by a reference in the tree of trees. A
// snapshot copies the entry and not the reference: the kernel shows an empty directory there, and so do we, as file
// emptyDir with the subvolume's number in the upper tree's number space.
const emptyDir = 1 << 63

func (d *driver) inode(id guestfs.ID) (*inode, error) {
	t, err := d.tree(id.Tree)
	if err != nil {
		return nil, err
	}
	i := &inode{t: t, id: id}
	at := key{id.File, typeInode, 0}
	err = d.scan(t, at, at, func(_ key, b []byte) error {
		if len(b) < inodeLen {
			return guestfs.Damaged("inode of %d bytes", len(b))
		}
		i.raw = b[:inodeLen]
		return errStop
	})
	if err == nil && i.raw == nil {
		err = guestfs.Damaged("inode %v does not exist", id)
	}
	if err != nil {
		return nil, err
	}
	i.mode, i.size = uint16(le.Uint32(i.raw[52:])), int64(le.Uint64(i.raw[16:]))
	if i.size < 0 {
		return nil, guestfs.Damaged("file of %d bytes", i.size)
	}
	return i, nil
}

func stamp(b []byte) time.Time {
	return time.Unix(int64(le.Uint64(b)), int64(le.Uint32(b[8:])%1e9)).UTC()
}

func (d *driver) Stat(id guestfs.ID) (guestfs.Attr, error) {
	if id.File&emptyDir != 0 && id.File < lastInode {
		return guestfs.Attr{ID: id, Type: guestfs.Directory, Mode: 0o755, Links: 1}, nil
	}
	i, err := d.inode(id)
	if err != nil {
		return guestfs.Attr{}, err
	}
	r := i.raw
	a := guestfs.Attr{
		ID: id, Type: guestfs.TypeOfMode(i.mode), Mode: uint32(i.mode & 0o7777), Size: i.size,
		Links: le.Uint32(r[40:]), UID: le.Uint32(r[44:]), GID: le.Uint32(r[48:]), Generation: le.Uint64(r),
		Atime: stamp(r[112:]), Ctime: stamp(r[124:]), Mtime: stamp(r[136:]), Btime: stamp(r[148:]),
	}
	switch a.Type {
	case guestfs.CharDevice, guestfs.BlockDevice:
		dev := le.Uint64(r[56:])
		a.Major, a.Minor, a.Size = uint32(dev>>20), uint32(dev&(1<<20-1)), 0
	case guestfs.Regular, guestfs.Directory, guestfs.Symlink:
	default:
		a.Size = 0
	}
	return a, nil
}

// ReadDir gives the entries in the order of their creation; an entry:
//
//	key of what it names(17) transid(8) data length(2) name length(2) type(1) name data
func (d *driver) ReadDir(id guestfs.ID, after guestfs.Cursor, yield func(guestfs.Entry) bool) error {
	if id.File&emptyDir != 0 && id.File < lastInode {
		return nil
	}
	i, err := d.inode(id)
	if err != nil {
		return err
	}
	if guestfs.TypeOfMode(i.mode) != guestfs.Directory {
		return guestfs.ErrNotDir
	}
	lo, hi := key{id.File, typeDirItem, uint64(after)}, key{id.File, typeDirItem, math.MaxUint64 - 1}
	return d.scan(i.t, lo, hi, func(k key, b []byte) error {
		_, name, _, err := dirItem(b)
		if err != nil {
			return err
		}
		to := parseKey(b)
		e := guestfs.Entry{Name: string(name), ID: guestfs.ID{Tree: id.Tree, File: to.object}, Type: entryType(b[29]), Next: guestfs.Cursor(k.off + 1)}
		if to.typ == typeRoot {
			if e.ID, err = d.subvolume(id, to.object); err != nil {
				return err
			}
		} else if to.object < firstInode || to.object > lastInode {
			return guestfs.Damaged("entry leads to inode %d", to.object)
		}
		if !yield(e) {
			return errStop
		}
		return nil
	})
}

// subvolume is the root of a subvolume that an entry of a directory names: dir(8) index(8) name length(2) name is the
// reference that must be there.
func (d *driver) subvolume(dir guestfs.ID, id uint64) (guestfs.ID, error) {
	found := false
	at := key{dir.Tree, typeRootRef, id}
	err := d.scan(d.trees.root, at, at, func(_ key, b []byte) error {
		found = len(b) >= 18 && le.Uint64(b) == dir.File
		return errStop
	})
	if err != nil {
		return guestfs.ID{}, err
	}
	if !found {
		return guestfs.ID{Tree: dir.Tree, File: emptyDir | id&(emptyDir>>1-1)}, nil
	}
	return guestfs.ID{Tree: id, File: firstInode}, nil
}

// dirItem splits the first entry or attribute of an item.
func dirItem(b []byte) (rest, name, data []byte, err error) {
	const head = 30
	if len(b) < head {
		return nil, nil, nil, guestfs.Damaged("directory item of %d bytes", len(b))
	}
	n, m := int(le.Uint16(b[27:])), int(le.Uint16(b[25:]))
	if head+n+m > len(b) || n == 0 {
		return nil, nil, nil, guestfs.Damaged("directory item of %d and %d bytes in %d", n, m, len(b))
	}
	return b[head+n+m:], b[head : head+n], b[head+n : head+n+m], nil
}

func entryType(t byte) guestfs.Type {
	types := [...]guestfs.Type{
		guestfs.Unknown, guestfs.Regular, guestfs.Directory, guestfs.CharDevice, guestfs.BlockDevice, guestfs.FIFO,
		guestfs.Socket, guestfs.Symlink,
	}
	if int(t) < len(types) {
		return types[t]
	}
	return guestfs.Unknown
}

// Xattrs: items of the same form as entries, several in one where the hashes of their names are equal.
func (d *driver) Xattrs(id guestfs.ID) ([]guestfs.Xattr, error) {
	if id.File&emptyDir != 0 && id.File < lastInode {
		return nil, nil
	}
	t, err := d.tree(id.Tree)
	if err != nil {
		return nil, err
	}
	const maxAttributes = 100_000
	var out []guestfs.Xattr
	err = d.scan(t, key{id.File, typeXattr, 0}, key{id.File, typeXattr, math.MaxUint64}, func(_ key, b []byte) error {
		for len(b) > 0 {
			rest, name, value, err := dirItem(b)
			if err != nil {
				return err
			}
			if len(out) >= maxAttributes {
				return fmt.Errorf("more than %d attributes: %w", maxAttributes, guestfs.ErrTooLarge)
			}
			// btrfs.compression is a property of the kernel's own, shown as an attribute.
			out = append(out, guestfs.Xattr{Name: string(name), Value: append([]byte{}, value...)})
			b = rest
		}
		return nil
	})
	return out, err
}

func (d *driver) Streams(guestfs.ID) ([]guestfs.Stream, error) { return nil, nil }

func (d *driver) Readlink(id guestfs.ID) (string, error) {
	if id.File&emptyDir != 0 && id.File < lastInode {
		return "", guestfs.ErrNotLink
	}
	i, err := d.inode(id)
	if err != nil {
		return "", err
	}
	if guestfs.TypeOfMode(i.mode) != guestfs.Symlink {
		return "", guestfs.ErrNotLink
	}
	if i.size > 64<<10 {
		return "", guestfs.Damaged("link of %d bytes", i.size)
	}
	f, err := d.content(i)
	if err != nil {
		return "", err
	}
	b := make([]byte, i.size)
	if _, err := f.ReadAt(b, 0); err != nil && len(b) > 0 {
		return "", err
	}
	return string(b), nil
}

func (d *driver) Open(id guestfs.ID, stream string) (guestfs.File, error) {
	if id.File&emptyDir != 0 && id.File < lastInode {
		return nil, guestfs.ErrNotRegular
	}
	i, err := d.inode(id)
	if err != nil {
		return nil, err
	}
	if guestfs.TypeOfMode(i.mode) != guestfs.Regular {
		return nil, guestfs.ErrNotRegular
	}
	if stream != "" {
		return nil, fmt.Errorf("stream %q: %w", stream, fs.ErrNotExist)
	}
	f, err := d.content(i)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("inode %v", id), err)
	}
	return f, nil
}
