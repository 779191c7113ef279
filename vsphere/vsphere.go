// Package vsphere is everything vmkeep says to a vCenter or an ESXi host.
//
// Vocabulary: a [Client] is a session that stays alive; a [Machine] is a virtual machine as listed, a [VM] a handle
// of one to act on; a [Disk] is a virtual disk as vSphere describes it (its bytes are read elsewhere); a [Snapshot]
// is vSphere's, lives for minutes and exists only inside [VM.WithSnapshot]; a [Ticket] admits to the NFC server of
// an ESXi host; an [Operation] is what a [Journal] keeps of the side effects of one run.
//
// The package hides that vSphere is a remote system with a will of its own: sessions that end, tasks that collide,
// answers that come in pieces or are wrong, snapshots that outlive their makers. What it returns is either true or
// an error with a named reason; what it changes on vSphere is written to a journal first and undone afterwards, also
// when the context ended, the session died or the process was killed in between.
//
// Facts about vSphere come from the Web Services API reference (type and method names are spelt as there) and the
// Virtual Disk Development Kit guide.
package vsphere

import (
	"log/slog"
	"time"
)

// Config says where a vCenter or ESXi host is and how to talk to it.
type Config struct {
	URL        string // "vc.example", "https://vc.example/sdk"; user information in it counts when Username is empty
	Username   string
	Password   string
	Thumbprint string // SHA-1 or SHA-256 of the certificate, in hexadecimal, colons optional; pins it
	CACerts    string // PEM text, or PEM files separated by the system's path list separator
	Insecure   bool   // accept any certificate
	UserAgent  string // empty: "vmkeep"
	APIVersion string // highest API version to ask for; empty: what the server offers

	CallTimeout time.Duration // of one call; 0: 2 minutes
	Patience    time.Duration // how long calls are repeated while the server is away; 0: 5 minutes
	KeepAlive   time.Duration // distance of keep-alive calls; 0: 5 minutes
	Cleanup     time.Duration // deadline of a cleanup after the context ended; 0: 1 hour, for a big delta takes long to merge

	Log *slog.Logger // debug and warning messages; nil: none
}

// About is what the server says of itself.
type About struct {
	URL          string // without user information
	Product      string // "VMware vCenter Server 8.0.3 build-24022515"
	Version      string
	Build        string
	APIVersion   string
	VCenter      bool   // false: an ESXi host
	InstanceUUID string // of the vCenter, or the hardware UUID of the ESXi host
	Thumbprint   string // SHA-256 of the certificate presented; empty without TLS
	// ThumbprintSHA1 is the SHA-1 of the same, which VMware's own library still asks for.
	ThumbprintSHA1 string
}
