package engine

import (
	"testing"
	"time"

	"github.com/vmkeep/vmkeep/plugin"
)

// The time that is left is a function of what was done when: no clock is asked.
func TestTheEndIsEstimatedFromThePace(t *testing.T) {
	const mib = 1 << 20
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	// steady is work at so many MiB per second from one second to another, looked at every 300 ms.
	steady := func(p *pace, from, to time.Duration, done *float64, speed float64) {
		for at := from; at < to; at += 300 * time.Millisecond {
			p.look(begin.Add(at), int64(*done))
			*done += speed * mib * 0.3
		}
	}
	near := func(what string, got, want time.Duration) {
		t.Helper()
		if got < want*9/10 || got > want*11/10 {
			t.Errorf("%s: %v left, want about %v", what, got, want)
		}
	}
	var p pace
	done := 0.0
	p.look(begin, 0)
	if got := p.left(mib); got != 0 {
		t.Errorf("before the first byte %v are left", got)
	}
	steady(&p, 0, time.Minute, &done, 0) // waiting for the begin
	steady(&p, time.Minute, 70*time.Second, &done, 10)
	near("after ten seconds at a steady pace", p.left(1000*mib), 100*time.Second)
	steady(&p, 70*time.Second, 10*time.Minute, &done, 10)
	near("after minutes at a steady pace", p.left(1000*mib), 100*time.Second)
	steady(&p, 10*time.Minute, 12*time.Minute, &done, 40)
	near("two minutes after it became four times as fast", p.left(1000*mib), 25*time.Second)
	before := p.left(1000 * mib)
	steady(&p, 12*time.Minute, 12*time.Minute+10*time.Second, &done, 0)
	if got := p.left(1000 * mib); got <= before || got > 3*before {
		t.Errorf("after a pause of ten seconds %v are left, were %v", got, before)
	}
	steady(&p, 13*time.Minute, 60*time.Minute, &done, 0)
	if got := p.left(1000 * mib); got != 0 {
		t.Errorf("after an hour without a byte %v are left", got)
	}
	if got := p.left(0); got != 0 {
		t.Errorf("of nothing %v are left", got)
	}

	// The same looks give the same answer, and so does half the number of them.
	var often, rarely pace
	for i := range 200 {
		at, n := begin.Add(time.Duration(i)*300*time.Millisecond), int64(i*i)*mib/10
		often.look(at, n)
		if i%2 == 0 {
			rarely.look(at, n)
		}
	}
	near("looked at half as often", rarely.left(5000*mib), often.left(5000*mib))
}

// All passes over all disks of a machine count, in bytes that are moved, from the beginning.
func TestTallyCountsAllDisksAndPasses(t *testing.T) {
	var none *tally
	none.expect("scsi0-0", plugin.PhaseRead, 1) // nobody wants to know
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	w := &tally{scope: scope{machine: "db"}}
	for _, disk := range []string{"scsi0-0", "scsi0-1"} {
		w.expect(disk, plugin.PhaseRestore, 1000)
		w.expect(disk, plugin.PhaseVerify, 1000)
	}
	expect := func(at time.Duration, done, total int64, eta time.Duration) {
		t.Helper()
		ev, moved := w.event(begin.Add(at))
		if !moved || ev.Disk != "" || ev.Machine != "db" || ev.Phase != plugin.PhaseDisks || ev.Progress.Done != done || ev.Progress.Total != total || ev.Progress.ETA != eta {
			t.Errorf("at %v: %v %+v, want %d of %d, %v left", at, moved, ev.Progress, done, total, eta)
		}
	}
	meterOf := func(disk string, phase plugin.Phase) (*meter, func()) {
		m := &meter{scope: scope{machine: "db", disk: disk}, phase: phase}
		m.total.Store(1000)
		return m, w.begin(m)
	}
	expect(0, 0, 4000, 0)
	first, ended := meterOf("scsi0-0", plugin.PhaseRestore)
	w.expect("scsi0-1", plugin.PhaseRestore, 100) // the rest of it is zeros
	first.skip(500)                               // so is half of this one
	first.work(100)
	expect(10*time.Second, 100, 100+400+1000+1100, 250*time.Second)
	first.work(300)
	first.skip(100)
	ended()
	expect(40*time.Second, 400, 400+1000+1100, 210*time.Second)
	if _, moved := w.event(begin.Add(41 * time.Second)); moved {
		t.Error("nothing moved, and it was told again")
	}
	second, _ := meterOf("scsi0-0", plugin.PhaseVerify)
	second.work(1000)
	if ev, _ := w.event(begin.Add(140 * time.Second)); ev.Progress.Done != 1400 || ev.Progress.Total != 2500 || ev.Progress.ETA < 100*time.Second || ev.Progress.ETA > 120*time.Second {
		t.Errorf("while the first disk is verified: %+v", ev.Progress)
	}
}
