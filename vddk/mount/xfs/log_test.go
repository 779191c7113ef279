package xfs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/vmkeep/vmkeep/vddk/mount/device"
	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
	"github.com/vmkeep/vmkeep/vddk/mount/mounttest"
)

// dirty is the golden image with a log to be replayed, and the records in it.
func dirty(t testing.TB) (image []byte, r *ring, recs []record) {
	t.Helper()
	for _, g := range mounttest.Goldens() {
		if g.Name != "xfs-log" {
			continue
		}
		image, _, err := g.Load("../testdata")
		if err != nil {
			t.Fatal(err)
		}
		r := ringOf(t, image)
		tail, last, ok, err := r.active()
		if err != nil || !ok {
			t.Fatalf("log is clean: %v", err)
		}
		if err := r.each(tail, last, func(rec record, _ []byte) error { recs = append(recs, rec); return nil }); err != nil {
			t.Fatal(err)
		}
		return image, r, recs
	}
	t.Fatal("no image")
	return nil, nil, nil
}

func ringOf(t testing.TB, image []byte) *ring {
	t.Helper()
	d := &driver{src: guestfs.NewSource(device.Disk(bytes.NewReader(image), 0, int64(len(image))))}
	if err := d.readSuper(); err != nil {
		t.Fatal(err)
	}
	start, err := d.byteOf(d.logStart)
	if err != nil {
		t.Fatal(err)
	}
	return &ring{d: d, start: start, n: int64(d.logBlocks) * d.bs / bb}
}

// seal makes a record's checksum right for what its sectors hold now.
func seal(image []byte, r *ring, rec record) {
	head := image[r.start+rec.pos*bb:][:rec.head*bb]
	rec.bytes = head
	data := image[r.start+(rec.pos+rec.head)*bb:][:(rec.size+bb-1)/bb*bb]
	binary.LittleEndian.PutUint32(head[32:], rec.sum(data, 328))
}

// replayDamaged opens an image guarded as callers do.
func replayDamaged(image []byte) (replayed bool, err error) {
	src := guestfs.NewSource(device.Disk(bytes.NewReader(image), 0, int64(len(image))))
	f, err := guestfs.Open(Format(), []*guestfs.Source{src})
	if err != nil {
		return false, err
	}
	mounttest.Poke(f)
	return true, nil
}

// Damage in the log with right checksums: what a hostile guest can write. It must be an error or be read, and end.
func TestDamagedLogRecordsWithRightChecksums(t *testing.T) {
	image, r, recs := dirty(t)
	opened, refused := 0, 0
	for seed := range uint64(150) {
		rnd := rand.New(rand.NewPCG(seed, 5))
		c := bytes.Clone(image)
		for range 1 + rnd.IntN(6) {
			rec := recs[rnd.IntN(len(recs))]
			data := c[r.start+(rec.pos+rec.head)*bb:][:rec.size]
			at := rnd.IntN(len(data))
			for k := at; k < min(at+1<<rnd.IntN(4), len(data)); k++ {
				data[k] = []byte{0, 0xff, 0x7f, byte(rnd.Uint32())}[rnd.IntN(4)]
			}
			seal(c, r, rec)
		}
		if ok, _ := replayDamaged(c); ok {
			opened++
		} else {
			refused++
		}
	}
	if opened == 0 || refused == 0 {
		t.Errorf("%d opened, %d refused: that tries nothing", opened, refused)
	}
}

// A record that is torn at the head never happened; one inside the active log is damage.
func TestTornRecords(t *testing.T) {
	image, r, recs := dirty(t)
	if len(recs) < 2 {
		t.Fatalf("%d records only", len(recs))
	}
	tear := func(k int) error {
		c := bytes.Clone(image)
		rec := recs[k]
		c[r.start+(rec.pos+rec.head)*bb+100] ^= 1
		_, err := replayDamaged(c)
		return err
	}
	if err := tear(len(recs) - 1); err != nil {
		t.Errorf("the last record is torn: %v", err)
	}
	if len(recs) > inFlight+1 {
		if err := tear(0); err == nil {
			t.Error("a damaged record far behind the head is passed over")
		}
	}
}

func TestHeadOfTheRing(t *testing.T) {
	const n = 4096
	for name, c := range map[string]struct {
		cycle func(k int64) uint32
		want  int64
	}{
		"never used":         {func(int64) uint32 { return 0 }, 0},
		"first round":        {func(k int64) uint32 { return map[bool]uint32{true: 1, false: 0}[k < 700] }, 700},
		"third round":        {func(k int64) uint32 { return map[bool]uint32{true: 3, false: 2}[k < 1000] }, 1000},
		"one sector":         {func(k int64) uint32 { return map[bool]uint32{true: 3, false: 2}[k < 1] }, 1},
		"all but one":        {func(k int64) uint32 { return map[bool]uint32{true: 3, false: 2}[k < n-1] }, n - 1},
		"round just ended":   {func(int64) uint32 { return 7 }, n},
		"hole near the head": {func(k int64) uint32 { return map[bool]uint32{true: 3, false: 2}[k < 1000 && k != 900] }, 900},
	} {
		image := make([]byte, n*bb)
		for k := range int64(n) {
			binary.BigEndian.PutUint32(image[k*bb:], c.cycle(k))
		}
		d := &driver{src: guestfs.NewSource(device.Disk(bytes.NewReader(image), 0, int64(len(image))))}
		got, err := (&ring{d: d, n: n}).head()
		if err != nil || got != c.want {
			t.Errorf("%s: %d, %v, want %d", name, got, err, c.want)
		}
	}
}

func FuzzLogRecord(f *testing.F) {
	image, r, recs := dirty(f)
	f.Add(uint8(0), uint16(0), []byte{0x69, 1, 0, 0})
	f.Add(uint8(1), uint16(12), []byte(fmt.Sprint("NART", "\x3c\x12\xff\xff")))
	f.Fuzz(func(t *testing.T, which uint8, at uint16, b []byte) {
		rec := recs[int(which)%len(recs)]
		lo := r.start + rec.pos*bb
		saved := bytes.Clone(image[lo : lo+rec.head*bb+rec.size])
		data := image[lo+rec.head*bb:][:rec.size]
		copy(data[int64(at)*4%rec.size:], b)
		seal(image, r, rec)
		replayDamaged(image)
		copy(image[lo:], saved)
	})
}
