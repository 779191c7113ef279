package vsphere_test

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/vmkeep/vmkeep/vsphere"
	"github.com/vmkeep/vmkeep/vsphere/lab"
)

// A machine's disks stand still while fn runs, and nothing stays behind.
func ExampleVM_WithSnapshot() {
	ctx := context.Background()
	l, err := lab.Start(ctx, lab.Options{Machines: []lab.Machine{{Name: "web", Tracking: true, Disks: []lab.Disk{{Size: 1 << 20}}}}})
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()
	dir, err := os.MkdirTemp("", "journal")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	c, err := vsphere.Dial(ctx, vsphere.Config{URL: l.URL().String(), Thumbprint: l.Thumbprint()})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	journal, err := vsphere.OpenJournal(dir)
	if err != nil {
		log.Fatal(err)
	}
	op, err := journal.Begin("", "example")
	if err != nil {
		log.Fatal(err)
	}
	vm, err := c.Find(ctx, "web")
	if err != nil {
		log.Fatal(err)
	}
	report, err := vm.WithSnapshot(ctx, vsphere.SnapshotOptions{Operation: op}, func(ctx context.Context, s *vsphere.Snapshot) error {
		for _, d := range s.Disks() {
			areas, err := s.Allocated(ctx, d)
			if err != nil {
				return err
			}
			fmt.Println(d.Name, d.Path, d.Capacity, areas.Bytes())
		}
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(report.Level, report.Removed, op.End())
	// Output:
	// scsi0-0 [ds1] web/web.vmdk 1048576 0
	// fs true <nil>
}
