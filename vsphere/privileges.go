package vsphere

// Privilege is a right that an account needs.
type Privilege struct {
	ID   string // "VirtualMachine.State.CreateSnapshot"
	Why  string // what vmkeep does with it
	On   string // kind of object it is needed on: "machine", "datastore", "network", "pool", "folder", "host", "root"
	Soft bool   // without it something optional is lost
}

// MissingPrivilege is a right the account lacks on an object.
type MissingPrivilege struct {
	Privilege
	Object string // inventory path
}

// Finding is the outcome of one examination.
type Finding struct {
	Name   string
	OK     bool
	Detail string
	Remedy string // what to do when not OK
}
