package restic

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/klauspost/compress/zstd"
)

// Compression says how hard to compress. The texts are restic's RESTIC_COMPRESSION values.
type Compression string

// The levels. Auto is restic's default.
const (
	CompressionAuto    Compression = "auto"
	CompressionOff     Compression = "off"
	CompressionFastest Compression = "fastest"
	CompressionBetter  Compression = "better"
	CompressionMax     Compression = "max"
)

// zstdWindow is the window restic writes with, in bytes. Readers built on libzstd hold one window per stream.
const zstdWindow = 512 << 10

// Zstd compresses and decompresses blobs and files. Its methods may be called concurrently.
type Zstd struct {
	off bool
	enc *zstd.Encoder
	dec *zstd.Decoder
}

// NewZstd makes a codec for a level; the empty level is auto.
func NewZstd(level Compression) (*Zstd, error) {
	var l zstd.EncoderLevel
	switch level {
	case CompressionAuto, CompressionOff, "":
		l = zstd.SpeedDefault
	case CompressionFastest:
		l = zstd.SpeedFastest
	case CompressionBetter:
		l = zstd.SpeedBetterCompression
	case CompressionMax:
		l = zstd.SpeedBestCompression
	default:
		return nil, fmt.Errorf("compression %q is none of auto, off, fastest, better, max", level)
	}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(l), zstd.WithEncoderCRC(false),
		zstd.WithWindowSize(zstdWindow), zstd.WithEncoderConcurrency(runtime.GOMAXPROCS(0)))
	if err != nil {
		return nil, fmt.Errorf("zstd: %w", err)
	}
	// The limit to the destination's capacity is what stops a bomb: nothing is decoded that was not announced.
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(runtime.GOMAXPROCS(0)),
		zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderMaxWindow(64<<20), zstd.WithDecoderMaxMemory(MaxPackSize))
	if err != nil {
		return nil, fmt.Errorf("zstd: %w", err)
	}
	return &Zstd{off: level == CompressionOff, enc: enc, dec: dec}, nil
}

// Off reports whether data is to be stored uncompressed. Trees and files are compressed all the same.
func (z *Zstd) Off() bool { return z.off }

// Compress appends one frame that holds data.
func (z *Zstd) Compress(dst, data []byte) []byte { return z.enc.EncodeAll(data, dst) }

// Decompress decodes a frame of exactly len(dst) bytes of content into dst.
func (z *Zstd) Decompress(dst, frame []byte) error {
	out, err := z.dec.DecodeAll(frame, dst[:0:len(dst)])
	if err != nil {
		return fmt.Errorf("zstd: %w", err)
	}
	if len(out) != len(dst) {
		return fmt.Errorf("zstd: frame holds %d bytes, %d were announced", len(out), len(dst))
	}
	return nil
}

// Close frees the codec's goroutines and memory.
func (z *Zstd) Close() {
	z.enc.Close()
	z.dec.Close()
}

// maxUnpacked bounds the decoded size of a file in bytes. restic's index files have some 50,000 blobs, 8 MB of JSON,
// but older versions and other writers made larger ones.
func maxUnpacked(t FileType) int {
	if t == IndexFile {
		return 1 << 30
	}
	return 64 << 20
}

// PackUnpacked appends the plaintext of a lock, snapshot or index file that holds the JSON document:
//
//	version 1: the document
//	version 2: byte 2, one zstd frame of the document
func (z *Zstd) PackUnpacked(dst, document []byte, version int) []byte {
	if version < 2 {
		return append(dst, document...)
	}
	return z.Compress(append(dst, 2), document)
}

// ErrUnpacked says that the plaintext of a file is neither JSON nor a known encoding of it.
var ErrUnpacked = errors.New("unknown encoding")

// Unpack returns the JSON document in the plaintext of a file of type t; it may alias plain.
func (z *Zstd) Unpack(t FileType, plain []byte) ([]byte, error) {
	if len(plain) == 0 {
		return nil, fmt.Errorf("%w: empty", ErrUnpacked)
	}
	switch plain[0] {
	case '{', '[':
		return plain, nil
	case 2:
		return z.unpackFrame(plain[1:], maxUnpacked(t))
	}
	return nil, fmt.Errorf("%w: first byte %#02x", ErrUnpacked, plain[0])
}

// unpackFrame decodes a frame whose size only the frame itself tells, if it does: it grows the destination up to limit.
func (z *Zstd) unpackFrame(frame []byte, limit int) ([]byte, error) {
	var h zstd.Header
	if err := h.Decode(frame); err != nil {
		return nil, fmt.Errorf("zstd: %w", err)
	}
	if h.HasFCS {
		if h.FrameContentSize > uint64(limit) {
			return nil, fmt.Errorf("zstd: frame claims %d bytes, more than %d", h.FrameContentSize, limit)
		}
		// A frame cannot expand more than this per byte: each 128 KiB block takes at least 4 bytes.
		if h.FrameContentSize > uint64(len(frame))*(128<<10)/4+(128<<10) {
			return nil, fmt.Errorf("zstd: frame of %d bytes claims %d", len(frame), h.FrameContentSize)
		}
		out := make([]byte, h.FrameContentSize)
		return out, z.Decompress(out, frame)
	}
	for size := max(64<<10, 8*len(frame)); ; size *= 4 {
		size = min(size, limit)
		out, err := z.dec.DecodeAll(frame, make([]byte, 0, size))
		if err == nil {
			return out, nil
		}
		if !errors.Is(err, zstd.ErrDecoderSizeExceeded) || size == limit {
			return nil, fmt.Errorf("zstd: %w", err)
		}
	}
}
