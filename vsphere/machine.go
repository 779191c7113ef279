package vsphere

// PowerState of a machine, as the API spells it.
type PowerState string

// The power states.
const (
	PoweredOn  PowerState = "poweredOn"
	PoweredOff PowerState = "poweredOff"
	Suspended  PowerState = "suspended"
)

// Machine is a virtual machine as listed.
type Machine struct {
	ID           string // managed object id, "vm-42"
	Name         string
	Path         string // inventory path, "/DC0/vm/web/web1"
	InstanceUUID string
	BIOSUUID     string
	Host         string // name of the ESXi host it is on
	HostID       string // its managed object id
	Cluster      string // empty: a stand-alone host
	Datacenter   string
	Folder       string // inventory path of the folder
	ResourcePool string // inventory path of the pool
	Datastores   []string
	Networks     []string
	Power        PowerState
	Template     bool
	HWVersion    string // "vmx-19"
	GuestID      string // "ubuntu64Guest"
	GuestOS      string // "Ubuntu Linux (64-bit)"
	ToolsRunning bool
	Tools        string // "guestToolsCurrent", "guestToolsNotInstalled", ...
	CBT          bool   // change tracking is switched on
	Encrypted    bool   // the machine's home is encrypted; every machine with a vTPM is
	VTPM         bool
	Connection   string            // "connected"; anything else: cannot be worked with now
	Snapshots    int               // snapshots present, ours included
	Consolidate  bool              // disks need consolidation
	Tags         []string          // "category:tag"; nil where tags cannot be read (ESXi)
	Attributes   map[string]string // custom attributes
	Disks        []Disk            // in the order of their names

	dc string // inventory path of the data center without the leading slash
}

// Selection picks machines at the time of the call. Fields narrow the choice; the zero value picks all machines but
// templates. Patterns are path.Match globs, compared without case; "**" is not special.
type Selection struct {
	Names         []string // inventory path, name, managed object id, instanceUuid, or a glob over name or path
	Folders       []string // path or last name; machines in folders below count too
	Hosts         []string
	Clusters      []string
	ResourcePools []string // path or last name; pools below count too
	Datastores    []string
	Tags          []string // "category:tag" or "tag"
	Attributes    []string // "name=value"
	Power         []PowerState
	Exclude       []string // as Names
	Templates     bool     // templates too
}

// Disk is a virtual disk of a machine or of a snapshot.
type Disk struct {
	Key        int32  // device key, stable over the disk's life in a machine
	Name       string // place in the machine: "scsi0-0", "sata1-3", "nvme0-0", "ide0-1"
	Label      string // "Hard disk 1"
	Controller string // type in the API: "ParaVirtualSCSIController"
	Bus, Unit  int32
	UUID       string   // of the disk's content; empty for some backings
	ObjectID   string   // diskObjectId: key within the machine's history
	Path       string   // datastore path of the link: "[ds1] web/web-000001.vmdk"
	Base       string   // datastore path of the chain's base: "[ds1] web/web.vmdk"
	Chain      []string // datastore paths of all links, from Path down to Base
	Datastore  string
	Capacity   int64  // bytes
	Mode       string // persistent, independent_persistent, ...
	Sharing    string // sharingNone, sharingMultiWriter; or the controller's bus sharing
	Thin       bool
	EagerZero  bool
	Encrypted  bool
	Backing    string   // flat, sparse, sesparse, rdm-virtual, rdm-physical, pmem, other
	ChangeID   ChangeID // disks of a snapshot with change tracking only

	Unprotected string // why no snapshot holds the disk; empty: one does
	Untracked   string // why change tracking cannot see the disk; empty: it can
}
