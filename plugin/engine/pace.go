package engine

import (
	"math"
	"time"
)

// paceTime is how far back the speed counts that an end is estimated from: long enough for the answer to be calm, short
// enough to notice soon that reading has become writing, or that a target is slower than it was.
const paceTime = 30 * time.Second

// pace is how fast work goes, from looks at it: the mean since it began, and when it has gone on for long, a mean in
// which what is older counts ever less. Before the first byte nothing counts, so that waiting for the begin is not
// taken for slowness.
type pace struct {
	at    time.Time
	done  int64   // at that time
	spent float64 // seconds of work seen
	speed float64 // bytes per second
}

// look notes how much is done now.
func (p *pace) look(now time.Time, done int64) {
	passed := now.Sub(p.at).Seconds()
	if p.at.IsZero() || p.spent == 0 && done == 0 {
		p.at, p.done = now, done
		return
	}
	if passed <= 0 {
		return
	}
	p.spent += passed
	weight := max(passed/p.spent, 1-math.Exp(-passed/paceTime.Seconds()))
	p.speed += weight * (float64(done-p.done)/passed - p.speed)
	p.at, p.done = now, done
}

// left is how long n bytes more take, in whole seconds. 0: nobody knows, or there is nothing left.
func (p *pace) left(n int64) time.Duration {
	seconds := float64(n) / p.speed
	if n <= 0 || p.spent < 1 || p.speed <= 0 || seconds > paceMost.Seconds() {
		return 0
	}
	return max(time.Second, time.Duration(seconds*float64(time.Second)).Round(time.Second))
}

// paceMost is the longest time that is still worth telling.
const paceMost = 1000 * time.Hour
