package vsphere

import "encoding/json"

// Identity says which of a saved machine's identities a restored one gets.
type Identity string

// The identities.
const (
	IdentityNew  Identity = "new"  // vSphere makes new ones
	IdentityKeep Identity = "keep" // as saved
)

// Provisioning is how a disk's space is allotted.
type Provisioning string

// The provisionings.
const (
	ProvisionSaved Provisioning = "" // as it was
	ProvisionThin  Provisioning = "thin"
	ProvisionThick Provisioning = "thick" // lazily zeroed
	ProvisionEager Provisioning = "eager" // zeroed at creation
)

// MachineSpec asks for a machine made from a saved one.
type MachineSpec struct {
	Operation  *Operation      // journal; required to create, not to plan
	ConfigInfo json.RawMessage // as in [State]
	Name       string          // empty: the saved name

	Folder       string // inventory path; empty: the saved folder where it exists, else the data center's root folder
	Host         string // name; empty: any of the pool
	Cluster      string // name; empty: that of Host or ResourcePool, or the only one
	ResourcePool string // path or name; empty: the root pool of Host or Cluster

	Datastore   string            // for home and disks that Datastores does not name; empty: the saved name where it exists
	Datastores  map[string]string // disk name -> datastore
	Networks    map[string]string // saved network name -> network here; unnamed: same name where it exists
	NoNetworks  bool              // leave unmapped network cards disconnected instead of failing
	Identity    Identity          // instanceUuid and biosUuid; empty: new
	MAC         Identity          // empty: new
	Provision   Provisioning
	OmitDisks   []string // names of disks to leave out
	KeepPartial bool     // keep the machine when fn fails
	Attributes  map[string]string
}

// MachinePlan is what making a machine would do.
type MachinePlan struct {
	Name         string
	Folder       string // inventory paths and names as resolved
	ResourcePool string
	Host         string // empty: vSphere chooses
	Home         string // datastore of the machine's home
	Disks        []PlannedDisk
	Networks     []PlannedNetwork
	Steps        []string // in words, in order
	Notes        []string // what is left out or changed, and why
	Problems     []*Error // what makes it impossible; creating fails with the first

	target target
}

// PlannedDisk is a disk that would be made.
type PlannedDisk struct {
	Name      string // as in the saved machine, and in the new one
	SavedKey  int32  // device key in the saved machine
	Datastore string
	Capacity  int64
	Provision Provisioning
}

// PlannedNetwork is a network card that would be made.
type PlannedNetwork struct {
	Label   string // "Network adapter 1"
	Saved   string // network it was on
	Network string // network it will be on; empty: disconnected
	MAC     string // empty: new
}

// DiskSpec asks for a new disk in an existing machine.
type DiskSpec struct {
	Operation *Operation
	Place     string // "scsi1:3" or "scsi1-3"; empty: the first free one of an existing SCSI, SATA or NVMe controller
	Replace   bool   // the place may be taken: the disk there is detached, its file kept
	Datastore string // empty: the machine's home
	Capacity  int64
	Provision Provisioning
}
