govc role.create vmkeep-proxy \
  VirtualMachine.Config.AddExistingDisk \
  VirtualMachine.Config.RemoveDisk
