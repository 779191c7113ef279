package fat_test

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/vmkeep/vmkeep/vddk/mount/fat"
	"github.com/vmkeep/vmkeep/vddk/mount/mounttest"
)

var le = binary.LittleEndian

// exWriter adds files to an image that mkfs.exfat made. fsck.exfat says whether it does that right.
type exWriter struct {
	t                   *testing.T
	b                   []byte
	table, heap, bitmap int
	cluster             int
	next                uint32
	gaps                bool // leave every second cluster free, so that nothing is contiguous
}

func newExWriter(t *testing.T, image []byte) *exWriter {
	w := &exWriter{t: t, b: image}
	sector := 1 << image[108]
	w.table, w.heap = int(le.Uint32(image[80:]))*sector, int(le.Uint32(image[88:]))*sector
	w.cluster = sector << image[109]
	root := w.at(le.Uint32(image[96:]))
	for p := root; ; p += 32 {
		if image[p] == 0x81 {
			w.bitmap = w.at(le.Uint32(image[p+20:]))
			break
		}
	}
	for n := uint32(2); n < le.Uint32(image[92:]); n++ { // behind all that is in use
		if image[w.bitmap+int(n-2)/8]>>((n-2)%8)&1 != 0 {
			w.next = n + 1
		}
	}
	return w
}

func (w *exWriter) at(n uint32) int { return w.heap + int(n-2)*w.cluster }

// alloc stores data and returns its first cluster and the flags of its stream.
func (w *exWriter) alloc(data []byte) (uint32, byte) {
	if len(data) == 0 {
		return 0, 1
	}
	var chain []uint32
	for off := 0; off < len(data); off += w.cluster {
		copy(w.b[w.at(w.next):], data[off:min(off+w.cluster, len(data))])
		w.b[w.bitmap+int(w.next-2)/8] |= 1 << ((w.next - 2) % 8)
		chain = append(chain, w.next)
		w.next++
		if w.gaps {
			w.next++
		}
	}
	if !w.gaps {
		return chain[0], 3
	}
	for k, n := range chain {
		to := uint32(0xffffffff)
		if k+1 < len(chain) {
			to = chain[k+1]
		}
		le.PutUint32(w.b[w.table+int(n)*4:], to)
	}
	return chain[0], 1
}

type exEntry struct {
	name  string
	dir   []exEntry // not nil: a directory
	data  []byte
	valid int // bytes of data that are valid; the rest reads as zeros
}

// set is the records of an entry, whose content is stored on the way.
func (w *exWriter) set(e exEntry) []byte {
	attr, data, valid := uint16(0x20), e.data, e.valid
	if e.dir != nil {
		attr, data = 0x10, w.records(e.dir)
		data = append(data, make([]byte, (w.cluster-len(data)%w.cluster)%w.cluster)...)
		valid = len(data)
	}
	head, flags := w.alloc(data)
	name := utf16.Encode([]rune(e.name))
	parts := (len(name) + 14) / 15
	b := make([]byte, 32*(2+parts))
	b[0], b[1] = 0x85, byte(1+parts)
	le.PutUint16(b[4:], attr)
	const stamp = (2021-1980)<<25 | 3<<21 | 14<<16 | 15<<11 | 9<<5 | 13 // 2021-03-14 15:09:26
	le.PutUint32(b[8:], stamp)
	le.PutUint32(b[12:], stamp)
	le.PutUint32(b[16:], stamp)
	b[20], b[21] = 0, 53                     // 530 ms later
	b[22], b[23], b[24] = 0x80, 0x80|8, 0xf8 // UTC, two hours east, two west
	s := b[32:]
	s[0], s[1], s[3] = 0xc0, flags, byte(len(name))
	var hash uint16
	for _, u := range name {
		up := []rune{rune(u)}[0]
		if up >= 'a' && up <= 'z' {
			up -= 32
		}
		for _, c := range []byte{byte(up), byte(up >> 8)} {
			hash = hash<<15 | hash>>1
			hash += uint16(c)
		}
	}
	le.PutUint16(s[4:], hash)
	le.PutUint64(s[8:], uint64(valid))
	le.PutUint32(s[20:], head)
	le.PutUint64(s[24:], uint64(len(data)))
	for k := range parts {
		r := b[64+32*k:]
		r[0] = 0xc1
		for i, u := range name[15*k : min(15*k+15, len(name))] {
			le.PutUint16(r[2+2*i:], u)
		}
	}
	var sum uint16
	for k, c := range b {
		if k != 2 && k != 3 {
			sum = sum<<15 | sum>>1
			sum += uint16(c)
		}
	}
	le.PutUint16(b[2:], sum)
	return b
}

func (w *exWriter) records(es []exEntry) []byte {
	b := []byte{}
	for k, e := range es {
		set := w.set(e)
		if k%3 == 1 { // a deleted set before it
			old := slices.Clone(set)
			for p := 0; p < len(old); p += 32 {
				old[p] &^= 0x80
			}
			b = append(b, old...)
		}
		b = append(b, set...)
	}
	return b
}

func exTree() []exEntry {
	bytesOf := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(i*7 + i>>8 + n)
		}
		return b
	}
	file := func(name string, n, valid int) exEntry { return exEntry{name: name, data: bytesOf(n), valid: valid} }
	var sizes, many []exEntry
	for _, n := range []int{0, 1, 511, 512, 4095, 4096, 4097, 40000, 300001} {
		sizes = append(sizes, file("size "+string(rune('a'+len(sizes))), n, n))
	}
	for k := range 700 {
		many = append(many, file("a file with a name over two records "+time.Unix(int64(k), 0).UTC().Format("150405"), k, k))
	}
	return []exEntry{
		{name: "sizes", dir: sizes}, {name: "many", dir: many}, {name: "empty", dir: []exEntry{}},
		{name: "names", dir: []exEntry{file("日本語", 5, 5), file("astral 😀 name: 15", 6, 6), file("fourteen chars😀", 7, 7)}},
		{name: "deep", dir: []exEntry{{name: "er", dir: []exEntry{{name: "still", dir: []exEntry{file("bottom", 9, 9)}}}}}},
		{name: "valid", dir: []exEntry{file("none", 5000, 0), file("some", 50000, 4097), file("page", 9000, 4096)}},
	}
}

// exWant is what must be read.
func exWant(prefix string, es []exEntry) mounttest.Manifest {
	var out mounttest.Manifest
	for _, e := range es {
		p := prefix + e.name
		m := mounttest.Entry{Path: p, Type: "directory", Mode: 0o755, Mtime: "1615727366.530000000", Btime: "1615734566.000000000", Atime: "1615741766.000000000"}
		if e.dir == nil {
			b := slices.Clone(e.data)
			clear(b[e.valid:])
			m.Type, m.Mode, m.Links, m.Size, m.Hash = "file", 0o644, 1, int64(len(b)), digest(b)
		}
		out = append(append(out, m), exWant(p+"/", e.dir)...)
	}
	return out
}

func TestExFATEqualsItsInput(t *testing.T) {
	need(t, "mkfs.exfat", "fsck.exfat")
	for name, gaps := range map[string]bool{"contiguous": false, "chained": true} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "image")
			if err := mounttest.Blank(path, 48*mib); err != nil {
				t.Fatal(err)
			}
			run(t, "mkfs.exfat", "-c", "4096", "-L", "Käfer", path)
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			w := newExWriter(t, b)
			w.gaps = gaps
			root := w.at(le.Uint32(b[96:]))
			for b[root] != 0 {
				root += 32
			}
			copy(b[root:], w.records(exTree()))
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			run(t, "fsck.exfat", "-n", path)

			f := open(t, path, fat.ExFAT())
			if i := f.Info(); i.Label != "Käfer" || len(i.UUID) != 9 {
				t.Errorf("%+v", i)
			}
			got, err := mounttest.Read(f)
			if err != nil {
				t.Error(err)
			}
			want := append(exWant("", exTree()), mounttest.Entry{Type: "directory", Mode: 0o755})
			for _, d := range mounttest.Diff(want, got) {
				t.Error(d)
			}
			if len(want) < 700 {
				t.Errorf("only %d entries", len(want))
			}
		})
	}
}
