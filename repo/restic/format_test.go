package restic

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/restic/chunker"
)

var at = time.Date(2026, 5, 6, 7, 8, 9, 123456789, time.FixedZone("", 7200))

func TestZeroChunkIsTheHashOfZeros(t *testing.T) {
	if got := Hash(make([]byte, ZeroChunkSize)); got != ZeroChunk() {
		t.Errorf("hash of zeros is %s", got)
	}
}

func TestHashAllIsHashOfEach(t *testing.T) {
	data := make([]byte, 100_000)
	r := rand.New(rand.NewPCG(9, 9))
	for i := range data {
		data[i] = byte(r.Uint32())
	}
	for count := range 12 {
		pieces := make([][]byte, count)
		want := make([]ID, count)
		for i := range pieces {
			off := r.IntN(len(data))
			pieces[i] = data[off : off+r.IntN(len(data)-off)]
			want[i] = Hash(pieces[i])
		}
		if got := HashAll(pieces); !slices.Equal(got, want) {
			t.Errorf("of %d pieces: %v, want %v", count, got, want)
		}
	}
}

func TestTreeIsSpeltAsResticSpellsIt(t *testing.T) {
	sub := Hash([]byte("sub"))
	tree := &Tree{Nodes: []Node{
		{Name: "d", Type: DirNode, Mode: fs.ModeDir | 0o755, ModTime: at, AccessTime: at, ChangeTime: at, UID: 1, User: "u<", Subtree: &sub},
		{Name: "l", Type: SymlinkNode, Mode: fs.ModeSymlink | 0o777, ModTime: at, AccessTime: at, ChangeTime: at, LinkTarget: "a\xff"},
		{Name: "we\"ird\\name<&>ü\xff", Type: FileNode, Mode: 0o644, ModTime: at, AccessTime: at, ChangeTime: at, Size: 3, Links: 1,
			Inode: 7, DeviceID: 8, Content: []ID{Hash([]byte("abc"))},
			ExtendedAttributes: []ExtendedAttribute{{"user.x", []byte{1}}},
			GenericAttributes:  map[string]json.RawMessage{"b": json.RawMessage(`1`), "a": json.RawMessage(`"x"`)}},
		{Name: "z", Type: FileNode, ModTime: at, AccessTime: at, ChangeTime: at, Content: []ID{}},
	}}
	got, err := AppendTree(nil, tree)
	if err != nil {
		t.Fatal(err)
	}
	times := `"mtime":"2026-05-06T07:08:09.123456789+02:00","atime":"2026-05-06T07:08:09.123456789+02:00","ctime":"2026-05-06T07:08:09.123456789+02:00"`
	want := `{"nodes":[` +
		`{"name":"d","type":"dir","mode":2147484141,` + times + `,"uid":1,"gid":0,"user":"u\u003c","content":null,"subtree":"` + sub.String() + `"},` +
		`{"name":"l","type":"symlink","mode":134218239,` + times + `,"uid":0,"gid":0,"linktarget":"a\ufffd","linktarget_raw":"Yf8=","content":null},` +
		`{"name":"we\\\"ird\\\\name\u003c\u0026\u003eü\\xff","type":"file","mode":420,` + times + `,"uid":0,"gid":0,"inode":7,"device_id":8,"size":3,"links":1,` +
		`"extended_attributes":[{"name":"user.x","value":"AQ=="}],"generic_attributes":{"a":"x","b":1},"content":["` + Hash([]byte("abc")).String() + `"]},` +
		`{"name":"z","type":"file",` + times + `,"uid":0,"gid":0,"content":[]}` + "]}\n"
	if string(got) != want {
		t.Fatalf("got\n%s\nwant\n%s", got, want)
	}
	back, err := DecodeTree(got)
	if err != nil {
		t.Fatal(err)
	}
	again, err := AppendTree(nil, back)
	if err != nil || !bytes.Equal(again, got) {
		t.Fatalf("decoded and encoded again: %s, %v", again, err)
	}
	if back.Find("l") == nil || back.Find("l").LinkTarget != "a\xff" || back.Find("nothing") != nil {
		t.Error("Find does not find what is there, or finds what is not")
	}
	empty, err := AppendTree(nil, &Tree{})
	if err != nil || string(empty) != "{\"nodes\":[]}\n" {
		t.Errorf("empty tree: %q, %v", empty, err)
	}
}

func TestTreesThatReadersCannotUseAreRefused(t *testing.T) {
	file := func(name string) Node { return Node{Name: name, Type: FileNode, Content: []ID{}} }
	id := ID{}
	for what, nodes := range map[string][]Node{
		"order":           {file("b"), file("a")},
		"doubled":         {file("a"), file("a")},
		"no name":         {file("")},
		"parent":          {file("..")},
		"itself":          {file(".")},
		"slash":           {file("a/../../etc/passwd")},
		"nul":             {file("a\x00")},
		"no content":      {{Name: "a", Type: FileNode}},
		"null chunk":      {{Name: "a", Type: FileNode, Content: []ID{{}}}},
		"no subtree":      {{Name: "a", Type: DirNode}},
		"null subtree":    {{Name: "a", Type: DirNode, Subtree: &id}},
		"unknown type":    {{Name: "a", Type: "irregular"}},
		"year after 9999": {{Name: "a", Type: FIFONode, ModTime: time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)}},
	} {
		if _, err := AppendTree(nil, &Tree{Nodes: nodes}); err == nil {
			t.Errorf("%s: written", what)
		}
	}
}

func TestMalformedTreesAreRefused(t *testing.T) {
	for _, in := range []string{
		``, `{}`, `null`, `[]`, `{"nodes":null}`, `{"nodes":[]}x`, `{"nodes":[}`, `{"nodes":[{}]`, `{"nodes":[{"name":"\x"}]}`,
		`{"nodes":[{"name":"a\"b"}]}`, `{"nodes":[{"content":["00"]}]}`, `{"nodes":[{"size":-1}]}`, `{"nodes":[{"size":1.5}]}`,
		`{"nodes":[{"size":18446744073709551616}]}`, `{"nodes":[{"mtime":"yesterday"}]}`, `{"nodes":[{"x":` + strings.Repeat("[", 1000) + `}]}`,
		`{"nodes":[{"uid":4294967296}]}`, `{"nodes":[{"subtree":"zz"}]}`, `{"nodes":[{"user":"` + "\x01" + `"}]}`,
	} {
		if tree, err := DecodeTree([]byte(in)); err == nil {
			t.Errorf("%s: %+v", in, tree)
		}
	}
	if _, err := DecodeTree([]byte(`{"future":{"a":[1,-2.5e3,true,null]},"nodes":[{"later":"x","name":"a"}]}`)); err != nil {
		t.Errorf("unknown fields: %v", err)
	}
}

func TestPackHeaderRoundTrip(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	var blobs []Blob
	offset := uint32(0)
	for i := range 100 {
		b := Blob{BlobHandle: BlobHandle{Hash([]byte{byte(i)}), BlobType(rnd.IntN(2))}, Offset: offset, Length: Sealed + rnd.Uint32N(1000)}
		if rnd.IntN(2) == 0 {
			b.Uncompressed = 1 + rnd.Uint32N(5000)
		}
		offset += b.Length
		blobs = append(blobs, b)
	}
	header := AppendPackHeader(nil, blobs)
	size := int64(offset) + int64(len(header)) + Sealed + 4
	if size != PackSize(blobs) {
		t.Errorf("pack size %d, computed %d", size, PackSize(blobs))
	}
	got, err := ParsePackHeader(header, size)
	if err != nil || !slices.Equal(got, blobs) {
		t.Fatalf("%v, %v", got, err)
	}
	if _, err := ParsePackHeader(header, size+1); err == nil {
		t.Error("a gap was accepted")
	}
	if _, err := ParsePackHeader(header[:len(header)-1], size-1); err == nil {
		t.Error("half an entry was accepted")
	}
}

func TestIndexRoundTrip(t *testing.T) {
	packs := []IndexPack{
		{Hash([]byte("p")), []Blob{{BlobHandle{Hash([]byte("a")), DataBlob}, 0, 100, 0}, {BlobHandle{Hash([]byte("b")), DataBlob}, 100, 50, 700}}},
		{Hash([]byte("q")), []Blob{{BlobHandle{Hash([]byte("a")), TreeBlob}, 0, 4294967294, 4294967295}}},
	}
	doc := AppendIndex(nil, packs)
	var got []IndexPack
	err := DecodeIndex(doc, func(id ID, blobs []Blob) error {
		got = append(got, IndexPack{id, slices.Clone(blobs)})
		return nil
	})
	if err != nil || !reflect.DeepEqual(got, packs) {
		t.Fatalf("%+v, %v", got, err)
	}
	if !json.Valid(doc) {
		t.Error("it is not JSON")
	}
	for _, bad := range []string{
		`{"packs":[{"blobs":[]}]}`, `{"packs":[{"id":"x"}]}`, `{"packs":[{"id":"` + ID{1}.String() + `","blobs":[{"id":"` + ID{2}.String() + `","offset":0,"length":50}]}]}`,
		`{"packs":[{"id":"` + ID{1}.String() + `","blobs":[{"id":"` + ID{2}.String() + `","type":"data","offset":0,"length":31}]}]}`,
		`{"packs":[{"id":"` + ID{1}.String() + `","blobs":[{"id":"` + ID{2}.String() + `","type":"file","offset":0,"length":50}]}]}`,
		`{"packs":[{"id":"` + ID{1}.String() + `","blobs":[{"id":"` + ID{2}.String() + `","type":"data","offset":4294967295,"length":50}]}]}`,
	} {
		if err := DecodeIndex([]byte(bad), func(ID, []Blob) error { return nil }); err == nil {
			t.Errorf("accepted: %s", bad)
		}
	}
}

func TestPolynomialsAreJudgedAsTheChunkerDoes(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	good := 0
	for range 2000 {
		p := rnd.Uint64()&(1<<53-1) | 1<<53
		want := chunker.Pol(p).Irreducible()
		if got := ValidPolynomial(p); got != want {
			t.Fatalf("%#x: %v, the chunker says %v", p, got, want)
		}
		if want {
			good++
		}
	}
	if good == 0 {
		t.Error("none was irreducible")
	}
	for _, p := range []uint64{0, 1, 2, 1 << 53, 1<<54 | 1, 3} {
		if ValidPolynomial(p) {
			t.Errorf("%#x passes", p)
		}
	}
}

func TestConfigRefusesWhatResticWould(t *testing.T) {
	good := Config{2, strings.Repeat("ab", 32), 0x3ad6fe53067f27}
	back, err := DecodeConfig(EncodeConfig(good))
	if err != nil || back != good {
		t.Fatalf("%+v, %v", back, err)
	}
	for _, c := range []Config{{3, good.ID, good.Polynomial}, {0, good.ID, good.Polynomial}, {2, "ab", good.Polynomial}, {2, good.ID, 1 << 53}} {
		if _, err := DecodeConfig(EncodeConfig(c)); err == nil {
			t.Errorf("accepted: %+v", c)
		}
	}
	if _, err := DecodeConfig(append(EncodeConfig(good)[:10:10], EncodeConfig(good)...)); err == nil {
		t.Error("garbage accepted")
	}
}

func TestKeyFilesThatWouldExhaustUsAreRefused(t *testing.T) {
	good := Key{Created: at, KDF: "scrypt", N: 32768, R: 8, P: 5, Salt: make([]byte, 64), Data: make([]byte, 160)}
	for what, change := range map[string]func(*Key){
		"":                     func(*Key) {},
		"a terabyte of memory": func(k *Key) { k.N = 1 << 30 },
		"memory through r":     func(k *Key) { k.R = 1 << 14 },
		"a year of work":       func(k *Key) { k.P = 1 << 14 },
		"N not a power of 2":   func(k *Key) { k.N = 32767 },
		"N of 1":               func(k *Key) { k.N = 1 },
		"negative N":           func(k *Key) { k.N = -32768 },
		"no r":                 func(k *Key) { k.R = 0 },
		"no p":                 func(k *Key) { k.P = 0 },
		"overflow":             func(k *Key) { k.N, k.R, k.P = 1<<31, 1<<31, 1<<31 },
		"other kdf":            func(k *Key) { k.KDF = "argon2" },
		"short salt":           func(k *Key) { k.Salt = k.Salt[:63] },
		"huge data":            func(k *Key) { k.Data = make([]byte, 1e6) },
		"no data":              func(k *Key) { k.Data = nil },
	} {
		k := good
		change(&k)
		data, err := EncodeKey(k)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := DecodeKey(data); (err == nil) != (what == "") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestMasterKeyErrorsKeepTheSecret(t *testing.T) {
	_, err := DecodeMasterKey([]byte(`{"mac":{"k":"c2VjcmV0`))
	if err == nil || strings.Contains(err.Error(), "c2VjcmV0") {
		t.Errorf("%v", err)
	}
	if _, err := DecodeMasterKey([]byte(`{"mac":{"k":"AAAAAAAAAAAAAAAAAAAAAA==","r":"AQAAAAAAAAAAAAAAAAAAAA=="},"encrypt":"AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}`)); err == nil {
		t.Error("a key of zeros was accepted")
	}
}

func TestSnapshotKeysAreInResticsOrder(t *testing.T) {
	tree := Hash([]byte("t"))
	doc, err := EncodeSnapshot(&Snapshot{Time: at, Parent: &tree, Tree: &tree, Paths: []string{"/a"}, Hostname: "h", Username: "u", UID: 1, GID: 2,
		Excludes: []string{"e"}, Tags: []string{"t"}, Original: &tree, ProgramVersion: "v", Summary: &Summary{TotalBytesProcessed: 5}})
	if err != nil {
		t.Fatal(err)
	}
	last := 0
	for _, key := range []string{"time", "parent", "tree", "paths", "hostname", "username", "uid", "gid", "excludes", "tags", "original", "program_version", "summary",
		"backup_start", "backup_end", "files_new", "data_blobs", "data_added_packed", "total_files_processed", "total_bytes_processed"} {
		i := strings.Index(string(doc), fmt.Sprintf("%q:", key))
		if i < last {
			t.Errorf("%s is not where it belongs: %s", key, doc)
		}
		last = i
	}
	minimal, err := EncodeSnapshot(&Snapshot{Time: at, Tree: &tree, Paths: []string{"/a"}})
	if want := `{"time":"2026-05-06T07:08:09.123456789+02:00","tree":"` + tree.String() + `","paths":["/a"]}`; err != nil || string(minimal) != want {
		t.Errorf("minimal: %s, %v", minimal, err)
	}
	if _, err := DecodeSnapshot([]byte(`{"time":"2026-05-06T07:08:09Z","tree":null,"paths":[]}`)); err == nil {
		t.Error("a snapshot without tree was accepted")
	}
}

func TestTagsAreMatchedAsResticDoes(t *testing.T) {
	s := &Snapshot{Tags: []string{"a", "b"}}
	none := &Snapshot{}
	for _, c := range []struct {
		s     *Snapshot
		lists [][]string
		want  bool
	}{
		{s, nil, true}, {s, [][]string{{"a"}}, true}, {s, [][]string{{"a", "c"}}, false}, {s, [][]string{{"c"}, {"b", "a"}}, true},
		{s, [][]string{{""}}, false}, {none, [][]string{{""}}, true}, {none, [][]string{{"a"}}, false},
	} {
		if got := c.s.HasTagList(c.lists); got != c.want {
			t.Errorf("%v in %v: %v", c.lists, c.s.Tags, got)
		}
	}
	if !s.AddTags([]string{"b", "c"}) || s.AddTags([]string{"a"}) || !slices.Equal(s.Tags, []string{"a", "b", "c"}) {
		t.Errorf("after adding: %v", s.Tags)
	}
	if !s.RemoveTags([]string{"a", "x"}) || s.RemoveTags([]string{"x"}) || !slices.Equal(s.Tags, []string{"b", "c"}) {
		t.Errorf("after removing: %v", s.Tags)
	}
}

func TestDurations(t *testing.T) {
	d, err := ParseDuration("1y5m7d2h")
	if err != nil || d != (Duration{1, 5, 7, 2}) || d.String() != "1y5m7d2h" {
		t.Errorf("%+v, %v", d, err)
	}
	for _, bad := range []string{"1", "y", "1w", "-1d", "1d1", "99999999999999999999d"} {
		if d, err := ParseDuration(bad); err == nil {
			t.Errorf("%s: %+v", bad, d)
		}
	}
}

func TestZstdStopsBombs(t *testing.T) {
	z, err := NewZstd(CompressionAuto)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	bomb := z.Compress(nil, make([]byte, 128<<20))
	dst := make([]byte, 1000)
	if err := z.Decompress(dst, bomb); err == nil {
		t.Error("128 MiB fit into 1000 bytes")
	}
	if _, err := z.Unpack(SnapshotFile, append([]byte{2}, bomb...)); err == nil {
		t.Error("a snapshot of 128 MiB was unpacked")
	}
	if _, err := z.Unpack(IndexFile, append([]byte{2}, bomb...)); err != nil {
		t.Errorf("an index of 128 MiB: %v", err)
	}
	for _, bad := range [][]byte{nil, {2}, {3, 1, 2}, {2, 1, 2, 3, 4, 5}, bomb} {
		if _, err := z.Unpack(LockFile, bad); err == nil {
			t.Errorf("% x: unpacked", bad[:min(len(bad), 8)])
		}
	}
	for _, version := range []int{1, 2} {
		got, err := z.Unpack(LockFile, z.PackUnpacked(nil, []byte(`{"a":1}`), version))
		if err != nil || string(got) != `{"a":1}` {
			t.Errorf("version %d: %s, %v", version, got, err)
		}
	}
}

func TestGroups(t *testing.T) {
	list := []*Snapshot{{Hostname: "b", Paths: []string{"/x", "/y"}}, {Hostname: "a", Paths: []string{"/x"}}, {Hostname: "b", Paths: []string{"/y", "/x"}}}
	groups := GroupBy{Host: true, Paths: true}.Group(list)
	if len(groups) != 2 || groups[0].Host != "a" || len(groups[1].Snapshots) != 2 {
		t.Errorf("%+v", groups)
	}
	if groups := (GroupBy{}).Group(list); len(groups) != 1 || len(groups[0].Snapshots) != 3 {
		t.Errorf("%+v", groups)
	}
	if _, err := ParseGroupBy("host,colour"); err == nil {
		t.Error("grouped by colour")
	}
}

func BenchmarkDecodeIndex(b *testing.B) {
	var packs []IndexPack
	for i := range 1000 {
		p := IndexPack{ID: Hash([]byte{byte(i), byte(i >> 8)})}
		for j := range 12 {
			p.Blobs = append(p.Blobs, Blob{BlobHandle{Hash([]byte{byte(i), byte(i >> 8), byte(j)}), DataBlob}, uint32(j) * 1e6, 1e6, 2e6})
		}
		packs = append(packs, p)
	}
	doc := AppendIndex(nil, packs)
	b.SetBytes(int64(len(doc)))
	for b.Loop() {
		if err := DecodeIndex(doc, func(ID, []Blob) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkTreeOfLongFile(b *testing.B) {
	n := Node{Name: "disk", Type: FileNode, Content: make([]ID, 100_000)}
	for i := range n.Content {
		n.Content[i] = Hash([]byte{byte(i), byte(i >> 8), byte(i >> 16)})
	}
	doc, err := AppendTree(nil, &Tree{[]Node{n}})
	if err != nil {
		b.Fatal(err)
	}
	b.Run("decode", func(b *testing.B) {
		b.SetBytes(int64(len(doc)))
		for b.Loop() {
			if _, err := DecodeTree(doc); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("encode", func(b *testing.B) {
		b.SetBytes(int64(len(doc)))
		for b.Loop() {
			if _, err := AppendTree(doc[:0:0], &Tree{[]Node{n}}); err != nil {
				b.Fatal(err)
			}
		}
	})
}
