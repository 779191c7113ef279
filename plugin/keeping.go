package plugin

import "time"

// Statistics tell what the points take in the repository. Sizes are bytes.
type Statistics struct {
	Repository Repository
	Packs      int
	PackBytes  int64 // what the packs take on the storage
	Unused     int64 // in packs, and needed by no point: prune frees it
	Total      Usage
	Machines   []Usage // in the order of their names
}

// Usage is what the points of one machine, or all, take. Deduplication is Logical over Unique, compression Unique over
// Stored.
type Usage struct {
	Machine   string // empty: all
	Points    int
	Logical   int64 // what restoring every point would write
	Latest    int64 // what restoring the newest point would write
	Unique    int64 // distinct chunks and trees, before compression
	Stored    int64 // the same as stored
	Exclusive int64 // share of Stored that no other machine needs: forgetting all its points would free it
}

// UnlockRequest asks to remove locks of the repository whose holders are gone; with All, every lock.
type UnlockRequest struct {
	All bool
}

// UnlockReport tells which locks are gone and which are left.
type UnlockReport struct {
	Removed   []Lock
	Remaining []Lock
}

// Lock is one lock of the repository, as restic keeps it.
type Lock struct {
	ID        string
	Hostname  string
	Username  string
	PID       int
	Exclusive bool
	Time      time.Time // of the last refresh
	Note      string    // why it cannot be read
}

// Key is one way to open the repository. All keys open the same data.
type Key struct {
	ID       string
	Created  time.Time
	Username string
	Hostname string
	Current  bool   // it opened the repository for this call
	Note     string // why it cannot be used
}

// KeyRequest is a new key. Username and Hostname are what the list of keys shows; empty means the plugin's.
type KeyRequest struct {
	Password string // secret
	Username string
	Hostname string
}

// RepairIndexRequest asks to make the index say what the packs hold.
type RepairIndexRequest struct {
	AllHeaders bool   // believe nothing of the index: read the header of every pack
	Subset     string // packs to read as a whole, so that damaged chunks leave the index: "all", "n/t", "p%" or a size
	DryRun     bool
}

// RepairIndexReport is what was, or would be, done.
type RepairIndexReport struct {
	Changed         bool
	BadIndexFiles   []string
	AddedPacks      []string // read into the index
	LostPacks       []string // named by the index, and missing
	UnreadablePacks []string // in no index, and not readable either
	SalvagedPacks   []string // had damaged chunks; the good ones moved to new packs, and these packs are deleted
	KeptPacks       []string // of the salvaged packs those that are not deleted: the storage gave less of them than it lists, which may pass
	LostBlobs       int      // chunks and trees of which no good copy is left
}

// RepairPointsRequest asks to make points restorable that need what is lost: a lost chunk becomes as many zeros, so that
// nothing behind it moves. The index says what is lost; repair it first.
type RepairPointsRequest struct {
	IDs    []string // none: all
	Forget bool     // remove the damaged points that were replaced
	DryRun bool
}

// RepairPointsReport lists the points that were damaged.
type RepairPointsReport struct {
	Points []RepairedPoint
}

// RepairedPoint is a point that needed what is lost.
type RepairedPoint struct {
	Point       Point  // as it was
	Replacement string // id of the point that replaces it; empty after a dry run, and where Lost
	Lost        bool   // its root is gone: nothing of it can be kept
	Damage      []PointDamage
}

// PointDamage is what is lost of one disk or one file of a point.
type PointDamage struct {
	Disk   string // "scsi0-0"; empty: Path is no disk
	Path   string // in the point
	Ranges []ByteRange
	Note   string // what became of it where there are no ranges
}
