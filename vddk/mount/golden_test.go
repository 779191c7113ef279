package mount_test

import (
	"bytes"
	"errors"
	iofs "io/fs"
	"testing"
	"testing/fstest"

	"github.com/vmkeep/vmkeep/vddk/mount"
	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
	"github.com/vmkeep/vmkeep/vddk/mount/mounttest"
)

func openImage(t testing.TB, image []byte) *guestfs.FS {
	t.Helper()
	vs := mount.Open([]mount.Disk{{Name: "disk", R: bytes.NewReader(image), Size: int64(len(image))}}).Volumes()
	if len(vs) != 1 {
		t.Fatalf("%d volumes", len(vs))
	}
	f, err := vs[0].Open()
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// The golden images hold the readers to the kernel where there is neither root nor mkfs.
func TestGoldenImages(t *testing.T) {
	for _, g := range mounttest.Goldens() {
		t.Run(g.Name, func(t *testing.T) {
			t.Parallel()
			image, truth, err := g.Load("testdata")
			if err != nil {
				t.Fatal(err)
			}
			f := openImage(t, image)
			got, err := mounttest.Read(f)
			if err != nil {
				t.Error(err)
			}
			if len(truth) < 150 {
				t.Errorf("only %d entries", len(truth))
			}
			for _, d := range mounttest.Diff(truth, got) {
				t.Error(d)
			}
		})
	}
}

func TestAsAnOrdinaryFileSystem(t *testing.T) {
	for _, g := range mounttest.Goldens() {
		if g.Name != "ext4-journal" && g.Name != "xfs-1k" {
			continue
		}
		t.Run(g.Name, func(t *testing.T) {
			t.Parallel()
			image, _, err := g.Load("testdata")
			if err != nil {
				t.Fatal(err)
			}
			fsys := openImage(t, image).IOFS()
			for dir, name := range map[string]string{"sizes": "b0000100", "names": "invalid-%FF%FE-utf8", "meta": "m4755", "bigdir": "entry_with_a_rather_long_name_000001.txt"} {
				sub, err := iofs.Sub(fsys, dir)
				if err != nil {
					t.Fatal(err)
				}
				if err := fstest.TestFS(sub, name); err != nil {
					t.Errorf("%s: %v", dir, err)
				}
			}
			if l, err := iofs.ReadLink(fsys, "links/sym0010"); err != nil || l != "target.txt" {
				t.Errorf("link to %q, %v", l, err)
			}
			for name, want := range map[string]error{
				"links/sym0010": guestfs.ErrNotRegular, "special/fifo": guestfs.ErrNotRegular, "sizes/none": iofs.ErrNotExist, "../x": iofs.ErrInvalid,
				"sizes/b0000100/x": iofs.ErrNotExist,
			} {
				if _, err := fsys.Open(name); !errors.Is(err, want) {
					t.Errorf("%s: %v, want %v", name, err, want)
				}
			}
		})
	}
}
