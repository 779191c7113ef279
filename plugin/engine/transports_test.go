package engine_test

import (
	"strings"
	"testing"

	"github.com/vmkeep/vmkeep/plugin"
)

// Transports are tried in the configured order, and what a refused one said is told.
func TestFallingToTheNextTransportIsTold(t *testing.T) {
	r := newRig(t, oneDisk(), inProcess)
	r.scribble(seeded(51), "db", bigKey, mediumSize, 5, 1<<20)
	c := r.config
	c.Transports = []string{"vddk:nbdssl", "hotadd", "nbd"}
	c.VDDKDir = t.TempDir() // holds no library
	r.must(r.Configure(t.Context(), c))
	point := r.backup("db", nil)
	if d := r.disk(point, "scsi0-0"); !strings.HasPrefix(d.Transport, "nbd ") {
		t.Errorf("the disk was read over %q", d.Transport)
	}
	var told []string
	for _, ev := range r.events {
		if ev.Kind == plugin.EventDiagnostic && ev.Diagnostic.Code == plugin.CodeTransport {
			told = append(told, ev.Diagnostic.Summary+": "+ev.Diagnostic.Detail)
		}
	}
	if len(told) != 2 || !strings.Contains(told[0], "vddk") || !strings.Contains(told[1], "hotadd") {
		t.Errorf("told of refusals: %q", told)
	}
	for _, bad := range [][]string{{"carrier pigeon"}, {"nbd:san"}, {"vddk:pigeon"}} {
		c.Transports = bad
		if err := r.Configure(t.Context(), c); plugin.CodeOf(err) != plugin.CodeInvalid {
			t.Errorf("transports %q: %v", bad, err)
		}
	}
}
