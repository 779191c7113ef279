package restic

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Policy says which snapshots of a group are kept: those that any of its rules wants. It decides as restic forget does.
type Policy struct {
	// Last keeps the newest n; Hourly to Yearly keep the newest of each of the n newest hours, days, ISO weeks, months and
	// years that have any, in each snapshot's own time zone. -1 means all.
	Last, Hourly, Daily, Weekly, Monthly, Yearly int
	// Within keeps what is younger than this before the newest snapshot; the others keep the newest of each hour, day,
	// week, month and year younger than this.
	Within, WithinHourly, WithinDaily, WithinWeekly, WithinMonthly, WithinYearly Duration
	// Tags keeps snapshots that carry all tags of any of these lists.
	Tags [][]string
}

// Duration is a span of calendar time.
type Duration struct{ Years, Months, Days, Hours int }

// ParseDuration reads restic's spelling: 1y5m7d2h, each part at most once or added up.
func ParseDuration(s string) (Duration, error) {
	var d Duration
	rest := s
	for rest != "" {
		i := strings.IndexAny(rest, "ymdh")
		if i <= 0 {
			return Duration{}, fmt.Errorf("duration %q: want numbers with y, m, d or h, such as 1y5m7d2h", s)
		}
		n, err := strconv.Atoi(rest[:i])
		if err != nil || n < 0 {
			return Duration{}, fmt.Errorf("duration %q: %q is not a number", s, rest[:i])
		}
		switch rest[i] {
		case 'y':
			d.Years += n
		case 'm':
			d.Months += n
		case 'd':
			d.Days += n
		case 'h':
			d.Hours += n
		}
		rest = rest[i+1:]
	}
	return d, nil
}

func (d Duration) String() string {
	var b strings.Builder
	for _, part := range []struct {
		n    int
		unit string
	}{{d.Years, "y"}, {d.Months, "m"}, {d.Days, "d"}, {d.Hours, "h"}} {
		if part.n != 0 {
			fmt.Fprintf(&b, "%d%s", part.n, part.unit)
		}
	}
	return b.String()
}

// before is the time d before t.
func (d Duration) before(t time.Time) time.Time {
	return t.AddDate(-d.Years, -d.Months, -d.Days).Add(-time.Duration(d.Hours) * time.Hour)
}

// Empty reports whether the policy has no rule. Applied it would keep nothing; forget refuses it.
func (p Policy) Empty() bool {
	if len(p.Tags) > 0 {
		return false
	}
	for _, r := range p.rules() {
		if r.count != 0 || r.within != (Duration{}) {
			return false
		}
	}
	return p.Within == Duration{}
}

// ErrPolicy says that a policy makes no sense.
var ErrPolicy = errors.New("policy")

// Valid refuses negative counts other than -1.
func (p Policy) Valid() error {
	for _, r := range p.rules() {
		if r.count < -1 {
			return fmt.Errorf("%w: keep %d %s snapshots: want a count, or -1 for all", ErrPolicy, r.count, r.name)
		}
	}
	return nil
}

// rule keeps the newest snapshot of each period, as long as it has counts left or the period is young enough.
type rule struct {
	name   string
	count  int
	within Duration
	period func(t time.Time, nr int) int
	last   int // period of the snapshot kept last; no period is -1
	young  time.Time
}

func (p Policy) rules() []rule {
	last := func(_ time.Time, nr int) int { return nr }
	hour := func(t time.Time, _ int) int { return ((t.Year()*100+int(t.Month()))*100+t.Day())*100 + t.Hour() }
	day := func(t time.Time, _ int) int { return (t.Year()*100+int(t.Month()))*100 + t.Day() }
	week := func(t time.Time, _ int) int { y, w := t.ISOWeek(); return y*100 + w }
	month := func(t time.Time, _ int) int { return t.Year()*100 + int(t.Month()) }
	year := func(t time.Time, _ int) int { return t.Year() }
	return []rule{
		{name: "last", count: p.Last, period: last}, {name: "hourly", count: p.Hourly, period: hour},
		{name: "daily", count: p.Daily, period: day}, {name: "weekly", count: p.Weekly, period: week},
		{name: "monthly", count: p.Monthly, period: month}, {name: "yearly", count: p.Yearly, period: year},
		{name: "hourly within", within: p.WithinHourly, period: hour}, {name: "daily within", within: p.WithinDaily, period: day},
		{name: "weekly within", within: p.WithinWeekly, period: week}, {name: "monthly within", within: p.WithinMonthly, period: month},
		{name: "yearly within", within: p.WithinYearly, period: year},
	}
}

// Kept is a snapshot and the rules that want it.
type Kept struct {
	*Snapshot
	Reasons []string
}

// Apply divides snapshots, in any order, into those to keep and those to remove, both the newest first. now tells which
// snapshots claim to be of the future: the spans of the within rules do not begin at them.
func (p Policy) Apply(snapshots []*Snapshot, now time.Time) (keep []Kept, remove []*Snapshot) {
	sorted := slices.Clone(snapshots)
	slices.SortStableFunc(sorted, func(a, b *Snapshot) int { return b.Time.Compare(a.Time) })
	var newest time.Time
	for _, s := range sorted {
		if s.Time.After(newest) && s.Time.Before(now) {
			newest = s.Time
		}
	}
	rules := p.rules()
	for i := range rules {
		rules[i].last = -1
		rules[i].young = rules[i].within.before(newest)
	}
	young := p.Within.before(newest)
	for nr, s := range sorted {
		var reasons []string
		for _, tags := range p.Tags {
			if s.HasTags(tags) {
				reasons = append(reasons, "has tags "+strings.Join(tags, ", "))
			}
		}
		if p.Within != (Duration{}) && s.Time.After(young) {
			reasons = append(reasons, "within "+p.Within.String())
		}
		for i := range rules {
			r := &rules[i]
			switch {
			case r.within != Duration{}:
				if !s.Time.After(r.young) {
					continue
				}
			case r.count == 0:
				continue
			}
			// The oldest is kept while there are counts left, so that a young history reaches back as far as it can.
			if period := r.period(s.Time, nr); period != r.last || nr == len(sorted)-1 {
				reason := r.name
				if period == r.last {
					reason = "oldest " + r.name
				}
				reasons = append(reasons, reason)
				r.last = period
				if r.count > 0 {
					r.count--
				}
			}
		}
		if len(reasons) > 0 {
			keep = append(keep, Kept{s, reasons})
		} else {
			remove = append(remove, s)
		}
	}
	return keep, remove
}

// GroupBy says which snapshots belong together: a policy is applied to each group. The zero value makes one group of all.
type GroupBy struct{ Host, Paths, Tags bool }

// ParseGroupBy reads restic's spelling: a list of host, paths and tags, with commas; empty for none.
func ParseGroupBy(s string) (GroupBy, error) {
	var g GroupBy
	for part := range strings.SplitSeq(s, ",") {
		switch part {
		case "host", "hosts":
			g.Host = true
		case "path", "paths":
			g.Paths = true
		case "tag", "tags":
			g.Tags = true
		case "":
		default:
			return GroupBy{}, fmt.Errorf("group by %q: want a list of host, paths, tags", s)
		}
	}
	return g, nil
}

// Group is snapshots that belong together. Fields not grouped by are empty.
type Group struct {
	Host      string
	Paths     []string
	Tags      []string
	Snapshots []*Snapshot
}

// Group divides snapshots into groups, in the order of host, paths, tags.
func (g GroupBy) Group(snapshots []*Snapshot) []Group {
	byKey := make(map[string]*Group)
	for _, s := range snapshots {
		var n Group
		if g.Host {
			n.Host = s.Hostname
		}
		if g.Paths {
			n.Paths = slices.Sorted(slices.Values(s.Paths))
		}
		if g.Tags {
			n.Tags = slices.Sorted(slices.Values(s.Tags))
		}
		key := fmt.Sprintf("%q %q %q", n.Host, n.Paths, n.Tags)
		if byKey[key] == nil {
			byKey[key] = &n
		}
		byKey[key].Snapshots = append(byKey[key].Snapshots, s)
	}
	out := make([]Group, 0, len(byKey))
	for _, n := range byKey {
		out = append(out, *n)
	}
	slices.SortFunc(out, func(a, b Group) int {
		return cmp.Or(cmp.Compare(a.Host, b.Host), slices.Compare(a.Paths, b.Paths), slices.Compare(a.Tags, b.Tags))
	})
	return out
}
