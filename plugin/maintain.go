package plugin

import "time"

// CheckRequest asks to verify the repository. The zero value checks structure only.
type CheckRequest struct {
	ReadData bool
	Subset   string // "n/t", "p%" or a size; implies ReadData for the chosen packs
}

// CheckReport is what a check found.
type CheckReport struct {
	Repository Repository
	Snapshots  int
	Packs      int
	PacksRead  int
	BytesRead  int64
	Blobs      int64
	Errors     []Diagnostic // damage
	Hints      []Diagnostic // harmless untidiness
}

// VerifyRequest asks for the audit of changed-block tracking: what a point kept unread is compared with the
// machine as it is.
type VerifyRequest struct {
	Selection Selection
	Sample    float64 // share of the kept chunks to compare, 0 < Sample <= 1; 0: 0.02
}

// VerifyReport is the outcome of an audit.
type VerifyReport struct {
	Operation string
	Machines  []VerifyResult
}

// VerifyResult is the audit of one machine.
type VerifyResult struct {
	Machine   string
	Point     string
	Compared  int64 // bytes
	Different []DiskDifference
	Err       *Error
}

// DiskDifference is where a point and the machine differ though change tracking reported no change.
type DiskDifference struct {
	Disk   string
	Ranges []ByteRange
}

// ForgetRequest is a retention policy, with restic's meaning. Zero counts keep nothing by that rule, -1 keeps all.
// Each of KeepTags is a list of tags, separated by commas, all of which a point must have to be kept.
type ForgetRequest struct {
	Machines                                     []string
	IDs                                          []string // exactly these points, without a policy
	Last, Hourly, Daily, Weekly, Monthly, Yearly int
	Within                                       string // restic's duration: 1y5m7d2h
	WithinHourly, WithinDaily, WithinWeekly      string
	WithinMonthly, WithinYearly                  string
	KeepTags                                     []string
	DryRun                                       bool
}

// ForgetReport tells which points stay and which go, with the rules that kept them.
type ForgetReport struct {
	Keep   []KeptPoint
	Remove []Point
}

// KeptPoint is a point that a policy keeps.
type KeptPoint struct {
	Point   Point
	Reasons []string // "daily snapshot", ...
}

// PruneRequest asks to free space.
type PruneRequest struct {
	MaxUnused string // "5%", a size, or "unlimited"; empty: 5%
	MaxRepack string // a size; empty: no bound
	// RepackSmall repacks packs below the size that new ones get, RepackUncompressed those that are not compressed.
	RepackSmall, RepackUncompressed bool
	DryRun                          bool
}

// PruneReport is the plan that was, or would be, carried out.
type PruneReport struct {
	PacksKept, PacksRepacked, PacksRemoved int
	BytesKept, BytesRepacked, BytesFreed   int64
	BytesUnused                            int64 // left behind within MaxUnused
	Notes                                  []Diagnostic
}

// RecoverReport is what interrupted operations had left.
type RecoverReport struct {
	Undone    []Leftover
	Remaining []Leftover // could not be undone; Err says why
}

// Leftover is one trace of an interrupted operation.
type Leftover struct {
	Operation string
	Kind      string // snapshot, cbt, disk, method, machine
	Machine   string
	Detail    string
	Err       *Error
}

// Finding is one line of the doctor.
type Finding struct {
	Name   string // "port 902", "privileges for backup", ...
	OK     bool
	Detail string
	Remedy string
}

// FileRequest names guest files of a point.
type FileRequest struct {
	Point     string
	Machine   string // to find "latest"
	Volume    string // mount point, drive letter, label; empty: Path starts at the guest's root
	Path      string
	Recursive bool
	Globs     []string // only names that match one
	Offset    int64    // ReadFile
	Length    int64    // ReadFile; 0: to the end
	Stream    string   // ReadFile: alternate data stream
}

// Records of tar archives (PAX extended headers) that [Service.TarFiles] writes where tar has no word for something.
const (
	// TarStream marks the entry of an alternate data stream, "FILE:STREAM". Its value is the stream's name.
	TarStream = "VMKEEP.stream"
	// TarUnreadable marks an entry that stands for a file whose content cannot be read. Its value is the reason.
	TarUnreadable = "VMKEEP.unreadable"
)

// File is one guest file, or a volume where the request named none.
type File struct {
	Path    string // raw bytes as the guest has them
	Type    string // volume, file, dir, symlink, fifo, socket, device, chardev, unknown
	Size    int64
	Mode    uint32 // POSIX permission bits with setuid, setgid, sticky
	UID     uint32
	GID     uint32
	ModTime time.Time
	Link    string   // target of a symlink
	Links   uint32   // hard links
	Xattrs  []string // names
	Streams []string // names of alternate data streams
	Note    string   // why a volume cannot be read, what is uncertain
}
