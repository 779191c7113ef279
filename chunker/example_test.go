package chunker_test

import (
	"bytes"
	"fmt"
	"log"
	"math/rand/v2"

	"github.com/vmkeep/vmkeep/chunker"
	"github.com/vmkeep/vmkeep/chunker/extent"
)

func ExamplePlan_Chunks() {
	cutter, err := chunker.New(0x3DA3358B4DC173) // the polynomial of the repository
	if err != nil {
		log.Fatal(err)
	}
	disk := make([]byte, 10<<20)
	rand.NewChaCha8([32]byte{}).Read(disk[:8<<20]) // the last 2 MiB are a hole

	// The first time everything but the hole is read.
	plan := chunker.Plan{
		Size:  int64(len(disk)),
		Holes: extent.Of(extent.Extent{Off: 8 << 20, Len: 2 << 20}),
	}
	var lens []int
	for chunk, err := range plan.Chunks(bytes.NewReader(disk), cutter) {
		if err != nil {
			log.Fatal(err)
		}
		lens = append(lens, chunk.Len)
	}
	fmt.Println("full:", lens)

	// Then 64 KiB are written; change tracking says where. What did not change comes from the old point.
	point := bytes.Clone(disk)
	changed := extent.Extent{Off: 3 << 20, Len: 64 << 10}
	rand.NewChaCha8([32]byte{1}).Read(disk[changed.Off:changed.End()])

	plan.Old, plan.Dirty = lens, extent.Of(changed)
	source := &chunker.Overlay{Base: bytes.NewReader(point), Top: bytes.NewReader(disk), Extents: plan.Changed()}
	for chunk, err := range plan.Chunks(source, cutter) {
		switch {
		case err != nil:
			log.Fatal(err)
		case chunk.Zero:
			fmt.Println("zeros")
		case chunk.Data == nil:
			fmt.Println("as old chunk", chunk.Old)
		default:
			fmt.Println("new:", len(chunk.Data), "bytes")
		}
	}
	// Output:
	// full: [2251154 1480912 832483 658592 1635067 1530464 524288 524288 524288 524224]
	// as old chunk 0
	// new: 1480912 bytes
	// as old chunk 2
	// as old chunk 3
	// as old chunk 4
	// as old chunk 5
	// zeros
	// zeros
	// zeros
	// as old chunk 9
}
