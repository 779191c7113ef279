package guestfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vmkeep/vmkeep/chunker/extent"
	"github.com/vmkeep/vmkeep/vddk/mount/device"
)

// counter counts what is read from a disk, and fails where told.
type counter struct {
	size  int64
	reads atomic.Int64
	bytes atomic.Int64
	fail  func(off int64, n int) error
}

func at(off int64) byte { return byte(off*7 + off>>8) }

func (c *counter) ReadAt(p []byte, off int64) (int, error) {
	c.reads.Add(1)
	c.bytes.Add(int64(len(p)))
	if c.fail != nil {
		if err := c.fail(off, len(p)); err != nil {
			return 0, err
		}
	}
	for i := range p {
		if off+int64(i) >= c.size {
			return i, io.EOF
		}
		p[i] = at(off + int64(i))
	}
	return len(p), nil
}

func source(c *counter) *Source { return NewSource(device.Disk(c, 0, c.size)) }

func check(t *testing.T, b []byte, off int64) {
	t.Helper()
	for i, x := range b {
		if x != at(off+int64(i)) {
			t.Fatalf("byte %d is wrong", off+int64(i))
		}
	}
}

func TestMetadataIsReadOnceInPages(t *testing.T) {
	c := &counter{size: 8 << 20}
	s := source(c)
	for off := int64(0); off < 1<<20; off += 256 {
		b, err := s.Meta(off, 256)
		if err != nil {
			t.Fatal(err)
		}
		check(t, b, off)
	}
	if n := c.reads.Load(); n != 64 {
		t.Errorf("%d reads for 64 pages", n)
	}
	if _, err := s.Meta(pageSize-100, 3*pageSize); err != nil || c.reads.Load() != 64 {
		t.Errorf("%v, %d reads", err, c.reads.Load())
	}
}

func TestSmallFilesThatLieTogetherAreReadTogether(t *testing.T) {
	c := &counter{size: 64 << 20}
	s := source(c)
	b := make([]byte, 4096)
	for off := int64(0); off < 16<<20; off += 4096 {
		if err := s.ReadData(b, off); err != nil {
			t.Fatal(err)
		}
		check(t, b, off)
	}
	if n := c.reads.Load(); n != 16 {
		t.Errorf("%d reads for 16 MiB", n)
	}
	big := make([]byte, 5<<20)
	if err := s.ReadData(big, 30<<20+512); err != nil || c.reads.Load() != 17 {
		t.Errorf("%v, %d reads", err, c.reads.Load())
	}
	check(t, big, 30<<20+512)
}

func TestCachesAreBounded(t *testing.T) {
	c := &counter{size: 40 << 20}
	s := source(c)
	b := make([]byte, 16)
	for off := int64(0); off < c.size; off += pageSize {
		if err := s.ReadMeta(b, off); err != nil {
			t.Fatal(err)
		}
		if err := s.ReadData(b, off); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.meta.use.Len(); n != pages || len(s.meta.at) != pages {
		t.Errorf("%d pages are kept", n)
	}
	if n := s.data.use.Len(); n != windows {
		t.Errorf("%d windows are kept", n)
	}
}

func TestConcurrentReadersShareOneRead(t *testing.T) {
	c := &counter{size: 1 << 20}
	s := source(c)
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			b, err := s.Meta(5000, 100)
			if err != nil {
				t.Error(err)
				return
			}
			check(t, b, 5000)
		})
	}
	wg.Wait()
	if n := c.reads.Load(); n != 1 {
		t.Errorf("%d reads", n)
	}
}

func TestFailedPagesAreNotKept(t *testing.T) {
	c := &counter{size: 1 << 20}
	broken := errors.New("broken")
	// One sector cannot be read; its page's others can.
	c.fail = func(off int64, n int) error {
		if off <= 6144 && off+int64(n) > 6144 {
			return broken
		}
		return nil
	}
	s := source(c)
	if _, err := s.Meta(0, 512); err != nil {
		t.Errorf("the sector beside: %v", err)
	}
	if _, err := s.Meta(6144, 512); !errors.Is(err, broken) {
		t.Errorf("the sector: %v", err)
	}
	c.fail = nil
	b, err := s.Meta(6144, 512)
	if err != nil {
		t.Fatal(err)
	}
	check(t, b, 6144)
}

func TestReadsOutsideTheVolumeAreDamage(t *testing.T) {
	s := source(&counter{size: 1 << 20})
	for _, e := range [][2]int64{{-1, 1}, {1 << 20, 1}, {1<<20 - 1, 2}, {1 << 62, 1 << 10}, {0, -1}, {0, 1 << 30}} {
		if _, err := s.Meta(e[0], int(e[1])); !errors.Is(err, ErrDamaged) {
			t.Errorf("%v: %v", e, err)
		}
	}
	if err := s.ReadData(make([]byte, 10), 1<<20-5); !errors.Is(err, ErrDamaged) {
		t.Error(err)
	}
}

// patches is an overlay of whole units.
type patches struct {
	unit int64
	at   map[int64]byte
}

func (p patches) Unit() int64      { return p.unit }
func (p patches) Len() int         { return len(p.at) }
func (p patches) Has(n int64) bool { _, ok := p.at[n]; return ok }
func (p patches) Fill(b []byte, n int64) error {
	copy(b, bytes.Repeat([]byte{p.at[n]}, len(b)))
	return nil
}
func (p patches) byteAt(off int64) (byte, bool) { b, ok := p.at[off/p.unit]; return b, ok }

func TestOverlayReplacesItsUnitsOnly(t *testing.T) {
	c := &counter{size: 4 << 20}
	for _, unit := range []int64{512, 1024, 65536} {
		o := patches{unit, map[int64]byte{0: 1, 3: 2, 4: 3, (1<<20)/unit - 1: 4, (2 << 20) / unit: 5}}
		s := source(c).With(o)
		for _, e := range [][2]int64{{0, 4 << 20}, {100, 70000}, {3*unit + 1, 2 * unit}, {1<<20 - 10, 20}, {2<<20 - 1, 2}, {5 * unit, unit}} {
			for name, read := range map[string]func([]byte, int64) error{"meta": s.ReadMeta, "data": s.ReadData} {
				b := make([]byte, e[1])
				if err := read(b, e[0]); err != nil {
					t.Fatal(err)
				}
				for i, x := range b {
					want, patched := o.byteAt(e[0] + int64(i))
					if !patched {
						want = at(e[0] + int64(i))
					}
					if x != want {
						t.Fatalf("unit %d, %s: byte %d of %v is %d, want %d", unit, name, i, e, x, want)
					}
				}
			}
		}
		if !s.Replayed(extent.Extent{Off: 3 * unit, Len: 1}) || s.Replayed(extent.Extent{Off: 5 * unit, Len: unit}) || !s.Replayed(extent.Extent{Off: 2*unit - 1, Len: unit + 2}) {
			t.Errorf("unit %d: replayed ranges are wrong", unit)
		}
	}
}

func TestMapReadsRunsAndHoles(t *testing.T) {
	c := &counter{size: 4 << 20}
	s := source(c)
	var m Map
	for _, r := range [][3]int64{{8192, 1 << 20, 4096}, {0, 2 << 20, 4096}, {12288, 1<<20 + 4096, 4096}, {20480, -1, 4096}, {24576, 3 << 20, 8192}} {
		if err := m.Add(r[0], r[1], r[2]); err != nil {
			t.Fatal(err)
		}
	}
	const size = 30000
	f, err := m.File(s, size)
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, size)
	for i := range want {
		switch o := int64(i); {
		case o < 4096:
			want[i] = at(2<<20 + o)
		case o >= 8192 && o < 16384:
			want[i] = at(1<<20 + o - 8192)
		case o >= 24576:
			want[i] = at(3<<20 + o - 24576)
		}
	}
	for _, n := range []int{1, 100, 4096, 5000, size, size + 10} {
		var got []byte
		b := make([]byte, n)
		for off := int64(0); ; off += int64(n) {
			k, err := f.ReadAt(b, off)
			got = append(got, b[:k]...)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil || k != n {
				t.Fatalf("%d, %v", k, err)
			}
		}
		if !bytes.Equal(got, want) {
			t.Errorf("in pieces of %d the content differs", n)
		}
	}
	if got, err := io.ReadAll(NewReader(f)); err != nil || !bytes.Equal(got, want) {
		t.Errorf("reader: %v", err)
	}
	runs, err := f.Runs()
	if err != nil {
		t.Fatal(err)
	}
	e := func(off, n int64) extent.Extent { return extent.Extent{Off: off, Len: n} }
	wantRuns := []Run{
		{File: e(0, 4096), Disk: e(2<<20, 4096)}, {File: e(4096, 4096), Kind: Zero}, {File: e(8192, 8192), Disk: e(1<<20, 8192)},
		{File: e(16384, 8192), Kind: Zero}, {File: e(24576, size-24576), Disk: e(3<<20, size-24576)},
	}
	if !slices.Equal(runs, wantRuns) {
		t.Errorf("runs %v, want %v", runs, wantRuns)
	}
}

func TestMapRefusesWhatCannotBe(t *testing.T) {
	s := source(&counter{size: 1 << 20})
	var m Map
	for _, r := range [][3]int64{{-1, 0, 1}, {0, 0, -1}, {1<<63 - 1, 0, 2}, {0, 1<<63 - 1, 2}} {
		if err := m.Add(r[0], r[1], r[2]); !errors.Is(err, ErrDamaged) {
			t.Errorf("%v: %v", r, err)
		}
	}
	m.Add(0, 0, 4096)
	m.Add(2048, 8192, 4096)
	if _, err := m.File(s, 10000); !errors.Is(err, ErrDamaged) {
		t.Errorf("two extents for one byte: %v", err)
	}
	if _, err := new(Map).File(s, -1); !errors.Is(err, ErrDamaged) {
		t.Errorf("negative size: %v", err)
	}
}

// toy is a driver of one directory whose methods misbehave.
type toy struct {
	Driver
	names []string
	panic bool
	err   error
	calls int
}

func (d *toy) Info() Info { return Info{FoldCase: true} }
func (d *toy) Root() ID   { return ID{File: 1} }
func (d *toy) Stat(ID) (Attr, error) {
	var none []int
	return Attr{}, fmt.Errorf("not reached: %d", none[3])
}

func (d *toy) ReadDir(_ ID, after Cursor, yield func(Entry) bool) error {
	d.calls++
	for k, n := range d.names {
		if k >= int(after) && !yield(Entry{Name: n, ID: ID{File: uint64(k + 2)}, Next: Cursor(k + 1)}) {
			return nil
		}
	}
	if d.panic {
		panic("bytes made me do it")
	}
	return d.err
}

func open(t *testing.T, d *toy) *FS {
	t.Helper()
	f, err := Open(Format{Open: func([]*Source) (Driver, error) { return d, nil }}, []*Source{source(&counter{size: 4096})})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestPanicsOfAFormatAreDamage(t *testing.T) {
	f := open(t, &toy{names: []string{"a"}, panic: true})
	if _, err := f.Stat(f.Root()); !errors.Is(err, ErrDamaged) {
		t.Errorf("index out of range: %v", err)
	}
	var names []string
	var last error
	for e, err := range f.ReadDir(f.Root(), 0) {
		names, last = append(names, e.Name), err
	}
	if !errors.Is(last, ErrDamaged) || !slices.Equal(names, []string{"a", ""}) {
		t.Errorf("%q, %v", names, last)
	}
	if _, err := Open(Format{Open: func([]*Source) (Driver, error) { panic("x") }}, []*Source{source(&counter{})}); !errors.Is(err, ErrDamaged) {
		t.Errorf("open: %v", err)
	}
}

func TestPanicsOfTheCallerAreItsOwn(t *testing.T) {
	defer func() {
		if r := recover(); r != "mine" {
			t.Errorf("recovered %v", r)
		}
	}()
	f := open(t, &toy{names: []string{"a", "b"}})
	for range f.ReadDir(f.Root(), 0) {
		panic("mine")
	}
}

func TestNamesThatLeaveTheDirectoryAreDamage(t *testing.T) {
	f := open(t, &toy{names: []string{"good", "../evil", "", ".", "..", "a/b", "nul\x00", "also good"}})
	var names []string
	var last error
	for e, err := range f.ReadDir(f.Root(), 0) {
		if last = err; err == nil {
			names = append(names, e.Name)
		}
	}
	if !slices.Equal(names, []string{"good", "also good"}) || !errors.Is(last, ErrDamaged) {
		t.Errorf("%q, %v", names, last)
	}
	if id, err := f.Lookup(f.Root(), "also good"); err != nil || id.File != 9 {
		t.Errorf("a good name beside bad ones: %v, %v", id, err)
	}
	if _, err := f.Lookup(f.Root(), "none"); !errors.Is(err, ErrDamaged) {
		t.Errorf("a name that may have been in the damage: %v", err)
	}
}

func TestLookupFoldsCaseButPrefersTheExactName(t *testing.T) {
	d := &toy{names: []string{"readme", "README", "Größe"}}
	f := open(t, d)
	for name, want := range map[string]uint64{"README": 3, "readme": 2, "ReadMe": 2, "grÖSSe": 0, "GRÖßE": 4} {
		id, err := f.Lookup(f.Root(), name)
		if want == 0 {
			if !errors.Is(err, iofs.ErrNotExist) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err != nil || id.File != want {
			t.Errorf("%s: %v, %v", name, id, err)
		}
	}
	if _, err := f.Walk("README/.."); !errors.Is(err, iofs.ErrInvalid) {
		t.Errorf("a path upwards: %v", err)
	}
	if id, err := f.Walk("//./README/"); err != nil || id.File != 3 {
		t.Errorf("%v, %v", id, err)
	}
}

func TestDirectoriesAreKeptWithinBounds(t *testing.T) {
	names := make([]string, maxNames+1)
	for k := range names {
		names[k] = fmt.Sprint("n", k)
	}
	d := &toy{names: names}
	f := open(t, d)
	if _, err := f.Lookup(f.Root(), "n100000"); err != nil {
		t.Fatal(err)
	}
	if f.dirs.total != 0 {
		t.Errorf("%d names of a too large directory are kept", f.dirs.total)
	}
	d.names = names[:60_000]
	for dir := range uint64(5) {
		for range 3 {
			if _, err := f.Lookup(ID{File: dir}, "n59999"); err != nil {
				t.Fatal(err)
			}
		}
	}
	if f.dirs.total > maxAllNames || f.dirs.use.Len() != 3 {
		t.Errorf("%d names of %d directories are kept", f.dirs.total, f.dirs.use.Len())
	}
	if d.calls != 2+5 {
		t.Errorf("%d scans", d.calls)
	}
}

func TestEscapedNames(t *testing.T) {
	for name, want := range map[string]string{"plain": "plain", "bad\xff\xfe": "bad%FF%FE", `a\b`: "a%5Cb", "\uFFFD": "\uFFFD", "%41": "%41", "é\xe9": "é%E9"} {
		if got := escape(name); got != want {
			t.Errorf("%q: %q", name, got)
		}
	}
	if !strings.Contains(ID{Tree: 5, File: 6}.String(), "5:6") {
		t.Error("an ID of a tree does not show it")
	}
}
