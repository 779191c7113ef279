package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/vmkeep/vmkeep/vsphere/lab"
	"github.com/vmkeep/vmkeep/vsphere/lab/guestdisk"
)

// guest is the machine that is backed up, and what it does to itself.
type guest struct {
	dir   string
	disks []disk
}

type disk struct {
	name  string // as points call it
	image string
	size  int64
	key   int32 // of the virtual device
}

// sum is the SHA-256 of a disk.
type sum [sha256.Size]byte

// makeGuest makes the first content of the guest's disks: 2 GiB with the Go distribution and holes, 512 MiB with
// data that does not compress.
func makeGuest(ctx context.Context, dir string) (*guest, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return nil, fmt.Errorf("go env GOROOT: %w", err)
	}
	g := &guest{dir: dir}
	system := filepath.Join(dir, "system.raw")
	if err := guestdisk.Make(ctx, system, 2<<30, strings.TrimSpace(string(out)), "system"); err != nil {
		return nil, err
	}
	tree := mkdir(dir, "data")
	random := rand.NewChaCha8([32]byte{1})
	for i := range 8 {
		b := make([]byte, 8<<20)
		_, _ = random.Read(b) // never fails
		if err := os.WriteFile(filepath.Join(tree, fmt.Sprintf("table%d.db", i)), b, 0o600); err != nil {
			return nil, err
		}
	}
	data := filepath.Join(dir, "data.raw")
	if err := guestdisk.Make(ctx, data, 512<<20, tree, "data"); err != nil {
		return nil, err
	}
	g.disks = []disk{{"scsi0-0", system, 2 << 30, 2000}, {"sata0-0", data, 512 << 20, 16000}}
	return g, nil
}

func (g *guest) machines() []lab.Machine {
	return []lab.Machine{
		{Name: "web", Folder: "prod", Network: "VM Network", Guest: "debian12_64Guest", Disks: []lab.Disk{
			{Image: g.disks[0].image}, {Image: g.disks[1].image, Controller: "sata", Datastore: "ds2"}}},
		{Name: "idle", Disks: []lab.Disk{{Size: 1 << 30}}},
	}
}

// changes is what the guest writes to a file.
func changes() []byte { return []byte(strings.Repeat("the guest was here\n", 1000)) }

// work changes files inside the guest's file system and sends the changed blocks to the running disk, as the guest's
// kernel would.
func (g *guest) work(ctx context.Context, l *lab.Lab) error {
	note := filepath.Join(g.dir, "CHANGES")
	if err := os.WriteFile(note, changes(), 0o600); err != nil {
		return err
	}
	tool, err := os.Executable()
	if err != nil {
		return err
	}
	before := g.disks[0].image + ".before"
	if err := os.Rename(g.disks[0].image, before); err != nil {
		return err
	}
	defer os.Remove(before)
	if err := copySparse(ctx, before, g.disks[0].image); err != nil {
		return err
	}
	if err := guestdisk.Edit(ctx, g.disks[0].image, []string{
		"mkdir /var", "write " + note + " /var/CHANGES", // added
		"write " + tool + " /var/tool",
		"rm /VERSION", "write " + note + " /VERSION", // changed
		"rm /LICENSE", "rm /README.md", // deleted
	}); err != nil {
		return err
	}
	a, err := os.Open(before)
	if err != nil {
		return err
	}
	defer a.Close()
	b, err := os.Open(g.disks[0].image)
	if err != nil {
		return err
	}
	defer b.Close()
	m := l.Machine("web")
	var written int64
	if err := guestdisk.Difference(a, b, g.disks[0].size, func(p []byte, off int64) error {
		written += int64(len(p))
		return m.Write(g.disks[0].key, p, off)
	}); err != nil {
		return err
	}
	fmt.Printf("    the guest wrote %s\n", size(written))
	return nil
}

// copySparse copies a file and keeps its holes.
func copySparse(ctx context.Context, from, to string) error {
	if out, err := exec.CommandContext(ctx, "cp", "--sparse=always", from, to).CombinedOutput(); err != nil {
		return fmt.Errorf("cp: %w: %s", err, out)
	}
	return nil
}

// sums are the SHA-256 of the running disks, read behind vSphere's back.
func (g *guest) sums(l *lab.Lab) ([]sum, error) {
	var out []sum
	for _, d := range g.disks {
		s, err := sumOf(func(w io.Writer) error { return copyDisk(w, l.Machine("web"), d) })
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}

// copyDisk writes all bytes of a machine's disk to w.
func copyDisk(w io.Writer, m *lab.VM, d disk) error {
	buf := make([]byte, 4<<20)
	for off := int64(0); off < d.size; off += int64(len(buf)) {
		p := buf[:min(int64(len(buf)), d.size-off)]
		if err := m.Read(d.key, p, off); err != nil {
			return err
		}
		if _, err := w.Write(p); err != nil {
			return err
		}
	}
	return nil
}

func sumOf(read func(io.Writer) error) (s sum, err error) {
	h := sha256.New()
	if err := read(h); err != nil {
		return s, err
	}
	h.Sum(s[:0])
	return s, nil
}

// compare checks the disks of another machine against sums.
func (g *guest) compare(l *lab.Lab, machine string, want []sum) error {
	for i, d := range g.disks {
		got, err := sumOf(func(w io.Writer) error { return copyDisk(w, l.Machine(machine), d) })
		if err != nil {
			return err
		}
		if err := equal(machine+" "+d.name, got, want[i]); err != nil {
			return err
		}
	}
	return nil
}

// compareFiles checks the raw files among names against sums.
func (g *guest) compareFiles(names []string, want []sum) error {
	found := map[string]sum{}
	for _, name := range names {
		if filepath.Ext(name) != ".raw" {
			continue
		}
		s, err := sumOf(func(w io.Writer) error {
			f, err := os.Open(name)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = io.Copy(w, f)
			return err
		})
		if err != nil {
			return err
		}
		found[filepath.Base(name)] = s
	}
	var err error
	for i, d := range g.disks {
		err = errors.Join(err, equal(d.name+".raw", found[d.name+".raw"], want[i]))
	}
	return err
}

func equal(what string, got, want sum) error {
	if got != want {
		return fmt.Errorf("%s is not what it was: SHA-256 %x, want %x", what, got, want)
	}
	fmt.Printf("    %-28s %x… equal\n", what, got[:12])
	return nil
}
