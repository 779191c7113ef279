package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/repo"
	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// machineIdentity tells machines apart. A name or a managed object id may change; these do not.
type machineIdentity struct{ vcenter, instance string }

func identityOf(s *restic.Snapshot) machineIdentity {
	return machineIdentity{vcenter: tagValue(s.Tags, tagVCenter), instance: tagValue(s.Tags, tagMachine)}
}

// newestPoints finds the newest point of each machine.
func newestPoints(ctx context.Context, r *repo.Repository) (map[machineIdentity]*restic.Snapshot, error) {
	all, err := r.Snapshots(ctx)
	return newestOf(all), err
}

func newestOf(all []*restic.Snapshot) map[machineIdentity]*restic.Snapshot {
	out := map[machineIdentity]*restic.Snapshot{}
	for _, s := range all {
		if !slices.Contains(s.Tags, tagPoint) {
			continue
		}
		if id := identityOf(s); out[id] == nil || s.Time.After(out[id].Time) {
			out[id] = s
		}
	}
	return out
}

// loadedPoint is a point whose manifest was read.
type loadedPoint struct {
	snapshot *restic.Snapshot
	manifest *manifest
	dir      *restic.Tree // the machine's directory
	repo     *repo.Repository
	damage   error // why the rest is nil
}

// loadPoint reads a point's directory and manifest.
func loadPoint(ctx context.Context, r *repo.Repository, s *restic.Snapshot) (*loadedPoint, error) {
	if s.Tree == nil {
		return nil, fmt.Errorf("point %s has no tree", s.ID.Short())
	}
	root, err := r.LoadTree(ctx, *s.Tree)
	if err != nil {
		return nil, fmt.Errorf("point %s: %w", s.ID.Short(), err)
	}
	for len(root.Nodes) == 1 && root.Nodes[0].Type == restic.DirNode && root.Nodes[0].Subtree != nil {
		dir, err := r.LoadTree(ctx, *root.Nodes[0].Subtree)
		if err != nil {
			return nil, fmt.Errorf("point %s: %w", s.ID.Short(), err)
		}
		head := dir.Find(manifestName)
		if head == nil {
			root = dir
			continue
		}
		data, err := loadFile(ctx, r, head, manifestLimit)
		if err != nil {
			return nil, fmt.Errorf("point %s: %s: %w", s.ID.Short(), manifestName, err)
		}
		m, err := parseManifest(data)
		if err != nil {
			return nil, fmt.Errorf("point %s: %w", s.ID.Short(), err)
		}
		return &loadedPoint{snapshot: s, manifest: m, dir: dir, repo: r}, nil
	}
	return nil, fmt.Errorf("snapshot %s %w: it has no %s", s.ID.Short(), errForeign, manifestName)
}

// storageFailed reports whether a point could not be read for a reason that is the storage service's: the point may be whole.
func storageFailed(err error) bool {
	return errors.Is(err, backend.ErrGivenUp) || errors.Is(err, backend.ErrPermanent)
}

// errForeign is a snapshot that restic made, of something that is no machine.
var errForeign = errors.New("was not made by vmkeep")

// loadFile reads a small file of a tree whole.
func loadFile(ctx context.Context, r *repo.Repository, n *restic.Node, limit int64) ([]byte, error) {
	var out []byte
	for _, id := range n.Content {
		b, err := r.LoadBlob(ctx, restic.BlobHandle{Type: restic.DataBlob, ID: id})
		if err != nil {
			return nil, err
		}
		if int64(len(out)+len(b)) > limit {
			return nil, fmt.Errorf("larger than %d bytes", limit)
		}
		out = append(out, b...)
	}
	return out, nil
}

// partTrees lists the trees of a disk's parts; nil where a part is missing.
func (p *loadedPoint) partTrees(ctx context.Context, disk string) ([]*restic.ID, error) {
	rec := p.manifest.disk(disk)
	n := p.dir.Find(disk)
	if rec == nil || n == nil || n.Subtree == nil {
		return nil, fmt.Errorf("point %s has no disk %s", p.snapshot.ID.Short(), disk)
	}
	tree, err := p.repo.LoadTree(ctx, *n.Subtree)
	if err != nil {
		return nil, fmt.Errorf("disk %s of point %s: %w", disk, p.snapshot.ID.Short(), err)
	}
	out := make([]*restic.ID, partCount(rec.Capacity))
	for i := range tree.Nodes {
		at, err := parsePart(tree.Nodes[i].Name)
		if err != nil || at >= len(out) || tree.Nodes[i].Subtree == nil {
			return nil, fmt.Errorf("disk %s of point %s: unexpected entry %q", disk, p.snapshot.ID.Short(), tree.Nodes[i].Name)
		}
		out[at] = tree.Nodes[i].Subtree
	}
	return out, nil
}

func (m *manifest) diskByUUID(uuid string) *manifestDisk {
	for i := range m.Disks {
		if m.Disks[i].UUID == uuid {
			return &m.Disks[i]
		}
	}
	return nil
}

// pointOf is a manifest in the contract's form; ID, repository, tags and stored bytes are not in it.
func pointOf(m *manifest) *plugin.Point {
	p := &plugin.Point{Machine: m.Machine.Name, VCenter: m.Machine.VCenter, InstanceUUID: m.Machine.InstanceUUID, Path: m.Machine.Path,
		Time: m.Time, Consistency: m.Consistency, Chunking: m.chunking()}
	for _, d := range m.Disks {
		p.Disks = append(p.Disks, plugin.PointDisk{Name: d.Name, Label: d.Label, UUID: d.UUID, Path: d.Path, Capacity: d.Capacity,
			Incremental: d.Incremental, Reason: d.Reason, ChangeID: d.ChangeID, Transport: d.Transport, Read: d.Read, Changed: d.Changed, Skipped: d.Skipped})
		if d.Skipped == "" {
			p.Stats.Size += d.Capacity
			p.Stats.Read += d.Read
			p.Stats.Reused += d.Reused
		}
	}
	return p
}

// Points implements [plugin.Service].
func (e *Engine) Points(ctx context.Context, f plugin.PointFilter) ([]plugin.Point, error) {
	var out []plugin.Point
	err := e.operate(ctx, "points", nil, func(ctx context.Context, op *operation) error {
		return op.withRepository(ctx, func(r *repo.Repository) error {
			all, err := r.Snapshots(ctx)
			if err != nil {
				return err
			}
			slices.SortFunc(all, func(a, b *restic.Snapshot) int { return a.Time.Compare(b.Time) })
			for _, s := range all {
				if !slices.Contains(s.Tags, tagPoint) || !matches(f, s, all) {
					continue
				}
				p, err := summarize(ctx, r, s, f.Details)
				if err != nil {
					return err
				}
				out = append(out, p)
			}
			return nil
		})
	})
	return out, err
}

// summarize is a point as its document tells, with the manifest's details where they are asked for.
func summarize(ctx context.Context, r *repo.Repository, s *restic.Snapshot, details bool) (plugin.Point, error) {
	p := plugin.Point{Machine: s.Hostname}
	if details {
		full, err := loadPoint(ctx, r, s)
		switch {
		case err == nil:
			p = *pointOf(full.manifest)
		case ctx.Err() != nil:
			return p, context.Cause(ctx)
		case storageFailed(err):
			return p, err
		default:
			p.Damage = err.Error()
		}
	}
	id := identityOf(s)
	p.ID, p.Repository, p.VCenter, p.InstanceUUID = s.ID.String(), r.ID(), id.vcenter, id.instance
	p.Time, p.Tags = s.Time.UTC(), s.Tags
	for _, c := range []plugin.Consistency{plugin.ConsistencyApplication, plugin.ConsistencyFileSystem, plugin.ConsistencyCrash, plugin.ConsistencyOff} {
		if slices.Contains(s.Tags, string(c)) {
			p.Consistency = c
		}
	}
	if sum := s.Summary; sum != nil {
		p.Stats.Size, p.Stats.New, p.Stats.Stored = int64(sum.TotalBytesProcessed), int64(sum.DataAdded), int64(sum.DataAddedPacked)
		p.Stats.Duration = sum.BackupEnd.Sub(sum.BackupStart)
	}
	return p, nil
}

func matches(f plugin.PointFilter, s *restic.Snapshot, all []*restic.Snapshot) bool {
	if len(f.Machines) > 0 && !slices.ContainsFunc(f.Machines, func(want string) bool { return isMachine(want, s) }) {
		return false
	}
	if !f.Since.IsZero() && s.Time.Before(f.Since) || !f.Until.IsZero() && s.Time.After(f.Until) {
		return false
	}
	for _, t := range f.Tags {
		if !slices.Contains(s.Tags, t) {
			return false
		}
	}
	return len(f.IDs) == 0 || slices.ContainsFunc(f.IDs, func(want string) bool {
		if want == "latest" {
			return !slices.ContainsFunc(all, func(o *restic.Snapshot) bool { return identityOf(o) == identityOf(s) && o.Time.After(s.Time) })
		}
		return want != "" && strings.HasPrefix(s.ID.String(), want)
	})
}

// isMachine reports whether want, a name, glob or instanceUuid, means the machine of the point.
func isMachine(want string, s *restic.Snapshot) bool {
	ok, _ := path.Match(strings.ToLower(want), strings.ToLower(s.Hostname))
	return ok || want != "" && want == tagValue(s.Tags, tagMachine)
}

// latestPoint finds the newest point of the machine that is meant; "": of the only one. A machine has the name of its newest
// point; one that it had before does where none has it now, so that renaming a machine does not hide what is newer.
func latestPoint(all []*restic.Snapshot, machine string) (*restic.Snapshot, error) {
	newest, once := newestOf(all), map[machineIdentity]*restic.Snapshot{}
	var found []*restic.Snapshot
	for _, s := range all {
		id := identityOf(s)
		if newest[id] == nil || machine != "" && !isMachine(machine, s) {
			continue
		}
		once[id] = newest[id]
		if s == newest[id] {
			found = append(found, s)
		}
	}
	if len(found) == 0 {
		found = slices.Collect(maps.Values(once))
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) == 0 && machine == "":
		return nil, &plugin.Error{Code: plugin.CodePointNotFound, Summary: "no point in this repository", Remedy: "make one with `vmkeep backup`", Object: "latest"}
	case len(found) == 0:
		return nil, &plugin.Error{Code: plugin.CodePointNotFound, Summary: fmt.Sprintf("no point of machine %q in this repository", machine),
			Remedy: "list what there is with `vmkeep points`", Object: machine}
	}
	remedy := "name the machine, or give the point's id"
	if machine != "" {
		remedy = "name the machine by its instanceUuid, or give the point's id"
	}
	return nil, &plugin.Error{Code: plugin.CodeAmbiguous, Summary: fmt.Sprintf("%d machines have points", len(found)), Detail: whose(found), Remedy: remedy, Object: "latest"}
}

// whose lists the newest points of several machines, a line each, as far as people read on.
func whose(points []*restic.Snapshot) string {
	slices.SortFunc(points, func(a, b *restic.Snapshot) int { return b.Time.Compare(a.Time) })
	var lines []string
	for _, s := range points[:min(len(points), 10)] {
		lines = append(lines, fmt.Sprintf("%s, instanceUuid %s: latest point %s of %s", s.Hostname, identityOf(s).instance, s.ID.Short(), s.Time.UTC().Format(time.RFC3339)))
	}
	if more := len(points) - len(lines); more > 0 {
		lines = append(lines, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(lines, "\n")
}

// findPoint finds one point by id, prefix, or "latest" of a machine.
func findPoint(ctx context.Context, r *repo.Repository, want, machine string) (*loadedPoint, error) {
	all, err := r.Snapshots(ctx)
	if err != nil {
		return nil, err
	}
	snap, err := pickPoint(all, want, machine)
	if err != nil {
		return nil, err
	}
	p, err := loadPoint(ctx, r, snap)
	if errors.Is(err, errForeign) {
		return nil, &plugin.Error{Code: plugin.CodeUnsupported, Summary: "the snapshot was not made by vmkeep", Detail: err.Error(), Object: want, Err: err,
			Remedy: "restore it with restic: `restic restore " + snap.ID.Short() + " --target DIRECTORY`"}
	}
	if err != nil && ctx.Err() == nil && !errors.Is(err, repo.ErrDamaged) && !storageFailed(err) {
		return nil, &plugin.Error{Code: plugin.CodeDamaged, Summary: "the point cannot be read", Detail: err.Error(), Object: want, Err: err,
			Remedy: "check the repository with `vmkeep-check --read-data`, or take an older point"}
	}
	return p, err
}

// pickPoint is findPoint among these.
func pickPoint(all []*restic.Snapshot, want, machine string) (*restic.Snapshot, error) {
	if want == "" || want == "latest" {
		return latestPoint(all, machine)
	}
	var found []*restic.Snapshot
	for _, s := range all {
		if strings.HasPrefix(s.ID.String(), want) && (machine == "" || isMachine(machine, s)) {
			found = append(found, s)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return nil, &plugin.Error{Code: plugin.CodePointNotFound, Summary: fmt.Sprintf("no point %q in this repository", strings.TrimSpace(want+" "+machine)),
			Remedy: "list what there is with `vmkeep points`", Object: want}
	}
	return nil, &plugin.Error{Code: plugin.CodeAmbiguous, Summary: fmt.Sprintf("%d points match %q", len(found), want), Remedy: "give more digits of the id", Object: want}
}
