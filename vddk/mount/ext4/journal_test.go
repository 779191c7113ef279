package ext4

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/vmkeep/vmkeep/vddk/mount/device"
	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
	"github.com/vmkeep/vmkeep/vddk/mount/mounttest"
)

func load(t testing.TB, name string) []byte {
	t.Helper()
	for _, g := range mounttest.Goldens() {
		if g.Name == name {
			image, _, err := g.Load("../testdata")
			if err != nil {
				t.Fatal(err)
			}
			return image
		}
	}
	t.Fatalf("no image %s", name)
	return nil
}

func openAll(t testing.TB, image []byte) (*guestfs.FS, error) {
	t.Helper()
	src := guestfs.NewSource(device.Disk(bytes.NewReader(image), 0, int64(len(image))))
	return guestfs.Open(Format(), []*guestfs.Source{src})
}

// journalOf opens the journal of an image without replaying it.
func journalOf(t testing.TB, image []byte) *log {
	t.Helper()
	d := &driver{src: guestfs.NewSource(device.Disk(bytes.NewReader(image), 0, int64(len(image))))}
	if err := d.readSuper(); err != nil {
		t.Fatal(err)
	}
	i, err := d.inode(guestfs.ID{File: uint64(d.journal)})
	if err != nil {
		t.Fatal(err)
	}
	f, err := d.content(i)
	if err != nil {
		t.Fatal(err)
	}
	l := &log{d: d, f: f}
	if l.runs, err = f.Runs(); err != nil {
		t.Fatal(err)
	}
	return l
}

// journalBlocks are the offsets on the volume of the journal's live blocks of a kind, in the order of the journal.
func journalBlocks(t testing.TB, image []byte, kind uint32) []int64 {
	t.Helper()
	l := journalOf(t, image)
	var out []int64
	var first uint32
	for n := uint32(0); int64(n)*l.d.bs < l.f.Size(); n++ {
		b, err := l.block(n)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			first = be.Uint32(b[24:])
			continue
		}
		if be.Uint32(b) == jbdMagic && be.Uint32(b[4:]) == kind && be.Uint32(b[8:]) >= first {
			at, err := l.place(n)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, at)
		}
	}
	if len(out) == 0 {
		t.Fatalf("no blocks of kind %d", kind)
	}
	return out
}

func uncertain(f *guestfs.FS) bool {
	return slices.ContainsFunc(f.Info().Notes, func(n guestfs.Note) bool { return n.Uncertain && strings.Contains(n.Text, "checksum") })
}

// A transaction whose commit or descriptor has a wrong checksum is not replayed, and that is said.
func TestDamagedTransactionsAreNotReplayed(t *testing.T) {
	image := load(t, "ext4-journal")
	f, err := openAll(t, image)
	if err != nil || uncertain(f) {
		t.Fatalf("undamaged: %v, %v", err, f.Info().Notes)
	}
	for _, kind := range []uint32{jbdCommit, jbdDescriptor} {
		for k, at := range journalBlocks(t, image, kind) {
			c := bytes.Clone(image)
			c[at+30] ^= 1
			f, err := openAll(t, c)
			if errors.Is(err, guestfs.ErrDamaged) { // a descriptor now names what cannot be
				continue
			}
			if err != nil || !uncertain(f) {
				t.Errorf("kind %d, block %d: %v, notes %v", kind, k, err, f.Info().Notes)
			}
		}
	}
}

// A copy of a block with a wrong checksum is an error for whoever reads it, and never data.
func TestDamagedCopiesAreNotData(t *testing.T) {
	image := load(t, "ext4-journal")
	failed := 0
	for _, at := range journalBlocks(t, image, jbdDescriptor) {
		c := bytes.Clone(image)
		for n := int64(1); n < 20; n++ { // the copies that follow a descriptor
			if be.Uint32(c[at+n*1024:]) == jbdMagic {
				break
			}
			c[at+n*1024+200] ^= 1
		}
		f, err := openAll(t, c)
		if err != nil {
			failed++
			continue
		}
		if _, err := mounttest.Read(f); err != nil {
			if !strings.Contains(err.Error(), "checksum") {
				t.Errorf("read: %v", err)
			}
			failed++
		}
	}
	if failed == 0 {
		t.Error("no damage was noticed")
	}
}

// Checksums of the first kind (CRC-32, most significant bit first): the check value of CRC-32/MPEG-2.
func TestChecksumOfTheFirstKind(t *testing.T) {
	if got := crcBE(^uint32(0), []byte("123456789")); got != 0x0376e6e7 {
		t.Errorf("%#x", got)
	}
}

// A journal superblock that claims what cannot be is refused.
func TestJournalSuperblockIsChecked(t *testing.T) {
	image := load(t, "ext3-journal")
	at := journalOf(t, image).runs[0].Disk.Off
	for name, change := range map[string]func(b []byte){
		"magic":            func(b []byte) { b[0] = 0 },
		"block size":       func(b []byte) { be.PutUint32(b[12:], 4096) },
		"length":           func(b []byte) { be.PutUint32(b[16:], 1<<31) },
		"first":            func(b []byte) { be.PutUint32(b[20:], 0) },
		"start":            func(b []byte) { be.PutUint32(b[28:], 1<<30) },
		"unknown features": func(b []byte) { be.PutUint32(b[4:], 4); be.PutUint32(b[40:], 1<<20) },
	} {
		c := bytes.Clone(image)
		change(c[at : at+1024])
		if _, err := openAll(t, c); err == nil || !strings.Contains(err.Error(), "journal") || !strings.Contains(err.Error(), "restore") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
