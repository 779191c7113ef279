package restic

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// A pack, and the plaintext of its header. Offsets are implicit: the blobs lie in the header's order without gaps.
//
//	+--------+--------+-----+--------+---------------+-------------------------+
//	| blob 1 | blob 2 | ... | blob n | sealed header | len(sealed header) u32le|
//	+--------+--------+-----+--------+---------------+-------------------------+
//
//	header entry, plain:       type 0 data | 1 tree ; sealed length u32le ; ID [32]                      37 bytes
//	header entry, compressed:  type 2 data | 3 tree ; sealed length u32le ; plain length u32le ; ID [32] 41 bytes
const (
	entryPlain      = 1 + 4 + 32
	entryCompressed = 1 + 4 + 4 + 32
	packTrailer     = 4

	// MaxPackHeader bounds the sealed header, in bytes: restic reads no longer one.
	MaxPackHeader = 16 << 20
	// MaxPackBlobs is how many blobs a header of that length describes.
	MaxPackBlobs = (MaxPackHeader - Sealed) / entryCompressed
	// MinPackSize is the size of a pack with one empty blob, in bytes.
	MinPackSize = Sealed + packTrailer + entryPlain
	// MaxPackSize follows from offsets being 32 bits wide.
	MaxPackSize = math.MaxUint32
)

// HeaderEntrySize is the length of the blob's header entry in bytes.
func HeaderEntrySize(b Blob) int {
	if b.Compressed() {
		return entryCompressed
	}
	return entryPlain
}

// PackSize is the size in bytes of the pack that holds exactly these blobs.
func PackSize(blobs []Blob) int64 {
	n := int64(Sealed + packTrailer)
	for _, b := range blobs {
		n += int64(b.Length) + int64(HeaderEntrySize(b))
	}
	return n
}

// AppendPackHeader appends the header's plaintext. The blobs must be in the order of their offsets, without gaps.
func AppendPackHeader(dst []byte, blobs []Blob) []byte {
	for _, b := range blobs {
		kind := byte(b.Type)
		if b.Compressed() {
			kind += 2
		}
		dst = append(dst, kind)
		dst = binary.LittleEndian.AppendUint32(dst, b.Length)
		if b.Compressed() {
			dst = binary.LittleEndian.AppendUint32(dst, b.Uncompressed)
		}
		dst = append(dst, b.ID[:]...)
	}
	return dst
}

// PackHeaderLength reads the last four bytes of a pack of size bytes: the length of the sealed header before them.
func PackHeaderLength(tail []byte, size int64) (int, error) {
	if size < MinPackSize || len(tail) < packTrailer {
		return 0, fmt.Errorf("pack of %d bytes is too short: truncated", size)
	}
	n := int64(binary.LittleEndian.Uint32(tail[len(tail)-packTrailer:]))
	if n < Sealed+entryPlain || n > MaxPackHeader || n > size-packTrailer-Sealed {
		return 0, fmt.Errorf("pack of %d bytes claims a header of %d bytes", size, n)
	}
	return int(n), nil
}

// AppendPackTrailer appends the length of the sealed header.
func AppendPackTrailer(dst []byte, headerLength int) []byte {
	return binary.LittleEndian.AppendUint32(dst, uint32(headerLength))
}

var errHeaderShort = errors.New("pack header ends inside an entry")

// ParsePackHeader reads a header's plaintext. size is the size of the whole pack in bytes; the entries must fill it exactly.
func ParsePackHeader(header []byte, size int64) ([]Blob, error) {
	sealed := int64(len(header) + Sealed)
	blobs := make([]Blob, 0, len(header)/entryPlain)
	offset := int64(0)
	for len(header) > 0 {
		var b Blob
		kind := header[0]
		if kind > 3 {
			return nil, fmt.Errorf("pack header: unknown blob type %d", kind)
		}
		b.Type = BlobType(kind & 1)
		n := entryPlain
		if kind >= 2 {
			n = entryCompressed
		}
		if len(header) < n {
			return nil, errHeaderShort
		}
		b.Length = binary.LittleEndian.Uint32(header[1:])
		if kind >= 2 {
			if b.Uncompressed = binary.LittleEndian.Uint32(header[5:]); b.Uncompressed == 0 {
				return nil, errors.New("pack header: compressed blob of no length")
			}
		}
		copy(b.ID[:], header[n-32:n])
		if b.Length < Sealed {
			return nil, fmt.Errorf("pack header: blob of %d bytes is shorter than its seal", b.Length)
		}
		if offset+int64(b.Length) > MaxPackSize {
			return nil, errors.New("pack header: blobs exceed 4 GiB")
		}
		b.Offset = uint32(offset)
		offset += int64(b.Length)
		blobs = append(blobs, b)
		header = header[n:]
	}
	if want := offset + sealed + packTrailer; want != size {
		return nil, fmt.Errorf("pack header describes %d bytes, the pack has %d", want, size)
	}
	return blobs, nil
}
