package ntfs

import (
	"fmt"
	"strings"

	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
)

// Tags of reparse points ([MS-FSCC] 2.1.2.1). A reparse point is tag(4) length(2) 0(2) and the data of the filter
// driver that its tag names.
const (
	tagMount  = 0xa0000003
	tagLink   = 0xa000000c
	tagLxLink = 0xa000001d
	tagSocket = 0x80000023
	tagFIFO   = 0x80000024
	tagChar   = 0x80000025
	tagBlock  = 0x80000026
	tagWOF    = 0x80000017
	tagDedup  = 0x80000013

	tagAppExec   = 0x8000001b
	cloudMask    = 0xffff0fff // tags of cloud files differ in four bits
	tagCloud     = 0x9000001a
	tagOneDrive  = 0x80000021
	bitSurrogate = 0x20000000 // stands for another file
)

// reparse is the reparse point in whole; nil where there is none.
func (n *node) reparse() ([]byte, error) {
	b, err := n.value(typeReparse, "", maxSmall)
	if err != nil || b == nil {
		return nil, err
	}
	if len(b) < 8 {
		return nil, guestfs.Damaged("reparse point of %d bytes", len(b))
	}
	return b, nil
}

// tag is the tag of the reparse point, 0: none.
func (n *node) tag() uint32 {
	b, err := n.reparse()
	if err != nil || b == nil {
		return 0
	}
	return le.Uint32(b)
}

// reparsed changes what a file is by its reparse point, and by the older ways in which Unix services kept links.
func (n *node) reparsed(a *guestfs.Attr) error {
	b, err := n.reparse()
	if err != nil {
		return err
	}
	if b == nil {
		return n.interix(a)
	}
	special := func(t guestfs.Type) {
		a.Type, a.Size = t, 0
	}
	switch tag := le.Uint32(b); {
	case tag == tagMount || tag == tagLink || tag == tagLxLink:
		target, err := linkTarget(b)
		if err != nil {
			return err
		}
		a.Type, a.Mode, a.Size = guestfs.Symlink, 0o777, int64(len(target))
	case tag == tagSocket:
		special(guestfs.Socket)
	case tag == tagFIFO:
		special(guestfs.FIFO)
	case tag == tagChar:
		special(guestfs.CharDevice)
	case tag == tagBlock:
		special(guestfs.BlockDevice)
	case !n.dir && (tag&bitSurrogate != 0 || tag == tagAppExec):
		special(guestfs.Other)
	}
	return nil
}

// here fails when the content is not in the file.
func (n *node) here() error {
	flags, tag := n.standard().flags, n.tag()
	cloud := tag&cloudMask == tagCloud || tag == tagOneDrive
	switch {
	case tag == tagDedup:
		return fmt.Errorf("deduplicated by Windows Server, its bytes are in a chunk store: %w; restore the machine and read it there",
			guestfs.ErrUnsupported)
	case flags&attrRecall != 0 || cloud && flags&attrOffline != 0:
		return fmt.Errorf("only a placeholder is on this disk, the content is in the cloud: %w", guestfs.ErrUnsupported)
	case tag == 0 || tag == tagWOF || cloud:
		return nil
	}
	return fmt.Errorf("reparse tag %#08x: a driver in the guest makes the content: %w; restore the machine and read it there",
		tag, guestfs.ErrUnsupported)
}

// linkTarget is where a link leads. Symbolic links and junctions keep two names, of which the first is the one that
// counts, the other is for showing:
//
//	tag(4) length(2) 0(2) offset(2) length(2) of the name, offset(2) length(2) to show, flags(4, links only; 1: relative) names
//
// Relative targets are given with "/" between names, as readers on other systems need them; absolute ones as Windows
// shows them ("C:\Users"). Links of the Windows Subsystem for Linux keep a version(4) and UTF-8.
func linkTarget(b []byte) (string, error) {
	tag, d := le.Uint32(b), b[8:]
	if tag == tagLxLink {
		if n := int(le.Uint16(b[4:])); n < 4 || len(d) < n {
			return "", guestfs.Damaged("link of %d bytes", len(d))
		}
		return string(d[4:le.Uint16(b[4:])]), nil
	}
	head := 8
	if tag == tagLink {
		head = 12
	}
	if len(d) < head {
		return "", guestfs.Damaged("link of %d bytes", len(d))
	}
	at, n := head+int(le.Uint16(d)), int(le.Uint16(d[2:]))
	if at+n > len(d) {
		return "", guestfs.Damaged("target of a link is cut off")
	}
	target := name(d[at : at+n])
	if tag == tagLink && le.Uint32(d[8:])&1 != 0 {
		return strings.ReplaceAll(target, `\`, "/"), nil
	}
	return strings.TrimPrefix(target, `\??\`), nil
}

// Interix and its successors kept links and devices in files with the system attribute and contents of this form.
// (They also took empty system files for pipes; so are files of DOS, therefore that is not done here.)
const (
	interixLink  = "IntxLNK\x01"
	interixChar  = "IntxCHR\x00"
	interixBlock = "IntxBLK\x00"
)

// interix tells the kind of an Interix file.
func (n *node) interix(a *guestfs.Attr) error {
	b, err := n.interixData()
	if err != nil || b == nil {
		return err
	}
	switch string(b[:8]) {
	case interixLink:
		a.Type, a.Mode, a.Size = guestfs.Symlink, 0o777, int64(len(name(b[8:])))
	case interixChar, interixBlock:
		if len(b) != 24 {
			return nil
		}
		a.Type, a.Size = guestfs.CharDevice, 0
		if string(b[:8]) == interixBlock {
			a.Type = guestfs.BlockDevice
		}
		a.Major, a.Minor = uint32(le.Uint64(b[8:])), uint32(le.Uint64(b[16:]))
	}
	return nil
}

// interixData is the content of a file that may be one of Interix, else nil.
func (n *node) interixData() ([]byte, error) {
	const maxLink = 8 + 2*4096
	if n.dir || n.standard().flags&attrSystem == 0 {
		return nil, nil
	}
	a, err := n.first(typeData, "")
	if err != nil {
		return nil, err
	}
	if a == nil || a.bytes() < 8 || a.bytes() > maxLink || a.flags&(flagEncrypted|flagCompressed) != 0 {
		return nil, nil
	}
	b, err := n.value(typeData, "", maxLink)
	if err != nil {
		return nil, err
	}
	if s := string(b[:8]); s != interixLink && s != interixChar && s != interixBlock {
		return nil, nil
	}
	return b, nil
}

// Readlink is the target of a symbolic link or junction.
func (d *driver) Readlink(id guestfs.ID) (string, error) {
	n, err := d.file(id)
	if err != nil {
		return "", err
	}
	b, err := n.reparse()
	if err != nil {
		return "", err
	}
	if b != nil {
		switch le.Uint32(b) {
		case tagMount, tagLink, tagLxLink:
			return linkTarget(b)
		}
		return "", guestfs.ErrNotLink
	}
	if b, err = n.interixData(); err != nil {
		return "", err
	}
	if b == nil || string(b[:8]) != interixLink {
		return "", guestfs.ErrNotLink
	}
	return name(b[8:]), nil
}
