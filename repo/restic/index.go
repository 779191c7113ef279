package restic

import (
	"fmt"
	"strconv"
)

// IndexPack is one pack as an index file describes it.
type IndexPack struct {
	ID    ID
	Blobs []Blob
}

// AppendIndex appends an index file's JSON, with the newline restic's encoder leaves at the end.
//
//	{"packs":[{"id":PACK,"blobs":[{"id":BLOB,"type":"data","offset":0,"length":N,"uncompressed_length":N},...]},...]}
func AppendIndex(dst []byte, packs []IndexPack) []byte {
	dst = append(dst, `{"packs":[`...)
	for i, p := range packs {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, `{"id":`...)
		dst = appendID(dst, p.ID)
		dst = append(dst, `,"blobs":[`...)
		for j, b := range p.Blobs {
			if j > 0 {
				dst = append(dst, ',')
			}
			dst = append(dst, `{"id":`...)
			dst = appendID(dst, b.ID)
			dst = append(dst, `,"type":"`...)
			dst = append(dst, b.Type.String()...)
			dst = append(dst, `","offset":`...)
			dst = strconv.AppendUint(dst, uint64(b.Offset), 10)
			dst = append(dst, `,"length":`...)
			dst = strconv.AppendUint(dst, uint64(b.Length), 10)
			if b.Compressed() {
				dst = append(dst, `,"uncompressed_length":`...)
				dst = strconv.AppendUint(dst, uint64(b.Uncompressed), 10)
			}
			dst = append(dst, '}')
		}
		dst = append(dst, `]}`...)
	}
	return append(dst, "]}\n"...)
}

// DecodeIndex reads an index file's JSON and calls pack for each pack it describes; the blobs are valid during the
// call only. Unknown fields are skipped, the obsolete "supersedes" among them, which was never safe to act on.
func DecodeIndex(data []byte, pack func(id ID, blobs []Blob) error) error {
	s := &scanner{b: data}
	var (
		id    ID
		blob  Blob
		typed bool
		blobs []Blob
	)
	blobField := func(key []byte) (err error) {
		switch string(key) {
		case "id":
			return s.id(&blob.ID)
		case "type":
			var t []byte
			if t, err = s.str(); err != nil {
				return err
			}
			switch string(t) {
			case "data":
				blob.Type = DataBlob
			case "tree":
				blob.Type = TreeBlob
			default:
				return s.fail("unknown blob type %q", t)
			}
			typed = true
		case "offset":
			blob.Offset, err = s.uint32()
		case "length":
			blob.Length, err = s.uint32()
		case "uncompressed_length":
			blob.Uncompressed, err = s.uint32()
		default:
			return s.skip()
		}
		return err
	}
	blobItem := func() error {
		blob, typed = Blob{}, false
		if err := s.object(blobField); err != nil {
			return err
		}
		switch {
		case !typed || blob.ID.IsNull():
			return s.fail("blob without id or type")
		case blob.Length < Sealed:
			return s.fail("blob %s of %d bytes is shorter than its seal", blob.ID.Short(), blob.Length)
		case uint64(blob.Offset)+uint64(blob.Length) > MaxPackSize:
			return s.fail("blob %s ends beyond 4 GiB", blob.ID.Short())
		}
		blobs = append(blobs, blob)
		return nil
	}
	packField := func(key []byte) error {
		switch string(key) {
		case "id":
			return s.id(&id)
		case "blobs":
			if s.null() {
				return nil
			}
			return s.array(blobItem)
		}
		return s.skip()
	}
	packItem := func() error {
		id, blobs = ID{}, blobs[:0]
		if err := s.object(packField); err != nil {
			return err
		}
		if id.IsNull() {
			return s.fail("pack without id")
		}
		return pack(id, blobs)
	}
	err := s.object(func(key []byte) error {
		if string(key) == "packs" && !s.null() {
			return s.array(packItem)
		}
		if string(key) == "packs" {
			return nil
		}
		return s.skip()
	})
	if err == nil {
		err = s.end()
	}
	if err != nil {
		return fmt.Errorf("index: %w", err)
	}
	return nil
}
