package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/vmkeep/vmkeep/repo"
)

// Exit codes of monitoring plugins.
const (
	nagiosOK       = 0
	nagiosWarning  = 1
	nagiosCritical = 2
	nagiosUnknown  = 3
)

// nagiosExit prints the one line, "VMKEEP STATE - words | perfdata", and gives the exit code.
func (p *program) nagiosExit(o *options, err error) int {
	if o.result == nil || (err != nil && !errors.Is(err, errDamaged)) {
		fmt.Fprintf(p.stdout, "VMKEEP UNKNOWN - %s\n", oneLine(fmt.Sprint(err)))
		return nagiosUnknown
	}
	r := o.result
	rep := r.report
	words := fmt.Sprintf("%s, %s of %s", count(rep.Snapshots, "snapshot"), count(rep.Packs, "pack"), size(rep.PackBytes))
	if r.chosen != "none" {
		words += fmt.Sprintf(", %d read (%s)", rep.PacksRead, r.reason())
	}
	state, code := "OK", nagiosOK
	if overdue := r.overdue(o.maxAge); o.maxAge > 0 && (len(overdue) > 0 || len(r.newest) == 0) {
		state, code = "WARNING", nagiosWarning
		if len(overdue) == 0 {
			words = "no snapshot at all, " + words
		} else {
			words = fmt.Sprintf("newest snapshot of %s is %s old, %s", overdue[0].Host, r.finished.Sub(overdue[0].Time).Round(time.Minute), words)
			if len(overdue) > 1 {
				words = fmt.Sprintf("%d hosts overdue, %s", len(overdue), words)
			}
		}
	}
	if text := r.coverage.lateText(r.finished); text != "" {
		state, code = "WARNING", nagiosWarning
		words = text + ", " + words
	}
	if n := rep.Errors(); n > 0 {
		state, code = "CRITICAL", nagiosCritical
		first := ""
		for _, f := range rep.Findings {
			if f.Severity == repo.Error {
				first = ", first: " + describe(f)
				break
			}
		}
		words = count(n, "error") + first + ", " + words
	}
	perf := []string{
		fmt.Sprintf("errors=%d;;0;0", rep.Errors()), fmt.Sprintf("hints=%d;;;0", r.hints()), fmt.Sprintf("snapshots=%d;;;0", rep.Snapshots),
		fmt.Sprintf("packs=%d;;;0", rep.Packs), fmt.Sprintf("size=%dB;;;0", rep.PackBytes), fmt.Sprintf("packs_read=%d;;;0", rep.PacksRead),
		fmt.Sprintf("read=%dB;;;0", rep.BytesRead), fmt.Sprintf("time=%.3fs;;;0", r.finished.Sub(r.started).Seconds()),
	}
	if last, ok := r.last(); ok {
		limit := ""
		if o.maxAge > 0 {
			limit = fmt.Sprintf("%d", int64(o.maxAge.Seconds()))
		}
		perf = append(perf, fmt.Sprintf("age=%ds;%s;;0", int64(max(0, r.finished.Sub(last.Time)).Seconds()), limit))
	}
	fmt.Fprintf(p.stdout, "VMKEEP %s - %s | %s\n", state, oneLine(words), strings.Join(perf, " "))
	return code
}

// oneLine keeps text from ending the line or beginning the perfdata.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '|':
			return '/'
		case r < ' ':
			return ' '
		}
		return r
	}, s)
}
