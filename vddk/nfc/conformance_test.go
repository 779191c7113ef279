package nfc_test

import (
	"testing"

	"github.com/vmkeep/vmkeep/vddk"
	"github.com/vmkeep/vmkeep/vddk/disktest"
	"github.com/vmkeep/vmkeep/vddk/nfc"
	"github.com/vmkeep/vmkeep/vddk/nfc/nfctest"
)

func TestConformance(t *testing.T) {
	for _, m := range modes {
		for c := nfc.Auto; c <= nfc.Skipz; c++ {
			t.Run(string(m)+"/"+c.String(), func(t *testing.T) {
				k := start(t, m, 1<<20)
				// Small requests, so that the suite's sizes are split.
				k.nfc.Options.Compression, k.nfc.Options.MaxRequest = c, 96<<10
				disktest.Run(t, disktest.Harness{
					Transport: k.nfc,
					New: func(t *testing.T, size int64) disktest.Target {
						path := "[ds1] " + t.Name() + "/disk.vmdk"
						return disktest.Target{
							Spec: vddk.Spec{VM: "vm-7", Key: 2000, Path: path, Capacity: size},
							Raw:  k.store.Add(path, size),
							Cut:  k.CutAll,
							// Held reads are answered at last when the disk is closed.
							Stall: func() func() {
								k.SetScenario(nfctest.Scenario{Hold: 1 << 30})
								return func() { k.SetScenario(nfctest.Scenario{}) }
							},
						}
					},
					Reconnects: true,
					Unit:       64 << 10,
					Lacks: map[disktest.Ability]string{
						disktest.Flushing: "NFC has no request for it: writes are durable once the file is closed",
						disktest.Lending:  "bytes are read from the socket into the caller's memory: there is no copy to save",
					},
				})
				k.quiet()
				if n := k.Stats().OpenFiles; n != 0 {
					t.Errorf("%d files are still open", n)
				}
			})
		}
	}
}
