package main

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/vmkeep/vmkeep/repo"
)

// progress tells how far the check is: a line that is written over on a terminal, JSON lines with --json, or
// nothing. It speaks when told something, at most so often; a stage's beginning is always told.
type progress struct {
	p        *program
	json     bool
	interval time.Duration

	mu    sync.Mutex
	last  time.Time
	stage repo.CheckStage
	begun time.Time // of the stage
	drawn bool
}

// newProgress gives nil where nobody is to be told; a nil progress tells nothing.
func (p *program) newProgress(o *options) *progress {
	if o.quiet || o.nagios || (!o.json && !p.terminal) {
		return nil
	}
	interval := time.Duration(float64(time.Second) / p.fps())
	if _, set := p.env("RESTIC_PROGRESS_FPS"); o.json && !set {
		interval = time.Second
	}
	return &progress{p: p, json: o.json, interval: interval}
}

func (g *progress) tell(c repo.CheckProgress) {
	if g == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.p.now()
	if c.Stage == g.stage && now.Sub(g.last) < g.interval {
		return
	}
	if c.Stage != g.stage {
		g.begun = now
	}
	g.last, g.stage = now, c.Stage
	if g.json {
		writeLine(g.p.stdout, "status", struct {
			Stage      repo.CheckStage `json:"stage"`
			Done       int64           `json:"done"`
			Total      int64           `json:"total"`
			Bytes      int64           `json:"bytes"`
			TotalBytes int64           `json:"total_bytes"`
		}{c.Stage, c.Done, c.Total, c.Bytes, c.TotalBytes})
		return
	}
	// \r goes to the line's beginning, the escape sequence clears it.
	fmt.Fprintf(g.p.stderr, "\r\x1b[K%s", line(c, now.Sub(g.begun)))
	g.drawn = true
}

// line is what a terminal shows of a check's progress.
func line(c repo.CheckProgress, since time.Duration) string {
	var b strings.Builder
	fmt.Fprintf(&b, "checking %s  %d", c.Stage, c.Done)
	if c.Total > 0 {
		fmt.Fprintf(&b, " / %d", c.Total)
	}
	if c.TotalBytes > 0 {
		fmt.Fprintf(&b, "  %s / %s", size(c.Bytes), size(c.TotalBytes))
		if since >= time.Second && c.Bytes > 0 {
			rate := float64(c.Bytes) / since.Seconds()
			left := time.Duration(float64(max(0, c.TotalBytes-c.Bytes)) / rate * float64(time.Second))
			fmt.Fprintf(&b, "  %s/s  %s left", size(int64(rate)), left.Round(time.Second))
		}
	}
	return b.String()
}

// end clears the line for what follows.
func (g *progress) end() {
	if g == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.drawn {
		fmt.Fprint(g.p.stderr, "\r\x1b[K")
	}
}
