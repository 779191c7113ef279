package engine

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/repo"
	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// Forget implements [plugin.Service]. A policy is applied to the points of each machine by itself, and a machine is
// told by its identity, so that renaming it does not begin a new history. Snapshots that vmkeep did not make are
// never touched.
func (e *Engine) Forget(ctx context.Context, req plugin.ForgetRequest) (plugin.ForgetReport, error) {
	var out plugin.ForgetReport
	err := e.operate(ctx, "forget", nil, func(ctx context.Context, op *operation) error {
		policy, err := policyOf(req)
		if err != nil {
			return err
		}
		return op.withRepository(ctx, func(r *repo.Repository) error {
			all, err := r.Snapshots(ctx)
			if err != nil {
				return err
			}
			remove, err := decideForget(req, policy, all, &out, r.ID())
			if err != nil || req.DryRun || len(remove) == 0 {
				return err
			}
			return r.ForgetSnapshots(ctx, remove)
		})
	})
	return out, err
}

func policyOf(req plugin.ForgetRequest) (restic.Policy, error) {
	p := restic.Policy{Last: req.Last, Hourly: req.Hourly, Daily: req.Daily, Weekly: req.Weekly, Monthly: req.Monthly, Yearly: req.Yearly}
	for _, t := range req.KeepTags {
		p.Tags = append(p.Tags, strings.Split(t, ","))
	}
	for _, rule := range []struct {
		field, text string
		into        *restic.Duration
	}{
		{"within", req.Within, &p.Within}, {"withinHourly", req.WithinHourly, &p.WithinHourly}, {"withinDaily", req.WithinDaily, &p.WithinDaily},
		{"withinWeekly", req.WithinWeekly, &p.WithinWeekly}, {"withinMonthly", req.WithinMonthly, &p.WithinMonthly}, {"withinYearly", req.WithinYearly, &p.WithinYearly},
	} {
		d, err := restic.ParseDuration(rule.text)
		if err != nil {
			return p, invalid(rule.field, err.Error(), "write it as 1y5m7d2h")
		}
		*rule.into = d
	}
	if err := p.Valid(); err != nil {
		return p, invalid("policy", err.Error(), "use counts of at least 0, or -1 for all")
	}
	switch empty := p.Empty(); {
	case empty && len(req.IDs) == 0:
		return p, invalid("policy", "no rule says which points to keep", "give at least one rule, or the ids of the points to remove")
	case !empty && len(req.IDs) > 0:
		return p, invalid("policy", "points are named and a policy is given", "give one of the two")
	}
	return p, nil
}

// decideForget fills the report and returns what is to be removed.
func decideForget(req plugin.ForgetRequest, policy restic.Policy, all []*restic.Snapshot, out *plugin.ForgetReport, repository string) ([]restic.ID, error) {
	groups := map[machineIdentity][]*restic.Snapshot{}
	var order []machineIdentity
	var points []*restic.Snapshot
	for _, s := range all {
		wanted := len(req.Machines) == 0 || slices.ContainsFunc(req.Machines, func(m string) bool { return isMachine(m, s) })
		if !slices.Contains(s.Tags, tagPoint) || !wanted {
			continue
		}
		id := identityOf(s)
		if groups[id] == nil {
			order = append(order, id)
		}
		groups[id] = append(groups[id], s)
		points = append(points, s)
	}
	var remove []restic.ID
	if len(req.IDs) > 0 {
		for _, want := range req.IDs {
			s, err := onePoint(points, want)
			if err != nil {
				return nil, err
			}
			remove = append(remove, s.ID)
			out.Remove = append(out.Remove, briefPoint(s, repository))
		}
		return remove, nil
	}
	for _, id := range order {
		keep, gone := policy.Apply(groups[id], time.Now())
		if len(keep) == 0 {
			return nil, invalid("policy", fmt.Sprintf("the rules would remove every point of %s", groups[id][0].Hostname), "keep at least one: --keep-last 1")
		}
		for _, k := range keep {
			out.Keep = append(out.Keep, plugin.KeptPoint{Point: briefPoint(k.Snapshot, repository), Reasons: k.Reasons})
		}
		for _, s := range gone {
			remove = append(remove, s.ID)
			out.Remove = append(out.Remove, briefPoint(s, repository))
		}
	}
	return remove, nil
}

// briefPoint is a point without what its manifest tells.
func briefPoint(s *restic.Snapshot, repository string) plugin.Point {
	id := identityOf(s)
	return plugin.Point{ID: s.ID.String(), Repository: repository, Machine: s.Hostname, VCenter: id.vcenter, InstanceUUID: id.instance, Time: s.Time.UTC(), Tags: s.Tags}
}

// Prune implements [plugin.Service].
func (e *Engine) Prune(ctx context.Context, req plugin.PruneRequest, emit func(plugin.Event)) (plugin.PruneReport, error) {
	var out plugin.PruneReport
	err := e.operate(ctx, "prune", emit, func(ctx context.Context, op *operation) error {
		opt := repo.PruneOptions{DryRun: req.DryRun, RepackSmall: req.RepackSmall, RepackUncompressed: req.RepackUncompressed}
		var err error
		if opt.MaxUnused, err = parseUnused(req.MaxUnused); err != nil {
			return err
		}
		if req.MaxRepack != "" {
			if opt.MaxRepack, err = parseSize(req.MaxRepack); err != nil {
				return invalid("maxRepack", err.Error(), "write a size such as 500M or 20G")
			}
		}
		return op.withRepository(ctx, func(r *repo.Repository) error {
			s := scope{out: op.out}
			stages := newStages(s)
			defer stages.end()
			opt.Progress = func(p repo.PruneProgress) {
				if p.Stage != repo.PruneRepack { // counts of files are not told: progress is bytes
					p.Done, p.Total = 0, 0
				}
				stages.at(plugin.Phase(p.Stage), p.Done, p.Total)
			}
			report, err := r.Prune(ctx, opt)
			if err != nil {
				return err
			}
			out = plugin.PruneReport{
				PacksKept: report.KeepPacks, PacksRepacked: report.RepackPacks, PacksRemoved: report.RemovePacks + report.OrphanPacks,
				BytesKept: report.UsedBytes, BytesRepacked: report.RepackBytes, BytesFreed: report.FreedBytes, BytesUnused: report.RemainingBytes,
			}
			if n := report.HeldPacks; n > 0 {
				why := "it only takes files and deletes none; nothing of them was written anew, and no index"
				remedy := "prune with credentials that may delete"
				if until := report.HeldUntil; until.Equal(backend.Forever()) {
					why, remedy = "they, or index files that name them, are under a legal hold", "prune again when it is lifted"
				} else if !until.IsZero() {
					why = "they, or index files that name them, are retained until " + until.UTC().Format(time.RFC3339) + " at the latest"
					remedy = "prune again then"
				}
				out.Notes = append(out.Notes, warning(plugin.CodeRepository,
					fmt.Sprintf("%d packs stay, with %d bytes that nobody needs: the storage does not delete them yet", n, report.HeldBytes), why, remedy))
			}
			if n := len(report.Refused); n > 0 {
				out.Notes = append(out.Notes, warning(plugin.CodeRepository, fmt.Sprintf("the storage refused to delete %d files", n),
					"the first is "+report.Refused[0]+"; that they are retained it did not tell before", "a later prune deletes them"))
			}
			return nil
		})
	})
	return out, err
}

// parseUnused reads "5%", a size, "unlimited" or nothing.
func parseUnused(s string) (repo.Unused, error) {
	switch {
	case s == "":
		return repo.Unused{}, nil
	case s == "unlimited":
		return repo.Unused{Unlimited: true}, nil
	case strings.HasSuffix(s, "%"):
		p, err := strconv.ParseFloat(strings.TrimSuffix(s, "%"), 64)
		if err != nil || !(p >= 0 && p < 100) {
			return repo.Unused{}, invalid("maxUnused", fmt.Sprintf("%q is no share", s), "write a share such as 5%, a size such as 500M, or unlimited")
		}
		return repo.Unused{Percent: p, None: p == 0}, nil
	}
	n, err := parseSize(s)
	if err != nil {
		return repo.Unused{}, invalid("maxUnused", err.Error(), "write a share such as 5%, a size such as 500M, or unlimited")
	}
	return repo.Unused{Bytes: n, None: n == 0}, nil
}

// parseSize reads a size as restic does: a number with an optional K, M, G or T, powers of 1024.
func parseSize(s string) (int64, error) {
	digits := strings.TrimRight(s, "KkMmGgTt")
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 || len(s)-len(digits) > 1 {
		return 0, fmt.Errorf("%q is no size", s)
	}
	shift := 0
	if len(s) > len(digits) {
		shift = 10 * (1 + strings.IndexByte("KMGT", strings.ToUpper(s[len(digits):])[0]))
	}
	if n > 1<<62>>shift {
		return 0, fmt.Errorf("%q is too large", s)
	}
	return n << shift, nil
}
