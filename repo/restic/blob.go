package restic

import "fmt"

// BlobType says what a blob holds. A blob is found by type and ID together: a tree and a chunk of a file with the
// same bytes are two blobs.
type BlobType uint8

// The blob types.
const (
	DataBlob BlobType = iota
	TreeBlob
	// NumBlobTypes is for tables with one entry per type.
	NumBlobTypes
)

func (t BlobType) String() string {
	switch t {
	case DataBlob:
		return "data"
	case TreeBlob:
		return "tree"
	}
	return fmt.Sprintf("blob type %d", uint8(t))
}

// BlobHandle names a blob in a repository.
type BlobHandle struct {
	ID   ID
	Type BlobType
}

func (h BlobHandle) String() string { return h.Type.String() + " blob " + h.ID.Short() }

// Sealed is the number of bytes encryption adds to a blob or a file: 16 of IV before, 16 of MAC behind.
const Sealed = 32

// Blob says where in its pack a blob lies, as a pack header and an index tell it.
type Blob struct {
	BlobHandle
	// Offset and Length, in bytes, are of the sealed blob in the pack.
	Offset, Length uint32
	// Uncompressed is the plaintext's length in bytes if the blob is stored as a zstd frame, else 0.
	Uncompressed uint32
}

// Compressed reports whether the plaintext is stored as a zstd frame.
func (b Blob) Compressed() bool { return b.Uncompressed != 0 }

// Size is the plaintext's length in bytes.
func (b Blob) Size() int {
	if b.Uncompressed != 0 {
		return int(b.Uncompressed)
	}
	return int(b.Length) - Sealed
}

// ZeroChunkSize is the smallest chunk, and the length at which restic's chunker cuts zeros: the rolling hash of 64
// zeros is zero, so a cut falls as soon as a chunk has its minimal length.
const ZeroChunkSize = 512 << 10

// ZeroChunk is the ID of 524,288 zero bytes. restic's restore --sparse leaves holes in files whose content lists it.
func ZeroChunk() ID {
	return ID{
		0x07, 0x85, 0x4d, 0x2f, 0xef, 0x29, 0x7a, 0x06, 0xba, 0x81, 0x68, 0x5e, 0x66, 0x0c, 0x33, 0x2d,
		0xe3, 0x6d, 0x5d, 0x18, 0xd5, 0x46, 0x92, 0x7d, 0x30, 0xda, 0xad, 0x6d, 0x7f, 0xda, 0x15, 0x41,
	}
}
