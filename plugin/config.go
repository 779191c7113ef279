package plugin

import "time"

// Config says where machines and repository are and how the engine may use them.
type Config struct {
	VSphere    VSphere
	Repository RepositoryConfig
	StateDir   string   // journal of side effects and per-machine notes; empty: the user's state directory
	Transports []string // nbdssl, nbd, hotadd, vddk...; empty: what Info lists
	VDDKDir    string   // root of VMware's library, where the user has it
	Limits     Limits

	DiskCompression string            // of disks' bytes on their way from and to a host, over NFC and by VMware's library: auto, none, zlib, fastlz, skipz; empty: auto
	VDDKSettings    map[string]string // of VMware's library: vixDiskLib.nfcAio.Session.BufCount, ...
}

// VSphere is a vCenter or an ESXi host.
type VSphere struct {
	URL        string // https://vc.example/sdk; user information in it is used when Username is empty
	Username   string
	Password   string
	Thumbprint string // SHA-1 or SHA-256 of the certificate, colon separated
	CACerts    string // PEM file
	Insecure   bool   // accept any certificate
}

// RepositoryConfig is a restic repository.
type RepositoryConfig struct {
	Location      string // restic's forms: /path, rest:, s3:, sftp:, rclone:
	Password      string
	Environment   map[string]string // RESTIC_* and AWS_* variables for the backend
	Options       map[string]string // restic's -o: s3.connections, sftp.command, ...
	CacheDir      string            // empty: no cache of trees and indexes
	CacheSize     int64             // bytes that the cache may have, of all repositories in CacheDir together; 0: 2 GiB
	Compression   string            // auto, off, fastest, better, max
	Chunking      string            // how disks are cut into chunks: restic, restic/2, restic/4, fixed; empty: as the newest point
	PackSize      int               // MiB; 0: 16
	LimitUpload   int               // KiB/s; 0: unlimited
	LimitDownload int
	LockWait      time.Duration // how long to wait for another's lock
	NoLock        bool          // write nothing, not even a lock: to read from storage that cannot be written
}

// Limits bound what the engine asks of vSphere at a time. Zero means the default.
type Limits struct {
	Machines             int           // backed up at once: 4
	MachinesPerHost      int           // 2
	MachinesPerDatastore int           // 4
	PartsPerMachine      int           // disk parts read at once: number of CPUs
	FreeSpace            int64         // bytes a datastore must have free before a snapshot: 5 % of its capacity
	SnapshotTimeout      time.Duration // 15 minutes
}

// Field is one field of [Config] as [Service.Schema] describes it.
type Field struct {
	Path       string // "repository.location": the names are those of the wire's JSON form
	Type       string // string, bool, integer, duration, list, map
	Doc        string
	Default    string   // in words
	Values     []string // all that are allowed, of a string; empty: any
	Min, Max   int64    // of an integer that is set; both 0: not bounded but by its type, and not negative
	Required   bool
	Sensitive  bool // never shown, never logged
	Deprecated string
}
