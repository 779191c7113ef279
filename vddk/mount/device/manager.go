package device

// Candidate is a device on which a volume manager may keep its labels: a whole disk or a partition.
type Candidate struct {
	Dev   Device
	Name  string // as volumes are named: "scsi0-0" or "scsi0-0p2"
	Type  string // partition type: "8e", or a GUID in upper case; "" for a whole disk
	Whole bool   // a whole disk
	// Parted is a whole disk that has partitions, which are candidates too: labels at its start are leftovers,
	// but for managers that use the table itself (LDM).
	Parted bool
}

// Logical is a device that a volume manager built.
type Logical struct {
	Dev  Device
	Name string // "vg/root"
	UUID string
	// Paths are device names by which the guest itself knows it: "/dev/vg/root", "/dev/mapper/vg-root".
	Paths []string
	// Missing says what keeps the device from being read whole, empty when nothing does.
	Missing string
}

// Assembly is what a volume manager makes of all devices of a machine.
type Assembly struct {
	Logicals []Logical
	// Members are the candidates that belong to the manager and hold no file system themselves:
	// index of the candidate -> name of the group.
	Members map[int]string
	// Problems name what could not be assembled, with a remedy where there is one.
	Problems []string
}

// Manager builds logical devices from the candidates of one machine: all of them together, for groups span
// disks. What is absent or damaged is told in the Assembly, never by failing the rest.
type Manager func([]Candidate) Assembly
