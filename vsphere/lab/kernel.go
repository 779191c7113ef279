package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// A machine's kernel: what a program that runs in the machine sees of its hardware. The lab runs no guests, but it can
// show a machine's SCSI disks the way Linux does, as files below a directory, for programs under test that play one:
//
//	sys/class/dmi/id/product_uuid            the machine's BIOS uuid
//	sys/class/scsi_host/host0/scan           takes what is written
//	sys/block/sdb/size                       sectors of 512 bytes
//	sys/block/sdb/device/wwid                naa.UUID, as with disk.EnableUUID
//	sys/block/sdb/device/scsi_disk/0:0:UNIT:0
//	sys/block/sdb/device/delete              the kernel drops the device when "1" is written
//	dev/sdb                                  the disk's content
//
// A disk is there from the moment it is attached until it is detached.
type kernel struct {
	dir string

	mu    sync.Mutex
	disks map[int32]shown // by device key
}

// shown is a disk as the kernel shows it.
type shown struct {
	name, path string
	remove     func() error // what was made to show it
}

func newKernel(dir, biosUUID string) (*kernel, error) {
	k := &kernel{dir: dir, disks: map[int32]shown{}}
	for name, content := range map[string]string{"sys/class/dmi/id/product_uuid": biosUUID + "\n", "sys/class/scsi_host/host0/scan": ""} {
		if err := k.write(name, content); err != nil {
			return nil, err
		}
	}
	for _, d := range []string{"sys/block", "dev"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	return k, nil
}

func (k *kernel) write(name, content string) error {
	p := filepath.Join(k.dir, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		return err
	}
	return os.WriteFile(p, []byte(content), 0o600)
}

// show makes what the kernel shows follow the machine's devices.
func (k *kernel) show(s *store, vm *mo.VirtualMachine) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := map[int32]*types.VirtualDisk{}
	for _, d := range virtualDisks(vm.Config.Hardware.Device) {
		if flatBacking(d) != nil && d.Key >= keyOnSCSI && d.Key < keyOnIDE && d.UnitNumber != nil {
			now[d.Key] = d
		}
	}
	var errs []error
	for key, sh := range k.disks {
		if d := now[key]; d == nil || flatBacking(d).FileName != sh.path {
			errs = append(errs, k.drop(sh))
			delete(k.disks, key)
		}
	}
	for key, d := range now {
		if _, there := k.disks[key]; there {
			continue
		}
		sh, err := k.add(s, d)
		if errs = append(errs, err); err == nil {
			k.disks[key] = sh
		}
	}
	return errors.Join(errs...)
}

// add shows a disk under the first free name.
func (k *kernel) add(s *store, d *types.VirtualDisk) (sh shown, err error) {
	b := flatBacking(d)
	l := s.find(b.FileName)
	if l == nil {
		return sh, fmt.Errorf("%s: %w", b.FileName, errLinkGone)
	}
	for n := 'a'; ; n++ {
		sh.name = "sd" + string(n)
		if _, err := os.Lstat(filepath.Join(k.dir, "dev", sh.name)); errors.Is(err, os.ErrNotExist) {
			break
		}
	}
	sh.path = b.FileName
	file, remove, err := s.flat(l)
	if err != nil {
		return sh, err
	}
	sh.remove = remove
	at := filepath.Join("sys/block", sh.name)
	for name, content := range map[string]string{
		"device/wwid":   "naa." + strings.ReplaceAll(strings.ToLower(b.Uuid), "-", "") + "\n",
		"device/delete": "",
		fmt.Sprintf("device/scsi_disk/0:0:%d:0/state", *d.UnitNumber): "running\n",
	} {
		err = errors.Join(err, k.write(filepath.Join(at, name), content))
	}
	// The size comes last: without it the device is not there.
	err = errors.Join(err, os.Symlink(file, filepath.Join(k.dir, "dev", sh.name)), k.write(filepath.Join(at, "size"), fmt.Sprintln(d.CapacityInBytes/512)))
	if err != nil {
		err = errors.Join(err, k.drop(sh))
	}
	return sh, err
}

func (k *kernel) drop(sh shown) error {
	return errors.Join(os.RemoveAll(filepath.Join(k.dir, "sys/block", sh.name)), os.Remove(filepath.Join(k.dir, "dev", sh.name)), sh.remove())
}

// close removes what was made to show disks.
func (k *kernel) close() (err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, sh := range k.disks {
		err = errors.Join(err, k.drop(sh))
	}
	clear(k.disks)
	return err
}
