package nfc

import (
	"testing"
	"time"

	"github.com/vmkeep/vmkeep/vddk/nfc/internal/wire"
)

// line is a line of so many bytes per second, over which data shrink to ratio, and packing runs at most at a rate.
type aLine struct{ rate, fastlz, zlib, pack float64 }

func (l aLine) seconds(n int64, c wire.Compression) float64 {
	switch ratio := float64(n); c {
	case wire.FastLZ:
		return max(ratio*l.fastlz/l.rate, ratio/l.pack)
	case wire.Zlib:
		return max(ratio*l.zlib/l.rate, 3*ratio/l.pack)
	default:
		return ratio / l.rate
	}
}

// read moves total bytes by the rule and returns what most of the last half went by, and the time it took.
func (l aLine) read(r *rule, total int64) (wire.Compression, time.Duration) {
	const request = 1 << 20
	var busy time.Duration
	used := map[wire.Compression]int{}
	for at := int64(0); at < total; at += request {
		c := r.read()
		busy += time.Duration(l.seconds(request, c) * float64(time.Second))
		if at > total/2 {
			used[c]++
		}
		r.observe(request, busy)
	}
	best := wire.None
	for c, n := range used {
		if n > used[best] {
			best = c
		}
	}
	return best, busy
}

func TestAutomaticRule(t *testing.T) {
	for name, c := range map[string]struct {
		line aLine
		want wire.Compression
	}{
		"10 GbE":                 {aLine{1100e6, 0.5, 0.4, 250e6}, wire.None},
		"1 GbE, compressible":    {aLine{115e6, 0.5, 0.4, 400e6}, wire.FastLZ},
		"1 GbE, incompressible":  {aLine{115e6, 1, 1, 400e6}, wire.None},
		"thin, compressible":     {aLine{6e6, 0.6, 0.35, 400e6}, wire.Zlib},
		"thin, zlib gains least": {aLine{6e6, 0.6, 0.59, 400e6}, wire.FastLZ},
		"slow processor":         {aLine{115e6, 0.5, 0.4, 100e6}, wire.None},
	} {
		t.Run(name, func(t *testing.T) {
			const total = 20 << 30
			r := &rule{}
			got, took := c.line.read(r, total)
			if got != c.want {
				t.Errorf("settles on %s", got)
			}
			if best := c.line.seconds(total, c.want); took.Seconds() > 1.1*best {
				t.Errorf("takes %s, the best choice all the time %.0f s", took, best)
			}
			if r.write() != wire.None {
				t.Error("writes are packed")
			}
		})
	}
	t.Run("line changes", func(t *testing.T) {
		r := &rule{}
		aLine{1100e6, 0.5, 0.4, 250e6}.read(r, 10<<30)
		if got, _ := (aLine{50e6, 0.5, 0.4, 250e6}).read(r, 10<<30); got != wire.FastLZ {
			t.Errorf("settles on %s", got)
		}
	})
	t.Run("fixed", func(t *testing.T) {
		for c := None; c <= Skipz; c++ {
			r := &rule{fixed: c}
			if r.read().String() != c.String() || r.write() != r.read() {
				t.Errorf("%s reads by %s", c, r.read())
			}
			if got, err := ParseCompression(c.String()); err != nil || got != c {
				t.Errorf("%s parses as %s (%v)", c, got, err)
			}
		}
		if _, err := ParseCompression("lz4"); err == nil {
			t.Error("lz4 is accepted")
		}
	})
}
