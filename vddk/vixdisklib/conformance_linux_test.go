package vixdisklib_test

import (
	"testing"

	"github.com/vmkeep/vmkeep/vddk"
	"github.com/vmkeep/vmkeep/vddk/disktest"
	"github.com/vmkeep/vmkeep/vddk/vixdisklib/vixtest"
)

func TestConformance(t *testing.T) {
	for _, v := range vixtest.Variants() {
		t.Run(v.String(), func(t *testing.T) {
			k := newKit(t, v)
			k.lib.Control("affinity=1")
			h := disktest.Harness{
				Transport: k,
				New: func(t *testing.T, size int64) disktest.Target {
					path := "[ds1] " + t.Name() + "/disk.vmdk"
					return disktest.Target{
						Spec: vddk.Spec{VM: "vm-7", Key: 2000, Path: path, Capacity: size},
						Raw:  k.lib.Add(path, size),
						Cut:  k.killHelpers,
						Stall: func() func() {
							k.lib.Control("fault Read hold")
							return func() { k.lib.Control() }
						},
					}
				},
			}
			if v.Allocation() {
				h.Unit = 64 << 10
			} else {
				h.Lacks = map[disktest.Ability]string{disktest.Allocation: "the library has QueryAllocatedBlocks from 6.7 on"}
			}
			disktest.Run(t, h)
			for _, e := range k.lib.Events() {
				if e.Call == "broken" {
					t.Errorf("the library's rule was broken: %s", e.Detail)
				}
			}
		})
	}
}
