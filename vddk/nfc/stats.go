package nfc

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// Stats is what a disk did so far.
type Stats struct {
	Reads, Writes int64         // operations answered well
	Fragments     int64         // frames with data, both ways
	RawBytes      int64         // of sector data, both ways
	WireBytes     int64         // of the same as sent, after compression
	Retries       int64         // operations asked for again
	Reconnects    int64         // sessions after the first
	P50, P99      time.Duration // time from request to last fragment: upper bounds, within a factor of two
}

// counters are the live Stats.
type counters struct {
	reads, writes, fragments, raw, wire, retries, reconnects atomic.Int64

	latency [40]atomic.Int64 // by the logarithm of microseconds
}

func (c *counters) took(d time.Duration) {
	c.latency[min(bits.Len64(uint64(max(d, 0)/time.Microsecond)), len(c.latency)-1)].Add(1)
}

func (c *counters) stats() Stats {
	s := Stats{
		Reads: c.reads.Load(), Writes: c.writes.Load(), Fragments: c.fragments.Load(),
		RawBytes: c.raw.Load(), WireBytes: c.wire.Load(), Retries: c.retries.Load(), Reconnects: c.reconnects.Load(),
	}
	var all int64
	for i := range c.latency {
		all += c.latency[i].Load()
	}
	var seen int64
	for i := range c.latency {
		seen += c.latency[i].Load()
		top := time.Microsecond << i
		if s.P50 == 0 && seen > 0 && 2*seen >= all {
			s.P50 = top
		}
		if s.P99 == 0 && seen > 0 && 100*seen >= 99*all {
			s.P99 = top
		}
	}
	return s
}
