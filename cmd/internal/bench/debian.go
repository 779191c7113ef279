package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vmkeep/vmkeep/vsphere/lab/guestdisk"
)

// A real upgrade: a disk with the Debian release before this machine's, and the same disk after its own package manager
// brought it to this machine's, through the kernel's file system. The packages come from where this machine gets its own.

// debianSize is the size of the disk in bytes: a minimal system has some 300 MiB, and an upgrade needs as much again.
const debianSize = 2 << 30

// before names the release before each.
func before(release string) string {
	return map[string]string{"bookworm": "bullseye", "trixie": "bookworm", "forky": "trixie"}[release]
}

// leftOut is why a series cannot be made here.
type leftOut struct{ why string }

func (l leftOut) Error() string { return l.why }

// debian makes the disk at raw, and what it was before the upgrade at old. The error is a leftOut where that is not possible.
func debian(ctx context.Context, old, raw string) (err error) {
	release, mirror, err := debianHere(ctx)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(filepath.Dir(raw), "debian-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	tree, mountPoint := filepath.Join(dir, "tree"), filepath.Join(dir, "disk")
	stamp("debian: installing %s", before(release))
	if err := quietly(exec.CommandContext(ctx, "debootstrap", "--variant=minbase", before(release), tree, mirror)); err != nil {
		return leftOut{err.Error()}
	}
	if err := errors.Join(guestdisk.Make(ctx, raw, debianSize, tree, "debian"), os.Mkdir(mountPoint, 0o700), copyFile(raw, old)); err != nil {
		return err
	}
	stamp("debian: upgrading to %s", release)
	// In a mount namespace of its own nothing stays mounted, however this ends.
	upgrade := exec.CommandContext(ctx, "unshare", "--mount", "sh", "-euc", debianUpgrade, "sh", raw, mountPoint)
	upgrade.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C", "SOURCE=deb "+mirror+" "+release+" main", fmt.Sprintf("OFFSET=%d", guestdisk.Start))
	if err := quietly(upgrade); err != nil {
		return leftOut{err.Error()}
	}
	return nil
}

// debianUpgrade upgrades the system on the disk $1, mounted at $2. Dates of a mirror may be old: it may be one that stands still.
const debianUpgrade = `
unset TMPDIR # it is not below $2
mount -o loop,offset=$OFFSET "$1" "$2"
mount -t proc proc "$2/proc"
cp /etc/resolv.conf "$2/etc/resolv.conf"
printf '#!/bin/sh\nexit 101\n' > "$2/usr/sbin/policy-rc.d"
chmod 755 "$2/usr/sbin/policy-rc.d"
echo "$SOURCE" > "$2/etc/apt/sources.list"
apt="chroot $2 apt-get -q -y -o Acquire::Check-Valid-Until=false -o Acquire::Check-Date=false -o Dpkg::Options::=--force-confdef"
$apt update
$apt dist-upgrade
$apt clean
umount "$2/proc" "$2"
`

// debianHere is this machine's release and where its packages come from.
func debianHere(ctx context.Context) (release, mirror string, err error) {
	if runtime.GOOS != "linux" || os.Geteuid() != 0 {
		return "", "", leftOut{"it needs Linux and root, to mount and to change root"}
	}
	for _, program := range []string{"debootstrap", "apt-get", "unshare", "chroot"} {
		if _, err := exec.LookPath(program); err != nil {
			return "", "", leftOut{program + " is not installed"}
		}
	}
	system, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "", "", leftOut{err.Error()}
	}
	for line := range strings.Lines(string(system)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "VERSION_CODENAME="); ok {
			release = name
		}
	}
	if before(release) == "" {
		return "", "", leftOut{fmt.Sprintf("this machine's release %q is none of Debian whose predecessor is known", release)}
	}
	out, err := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "$(CODENAME) $(REPO_URI)", "Created-By: Packages").Output()
	if err != nil {
		return "", "", leftOut{"apt-get indextargets: " + err.Error()}
	}
	for line := range strings.Lines(string(out)) {
		if uri, ok := strings.CutPrefix(strings.TrimSpace(line), release+" "); ok {
			return release, uri, nil
		}
	}
	return "", "", leftOut{"apt knows no place for packages of " + release}
}

// quietly runs a command and tells the end of what it said if it fails.
func quietly(cmd *exec.Cmd) error {
	out, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	lines := strings.Split(string(bytes.TrimSpace(out)), "\n")
	return fmt.Errorf("%s: %w: %s", filepath.Base(cmd.Path), err, strings.Join(lines[max(0, len(lines)-3):], "; "))
}
