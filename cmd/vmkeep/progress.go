package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/vmkeep/vmkeep/plugin"
)

// How often figures of progress are shown, unless RESTIC_PROGRESS_FPS says otherwise.
const (
	barsEvery  = 250 * time.Millisecond
	jsonEvery  = time.Second
	linesEvery = 30 * time.Second
)

// watching shows the events of one operation.
type watching struct {
	emit   func(plugin.Event)
	finish func() // takes the bars away
}

// watch chooses how events are shown: JSON lines, nothing, bars on a terminal, or plain lines.
func (a *app) watch() watching {
	switch {
	case a.json:
		limit := newLimiter(a.interval(jsonEvery))
		return watching{emit: func(e plugin.Event) {
			if e.Kind != plugin.EventProgress || limit.allow(e) {
				writeJSON(a.stdout, string(e.Kind), e)
			}
		}, finish: func() {}}
	case a.quiet:
		return watching{emit: func(plugin.Event) {}, finish: func() {}}
	case a.terminal() && !a.noBars:
		b := newBars(a.stderr, a.interval(barsEvery))
		return watching{emit: b.show, finish: b.finish}
	}
	limit := newLimiter(a.interval(linesEvery))
	return watching{emit: func(e plugin.Event) {
		if e.Kind != plugin.EventProgress || limit.allow(e) {
			for _, line := range describe(e) {
				fmt.Fprintln(a.stderr, line)
			}
		}
	}, finish: func() {}}
}

// interval honours restic's variable for updates per second.
func (a *app) interval(usual time.Duration) time.Duration {
	fps, err := strconv.ParseFloat(a.env.getenv("RESTIC_PROGRESS_FPS"), 64)
	if err != nil || fps <= 0 || fps > 60 {
		return usual
	}
	return time.Duration(float64(time.Second) / fps)
}

// limiter lets figures of one thing pass at most once per interval. It goes by the times of the events.
type limiter struct {
	every time.Duration
	last  map[string]time.Time
}

func newLimiter(every time.Duration) *limiter {
	return &limiter{every: every, last: make(map[string]time.Time)}
}

func (l *limiter) allow(e plugin.Event) bool {
	key := subject(e)
	if last, ok := l.last[key]; ok && e.Time.Sub(last) < l.every {
		return false
	}
	l.last[key] = e.Time
	return true
}

// place names what an event is about.
func place(e plugin.Event) string { return strings.TrimSpace(e.Machine + " " + e.Disk) }

// subject tells figures apart: a machine as a whole may have several at a time, a disk is in one phase.
func subject(e plugin.Event) string {
	if e.Disk == "" {
		return e.Machine + " " + string(e.Phase)
	}
	return place(e)
}

// describe writes an event as lines.
func describe(e plugin.Event) []string {
	where := place(e)
	if where != "" {
		where += ": "
	}
	switch {
	case e.Kind == plugin.EventPhase:
		return []string{where + string(e.Phase)}
	case e.Progress != nil:
		line := fmt.Sprintf("%s%s: at %s of %s", where, e.Phase, size(e.Progress.Done), size(e.Progress.Total))
		if e.Progress.ETA > 0 {
			line += ", " + elapsed(e.Progress.ETA.Round(time.Second)) + " left"
		}
		return []string{line}
	case e.Diagnostic != nil:
		return remark(where, *e.Diagnostic)
	case e.Result != nil:
		return outcome(*e.Result)
	}
	return nil
}

// remark writes a diagnostic as lines.
func remark(where string, d plugin.Diagnostic) []string {
	word := ""
	if d.Severity != plugin.SeverityInfo && d.Severity != "" {
		word = string(d.Severity) + ": "
	}
	line := where + word + d.Summary
	if d.Detail != "" {
		line += ": " + d.Detail
	}
	lines := []string{line}
	if d.Remedy != "" {
		lines = append(lines, "  -> "+d.Remedy)
	}
	return lines
}

// outcome writes what became of a machine as lines.
func outcome(r plugin.MachineResult) []string {
	if r.Err != nil {
		return remark(r.Machine.Name+": ", r.Err.Diagnostic())
	}
	if r.Point == nil {
		return []string{r.Machine.Name + ": no point was made"}
	}
	s := r.Point.Stats
	return []string{fmt.Sprintf("%s: point %s, read %s of %s, stored %s, %s", r.Machine.Name, short(r.Point.ID), size(s.Read), size(s.Size), size(s.Stored), elapsed(s.Duration))}
}

// bars shows one bar per machine or disk that is being worked on, and lines of what happened above them.
type bars struct {
	container *mpb.Progress
	all       map[string]*bar
}

type bar struct {
	*mpb.Bar
	machine string
	now     atomic.Pointer[figures]
}

// figures are what a bar shows. rate is in bytes per second, smoothed.
type figures struct {
	plugin.Progress
	at    time.Time
	rate  float64
	phase string
}

func newBars(w io.Writer, every time.Duration) *bars {
	return &bars{container: mpb.New(mpb.WithOutput(w), mpb.WithRefreshRate(every)), all: make(map[string]*bar)}
}

func (b *bars) show(e plugin.Event) {
	if e.Kind == plugin.EventProgress {
		b.update(e)
		return
	}
	if e.Kind == plugin.EventResult {
		b.drop(e.Machine)
	}
	for _, line := range describe(e) {
		fmt.Fprintln(b.container, line)
	}
}

func (b *bars) update(e plugin.Event) {
	key := subject(e)
	x, ok := b.all[key]
	if !ok {
		x = &bar{machine: e.Machine}
		x.now.Store(&figures{at: e.Time})
		x.Bar = b.container.New(e.Progress.Total, mpb.BarStyle().Lbound("[").Filler("=").Tip(">").Padding(" ").Rbound("]"),
			mpb.BarRemoveOnComplete(),
			mpb.PrependDecorators(
				decor.Name(place(e), decor.WCSyncSpaceR),
				decor.Any(func(decor.Statistics) string { return x.now.Load().phase }, decor.WCSyncSpaceR),
				decor.Percentage(decor.WC{W: 5})),
			mpb.AppendDecorators(
				decor.Any(func(decor.Statistics) string {
					f := x.now.Load()
					return fmt.Sprintf("%10s of %s", size(f.Done), size(f.Total))
				}, decor.WCSyncSpaceR),
				decor.Any(func(decor.Statistics) string { return fmt.Sprintf("%12s/s", size(int64(x.now.Load().rate))) }, decor.WCSyncSpace),
				decor.Any(func(decor.Statistics) string {
					if eta := x.now.Load().ETA; eta > 0 {
						return elapsed(max(eta.Round(time.Second), time.Second)) + " left"
					}
					return ""
				}, decor.WCSyncSpace)))
		b.all[key] = x
	}
	last := x.now.Load()
	next := &figures{Progress: *e.Progress, at: e.Time, rate: last.rate, phase: string(e.Phase)}
	if spent := e.Time.Sub(last.at).Seconds(); spent > 0 {
		// An exponential mean over about five seconds is calm and still follows.
		weight := min(spent/5, 1)
		if last.rate == 0 {
			weight = 1
		}
		next.rate = last.rate + weight*(float64(next.Done-last.Done)/spent-last.rate)
	}
	x.now.Store(next)
	x.SetTotal(e.Progress.Total, false)
	x.SetCurrent(e.Progress.Done)
	if e.Progress.Total > 0 && e.Progress.Done >= e.Progress.Total {
		x.Abort(true)
		delete(b.all, key)
	}
}

func (b *bars) drop(machine string) {
	for key, x := range b.all {
		if x.machine == machine {
			x.Abort(true)
			delete(b.all, key)
		}
	}
}

func (b *bars) finish() {
	for _, x := range b.all {
		x.Abort(true)
	}
	b.all = nil
	b.container.Wait()
}
