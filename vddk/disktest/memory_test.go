package disktest_test

import (
	"testing"

	"github.com/vmkeep/vmkeep/vddk"
	"github.com/vmkeep/vmkeep/vddk/disktest"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestMemory(t *testing.T) {
	m := &disktest.Memory{}
	disktest.Run(t, disktest.Harness{
		Transport: m,
		New: func(t *testing.T, size int64) disktest.Target {
			path := "[memory] " + t.Name()
			i := m.Add(path, size)
			return disktest.Target{Spec: vddk.Spec{Path: path}, Raw: i, Cut: i.Cut}
		},
		Unit: 64 << 10,
		Lacks: map[disktest.Ability]string{
			disktest.Stalling: "it answers in the call itself",
			disktest.Lending:  "its bytes are this process's own: what is saved elsewhere is the copy out of another's",
		},
	})
}
