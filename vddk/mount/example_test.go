package mount_test

import (
	"bytes"
	"fmt"
	"io"
	"log"

	"github.com/vmkeep/vmkeep/vddk/mount"
	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
	"github.com/vmkeep/vmkeep/vddk/mount/mounttest"
)

// Open the disks of a machine, list a directory, read a file, and see where it lies on the disks.
func ExampleOpen() {
	var image []byte
	for _, g := range mounttest.Goldens() {
		if g.Name == "xfs-1k" {
			image, _, _ = g.Load("testdata")
		}
	}
	m := mount.Open([]mount.Disk{{Name: "scsi0-0", R: bytes.NewReader(image), Size: int64(len(image))}})
	for _, v := range m.Volumes() {
		fmt.Println(v.Name, v.Type)
		f, err := v.Open()
		if err != nil {
			log.Fatal(err)
		}
		dir, err := f.Walk("/links")
		if err != nil {
			log.Fatal(err)
		}
		for e, err := range f.ReadDir(dir, 0) {
			if err != nil {
				log.Fatal(err)
			}
			if e.Name != "target.txt" {
				continue
			}
			a, err := f.Stat(e.ID)
			if err != nil {
				log.Fatal(err)
			}
			file, err := f.Open(e.ID, "")
			if err != nil {
				log.Fatal(err)
			}
			b, err := io.ReadAll(guestfs.NewReader(file))
			if err != nil {
				log.Fatal(err)
			}
			runs, err := file.Runs()
			if err != nil {
				log.Fatal(err)
			}
			where, err := mount.Located(f, runs)
			if err != nil {
				log.Fatal(err)
			}
			fmt.Printf("%s: %q, %d links, %d bytes on disk 0\n", e.Name, b, a.Links, where[0].Bytes())
		}
	}
	// Output:
	// scsi0-0 xfs
	// target.txt: "target content", 21 links, 14 bytes on disk 0
}
