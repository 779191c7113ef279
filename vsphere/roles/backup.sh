govc role.create vmkeep-backup \
  Cryptographer.Access \
  Datastore.AllocateSpace \
  Datastore.Browse \
  Datastore.FileManagement \
  Global.DisableMethods \
  Global.EnableMethods \
  VirtualMachine.Config.ChangeTracking \
  VirtualMachine.Config.DiskLease \
  VirtualMachine.Provisioning.DiskRandomRead \
  VirtualMachine.Provisioning.GetVmFiles \
  VirtualMachine.State.CreateSnapshot \
  VirtualMachine.State.RemoveSnapshot
