package xfs

import (
	"fmt"

	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
)

// Flags of an attribute.
const (
	attrLocal      = 0x1 // the value is in the leaf
	attrRoot       = 0x2 // trusted.
	attrSecure     = 0x4 // security.
	attrParent     = 0x8 // a parent pointer: not an attribute to the outside
	attrIncomplete = 0x80
)

const maxValue = 64 << 10 // what XFS allows

func (d *driver) Xattrs(id guestfs.ID) ([]guestfs.Xattr, error) {
	i, err := d.file(id)
	if err != nil || len(i.attr) == 0 {
		return nil, err
	}
	a := attributes{d: d, i: i}
	if i.attrFormat() == formatLocal {
		err = a.short()
	} else {
		err = a.leaves()
	}
	if err != nil {
		return a.out, fmt.Errorf("attributes of inode %v: %w", id, err)
	}
	return a.out, nil
}

type attributes struct {
	d   *driver
	i   *inode
	out []guestfs.Xattr
}

func (a *attributes) add(flags byte, name string, value []byte) error {
	if flags&(attrIncomplete|attrParent) != 0 {
		return nil
	}
	value = append([]byte{}, value...)
	switch {
	case flags&attrRoot != 0 && (name == "SGI_ACL_FILE" || name == "SGI_ACL_DEFAULT"):
		acl, err := acl(value)
		if err != nil {
			return err
		}
		full := "system.posix_acl_access"
		if name == "SGI_ACL_DEFAULT" {
			full = "system.posix_acl_default"
		}
		a.out = append(a.out, guestfs.Xattr{Name: full, Value: acl})
		return nil
	case flags&attrRoot != 0:
		name = "trusted." + name
	case flags&attrSecure != 0:
		name = "security." + name
	default:
		name = "user." + name
	}
	a.out = append(a.out, guestfs.Xattr{Name: name, Value: value})
	return nil
}

// short reads attributes kept in the inode:
//
//	bytes(2) count(1) 0(1), then per attribute: length of name(1) of value(1) flags(1) name value
func (a *attributes) short() error {
	b := a.i.attr
	if len(b) < 4 {
		return guestfs.Damaged("short form is cut")
	}
	p := 4
	for range int(b[2]) {
		if p+3 > len(b) || p+3+int(b[p])+int(b[p+1]) > len(b) {
			return guestfs.Damaged("short form is cut")
		}
		value := p + 3 + int(b[p])
		end := value + int(b[p+1])
		if err := a.add(b[p+2], string(b[p+3:value]), b[value:end]); err != nil {
			return err
		}
		p = end
	}
	return nil
}

// Magic numbers of attribute blocks, at byte 8.
const (
	magicLeaf4 = 0xfbee
	magicLeaf5 = 0x3bee
	magicNode4 = 0xfebe
	magicNode5 = 0x3ebe
)

// leaves goes down the left edge of the attribute tree and then along the chain of its leaves.
//
//	block:  next(4) previous(4) magic(2) 0(2) [v5: 44 more] count(2) ...; entries from 32 (v5 80), of a node from
//	        16 (v5 64): hash(4) block(4)
func (a *attributes) leaves() error {
	d := a.d
	_, n := a.i.counts()
	if n == 0 {
		return nil
	}
	m, err := d.forkMap(a.i.attr, a.i.attrFormat(), n)
	if err != nil {
		return err
	}
	f, err := m.Meta(d.src, 1<<32*d.bs)
	if err != nil {
		return err
	}
	seen := map[uint32]bool{}
	b := make([]byte, d.bs)
	for at := uint32(0); ; {
		if seen[at] {
			return guestfs.Damaged("attribute block %d is used twice", at)
		}
		seen[at] = true
		if _, err := f.ReadAt(b, int64(at)*d.bs); err != nil {
			return err
		}
		switch be.Uint16(b[8:]) {
		case magicNode4:
			at = be.Uint32(b[16+4:])
		case magicNode5:
			at = be.Uint32(b[64+4:])
		case magicLeaf4, magicLeaf5:
			if err := a.leaf(f, b); err != nil {
				return err
			}
			if at = be.Uint32(b); at == 0 {
				return nil
			}
		default:
			return guestfs.Damaged("attribute block %d has no magic", at)
		}
	}
}

// leaf reads the attributes of a leaf; values that did not fit lie in blocks of f.
//
//	entry:   hash(4) offset(2) flags(1) 0(1)
//	local:   length of value(2) of name(1) name value
//	remote:  block(4) length of value(4) of name(1) name
func (a *attributes) leaf(f guestfs.File, b []byte) error {
	count, first := int(be.Uint16(b[12:])), 32
	if a.d.v5 {
		count, first = int(be.Uint16(b[56:])), 80
	}
	if first+8*count > len(b) {
		return guestfs.Damaged("attribute leaf of %d entries", count)
	}
	for k := range count {
		e := b[first+8*k:]
		at, flags := int(be.Uint16(e[4:])), e[6]
		if at+9 > len(b) {
			return guestfs.Damaged("attribute at %d", at)
		}
		x := b[at:]
		if flags&attrLocal != 0 {
			size, name := int(be.Uint16(x)), int(x[2])
			if 3+name+size > len(x) {
				return guestfs.Damaged("attribute of %d bytes in a leaf", size)
			}
			if err := a.add(flags, string(x[3:3+name]), x[3+name:3+name+size]); err != nil {
				return err
			}
			continue
		}
		if flags&(attrIncomplete|attrParent) != 0 {
			continue
		}
		size, name := be.Uint32(x[4:]), int(x[8])
		if size > maxValue || 9+name > len(x) {
			return guestfs.Damaged("attribute of %d bytes", size)
		}
		value, err := a.remote(f, be.Uint32(x), int(size))
		if err != nil {
			return err
		}
		if err := a.add(flags, string(x[9:9+name]), value); err != nil {
			return err
		}
	}
	return nil
}

// remote reads a value kept in blocks of its own, each of which begins with a header of 56 bytes in version 5.
func (a *attributes) remote(f guestfs.File, block uint32, size int) ([]byte, error) {
	var out []byte
	b := make([]byte, a.d.bs)
	for at := int64(block); len(out) < size; at++ {
		if _, err := f.ReadAt(b, at*a.d.bs); err != nil {
			return nil, err
		}
		part := b
		if a.d.v5 {
			if string(b[:4]) != "XARM" {
				return nil, guestfs.Damaged("attribute value in block %d has no magic", at)
			}
			part = b[56:]
		}
		out = append(out, part[:min(len(part), size-len(out))]...)
	}
	return out, nil
}

// acl turns the form of a POSIX ACL that XFS keeps into that of getxattr(2):
//
//	XFS:  count(4), then per entry: tag(4) id(4) permissions(2) 0(2), big-endian
func acl(b []byte) ([]byte, error) {
	if len(b) < 4 || int64(be.Uint32(b))*12 > int64(len(b)-4) {
		return nil, guestfs.Damaged("ACL of %d bytes", len(b))
	}
	var list []guestfs.ACLEntry
	for k := range int(be.Uint32(b)) {
		x := b[4+12*k:]
		e := guestfs.ACLEntry{Tag: uint16(be.Uint32(x)), ID: be.Uint32(x[4:]), Perm: be.Uint16(x[8:])}
		if !e.Named() {
			e.ID = guestfs.NoID
		}
		list = append(list, e)
	}
	return guestfs.MarshalACL(list), nil
}
