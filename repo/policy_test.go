package repo

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmkeep/vmkeep/repo/restic"
)

// history writes snapshots with random times, hosts, paths and tags into a repository with one tree.
func history(t *testing.T, r *Repository, rnd *rand.Rand, n int) {
	t.Helper()
	first, err := commitFiles(t.Context(), r, "vm", map[string][]byte{"a": []byte("x")})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.ForgetSnapshots(t.Context(), []restic.ID{first.ID}); err != nil {
		t.Fatal(err)
	}
	// restic tells now by its own clock; a future snapshot must stay one.
	now := time.Now()
	span := []time.Duration{48 * time.Hour, 60 * 24 * time.Hour, 900 * 24 * time.Hour, 9 * 365 * 24 * time.Hour}[rnd.IntN(4)]
	seen := make(map[int64]bool)
	for range n {
		at := now.Add(-time.Duration(rnd.Int64N(int64(span)))).Truncate(time.Second)
		if rnd.IntN(20) == 0 {
			at = now.Add(time.Duration(rnd.Int64N(int64(span)) + int64(time.Hour))).Truncate(time.Second)
		}
		if seen[at.Unix()] {
			continue // the order of equal times is restic's secret
		}
		seen[at.Unix()] = true
		zones := []int{0, 2 * 3600, -8 * 3600, 5*3600 + 1800}
		s := &restic.Snapshot{Time: at.In(time.FixedZone("", zones[rnd.IntN(len(zones))])), Tree: first.Tree,
			Hostname: []string{"one", "two"}[rnd.IntN(2)], Paths: []string{"/" + []string{"p", "q"}[rnd.IntN(8)/7]}}
		for _, tag := range []string{"a", "b", "c"} {
			if rnd.IntN(4) == 0 {
				s.Tags = append(s.Tags, tag)
			}
		}
		doc, err := restic.EncodeSnapshot(s)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.saveDocument(t.Context(), restic.SnapshotFile, doc); err != nil {
			t.Fatal(err)
		}
	}
}

// randomPolicy makes a policy and restic's arguments for it.
func randomPolicy(rnd *rand.Rand) (p restic.Policy, args []string) {
	counts := []struct {
		flag string
		n    *int
	}{{"last", &p.Last}, {"hourly", &p.Hourly}, {"daily", &p.Daily}, {"weekly", &p.Weekly}, {"monthly", &p.Monthly}, {"yearly", &p.Yearly}}
	for _, c := range counts {
		switch rnd.IntN(5) {
		case 0:
			*c.n = 1 + rnd.IntN(6)
			args = append(args, fmt.Sprintf("--keep-%s=%d", c.flag, *c.n))
		case 1:
			if rnd.IntN(6) == 0 {
				*c.n = -1
				args = append(args, fmt.Sprintf("--keep-%s=unlimited", c.flag))
			}
		}
	}
	spans := []struct {
		flag string
		d    *restic.Duration
	}{{"within", &p.Within}, {"within-hourly", &p.WithinHourly}, {"within-daily", &p.WithinDaily}, {"within-weekly", &p.WithinWeekly},
		{"within-monthly", &p.WithinMonthly}, {"within-yearly", &p.WithinYearly}}
	for _, s := range spans {
		if rnd.IntN(6) == 0 {
			*s.d = restic.Duration{Hours: rnd.IntN(30), Days: rnd.IntN(20), Months: rnd.IntN(3), Years: rnd.IntN(2)}
			if *s.d == (restic.Duration{}) {
				s.d.Days = 1
			}
			args = append(args, "--keep-"+s.flag+"="+s.d.String())
		}
	}
	if rnd.IntN(4) == 0 {
		p.Tags = append(p.Tags, []string{"a", "b"})
		args = append(args, "--keep-tag=a,b")
	}
	if rnd.IntN(6) == 0 {
		p.Tags = append(p.Tags, []string{"c"})
		args = append(args, "--keep-tag=c")
	}
	if p.Empty() {
		p.Last = 1
		args = append(args, "--keep-last=1")
	}
	return p, args
}

func TestPolicyDecidesAsResticDoes(t *testing.T) {
	const histories, policies = 5, 8
	for h := range histories {
		rnd := rand.New(rand.NewPCG(uint64(h), 7))
		r, _, peer := onDisk(t)
		history(t, r, rnd, 10+rnd.IntN(60))
		for range policies {
			p, args := randomPolicy(rnd)
			groupBy := []string{"host,paths", "host", "paths", "host,tags", ""}[rnd.IntN(5)]
			g, err := restic.ParseGroupBy(groupBy)
			if err != nil {
				t.Fatal(err)
			}
			what := fmt.Sprintf("history %d, --group-by=%s %s", h, groupBy, strings.Join(args, " "))
			report, err := r.Forget(Unlocked(t.Context(), r), ForgetOptions{Policy: p, GroupBy: g, DryRun: true})
			res := peer.Try(append([]string{"forget", "--dry-run", "--json", "--no-lock", "--group-by=" + groupBy}, args...)...)
			if (err != nil) != (res.Code != 0) {
				t.Fatalf("%s: we say %v, restic %d %s", what, err, res.Code, res.Stderr)
			}
			if err != nil {
				continue
			}
			var groups []struct {
				Keep, Remove []struct{ ID restic.ID }
			}
			if err := json.Unmarshal([]byte(res.Stdout), &groups); err != nil {
				t.Fatalf("%s: %v: %s", what, err, res.Stdout)
			}
			var ours, theirs []string
			for _, g := range report.Groups {
				for _, s := range g.Remove {
					ours = append(ours, s.ID.Short())
				}
			}
			keeps := 0
			for _, g := range groups {
				for _, s := range g.Remove {
					theirs = append(theirs, s.ID.Short())
				}
				keeps += len(g.Keep)
			}
			slices.Sort(ours)
			slices.Sort(theirs)
			if !slices.Equal(ours, theirs) || keeps == 0 {
				t.Fatalf("%s:\nwe remove     %v\nrestic removes %v", what, ours, theirs)
			}
		}
	}
}

func TestForgetRefusesToKeepNothing(t *testing.T) {
	r, _, _ := onDisk(t)
	if _, err := r.Forget(t.Context(), ForgetOptions{}); err != ErrNoPolicy {
		t.Errorf("no policy: %v", err)
	}
	if _, err := r.Forget(t.Context(), ForgetOptions{Policy: restic.Policy{Daily: -2}}); err == nil {
		t.Error("a count of -2 was accepted")
	}
}
