package wire

import (
	"bytes"
	"compress/zlib"
	"errors"
	"fmt"
	"io"
)

// Compression is how a fragment's data are packed. It is chosen per frame: a read asks for one, each fragment of the
// reply states what it uses, which is [None] when packing does not pay.
type Compression uint32

// Compressions by their numbers on the wire.
const (
	None   Compression = 0
	Zlib   Compression = 1 // a zlib stream, nothing around it
	FastLZ Compression = 2 // a FastLZ block, nothing around it
	Skipz  Compression = 3 // zero runs left out
)

func (c Compression) String() string {
	switch c {
	case None:
		return "none"
	case Zlib:
		return "zlib"
	case FastLZ:
		return "fastlz"
	case Skipz:
		return "skipz"
	}
	return fmt.Sprintf("compression %d", uint32(c))
}

// Errors of unpacking a fragment. The frame around it is sound, so the operation can be asked for again.
var (
	ErrPacked    = errors.New("corrupt compressed fragment")
	ErrAmbiguous = errors.New("ambiguous skipz fragment") // may be skipz or raw data stated as skipz
)

// Codec packs and unpacks fragments. It keeps what can be reused; it is not safe for concurrent use.
// The zero value is ready.
type Codec struct {
	in    bytes.Reader
	out   bytes.Buffer
	zr    io.ReadCloser
	zw    *zlib.Writer
	table *[fastTable]uint32
}

// Decode unpacks src into dst, the whole fragment: dst is filled, or there is an error.
func (k *Codec) Decode(dst, src []byte, c Compression) error {
	switch c {
	case None:
		if len(src) != len(dst) {
			return fmt.Errorf("%w: %d raw bytes for %d", ErrPacked, len(src), len(dst))
		}
		copy(dst, src)
		return nil
	case Zlib:
		return k.inflate(dst, src)
	case FastLZ:
		return decodeFast(dst, src)
	case Skipz:
		return decodeSkipz(dst, src)
	}
	return fmt.Errorf("%w: %s", ErrPacked, c)
}

// Encode packs src behind dst and returns the extended slice and the compression used: [None], with nothing
// appended, when packing does not make src smaller.
func (k *Codec) Encode(dst, src []byte, c Compression) ([]byte, Compression) {
	start := len(dst)
	switch c {
	case Zlib:
		dst = k.deflate(dst, src)
	case FastLZ:
		dst = k.encodeFast(dst, src)
	case Skipz:
		dst = encodeSkipz(dst, src)
	default:
		return dst, None
	}
	if n := len(dst) - start; n == 0 || n >= len(src) {
		return dst[:start], None
	}
	return dst, c
}

func (k *Codec) inflate(dst, src []byte) error {
	k.in.Reset(src)
	var err error
	if k.zr == nil {
		k.zr, err = zlib.NewReader(&k.in)
	} else {
		err = k.zr.(zlib.Resetter).Reset(&k.in, nil)
	}
	if err != nil {
		k.zr = nil
		return fmt.Errorf("%w: zlib: %w", ErrPacked, err)
	}
	if _, err = io.ReadFull(k.zr, dst); err == nil {
		// The end of the stream holds the checksum: only reading past the data verifies it.
		var more [1]byte
		var n int
		if n, err = k.zr.Read(more[:]); n > 0 {
			err = errors.New("more data than the fragment has")
		} else if err == io.EOF {
			return nil
		}
	}
	return fmt.Errorf("%w: zlib: %w", ErrPacked, err)
}

func (k *Codec) deflate(dst, src []byte) []byte {
	k.out.Reset()
	if k.zw == nil {
		// BestSpeed: VMware's streams start 78 01, which says the same.
		k.zw, _ = zlib.NewWriterLevel(&k.out, zlib.BestSpeed)
	} else {
		k.zw.Reset(&k.out)
	}
	if _, err := k.zw.Write(src); err != nil {
		return dst
	}
	if err := k.zw.Close(); err != nil {
		return dst
	}
	return append(dst, k.out.Bytes()...)
}
