package main

import (
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// setXattrs gives a restored file the extended attributes of the guest's: those of users, and as root POSIX ACLs and
// capabilities. What the target does not take is left out. SELinux labels and what belongs to another format
// ("system.ntfs_acl") mean nothing here.
func setXattrs(f *os.File, attrs map[string]string) {
	for name, value := range attrs {
		root := name == "system.posix_acl_access" || name == "system.posix_acl_default" || name == "security.capability"
		if strings.HasPrefix(name, "user.") || root && os.Geteuid() == 0 {
			_ = unix.Fsetxattr(int(f.Fd()), name, []byte(value), 0) // not every file system has them
		}
	}
}
