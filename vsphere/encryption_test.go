package vsphere

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/vmkeep/vmkeep/vsphere/lab"
)

func TestEncryptionIsSeen(t *testing.T) {
	w := start(t, lab.Options{Machines: []lab.Machine{
		{Name: "vault", Firmware: "efi", KeyProvider: "kms", VTPM: true, Disks: []lab.Disk{{Size: mib, Encrypted: true}, {Size: mib}}},
		{Name: "open", Disks: []lab.Disk{{Size: mib}}}}})
	for name, want := range map[string][]bool{"vault": {true, true, true, false}, "open": {false, false, false}} {
		v := w.find(name)
		listed := v.Machine()
		state, err := v.State(w.ctx)
		must(t, err)
		for _, m := range []Machine{listed, state.Machine} {
			got := []bool{m.Encrypted, m.VTPM}
			for _, d := range m.Disks {
				got = append(got, d.Encrypted)
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s: encrypted, TPM, disks are %v, want %v", name, got, want)
			}
		}
		// The frozen disks of a snapshot, and what lies below another, are as encrypted as the disks.
		for range 2 {
			_, err := v.WithSnapshot(w.ctx, SnapshotOptions{Operation: w.begin()}, func(_ context.Context, s *Snapshot) error {
				for i, d := range s.State().Disks {
					if d.Encrypted != want[2+i] {
						t.Errorf("%s: disk %s of the snapshot is encrypted: %v", name, d.Name, d.Encrypted)
					}
				}
				return nil
			})
			must(t, err)
			_, err = w.lab.Machine(name).Snapshot("foreign")
			must(t, err)
		}
	}
}

// vSphere takes an encrypted disk only into a machine that is encrypted: a proxy in clear cannot hot-add it.
func TestEncryptedDiskIsNotAttachedToAMachineInClear(t *testing.T) {
	w := start(t, lab.Options{Machines: []lab.Machine{
		{Name: "vault", KeyProvider: "kms", Disks: []lab.Disk{{Size: mib, Encrypted: true}}},
		{Name: "proxy", Disks: []lab.Disk{{Size: mib}}},
		{Name: "safe", KeyProvider: "kms", Disks: []lab.Disk{{Size: mib}}}}})
	_, err := w.find("vault").WithSnapshot(w.ctx, SnapshotOptions{Operation: w.begin()}, func(ctx context.Context, s *Snapshot) error {
		path := s.State().Disks[0].Path
		for proxy, takes := range map[string]bool{"proxy": false, "safe": true} {
			before, called := w.paths(proxy), false
			err := w.find(proxy).WithAttached(ctx, w.begin(), path, func(context.Context, Disk) error { called = true; return nil })
			var e *Error
			switch {
			case called != takes || (err == nil) != takes:
				t.Errorf("%s: attached %v, %v", proxy, called, err)
			case !takes && (!errors.As(err, &e) || e.Kind != ErrUnsuitable || e.Remedy == ""):
				t.Errorf("%s: %v", proxy, err)
			}
			if now := w.paths(proxy); !slices.Equal(now, before) {
				t.Errorf("%s has %v, had %v", proxy, now, before)
			}
		}
		return nil
	})
	must(t, err)
}
