package device

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"testing"

	"github.com/vmkeep/vmkeep/chunker/extent"
)

// strict refuses what a virtual disk refuses: reads that are not whole sectors.
type strict struct{ b []byte }

func (s strict) ReadAt(p []byte, off int64) (int, error) {
	if off%sector != 0 || len(p)%sector != 0 && off+int64(len(p)) != int64(len(s.b)) {
		return 0, errors.New("not aligned")
	}
	return bytes.NewReader(s.b).ReadAt(p, off)
}

func bytesOf(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = seed + byte(i*13) + byte(i>>8)
	}
	return b
}

func TestReadsOfAnySizeBecomeWholeSectors(t *testing.T) {
	b := bytesOf(3<<20+512, 1)
	d := Disk(strict{b}, 0, int64(len(b)))
	for _, e := range [][2]int{{0, 512}, {1, 1}, {511, 2}, {100, 2 << 20}, {512, 1024}, {3 << 20, 512}, {3<<20 + 500, 12}, {0, 0}} {
		p := make([]byte, e[1])
		if n, err := d.ReadAt(p, int64(e[0])); n != e[1] || err != nil {
			t.Errorf("%v: %d, %v", e, n, err)
		}
		if !bytes.Equal(p, b[e[0]:e[0]+e[1]]) {
			t.Errorf("%v: wrong bytes", e)
		}
	}
	p := make([]byte, 100)
	if n, err := d.ReadAt(p, 3<<20+500); n != 12 || !errors.Is(err, io.EOF) {
		t.Errorf("across the end: %d, %v", n, err)
	}
	if n, err := d.ReadAt(p, int64(len(b))); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %d, %v", n, err)
	}
	if _, err := d.ReadAt(p, -1); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("before the start: %v", err)
	}
}

func pieces(t *testing.T, d Device, off, n int64) []Piece {
	t.Helper()
	var out []Piece
	if err := d.Locate(extent.Extent{Off: off, Len: n}, func(p Piece) bool { out = append(out, p); return true }); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestDevicesLocateWhatTheyRead(t *testing.T) {
	a, b := bytesOf(1<<20, 3), bytesOf(1<<20, 90)
	da, db := Disk(bytes.NewReader(a), 0, 1<<20), Disk(bytes.NewReader(b), 1, 1<<20)
	part := Slice(da, extent.Extent{Off: 4096, Len: 8192})
	if part.Size() != 8192 || Slice(da, extent.Extent{Off: 1 << 19, Len: 1 << 30}).Size() != 1<<19 || Slice(da, extent.Extent{Off: 1 << 40, Len: 5}).Size() != 0 {
		t.Error("slices are not cut at their device")
	}
	// part, zeros, then pieces of b that lie together, and one that does not.
	m := Mapped(8192+1000+3*512, func(off int64) (Target, error) {
		switch {
		case off < 8192:
			return Target{part, off, 8192 - off}, nil
		case off < 9192:
			return Target{nil, 0, 9192 - off}, nil
		case off < 9192+1024:
			k := (off - 9192) / 512
			return Target{db, 2048 + k*512 + (off-9192)%512, 512 - (off-9192)%512}, nil
		}
		return Target{db, 100 * 512, 9192 + 1536 - off}, nil
	})
	want := slices.Concat(a[4096:4096+8192], make([]byte, 1000), b[2048:2048+1024], b[51200:51712])
	got := make([]byte, m.Size())
	if n, err := m.ReadAt(got, 0); n != len(want) || err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d, %v", n, err)
	}
	if n, err := m.ReadAt(got[:3000], 8000); n != 10728-8000 || !errors.Is(err, io.EOF) || !bytes.Equal(got[:n], want[8000:]) {
		t.Errorf("%d, %v", n, err)
	}
	if p := pieces(t, m, 8000, 2728); !slices.Equal(p, []Piece{{0, 4096 + 8000, 192}, {Zeros, 0, 1000}, {1, 2048, 1024}, {1, 51200, 512}}) {
		t.Errorf("pieces %v", p)
	}
	calls := 0
	m.Locate(extent.Extent{Len: m.Size()}, func(Piece) bool { calls++; return false })
	if calls != 1 {
		t.Errorf("%d pieces after the first was enough", calls)
	}
	for _, e := range []extent.Extent{{Off: -1, Len: 1}, {Off: 0, Len: m.Size() + 1}, {Off: m.Size(), Len: 1}} {
		for _, d := range []Device{m, part, da} {
			if d.Size() >= e.End() && e.Off >= 0 {
				continue
			}
			if err := d.Locate(e, func(Piece) bool { return true }); err == nil {
				t.Errorf("%v of %d bytes is located", e, d.Size())
			}
		}
	}
}

func TestAbsentDevicesSayWhatIsMissing(t *testing.T) {
	d := Absent(4096, "disk 2 of the group")
	if _, err := d.ReadAt(make([]byte, 1), 0); !errors.Is(err, ErrMissing) {
		t.Error(err)
	}
	if err := d.Locate(extent.Extent{Len: 1}, nil); !errors.Is(err, ErrMissing) {
		t.Error(err)
	}
	// Failures below are failures above, never short reads.
	m := Mapped(8192, func(off int64) (Target, error) { return Target{d, off, 4096}, nil })
	if n, err := m.ReadAt(make([]byte, 8192), 0); n != 0 || !errors.Is(err, ErrMissing) {
		t.Errorf("%d, %v", n, err)
	}
	if _, err := Mapped(10, func(int64) (Target, error) { return Target{}, nil }).ReadAt(make([]byte, 1), 0); err == nil {
		t.Error("an empty map is read")
	}
}
