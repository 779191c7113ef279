package hotadd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vmkeep/vmkeep/vddk"
)

// device is an open block device.
type device interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Sync() error
}

// devices lists SCSI disks by name.
func (t *Transport) devices() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(t.sys(), "block"))
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "sd") {
			out = append(out, e.Name())
		}
	}
	return out, nil
}

// find waits for the device of an attached disk. known are those that were there before.
func (t *Transport) find(ctx context.Context, a Attached, known map[string]bool) (string, error) {
	settle := t.Settle
	if settle == 0 {
		settle = 30 * time.Second
	}
	t.scan()
	deadline := time.NewTimer(settle)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		name, err := t.match(a, known)
		if name != "" || err != nil {
			return name, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return "", context.Cause(ctx)
		case <-deadline.C:
			return "", fmt.Errorf("vSphere attached the disk as unit %d, and no device of %d bytes appeared within %s: see that this program runs in the proxy it was told of, with the machine's own /sys and /dev: %w", a.Unit, a.Capacity, settle, vddk.ErrUnsupported)
		}
	}
}

// scan asks controllers to look for disks: not all of them notice by themselves. Where that is not allowed, waiting
// is all there is.
func (t *Transport) scan() {
	hosts, _ := filepath.Glob(filepath.Join(escape(t.sys()), "class", "scsi_host", "host*", "scan"))
	for _, h := range hosts {
		if f, err := os.OpenFile(h, os.O_WRONLY, 0); err == nil {
			_, _ = f.WriteString("- - -")
			_ = f.Close()
		}
	}
}

// escape keeps a directory's own characters from being a pattern.
func escape(dir string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(dir)
}

// match finds the device: by the disk's identity, which the kernel shows where the proxy has disk.EnableUUID, also among
// those that were there before, for another name may have become free. Else among new ones, by unit and size, and
// only when a single one fits. A wrong disk would be backed up in silence.
func (t *Transport) match(a Attached, known map[string]bool) (string, error) {
	names, err := t.devices()
	if err != nil {
		return "", err
	}
	want := hexOf(a.UUID)
	var fit []string
	for _, name := range names {
		size, err := t.size(name)
		if err != nil || size != a.Capacity {
			continue // gone meanwhile, or not yet there as a whole
		}
		id := t.identity(name)
		if want != "" && id == want {
			return name, nil
		}
		if unit, ok := t.unit(name); !known[name] && ok && unit == a.Unit && (id == "" || want == "") {
			fit = append(fit, name)
		}
	}
	switch len(fit) {
	case 0:
		return "", nil
	case 1:
		return fit[0], nil
	}
	return "", fmt.Errorf("the devices %s fit the attached disk: set disk.EnableUUID=TRUE in the proxy's settings, so that they can be told apart: %w", strings.Join(fit, ", "), vddk.ErrUnsupported)
}

// size is a device's capacity in bytes; sysfs tells it in sectors of 512 whatever the device's own are.
func (t *Transport) size(name string) (int64, error) {
	b, err := os.ReadFile(filepath.Join(t.sys(), "block", name, "size"))
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 54)
	return n * vddk.SectorSize, err
}

// identity is a device's NAA identifier, which for a virtual disk is its UUID; empty where the kernel knows none.
func (t *Transport) identity(name string) string {
	b, err := os.ReadFile(filepath.Join(t.sys(), "block", name, "device", "wwid"))
	if id, ok := strings.CutPrefix(strings.TrimSpace(string(b)), "naa."); err == nil && ok {
		return hexOf(id)
	}
	links, _ := filepath.Glob(filepath.Join(escape(t.dev()), "disk", "by-id", "wwn-0x*"))
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil && filepath.Base(to) == name {
			return hexOf(strings.TrimPrefix(filepath.Base(l), "wwn-0x"))
		}
	}
	return ""
}

// hexOf brings the spellings of a UUID (6000C29a-..., "60 00 C2 9a", 0x6000c29a) to one.
func hexOf(s string) string {
	return strings.Map(func(r rune) rune {
		if strings.ContainsRune("0123456789abcdef", r) {
			return r
		}
		return -1
	}, strings.ToLower(s))
}

// unit is the third from the end of a device's SCSI address, host:channel:target:lun.
func (t *Transport) unit(name string) (int, bool) {
	entries, err := os.ReadDir(filepath.Join(t.sys(), "block", name, "device", "scsi_disk"))
	if err != nil || len(entries) == 0 {
		return 0, false
	}
	parts := strings.Split(entries[0].Name(), ":")
	if len(parts) != 4 {
		return 0, false
	}
	n, err := strconv.Atoi(parts[2])
	return n, err == nil
}

// forget has the kernel drop a device. One that is gone is dropped.
func (t *Transport) forget(name string) error {
	f, err := os.OpenFile(filepath.Join(t.sys(), "block", name, "device", "delete"), os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("drop the device %s: %w", name, err)
	}
	_, err = f.WriteString("1")
	if err = errors.Join(err, f.Close()); err != nil && !slices.ContainsFunc(gone(), func(e error) bool { return errors.Is(err, e) }) {
		return fmt.Errorf("drop the device %s: %w", name, err)
	}
	return nil
}
