package nfc

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/vmkeep/vmkeep/chunker/extent"
)

func TestAllocatedChunksAreThoseWhoseBitIsSet(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		n := 1 + rng.Int64N(200)
		bitmap := make([]byte, (n+7)/8)
		for i := range bitmap {
			switch rng.IntN(3) { // runs and mixtures
			case 0:
				bitmap[i] = 0xff
			case 1:
				bitmap[i] = byte(rng.Uint32())
			}
		}
		const off = 7 * chunk
		var want []extent.Extent
		for i := range n {
			if bitmap[i/8]>>(i%8)&1 == 1 {
				want = append(want, extent.Extent{Off: off + i*chunk, Len: chunk})
			}
		}
		if got := allocatedChunks(bitmap, off, n); !slices.Equal(got, extent.Of(want...)) {
			t.Fatalf("%d chunks, bitmap %x: %v, want %v", n, bitmap, got, extent.Of(want...))
		}
	}
}
