package guestfs

import "encoding/binary"

// ACLEntry is an entry of a POSIX ACL (acl(5)).
type ACLEntry struct {
	Tag  uint16 // 1 owner, 2 user, 4 owning group, 8 group, 16 mask, 32 other
	Perm uint16 // rwx
	ID   uint32 // of the user or group; NoID where there is none
}

// NoID stands for the id of entries without one (ACL_UNDEFINED_ID).
const NoID = 1<<32 - 1

// Named reports whether the entry names a user or group.
func (e ACLEntry) Named() bool { return e.Tag == 2 || e.Tag == 8 }

// MarshalACL is the ACL as getxattr(2) returns it: version 2(4), then tag(2) permissions(2) id(4), little-endian.
func MarshalACL(list []ACLEntry) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range list {
		b = binary.LittleEndian.AppendUint16(b, e.Tag)
		b = binary.LittleEndian.AppendUint16(b, e.Perm)
		b = binary.LittleEndian.AppendUint32(b, e.ID)
	}
	return b
}
