package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/vmkeep/vmkeep/cmd/internal/build"
	"github.com/vmkeep/vmkeep/repo"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// result is a check that was made, or tried: then err is set, and report may be missing.
type result struct {
	options           *options
	location          string
	repository        string // ID
	chosen            string // packs that were to be read: all, none, n/t, x%, a size
	started, finished time.Time
	newest            []newest
	report            *repo.CheckReport
	coverage          *coverage // with --proof
	err               error
}

// newest is the time of a host's newest snapshot.
type newest struct {
	Host string    `json:"host"`
	Time time.Time `json:"time"`
}

func newestByHost(snapshots []*restic.Snapshot) []newest {
	times := map[string]time.Time{}
	for _, s := range snapshots {
		if s.Time.After(times[s.Hostname]) {
			times[s.Hostname] = s.Time
		}
	}
	var out []newest
	for _, host := range slices.Sorted(maps.Keys(times)) {
		out = append(out, newest{host, times[host].UTC()})
	}
	return out
}

// last is the newest of all snapshots.
func (r *result) last() (newest, bool) {
	if len(r.newest) == 0 {
		return newest{}, false
	}
	return slices.MaxFunc(r.newest, func(a, b newest) int { return a.Time.Compare(b.Time) }), true
}

func (r *result) hints() int {
	n := 0
	for _, f := range r.report.Findings {
		if f.Severity == repo.Hint {
			n++
		}
	}
	return n
}

// share is how much of the packs was read, from 0 to 1.
func (r *result) share() float64 {
	if r.report.PackBytes == 0 {
		return 0
	}
	return min(1, float64(r.report.BytesRead)/float64(r.report.PackBytes))
}

// describe puts a finding in one line, without its remedy.
func describe(f repo.Finding) string {
	var where []string
	if f.File != "" && !strings.Contains(f.Text, f.File) {
		where = append(where, f.File)
	}
	if f.Path != "" && !strings.Contains(f.Text, f.Path) {
		where = append(where, "snapshot "+f.Snapshot.Short()+" "+f.Path)
	}
	if f.Length > 0 {
		where = append(where, fmt.Sprintf("bytes %d to %d", f.Offset, f.Offset+f.Length-1))
	}
	if len(where) == 0 {
		return f.Text
	}
	return f.Text + " (" + strings.Join(where, ", ") + ")"
}

// shown bounds a report for people; JSON and proof have all.
const shown = 50

// writeReport is for people: what was looked at, what was found, and what it comes to.
func (p *program) writeReport(r *result) {
	rep := r.report
	if !r.options.quiet {
		fmt.Fprintf(p.stdout, "repository %.8s at %s\n", r.repository, r.location)
		line := func(name, format string, args ...any) {
			fmt.Fprintf(p.stdout, "  %-12s %s\n", name, fmt.Sprintf(format, args...))
		}
		line("snapshots", "%d", rep.Snapshots)
		if last, ok := r.last(); ok {
			line("newest", "%s, of %s", last.Time.Format(time.DateTime+" UTC"), last.Host)
		}
		line("files", "%d in %d trees", rep.Files, rep.Trees)
		line("packs", "%d, %s, %d blobs in %d index files", rep.Packs, size(rep.PackBytes), rep.Blobs, rep.IndexFiles)
		if rep.UnusedBlobs > 0 {
			line("unused", "%d blobs, %s (prune frees what is worth it)", rep.UnusedBlobs, size(rep.UnusedBytes))
		}
		switch r.chosen {
		case "none":
			line("data", "not read (--read-data, --read-data-subset or --daily reads it)")
		default:
			line("data", "%d packs read and verified, %s, %.1f %% of all (%s)", rep.PacksRead, size(rep.BytesRead), 100*r.share(), r.reason())
		}
		line("took", "%s", r.finished.Sub(r.started).Round(time.Millisecond))
	}
	if text := r.coverage.lateText(r.finished); text != "" {
		fmt.Fprintf(p.stdout, "warning: %s\n  -> run `vmkeep-check --read-data` once, and see that the daily run happens each day\n", text)
	}
	findings := slices.Clone(rep.Findings)
	if r.options.quiet {
		findings = slices.DeleteFunc(findings, func(f repo.Finding) bool { return f.Severity != repo.Error })
	}
	for i, f := range findings {
		if i == shown {
			fmt.Fprintf(p.stdout, "and %d more, which --json and --proof tell\n", len(findings)-shown+rep.FindingsOmitted)
			break
		}
		fmt.Fprintf(p.stdout, "%s: %s\n", f.Severity, describe(f))
		if f.Remedy != "" {
			fmt.Fprintf(p.stdout, "  -> %s\n", f.Remedy)
		}
	}
	switch n := rep.Errors(); {
	case n > 0:
		fmt.Fprintf(p.stdout, "%s found: the repository is damaged\n", count(n, "error"))
	case !r.options.quiet:
		fmt.Fprintln(p.stdout, "no errors found")
	}
}

// reason says in words why these packs were read.
func (r *result) reason() string {
	switch {
	case r.options.daily > 0:
		return fmt.Sprintf("part %s of %s", r.chosen, r.started.UTC().Format(time.DateOnly))
	case r.chosen == "all":
		return "all"
	case strings.Contains(r.chosen, "/"):
		return "part " + r.chosen
	}
	return r.chosen + ", chosen at random"
}

func count(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

// size spells bytes in binary units.
func size(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, unit := float64(n)/1024, 0
	for v >= 1023.95 && unit < 5 {
		v, unit = v/1024, unit+1
	}
	return fmt.Sprintf("%.1f %ciB", v, "KMGTPE"[unit])
}

// writeLine writes v as one JSON line with its message_type first.
func writeLine(w io.Writer, messageType string, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		body = []byte("{}") // none of our values can fail
	}
	sep := ","
	if len(body) == 2 {
		sep = ""
	}
	fmt.Fprintf(w, "{\"message_type\":%q%s%s\n", messageType, sep, body[1:])
}

// verdict is a record of a check, for machines: the summary line and the proof have it.
type verdict struct {
	Tool        string    `json:"tool"`
	ToolVersion string    `json:"tool_version"`
	Platform    string    `json:"platform"`
	Repository  string    `json:"repository"`
	Location    string    `json:"location"`
	Started     time.Time `json:"started"`
	Finished    time.Time `json:"finished"`
	Seconds     float64   `json:"duration_seconds"`
	// Result is ok, damaged, or incomplete: the check could not be made to its end, Error says why.
	Result string `json:"result"`
	Error  string `json:"error,omitempty"`
	// Verified says what the result is about. Structure: everything any snapshot needs is named by an index and
	// lies in a pack of the right size, and all trees were read. Data: packs that were read and verified bit by bit.
	Verified verified `json:"verified"`
	Errors   int      `json:"errors"`
	Hints    int      `json:"hints"`
	Newest   []newest `json:"newest_snapshots"`
}

type verified struct {
	Structure bool    `json:"structure"`
	Data      string  `json:"data"` // all, none, n/t, x%, a size
	DailyOf   int     `json:"daily_of,omitempty"`
	PacksRead int     `json:"packs_read"`
	BytesRead int64   `json:"bytes_read"`
	ShareRead float64 `json:"share_read"` // of all bytes in packs
	Snapshots int     `json:"snapshots"`
	Trees     int     `json:"trees"`
	Files     int     `json:"files"`
	Packs     int     `json:"packs"`
	PackBytes int64   `json:"pack_bytes"`
	Blobs     int     `json:"blobs"`
}

func (r *result) verdict() verdict {
	v := verdict{
		Tool: "vmkeep-check", ToolVersion: build.Version(), Platform: build.Platform(), Repository: r.repository, Location: r.location,
		Started: r.started.UTC(), Finished: r.finished.UTC(), Seconds: r.finished.Sub(r.started).Seconds(), Newest: append([]newest{}, r.newest...),
		Verified: verified{Data: r.chosen, DailyOf: r.options.daily},
	}
	if r.err != nil || r.report == nil {
		v.Result, v.Verified.Data = "incomplete", "none"
		if r.err != nil {
			v.Error = r.err.Error()
		}
		return v
	}
	rep := r.report
	v.Result, v.Errors, v.Hints = "ok", rep.Errors(), r.hints()
	if !rep.OK() {
		v.Result = "damaged"
	}
	v.Verified = verified{
		Structure: true, Data: r.chosen, DailyOf: r.options.daily, PacksRead: rep.PacksRead, BytesRead: rep.BytesRead, ShareRead: r.share(),
		Snapshots: rep.Snapshots, Trees: rep.Trees, Files: rep.Files, Packs: rep.Packs, PackBytes: rep.PackBytes, Blobs: rep.Blobs,
	}
	return v
}

// writeSummary tells findings and verdict as JSON lines.
func (p *program) writeSummary(r *result) {
	for _, f := range r.report.Findings {
		if r.options.quiet && f.Severity != repo.Error {
			continue
		}
		writeLine(p.stdout, "finding", f)
	}
	writeLine(p.stdout, "summary", r.verdict())
}

// overdue are the hosts whose newest snapshot is older than limit, the oldest first.
func (r *result) overdue(limit time.Duration) []newest {
	out := slices.DeleteFunc(slices.Clone(r.newest), func(n newest) bool { return r.finished.Sub(n.Time) <= limit })
	slices.SortFunc(out, func(a, b newest) int { return cmp.Or(a.Time.Compare(b.Time), cmp.Compare(a.Host, b.Host)) })
	return out
}
