govc role.create vmkeep-restore \
  Cryptographer.Access \
  Datastore.AllocateSpace \
  Datastore.Browse \
  Datastore.FileManagement \
  Global.DisableMethods \
  Global.EnableMethods \
  Network.Assign \
  Resource.AssignVMToPool \
  VirtualMachine.Config.AddExistingDisk \
  VirtualMachine.Config.AddNewDisk \
  VirtualMachine.Config.AdvancedConfig \
  VirtualMachine.Config.Annotation \
  VirtualMachine.Config.ChangeTracking \
  VirtualMachine.Config.DiskLease \
  VirtualMachine.Config.RemoveDisk \
  VirtualMachine.Interact.PowerOff \
  VirtualMachine.Interact.PowerOn \
  VirtualMachine.Inventory.Create \
  VirtualMachine.Inventory.Delete \
  VirtualMachine.Provisioning.DiskRandomAccess \
  VirtualMachine.Provisioning.DiskRandomRead \
  VirtualMachine.Provisioning.GetVmFiles \
  VirtualMachine.State.CreateSnapshot \
  VirtualMachine.State.RemoveSnapshot
