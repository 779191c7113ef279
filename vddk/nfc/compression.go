package nfc

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmkeep/vmkeep/vddk/nfc/internal/wire"
)

// Compression is how sector data are packed on the wire.
type Compression int

// Compressions. FastLZ and Skipz cost the host little; Zlib pays on thin lines only.
const (
	Auto   Compression = iota // by measurement, see rule; writes are not packed
	None                      // fastest where the network is
	Zlib                      // smallest
	FastLZ                    // a compromise
	Skipz                     // leaves zeros out
)

func (c Compression) String() string {
	if c == Auto {
		return "auto"
	}
	return c.wire().String()
}

func (c Compression) wire() wire.Compression { return wire.Compression(c - None) }

// ParseCompression is the inverse of String.
func ParseCompression(s string) (Compression, error) {
	for c := Auto; c <= Skipz; c++ {
		if c.String() == s {
			return c, nil
		}
	}
	return Auto, fmt.Errorf("unknown NFC compression %q: auto, none, zlib, fastlz and skipz are possible", s)
}

// rule chooses the compression of the next request. [Auto] measures: reading starts uncompressed; when that is slower
// than a fast network, FastLZ is tried for a while, on very thin lines zlib, and kept when sector data then arrive
// clearly faster. What lost is tried again ever more rarely, for lines change during long backups.
type rule struct {
	fixed Compression
	now   atomic.Int32 // wire.Compression of the next read

	mu      sync.Mutex
	bytes   int64         // of the window
	from    time.Duration // busy time at its start
	kept    wire.Compression
	rate    float64 // bytes per second of what is kept
	windows int     // since the last trial
	patient int     // windows between trials
}

// What the rule measures by.
const (
	window      = 32 << 20 // bytes
	windowTime  = 2 * time.Second
	fastEnough  = 200e6 // bytes per second: packing would cost more than it gains
	thin        = 20e6  // bytes per second: zlib may pay
	clearly     = 1.15
	firstTrial  = 2
	rarestTrial = 128
)

func (r *rule) read() wire.Compression {
	if r.fixed != Auto {
		return r.fixed.wire()
	}
	return wire.Compression(r.now.Load())
}

func (r *rule) write() wire.Compression {
	if r.fixed != Auto {
		return r.fixed.wire()
	}
	return wire.None
}

// observe counts n bytes read; busy is the session's time with reads in flight so far.
func (r *rule) observe(n int64, busy time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if busy < r.from { // a new session
		r.bytes, r.from = 0, busy
	}
	r.bytes += n
	took := busy - r.from
	if took <= 0 || r.bytes < window && took < windowTime {
		return
	}
	rate := float64(r.bytes) / took.Seconds()
	r.bytes, r.from = 0, busy
	r.now.Store(int32(r.judge(rate)))
}

// judge takes the rate of a window and chooses for the next.
func (r *rule) judge(rate float64) wire.Compression {
	if used := wire.Compression(r.now.Load()); used != r.kept { // a trial ended
		r.windows = 0
		if rate > clearly*r.rate {
			r.kept, r.rate, r.patient = used, rate, firstTrial
		} else {
			r.patient = min(2*r.patient, rarestTrial)
		}
		return r.kept
	}
	r.rate = rate
	r.windows++
	if r.kept == wire.None && rate >= fastEnough || r.windows < max(r.patient, firstTrial) {
		return r.kept
	}
	r.patient = max(r.patient, firstTrial)
	switch {
	case r.kept == wire.None:
		return wire.FastLZ
	case r.kept == wire.FastLZ && rate < thin:
		return wire.Zlib
	case r.kept == wire.Zlib:
		return wire.FastLZ
	}
	return wire.None
}
