package ext4

import (
	"fmt"

	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
)

// Indices that stand for the beginning of a name.
const (
	nameUser       = 1
	nameACLAccess  = 2
	nameACLDefault = 3
	nameTrusted    = 4
	nameSecurity   = 6
	nameSystem     = 7
)

// attribute is an entry of an attribute area:
//
//	length of name(1) index(1) offset of value(2) inode of value(4) size(4) hash(4) name, padded to 4
type attribute struct {
	index byte
	name  string
	inode uint32 // holds the value when not 0
	size  uint32
	area  []byte // the value lies in area[off:]
	off   int
}

// maxValue bounds a value kept in an inode of its own; Linux hands out 64 KiB.
const maxValue = 1 << 20

// attributes calls fn with all attributes of an inode: those in its own tail, then those in its block.
func (d *driver) attributes(i *inode, fn func(attribute) error) error {
	const magic = 0xea020000
	if at := 128 + i.extra(); len(i.raw) > 128 && i.extra() > 0 && at+4 <= len(i.raw) && le.Uint32(i.raw[at:]) == magic {
		if err := entries(i.raw[at+4:], i.raw[at+4:], fn); err != nil {
			return err
		}
	}
	if i.acl == 0 {
		return nil
	}
	b, err := d.block(i.acl)
	if err != nil {
		return err
	}
	if le.Uint32(b) != magic {
		return guestfs.Damaged("block %d holds no attributes", i.acl)
	}
	return entries(b[32:], b, fn)
}

// entries reads the attributes in b, whose values count from the start of area.
func entries(b, area []byte, fn func(attribute) error) error {
	for len(b) >= 4 && le.Uint32(b) != 0 {
		if len(b) < 16 || 16+int(b[0]) > len(b) {
			return guestfs.Damaged("attribute entry is cut")
		}
		a := attribute{
			index: b[1], name: string(b[16 : 16+int(b[0])]), off: int(le.Uint16(b[2:])),
			inode: le.Uint32(b[4:]), size: le.Uint32(b[8:]), area: area,
		}
		if err := fn(a); err != nil {
			return err
		}
		b = b[min((16+int(b[0])+3)&^3, len(b)):]
	}
	return nil
}

func (d *driver) value(a attribute) ([]byte, error) {
	if a.inode == 0 {
		if a.off > len(a.area) || int64(a.size) > int64(len(a.area)-a.off) {
			return nil, guestfs.Damaged("attribute of %d bytes at %d", a.size, a.off)
		}
		return append([]byte{}, a.area[a.off:a.off+int(a.size)]...), nil
	}
	if a.size > maxValue {
		return nil, fmt.Errorf("attribute of %d bytes: %w", a.size, guestfs.ErrTooLarge)
	}
	i, err := d.inode(guestfs.ID{File: uint64(a.inode)})
	if err != nil {
		return nil, err
	}
	if i.kind() != guestfs.Regular || i.flags&flagInline != 0 {
		return nil, guestfs.Damaged("inode %d is to hold an attribute", a.inode)
	}
	f, err := d.content(i)
	if err != nil {
		return nil, err
	}
	v := make([]byte, min(int64(a.size), f.Size()))
	if _, err := f.ReadAt(v, 0); err != nil && len(v) > 0 {
		return nil, err
	}
	return v, nil
}

func (d *driver) Xattrs(id guestfs.ID) ([]guestfs.Xattr, error) {
	i, err := d.file(id)
	if err != nil {
		return nil, err
	}
	var out []guestfs.Xattr
	err = d.attributes(i, func(a attribute) error {
		x := guestfs.Xattr{Name: a.name}
		switch a.index {
		case nameUser:
			x.Name = "user." + a.name
		case nameTrusted:
			x.Name = "trusted." + a.name
		case nameSecurity:
			x.Name = "security." + a.name
		case nameACLAccess:
			x.Name = "system.posix_acl_access"
		case nameACLDefault:
			x.Name = "system.posix_acl_default"
		default: // inline content, fscrypt's context: no attributes to the outside
			return nil
		}
		if x.Value, err = d.value(a); err != nil {
			return fmt.Errorf("attribute %s of inode %v: %w", x.Name, id, err)
		}
		if a.index == nameACLAccess || a.index == nameACLDefault {
			if x.Value, err = acl(x.Value); err != nil {
				return err
			}
		}
		out = append(out, x)
		return nil
	})
	return out, err
}

// acl turns ext4's form of a POSIX ACL into that of getxattr(2):
//
//	ext4:      version 1(4), then tag(2) permissions(2), and id(4) for named users (2) and groups (8) only
//	getxattr:  version 2(4), then tag(2) permissions(2) id(4)
func acl(b []byte) ([]byte, error) {
	if len(b) < 4 || le.Uint32(b) != 1 {
		return nil, guestfs.Damaged("ACL of another version")
	}
	var list []guestfs.ACLEntry
	for b = b[4:]; len(b) > 0; {
		if len(b) < 4 {
			return nil, guestfs.Damaged("ACL is cut")
		}
		e, n := guestfs.ACLEntry{Tag: le.Uint16(b), Perm: le.Uint16(b[2:]), ID: guestfs.NoID}, 4
		if e.Named() {
			if len(b) < 8 {
				return nil, guestfs.Damaged("ACL is cut")
			}
			e.ID, n = le.Uint32(b[4:]), 8
		}
		list, b = append(list, e), b[n:]
	}
	return guestfs.MarshalACL(list), nil
}
