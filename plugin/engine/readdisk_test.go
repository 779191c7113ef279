package engine_test

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/repo/backend/backendtest/peers"
	"github.com/vmkeep/vmkeep/vsphere/lab"
)

// A host that was cut off in the middle of a disk asks for the rest from where it stopped, and has the disk then.
func TestReadingADiskGoesOnAfterACut(t *testing.T) {
	r := newRig(t, oneDisk())
	rng := seeded(501)
	r.scribble(rng, "db", bigKey, mediumSize, 12, 2<<20)
	point := r.backup("db", nil)
	want := r.live("db", bigKey)
	cut := errors.New("the host is cut off")
	for _, n := range []int64{0, 1, 512, mediumSize / 3, rng.Int64N(mediumSize), mediumSize - 1} {
		var got []byte
		stop := n // the host takes no more than this of the first stream
		take := func(f plugin.Frame) error {
			if f.Offset != int64(len(got)) {
				t.Fatalf("a frame starts at %d, want %d", f.Offset, len(got))
			}
			data := f.Data
			if data == nil {
				data = make([]byte, f.Length)
			}
			if left := stop - int64(len(got)); stop < mediumSize && left < int64(len(data)) {
				got = append(got, data[:left]...)
				return cut
			}
			got = append(got, data...)
			return nil
		}
		if err := r.ReadDisk(t.Context(), plugin.ReadDiskRequest{Point: point.ID, Disk: "scsi0-0"}, take); !errors.Is(err, cut) {
			t.Fatalf("the stream that was cut at %d ended with %v", n, err)
		}
		if int64(len(got)) != n {
			t.Fatalf("%d bytes came before the cut at %d", len(got), n)
		}
		stop = mediumSize
		r.must(r.ReadDisk(t.Context(), plugin.ReadDiskRequest{Point: point.ID, Disk: "scsi0-0", Offset: n}, take))
		if !bytes.Equal(got, want) {
			t.Errorf("cut at %d: both streams together are not the disk", n)
		}
	}
}

// What a host does not take is not fetched: of a disk that is larger, no more than this is on its way to a host that
// stopped taking it.
func TestSlowHostBoundsWhatIsFetchedAhead(t *testing.T) {
	const size, most = 160 << 20, 96 << 20
	r := newRig(t, lab.Options{Machines: []lab.Machine{{Name: "db", Disks: []lab.Disk{{Size: size}}}}})
	rng, p := seeded(502), make([]byte, 8<<20)
	for off := int64(0); off < size; off += int64(len(p)) {
		fill(rng, p)
		r.guest("db", bigKey, p, off)
	}
	storage := new(counted)
	cfg := r.config
	cfg.Repository.Location = storage.before(t, peers.RestServer(t)).Location
	r.must(r.Configure(t.Context(), cfg))
	_, err := r.InitRepository(t.Context())
	r.must(err)
	point := r.backup("db", nil)
	start, whole := storage.bytes.Load(), false
	r.must(r.ReadDisk(t.Context(), plugin.ReadDiskRequest{Point: point.ID, Disk: "scsi0-0"}, func(f plugin.Frame) error {
		if f.Offset == 0 { // time for a reader without bounds to run away
			for end := time.Now().Add(2 * time.Second); time.Now().Before(end) && storage.bytes.Load()-start <= most; {
				time.Sleep(10 * time.Millisecond)
			}
			t.Logf("%d MiB were fetched for the first frame", (storage.bytes.Load()-start)>>20)
		}
		if ahead := storage.bytes.Load() - start - f.Offset; ahead > most {
			t.Errorf("%d MiB were fetched ahead of the host at %d", ahead>>20, f.Offset)
		}
		whole = f.Offset+f.Length == size
		return nil
	}))
	if !whole {
		t.Error("the stream ended before the disk")
	}
}
