package mount

import (
	"slices"

	"github.com/vmkeep/vmkeep/vddk/mount/btrfs"
	"github.com/vmkeep/vmkeep/vddk/mount/device"
	"github.com/vmkeep/vmkeep/vddk/mount/ext4"
	"github.com/vmkeep/vmkeep/vddk/mount/fat"
	"github.com/vmkeep/vmkeep/vddk/mount/foreign"
	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
	"github.com/vmkeep/vmkeep/vddk/mount/iso9660"
	"github.com/vmkeep/vmkeep/vddk/mount/ldm"
	"github.com/vmkeep/vmkeep/vddk/mount/lvm"
	"github.com/vmkeep/vmkeep/vddk/mount/ntfs"
	"github.com/vmkeep/vmkeep/vddk/mount/xfs"
)

// formats are what volumes are probed for, in order. Containers that may keep an older file system's superblock
// in place come before file systems.
func formats() []guestfs.Format {
	systems := []guestfs.Format{
		ext4.Format(),
		xfs.Format(),
		btrfs.Format(),
		ntfs.Format(),
		iso9660.Format(),
		fat.ExFAT(),
		fat.Format(), // it has no magic number of its own
	}
	return slices.Concat(foreign.Containers(), systems, foreign.Rest())
}

// managers are the volume managers that look at all disks and partitions together.
func managers() []device.Manager {
	return []device.Manager{lvm.Assemble, ldm.Assemble}
}
