package wire

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"
)

// Library asks to load and initialise the library: body of Init, answered by Loaded.
type Library struct {
	Dir    string        // of the distribution, as the user gave it
	Config string        // file with settings of the library
	Grace  time.Duration // how long it may take to let go of everything once the client is gone
}

// Loaded describes the library.
type Loaded struct {
	Path       string // of the file behind all links, which tells the version
	Major      int    // of its soname
	Modes      string // transports it has, by colons
	Allocation bool   // it has QueryAllocatedBlocks
}

// Connection asks for a connection; also what Prepare, EndAccess and Cleanup need.
type Connection struct {
	Server, Thumbprint     string
	Port, NFCPort          uint32 // 0: the usual ones
	User, Password, Cookie string // with a cookie the session behind it is used, else a login is made
	VM, Snapshot           string // managed object ids; a snapshot may be empty
	ReadOnly               bool
	Modes                  string // by colons
	Identity               string // who prepares and ends access
}

// Opening asks for a disk: body of Open, answered by Opened.
type Opening struct {
	Disk  uint32 // number the client gives it, below Disks
	Path  string
	Flags uint32
}

// Opened describes an open disk.
type Opened struct {
	Sectors uint64
	Mode    string // transport in use
}

// One names a disk: body of Close and Flush.
type One struct{ Disk uint32 }

// Range is sectors of a disk: body of Blocks.
type Range struct {
	Disk           uint32
	First, Sectors uint64 // multiples of a chunk; at most MaxChunks of them
}

// Leftovers counts disks that an earlier run left attached: answer to Cleanup.
type Leftovers struct{ Cleaned, Remaining uint32 }

// Encode is a JSON body.
func Encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil { // only values of this package are encoded
		panic(err)
	}
	return b
}

// Decode reads a JSON body strictly.
func Decode[T any](b []byte) (T, error) {
	var v T
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		return v, fmt.Errorf("%T: %v: %w", v, err, ErrFrame)
	}
	if d.More() {
		return v, fmt.Errorf("%T: more than one value: %w", v, ErrFrame)
	}
	return v, nil
}

// Check reports whether the range may be asked of the library.
func (r Range) Check() error {
	const chunk = ChunkSize / SectorSize
	if r.Disk >= Disks || r.First%chunk != 0 || r.Sectors%chunk != 0 || r.Sectors == 0 || r.Sectors/chunk > MaxChunks || r.First > 1<<54 {
		return fmt.Errorf("blocks of %d sectors at %d: %w", r.Sectors, r.First, ErrFrame)
	}
	return nil
}
