package mount_test

import (
	"bytes"
	"errors"
	"io"
	iofs "io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vmkeep/vmkeep/vddk/mount"
	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
	"github.com/vmkeep/vmkeep/vddk/mount/mounttest"
)

func golden(t testing.TB, name string) []byte {
	t.Helper()
	for _, g := range mounttest.Goldens() {
		if g.Name == name {
			image, _, err := g.Load("testdata")
			if err != nil {
				t.Fatal(err)
			}
			return image
		}
	}
	t.Fatalf("no golden image %s", name)
	return nil
}

// A listing can be continued from any entry, also in a file system opened anew.
func TestListingsContinue(t *testing.T) {
	for _, g := range mounttest.Goldens() {
		image := golden(t, g.Name)
		f := openImage(t, image)
		for _, dir := range []string{"/", "/bigdir", "/sizes", "/links", "/emptydir", "/many/d00"} {
			id, err := f.Walk(dir)
			if err != nil {
				t.Fatal(err)
			}
			var whole []guestfs.Entry
			for e, err := range f.ReadDir(id, 0) {
				if err != nil {
					t.Fatal(err)
				}
				whole = append(whole, e)
			}
			again := openImage(t, image)
			for k := range whole {
				if k%7 != 0 && k < len(whole)-2 {
					continue
				}
				var rest []guestfs.Entry
				for e, err := range again.ReadDir(id, whole[k].Next) {
					if err != nil {
						t.Fatal(err)
					}
					rest = append(rest, e)
				}
				if !slices.Equal(rest, whole[k+1:]) {
					t.Errorf("%s %s: after entry %d of %d come %d entries", g.Name, dir, k, len(whole), len(rest))
				}
			}
		}
	}
}

// Many readers of one file system see what one sees.
func TestConcurrentReaders(t *testing.T) {
	for _, name := range []string{"ext4-journal", "xfs-log"} {
		f := openImage(t, golden(t, name))
		want, err := mounttest.Read(f)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				got, err := mounttest.Read(f)
				if err != nil {
					t.Error(err)
				}
				for _, d := range mounttest.Diff(want, got) {
					t.Error(d)
				}
				if _, err := f.Walk("/bigdir/entry_with_a_rather_long_name_000001.txt"); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
}

// counting counts the reads of a disk.
type counting struct {
	io.ReaderAt
	reads, bytes atomic.Int64
}

func (c *counting) ReadAt(p []byte, off int64) (int, error) {
	c.reads.Add(1)
	c.bytes.Add(int64(len(p)))
	return c.ReaderAt.ReadAt(p, off)
}

// Listing reads metadata only and every page once; a tree of small files is read in windows. The image has 24 and 48
// MiB: a reader that asked for every block would need thousands of reads.
func TestReadsAreFew(t *testing.T) {
	for name, limit := range map[string][2]int64{"ext4-casefold": {60, 140}, "xfs-1k": {80, 200}} {
		image := golden(t, name)
		c := &counting{ReaderAt: bytes.NewReader(image)}
		m := mount.Open([]mount.Disk{{Name: "disk", R: c, Size: int64(len(image))}})
		f, err := m.Volumes()[0].Open()
		if err != nil {
			t.Fatal(err)
		}
		mounttest.Names(f)
		list := c.reads.Load()
		if _, err := mounttest.Read(f); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %d reads to open and list, %d to read all, %d KiB in all", name, list, c.reads.Load()-list, c.bytes.Load()>>10)
		if list > limit[0] || c.reads.Load() > limit[1] {
			t.Errorf("%s: %d reads to open and list, %d in all", name, list, c.reads.Load())
		}
	}
}

func TestEncryptedFilesAreNamed(t *testing.T) {
	mounttest.NeedTools(t, "debugfs")
	p := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(p, golden(t, "ext4-casefold"), 0o600); err != nil {
		t.Fatal(err)
	}
	// fscrypt marks inodes; the keys are in the guest's kernel.
	for path, flags := range map[string]string{"/names": "0x80800", "/sizes/b0010000": "", "/sizes/b0008192": "0x80800", "/links/sym0010": "0x800"} {
		if flags == "" {
			continue
		}
		if out, err := exec.Command("debugfs", "-w", "-R", "set_inode_field "+path+" flags "+flags, p).CombinedOutput(); err != nil {
			t.Fatalf("debugfs: %v\n%s", err, out)
		}
	}
	f := openOnly(t, p)
	id := func(path string) guestfs.ID {
		id, err := f.Walk(path)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	if _, err := f.Open(id("/sizes/b0008192"), ""); !errors.Is(err, guestfs.ErrEncrypted) {
		t.Errorf("file: %v", err)
	}
	if _, err := f.Readlink(id("/links/sym0010")); !errors.Is(err, guestfs.ErrEncrypted) {
		t.Errorf("link: %v", err)
	}
	if _, err := f.Lookup(id("/names"), "plain"); !errors.Is(err, guestfs.ErrEncrypted) {
		t.Errorf("directory: %v", err)
	}
	if a, err := f.Stat(id("/sizes/b0008192")); err != nil || a.Size != 8192 {
		t.Errorf("its attributes stay readable: %+v, %v", a, err)
	}
}

// Fast commits describe changes instead of holding blocks. They are not replayed, and that is said.
func TestFastCommitsAreUncertain(t *testing.T) {
	mounttest.Need(t, "mke2fs", "mount")
	path, truth := mounttest.Image{
		Size: 64 * mib, Mkfs: ext("-t ext4 -O fast_commit"), Crash: mounttest.AsItLies,
		Fill: func(dir string) error {
			if err := mounttest.Grow(dir, mounttest.Tree{Files: 100, Names: 100, Minor: true}); err != nil {
				return err
			}
			d, err := os.Open(dir)
			if err != nil {
				return err
			}
			defer d.Close()
			if err := errors.Join(d.Sync(), mounttest.Sync(dir)); err != nil {
				return err
			}
			f, err := os.Create(filepath.Join(dir, "fast"))
			if err != nil {
				return err
			}
			defer f.Close()
			if _, err := f.Write(bytes.Repeat([]byte("fast"), 5000)); err != nil {
				return err
			}
			return f.Sync()
		},
	}.Make(t, t.TempDir())
	f := openOnly(t, path)
	got, err := mounttest.Read(f)
	if err != nil {
		t.Fatal(err)
	}
	diff := mounttest.Diff(truth, got)
	uncertain := slices.ContainsFunc(f.Info().Notes, func(n guestfs.Note) bool { return n.Uncertain && strings.Contains(n.Text, "fast commits") })
	if !uncertain {
		t.Errorf("notes %v do not name fast commits; different from the kernel: %v", f.Info().Notes, diff)
	}
	for _, d := range diff {
		if !strings.HasPrefix(d, `"fast"`) && !strings.HasPrefix(d, `""`) {
			t.Errorf("more than the last file differs: %s", d)
		}
	}
}

// Containers and leftovers are named, with what to do.
func TestWhatIsOnlyNamed(t *testing.T) {
	mounttest.NeedTools(t, "mkswap")
	blank := func() []byte { return bytes.Repeat([]byte{0}, 4*mib) }
	with := func(parts ...any) []byte {
		b := blank()
		for k := 0; k < len(parts); k += 2 {
			copy(b[parts[k].(int):], parts[k+1].(string))
		}
		return b
	}
	swap := filepath.Join(t.TempDir(), "swap")
	if err := os.WriteFile(swap, blank(), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkswap", "-L", "swapped", "-U", rootUUID, swap).CombinedOutput(); err != nil {
		t.Fatalf("mkswap: %v\n%s", err, out)
	}
	swapImage, err := os.ReadFile(swap)
	if err != nil {
		t.Fatal(err)
	}
	ext2 := golden(t, "ext2")
	// RAID 1 with its superblock at the end: the file system stays visible, and must not be taken.
	raid := bytes.Clone(ext2)
	at := (len(raid)/512 - 16) &^ 7 * 512
	copy(raid[at:], "\xfc\x4e\x2b\xa9\x01\x00\x00\x00")
	clear(raid[at+144 : at+152])
	raid[at+144], raid[at+145], raid[at+146] = byte(at/512), byte(at/512>>8), byte(at/512>>16)
	for _, c := range []struct {
		typ, label, uuid, advice string
		image                    []byte
	}{
		{"crypto_LUKS", "", "11111111-2222-4333-8444-555555555555", "key", with(0, "LUKS\xba\xbe\x00\x01", 168, bootUUID)},
		{"crypto_LUKS", "labelled", "11111111-2222-4333-8444-555555555555", "key", with(0, "LUKS\xba\xbe\x00\x02", 24, "labelled", 168, bootUUID)},
		{"BitLocker", "", "", "key", with(3, "-FVE-FS-", 510, "\x55\xaa")},
		{"ReFS", "", "0000000000000000", "restore", with(3, "ReFS\x00\x00\x00\x00")},
		{"linux_raid_member", "", "00000000-0000-0000-0000-000000000000", "RAID", raid},
		{"swap", "swapped", rootUUID, "memory", swapImage},
		{"squashfs", "", "", "restore", with(0, "hsqs")},
	} {
		m := mount.Open([]mount.Disk{{Name: "disk", R: bytes.NewReader(c.image), Size: int64(len(c.image))}})
		if len(m.Volumes()) != 1 {
			t.Errorf("%s: %d volumes", c.typ, len(m.Volumes()))
			continue
		}
		v := m.Volumes()[0]
		if v.Type != c.typ || v.Label != c.label || v.UUID != c.uuid || v.Readable() {
			t.Errorf("want %s %q %s, have %+v", c.typ, c.label, c.uuid, v.Ident)
		}
		if _, err := v.Open(); !errors.Is(err, guestfs.ErrUnsupported) || !strings.Contains(err.Error(), c.advice) {
			t.Errorf("%s: %v", c.typ, err)
		}
	}
	if m := mount.Open([]mount.Disk{{Name: "disk", R: bytes.NewReader(blank()), Size: 4 * mib}}); len(m.Volumes()) != 0 || len(m.Problems()) != 0 {
		t.Errorf("a blank disk: %v, %v", m.Volumes(), m.Problems())
	}
	if m := mount.Open([]mount.Disk{{Name: "disk", R: failing{}, Size: 4 * mib}}); len(m.Volumes()) != 0 || len(m.Problems()) != 1 {
		t.Errorf("a disk that cannot be read: %v, %v", m.Volumes(), m.Problems())
	}
}

type failing struct{}

func (failing) ReadAt([]byte, int64) (int, error) { return 0, iofs.ErrPermission }

// An MBR does not say whether it counts sectors of 512 or 4096 bytes: what the partitions hold does.
func TestMBROfADiskWithSectorsOf4KiB(t *testing.T) {
	fs := golden(t, "ext2")
	for _, sector := range []int{512, 4096} {
		disk := make([]byte, 12*mib)
		copy(disk[446:], []byte{0, 0, 0, 0, 0x83, 0, 0, 0})
		disk[446+8], disk[446+9] = byte(mib/sector), byte(mib/sector>>8)
		n := len(fs) / sector
		disk[446+12], disk[446+13] = byte(n), byte(n>>8)
		disk[510], disk[511] = 0x55, 0xaa
		copy(disk[mib:], fs)
		m := mount.Open([]mount.Disk{{Name: "disk", R: bytes.NewReader(disk), Size: int64(len(disk))}})
		v, ok := m.Volume("disk" + "p1")
		if !ok || v.Type != "ext2" || v.Part.Off != mib {
			t.Errorf("sectors of %d bytes: %+v, %v", sector, m.Volumes(), m.Problems())
			continue
		}
		f, err := v.Open()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Walk("/sizes/b0004096"); err != nil {
			t.Error(err)
		}
	}
}
