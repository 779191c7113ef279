package vsphere

// AnnounceLibrary writes to the journal that VMware's library is about to be used for the machine: it may attach the
// machine's disks to another, which vSphere does not show as vmkeep's doing. undone strikes it, once the library has said
// that nothing is left; else [Client.Recover] has [RecoverOptions.Library] see to it.
func (v *VM) AnnounceLibrary(op *Operation) (undone func() error, err error) {
	x, err := op.announce(entry{Kind: EntryLibrary, Server: v.c.about.InstanceUUID, Machine: v.ID(), Path: v.label(), Object: "disks attached by VMware's library"})
	if err != nil {
		return nil, err
	}
	return x.strike, nil
}
