package vsphere

import (
	"encoding/json"
	"time"
)

// State is a machine as it is now, in every detail a backup keeps.
type State struct {
	Machine
	ConfigInfo    json.RawMessage // VirtualMachineConfigInfo in the JSON of the vim25 API, for the manifest and for a restore
	ChangeVersion string          // changes with every reconfiguration
	VMX           string          // datastore path of the .vmx
	NVRAM         string          // datastore path of the .nvram; empty: none
	SnapshotTree  []SnapshotInfo  // depth first
	NICs          []NIC
	HostVersion   string // "8.0.3" of the host the machine is on
	HostBuild     string
	VCenter       string // instanceUuid of the vCenter or host
	Trackable     bool   // the machine can track changes at all: hardware version, capability
}

// SnapshotInfo is a snapshot in a machine's tree.
type SnapshotInfo struct {
	ID          string // managed object id
	Number      int32  // id within the machine, as govc and the client show it
	Name        string
	Description string
	Created     time.Time
	Quiesced    bool
	Current     bool
	Parent      string // managed object id; empty: a root
	Operation   string // ours: the operation that took it; empty: foreign
}
