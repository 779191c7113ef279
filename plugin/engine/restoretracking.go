package engine

import (
	"context"
	"errors"
	"slices"

	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/vsphere"
)

// tracking is what change tracking says of a disk since the point.
type tracking struct {
	changed extent.Set
	usable  bool
	reason  string // why it is used or not
}

// Why a rollback compares by content, beyond the reasons of a backup.
const (
	reasonInterrupted    = "an earlier restore was interrupted"
	reasonAnotherMachine = "the point is of another machine"
	reasonVerify         = "verification was asked for"
	reasonNotFrozen      = "the snapshot does not hold the disk"
)

// findChanges tells for each disk, by the name it has in the point, whether change tracking knows what to write back.
// A rollback believes it under the same rules as a backup, and not at all where the result is to be verified anyway.
func (j *restoreJob) findChanges(ctx context.Context, t *machineTarget, pairs []diskPair) (map[string]tracking, error) {
	saved := j.point.manifest.Machine
	switch {
	case extraConfig(t.state.ConfigInfo, restoringKey) != "":
		return distrust(pairs, reasonInterrupted), nil
	case j.req.Verify:
		return distrust(pairs, reasonVerify), nil
	case saved.InstanceUUID != t.state.InstanceUUID || saved.VCenter != t.vc.About().InstanceUUID:
		return distrust(pairs, reasonAnotherMachine), nil
	}
	machine := machineFacts{restored: restoredMark(t.state.ConfigInfo), snapshots: foreignSnapshots(t.state)}
	note, err := j.op.conn.audit(saved.InstanceUUID)
	if err != nil {
		return nil, err
	}
	machine.suspects = note.suspects(j.point.manifest.begun())
	if machine.reverts, err = revertsSince(ctx, t.vm, j.point.manifest); err != nil {
		return nil, err
	}
	return j.askTracking(ctx, t, machine, pairs)
}

// distrust is the answer where change tracking is not even asked.
func distrust(pairs []diskPair, reason string) map[string]tracking {
	out := map[string]tracking{}
	for _, p := range pairs {
		out[p.saved.Name] = tracking{reason: reason}
	}
	return out
}

// askTracking takes a snapshot of the machine, which is off, to ask what changed since the point, and removes it.
func (j *restoreJob) askTracking(ctx context.Context, t *machineTarget, machine machineFacts, pairs []diskPair) (map[string]tracking, error) {
	out := distrust(pairs, reasonNotFrozen)
	report, err := t.vm.WithSnapshot(ctx, vsphere.SnapshotOptions{Operation: t.op, Phase: j.scope.vspherePhase,
		Quiesce: vsphere.Quiesce{Best: vsphere.LevelCrash, Worst: vsphere.LevelCrash}}, func(ctx context.Context, s *vsphere.Snapshot) error {
		for _, p := range pairs {
			i := slices.IndexFunc(s.Disks(), func(x vsphere.Disk) bool { return x.Key == p.disk.Key })
			if i < 0 {
				continue
			}
			d := s.Disks()[i]
			v := judge(diskFacts{name: d.Name, uuid: d.UUID, capacity: d.Capacity, changeID: string(d.ChangeID), chain: chainOf(d)}, machine, j.point.manifest)
			if v.since != "" && v.old.Name != p.saved.Name {
				v = verdict{reason: reasonNewDisk} // these changes are another disk's
			}
			if v.since == "" {
				out[p.saved.Name] = tracking{reason: v.reason}
				continue
			}
			changed, err := s.Changed(ctx, d, vsphere.ChangeID(v.since))
			switch {
			case err == nil:
				out[p.saved.Name] = tracking{changed: changed, usable: true, reason: v.reason}
			case errors.Is(err, vsphere.ErrChangeTracking):
				out[p.saved.Name] = tracking{reason: err.Error()}
			default:
				return err
			}
		}
		return nil
	})
	for _, text := range report.Warnings {
		j.note(warning(plugin.CodeLeftover, "after the snapshot", text, "look at the machine's snapshots in vSphere"))
	}
	return out, err
}
