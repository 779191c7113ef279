package main

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"time"
)

// coverage remembers, in the proof record, when --daily last read each of its parts: a run that did not happen leaves a part
// unread for as many days again, and nothing else would tell.
type coverage struct {
	Repository string            `json:"repository"`
	Parts      int               `json:"parts"`
	Since      time.Time         `json:"since"` // the first run with these parts
	Read       map[int]time.Time `json:"read"`  // by part, from 1
}

// previousCoverage is that of the record at name, none if there is no record of this repository.
func previousCoverage(name, repository string) *coverage {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil
	}
	var old proof
	if json.Unmarshal(text, &old) != nil || old.Coverage == nil || old.Coverage.Read == nil || repository != "" && old.Coverage.Repository != repository {
		return nil
	}
	return old.Coverage
}

// note is the coverage after a check that read part of parts; with parts 0 it was no daily one.
func (c *coverage) note(r *result, part, parts int) *coverage {
	if parts > 0 && (c == nil || c.Parts != parts) {
		c = &coverage{Repository: r.repository, Parts: parts, Since: r.started.UTC(), Read: map[int]time.Time{}}
	}
	if c == nil || r.err != nil {
		return c
	}
	if r.chosen == "all" {
		for i := range c.Parts {
			c.Read[i+1] = r.started.UTC()
		}
	} else if parts > 0 {
		c.Read[part] = r.started.UTC()
	}
	return c
}

// late lists the parts that were last read, or have been waiting to be, for longer than all parts take: a day over, since
// runs do not begin on the second.
func (c *coverage) late(now time.Time) (out []int) {
	for part := 1; c != nil && part <= c.Parts; part++ {
		if now.Sub(c.last(part)) > time.Duration(c.Parts+1)*24*time.Hour {
			out = append(out, part)
		}
	}
	slices.SortStableFunc(out, func(a, b int) int { return c.last(a).Compare(c.last(b)) })
	return out
}

func (c *coverage) last(part int) time.Time {
	if at, ok := c.Read[part]; ok {
		return at
	}
	return c.Since
}

// lateText says in words that parts are late, "" if none is.
func (c *coverage) lateText(now time.Time) string {
	late := c.late(now)
	if len(late) == 0 {
		return ""
	}
	what := "was last read on " + c.last(late[0]).Format(time.DateOnly)
	if _, ok := c.Read[late[0]]; !ok {
		what = "was never read since " + c.Since.Format(time.DateOnly)
	}
	return fmt.Sprintf("%d of %d daily parts are late: part %d %s", len(late), c.Parts, late[0], what)
}
