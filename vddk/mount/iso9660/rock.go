package iso9660

import (
	"fmt"
	"strings"
	"time"

	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
)

// Fields of the system use area: signature(2) length(1) version(1) data. Used here:
//
//	SP  0xbe 0xef skip(1)                           on the root's ".": the protocol is in use
//	CE  block(4+4) offset(4+4) length(4+4)          goes on there
//	PX  mode(4+4) links(4+4) uid(4+4) gid(4+4) [serial(4+4)]
//	PN  high(4+4) low(4+4)                          device
//	NM  flags(1; 1: goes on, 2: ".", 4: "..") name
//	SL  flags(1; 1: goes on) { flags(1; 1: goes on, 2: ".", 4: "..", 8: "/") length(1) text }...
//	TF  flags(1) times                              created, written, accessed, changed ...; 0x80: long form
//	CL  block(4+4)                                  the directory was moved there
//	RE                                              a directory that was moved here: not to be shown
//	ZF, SF                                          content is compressed, or sparse
type field struct {
	sig  string
	data []byte // from the byte after the version on
}

// Bounds on what a record may lead to.
const (
	maxFields        = 4096
	maxContinuations = 64
	maxLink          = 64 << 10
)

// fields calls fn with the fields of a record, through all continuations,.
func (d *driver) fields(r record, fn func(field) error) error {
	area := r.use
	if d.skip < len(area) {
		area = area[d.skip:]
	} else {
		area = nil
	}
	count := 0
	for hop := 0; ; hop++ {
		var next []byte
		for len(area) >= 4 {
			n := int(area[2])
			if n < 4 || n > len(area) {
				break // padding
			}
			f := field{string(area[:2]), area[4:n]}
			area = area[n:]
			if count++; count > maxFields {
				return guestfs.Damaged("record with more than %d fields", maxFields)
			}
			switch {
			case f.sig == "ST":
				area = nil
			case f.sig == "CE" && len(f.data) >= 24:
				off, size := int64(le.Uint32(f.data))*d.block+int64(le.Uint32(f.data[8:])), int(le.Uint32(f.data[16:]))
				if size > maxLink {
					return guestfs.Damaged("continuation of %d bytes", size)
				}
				b, err := d.src.Meta(off, size)
				if err != nil {
					return err
				}
				next = b
			default:
				if err := fn(f); err != nil {
					return err
				}
			}
		}
		if next == nil {
			return nil
		}
		if hop >= maxContinuations {
			return guestfs.Damaged("record continued more than %d times", maxContinuations)
		}
		area = next
	}
}

// findRock looks for the protocol and for Rock Ridge in the first record of the root.
func (d *driver) findRock() error {
	root, err := d.read(d.root)
	if err != nil {
		return err
	}
	dot, err := d.read(root.extent.Off)
	if err != nil {
		return err
	}
	protocol := false
	err = d.fields(dot, func(f field) error {
		switch f.sig {
		case "SP":
			if len(f.data) >= 3 && f.data[0] == 0xbe && f.data[1] == 0xef {
				protocol, d.skip = true, int(f.data[2])
			}
		case "PX", "RR":
			d.rock = protocol
		}
		return nil
	})
	// A name or a mode in the first entry is Rock Ridge; without the protocol's field nothing of it counts.
	if err != nil {
		d.rock = false
		d.notes = append(d.notes, guestfs.Note{Uncertain: true, Text: fmt.Sprintf("Rock Ridge is damaged (%v): short names are shown", err)})
	}
	return nil
}

// rockEntry gives an entry its name and, where a directory was moved, its place; the name "" says that it is not shown.
func (d *driver) rockEntry(r record, e *guestfs.Entry) error {
	var name strings.Builder
	moved, hidden := int64(-1), false
	err := d.fields(r, func(f field) error {
		switch {
		case f.sig == "NM" && len(f.data) > 1 && f.data[0]&6 == 0:
			name.Write(f.data[1:])
		case f.sig == "RE":
			hidden = true
		case f.sig == "CL" && len(f.data) >= 8:
			moved = int64(le.Uint32(f.data)) * d.block
		case f.sig == "PX" && len(f.data) >= 8:
			e.Type = guestfs.TypeOfMode(uint16(le.Uint32(f.data)))
		}
		if name.Len() > maxLink {
			return guestfs.Damaged("name of %d bytes", name.Len())
		}
		return nil
	})
	if err != nil {
		return err
	}
	if name.Len() > 0 {
		e.Name = name.String()
	}
	if hidden {
		e.Name = ""
	}
	if moved >= 0 { // its "." says all there is to say
		e.ID, e.Type = guestfs.ID{File: uint64(moved)}, guestfs.Directory
	}
	return nil
}

func (d *driver) rockAttr(r record, a *guestfs.Attr) error {
	return d.fields(r, func(f field) error {
		b := f.data
		switch {
		case f.sig == "PX" && len(b) >= 32:
			mode := uint16(le.Uint32(b))
			if a.Type != guestfs.Directory {
				a.Type = guestfs.TypeOfMode(mode)
			}
			a.Mode, a.Links = uint32(mode&0o7777), le.Uint32(b[8:])
			a.UID, a.GID = le.Uint32(b[16:]), le.Uint32(b[24:])
			switch a.Type {
			case guestfs.Regular, guestfs.Directory:
			case guestfs.Symlink:
				target, err := d.link(r)
				if err != nil {
					return err
				}
				a.Size = int64(len(target))
			default:
				a.Size = 0
			}
		case f.sig == "PN" && len(b) >= 16:
			// Some writers put the whole device number into the low half.
			high, low := le.Uint32(b), le.Uint32(b[8:])
			if a.Major, a.Minor = high, low; high == 0 && low > 0xff {
				a.Major, a.Minor = low>>8, low&0xff
			}
		case f.sig == "TF" && len(b) >= 1:
			rockTimes(b, a)
		}
		return nil
	})
}

// rockTimes: a bit for each time that is there, in this order.
func rockTimes(b []byte, a *guestfs.Attr) {
	flags, b := b[0], b[1:]
	size := 7
	if flags&0x80 != 0 {
		size = 17
	}
	for bit, t := range []*time.Time{&a.Btime, &a.Mtime, &a.Atime, &a.Ctime} {
		if flags>>bit&1 == 0 {
			continue
		}
		if len(b) < size {
			return
		}
		if size == 17 {
			*t = long(b)
		} else {
			*t = short(b)
		}
		b = b[size:]
	}
}

// link is the target of a symbolic link, from its components.
func (d *driver) link(r record) (string, error) {
	var out strings.Builder
	joined, any := true, false // whether the next component goes on without a slash
	err := d.fields(r, func(f field) error {
		if f.sig != "SL" || len(f.data) < 1 {
			return nil
		}
		any = true
		for b := f.data[1:]; len(b) >= 2; {
			flags, n := b[0], int(b[1])
			if 2+n > len(b) {
				return guestfs.Damaged("component of a link of %d bytes", n)
			}
			if !joined {
				out.WriteByte('/')
			}
			joined = flags&1 != 0
			switch {
			case flags&2 != 0:
				out.WriteByte('.')
			case flags&4 != 0:
				out.WriteString("..")
			case flags&8 != 0:
				out.WriteByte('/')
				joined = true
			default:
				out.Write(b[2 : 2+n])
			}
			b = b[2+n:]
			if out.Len() > maxLink {
				return guestfs.Damaged("link of more than %d bytes", maxLink)
			}
		}
		return nil
	})
	if err == nil && !any {
		err = guestfs.Damaged("link without a target")
	}
	return out.String(), err
}

func (d *driver) Readlink(id guestfs.ID) (string, error) {
	a, err := d.Stat(id)
	if err != nil {
		return "", err
	}
	if a.Type != guestfs.Symlink {
		return "", guestfs.ErrNotLink
	}
	r, err := d.record(id)
	if err != nil {
		return "", err
	}
	return d.link(r)
}

// readable fails for content that is not kept as it is.
func (d *driver) readable(r record) error {
	return d.fields(r, func(f field) error {
		switch f.sig {
		case "ZF":
			return fmt.Errorf("compressed with zisofs: %w; export the disk instead", guestfs.ErrUnsupported)
		case "SF":
			return fmt.Errorf("sparse file of Rock Ridge: %w; export the disk instead", guestfs.ErrUnsupported)
		}
		return nil
	})
}
