package main

import (
	"fmt"
	"slices"

	"github.com/vmware/govmomi/vim25/types"

	"github.com/vmkeep/vmkeep/vddk/nfc/nfctest"
	"github.com/vmkeep/vmkeep/vsphere/lab"
)

// foreign is a snapshot of somebody else.
type foreign = types.ManagedObjectReference

// deed is something that happens to a machine between two backups. vSphere may refuse it.
type deed func(s *soak, g *guest) error

// deeds are what administrators, other tools and fate do.
func deeds() []deed {
	return []deed{
		addDisk, removeDisk, growDisk, rename, migrate, moveStorage, powerCut, togglePower,
		takeSnapshot, takeSnapshot, revert, revert, removeSnapshot,
	}
}

// change lets a guest write, or not, and something happen to its machine, or not.
func (s *soak) change(g *guest) error {
	all := deeds()
	for range s.rng.IntN(4) {
		if s.rng.IntN(2) == 0 {
			if err := g.write(1 + s.rng.IntN(4)); err != nil {
				return err
			}
		}
		if s.rng.IntN(2) == 0 {
			continue
		}
		s.stats.deeds++
		if err := all[s.rng.IntN(len(all))](s, g); err != nil {
			s.stats.refused++
		}
	}
	if s.rng.IntN(3) == 0 {
		return nil
	}
	return g.write(1 + s.rng.IntN(6))
}

// errRefused is a deed that makes no sense for the machine as it is.
var errRefused = fmt.Errorf("not for this machine")

func addDisk(s *soak, g *guest) error {
	if d, err := g.Disks(); err != nil || len(d) >= 3 {
		return errRefused
	}
	_, err := g.AddDisk(lab.Disk{Size: s.diskSize / 2})
	return err
}

func removeDisk(_ *soak, g *guest) error {
	d, err := g.Disks()
	if err != nil || len(d) < 2 || len(g.snapshots) > 0 {
		return errRefused
	}
	return g.RemoveDisk(d[g.rng.IntN(len(d))].Key)
}

func growDisk(s *soak, g *guest) error {
	d, err := g.Disks()
	if err != nil || len(d) == 0 || d[0].Size > 3*s.diskSize {
		return errRefused
	}
	return g.Grow(d[0].Key, d[0].Size+1<<20)
}

func rename(_ *soak, g *guest) error {
	next := g.name + "x"
	if len(g.name) > 7 {
		next = g.name[:5]
	}
	if err := g.Reconfigure(types.VirtualMachineConfigSpec{Name: next}); err != nil {
		return err
	}
	g.name = next
	return nil
}

func migrate(_ *soak, g *guest) error {
	hosts := []string{"esx1", "esx2", "esx3", "esx4", "esx5"}
	return g.Migrate(hosts[g.rng.IntN(len(hosts))], "")
}

func moveStorage(_ *soak, g *guest) error { return g.Migrate("", fmt.Sprintf("ds%d", 1+g.rng.IntN(3))) }

func powerCut(_ *soak, g *guest) error { return g.PowerCut() }

func togglePower(_ *soak, g *guest) error {
	if err := g.PowerOff(); err != nil {
		return g.PowerOn()
	}
	if g.rng.IntN(2) == 0 {
		return g.PowerOn()
	}
	return nil
}

func takeSnapshot(_ *soak, g *guest) error {
	if len(g.snapshots) >= 2 {
		return errRefused
	}
	made, err := g.Snapshot("foreign")
	if err == nil {
		g.snapshots = append(g.snapshots, made)
	}
	return err
}

func revert(_ *soak, g *guest) error {
	if len(g.snapshots) == 0 {
		return errRefused
	}
	err := g.Revert(g.snapshots[g.rng.IntN(len(g.snapshots))])
	if err == nil { // the name goes back, too
		return g.Reconfigure(types.VirtualMachineConfigSpec{Name: g.name})
	}
	return err
}

func removeSnapshot(_ *soak, g *guest) error {
	if len(g.snapshots) == 0 {
		return errRefused
	}
	i := g.rng.IntN(len(g.snapshots))
	err := g.RemoveSnapshot(g.snapshots[i])
	if err == nil {
		g.snapshots = slices.Delete(g.snapshots, i, i+1)
	}
	return err
}

// prepareFaults lets things go wrong in the backup to come.
func (s *soak) prepareFaults() error {
	effects := []lab.Effect{lab.Reset(), lab.LoseAnswer(), lab.Truncate(), lab.HTTPStatus(502), lab.HTTPStatus(503),
		lab.Fail(&types.NotAuthenticated{}), lab.Hook(s.lab.ExpireSessions)}
	for range s.rng.IntN(6) {
		s.lab.Inject(lab.Fault{Nth: 1 + s.rng.IntN(30*s.machines), Do: effects[s.rng.IntN(len(effects))]})
		s.stats.faults++
	}
	if s.plugin != "" && s.rng.IntN(4) == 0 {
		s.lab.Inject(lab.Fault{Nth: 1 + s.rng.IntN(30*s.machines), Do: lab.Hook(s.kill)})
		s.stats.faults++
	}
	if s.rng.IntN(3) == 0 {
		s.lab.NFC().SetScenario(nfctest.Scenario{DropAfter: s.rng.Int64N(4 << 20), DropCount: 1 + s.rng.IntN(2)})
		s.stats.faults++
	}
	kinds := []lab.MachineFaults{
		{Quiesce: &types.ApplicationQuiesceFault{}}, {LeaveDelta: 1}, {Query: lab.FailQuery("vim.hostd.vmsvc.cbt.cannotGetChanges")},
		{Snapshot: &types.SnapshotFault{}}, {TaskInProgressInTask: true}, {Query: lab.ShortLength(64 << 10)},
	}
	for _, g := range s.guests {
		if s.rng.IntN(5) > 0 {
			continue
		}
		s.stats.faults++
		if err := g.SetFaults(kinds[s.rng.IntN(len(kinds))]); err != nil {
			return err
		}
	}
	return nil
}

// mendFaults ends all that was prepared.
func (s *soak) mendFaults() error {
	s.lab.ClearFaults()
	s.lab.NFC().SetScenario(nfctest.Scenario{})
	for _, g := range s.guests {
		if err := g.SetFaults(lab.MachineFaults{}); err != nil {
			return err
		}
	}
	return nil
}
