package restic

import (
	"bytes"
	"reflect"
	"testing"
)

// What a parser accepts must survive being written and read again.

func FuzzTree(f *testing.F) {
	f.Add([]byte(`{"nodes":[]}` + "\n"))
	f.Add([]byte(`{"nodes":[{"name":"a\\xff","type":"file","mode":420,"mtime":"2026-05-06T07:08:09Z","atime":"2026-05-06T07:08:09.5+02:00","ctime":"0001-01-01T00:00:00Z","uid":0,"gid":0,"size":3,"content":["07854d2fef297a06ba81685e660c332de36d5d18d546927d30daad6d7fda1541"]}]}`))
	f.Add([]byte(`{"x":[1,{"y":null}],"nodes":[{"name":"d","type":"dir","subtree":"07854d2fef297a06ba81685e660c332de36d5d18d546927d30daad6d7fda1541","extended_attributes":[{"name":"a","value":"AQ=="}],"generic_attributes":{"b": 1}}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		tree, err := DecodeTree(data)
		if err != nil || tree.Check() != nil {
			return
		}
		once, err := AppendTree(nil, tree)
		if err != nil {
			return // a time JSON can read but not write
		}
		back, err := DecodeTree(once)
		if err != nil {
			t.Fatalf("%v: %s", err, once)
		}
		twice, err := AppendTree(nil, back)
		if err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("%v\n%s\n%s", err, once, twice)
		}
	})
}

func FuzzIndex(f *testing.F) {
	f.Add(AppendIndex(nil, []IndexPack{{ID{1}, []Blob{{BlobHandle{ID{2}, TreeBlob}, 0, 40, 0}, {BlobHandle{ID{3}, DataBlob}, 40, 50, 60}}}}))
	f.Add([]byte(`{"supersedes":["00"],"packs":null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		read := func(data []byte) (packs []IndexPack, err error) {
			err = DecodeIndex(data, func(id ID, blobs []Blob) error {
				packs = append(packs, IndexPack{id, append([]Blob(nil), blobs...)})
				return nil
			})
			return packs, err
		}
		packs, err := read(data)
		if err != nil {
			return
		}
		back, err := read(AppendIndex(nil, packs))
		if err != nil || !reflect.DeepEqual(back, packs) {
			t.Fatalf("%v\n%+v\n%+v", err, packs, back)
		}
	})
}

func FuzzPackHeader(f *testing.F) {
	blobs := []Blob{{BlobHandle{ID{2}, TreeBlob}, 0, 40, 0}, {BlobHandle{ID{3}, DataBlob}, 40, 50, 60}}
	f.Add(AppendPackHeader(nil, blobs), PackSize(blobs))
	f.Fuzz(func(t *testing.T, header []byte, size int64) {
		blobs, err := ParsePackHeader(header, size)
		if err != nil {
			return
		}
		if !bytes.Equal(AppendPackHeader(nil, blobs), header) || PackSize(blobs) != size {
			t.Fatalf("%+v", blobs)
		}
	})
}

func FuzzDocuments(f *testing.F) {
	f.Add([]byte(`{"version":2,"id":"07854d2fef297a06ba81685e660c332de36d5d18d546927d30daad6d7fda1541","chunker_polynomial":"3ad6fe53067f27"}`))
	f.Add([]byte(`{"time":"2026-05-06T07:08:09Z","tree":"07854d2fef297a06ba81685e660c332de36d5d18d546927d30daad6d7fda1541","paths":["/a"],"summary":{"files_new":1}}`))
	f.Add([]byte(`{"time":"2026-05-06T07:08:09Z","exclusive":true,"hostname":"h","pid":1}`))
	f.Add([]byte(`{"kdf":"scrypt","N":32768,"r":8,"p":1,"salt":"","data":""}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if c, err := DecodeConfig(data); err == nil {
			if back, err := DecodeConfig(EncodeConfig(c)); err != nil || back != c {
				t.Fatalf("config: %+v, %v", back, err)
			}
		}
		if s, err := DecodeSnapshot(data); err == nil {
			if doc, err := EncodeSnapshot(s); err == nil {
				if _, err := DecodeSnapshot(doc); err != nil {
					t.Fatalf("snapshot: %v: %s", err, doc)
				}
			}
		}
		if k, err := DecodeKey(data); err == nil && int64(k.N)*int64(k.R)*128 > MaxKeyMemory {
			t.Fatalf("key: %+v", k)
		}
		_, _ = DecodeLock(data)
		_, _ = DecodeMasterKey(data)
	})
}

func FuzzUnpack(f *testing.F) {
	z, err := NewZstd(CompressionAuto)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(z.Close)
	f.Add(z.PackUnpacked(nil, []byte(`{"a":1}`), 2), 10)
	f.Add([]byte(`{"a":1}`), 10)
	f.Fuzz(func(t *testing.T, data []byte, size int) {
		if doc, err := z.Unpack(SnapshotFile, data); err == nil && len(doc) > 64<<20 {
			t.Fatalf("%d bytes", len(doc))
		}
		if size >= 0 && size < 1<<20 {
			_ = z.Decompress(make([]byte, size), data)
		}
	})
}
