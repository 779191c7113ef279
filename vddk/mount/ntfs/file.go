package ntfs

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
)

// FILE_ATTRIBUTE_* that change reading.
const (
	attrSystem  = 0x4
	attrReparse = 0x400
	attrOffline = 0x1000
	attrRecall  = 0x440000 // on open, on data access
)

// bytes is the length of a stream's content.
func (a attribute) bytes() int64 {
	if a.resident {
		return int64(len(a.value))
	}
	return a.size
}

// standard is $STANDARD_INFORMATION:
//
//	created(8) modified(8) record changed(8) accessed(8) flags(4) versions(8) class(4) owner(4) security id(4) ...
type standard struct {
	created, modified, changed, accessed time.Time
	flags, security                      uint32
}

func (n *node) standard() standard {
	a, err := n.first(typeStandard, "")
	if err != nil || a == nil || len(a.value) < 48 {
		return standard{} // it is in the base record always; without it a file can still be read
	}
	b := a.value
	s := standard{stamp(b), stamp(b[8:]), stamp(b[16:]), stamp(b[24:]), le.Uint32(b[32:]), 0}
	if len(b) >= 56 {
		s.security = le.Uint32(b[52:])
	}
	return s
}

// stamp is a time in units of 100 ns since 1601.
func stamp(b []byte) time.Time {
	const second, epoch = 10_000_000, 11_644_473_600
	v := int64(le.Uint64(b))
	if v == 0 {
		return time.Time{}
	}
	s := v / second
	if v%second < 0 {
		s--
	}
	return time.Unix(s-epoch, (v-s*second)*100).UTC()
}

// Stat tells what the record says, and what its reparse point makes of it.
func (d *driver) Stat(id guestfs.ID) (guestfs.Attr, error) {
	n, err := d.file(id)
	if err != nil {
		return guestfs.Attr{}, err
	}
	s := n.standard()
	a := guestfs.Attr{
		ID: id, Mode: 0o644, Links: n.hardLinks(), DOS: s.flags, Generation: n.ref >> 48,
		Mtime: s.modified, Atime: s.accessed, Ctime: s.changed, Btime: s.created,
	}
	a.Type, a.Size = guestfs.Regular, 0
	if n.dir {
		a.Type, a.Mode = guestfs.Directory, 0o755
	} else if data, err := n.first(typeData, ""); err != nil {
		return a, err
	} else if data != nil {
		a.Size = data.bytes()
	}
	const readOnly = 1
	if s.flags&readOnly != 0 && !n.dir { // on directories it means something else
		a.Mode &^= 0o222
	}
	if err := n.reparsed(&a); err != nil {
		return a, err
	}
	n.wsl(&a)
	return a, nil
}

// hardLinks is the number of names but for short ones, which the record counts too.
func (n *node) hardLinks() uint32 {
	pieces, err := n.pieces(typeFileName, "")
	if err != nil {
		return uint32(n.links)
	}
	links := uint32(0)
	for _, a := range pieces {
		if len(a.value) >= 66 && a.value[65] != namespaceDOS {
			links++
		}
	}
	return links
}

// Open opens the content of a file as an application on Windows would see it, or one of its named streams.
func (d *driver) Open(id guestfs.ID, stream string) (guestfs.File, error) {
	n, err := d.file(id)
	if err != nil {
		return nil, err
	}
	if stream != "" {
		if stream == wofStream && n.tag() == tagWOF {
			return nil, noStream(stream)
		}
		return n.stream(typeData, stream)
	}
	a := guestfs.Attr{Type: guestfs.Regular}
	if n.dir {
		a.Type = guestfs.Directory
	}
	if err := n.reparsed(&a); err != nil {
		return nil, err
	}
	if a.Type != guestfs.Regular {
		return nil, guestfs.ErrNotRegular
	}
	if err := n.here(); err != nil {
		return nil, err
	}
	if n.tag() == tagWOF {
		point, err := n.reparse()
		if err != nil {
			return nil, err
		}
		return n.wof(point)
	}
	if data, err := n.first(typeData, ""); err != nil {
		return nil, err
	} else if data == nil {
		if pieces, err := n.pieces(typeData, ""); err != nil || len(pieces) > 0 {
			return nil, errors.Join(err, guestfs.Damaged("first piece of the content is missing"))
		}
		return guestfs.Bytes(d.src, nil, extent.Extent{}), nil
	}
	return n.stream(typeData, "")
}

// Streams are the named data streams, also of directories.
func (d *driver) Streams(id guestfs.ID) ([]guestfs.Stream, error) {
	n, err := d.file(id)
	if err != nil {
		return nil, err
	}
	var out []guestfs.Stream
	for _, name := range n.names(typeData) {
		if name == "" || name == wofStream && n.tag() == tagWOF {
			continue
		}
		a, err := n.first(typeData, name)
		if err != nil {
			return out, err
		}
		if a == nil {
			return out, guestfs.Damaged("first piece of stream %q is missing", name)
		}
		out = append(out, guestfs.Stream{Name: name, Size: a.bytes()})
	}
	return out, nil
}

// maxSmall bounds attributes that are read whole. Windows allows 64 KiB of extended attributes, 16 KiB of reparse
// data and 64 KiB of security descriptor.
const maxSmall = 128 << 10

// Xattrs gives what Windows keeps beside streams, in its own form and under the names ntfs-3g gives it on Linux:
// the security descriptor, the reparse point, extended attributes, the object id.
func (d *driver) Xattrs(id guestfs.ID) ([]guestfs.Xattr, error) {
	n, err := d.file(id)
	if err != nil {
		return nil, err
	}
	var out []guestfs.Xattr
	add := func(name string, b []byte) {
		if len(b) > 0 {
			out = append(out, guestfs.Xattr{Name: "system." + name, Value: b})
		}
	}
	acl, err := n.value(typeSecurity, "", maxSmall)
	if err == nil && acl == nil {
		acl, err = d.descriptor(n.standard().security)
	}
	if err != nil {
		return nil, err
	}
	add("ntfs_acl", acl)
	for _, x := range []struct {
		typ  uint32
		name string
	}{{typeReparse, "ntfs_reparse_data"}, {typeEA, "ntfs_ea"}, {typeObjectID, "ntfs_object_id"}} {
		b, err := n.value(x.typ, "", maxSmall)
		if err != nil {
			return nil, err
		}
		add(x.name, b)
	}
	return out, nil
}

// wsl takes owner, mode and device from the extended attributes that the Windows Subsystem for Linux keeps:
//
//	next(4) flags(1) name length(1) value length(2) name 0 value
func (n *node) wsl(a *guestfs.Attr) {
	b, err := n.value(typeEA, "", maxSmall)
	if err != nil {
		return // Xattrs tells
	}
	for len(b) >= 8 {
		next, nameLen, valueLen := int(le.Uint32(b)), int(b[5]), int(le.Uint16(b[6:]))
		if 9+nameLen+valueLen > len(b) {
			return
		}
		v := b[9+nameLen : 9+nameLen+valueLen]
		switch name := strings.ToUpper(string(b[8 : 8+nameLen])); {
		case name == "$LXUID" && len(v) == 4:
			a.UID = le.Uint32(v)
		case name == "$LXGID" && len(v) == 4:
			a.GID = le.Uint32(v)
		case name == "$LXMOD" && len(v) == 4:
			a.Mode = le.Uint32(v) & 0o7777
		case name == "$LXDEV" && len(v) == 8 && (a.Type == guestfs.CharDevice || a.Type == guestfs.BlockDevice):
			a.Major, a.Minor = le.Uint32(v), le.Uint32(v[4:])
		}
		if next < 8 || next > len(b) {
			return
		}
		b = b[next:]
	}
}

func noStream(name string) error { return fmt.Errorf("stream %q: %w", name, fs.ErrNotExist) }
