package plugin

// RestoreMode is where a restore goes.
type RestoreMode string

// The restore ladder.
const (
	RestoreNew       RestoreMode = "new"       // a new machine; the default
	RestoreInPlace   RestoreMode = "in-place"  // over the existing machine's disks, everything
	RestoreRollback  RestoreMode = "rollback"  // over the existing machine's disks, only what differs
	RestoreAttach    RestoreMode = "attach"    // single disks, attached to a machine
	RestoreDirectory RestoreMode = "directory" // files on the plugin's machine
)

// RestoreFormat is how disks lie in a directory.
type RestoreFormat string

// The formats of RestoreDirectory.
const (
	FormatRaw             RestoreFormat = "raw"  // one file per disk; the default
	FormatSplit           RestoreFormat = "vmdk" // the point's own: a descriptor and one flat extent per part
	FormatFlat            RestoreFormat = "flat" // a descriptor and one flat file
	FormatStreamOptimized RestoreFormat = "stream"
	FormatOVA             RestoreFormat = "ova"
)

// RestoreRequest asks for a point, or some of its disks.
type RestoreRequest struct {
	Point   string // id or unambiguous prefix; "latest" or empty: the newest of Machine, or of the only machine that has points
	Machine string // name, glob or instanceUuid; empty: any
	Mode    RestoreMode
	Disks   []string // names; empty: all

	Target    Target        // RestoreNew, and the machine for the modes that write to one
	Directory string        // RestoreDirectory; "-" is not allowed here: use ReadDisk
	Format    RestoreFormat // RestoreDirectory
	Sparse    bool          // leave holes in files

	Verify       bool // read back what was written and compare with the point
	PowerOff     bool // modes that overwrite: power the machine off first, otherwise refuse
	PowerOn      bool // afterwards
	KeepPartial  bool // after a failure keep the half-made machine, or the half-filled disks that are to be attached, for the same restore to go on with
	AllowMissing bool // go on without what the repository lost, and report it: new disks have zeros there, existing ones stay as they are
	Force        bool // overwrite files that exist in Directory
}

// Target is the machine a restore makes or writes to.
type Target struct {
	Machine      string // existing machine: path, name, id; empty: the one the point was made of
	Name         string // new machine's name; empty: the point's
	Folder       string
	Host         string
	Cluster      string
	ResourcePool string
	Datastore    string            // for everything not mapped below
	Datastores   map[string]string // disk name -> datastore
	Networks     map[string]string // network name in the point -> network here
	NoNetworks   bool              // cards whose network does not exist here stay disconnected, instead of failing
	KeepIdentity bool              // instanceUuid and biosUuid
	KeepMAC      bool
	Provisioning string            // thin, thick, eager, or empty: as it was
	Positions    map[string]string // RestoreAttach: disk name -> "scsi1:3"; empty: original when free, else the next free
}

// RestorePlan is what a restore would do.
type RestorePlan struct {
	Point    Point
	Steps    []string     // in words, in order
	Notes    []Diagnostic // what will be left out or changed
	Problems []Diagnostic // what makes it impossible; a restore would fail with the first
	Write    int64        // upper bound of bytes to write; -1: not known before comparing
}

// RestoreReport is what a restore did.
type RestoreReport struct {
	Operation string
	Point     string
	Machine   string // path of the machine made or written to
	MachineID string
	Files     []string // RestoreDirectory
	Disks     []RestoredDisk
	Notes     []Diagnostic
	Stats     RestoreStats
}

// RestoredDisk is one disk of a restore.
type RestoredDisk struct {
	Name     string
	Capacity int64
	Written  int64
	Reason   string // rollback: how the extents to write were found
	Verified bool
	Lost     []ByteRange // AllowMissing: what the repository no longer has
}

// ByteRange is a range of a disk in bytes.
type ByteRange struct{ Off, Len int64 }

// RestoreStats are the bytes of a restore.
type RestoreStats struct {
	Size    int64 // logical bytes of the disks
	Fetched int64 // plain bytes taken from the repository
	Written int64
	Read    int64 // from the target, for comparing and verifying
	Seconds float64
}

// ReadDiskRequest asks for bytes of a point's disk.
type ReadDiskRequest struct {
	Point   string // id or unambiguous prefix; "latest" or empty: the newest of Machine, or of the only machine that has points
	Machine string // name, glob or instanceUuid; empty: any
	Disk    string
	Offset  int64
	Length  int64 // 0: to the end of the disk
}

// Frame is a run of bytes of a disk or a file. Data nil: the run is Length zeros.
type Frame struct {
	Offset int64
	Length int64
	Data   []byte
}
