package engine

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/repo"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// Keeping the repository: statistics, locks, keys, repair. None of it needs vSphere.

// keep runs fn on the opened repository, as an operation without events.
func (e *Engine) keep(ctx context.Context, kind string, fn func(context.Context, *repo.Repository) error) error {
	return e.operate(ctx, kind, nil, func(ctx context.Context, op *operation) error {
		return op.withRepository(ctx, func(r *repo.Repository) error { return fn(ctx, r) })
	})
}

// Stats implements [plugin.Service].
func (e *Engine) Stats(ctx context.Context) (plugin.Statistics, error) {
	var out plugin.Statistics
	err := e.keep(ctx, "stats", func(ctx context.Context, r *repo.Repository) error {
		s, err := r.Stats(ctx)
		if err != nil {
			return err
		}
		out = plugin.Statistics{Repository: repositoryOf(r), Packs: s.Packs, PackBytes: s.PackBytes, Unused: s.Unused, Total: usageOf(s.Total)}
		for _, u := range s.Hosts {
			out.Machines = append(out.Machines, usageOf(u))
		}
		return nil
	})
	return out, err
}

func usageOf(u repo.Usage) plugin.Usage {
	return plugin.Usage{Machine: u.Host, Points: u.Snapshots, Logical: u.Logical, Latest: u.Latest, Unique: u.Unique, Stored: u.Stored, Exclusive: u.Exclusive}
}

// Unlock implements [plugin.Service].
func (e *Engine) Unlock(ctx context.Context, req plugin.UnlockRequest) (plugin.UnlockReport, error) {
	var out plugin.UnlockReport
	err := e.keep(ctx, "unlock", func(ctx context.Context, r *repo.Repository) error {
		unlock := r.Unlock
		if req.All {
			unlock = r.UnlockAll
		}
		removed, err := unlock(ctx)
		out.Removed = locksOf(removed)
		if err != nil {
			return err
		}
		left, err := r.Locks(ctx)
		out.Remaining = locksOf(left)
		return err
	})
	return out, err
}

func locksOf(locks []repo.LockInfo) []plugin.Lock {
	var out []plugin.Lock
	for _, l := range locks {
		lock := plugin.Lock{ID: l.ID.String(), Hostname: l.Hostname, Username: l.Username, PID: l.PID, Exclusive: l.Exclusive, Time: l.Time.UTC()}
		if l.Err != nil {
			lock = plugin.Lock{ID: l.ID.String(), Note: l.Err.Error()}
		}
		out = append(out, lock)
	}
	return out
}

// Keys implements [plugin.Service].
func (e *Engine) Keys(ctx context.Context) ([]plugin.Key, error) {
	var out []plugin.Key
	err := e.keep(ctx, "keys", func(ctx context.Context, r *repo.Repository) (err error) {
		out, err = keysOf(ctx, r)
		return err
	})
	return out, err
}

func keysOf(ctx context.Context, r *repo.Repository) ([]plugin.Key, error) {
	keys, err := r.Keys(ctx)
	if err != nil {
		return nil, err
	}
	var out []plugin.Key
	for _, k := range keys {
		key := plugin.Key{ID: k.ID.String(), Created: k.Created.UTC(), Username: k.Username, Hostname: k.Hostname, Current: k.Current}
		if k.Err != nil {
			key = plugin.Key{ID: k.ID.String(), Note: k.Err.Error()}
		}
		out = append(out, key)
	}
	return out, nil
}

// AddKey implements [plugin.Service].
func (e *Engine) AddKey(ctx context.Context, req plugin.KeyRequest) (plugin.Key, error) {
	return e.newKey(ctx, req, (*repo.Repository).AddKey)
}

// ChangePassword implements [plugin.Service].
func (e *Engine) ChangePassword(ctx context.Context, req plugin.KeyRequest) (plugin.Key, error) {
	return e.newKey(ctx, req, (*repo.Repository).ChangePassword)
}

func (e *Engine) newKey(ctx context.Context, req plugin.KeyRequest, make func(*repo.Repository, context.Context, repo.KeyOptions) (restic.ID, error)) (plugin.Key, error) {
	var out plugin.Key
	if req.Password == "" {
		return out, invalid("password", "the new key has no password", "choose one: whoever has it reads all backups")
	}
	err := e.keep(ctx, "key", func(ctx context.Context, r *repo.Repository) error {
		id, err := make(r, ctx, repo.KeyOptions{Password: req.Password, Username: req.Username, Hostname: req.Hostname})
		if err != nil {
			return err
		}
		keys, err := keysOf(ctx, r)
		if i := slices.IndexFunc(keys, func(k plugin.Key) bool { return k.ID == id.String() }); i >= 0 {
			out = keys[i]
		}
		return err
	})
	return out, err
}

// RemoveKey implements [plugin.Service].
func (e *Engine) RemoveKey(ctx context.Context, id string) error {
	return e.keep(ctx, "key", func(ctx context.Context, r *repo.Repository) error {
		keys, err := r.Keys(ctx)
		if err != nil {
			return err
		}
		var found []repo.KeyInfo
		for _, k := range keys {
			if id != "" && strings.HasPrefix(k.ID.String(), id) {
				found = append(found, k)
			}
		}
		if len(found) != 1 {
			return invalid("id", fmt.Sprintf("%d keys match %q", len(found), id), "list them with `vmkeep key list`")
		}
		if found[0].Current {
			return invalid("id", "this key opened the repository, and another one would be needed to prove that it is not the last",
				"give the password of another key, or change this one with `vmkeep key passwd`")
		}
		return r.RemoveKey(ctx, found[0].ID)
	})
}

// RepairIndex implements [plugin.Service].
func (e *Engine) RepairIndex(ctx context.Context, req plugin.RepairIndexRequest, emit func(plugin.Event)) (plugin.RepairIndexReport, error) {
	var out plugin.RepairIndexReport
	err := e.operate(ctx, "repair index", emit, func(ctx context.Context, op *operation) error {
		opt := repo.RepairIndexOptions{AllHeaders: req.AllHeaders, DryRun: req.DryRun}
		if req.Subset != "" {
			data, err := repo.ParseReadData(req.Subset)
			if err != nil {
				return invalid("subset", err.Error(), "use all, n/t, p% or a size")
			}
			opt.ReadData = data
		}
		return op.withRepository(ctx, func(r *repo.Repository) error {
			stages := newStages(scope{out: op.out})
			defer stages.end()
			opt.Progress = func(p repo.CheckProgress) { stages.at(plugin.Phase(p.Stage), p.Bytes, p.TotalBytes) }
			report, err := r.RepairIndex(ctx, opt)
			if err != nil {
				return err
			}
			out = plugin.RepairIndexReport{Changed: report.Changed, BadIndexFiles: report.BadIndexFiles, AddedPacks: report.AddedPacks, LostPacks: report.LostPacks,
				UnreadablePacks: report.UnreadablePacks, SalvagedPacks: report.SalvagedPacks, KeptPacks: report.KeptPacks, LostBlobs: len(report.LostBlobs)}
			return nil
		})
	})
	return out, err
}

// RepairPoints implements [plugin.Service]. Snapshots that vmkeep did not make are never touched.
func (e *Engine) RepairPoints(ctx context.Context, req plugin.RepairPointsRequest, emit func(plugin.Event)) (plugin.RepairPointsReport, error) {
	var out plugin.RepairPointsReport
	err := e.operate(ctx, "repair points", emit, func(ctx context.Context, op *operation) error {
		return op.withRepository(ctx, func(r *repo.Repository) error {
			scope{out: op.out}.phase(plugin.PhaseRepair)
			ids, err := pointsToRepair(ctx, r, req.IDs)
			if err != nil || len(ids) == 0 {
				return err
			}
			repaired, err := r.RepairSnapshots(ctx, repo.RepairSnapshotsOptions{Snapshots: ids, Forget: req.Forget, DryRun: req.DryRun})
			for _, p := range repaired {
				out.Points = append(out.Points, repairedPoint(p, r.ID()))
			}
			return err
		})
	})
	return out, err
}

func pointsToRepair(ctx context.Context, r *repo.Repository, wanted []string) ([]restic.ID, error) {
	all, err := r.Snapshots(ctx)
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(s *restic.Snapshot) bool { return !slices.Contains(s.Tags, tagPoint) })
	var ids []restic.ID
	if len(wanted) == 0 {
		for _, s := range all {
			ids = append(ids, s.ID)
		}
	}
	for _, want := range wanted {
		s, err := onePoint(all, want)
		if err != nil {
			return nil, err
		}
		ids = append(ids, s.ID)
	}
	return ids, nil
}

// onePoint is the point whose id begins with want.
func onePoint(points []*restic.Snapshot, want string) (*restic.Snapshot, error) {
	var found []*restic.Snapshot
	for _, s := range points {
		if want != "" && strings.HasPrefix(s.ID.String(), want) {
			found = append(found, s)
		}
	}
	if len(found) != 1 {
		return nil, &plugin.Error{Code: plugin.CodePointNotFound, Summary: fmt.Sprintf("%d points match %q", len(found), want), Object: want,
			Remedy: "list what there is with `vmkeep points`"}
	}
	return found[0], nil
}

func repairedPoint(p repo.RepairedSnapshot, repository string) plugin.RepairedPoint {
	out := plugin.RepairedPoint{Point: briefPoint(p.Old, repository), Lost: p.Lost}
	if !p.New.IsNull() {
		out.Replacement = p.New.String()
	}
	disks := map[string]int{} // place in out.Damage
	for _, d := range p.Damage {
		disk, part, ok := partOfPath(d.Path)
		if !ok {
			out.Damage = append(out.Damage, plugin.PointDamage{Path: d.Path, Ranges: rangesAt(0, d.Extents), Note: fateOf(d)})
			continue
		}
		i, seen := disks[disk]
		if !seen {
			i = len(out.Damage)
			disks[disk] = i
			out.Damage = append(out.Damage, plugin.PointDamage{Disk: disk, Path: d.Path[:strings.Index(d.Path, "/"+disk+"/")+1+len(disk)]})
		}
		out.Damage[i].Ranges = append(out.Damage[i].Ranges, rangesAt(int64(part)*PartSize, d.Extents)...)
		if note := fateOf(d); note != "" {
			out.Damage[i].Note = fmt.Sprintf("part %s: %s", partName(part), note)
		}
	}
	return out
}

// partOfPath parts "/web/scsi0-0/0007/flat.vmdk" into disk and number of the part.
func partOfPath(p string) (disk string, part int, ok bool) {
	names := strings.Split(strings.TrimPrefix(p, "/"), "/")
	if n := len(names); n >= 3 && names[n-1] == partFile {
		number, err := parsePart(names[n-2])
		return names[n-3], number, err == nil
	}
	return "", 0, false
}

// rangesAt are extents of a file that begins at disk offset base.
func rangesAt(base int64, extents []repo.Extent) []plugin.ByteRange {
	var out []plugin.ByteRange
	for _, x := range extents {
		out = append(out, plugin.ByteRange{Off: base + x.Offset, Len: x.Length})
	}
	return out
}

// fateOf says what became of an entry that did not just lose ranges.
func fateOf(d repo.Damage) string {
	switch {
	case d.Directory:
		return "the directory is lost and empty now"
	case d.Unusable:
		return "the entry made no sense and is gone"
	case d.Reordered:
		return "the entries were put in order"
	}
	return ""
}
