// Package guestfs is the contract of guest file systems: what every format reader gives and what it may use.
//
// A format (ext4, xfs, ntfs, ...) lives in a package beside this one and implements [Driver] on a [Source].
// Callers never see a Driver: [FS] wraps it and is the boundary behind which the guest's bytes are hostile. A
// panic inside a format becomes an [ErrDamaged], lookups are cached, memory is bounded.
//
// Vocabulary:
//
//	volume   bytes that hold one file system: a disk, a partition, a logical volume
//	file     anything with an inode: regular file, directory, symbolic link, device, ...
//	ID       names a file inside its file system, stable for the same bytes; equal IDs are hard links of one file
//	entry    a name in a directory and the ID it leads to
//	stream   bytes of a file: "" is its content, others are alternate data streams (NTFS)
//	run      where a byte range of a stream lies on the volume
//
// Names are bytes as the guest stores them, in Go strings: UTF-8 by convention only on Linux; NTFS, FAT and
// Joliet names are converted to WTF-8 (UTF-8 that can also carry a lone surrogate). Path separator is "/".
// Why not io/fs alone: it refuses names that are not valid UTF-8, walks from the root for every access, and has
// neither extents nor attributes. [FS.IOFS] adapts.
package guestfs

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/vddk/mount/device"
)

// Questions callers ask of an error. A name that does not exist is fs.ErrNotExist.
var (
	ErrDamaged     = errors.New("file system structure is damaged")
	ErrUnsupported = errors.New("not supported")         // a feature this reader does not know
	ErrEncrypted   = errors.New("content is encrypted")  // the key stays inside the guest
	ErrNotDir      = errors.New("not a directory")       // ReadDir, Lookup
	ErrNotLink     = errors.New("not a symbolic link")   // Readlink
	ErrNotRegular  = errors.New("not a regular file")    // Open
	ErrUnknown     = errors.New("no known file system")  // Probe found nothing
	ErrTooLarge    = errors.New("exceeds the limit set") // a bound of ours, see the error's text
)

// Damaged makes an [ErrDamaged] of a format: what was found where.
func Damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrDamaged, fmt.Sprintf(format, args...))
}

// ID names a file. Tree is 0 except in formats with several inode spaces (Btrfs subvolumes).
// Formats without inode numbers (FAT, ISO 9660) use the position of the directory entry.
type ID struct{ Tree, File uint64 }

func (id ID) String() string {
	if id.Tree != 0 {
		return fmt.Sprintf("%d:%d", id.Tree, id.File)
	}
	return fmt.Sprint(id.File)
}

// Type is the kind of a file.
type Type uint8

// The kinds of files. Unknown is what a directory entry says where the format keeps no type in it.
const (
	Unknown Type = iota
	Regular
	Directory
	Symlink
	CharDevice
	BlockDevice
	FIFO
	Socket
	Other // reparse points and the like: not to be opened
)

func (t Type) String() string {
	return [...]string{"unknown", "file", "directory", "symlink", "character device", "block device", "fifo", "socket", "other"}[min(t, Other)]
}

// TypeOfMode is the kind in the high bits of a Unix mode (S_IFMT).
func TypeOfMode(mode uint16) Type {
	switch mode & 0xf000 {
	case 0x8000:
		return Regular
	case 0x4000:
		return Directory
	case 0xa000:
		return Symlink
	case 0x2000:
		return CharDevice
	case 0x6000:
		return BlockDevice
	case 0x1000:
		return FIFO
	case 0xc000:
		return Socket
	}
	return Other
}

// Attr is what a file system knows of a file beside its content. Times are UTC; the zero Time means that the
// format does not keep it.
type Attr struct {
	ID         ID
	Type       Type
	Mode       uint32 // permissions with setuid, setgid and sticky bits as in Unix (07777); formats without: 0644, 0755
	UID, GID   uint32
	Links      uint32
	Size       int64 // bytes of the content; of a symbolic link its target's length
	Mtime      time.Time
	Atime      time.Time
	Ctime      time.Time // of the last change of the inode
	Btime      time.Time // of creation
	Major      uint32    // of devices
	Minor      uint32
	DOS        uint32 // FILE_ATTRIBUTE_* (NTFS, FAT, exFAT); 0 elsewhere
	Generation uint64 // differs when an ID was used again for another file; 0: not kept
}

// Cursor is a place between two entries of a directory. 0 is before the first. Others come from [Entry.Next] and
// hold for the same bytes of the same file system, also after it was closed and opened again.
type Cursor uint64

// Entry is a name in a directory. "." and ".." are never given.
type Entry struct {
	Name string
	ID   ID
	Type Type   // Unknown where the directory does not say: Stat does
	Next Cursor // continues after this entry
}

// Xattr is an extended attribute under its Linux name ("user.x", "security.selinux", "system.posix_acl_access").
// POSIX ACLs are given in the form that getxattr(2) returns, whatever the format stores.
type Xattr struct {
	Name  string
	Value []byte
}

// Stream is a named stream of a file (an alternate data stream).
type Stream struct {
	Name string
	Size int64
}

// Kind says how the bytes of a [Run] are kept.
type Kind uint8

const (
	Data    Kind = iota // as they are, at Disk
	Zero                // hole, or allocated and never written: reads as zeros and lies nowhere
	Inline              // within metadata: Disk is the metadata around it, for comparison only
	Encoded             // compressed: Disk is what must be read to get them
)

// Run is where bytes of a stream lie. The runs of a stream tile it.
type Run struct {
	File extent.Extent // bytes of the stream
	Disk extent.Extent // bytes of the volume; zero for Zero. As long as File for Data
	Kind Kind
	// Replayed: the present bytes come from the journal, not from Disk. They may differ from an earlier point
	// although nothing changed at Disk: whoever compares by changed extents must read them.
	Replayed bool
}

// File is a stream opened for reading. It needs no closing, and ReadAt is safe for concurrent use: it fills the
// buffer or fails, with io.EOF at the end. Bytes the guest never wrote read as zeros.
type File interface {
	io.ReaderAt
	Size() int64
	// Runs tells where the bytes lie, in order of the stream.
	Runs() ([]Run, error)
}

// Note is something a user of the file system must know. Uncertain: what is read may not be what the guest's own
// kernel would show.
type Note struct {
	Uncertain bool
	Text      string
}

// Info describes a file system.
type Info struct {
	Type      string // as mount(8) and blkid(8) name it: ext4, xfs, ntfs, vfat, exfat, btrfs, iso9660
	Label     string
	UUID      string // as blkid(8) prints it
	Size      int64  // bytes, as the file system says
	FoldCase  bool   // names are found without regard to case
	Notes     []Note
	BlockSize int64 // allocation unit in bytes
}

// Driver is what a format implements. All methods must be safe for concurrent use; a Driver is immutable after
// its opener returned, but for locked caches. Whatever the bytes, methods must end, within memory bounded by the
// size of the volume and at most about 100 MiB; they may panic (index out of range), which becomes ErrDamaged.
type Driver interface {
	Info() Info
	Root() ID
	Stat(ID) (Attr, error)
	// ReadDir calls yield with the entries after the cursor until it returns false.
	ReadDir(dir ID, after Cursor, yield func(Entry) bool) error
	Readlink(ID) (string, error)
	Xattrs(ID) ([]Xattr, error)
	Streams(ID) ([]Stream, error)
	// Open opens a stream of a regular file; a file without the named stream is fs.ErrNotExist.
	Open(id ID, stream string) (File, error)
}

// Locator is a Driver whose [Run.Disk] does not count bytes of the first device it was opened on (Btrfs: logical
// addresses over several devices). It finds them on the disks itself.
type Locator interface {
	Locate(e extent.Extent, emit func(device.Piece) bool) error
}

// Ident is what the first look at a device tells.
type Ident struct {
	Type  string // blkid(8)'s name: ext4, xfs, LVM2_member, crypto_LUKS, swap, ...
	Label string
	UUID  string
	// Advice is empty for what can be opened. For what can be named but not read it says what to do instead.
	Advice string
	// Set joins the devices of one file system that spans several (Btrfs): devices with equal Type and Set are
	// opened together. Empty: it stands alone.
	Set     string
	Members int // devices in the set
}

// Format is a file system format: how to know it, how to open it.
type Format struct {
	// Probe looks for the format. It answers ErrUnknown when the device is something else.
	Probe func(*Source) (Ident, error)
	// Open opens the file system on the devices of a set, one device for most formats.
	Open func([]*Source) (Driver, error)
}
